//! A webhook: an HTTP POST of the document.
//!
//! With a secret it is signed as [Standard Webhooks](https://www.standardwebhooks.com) 1.0 say, for
//! which there are libraries in most languages: `webhook-id`, `webhook-timestamp` (seconds) and
//! `webhook-signature: v1,BASE64`, the HMAC-SHA256 of `ID.TIMESTAMP.BODY`. The id is the same when a
//! message is sent again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};
use url::Url;
use zeroize::Zeroizing;

use crate::Message;
use crate::error::{Error, Result};
use crate::secret::{SIGNING_PREFIX, first_line};

/// Limit of connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Limit of the whole.
const LIMIT: Duration = Duration::from_secs(30);

/// A web server that is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to.
    pub url: Place,
    /// File whose first line signs: `whsec_` and base64, or a text that is taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

/// Where a URL is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Here.
    Here(String),
    /// In the first line of a file: many services put a secret into the URL.
    File(PathBuf),
}

impl Webhook {
    pub(crate) fn check(&self) -> Result<()> {
        self.url()?;
        self.key().map(|_| ())
    }

    pub(crate) fn is_local(&self) -> bool {
        self.secret_file.is_some() || matches!(self.url, Place::File(_))
    }

    pub(crate) fn describe(&self) -> String {
        let signed = match self.secret_file {
            Some(_) => ", signed",
            None => "",
        };
        match &self.url {
            Place::File(path) => format!("webhook, its URL in {}{signed}", path.display()),
            Place::Here(_) => match self.url() {
                Ok(url) => format!("webhook at {}{signed}", origin(&url)),
                Err(_) => "webhook".to_owned(),
            },
        }
    }

    pub(crate) fn deliver(&self, message: &Message) -> Result<()> {
        let url = self.url()?;
        let host = origin(&url);
        let now = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let mut request = agent()
            .post(url.as_str())
            .header("content-type", "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", &now);
        if let Some(key) = self.key()? {
            let signed = format!("{}.{now}.{}", message.id, message.document);
            let tag = hmac::sign(&key, signed.as_bytes());
            let signature = format!("v1,{}", STANDARD.encode(tag.as_ref()));
            request = request.header("webhook-signature", signature);
        }
        let answer = request.send(&message.document).map_err(|error| {
            // Its own text may hold the URL.
            let why = reason(&error);
            Error::Unreached {
                host: host.clone(),
                why,
            }
        })?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(Error::Refused {
                host,
                status: status.to_string(),
            }),
        }
    }

    fn url(&self) -> Result<Url> {
        let text = match &self.url {
            Place::Here(text) => Zeroizing::new(text.clone()),
            Place::File(path) => first_line(path)?,
        };
        let bad = |why| Error::BadUrl {
            what: "the webhook's URL",
            why,
        };
        let url = Url::parse(&text).map_err(|_| bad("is none"))?;
        let in_file = matches!(self.url, Place::File(_));
        match url.scheme() {
            "https" | "http" if url.host().is_none() => Err(bad("names no host")),
            "https" | "http" if url.password().is_some() && !in_file => {
                Err(bad("holds a password: write the URL to a file"))
            }
            "https" | "http" => Ok(url),
            _ => Err(bad("must begin with https:// or http://")),
        }
    }

    fn key(&self) -> Result<Option<hmac::Key>> {
        let Some(path) = &self.secret_file else {
            return Ok(None);
        };
        let text = first_line(path)?;
        let bytes = match text.strip_prefix(SIGNING_PREFIX) {
            None => text.as_bytes().to_vec(),
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| Error::BadFile {
                path: path.clone(),
                why: "begins with whsec_, but base64 does not follow",
            })?,
        };
        let bytes = Zeroizing::new(bytes);
        Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

/// Scheme, host and port: the rest may be secret.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn agent() -> Agent {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        // A redirect would take the message to somebody who was not named.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("vmtwin/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_global(Some(LIMIT))
        .build()
        .new_agent()
}

/// What went wrong, without the URL.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "its name is not known".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Tls(text) => format!("TLS: {text}"),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        ureq::Error::Protocol(_) => "its answer is no HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_secret() {
        let webhook = |url: &str| Webhook {
            url: Place::Here(url.to_owned()),
            secret_file: None,
        };
        let shown = webhook("https://hooks.example.net:8443/T0/secret?key=secret").describe();
        assert_eq!(shown, "webhook at https://hooks.example.net:8443");
        for wrong in ["", "hooks", "ftp://x/", "https://u:secret@x/", "http://"] {
            let error = webhook(wrong).check().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
