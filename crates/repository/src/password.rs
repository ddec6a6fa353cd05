//! The repository password: never printed, wiped from memory when dropped.

use std::fmt;

use zeroize::Zeroize;

/// A repository password.
#[derive(Clone)]
pub struct Password {
    text: String,
    random: bool,
}

impl Password {
    /// Takes the password's text as it is; no trimming.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            random: false,
        }
    }

    /// Takes a password of at least 128 random bits. Nobody can guess it, so a repository made with
    /// it spends no time on making guesses slow, which each opening would pay.
    #[must_use]
    pub fn random(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            random: true,
        }
    }

    /// Whether it is known to be unguessable.
    pub(crate) fn is_random(&self) -> bool {
        self.random
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.text
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(redacted)")
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_text() {
        assert!(!format!("{:?}", Password::from("hunter2")).contains("hunter2"));
    }
}
