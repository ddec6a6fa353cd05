//! The command line of `vmtwin cluster`.

use std::path::PathBuf;
use std::time::Duration;

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
        /// Make a new authority, since the key of the old one is lost: all other nodes join again
        #[arg(long)]
        new_authority: bool,
    },
    /// Renew this node's certificate; its agent does that by itself, a year before it ends
    #[command(
        after_help = "Example:\n  vmtwin cluster renew --force\n\nThe node that has the authority's key \
        signs it: its agent must run. An agent that runs here takes the new one up by itself."
    )]
    Renew {
        /// Also if it is not time yet
        #[arg(long)]
        force: bool,
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
        after_help = "For a timer on every node: a backup on another node uses it. Where libvirt does \
        not answer, or does not run and did before, the last known one is left as it is (exit code \
        3).\n\nExample:\n  vmtwin cluster collect"
    )]
    Collect {
        /// This host has no libvirt any more: forget what it defined
        #[arg(long)]
        without_libvirt: bool,
    },
    /// Back up the configuration of every node and the database, as one zip file
    #[command(
        after_help = "Examples:\n  vmtwin cluster backup\n  vmtwin cluster backup --output \
        /backup/cluster --keep 14 --json\n  vmtwin cluster backup --output s3://backups/cluster --keep \
        30\n  vmtwin cluster backup --with-secrets --secrets-recipient age1…\n  vmtwin cluster backup \
        --with-secrets --secrets-passphrase-file /root/passphrase\n\nThis node's configuration is taken, and the agents of \
        all others (vmtwin serve) are asked for theirs. Of a node that does not answer the last \
        known one is taken. Such nodes are named in the file and in the report, with exit code \
        3.\n\nWithout --with-secrets no password is in it. With it each node seals its own for \
        --secrets-recipient, so that only who has the key (cluster secrets-key) opens them, and a node \
        gives them to those only that may restore it (cluster node allow-restore)."
    )]
    Backup(ClusterBackupArgs),
    /// List backups
    List {
        /// Folder of the backups, or s3://BUCKET/PREFIX [default: the home folder's]
        dir: Option<PathBuf>,
    },
    /// Show what a backup holds
    #[command(
        after_help = "Examples:\n  vmtwin cluster view lab.zip\n  vmtwin cluster view lab.zip \
        --node node1 --type hardware --detail\n  vmtwin cluster view lab.zip --mapping"
    )]
    View {
        /// Backup: a file, or s3://BUCKET/PREFIX/FILE.zip
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
    #[command(
        after_help = "Examples:\n  vmtwin cluster validate lab.zip\n  vmtwin cluster validate lab.zip \
        --node node2 --type virtual\n\nEach node is compared with what it gives of itself now: what a \
        restore would create and change, and what it cannot. Files of other nodes are not looked at; \
        restore --dry-run has their agents do that.\n\nExit code 3: something is not as it was, or a node \
        could not be asked."
    )]
    Validate(ValidateArgs),
    /// Make a key for secrets in backups: the file opens them, what is printed seals them
    #[command(
        name = "secrets-key",
        after_help = "Example:\n  vmtwin cluster secrets-key /media/usb/secrets.key\n  vmtwin cluster \
        backup --with-secrets --secrets-recipient age1…\n\nKeep the file away from the nodes: it is \
        needed for a restore only, and nobody who has it not opens the secrets. It is one of age \
        (age-encryption.org), which opens them too: age -d -i FILE secrets/NODE.age"
    )]
    SecretsKey {
        /// File of the key; one that is not there
        file: PathBuf,
    },
    /// Bring nodes and the database back: plan, show, apply
    #[command(
        after_help = "Examples:\n  vmtwin cluster restore lab.zip --dry-run\n  vmtwin cluster restore \
        lab.zip --skip-database\n  vmtwin cluster restore lab.zip --node node2 --type logical --yes\n  \
        vmtwin cluster restore lab.zip --node node3 --onto node4 --to-new-hardware\n  vmtwin \
        cluster restore lab.zip --node node1 --to-new-hardware --map br0=br7 --map \
        /srv/images=/data/images --map 0000:01:00.0=0000:41:00.0 --map cpus:2-3=6-7\n  vmtwin \
        cluster restore lab.zip --only-database --replace-database\n  vmtwin cluster restore lab.zip \
        --secrets-identity /media/usb/secrets.key\n\nThe whole backup is read and checked \
        first. Without --node all of its nodes are restored: this one here, others by their agents, \
        where they let this one (cluster node allow-restore). What a node's libvirt has and the \
        backup too is made what it was; what only the node has stays; volumes are never touched, and running guests only with --force (their \
        definition, for the next start). What is there before is backed up. A second run goes on \
        where the first one failed. The database comes last; one that was lost, first, since agents let \
        nobody in without it.\n\nExit code 3: done, and not all of the \
        backup could be restored; nodes that are down are named."
    )]
    Restore(ClusterRestoreArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterRestoreArgs {
    /// Backup: a file, or s3://BUCKET/PREFIX/FILE.zip
    pub(crate) file: PathBuf,
    /// Node to restore [default: all nodes of the backup]
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) node: Option<NodeName>,
    /// Node of the cluster to restore it on [default: itself]
    #[arg(
        long,
        value_name = "NODE",
        requires = "node",
        requires = "to_new_hardware"
    )]
    pub(crate) onto: Option<NodeName>,
    /// This part of the node only, and not the database
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "only_database")]
    pub(crate) kind: Option<DeviceType>,
    /// The node, and not the database
    #[arg(long, conflicts_with = "only_database")]
    pub(crate) skip_database: bool,
    /// The database and nothing else
    #[arg(long)]
    pub(crate) only_database: bool,
    /// Replace what the database holds, also under jobs of hosts that are gone or silent; a copy of it is
    /// kept
    #[arg(long, conflicts_with = "skip_database")]
    pub(crate) replace_database: bool,
    /// The same, and definitions of running guests, for their next start
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
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

/// Port of agents.
pub(crate) const DEFAULT_PORT: u16 = 7420;
/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Remove a node: its certificate counts no more, and its configuration is forgotten
    #[command(
        after_help = "Example:\n  vmtwin cluster node remove node3\n\nJobs that it has not finished \
        are ended: nobody undoes what they began on it. The node may still know the database's password: \
        change it if the node is not trusted any more."
    )]
    Remove {
        /// Name of the node
        name: NodeName,
    },
    /// Let other nodes restore this one; without a name: show which may
    #[command(
        name = "allow-restore",
        after_help = "Examples:\n  vmtwin cluster node allow-restore node1\n  vmtwin cluster node \
        allow-restore\n\nWho may restore this node can define guests on it, and so may do on it \
        what root may. It counts at once, and for this node alone; nodes that are not named may \
        only ask for its configuration."
    )]
    AllowRestore {
        /// Names of the nodes
        names: Vec<NodeName>,
    },
    /// Take that back
    #[command(
        name = "deny-restore",
        after_help = "Examples:\n  vmtwin cluster node deny-restore node1\n  vmtwin cluster node \
        deny-restore --all"
    )]
    DenyRestore {
        /// Names of the nodes
        #[arg(required_unless_present = "all")]
        names: Vec<NodeName>,
        /// All of them
        #[arg(long, conflicts_with = "names")]
        all: bool,
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

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterBackupArgs {
    /// Folder for the file, or s3://BUCKET/PREFIX [default: the home folder's]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Fail, and write nothing, unless every node's configuration is of now, and its secrets if asked for
    #[arg(long)]
    pub(crate) require_all: bool,
    /// How long a node may take, all tries together, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node_timeout: u64,
    /// Keep this many backups of the cluster in the folder, the newest
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
    /// A word in the file's name; --keep then counts those of the same word only, and without it
    /// those without
    #[arg(long, value_name = "WORD", value_parser = label)]
    pub(crate) label: Option<String>,
    /// With values of libvirt's secrets, passwords of guests, keys and passwords of the nodes, sealed
    #[arg(long)]
    pub(crate) with_secrets: bool,
    /// Seal them with the first line of this file too [beside: --secrets-recipient]
    #[arg(long, value_name = "FILE", requires = "with_secrets")]
    pub(crate) secrets_passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ValidateArgs {
    /// Backup: a file, or s3://BUCKET/PREFIX/FILE.zip
    pub(crate) file: PathBuf,
    /// This node only
    #[arg(long)]
    pub(crate) node: Option<NodeName>,
    /// This type only
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<DeviceType>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

/// How secrets in a backup are opened.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OpenArgs {
    /// Open the backup's secrets with the key in this file, as secrets-key or age-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub(crate) secrets_identity: Option<PathBuf>,
    /// Open them with the passphrase in its first line
    #[arg(long, value_name = "FILE")]
    pub(crate) secrets_passphrase_file: Option<PathBuf>,
}

/// Letters, digits, `-`, `_` and `.`.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err("write up to 64 letters, digits, - _ and .".to_owned()),
    }
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
