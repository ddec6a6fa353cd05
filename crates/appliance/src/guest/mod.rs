//! The program in the machine: process 1 of a kernel with nothing else.

mod devices;
mod modules;
mod mounts;
mod probe;
mod serve;

pub(crate) use devices::LVM;
pub(crate) use modules::{BASE, PLAN, Plan};
pub(crate) use mounts::NTFS_3G;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// Name of the port that requests come from.
pub(crate) const PORT: &str = "vmtwin.files";
/// How long the kernel may take to find its devices.
const DEVICES_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Serves until the other side is gone, and turns the machine off. To be called by process 1 of the
/// appliance and nobody else.
pub fn run() -> ! {
    if let Err(error) = serve() {
        // To the console, which the host shows if the machine says nothing else.
        eprintln!("appliance: {error}");
    }
    let _ = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn serve() -> io::Result<()> {
    mount_kernel_folders()?;
    let modules = modules::Modules::load_base()?;
    let port = wait_for(port)?;
    let port = File::options().read(true).write(true).open(port)?;
    let expected: usize = fs::read_to_string("/disks")?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    wait_for(|| Ok((devices::disks()?.len() >= expected).then_some(())))?;
    serve::Session::new(port, modules).run()
}

fn mount_kernel_folders() -> io::Result<()> {
    for (kind, folder) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(folder)?;
        mount(kind, folder, kind, MountFlags::empty(), None)?;
    }
    fs::create_dir_all("/mnt")
}

/// The device of the port, once it is there.
fn port() -> io::Result<Option<PathBuf>> {
    let Ok(ports) = fs::read_dir("/sys/class/virtio-ports") else {
        return Ok(None);
    };
    for entry in ports {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

fn wait_for<T>(look: impl Fn() -> io::Result<Option<T>>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > DEVICES_TIMEOUT {
            return Err(io::Error::other("the kernel has not found all devices"));
        }
        std::thread::sleep(POLL);
    }
}
