//! The command line of `vmtwin cluster`.

use std::path::PathBuf;

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
    /// Make this host a node of the cluster whose database is --database
    #[command(after_help = "Example:\n  vmtwin cluster join --database \
        postgres://vmtwin@db.example.net/vmtwin")]
    Join {
        /// Name of this node [default: the host's]
        #[arg(long)]
        node: Option<NodeName>,
        /// Leave the guests in the table of this host behind; its file stays where it is
        #[arg(long)]
        force: bool,
    },
    /// List the nodes
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
        /backup/cluster --keep 14 --json\n\nThis node is asked now; of the others the last known \
        configuration is taken, which `vmtwin cluster collect` on them keeps fresh. They are named \
        in the file and in the report, with exit code 3."
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

#[derive(Debug, Args)]
pub(crate) struct ClusterBackupArgs {
    /// Folder for the file [default: the home folder's]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Fail, and write nothing, unless every node's configuration is of now
    #[arg(long)]
    pub(crate) require_all: bool,
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
