//! Arguments of `snapshot ls` and `snapshot get`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// How files in disks are read.
#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    /// Which file system of the disk: its name in `snapshot ls ID`, or its label [default: the only
    /// one, else the one with an operating system]
    #[arg(long, value_name = "NAME")]
    pub(crate) filesystem: Option<String>,
    /// Linux kernel of the machine that reads [default: the newest in /boot with its modules]
    #[arg(long, env = "VMTWIN_APPLIANCE_KERNEL", value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Folder of that kernel's modules [default: /lib/modules/VERSION]
    #[arg(long, env = "VMTWIN_APPLIANCE_MODULES", value_name = "DIR")]
    pub(crate) modules: Option<PathBuf>,
    /// Accelerator of the machine that reads, kvm or tcg [default: kvm where it works]
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin snapshot ls latest                          file systems of all disks
  vmtwin snapshot ls latest:disk0/etc                a folder
  vmtwin snapshot ls 1a2b3c4d:disk1 --filesystem p2

Nothing of the disk is mounted on this host: a small virtual machine of its own, without a network,
reads it. It needs a Linux kernel with modules on this host, lvm2 for guests with LVM, and ntfs-3g for
those with NTFS if the kernel has no driver. Nothing is written to the snapshot.")]
pub(crate) struct LsArgs {
    /// Snapshot, its id's first digits, or `latest`; then a disk, and a path in it
    #[arg(value_name = "ID[:DISK[/PATH]]")]
    pub(crate) target: OsString,
    #[command(flatten)]
    pub(crate) read: ReadArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin snapshot get latest:disk0/etc/fstab                   into this folder
  vmtwin snapshot get latest:disk0/srv/www --to /tmp/restored  a folder with all it holds
  vmtwin snapshot get latest:disk0/etc/passwd --to - | grep root

What is there already is never replaced. Files are the caller's, with their permissions (but not
set-user-id and the like), times and holes; symbolic links stay links. Pipes, sockets and devices are
left out and named, and the exit code is 3 then.")]
pub(crate) struct GetArgs {
    /// Snapshot, disk, and path of a file or folder (may be given more than once, for one snapshot)
    #[arg(value_name = "ID:DISK/PATH", required = true)]
    pub(crate) targets: Vec<OsString>,
    /// Folder to write to; made if it is not there. `-` writes one file to stdout
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) to: PathBuf,
    /// Keep owners and groups by their numbers (root only)
    #[arg(long)]
    pub(crate) keep_owner: bool,
    #[command(flatten)]
    pub(crate) read: ReadArgs,
}
