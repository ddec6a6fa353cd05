//! Holding QEMU's snapshot thread at the boundary between its preparation and its pause.
//!
//! A background snapshot first reads one byte of every page (20–1000 ms, growing with memory, the
//! guest running), then pauses the guest, saves device state, write-protects memory and resumes
//! (3 ms). Disks must be switched in *that* pause. Stopping the guest beforehand would put the
//! preparation into the pause; stopping it by the clock would be a race. So the one thread that
//! QEMU has just made for the snapshot is traced (ptrace), from the `migrate` command on:
//!
//! ```text
//!  snapshot thread   touch all pages ─► lock ─► write setup ─► unlock ┊ ─► lock ─► pause, save, protect
//!                                                 │ entry: `stop`,    ┊
//!                                                 │ switch sent       ┊ held here until QEMU has
//!  main thread                                    │ waits for lock ───┊─► stop, switch every disk
//! ```
//! At the entry of the setup's write the big lock is held, so our commands queue behind it. When
//! the thread has given the lock back it is held, QEMU's main thread stops the guest and switches
//! the disks, answers, and the thread goes on: it finds the guest paused and leaves it so, and we
//! resume. Only system calls are observed; no memory or register of QEMU is changed. If vmtwin
//! dies, the kernel lets the thread go.
//!
//! Where tracing is not permitted the caller stops the guest first, and says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::qmp::{Command, Pending, Qmp, QmpError};

/// Longest preparation waited for. 1 TiB at 150 ns a page takes 40 s.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time the thread is held for QEMU's main thread to stop the guest.
const HOLD_LIMIT: Duration = Duration::from_millis(250);
/// Longest wait for QEMU's main thread to queue for the lock: under half a millisecond unless the
/// host is busy. Without it in the queue the thread would take the lock back at once.
const QUEUE_LIMIT: Duration = Duration::from_millis(50);
/// More new threads than this at once are not a snapshot beginning.
const MAX_THREADS: usize = 16;

/// How the hold ended.
pub(crate) enum Outcome {
    /// Guest stopped, commands answered; the thread goes on.
    Switched(Vec<Result<serde_json::Value, QmpError>>),
    /// The boundary was passed before we held it; nothing was sent.
    Missed,
    /// The commands were sent, but the thread went on before they were carried out.
    Late(Vec<Pending>),
    /// Tracing is not possible here.
    NotPermitted,
}

/// The thread ids of a process.
pub(crate) fn threads(pid: u32) -> BTreeSet<i32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Watches a snapshot that was just begun.
pub(crate) struct Watch<'a> {
    /// QEMU's process id.
    pub(crate) pid: u32,
    /// Threads that were there before `migrate` was sent.
    pub(crate) before: BTreeSet<i32>,
    /// Inode of the socket that QEMU writes the stream to.
    pub(crate) stream_inode: u64,
    /// Tells the pause guard that the pause begins.
    pub(crate) arm: &'a dyn Fn() -> std::io::Result<()>,
    /// Bytes of the stream that have arrived.
    pub(crate) received: &'a dyn Fn() -> u64,
}

impl Watch<'_> {
    /// Holds the thread at the boundary while `commands` are carried out.
    ///
    /// # Errors
    /// The QMP connection failed.
    pub(crate) fn switch_at_boundary(
        &self,
        qmp: &mut Qmp,
        commands: &[Command],
    ) -> Result<Outcome, QmpError> {
        let Some(mut traced) = self.seize() else {
            return Ok(Outcome::NotPermitted);
        };
        if traced.is_empty() {
            return Ok(Outcome::Missed);
        }
        let outcome = self.follow(qmp, commands, &mut traced);
        for thread in &mut traced {
            thread.release();
        }
        outcome
    }

    /// Traces the threads that appeared; `None` where that is not permitted.
    fn seize(&self) -> Option<Vec<Traced>> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut new = Vec::new();
        while new.is_empty() && Instant::now() < deadline && (self.received)() == 0 {
            new = threads(self.pid)
                .difference(&self.before)
                .copied()
                .take(MAX_THREADS)
                .collect();
        }
        let mut traced = Vec::new();
        for tid in new {
            match Traced::seize(tid) {
                Ok(thread) => traced.push(thread),
                Err(Errno::ESRCH) => {}
                Err(_) => return None,
            }
        }
        Some(traced)
    }

    fn follow(
        &self,
        qmp: &mut Qmp,
        commands: &[Command],
        traced: &mut Vec<Traced>,
    ) -> Result<Outcome, QmpError> {
        let deadline = Instant::now() + PREPARE_LIMIT;
        let mut sent: Option<Vec<Pending>> = None;
        let mut hold_end = deadline;
        loop {
            let Some((at, stop)) = next_stop(traced, sent.is_some()) else {
                let over = Instant::now() >= hold_end || traced.is_empty();
                let passed = sent.is_none() && (self.received)() > 0 && !self.in_setup(traced);
                match sent.take() {
                    Some(pending) if over => return self.late_or_done(qmp, pending),
                    None if over || passed => return Ok(Outcome::Missed),
                    back => sent = back,
                }
                continue;
            };
            let on_stream = stop.is_write() && self.is_stream(stop.fd);
            if sent.is_none() && stop.entry && on_stream {
                if (self.received)() > 0 {
                    return Ok(Outcome::Missed);
                }
                (self.arm)()?;
                sent = Some(qmp.send(commands)?);
                hold_end = Instant::now() + HOLD_LIMIT;
                self.wait_for_main_thread();
                traced[at].in_setup = true;
            } else if let Some(pending) = &sent {
                if stop.entry && on_stream && !traced[at].in_setup {
                    return self.late_or_done(qmp, sent.take().unwrap_or_default());
                }
                if !stop.entry && !on_stream && traced[at].in_setup {
                    traced[at].in_setup = false;
                }
                let unlocked = stop.is_futex() && !stop.entry && !traced[at].in_setup;
                if unlocked && answered(qmp, pending, hold_end)? {
                    return self.late_or_done(qmp, sent.take().unwrap_or_default());
                }
            }
            traced[at].go_on();
        }
    }

    /// A thread of ours is known to be inside the setup's write.
    fn in_setup(&self, traced: &[Traced]) -> bool {
        traced.iter().any(|t| t.in_setup)
    }

    /// Collects the replies where they all came, else reports that we were late.
    fn late_or_done(&self, qmp: &mut Qmp, pending: Vec<Pending>) -> Result<Outcome, QmpError> {
        let soon = Instant::now() + Duration::from_millis(20);
        if !answered(qmp, &pending, soon)? {
            return Ok(Outcome::Late(pending));
        }
        let mut replies = Vec::with_capacity(pending.len());
        for one in &pending {
            replies.push(match qmp.reply(one, Duration::from_secs(1)) {
                Err(error @ (QmpError::Closed | QmpError::Io(_))) => return Err(error),
                other => other,
            });
        }
        Ok(Outcome::Switched(replies))
    }

    fn is_stream(&self, fd: u64) -> bool {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).is_ok_and(|link| {
            link.as_os_str() == format!("socket:[{}]", self.stream_inode).as_str()
        })
    }

    /// Gives QEMU's main thread time to queue for the lock with our command in hand.
    fn wait_for_main_thread(&self) {
        let path = format!("/proc/{}/task/{}/syscall", self.pid, self.pid);
        let end = Instant::now() + QUEUE_LIMIT;
        while Instant::now() < end {
            match std::fs::read_to_string(&path) {
                Ok(text) if text.starts_with(FUTEX_TEXT) => return,
                Ok(_) => std::thread::yield_now(),
                Err(_) => return,
            }
        }
    }
}

/// Whether every reply is there, looking until `deadline`. Replies stay where they are.
fn answered(qmp: &mut Qmp, pending: &[Pending], deadline: Instant) -> Result<bool, QmpError> {
    let slice = Instant::now() + Duration::from_millis(40);
    qmp.all_answered(pending, deadline.min(slice))
}

const SYS_FUTEX: u64 = libc::SYS_futex as u64;
const FUTEX_TEXT: &str = "202 ";

/// A stop at a system call.
struct Stop {
    entry: bool,
    number: u64,
    fd: u64,
}

impl Stop {
    fn is_write(&self) -> bool {
        [
            libc::SYS_sendmsg,
            libc::SYS_writev,
            libc::SYS_write,
            libc::SYS_sendto,
        ]
        .iter()
        .any(|n| *n as u64 == self.number)
    }

    fn is_futex(&self) -> bool {
        self.number == SYS_FUTEX
    }
}

/// A thread under trace.
struct Traced {
    tid: Pid,
    stopped: bool,
    gone: bool,
    inside_call: bool,
    in_setup: bool,
}

impl Traced {
    fn seize(tid: i32) -> Result<Traced, Errno> {
        let tid = Pid::from_raw(tid);
        ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
        let thread = Traced {
            tid,
            stopped: false,
            gone: false,
            inside_call: false,
            in_setup: false,
        };
        ptrace::interrupt(tid)?;
        Ok(thread)
    }

    /// The next stop of this thread, if there is one now.
    fn poll(&mut self) -> Option<Stop> {
        if self.gone || self.stopped {
            return None;
        }
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        match waitpid(self.tid, Some(flags)) {
            Ok(WaitStatus::PtraceSyscall(_)) => {
                self.stopped = true;
                self.inside_call = !self.inside_call;
                if let Some((number, fd)) = call_of(self.tid) {
                    return Some(Stop {
                        entry: self.inside_call,
                        number,
                        fd,
                    });
                }
                self.go_on();
            }
            Ok(WaitStatus::PtraceEvent(..)) => {
                self.stopped = true;
                self.go_on();
            }
            Ok(WaitStatus::Stopped(_, signal)) => {
                self.stopped = true;
                self.resume(Some(signal));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => self.gone = true,
            Ok(_) => {}
        }
        None
    }

    fn go_on(&mut self) {
        self.resume(None);
    }

    fn resume(&mut self, signal: Option<Signal>) {
        if self.stopped && ptrace::syscall(self.tid, signal).is_err() {
            self.gone = true;
        }
        self.stopped = false;
    }

    /// Lets the thread go for good.
    fn release(&mut self) {
        if !self.gone && !self.stopped && ptrace::interrupt(self.tid).is_ok() {
            self.wait_stopped();
        }
        if self.stopped {
            let _ = ptrace::detach(self.tid, None);
            self.stopped = false;
        }
        self.gone = true;
    }

    fn wait_stopped(&mut self) {
        let end = Instant::now() + Duration::from_secs(2);
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        while Instant::now() < end {
            match waitpid(self.tid, Some(flags)) {
                Ok(WaitStatus::StillAlive) => std::thread::yield_now(),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => {
                    self.gone = true;
                    return;
                }
                Ok(_) => {
                    self.stopped = true;
                    return;
                }
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.release();
    }
}

/// Waits a moment for a stop of any of the threads. Spins while the guest is held.
fn next_stop(traced: &mut Vec<Traced>, urgent: bool) -> Option<(usize, Stop)> {
    traced.retain(|t| !t.gone);
    for _ in 0..50 {
        for (at, thread) in traced.iter_mut().enumerate() {
            if let Some(stop) = thread.poll() {
                return Some((at, stop));
            }
        }
        if urgent {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
fn call_of(tid: Pid) -> Option<(u64, u64)> {
    ptrace::getregs(tid).ok().map(|r| (r.orig_rax, r.rdi))
}

#[cfg(not(target_arch = "x86_64"))]
fn call_of(_tid: Pid) -> Option<(u64, u64)> {
    None
}
