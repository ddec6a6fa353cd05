//! Starts a tiny guest by hand, or from a script:
//!
//! ```text
//! vmtwin-test-guest --disk a.qcow2 --disk b.qcow2 --mode count \
//!     --qmp /tmp/qmp.sock --serial /tmp/serial.log --daemonize
//! ```
//!
//! Disks that do not exist are made. With `--daemonize` it prints QEMU's process
//! id and returns when the QMP socket is there; without, it becomes QEMU.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use vmtwin_testkit::{Accel, DaemonSpec, DiskFormat, DiskSpec, Guest, Mode, make_disk};

/// Starts a tiny guest that counts in memory and on its disks.
#[derive(Parser)]
#[command(name = "vmtwin-test-guest")]
struct Options {
    /// The guest's name.
    #[arg(long, default_value = "tinyguest")]
    name: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// A disk image; `.qcow2` is qcow2, everything else raw. May be repeated.
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// Size in MiB of disks that do not exist yet.
    #[arg(long, default_value_t = 64)]
    disk_size: u64,
    /// What the guest does: count, load, ext4, idle or fork.
    #[arg(long, default_value = "count")]
    mode: Mode,
    /// MiB of guest memory that are dirtied per second.
    #[arg(long)]
    dirty: Option<u64>,
    /// MiB of guest memory that are dirtied in turn.
    #[arg(long)]
    working_set: Option<u64>,
    /// Gives the guest a network card.
    #[arg(long)]
    network: bool,
    /// Path of the QMP socket to open.
    #[arg(long)]
    qmp: PathBuf,
    /// File that the guest's serial port is appended to.
    #[arg(long)]
    serial: PathBuf,
    /// Run in the background, print the process id and return.
    #[arg(long)]
    daemonize: bool,
    /// Print what guests run with here (kvm or tcg) to stderr.
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.verbose {
        eprintln!("accel: {}", Accel::detect().name());
    }
    let mut disks = Vec::new();
    for path in &options.disk {
        let format = DiskFormat::of_path(path);
        if !path.exists() {
            make_disk(path, format, options.disk_size)?;
        }
        disks.push(DiskSpec::existing(std::path::absolute(path)?, format));
    }
    let mut builder = Guest::builder()
        .name(options.name)
        .memory_mib(options.memory)
        .disks(disks)
        .mode(options.mode)
        .network(options.network);
    if let Some(dirty) = options.dirty {
        builder = builder.dirty_mib_per_s(dirty);
    }
    if let Some(working_set) = options.working_set {
        builder = builder.working_set_mib(working_set);
    }
    let spec = DaemonSpec {
        qmp: std::path::absolute(&options.qmp)?,
        serial_log: std::path::absolute(&options.serial)?,
    };
    if !options.daemonize {
        return Err(builder.become_qemu(&spec));
    }
    println!("{}", builder.start_daemon(&spec)?);
    Ok(())
}
