//! Delivery of a message: by webhook, by mail, or by a command.
//!
//! | file | holds |
//! |---|---|
//! | `webhook.rs` | HTTP POST of the document, signed as Standard Webhooks say |
//! | `mail.rs` | a mail, by SMTP or by the host's sendmail program |
//! | `command.rs` | a command with the document on stdin, ended with all its children |
//! | `child.rs` | a program with something to read and a time limit |
//! | `secret.rs` | secrets, which are files' first lines and read for each delivery |
//!
//! One attempt, with limits on its time and on what is read of an answer. Whether and when there is
//! another, and what a message is about, others decide: this knows nothing of catalogs or guests.

mod child;
mod command;
mod error;
mod mail;
mod secret;
mod webhook;

use serde::{Deserialize, Serialize};

pub use command::Command;
pub use error::{Error, Result};
pub use mail::{By, Mail, check_address};
pub use secret::make_signing_secret;
pub use webhook::{Place, Webhook};

/// What is to be delivered.
#[derive(Debug, Clone)]
pub struct Message {
    /// The same in each attempt, so that a receiver can tell a repetition.
    pub id: String,
    /// Name of this host, for the greeting of SMTP.
    pub host: String,
    /// One line for people.
    pub subject: String,
    /// Some lines for people.
    pub text: String,
    /// The same for programs: JSON.
    pub document: String,
    /// The same for scripts: environment variables.
    pub variables: Vec<(String, String)>,
}

/// Whom to deliver to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A web server.
    Webhook(Webhook),
    /// Readers of mail.
    Mail(Mail),
    /// A command of this host.
    Command(Command),
}

impl Target {
    /// Whether it could be delivered to: files are there, addresses are such.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Webhook(webhook) => webhook.check(),
            Self::Mail(mail) => mail.check(),
            Self::Command(command) => command.check(),
        }
    }

    /// Makes one attempt, of a minute at most (a command: of its own limit).
    pub fn deliver(&self, message: &Message) -> Result<()> {
        match self {
            Self::Webhook(webhook) => webhook.deliver(message),
            Self::Mail(mail) => mail.deliver(message),
            Self::Command(command) => command.deliver(message),
        }
    }

    /// Whether it needs a file or a program of the host where it was made.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Webhook(webhook) => webhook.is_local(),
            Self::Mail(mail) => mail.is_local(),
            Self::Command(_) => true,
        }
    }

    /// One line for people, without secrets: of a URL only the host.
    pub fn describe(&self) -> String {
        match self {
            Self::Webhook(webhook) => webhook.describe(),
            Self::Mail(mail) => mail.describe(),
            Self::Command(command) => command.describe(),
        }
    }
}
