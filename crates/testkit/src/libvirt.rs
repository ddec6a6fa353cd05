//! Hosts with a libvirt of their own, on one machine, several at once.
//!
//! A [`LibvirtHost`] is a first process in mount, network, host-name and process namespaces, with
//! folders of its own over every place libvirt writes to, and its own virtlogd and libvirtd. The
//! machine's libvirt is never touched. All that runs in the namespaces ends with the value, and
//! also when the test's process dies.
//!
//! ```text
//!  test ── bindings, virsh --connect uri() ──► libvirt-sock ─┐   (a socket in the host's folder)
//!       ── command("vmtwin") = nsenter ──► [ libvirtd · virtlogd · dnsmasq · QEMUs ]
//! ```
//! QEMU runs as Debian's unprivileged user in a /dev of its own, as it does for users. What it must
//! read lies in [`LibvirtHost::folder`], which others may enter.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Workdir, run, try_run};

/// What libvirt writes to, and the folder it gets instead.
const PLACES: [(&str, &str); 5] = [
    ("run", "/run"),
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("log", "/var/log/libvirt"),
];
/// How long libvirtd may take to answer: it asks each QEMU on the machine what it can do.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const PID_FILE: &str = "/run/libvirtd.pid";

/// The first process of the namespaces: all in them ends with it, and it ends with its standard
/// input. The shell waits for `cat` and reaps orphans meanwhile. Control groups are hidden, so that
/// none is left behind on the machine.
const FIRST_PROCESS: &str = r#"set -e
cd "$0"
hostname "$1"
ip link set lo up
! mountpoint -q /sys/fs/cgroup || umount --recursive --lazy /sys/fs/cgroup
mount -t sysfs sysfs /sys
tr -d - </proc/sys/kernel/random/uuid >machine-id
[ ! -e /etc/machine-id ] || mount --bind machine-id /etc/machine-id
mount --bind run /run
mount --bind etc /etc/libvirt
mount --bind lib /var/lib/libvirt
mount --bind cache /var/cache/libvirt
mount --bind log /var/log/libvirt
virtlogd --daemon
libvirtd --daemon --pid-file /run/libvirtd.pid
echo ready
cat >/dev/null
exit 0
"#;

/// A host with its own libvirtd.
#[derive(Debug)]
pub struct LibvirtHost {
    name: String,
    first: Child,
    folder: Workdir,
}

impl LibvirtHost {
    /// Why there can be no such host here, if there cannot.
    pub fn hindrance() -> Option<String> {
        if !is_root() {
            return Some("libvirt hosts need root".to_owned());
        }
        let missing = ["/usr/sbin/libvirtd", "/usr/sbin/virtlogd", "/usr/bin/virsh"]
            .into_iter()
            .find(|path| !Path::new(path).exists());
        missing.map(|path| format!("no {path}: run tools/setup"))
    }

    /// Starts a host called `name`, and waits for its libvirtd; panics where that fails.
    pub fn start(name: &str) -> LibvirtHost {
        if let Some(reason) = LibvirtHost::hindrance() {
            panic!("{reason}");
        }
        let folder = Workdir::with_prefix("tinyhost-");
        prepare_folder(folder.path());
        let complaints = std::fs::File::create(folder.join("complaints")).unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--net",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
        ]);
        command.args(["--kill-child", "sh", "-c", FIRST_PROCESS]);
        command.arg(folder.path()).arg(name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut first = command.stderr(complaints).spawn().unwrap();
        let mut said = String::new();
        let output = first.stdout.take().expect("a pipe");
        let read = BufReader::new(output).read_line(&mut said);
        let host = LibvirtHost {
            name: name.to_owned(),
            first,
            folder,
        };
        if read.is_err() || said != "ready\n" {
            let complaints = std::fs::read_to_string(host.folder.join("complaints"));
            panic!("no libvirtd: {}", complaints.unwrap_or_default());
        }
        host.wait_for_libvirtd();
        host
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder that QEMU may read and write in, at the same path inside and outside.
    pub fn folder(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// A file of [`LibvirtHost::folder`].
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder().join(name)
    }

    /// Where to connect to from outside and inside the namespaces.
    pub fn uri(&self) -> String {
        let socket = self.folder.join("run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// The process id, outside, of the first process in the namespaces: for `nsenter`, or to give
    /// it a network interface (`ip link set IF netns PID`).
    pub fn init_pid(&self) -> u32 {
        let parent = self.first.id();
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let first = children.split_whitespace().next();
        first
            .and_then(|pid| pid.parse().ok())
            .expect("the host's first process")
    }

    /// A command that runs on the host: in all its namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.init_pid().to_string();
        command.args(["--mount", "--net", "--uts", "--pid", "--target", &pid]);
        command.arg("--").arg(program);
        command
    }

    /// Runs virsh and returns what it prints; panics where it fails.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let output = run(&mut self.virsh_command(arguments));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs virsh; a failure is an error with its output.
    pub fn try_virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = try_run(&mut self.virsh_command(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn virsh_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("virsh");
        command.arg("--quiet").args(arguments);
        command
    }

    /// Kills libvirtd (SIGKILL); guests run on.
    pub fn kill_libvirtd(&self) {
        let mut kill = self.command("sh");
        run(kill.args([
            "-c",
            &format!("kill -KILL $(cat {PID_FILE}); rm {PID_FILE}"),
        ]));
        let begun = Instant::now();
        while self.try_virsh(&["version"]).is_ok() {
            assert!(begun.elapsed() < START_TIMEOUT, "libvirtd goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts libvirtd again, and waits until it answers. It takes its guests up on the side: what
    /// is asked of their monitors waits for that.
    pub fn start_libvirtd(&self) {
        let mut start = self.command("libvirtd");
        start.stdout(Stdio::null()).stderr(Stdio::null());
        let status = start.args(["--daemon", "--pid-file", PID_FILE]).status();
        assert!(status.is_ok_and(|s| s.success()), "libvirtd does not start");
        self.wait_for_libvirtd();
    }

    fn wait_for_libvirtd(&self) {
        let begun = Instant::now();
        while let Err(error) = self.try_virsh(&["version"]) {
            assert!(begun.elapsed() < START_TIMEOUT, "no libvirtd: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for LibvirtHost {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        let _ = self.first.wait();
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout == b"0\n")
}

/// Folders for libvirt, with the configuration that its packages bring; QEMU's user must get
/// through to its files.
fn prepare_folder(folder: &Path) {
    for (name, _) in PLACES {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let mut copy = Command::new("cp");
    run(copy.args(["-a", "/etc/libvirt/."]).arg(folder.join("etc")));
    // The machine's guests, networks and pools are none of this host's.
    for theirs in ["qemu", "storage", "secrets", "nwfilter", "nodedev"] {
        let _ = std::fs::remove_dir_all(folder.join("etc").join(theirs));
    }
    let configuration = "security_driver = \"none\"\ncgroup_controllers = [ ]\n";
    std::fs::write(folder.join("etc/qemu.conf"), configuration).unwrap();
    // Hosts of one machine would be one to a migration.
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    let daemon = folder.join("etc/libvirtd.conf");
    let before = std::fs::read_to_string(&daemon).unwrap_or_default();
    let with_uuid = format!("{before}\nhost_uuid = \"{}\"\n", uuid.trim());
    std::fs::write(daemon, with_uuid).unwrap();
    std::fs::create_dir(folder.join("files")).unwrap();
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(folder, open).unwrap();
    let writable = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.join("files"), writable).unwrap();
}
