//! Enums that are stored as text. The text is written once, beside the variant, and serves the
//! database, JSON and people alike. A text that no variant has is an error, never a guess.

/// Declares an enum with the text of each variant.
macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every value there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text that stands for this value everywhere.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::error::Error;

            fn from_str(text: &str) -> crate::error::Result<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    crate::error::Error::Invalid {
                        what: stringify!($name),
                        why: format!(
                            "{text:?} is none of {}",
                            Self::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(", ")
                        ),
                    }
                })
            }
        }
    };
}

pub(crate) use text_enum;
