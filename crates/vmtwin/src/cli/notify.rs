//! Arguments of `notify`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::schedule::parse_time;
use crate::notify::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum NotifyCommand {
    /// Have somebody told of what goes wrong
    #[command(after_help = ADD_HELP)]
    Add(Box<NotifyAddArgs>),
    /// List who is told, and how the last message went
    List,
    /// Show one and its latest messages
    Show {
        /// Notification
        name: String,
    },
    /// Send a message now, to see whether it arrives
    Test {
        /// Notification
        name: String,
    },
    /// Tell this one no more; messages to it that wait are dropped
    Remove {
        /// Notification
        name: String,
    },
}

const ADD_HELP: &str = "Examples:
  vmtwin notify add ops --webhook https://hooks.example.net/vmtwin --sign
  vmtwin notify add chat --webhook-file /etc/vmtwin/chat.url --on failure,recovery
  vmtwin notify add mail --mail admin@example.net,backup@example.net --smtp smtps://me@mx.example.net \\
      --smtp-password-file /etc/vmtwin/smtp.password
  vmtwin notify add local --mail root@localhost
  vmtwin notify add page --command '/usr/local/bin/page \"$VMTWIN_SUMMARY\"' --vm db01
  vmtwin notify test ops

A failure is told when it begins, once a day while it lasts, and its end is told once; what a schedule
missed is told once for each due time. All that one run brought is one message. `vmtwin serve` delivers,
and tries for a day. A webhook gets a JSON document by POST; --sign makes a secret that signs it
(standardwebhooks.com), shown once. A command gets the document on stdin and VMTWIN_EVENT, _SUMMARY,
_SCHEDULE, _HOST, _FAILED, _MISSED, _RECOVERED and _MESSAGE_ID in its environment. URLs and passwords that
are secret belong in files, which are read again for each message.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("how").required(true)
    .args(["webhook", "webhook_file", "mail", "command"])))]
pub(crate) struct NotifyAddArgs {
    /// Its name
    pub(crate) name: String,
    /// POST to this URL
    #[arg(long, value_name = "URL")]
    pub(crate) webhook: Option<String>,
    /// POST to the URL in the first line of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) webhook_file: Option<PathBuf>,
    /// Make a secret, show it once, and sign what is posted
    #[arg(long, conflicts_with_all = ["mail", "command", "secret_file"])]
    pub(crate) sign: bool,
    /// Sign with the secret in the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mail", "command"])]
    pub(crate) secret_file: Option<PathBuf>,
    /// Send mail to these addresses
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) mail: Vec<String>,
    /// By this SMTP server: smtps://USER@HOST, smtp://HOST?tls=required, smtp://HOST (not encrypted)
    #[arg(
        long,
        value_name = "URL",
        requires = "mail",
        conflicts_with = "sendmail"
    )]
    pub(crate) smtp: Option<String>,
    /// File whose first line is the SMTP user's password
    #[arg(long, value_name = "FILE", requires = "smtp")]
    pub(crate) smtp_password_file: Option<PathBuf>,
    /// By this program [default without --smtp: /usr/sbin/sendmail]
    #[arg(long, value_name = "PROGRAM", requires = "mail")]
    pub(crate) sendmail: Option<PathBuf>,
    /// Sender of the mail [default: vmtwin@HOST]
    #[arg(long, value_name = "ADDRESS", requires = "mail")]
    pub(crate) from: Option<String>,
    /// Run this command, by sh -c
    #[arg(long, value_name = "COMMAND")]
    pub(crate) command: Option<String>,
    /// The command is killed after this time: up to 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) timeout: u64,
    /// Of what it is told
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "KINDS",
        default_value = "failure,recovery,missed"
    )]
    pub(crate) on: Vec<Kind>,
    /// Of this guest only (may be given more than once)
    #[arg(long = "vm", value_name = "VM")]
    pub(crate) vms: Vec<String>,
}
