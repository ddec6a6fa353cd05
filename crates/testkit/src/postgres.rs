//! A PostgreSQL server of the test's own, in a temporary folder, on a Unix socket alone.
//!
//! It goes away with the test's process, however that ends: a small shell waits at a pipe that only
//! the process holds, then stops the server and removes the folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{Workdir, run};

/// The server's user of all rights.
const USER: &str = "vmtwin";

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    databases: AtomicU32,
    /// Ends the server when its standard input is closed.
    keeper: Child,
}

impl Postgres {
    /// The server that the tests of one process share.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Postgres::start)
    }

    /// Starts a server.
    pub fn start() -> Postgres {
        let folder = Workdir::with_prefix("tinypg-").into_path();
        let data = folder.join("data");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
        }
        // An order of texts that is not that of their bytes, as most servers have.
        run(program("initdb")
            .args([
                "--username",
                USER,
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
            ])
            .args([
                "--locale=C.UTF-8",
                "--locale-provider=icu",
                "--icu-locale=en-US",
            ])
            .arg("-D")
            .arg(&data));
        let keeper = keeper(&folder);
        let server = Postgres {
            folder,
            databases: AtomicU32::new(0),
            keeper,
        };
        server.run_again();
        server
    }

    /// A new, empty database; its URL.
    pub fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("catalog{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres:///{database}?host={}&user={USER}",
            self.folder.display()
        )
    }

    /// Runs statements, as psql does, and returns what they print.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let output = run(Command::new("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER])
            .arg("-h")
            .arg(&self.folder)
            .args(["-d", database, "-c", statements]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(&self) {
        self.pg_ctl(&["-m", "immediate", "stop"]);
    }

    /// Starts it again.
    pub fn run_again(&self) {
        let options = format!(
            "-c listen_addresses= -c fsync=off -c unix_socket_directories={}",
            self.folder.display()
        );
        self.pg_ctl(&["-w", "-o", &options, "start"]);
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        // The server keeps what it is given as output, so no pipe of ours.
        let log = self.folder.join("log");
        let status = program("pg_ctl")
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-l")
            .arg(&log)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("starting pg_ctl");
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(
            status.success(),
            "pg_ctl {arguments:?}: {status}\n{}",
            said()
        );
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// What stops the server and removes the folder once we are gone.
fn keeper(folder: &Path) -> Child {
    let keep = std::env::var_os("VMTWIN_TEST_KEEP").is_some();
    let stop = program("pg_ctl");
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            r#"read _; folder=$1; keep=$2; shift 2
            "$@" -D "$folder/data" -m immediate stop
            [ "$keep" = true ] || rm -rf "$folder""#,
        ])
        .arg("sh")
        .arg(folder)
        .arg(keep.to_string())
        .arg(stop.get_program())
        .args(stop.get_args());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A group of its own, so that Ctrl-C at the test does not end it first.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().expect("starting sh")
}

/// A program of the server, which refuses to be run by root.
fn program(name: &str) -> Command {
    let path = folder_of_programs().join(name);
    if !is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "--",
        ])
        .arg(path)
        .current_dir("/");
    command
}

/// Debian keeps the programs of each version in a folder of its own: the newest.
fn folder_of_programs() -> PathBuf {
    let version = |path: &PathBuf| -> u32 {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0)
    };
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(version)
        .expect("PostgreSQL is not installed; tools/setup installs it")
        .join("bin")
}

fn is_root() -> bool {
    let output = run(Command::new("id").arg("-u"));
    output.stdout.trim_ascii() == b"0"
}
