//! The process of a task: what it prints and says is read in bounds, and it ends when it is told to,
//! or when this process dies.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmtwin_catalog::TaskState;

use super::Ended;
use crate::cancel::Cancel;
use crate::home::Home;

/// The option of a process that ends with the one that started it.
const WORKER: &str = "--worker";
/// What a line of progress begins with: ASCII's record separator, as in RFC 7464.
pub(crate) const MARK: char = '\u{1e}';
/// Longest document that is kept.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Longest line that is read in one piece.
const MAX_LINE_BYTES: u64 = 16 << 10;
/// What a command may be ahead of us, lines.
const MAX_UNREAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
/// How long a process that was left behind, such as a guest, may keep the log open.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Exit code of what was done with warnings.
const WITH_WARNINGS: i32 = 3;

/// How far a command is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// What is being done.
    pub(crate) label: String,
    /// Bytes, or steps, that are done.
    pub(crate) done: u64,
    /// Of how many, if that is known.
    pub(crate) total: Option<u64>,
}

/// What a command prints at its end, for programs and for people.
#[derive(Serialize, Deserialize)]
pub(crate) struct Printed<D = Value> {
    pub(crate) document: D,
    pub(crate) text: String,
}

/// What a command tells while it runs.
pub(crate) enum Told {
    Progress(Progress),
    Line(String),
}

/// Sets `cancel` when the process that started this one is gone: its end of our stdin closes.
pub(crate) fn watch_parent(cancel: &Cancel) {
    let flag = cancel.flag();
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1..) = std::io::stdin().read(&mut byte) {}
        flag.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// The arguments of this process, for one that outlives it.
pub(crate) fn own_arguments() -> impl Iterator<Item = OsString> {
    let arguments = std::env::args_os().skip(1);
    arguments.filter(|argument| argument != WORKER)
}

/// Starts this program.
pub(super) fn spawn(home: &Home, dir: &Path, arguments: &[String]) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER).args(arguments);
    home.pass_on(&mut command);
    command.current_dir(dir);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("a command cannot be started")
}

/// Runs this program. `told` is called with all that comes, and ten times a second; the command is
/// told to end once it gives `true`.
pub(super) fn run(
    home: &Home,
    dir: &Path,
    arguments: &[String],
    told: &mut dyn FnMut(Option<Told>) -> bool,
) -> Result<Ended> {
    let mut child = spawn(home, dir, arguments)?;
    let _stdin = child.stdin.take();
    let (sender, receiver) = mpsc::sync_channel(MAX_UNREAD);
    let printed = child.stdout.take().map(|out| reader(out, all_of));
    if let Some(err) = child.stderr.take() {
        thread::spawn(move || lines_of(err, &sender));
    }
    let mut last = String::new();
    let (status, was_told) = wait(&mut child, &receiver, &mut |event| {
        if let Some(Told::Line(line)) = &event
            && !line.trim().is_empty()
        {
            last.clone_from(line);
        }
        told(event)
    })?;
    let printed = printed.and_then(|receiver| receiver.recv_timeout(LAST_WORDS).ok());
    let printed = printed.and_then(|text| serde_json::from_str::<Printed>(&text).ok());
    let (result, text) = printed.map_or((Value::Null, None), |it| (it.document, Some(it.text)));
    let said = match last.trim() {
        "" => "it said nothing".to_owned(),
        last => last.trim_start_matches("error: ").to_owned(),
    };
    Ok(Ended {
        state: state(status, was_told),
        exit_code: status.code(),
        result,
        text,
        said,
    })
}

fn state(status: ExitStatus, was_told: bool) -> TaskState {
    match status.code() {
        Some(0) => TaskState::Done,
        Some(WITH_WARNINGS) => TaskState::Warnings,
        _ if was_told => TaskState::Cancelled,
        _ => TaskState::Failed,
    }
}

/// Waits for the end of the process and of what it says. `true`: it was told to end.
fn wait(
    child: &mut Child,
    receiver: &Receiver<Told>,
    told: &mut dyn FnMut(Option<Told>) -> bool,
) -> Result<(ExitStatus, bool)> {
    let mut was_told = false;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        let event = receiver.recv_timeout(POLL);
        let is_silent = matches!(event, Err(RecvTimeoutError::Disconnected));
        if is_silent && ended.is_none() {
            thread::sleep(POLL);
        }
        if told(event.ok()) && !was_told && ended.is_none() {
            let _ = kill_process(Pid::from_child(child), Signal::INT);
            was_told = true;
        }
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        if let Some((status, at)) = ended
            && (is_silent || at.elapsed() > LAST_WORDS)
        {
            return Ok((status, was_told));
        }
    }
}

fn reader<R: Read + Send + 'static>(from: R, read: fn(R) -> String) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(read(from)));
    receiver
}

fn all_of(out: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut limited = out.take(MAX_DOCUMENT_BYTES);
    let _ = limited.read_to_end(&mut bytes);
    // A command must never wait for us to read on.
    let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lines_of(err: impl Read, sender: &SyncSender<Told>) {
    let mut reader = BufReader::new(err);
    loop {
        let mut bytes = Vec::new();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes);
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        let told = match text.trim_end().strip_prefix(MARK) {
            Some(progress) => match serde_json::from_str(progress) {
                Ok(progress) => Told::Progress(progress),
                Err(_) => continue,
            },
            None => Told::Line(text.trim_end().to_owned()),
        };
        if sender.send(told).is_err() {
            // Nobody listens any more; a process that was left behind must be able to write on.
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
            return;
        }
    }
}
