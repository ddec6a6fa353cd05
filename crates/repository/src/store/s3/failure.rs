//! What went wrong with one request: whether to try again, and what the user can do.

use std::io;
use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Response};

/// Longest error document that is looked at, bytes.
const MAX_DOCUMENT_BYTES: u64 = 64 << 10;
/// Longest part of a service's own words in a message, characters.
const MAX_TOLD_CHARS: usize = 200;
/// Longest pause that a service may ask for.
const MAX_ASKED_PAUSE: Duration = Duration::from_secs(30);

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Code of S3, such as `NoSuchBucket`; empty where the service said nothing.
    pub(super) code: String,
    /// Whether the same request may work later.
    pub(super) transient: bool,
    /// Whether the service was reached.
    pub(super) answered: bool,
    /// Pause that the service asks for.
    pub(super) pause: Option<Duration>,
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    /// An answer that is not what was asked for: it may be better the next time.
    pub(super) fn wrong_answer(text: impl Into<String>) -> Self {
        Self {
            transient: true,
            ..Self::lasting(io::ErrorKind::InvalidData, text)
        }
    }

    /// Nothing that trying again would change.
    pub(super) fn lasting(kind: io::ErrorKind, text: impl Into<String>) -> Self {
        Self {
            code: String::new(),
            transient: false,
            answered: true,
            pause: None,
            kind,
            text: text.into(),
        }
    }

    /// No answer, or none that is HTTP.
    pub(super) fn no_answer(error: ureq::Error) -> Self {
        let certificate = matches!(
            error,
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_)
        ) || is_certificate(&error);
        let (kind, text) = match &error {
            ureq::Error::Timeout(what) => (io::ErrorKind::TimedOut, format!("timed out ({what})")),
            ureq::Error::Io(error) => (error.kind(), error.to_string()),
            // Its text may hold the URL, which is signed.
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => {
                (io::ErrorKind::InvalidInput, "the URL is not valid".into())
            }
            other => (io::ErrorKind::Other, other.to_string()),
        };
        let hint = if certificate {
            "; a certificate of your own goes into AWS_CA_BUNDLE"
        } else {
            ""
        };
        Self {
            code: String::new(),
            transient: !certificate,
            answered: false,
            pause: None,
            kind,
            text: format!("{text}{hint}"),
        }
    }

    /// A broken connection in the middle of an answer.
    pub(super) fn broken(error: &io::Error) -> Self {
        Self {
            kind: error.kind(),
            ..Self::wrong_answer(format!("the answer broke off: {error}"))
        }
    }

    /// An answer with another status than asked for; takes the reason from its body.
    pub(super) fn of_answer(answer: Response<Body>) -> Self {
        let status = answer.status().as_u16();
        let (head, mut body) = answer.into_parts();
        let document = body
            .with_config()
            .limit(MAX_DOCUMENT_BYTES)
            .lossy_utf8(true)
            .read_to_string()
            .unwrap_or_default();
        let code = element(&document, "Code");
        let told = element(&document, "Message");
        let hint = hint(status, &code, &head.headers);
        let mut text = format!("S3 answers {status}");
        for (part, before) in [(&code, " "), (&told, ": "), (&hint, "; ")] {
            if !part.is_empty() {
                text.push_str(before);
                text.push_str(part);
            }
        }
        Self {
            transient: is_transient(status, &code),
            answered: true,
            pause: retry_after(&head.headers),
            kind: kind(status, &code),
            code,
            text,
        }
    }

    /// An error document where there should be an object or nothing (status 200).
    pub(super) fn of_document(document: &str) -> Self {
        let (code, told) = (element(document, "Code"), element(document, "Message"));
        Self {
            code: code.clone(),
            ..Self::wrong_answer(format!("S3 answers 200 with an error, {code}: {told}"))
        }
    }

    /// The same, told in other words, and not to be tried again.
    pub(super) fn told_as(self, text: String) -> Self {
        Self {
            text,
            transient: false,
            ..self
        }
    }

    pub(super) fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn into_io(self) -> io::Error {
        io::Error::new(self.kind, self.text)
    }
}

fn is_certificate(error: &ureq::Error) -> bool {
    let ureq::Error::Io(error) = error else {
        return false;
    };
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>())
}

fn is_transient(status: u16, code: &str) -> bool {
    const CODES: [&str; 8] = [
        "SlowDown",
        "RequestTimeout",
        "InternalError",
        "OperationAborted",
        "ConditionalRequestConflict",
        // What arrived was not what we sent.
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
    ];
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 509) || CODES.contains(&code)
}

fn kind(status: u16, code: &str) -> io::ErrorKind {
    match (status, code) {
        (_, "QuotaExceeded" | "XMinioStorageFull") | (507, _) => io::ErrorKind::StorageFull,
        (_, "NotImplemented") | (501, _) => io::ErrorKind::Unsupported,
        (401 | 403, _) => io::ErrorKind::PermissionDenied,
        (404, _) => io::ErrorKind::NotFound,
        (412, _) => io::ErrorKind::AlreadyExists,
        (413, _) => io::ErrorKind::FileTooLarge,
        (416, _) => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::Other,
    }
}

/// What the user can do.
fn hint(status: u16, code: &str, headers: &HeaderMap) -> String {
    let region = headers
        .get("x-amz-bucket-region")
        .and_then(|region| region.to_str().ok())
        .map(|region| format!(" to {}", plain(region)))
        .unwrap_or_default();
    match (status, code) {
        (_, "AccessDenied" | "AllAccessDisabled") => {
            "the key needs s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and \
             s3:DeleteObject on what is in it"
                .into()
        }
        (_, "ExpiredToken" | "InvalidToken") => "get new keys for the session".into(),
        (_, "RequestTimeTooSkewed") => "set the clock of this machine".into(),
        (_, "NoSuchBucket") => "check the name of the bucket".into(),
        (300..=399, _)
        | (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            format!("set AWS_REGION{region}, or another endpoint")
        }
        (401 | 403, _) => {
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_REGION".into()
        }
        (_, "SlowDown") | (429 | 503, _) => {
            "the service is overloaded or limits this key: try again later".into()
        }
        _ => String::new(),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_ASKED_PAUSE))
}

/// Whether a document is an error of S3.
pub(super) fn is_error_document(document: &str) -> bool {
    let body = document.trim_start();
    let body = match body.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest),
        None => body,
    };
    body.trim_start().starts_with("<Error")
}

/// The text of the first element of that name, made harmless.
fn element(document: &str, name: &str) -> String {
    let inside = || {
        let (_, rest) = document.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0)
    };
    plain(inside().unwrap_or_default())
}

/// A service's words, short and without control characters.
fn plain(text: &str) -> String {
    let printable = |c: &char| !c.is_control();
    text.chars()
        .filter(printable)
        .take(MAX_TOLD_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let document = "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code>\
                        <Message>a\u{1b}[31m b</Message></Error>";
        assert!(is_error_document(document));
        assert!(is_error_document("<Error/>"));
        assert!(!is_error_document(
            "<ListBucketResult><Error/></ListBucketResult>"
        ));
        let failure = Failure::of_document(document);
        assert_eq!(failure.code, "SlowDown");
        assert_eq!(
            failure.text(),
            "S3 answers 200 with an error, SlowDown: a[31m b"
        );
        assert_eq!(element("<Code>", "Code"), "");
        assert_eq!(
            element(&format!("<C>{}</C>", "x".repeat(999)), "C").len(),
            200
        );
    }
}
