//! The command line of `vmtwin cluster`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use vmtwin_cluster::NodeName;

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a cluster; this host is its first node
    #[command(after_help = "Examples:\n  vmtwin cluster create lab --database \
        postgres://vmtwin@db.example.net/vmtwin\n  vmtwin cluster create home\n\nWith --database \
        the catalog of this host moves there without loss. Without it the cluster is this host \
        alone.")]
    Create {
        /// Name of the cluster
        name: String,
        /// Name of this node [default: the host's]
        #[arg(long)]
        node: Option<NodeName>,
    },
    /// Make a token that lets one host join, once
    #[command(
        after_help = "Examples:\n  vmtwin cluster token\n  vmtwin cluster token --ttl 1h \
        --address node1.example.net:7420\n\nOn the node that made the cluster, while its agent \
        (vmtwin serve) runs. The token is shown once: give it to one host, and to nobody else."
    )]
    Token(TokenArgs),
    /// Make this host a node of a cluster, by a token or by its database alone
    #[command(
        after_help = "Examples:\n  vmtwin cluster join vmtwin-join-1.eyJhZGRyZXNz…\n  \
        vmtwin cluster join - <token\n  vmtwin cluster join --database \
        postgres://vmtwin@db.example.net/vmtwin\n\nWith a token the host gets a certificate and \
        the database's URL; then run on it: vmtwin serve. With --database alone it has no agent: \
        others take its last known configuration, which `vmtwin cluster collect` keeps."
    )]
    Join(ClusterJoinArgs),
    /// Look after nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// List the nodes: which are up, their versions and guests, when they were seen last
    Nodes,
    /// Take the configuration of this node and keep it in the database as its last known one
    #[command(
        after_help = "For a timer on every node: a backup on another node uses it.\n\nExample:\n  \
        vmtwin cluster collect"
    )]
    Collect,
    /// Back up the configuration of every node and the database, as one zip file
    #[command(
        after_help = "Examples:\n  vmtwin cluster backup\n  vmtwin cluster backup --output \
        /backup/cluster --keep 14 --json\n\nThis node's configuration is taken, and the agents of \
        all others (vmtwin serve) are asked for theirs. Of a node that does not answer the last \
        known one is taken. Such nodes are named in the file and in the report, with exit code \
        3."
    )]
    Backup(ClusterBackupArgs),
    /// List backups
    List {
        /// Folder of the backups [default: the home folder's]
        dir: Option<PathBuf>,
    },
    /// Show what a backup holds
    #[command(
        after_help = "Examples:\n  vmtwin cluster view lab.zip\n  vmtwin cluster view lab.zip \
        --node node1 --type hardware --detail"
    )]
    View {
        /// Backup
        file: PathBuf,
        /// Of this node only
        #[arg(long)]
        node: Option<NodeName>,
        /// Of this type only
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<DeviceType>,
        /// Everything that is known of each thing
        #[arg(long)]
        detail: bool,
    },
    /// Read all of a backup, and compare it with the cluster; nothing is changed
    Validate {
        /// Backup
        file: PathBuf,
    },
    /// Bring the database back
    #[command(
        after_help = "Example:\n  vmtwin cluster restore lab.zip --only-database --force\n\nThe \
        whole backup is read and checked first. What the database holds now is kept in a copy in \
        the home folder, and the change is made in one transaction. Nodes are not restored yet: \
        `vmtwin cluster view FILE --detail` shows their configuration."
    )]
    Restore {
        /// Backup
        file: PathBuf,
        /// The database and nothing else
        #[arg(long, required = true)]
        only_database: bool,
        /// Replace what the database holds
        #[arg(long)]
        force: bool,
    },
}

/// Port of agents.
pub(crate) const DEFAULT_PORT: u16 = 7420;
/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Remove a node: its certificate counts no more, and its configuration is forgotten
    #[command(
        after_help = "Example:\n  vmtwin cluster node remove node3\n\nThe node may still \
        know the database's password: change it if the node is not trusted any more."
    )]
    Remove {
        /// Name of the node
        name: NodeName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// How long it may be used: 90s, 15m, 2h
    #[arg(long, default_value = "15m", value_parser = ttl)]
    pub(crate) ttl: Duration,
    /// Where the new host reaches this node's agent [default: what the agent says]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterJoinArgs {
    /// What `cluster token` printed; - reads it from stdin
    #[arg(env = "VMTWIN_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Name of this node [default: the host's]
    #[arg(long)]
    pub(crate) node: Option<NodeName>,
    /// Where others reach this node's agent [default: the address it reaches the issuer from]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Leave the guests in the table of this host behind; its file stays where it is
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vmtwin serve\n  vmtwin serve --listen 10.0.0.1:7420\n  \
    vmtwin serve --advertise node1.example.net:7420\n\nIt ends on SIGTERM or Ctrl-C, and lets the \
    requests end that were begun. Nodes prove who they are by certificates of the cluster's own \
    authority (TLS 1.3 on both sides)."
)]
pub(crate) struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7420")]
    pub(crate) listen: SocketAddr,
    /// Where others reach it [default: where it listens, or as it joined]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
}

/// `90s`, `15m`, `2h`.
fn ttl(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as 90s, 15m or 2h, up to 24h".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let ttl = Duration::from_secs(count.checked_mul(seconds).ok_or_else(wrong)?);
    match !ttl.is_zero() && ttl <= MAX_TTL {
        true => Ok(ttl),
        false => Err(wrong()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClusterBackupArgs {
    /// Folder for the file [default: the home folder's]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Fail, and write nothing, unless every node's configuration is of now
    #[arg(long)]
    pub(crate) require_all: bool,
    /// How long a node may take, all tries together, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node_timeout: u64,
    /// Keep this many backups of the cluster in the folder, the newest
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
}

/// A part of a node's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceType {
    /// What the node is made of
    Hardware,
    /// What is defined for guests to use
    Logical,
    /// The guests
    Virtual,
}
