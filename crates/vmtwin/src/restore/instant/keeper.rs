//! The keeper: restores, or goes on with what was begun; serves and streams until all is local.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmtwin_hypervisor::inspect::run_state;
use vmtwin_hypervisor::process::{ProcessId, with_argument_that};
use vmtwin_hypervisor::qmp::{Qmp, QmpError};
use vmtwin_repository::{Repository, Snapshot};

use super::stream::Streams;
use super::{PROGRESS, Progress, RECORD, Record, STREAM_SOCKET, monitor_argument, overlay};
use crate::restore::error::RestoreError;
use crate::restore::progress::RestoreProgress;
use crate::restore::recipe::{self, Held};
use crate::restore::report::RestoreReport;
use crate::restore::request::RestoreRequest;

/// How often the jobs are looked at.
const POLL: Duration = Duration::from_millis(500);
/// How long the guest reads alone before its disks come in: a system that starts wants all of the
/// processors and of the repository.
const HEAD_START: Duration = Duration::from_secs(8);
/// How long QEMU's monitor may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);

/// What the keeper tells who started it, on its standard output, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// The guest runs; this is the report, and whether it was begun before.
    Started {
        /// As of a restore.
        report: serde_json::Value,
    },
    /// Nothing was done, or all was taken back.
    Failed {
        /// Why.
        error: String,
    },
}

/// What a keeper works on.
pub(crate) struct Keeper<'a> {
    /// The repository.
    pub(crate) repository: &'a Repository,
    /// The snapshot asked for.
    pub(crate) snapshot: &'a Snapshot,
    /// How to restore it.
    pub(crate) request: &'a RestoreRequest,
    /// Most bytes per second to stream; 0 for no limit.
    pub(crate) limit_bytes_per_s: u64,
}

impl Keeper<'_> {
    /// Begins, or goes on; the guest runs then.
    pub(crate) fn begin(
        &self,
        progress: &dyn RestoreProgress,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Held, RestoreError> {
        let (repository, snapshot, request) = (self.repository, self.snapshot, self.request);
        match Record::read(&request.dir)? {
            None => recipe::restore_and_hold(repository, snapshot, request, progress, cancelled),
            Some(record) => {
                self.check(&record)?;
                recipe::go_on(repository, snapshot, request, &record, progress, cancelled)
            }
        }
    }

    /// Whether the folder holds what is asked for.
    fn check(&self, record: &Record) -> Result<(), RestoreError> {
        if record.snapshot == self.snapshot.id && record.repository == self.repository.id() {
            return Ok(());
        }
        Err(RestoreError::OtherRestore {
            dir: self.request.dir.clone(),
            snapshot: record.snapshot.clone(),
        })
    }

    /// Streams until nothing is under any overlay; never gives up, since the guest needs the server.
    pub(crate) fn work(&self, held: Held) -> Result<(), RestoreError> {
        let dir = held.report.dir.clone();
        let Some(record) = Record::read(&dir)? else {
            return Ok(());
        };
        let work = Work {
            record,
            limit_bytes_per_s: self.limit_bytes_per_s,
            dir,
        };
        std::thread::sleep(HEAD_START);
        work.run(&|| held.trouble());
        // The record last, and the lock of the folder after it.
        let folder = held.stop_serving();
        for name in [PROGRESS, STREAM_SOCKET, RECORD] {
            let _ = fs::remove_file(work.dir.join(name));
        }
        drop(folder);
        Ok(())
    }
}

struct Work {
    dir: PathBuf,
    record: Record,
    limit_bytes_per_s: u64,
}

impl Work {
    /// `trouble` says why the repository cannot be read.
    fn run(&self, trouble: &dyn Fn() -> Option<String>) {
        loop {
            let outcome = match self.monitor() {
                Ok(Some(qmp)) => self.stream(qmp, trouble),
                // It was shut down, or it died: then nobody uses the overlays.
                Ok(None) => self.complete(),
                Err(error) => Err(error.to_string()),
            };
            match outcome.and_then(|()| self.check_local()) {
                Ok(()) => return,
                Err(error) => self.note(&Progress {
                    trouble: trouble().or(Some(error)),
                    ..Progress::default()
                }),
            }
            std::thread::sleep(POLL);
        }
    }

    /// The guest's monitor; `None` where it does not run.
    fn monitor(&self) -> Result<Option<Qmp>, QmpError> {
        let connected = match (&self.record.monitor, guest(&self.dir)) {
            (Some(monitor), _) => Qmp::connect(monitor, GREETING_TIMEOUT),
            (None, None) => return Ok(None),
            (None, Some(process)) => {
                let socket = self.dir.join(STREAM_SOCKET);
                Qmp::connect_to_new(&socket, GREETING_TIMEOUT, &|| process.is_alive())
            }
        };
        match connected {
            Ok(qmp) => Ok(Some(qmp)),
            Err(error) if error.is_gone() && self.record.monitor.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Streams while the guest lives.
    fn stream(&self, qmp: Qmp, trouble: &dyn Fn() -> Option<String>) -> Result<(), String> {
        let mut streams = Streams::new(qmp, self.limit_bytes_per_s);
        loop {
            match streams.step(&self.dir, &self.record.disks) {
                Ok(Some(progress)) => self.note(&Progress {
                    trouble: trouble().or(progress.trouble),
                    ..progress
                }),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
            std::thread::sleep(POLL);
        }
    }

    /// Copies what is missing without QEMU. A disk that is complete already costs nothing.
    fn complete(&self) -> Result<(), String> {
        for disk in &self.record.disks {
            let image = Record::image(&self.dir, disk);
            overlay::complete(&image).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The record goes only when the images themselves say that nothing is under them.
    fn check_local(&self) -> Result<(), String> {
        for disk in &self.record.disks {
            let image = Record::image(&self.dir, disk);
            let synced = fs::File::open(&image).and_then(|file| file.sync_all());
            synced.map_err(|error| format!("{}: {error}", image.display()))?;
            match overlay::is_local(&image) {
                Ok(true) => {}
                Ok(false) => return Err(format!("disk {disk} is not complete")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    fn note(&self, progress: &Progress) {
        let (path, partial) = (self.dir.join(PROGRESS), self.dir.join(".instant-progress"));
        let written = serde_json::to_vec(progress).map_err(std::io::Error::from);
        let written = written.and_then(|text| fs::write(&partial, text));
        if let Err(error) = written.and_then(|()| fs::rename(&partial, &path)) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// The QEMU that runs on the overlays of a folder.
pub(crate) fn guest(dir: &Path) -> Option<ProcessId> {
    let wanted = monitor_argument(dir);
    with_argument_that(|argument| argument == wanted)
        .into_iter()
        .find(|process| process.is_alive())
}

/// Lets a guest boot whose keeper was killed before it did so. In any other state it is left alone.
pub(crate) fn let_boot(dir: &Path) -> Result<(), QmpError> {
    let mut qmp = Qmp::connect(&dir.join(STREAM_SOCKET), GREETING_TIMEOUT)?;
    match run_state(&mut qmp)?.as_str() {
        "prelaunch" => qmp.execute("cont", Value::Null).map(drop),
        _ => Ok(()),
    }
}

/// Removes what an instant restore has begun whose guest did not start.
pub(crate) fn remove(report: &RestoreReport) {
    let disks = report.disks.iter().map(|disk| disk.path.clone());
    let all = disks.chain(report.files.iter().cloned());
    for path in all.chain([report.dir.join(RECORD)]) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
    // Where nothing else is in them.
    let _ = fs::remove_dir(report.dir.join("files"));
    let _ = fs::remove_dir(&report.dir);
}

/// Says how it began, to whoever waits for it.
pub(crate) fn say(said: &Said) {
    let mut out = std::io::stdout();
    if let Ok(line) = serde_json::to_string(said) {
        // Who started us may be gone.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// The report as it is told.
pub(crate) fn started(report: &RestoreReport) -> Said {
    match serde_json::to_value(report) {
        Ok(report) => Said::Started { report },
        Err(error) => Said::Failed {
            error: error.to_string(),
        },
    }
}
