//! Where a repository is: the text a user gives, parsed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store::{LocalStore, S3Place, S3Store, Store, StoreOptions};

/// The place of a repository: a path, `local:/path` or `file:///path`; or `s3://bucket/prefix`
/// or `s3:https://host:port/bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Folder(PathBuf),
    S3(S3Place),
}

impl Location {
    /// Parses a location.
    ///
    /// # Errors
    /// [`Error::Location`] for an empty text, an unknown scheme, a `file:` URL with a host, or
    /// keys in the text.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::Location {
            text: without_keys(text),
            reason: reason.to_owned(),
        };
        if S3Place::claims(text) {
            let place = S3Place::parse(text).map_err(refuse)?;
            return Ok(Self(Place::S3(place)));
        }
        let path = if let Some(rest) = text.strip_prefix("file://") {
            if !rest.starts_with('/') {
                return Err(refuse("a file URL needs three slashes and no host"));
            }
            rest
        } else if let Some(rest) = text.strip_prefix("local:") {
            rest
        } else if has_scheme(text) {
            return Err(refuse(
                "a repository is in a folder or in S3 (s3://bucket/prefix)",
            ));
        } else {
            text
        };
        if path.is_empty() {
            return Err(refuse("the path is empty"));
        }
        if path.contains('\0') {
            return Err(refuse("the path holds a NUL byte"));
        }
        Ok(Self(Place::Folder(PathBuf::from(path))))
    }

    /// Opens the store behind the location; nothing is created or read there yet.
    ///
    /// # Errors
    /// [`Error::Store`] when keys or settings that the store needs are missing or wrong.
    pub fn store(&self, options: &StoreOptions) -> Result<Arc<dyn Store>> {
        match &self.0 {
            Place::Folder(_) if options.as_of.is_some() => Err(Error::store(
                "open",
                "the repository",
                std::io::Error::new(
                    std::io::ErrorKind::Unsupported,
                    "a folder keeps no versions: only a bucket of S3 can be shown as of a time",
                ),
            )),
            Place::Folder(folder) => Ok(Arc::new(LocalStore::new(folder))),
            Place::S3(place) => match S3Store::new(place, options) {
                Ok(store) => Ok(Arc::new(store)),
                Err(source) => Err(Error::store("open", "the repository", source)),
            },
        }
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

/// A URL for a message: without what stands before the host.
fn without_keys(text: &str) -> String {
    match (text.rfind('@'), text.find("://").map(|at| at + 3)) {
        (Some(at), Some(from)) if from <= at => format!("{}…{}", &text[..from], &text[at..]),
        (Some(at), _) if has_scheme(text) => format!("…{}", &text[at..]),
        _ => text.to_owned(),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Folder(folder) => write!(f, "{}", folder.display()),
            Place::S3(place) => write!(f, "{place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, shown) in [
            ("/srv/repo", "/srv/repo"),
            ("repo", "repo"),
            ("./a:b", "./a:b"),
            ("local:/srv/repo", "/srv/repo"),
            ("file:///srv/repo", "/srv/repo"),
            ("s3://vms/site1/", "s3://vms/site1"),
            (
                "s3:http://localhost:9000/vms",
                "s3:http://localhost:9000/vms",
            ),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "local:",
            "file://host/x",
            "s3:x",
            "sftp:u@h:/x",
            "https://x/y",
        ] {
            assert!(
                matches!(Location::parse(text), Err(Error::Location { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn keys_are_not_repeated() {
        for text in [
            "s3:https://key:hunter2@host/bucket",
            "s3:key:hunter2@host/bucket",
            "https://key:hunter2@host/",
            "sftp:key:hunter2@host",
        ] {
            let error = Location::parse(text).expect_err(text).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
