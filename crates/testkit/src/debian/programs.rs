//! PostgreSQL and SQLite of the guest's own packages, run on the host.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use super::DebianImage;
use crate::process::{Workdir, run};

/// PostgreSQL does not run as root.
const NOBODY: u32 = 65534;

/// The programs, copied to a place where a user other than root can reach them.
pub(super) struct Programs<'a> {
    work: &'a Workdir,
}

impl<'a> Programs<'a> {
    pub(super) fn copy_to(work: &'a Workdir) -> Programs<'a> {
        let image = DebianImage::build().unwrap_or_else(|error| panic!("{error:#}"));
        fs::set_permissions(work.path(), Permissions::from_mode(0o711))
            .expect("opening a folder for others");
        run(Command::new("cp")
            .arg("-r")
            .arg(image.programs())
            .arg(work.join("judge")));
        Programs { work }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.work.join("judge").join(program));
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin");
        command
    }

    /// What `pg_controldata` says of a data folder; empty if it cannot be read.
    pub(super) fn control_data(&self, data: &Path) -> String {
        let output = self.command("pg_controldata").arg(data).output();
        text(&output.expect("starting pg_controldata").stdout)
    }

    /// Starts PostgreSQL on a data folder for a single query in the data base
    /// `ledger`. The folder is changed: PostgreSQL recovers what must be recovered.
    pub(super) fn query_postgres(&self, data: &Path, query: &str) -> Answer {
        give_to_nobody(data);
        let input = self.work.join("query");
        fs::write(&input, format!("{query}\n")).expect("writing a query");
        let mut command = self.command("postgres");
        command.arg("--single").arg("-D").arg(data).arg("ledger");
        command.stdin(File::open(&input).expect("opening a query"));
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Answer::of(command.output().expect("starting postgres"))
    }

    /// Runs SQL on a SQLite file and returns what it prints.
    pub(super) fn query_sqlite(&self, file: &Path, sql: &str) -> Answer {
        let mut command = self.command("sqlite3");
        command.args(["-batch", "-bail"]).arg(file).arg(sql);
        Answer::of(command.output().expect("starting sqlite3"))
    }
}

/// What a program printed.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) log: String,
}

impl Answer {
    fn of(output: Output) -> Answer {
        Answer {
            text: text(&output.stdout),
            log: text(&output.stderr),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The files of a disk belong to users of the guest.
fn give_to_nobody(folder: &Path) {
    if is_root() {
        run(Command::new("chown")
            .args(["-R", &format!("{NOBODY}:{NOBODY}")])
            .arg(folder));
    }
}
