//! Where a repository is: the text a user gives, parsed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store::{LocalStore, Store};

/// The place of a repository: a path, `local:/path` or `file:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    folder: PathBuf,
}

impl Location {
    /// Parses a location.
    ///
    /// # Errors
    /// [`Error::Location`] for an empty text, an unknown scheme, or a `file:` URL with a host.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::Location {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let path = if let Some(rest) = text.strip_prefix("file://") {
            if !rest.starts_with('/') {
                return Err(refuse("a file URL needs three slashes and no host"));
            }
            rest
        } else if let Some(rest) = text.strip_prefix("local:") {
            rest
        } else if has_scheme(text) {
            return Err(refuse("only local folders are supported by this version"));
        } else {
            text
        };
        if path.is_empty() {
            return Err(refuse("the path is empty"));
        }
        if path.contains('\0') {
            return Err(refuse("the path holds a NUL byte"));
        }
        Ok(Self {
            folder: PathBuf::from(path),
        })
    }

    /// Opens the store behind the location; nothing is created or read yet.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(&self.folder))
    }
}

/// Whether the text begins like a URL (`s3:`, `sftp:`, `https://`) and not like a path.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else {
        return false;
    };
    scheme.len() > 1
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+')
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, path) in [
            ("/srv/repo", "/srv/repo"),
            ("repo", "repo"),
            ("./a:b", "./a:b"),
            ("local:/srv/repo", "/srv/repo"),
            ("file:///srv/repo", "/srv/repo"),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), path);
        }
        for text in [
            "",
            "local:",
            "file://host/x",
            "s3:bucket",
            "sftp:u@h:/x",
            "https://x/y",
        ] {
            assert!(
                matches!(Location::parse(text), Err(Error::Location { .. })),
                "{text}"
            );
        }
    }
}
