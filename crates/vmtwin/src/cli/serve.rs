//! Arguments of `serve` and `token`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin serve
  vmtwin serve --listen 0.0.0.0:7400 --tls-cert host.pem --tls-key host.key
  vmtwin serve --agent-listen 10.0.0.1:7420 --advertise node1.example.net:7420

Follows the schedules of this host (vmtwin schedule), answers the API and shows the pages at --listen,
and on a node of a cluster answers the other nodes at --agent-listen. A token lets people in: vmtwin
token add NAME. Away from this machine the API is spoken over TLS only; with no certificate given one
is made, which browsers ask about. It ends on SIGTERM or Ctrl-C: jobs are ended and undone, guests run
on. Nodes prove who they are by certificates of the cluster's own authority (TLS 1.3 on both sides).")]
pub(crate) struct ServeArgs {
    /// Where the API and the pages are
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7400")]
    pub(crate) listen: SocketAddr,
    /// Certificate of the API, and those between it and an authority, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Folder that restores asked for over the API go to [default: restored, in the home folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) restore_root: Option<PathBuf>,
    /// Jobs that run at one time; more wait
    #[arg(long, value_name = "COUNT", default_value_t = 4,
        value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,
    /// Where the agent answers other nodes
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7420")]
    pub(crate) agent_listen: SocketAddr,
    /// Where others reach the agent [default: where it listens, or as it joined]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
}

/// What a token is good for; each holds those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// Look
    View,
    /// Back up, and check what was backed up
    Backup,
    /// Restore, below the folder of restores
    Restore,
    /// Everything
    Admin,
}

impl From<Scope> for vmtwin_catalog::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::View => Self::View,
            Scope::Backup => Self::Backup,
            Scope::Restore => Self::Restore,
            Scope::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for the pages and the API of `vmtwin serve`; it is shown once
    #[command(
        after_help = "Examples:\n  vmtwin token add me --scope admin\n  vmtwin token add monitoring \
        --scope view\n  vmtwin token add ci --scope backup --expires 90d"
    )]
    Add {
        /// Its name: letters, digits and -_.@
        name: String,
        /// What it is good for
        #[arg(long, value_enum)]
        scope: Scope,
        /// When it ends: 12h, 90d [default: never]
        #[arg(long, value_name = "PERIOD", value_parser = period)]
        expires: Option<Duration>,
    },
    /// List tokens: what they are good for, when they were used last
    List,
    /// Remove a token; who is logged in by it is out
    Remove {
        /// Its name
        name: String,
    },
}

/// `12h`, `90d`.
fn period(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as 12h or 90d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match (1..=36_500).contains(&count) {
        true => Ok(Duration::from_secs(count * seconds)),
        false => Err(wrong()),
    }
}
