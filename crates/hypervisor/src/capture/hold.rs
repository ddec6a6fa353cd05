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

use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::priority;
use crate::qmp::{Command, Pending, Qmp, QmpError};

/// Longest preparation waited for. 1 TiB at 150 ns a page takes 40 s.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time the thread is held for QEMU's main thread to stop the guest.
const HOLD_LIMIT: Duration = Duration::from_millis(250);
/// Longest wait at one system call for the replies to commands that were sent in one write.
const ANSWER_LIMIT: Duration = Duration::from_millis(40);
/// Longest wait for QEMU's main thread to queue for the lock: under half a millisecond unless the
/// host is busy. Without it in the queue the thread would take the lock back at once.
const QUEUE_LIMIT: Duration = Duration::from_millis(50);
/// Longest wait for the thread after `migrate` was sent.
const BIRTH_LIMIT: Duration = Duration::from_secs(2);

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

/// Catches the threads that QEMU's main thread makes, at their birth: each begins stopped, so that
/// none gets away before it is traced.
pub(crate) struct Births {
    /// The main thread; `None` where tracing it is not permitted.
    main: Option<Traced>,
}

impl Births {
    /// Begins to watch. QEMU runs on.
    pub(crate) fn watch(pid: u32) -> Births {
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
        let main = i32::try_from(pid).map(Pid::from_raw).ok();
        let main = main.filter(|tid| ptrace::seize(*tid, options).is_ok());
        Births {
            main: main.map(Traced::new),
        }
    }

    /// Waits for the first birth, then lets the main thread go. `None` where it is not permitted.
    fn collect(&mut self, received: &dyn Fn() -> u64) -> Option<Vec<Traced>> {
        let mut main = self.main.take()?;
        let deadline = Instant::now() + BIRTH_LIMIT;
        let mut born = Vec::new();
        while born.is_empty() && !main.gone && Instant::now() < deadline && received() == 0 {
            match main.poll_birth() {
                Some(tid) => born.push(Traced::new(tid)),
                None => std::thread::yield_now(),
            }
        }
        main.release();
        Some(born)
    }
}

/// Watches a snapshot that was just begun.
pub(crate) struct Watch<'a> {
    /// QEMU's process id.
    pub(crate) pid: u32,
    /// The watch over new threads, begun before `migrate` was sent.
    pub(crate) births: Births,
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
        mut self,
        qmp: &mut Qmp,
        commands: &[Command],
    ) -> Result<Outcome, QmpError> {
        let Some(mut traced) = self.births.collect(self.received) else {
            return Ok(Outcome::NotPermitted);
        };
        if traced.is_empty() {
            return Ok(Outcome::Missed);
        }
        // Dropped, and so let go, whatever the outcome.
        self.follow(qmp, commands, &mut traced)
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
                let passed = sent.is_none() && (self.received)() > 0;
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
                tracing::debug!("boundary");
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
                    priority::yield_to_guest(traced[at].tid.as_raw());
                    return self.late_or_done(qmp, sent.take().unwrap_or_default());
                }
            }
            traced[at].go_on();
        }
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
    // Through a relay every command takes a round trip of its own.
    let slice = if qmp.is_relayed() {
        HOLD_LIMIT
    } else {
        ANSWER_LIMIT
    };
    let slice = Instant::now() + slice;
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
    fn new(tid: Pid) -> Traced {
        Traced {
            tid,
            stopped: false,
            gone: false,
            inside_call: false,
            in_setup: false,
        }
    }

    /// A thread that this one has just made, if it has. Runs on otherwise, not stopping at calls.
    fn poll_birth(&mut self) -> Option<Pid> {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        let signal = match waitpid(self.tid, Some(flags)) {
            Ok(WaitStatus::PtraceEvent(_, _, event))
                if event == ptrace::Event::PTRACE_EVENT_CLONE as i32 =>
            {
                self.stopped = true;
                let tid = ptrace::getevent(self.tid)
                    .ok()
                    .and_then(|t| i32::try_from(t).ok());
                return tid.map(Pid::from_raw);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => {
                self.gone = true;
                return None;
            }
            Ok(_) => None,
        };
        let _ = ptrace::cont(self.tid, signal);
        None
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
