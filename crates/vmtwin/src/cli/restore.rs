//! Arguments of `restore` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Image format of restored disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// qcow2
    Qcow2,
    /// Raw, sparse
    Raw,
}

/// Network of a restored guest that is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Cables that lead nowhere: harmless beside the original
    None,
    /// QEMU's user-mode network: out through this host
    User,
    /// As it was: only when the original is gone
    Original,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin restore latest --to /var/restored             disks only, in their format
  vmtwin restore 1a2b3c4d --to /var/restored --run     the running machine, from the point
  vmtwin restore 1a2b3c4d --to /var/restored --instant the same at once: blocks come in behind it
  vmtwin restore 1a2b3c4d --to /mnt/x --format raw --disk disk1
  vmtwin restore 1a2b3c4d --to /var/lib/libvirt/images/web02 --libvirt qemu:///system --as web02
  vmtwin restore latest --to /var/lib/libvirt/images/web --libvirt qemu:///system --run --network original

With --libvirt the guest is defined again, on the restored disks, from its definition at the time of
the backup. With --as it is a copy with a uuid and MAC addresses of its own; without, it is the same
domain, which must be gone. What differs is shown before anything is written. With --run it goes on from
the point, as a domain of that libvirt.

With --instant the guest runs on overlays, and reads from the repository what is not here yet. Ctrl-C
leaves that to go on by itself. Until all is here the same command goes on with it, after a reboot
too, with all that the guest wrote.

Needs the repository and its password, nothing else. Without --force nothing is overwritten.")]
pub(crate) struct RestoreArgs {
    /// Id of the snapshot, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Folder to restore to [default: ./NAME-ID]
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// New name of the guest
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Define it in this libvirt again
    #[arg(long, value_name = "URI", conflicts_with_all = ["format", "disks", "accel"])]
    pub(crate) libvirt: Option<String>,
    /// With --as and --libvirt: the copy keeps the uuid, where no domain of that libvirt has it
    #[arg(long, requires = "name", requires = "libvirt")]
    pub(crate) keep_uuid: bool,
    /// With --as and --libvirt: the copy keeps the MAC addresses
    #[arg(long, requires = "name", requires = "libvirt")]
    pub(crate) keep_mac: bool,
    /// Start the guest from the point, on the restored disks
    #[arg(long)]
    pub(crate) run: bool,
    /// Start the guest at once, while its disks come in behind it
    #[arg(long, requires = "to", conflicts_with_all = ["format", "disks", "memory", "force"])]
    pub(crate) instant: bool,
    /// With --instant: return once the guest runs
    #[arg(long, requires = "instant")]
    pub(crate) detach: bool,
    /// With --instant: most MiB per second to bring in [default: no limit]
    #[arg(
        long,
        value_name = "MIB",
        requires = "instant",
        default_value = "0",
        hide_default_value = true
    )]
    pub(crate) limit_mib_per_s: u64,
    /// Format of the disks [default: as they were]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Only this disk (may be given more than once)
    #[arg(long = "disk", value_name = "ID")]
    pub(crate) disks: Vec<String>,
    /// Also write the memory as a stream for QEMU's -incoming file:
    #[arg(long)]
    pub(crate) memory: bool,
    /// Network of the started guest
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) network: Network,
    /// Accelerator of the started guest, such as kvm or tcg [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<String>,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin export latest                                 until Ctrl-C; prints the NBD URIs
  vmtwin export 1a2b3c4d --disk disk0 --socket /run/disk0.sock
  vmtwin export latest --listen 127.0.0.1:10809
  nbdcopy 'nbd+unix:///disk0?socket=/run/disk0.sock' disk0.raw

Nothing is restored: blocks are read from the repository as they are asked for, and holes are told
to who asks for them. Every disk is an export of its id's name. Writes are refused. The repository
is locked, shared with backups and restores, until the end. There is no TLS.")]
pub(crate) struct ExportArgs {
    /// Id of the snapshot, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Only this disk (may be given more than once)
    #[arg(long = "disk", value_name = "ID")]
    pub(crate) disks: Vec<String>,
    /// Unix socket to listen on [default: one in the home folder]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Listen on TCP instead; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "socket")]
    pub(crate) listen: Option<String>,
    /// Listen on another address than this machine's own: whoever reaches it reads the disks
    #[arg(long, requires = "listen")]
    pub(crate) allow_remote: bool,
}
