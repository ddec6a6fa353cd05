//! The command line of `vmtwin cluster`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use vmtwin_cluster::NodeName;
use vmtwin_cluster::plan::{Mapping, Section};

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
        --node node1 --type hardware --detail\n  vmtwin cluster view lab.zip --mapping"
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
        /// From each guest down to the hardware: disks, volumes, pools; networks, bridges, interfaces
        #[arg(long, conflicts_with_all = ["kind", "detail"])]
        mapping: bool,
    },
    /// Read all of a backup, and compare it with the cluster; nothing is changed
    Validate {
        /// Backup
        file: PathBuf,
    },
    /// Bring this node and the database back: plan, show, apply
    #[command(
        after_help = "Examples:\n  vmtwin cluster restore lab.zip --dry-run\n  vmtwin cluster restore \
        lab.zip --skip-database\n  vmtwin cluster restore lab.zip --type logical --yes\n  vmtwin \
        cluster restore lab.zip --node node1 --to-new-hardware --map br0=br7 --map \
        /srv/images=/data/images --map 0000:01:00.0=0000:41:00.0 --map cpus:2-3=6-7\n  vmtwin \
        cluster restore lab.zip --only-database --force\n\nThe whole backup is read and checked \
        first. What this node's libvirt has and the backup too is made what it was; what only the \
        node has stays; volumes are never touched, and running guests only with --force (their \
        definition, for the next start). What is there before is backed up. A second run goes on \
        where the first one failed.\n\nExit code 3: done, and not all of the backup could be \
        restored."
    )]
    Restore(ClusterRestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterRestoreArgs {
    /// Backup
    pub(crate) file: PathBuf,
    /// Node to restore: this one [default: this one]
    #[arg(long)]
    pub(crate) node: Option<NodeName>,
    /// This part of the node only, and not the database
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "only_database")]
    pub(crate) kind: Option<DeviceType>,
    /// The node, and not the database
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) skip_database: bool,
    /// The database and nothing else
    #[arg(long)]
    pub(crate) only_database: bool,
    /// Replace what the database holds, and definitions of running guests
    #[arg(long)]
    pub(crate) force: bool,
    /// What has another name here: interfaces, paths, PCI addresses, mediated devices, cpus:SET
    #[arg(long, value_name = "OLD=NEW", conflicts_with = "only_database")]
    pub(crate) map: Vec<Mapping>,
    /// This host takes the place of the node's old one
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) to_new_hardware: bool,
    /// Make volumes that are not there, empty
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) create_volumes: bool,
    /// Start guests that ran; give it only if they run nowhere else
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) start_guests: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with_all = ["only_database", "yes"])]
    pub(crate) dry_run: bool,
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

impl From<DeviceType> for Section {
    fn from(kind: DeviceType) -> Section {
        match kind {
            DeviceType::Hardware => Section::Hardware,
            DeviceType::Logical => Section::Logical,
            DeviceType::Virtual => Section::Virtual,
        }
    }
}
