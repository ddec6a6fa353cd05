//! A command of this host: the document on stdin, the short of it in the environment.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Message;
use crate::child;
use crate::error::{Error, Result};

/// What it keeps of our environment: the rest may hold passwords.
const KEPT_VARIABLES: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];
/// Longest command, bytes.
const MAX_BYTES: usize = 4096;
/// Longest that is shown.
const SHOWN_CHARS: usize = 60;

/// A command that is run by `sh -c`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Its text. What the message says never becomes part of it.
    pub command: String,
    /// It is killed, with its children, after this time. Seconds, 1 to 3600.
    pub timeout_s: u64,
}

impl Command {
    pub(crate) fn check(&self) -> Result<()> {
        let fits = self.command.len() <= MAX_BYTES && !self.command.contains('\0');
        match fits && !self.command.trim().is_empty() {
            true => Ok(()),
            false => Err(Error::BadUrl {
                what: "the command",
                why: "is empty, holds a NUL, or is longer than 4 KiB",
            }),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let shown: String = self.command.chars().take(SHOWN_CHARS).collect();
        let more = match shown.len() < self.command.len() {
            true => "…",
            false => "",
        };
        format!("command {shown}{more}")
    }

    pub(crate) fn deliver(&self, message: &Message) -> Result<()> {
        self.check()?;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &self.command]).env_clear();
        for name in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        for (name, value) in &message.variables {
            // A NUL would make the whole command fail.
            command.env(name, value.replace('\0', " "));
        }
        let limit = Duration::from_secs(self.timeout_s.clamp(1, 3600));
        child::run("the command", &mut command, &message.document, limit)
    }
}
