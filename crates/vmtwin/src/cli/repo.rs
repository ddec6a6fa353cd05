//! Arguments of `repo`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Add a further repository under a name; it is made where there is none
    Add(RepoAddArgs),
    /// List the main repository and further ones
    List,
    /// Renew the object locks of all that is in a repository
    #[command(
        after_help = "Examples:\n  VMTWIN_OBJECT_LOCK=30d vmtwin repo renew\n  vmtwin repo renew \
        --repo offsite --object-lock 30d\n\nWith an object lock (--object-lock, VMTWIN_OBJECT_LOCK, \
        config.toml) nobody, not even the owner of the S3 bucket, removes what was written before its \
        time is over. What snapshots need for longer is locked anew by this command; `vmtwin serve` \
        does it by itself, after a third of the time."
    )]
    Renew,
    /// Forget a further repository; what is in it stays
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin repo add offsite s3://bucket/vms
  vmtwin repo add usb /mnt/usb/vms --with-password-file /root/usb.pw
  vmtwin vm set web01 --also offsite             each backup of web01 goes there too
  vmtwin backup web01 --also offsite             or this one
  vmtwin snapshot list --repo offsite            wherever --repo is, the name will do

Where no password is given and none is kept, one is made, shown once, and kept in the home folder for
this user alone. Write it down: without it nothing in that repository can be restored.")]
pub(crate) struct RepoAddArgs {
    /// Its name: letters, digits, - and _
    pub(crate) name: String,
    /// A folder, or s3://BUCKET/PREFIX
    #[arg(value_name = "URL")]
    pub(crate) location: String,
    /// File whose first line is its password; read again for each use
    #[arg(long, value_name = "FILE", conflicts_with = "with_password_command")]
    pub(crate) with_password_file: Option<PathBuf>,
    /// Command that prints its password; run again for each use
    #[arg(long, value_name = "COMMAND")]
    pub(crate) with_password_command: Option<String>,
}
