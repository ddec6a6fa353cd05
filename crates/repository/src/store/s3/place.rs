//! Where in S3 a repository is, as users write it.
//!
//! | text | service |
//! |---|---|
//! | `s3://bucket/prefix` | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the profile's, or AWS |
//! | `s3:https://host:port/bucket/prefix` | that one, as restic writes it |
//! | `s3:host:port/bucket/prefix` | the same by https |
//!
//! The prefix may be missing. Keys never belong into a location: it is kept in the settings,
//! shown in messages, and seen by everybody in the list of processes.

use std::fmt;

use url::Url;

/// Longest prefix, bytes: a key of S3 has at most 1024.
const MAX_PREFIX_BYTES: usize = 800;

/// A bucket, a prefix in it, and the service if the text names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct S3Place {
    /// Scheme, host and port, without a slash at the end.
    pub(crate) endpoint: Option<String>,
    pub(crate) bucket: String,
    /// Without slashes at its ends; may be empty.
    pub(crate) prefix: String,
}

impl S3Place {
    /// Whether the text is meant as a place in S3.
    pub(crate) fn claims(text: &str) -> bool {
        text.starts_with("s3:")
    }

    /// Parses a location; the error says what is wrong with it, and holds none of it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix("s3:").unwrap_or(text);
        if let Some(path) = rest.strip_prefix("//") {
            return Self::in_bucket(None, path);
        }
        let url = if rest.starts_with("http://") || rest.starts_with("https://") {
            Url::parse(rest)
        } else {
            Url::parse(&format!("https://{rest}"))
        };
        let url = url.map_err(|_| FORMS)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "keys do not belong into a location, where others see them; give them in \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or in ~/.aws/credentials",
            );
        }
        if rest.contains('%') {
            return Err("write the prefix as it is, without '%'");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("it has a '?' or '#'");
        }
        let endpoint = url.origin().ascii_serialization();
        // The text, not the URL's own path: that one has resolved `..` and encoded spaces.
        let after_scheme = rest.split_once("://").map_or(rest, |(_, rest)| rest);
        let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
        Self::in_bucket(Some(endpoint), path)
    }

    fn in_bucket(endpoint: Option<String>, path: &str) -> Result<Self, &'static str> {
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            return Err(FORMS);
        }
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if !bucket.bytes().all(known) || !(3..=63).contains(&bucket.len()) {
            return Err(
                "a bucket's name has 3 to 63 letters, digits, dots and dashes; a service is \
                 named as in s3:https://host:9000/bucket/prefix",
            );
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
            return Err("the prefix has an empty part, '.', '..' or a control character");
        }
        if prefix.len() > MAX_PREFIX_BYTES {
            return Err("the prefix is longer than 800 bytes");
        }
        Ok(Self {
            endpoint,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

const FORMS: &str = "it must look like s3://bucket/prefix or s3:https://host:port/bucket/prefix";

fn is_plain(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control)
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "s3:{endpoint}/{}", self.bucket)?,
            None => write!(f, "s3://{}", self.bucket)?,
        }
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        for (text, endpoint, bucket, prefix) in [
            ("s3://vms", None, "vms", ""),
            ("s3://vms/", None, "vms", ""),
            ("s3://vms/a/b/", None, "vms", "a/b"),
            (
                "s3:https://h.example/vms",
                Some("https://h.example"),
                "vms",
                "",
            ),
            (
                "s3:http://[::1]:9000/vms/a b",
                Some("http://[::1]:9000"),
                "vms",
                "a b",
            ),
            (
                "s3:h.example:9000/vms/x",
                Some("https://h.example:9000"),
                "vms",
                "x",
            ),
        ] {
            let place = S3Place::parse(text).unwrap();
            let parts = (place.endpoint.as_deref(), &*place.bucket, &*place.prefix);
            assert_eq!(parts, (endpoint, bucket, prefix), "{text}");
            assert_eq!(S3Place::parse(&place.to_string()), Ok(place), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, word) in [
            ("s3:", "must look like"),
            ("s3://", "must look like"),
            ("s3:https://host", "must look like"),
            ("s3://host:9000/bucket", "as in s3:https"),
            ("s3://ab", "3 to 63"),
            ("s3://../x", "3 to 63"),
            ("s3://vms/a/../b", "'..'"),
            ("s3:https://host/vms/a/../b", "'..'"),
            ("s3://vms/a//b", "empty part"),
            ("s3://vms/a\nb", "control"),
            ("s3:https://key:secret@host/vms", "AWS_ACCESS_KEY_ID"),
            ("s3:https://host/vms?x=y", "'?'"),
            ("s3:https://host/vms/a%20b", "'%'"),
        ] {
            let reason = S3Place::parse(text).expect_err(text);
            assert!(reason.contains(word), "{text}: {reason}");
            assert!(!reason.contains("secret@"), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_leads_out(text in ".{0,60}") {
            if let Ok(place) = S3Place::parse(&format!("s3:{text}")) {
                prop_assert!(!place.prefix.split('/').any(|part| part == ".."));
                prop_assert_eq!(S3Place::parse(&place.to_string()), Ok(place));
            }
        }
    }
}
