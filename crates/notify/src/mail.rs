//! A mail, by SMTP (`lettre`) or by the host's sendmail program. Its text is made by `mail-builder`;
//! the builder of `lettre` needs a crate whose licence is not among ours.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, SmtpTransport, Transport};
use mail_builder::MessageBuilder;
use mail_builder::headers::raw::Raw;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::Message;
use crate::child;
use crate::error::{Error, Result};
use crate::secret::first_line;

/// Longest wait for each answer of an SMTP server.
const SMTP_LIMIT: Duration = Duration::from_secs(15);
/// Longest run of sendmail, which queues.
const SENDMAIL_LIMIT: Duration = Duration::from_secs(60);
/// Most readers of one mail.
const MAX_READERS: usize = 50;

/// Readers of mail, and how they get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// Addresses.
    pub to: Vec<String>,
    /// The sender's address.
    pub from: String,
    /// How.
    pub by: By,
}

/// How mail goes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum By {
    /// To an SMTP server.
    Smtp {
        /// `smtps://[USER@]HOST[:PORT]` (TLS at once), `smtp://…?tls=required` (STARTTLS), or
        /// `smtp://…`, not encrypted.
        url: String,
        /// File whose first line is the user's password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_file: Option<PathBuf>,
    },
    /// By a program that takes a mail on stdin, as sendmail does: `PROGRAM -i -f FROM -- TO…`.
    Sendmail {
        /// Its path.
        program: PathBuf,
    },
}

impl Mail {
    pub(crate) fn check(&self) -> Result<()> {
        self.envelope()?;
        match &self.by {
            By::Smtp { .. } => self.transport("localhost").map(|_| ()),
            By::Sendmail { program } => {
                std::fs::metadata(program)
                    .map(|_| ())
                    .map_err(|source| Error::File {
                        path: program.clone(),
                        source,
                    })
            }
        }
    }

    pub(crate) fn is_local(&self) -> bool {
        match &self.by {
            By::Smtp { password_file, .. } => password_file.is_some(),
            By::Sendmail { .. } => true,
        }
    }

    pub(crate) fn describe(&self) -> String {
        let by = match &self.by {
            By::Smtp { url, .. } => server_of(url).unwrap_or_else(|| "an SMTP server".to_owned()),
            By::Sendmail { program } => program.display().to_string(),
        };
        format!("mail to {} by {by}", self.to.join(", "))
    }

    pub(crate) fn deliver(&self, message: &Message) -> Result<()> {
        let envelope = self.envelope()?;
        let mail = self.mail(message)?;
        match &self.by {
            By::Smtp { url, .. } => {
                let host = server_of(url).unwrap_or_default();
                let transport = self.transport(&message.host)?;
                let sent = transport.send_raw(&envelope, mail.as_bytes());
                sent.map(|_| ()).map_err(|error| smtp_failed(host, &error))
            }
            By::Sendmail { program } => {
                let mut command = std::process::Command::new(program);
                command.args(["-i", "-f", &self.from, "--"]).args(&self.to);
                let name = program.display().to_string();
                let text = mail.replace("\r\n", "\n");
                child::run(&name, &mut command, &text, SENDMAIL_LIMIT)
            }
        }
    }

    fn envelope(&self) -> Result<Envelope> {
        let to: Vec<Address> = (self.to.iter().take(MAX_READERS))
            .map(|text| check_address(text))
            .collect::<Result<_>>()?;
        let from = check_address(&self.from)?;
        Envelope::new(Some(from), to).map_err(Error::Mail)
    }

    fn mail(&self, message: &Message) -> Result<String> {
        // A line end in a header would begin another one.
        let plain = |c: &char| !c.is_control();
        let subject: String = message.subject.chars().filter(plain).collect();
        let to: Vec<&str> = self.to.iter().map(String::as_str).collect();
        MessageBuilder::new()
            .from(self.from.as_str())
            .to(to)
            .subject(subject)
            .message_id(format!("{}@vmtwin.invalid", message.id))
            // No person wrote it: nobody's absence is to be answered (RFC 3834).
            .header("Auto-Submitted", Raw::new("auto-generated"))
            .text_body(message.text.as_str())
            .write_to_string()
            .map_err(Error::Text)
    }

    fn transport(&self, host: &str) -> Result<SmtpTransport> {
        let By::Smtp { url, password_file } = &self.by else {
            return Err(bad("is missing"));
        };
        let mut url = Url::parse(url).map_err(|_| bad("is none"))?;
        let encrypted = match (url.scheme(), url.query()) {
            ("smtps", None) | ("smtp", Some("tls=required")) => true,
            ("smtp", None) => false,
            _ => {
                return Err(bad(
                    "must be smtps://HOST, smtp://HOST?tls=required or smtp://HOST",
                ));
            }
        };
        if url.host().is_none() {
            return Err(bad("names no host"));
        }
        if url.password().is_some() {
            return Err(bad(
                "holds a password: write it to a file (--smtp-password-file)",
            ));
        }
        let user = percent_decode_str(url.username())
            .decode_utf8_lossy()
            .into_owned();
        let credentials = match (user.is_empty(), password_file) {
            (true, None) => None,
            (false, Some(_)) if !encrypted => {
                return Err(bad(
                    "would show the password to the network: use smtps://, or ?tls=required",
                ));
            }
            (false, Some(file)) => {
                let password = first_line(file)?;
                Some(Credentials::new(user, password.as_str().to_owned()))
            }
            (false, None) => return Err(bad("names a user: give --smtp-password-file")),
            (true, Some(_)) => return Err(bad("names no user: smtps://USER@HOST")),
        };
        // Who it is does not go through a URL again.
        url.set_username("").map_err(|()| bad("is none"))?;
        let builder = SmtpTransport::from_url(url.as_str()).map_err(|_| bad("is none"))?;
        let builder = builder
            .timeout(Some(SMTP_LIMIT))
            .hello_name(ClientId::Domain(plain_host(host)));
        Ok(match credentials {
            Some(credentials) => builder.credentials(credentials).build(),
            None => builder.build(),
        })
    }
}

/// The address, if it is one: nothing beside it, which sendmail would read in its own way.
pub fn check_address(text: &str) -> Result<Address> {
    let address = text.parse().ok().filter(|_| !text.starts_with('-'));
    address.ok_or_else(|| Error::BadAddress {
        address: text.to_owned(),
    })
}

fn bad(why: &'static str) -> Error {
    Error::BadUrl {
        what: "the URL of the SMTP server",
        why,
    }
}

fn server_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    Some(format!("{}{port}", url.host_str()?))
}

/// A host's name as a greeting may hold it.
fn plain_host(host: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let name: String = host.chars().filter(plain).take(200).collect();
    match name.is_empty() {
        true => "localhost".to_owned(),
        false => name,
    }
}

/// The server's words may be long, and are others' words.
fn smtp_failed(host: String, error: &lettre::transport::smtp::Error) -> Error {
    let mut why = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let kind = inner.downcast_ref().map(std::io::Error::kind);
        let text = match kind {
            Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => "no answer in time".to_owned(),
            _ => inner.to_string(),
        };
        if !why.is_empty() {
            why.push_str(": ");
        }
        why.push_str(&text);
        source = inner.source();
    }
    if why.is_empty() {
        why = error.to_string();
    }
    let why: String = why.chars().filter(|c| !c.is_control()).take(300).collect();
    match error.status() {
        Some(code) => Error::Refused {
            host,
            status: format!("{code} {why}"),
        },
        None => Error::Unreached { host, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(url: &str, password_file: Option<&str>) -> Mail {
        Mail {
            to: vec!["admin@example.net".to_owned()],
            from: "vmtwin@host".to_owned(),
            by: By::Smtp {
                url: url.to_owned(),
                password_file: password_file.map(PathBuf::from),
            },
        }
    }

    #[test]
    fn a_password_never_goes_over_the_network_in_the_clear() {
        let refused = |url, file| mail(url, file).check().unwrap_err().to_string();
        assert!(refused("smtp://me@mx", Some("/x")).contains("network"));
        assert!(refused("smtps://me:secret@mx", None).contains("file"));
        assert!(!refused("smtps://me:secret@mx", None).contains("secret"));
        assert!(refused("smtps://me@mx", None).contains("--smtp-password-file"));
        assert!(refused("http://mx", None).contains("smtps://"));
        assert!(mail("smtp://mx:2525", None).check().is_ok());
        assert!(mail("smtp://mx?tls=required", None).check().is_ok());
        assert_eq!(
            mail("smtps://me@mx:465", None).describe(),
            "mail to admin@example.net by mx:465"
        );
    }

    #[test]
    fn addresses_are_addresses() {
        for wrong in [
            "",
            "admin",
            "-oQ@x",
            "a@b\r\nBcc: c@d",
            "A <a@b>",
            "a@b,c@d",
        ] {
            assert!(check_address(wrong).is_err(), "{wrong}");
        }
        assert!(check_address("admin@example.net").is_ok());
    }
}
