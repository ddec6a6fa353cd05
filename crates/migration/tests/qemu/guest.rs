//! A QEMU of the test's own, spoken to by QMP. It is killed by its handle when it is dropped.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::initramfs::Files;

/// Main memory of the guests, in MiB.
pub(crate) const RAM_MIB: u64 = 128;

const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Guest {
    child: Child,
    qmp: BufReader<UnixStream>,
    serial: PathBuf,
}

impl Guest {
    /// Boots the counting guest, or loads it from the stream `incoming`.
    pub(crate) fn start(files: &Files, dir: &Path, name: &str, incoming: Option<&Path>) -> Self {
        let mut args = vec![
            "-append".to_owned(),
            "console=ttyS0 quiet panic=-1".to_owned(),
        ];
        for (flag, path) in [("-kernel", &files.kernel), ("-initrd", &files.initramfs)] {
            args.extend([flag.to_owned(), path.display().to_string()]);
        }
        for disk in &files.disks {
            let drive = format!(
                "if=virtio,format=raw,file={},file.locking=off",
                disk.display()
            );
            args.extend(["-drive".to_owned(), drive]);
        }
        if let Some(stream) = incoming {
            args.extend(["-incoming".to_owned(), format!("file:{}", stream.display())]);
        }
        Self::spawn(dir, name, &args)
    }

    /// Starts a machine with nothing to boot.
    pub(crate) fn start_bare(dir: &Path, args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self::spawn(dir, "bare", &args)
    }

    fn spawn(dir: &Path, name: &str, args: &[String]) -> Self {
        let socket = dir.join(format!("{name}.qmp"));
        let serial = dir.join(format!("{name}.serial"));
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-nodefaults",
                "-display",
                "none",
                "-no-user-config",
            ])
            .args([
                "-m",
                &format!("{RAM_MIB}M"),
                "-serial",
                &format!("file:{}", serial.display()),
            ])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", socket.display()),
            ])
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let stream = wait_for("the QMP socket", DEADLINE, || {
            UnixStream::connect(&socket).ok()
        });
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut guest = Self {
            child,
            qmp: BufReader::new(stream),
            serial,
        };
        guest.qmp.read_line(&mut String::new()).unwrap();
        guest.execute("qmp_capabilities", "{}");
        guest
    }

    /// Runs a QMP command and returns its answer; events are passed over.
    pub(crate) fn execute(&mut self, command: &str, arguments: &str) -> serde_json::Value {
        let line = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert!(
                self.qmp.read_line(&mut line).unwrap() > 0,
                "QEMU closed QMP"
            );
            let mut message: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(message.get("error").is_none(), "{command}: {message}");
            if message.get("return").is_some() {
                return message["return"].take();
            }
        }
    }

    /// Writes a stream into the file `to` and waits for its end.
    pub(crate) fn migrate_to(&mut self, to: &Path) {
        self.execute("migrate-set-parameters", r#"{"max-bandwidth":0}"#);
        self.execute("migrate", &format!("{{\"uri\":\"file:{}\"}}", to.display()));
        wait_for("the migration", DEADLINE, || {
            let answer = self.execute("query-migrate", "{}");
            let status = answer["status"].as_str().unwrap_or_default().to_owned();
            assert_ne!(status, "failed", "{answer}");
            (status == "completed").then_some(())
        });
    }

    pub(crate) fn wait_until_running(&mut self, deadline: Duration) {
        wait_for("the guest to run", deadline, || {
            let answer = self.execute("query-status", "{}");
            (answer["status"] == "running").then_some(())
        });
    }

    /// The last number that the guest printed; 0 if none.
    pub(crate) fn last_count(&self) -> u64 {
        self.counts().last().copied().unwrap_or(0)
    }

    /// The first number that the guest printed, waiting for it. After a resume the rest of a
    /// line may come first, which does not count.
    pub(crate) fn first_count(&self) -> u64 {
        wait_for("the guest to count", DEADLINE, || {
            self.counts().first().copied()
        })
    }

    /// Waits for a number that is not less than `least`, and returns the last one.
    pub(crate) fn wait_for_count(&self, least: u64) -> u64 {
        wait_for("the guest to count", DEADLINE, || {
            Some(self.last_count()).filter(|count| *count >= least)
        })
    }

    /// The numbers of all whole lines.
    fn counts(&self) -> Vec<u64> {
        let text = fs::read(&self.serial).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("failed"), "{text}");
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let number = |line: &str| line.strip_prefix("count ")?.trim().parse().ok();
        whole.lines().filter_map(number).collect()
    }

    pub(crate) fn quit(mut self) {
        self.execute("quit", "{}");
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(what: &str, deadline: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(
            begun.elapsed() < deadline,
            "{what} took longer than {deadline:?}"
        );
        sleep(POLL);
    }
}
