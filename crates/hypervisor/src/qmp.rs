//! QMP client: one connection to a QEMU monitor socket, blocking, with pipelining and fd passing.
//!
//! Blocking on purpose: inside the pause every context switch counts, and one thread that writes
//! and reads a socket has none to spare. A monitor serves one client at a time, so a connection
//! that gets no greeting is told apart from one that is refused ([`QmpError::Busy`],
//! [`QmpError::Gone`]).
//!
//! Replies are matched by `id`; a reply with a foreign id belongs to the pause guard, which shares
//! this socket, and is dropped. Events are kept in order with QEMU's own time stamps.

pub mod relay;

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, sockopt,
};
use serde_json::{Value, json};

/// Longest line accepted from QEMU, bytes. `query-qmp-schema` is under 1 MiB.
const MAX_LINE_BYTES: usize = 32 << 20;
/// Most events kept when nobody takes them; older ones are dropped.
const MAX_EVENTS: usize = 4096;
/// How long a relay may take to greet: a libvirtd that was just started answers late.
const RELAY_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a command may take unless the caller says otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why talking to QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nothing listens on the socket: the guest's process is gone.
    #[error("no QEMU answers on {path}: the guest's process is gone, or the path is wrong")]
    Gone {
        /// The socket.
        path: PathBuf,
    },
    /// Something listens, but gives no greeting.
    #[error(
        "the QMP socket {path} is busy: another client is connected to it (a monitor serves one at \
         a time); close that client, or give QEMU a second -qmp socket for vmtwin"
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// Who passes commands on to QEMU cannot reach it.
    #[error("cannot reach {path}: {reason}")]
    Relay {
        /// The address.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {message}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        message: String,
    },
    /// No reply in time.
    #[error("QEMU did not answer {command} within {timeout_ms} ms")]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        timeout_ms: u64,
    },
    /// QEMU closed the connection.
    #[error("QEMU closed the QMP connection: the guest's process ended")]
    Closed,
    /// QEMU sent something that is not QMP.
    #[error("unexpected data on the QMP socket: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error("the QMP socket failed")]
    Io(#[from] std::io::Error),
}

impl QmpError {
    /// The guest's process is not there (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, QmpError::Gone { .. } | QmpError::Closed)
    }
}

/// An event as QEMU sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `STOP`, `RESUME`, `MIGRATION`…
    pub name: String,
    /// Its data, or null.
    pub data: Value,
    /// QEMU's time stamp, microseconds since the epoch.
    pub time_us: u64,
}

/// A command to send.
#[derive(Debug, Clone)]
pub struct Command {
    name: String,
    arguments: Value,
}

impl Command {
    /// `name` with `arguments` (an object, or null for none).
    pub fn new(name: impl Into<String>, arguments: Value) -> Self {
        Command {
            name: name.into(),
            arguments,
        }
    }
}

/// A command that was sent and whose reply is still to come.
#[derive(Debug)]
pub struct Pending {
    id: u64,
    name: String,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    buffer: Vec<u8>,
    scanned: usize,
    events: VecDeque<Event>,
    replies: VecDeque<(u64, Value)>,
    next_id: u64,
    peer: Peer,
    relayed: bool,
}

/// The process at the other end of a monitor socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
}

impl Qmp {
    /// Connects and negotiates. `timeout` bounds the wait for a greeting.
    ///
    /// # Errors
    /// [`QmpError::Gone`] where nothing listens, [`QmpError::Busy`] where no greeting comes.
    /// Through a relay it is [`QmpError::Relay`] where that cannot reach it.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Qmp, QmpError> {
        if let Some(stream) = relay::start(path) {
            return Qmp::through_relay(stream?, path);
        }
        let stream = connect_socket(path, timeout)?;
        let credentials = sockopt::socket_peercred(&stream).map_err(std::io::Error::from)?;
        let peer = Peer {
            pid: credentials.pid.as_raw_nonzero().get().unsigned_abs(),
            uid: credentials.uid.as_raw(),
        };
        let mut qmp = Qmp::over(stream, path, peer, false);
        qmp.greet(timeout)?;
        Ok(qmp)
    }

    fn over(stream: UnixStream, path: &Path, peer: Peer, relayed: bool) -> Qmp {
        Qmp {
            stream,
            path: path.to_owned(),
            buffer: Vec::new(),
            scanned: 0,
            events: VecDeque::new(),
            replies: VecDeque::new(),
            next_id: 1,
            peer,
            relayed,
        }
    }

    /// A relay tells who is at the other end, and bounds by itself how long it tries to reach it.
    fn through_relay(stream: UnixStream, path: &Path) -> Result<Qmp, QmpError> {
        let nobody = Peer { pid: 0, uid: 0 };
        let mut qmp = Qmp::over(stream, path, nobody, true);
        let greeting = qmp.read_message(Instant::now() + RELAY_TIMEOUT)?;
        let greeting = greeting.ok_or_else(|| QmpError::Relay {
            path: path.to_owned(),
            reason: format!("no answer within {} s", RELAY_TIMEOUT.as_secs()),
        })?;
        qmp.peer = relay::peer(&greeting, path)?;
        Ok(qmp)
    }

    /// Whether somebody else passes commands on: QEMU runs as another user perhaps, in namespaces
    /// of its own, and takes files from us by descriptor only.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }

    /// Connects to a QEMU that has just been started: it makes the socket's name an instant before
    /// it listens. Goes on while `alive` says that its process is there.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn connect_to_new(
        path: &Path,
        timeout: Duration,
        alive: &dyn Fn() -> bool,
    ) -> Result<Qmp, QmpError> {
        let begun = Instant::now();
        loop {
            match Qmp::connect(path, timeout) {
                Err(QmpError::Gone { .. }) if alive() && begun.elapsed() < timeout => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }

    fn greet(&mut self, timeout: Duration) -> Result<(), QmpError> {
        let deadline = Instant::now() + timeout;
        match self.read_message(deadline) {
            Ok(Some(message)) if message.get("QMP").is_some() => {}
            Ok(Some(_)) => return Err(QmpError::Protocol("no QMP greeting".into())),
            Ok(None) => {
                return Err(QmpError::Busy {
                    path: self.path.clone(),
                });
            }
            Err(QmpError::Closed) => {
                return Err(QmpError::Gone {
                    path: self.path.clone(),
                });
            }
            Err(other) => return Err(other),
        }
        self.execute("qmp_capabilities", Value::Null)?;
        Ok(())
    }

    /// The process at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket itself, for the pause guard to share.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Runs one command and waits for its reply.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn execute(&mut self, name: &str, arguments: Value) -> Result<Value, QmpError> {
        let pending = self.send(&[Command::new(name, arguments)])?;
        self.reply(&pending[0], COMMAND_TIMEOUT)
    }

    /// Runs one command that hands `fd` over to QEMU.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn execute_with_fd(
        &mut self,
        name: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        let (line, pending) = self.encode(&Command::new(name, arguments));
        let fds = [fd];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let slices = [IoSlice::new(&line)];
        let sent = rustix::net::sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL)
            .map_err(std::io::Error::from)?;
        if sent != line.len() {
            return Err(QmpError::Protocol(
                "short write of a command with an fd".into(),
            ));
        }
        self.reply(&pending, COMMAND_TIMEOUT)
    }

    /// Sends commands in one write, without waiting.
    ///
    /// # Errors
    /// [`QmpError::Io`], [`QmpError::Closed`].
    pub fn send(&mut self, commands: &[Command]) -> Result<Vec<Pending>, QmpError> {
        let mut lines = Vec::new();
        let mut pending = Vec::with_capacity(commands.len());
        for command in commands {
            let (line, one) = self.encode(command);
            lines.extend_from_slice(&line);
            pending.push(one);
        }
        self.write_all(&lines)?;
        Ok(pending)
    }

    fn encode(&mut self, command: &Command) -> (Vec<u8>, Pending) {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({"execute": command.name, "id": id});
        if !command.arguments.is_null() {
            message["arguments"] = command.arguments.clone();
        }
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        (
            line,
            Pending {
                id,
                name: command.name.clone(),
            },
        )
    }

    /// Waits for the reply to one command.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn reply(&mut self, pending: &Pending, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        match self.reply_by(pending, deadline)? {
            Some(value) => Ok(value),
            None => Err(QmpError::Timeout {
                command: pending.name.clone(),
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// As [`Qmp::reply`], but `None` when the deadline passes: the reply may still come.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn reply_by(
        &mut self,
        pending: &Pending,
        deadline: Instant,
    ) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(at) = self.replies.iter().position(|(id, _)| *id == pending.id) {
                let (_, message) = self.replies.remove(at).unwrap_or((0, Value::Null));
                return unwrap_reply(message, &pending.name).map(Some);
            }
            if !self.pump(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Whether replies to all of `pending` have come, reading until `deadline` at most. The replies
    /// stay to be taken by [`Qmp::reply`].
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn all_answered(
        &mut self,
        pending: &[Pending],
        deadline: Instant,
    ) -> Result<bool, QmpError> {
        loop {
            if pending
                .iter()
                .all(|p| self.replies.iter().any(|(id, _)| *id == p.id))
            {
                return Ok(true);
            }
            if !self.pump(deadline)? {
                return Ok(false);
            }
        }
    }

    /// Takes the events seen so far, reading what is there without waiting.
    ///
    /// # Errors
    /// See [`QmpError`]; not before the last words of a QEMU that ended were taken.
    pub fn take_events(&mut self) -> Result<Vec<Event>, QmpError> {
        loop {
            match self.pump(Instant::now()) {
                Ok(true) => {}
                Err(error) if self.events.is_empty() => return Err(error),
                Ok(false) | Err(_) => return Ok(self.events.drain(..).collect()),
            }
        }
    }

    /// Waits for an event that `wanted` accepts; events before it are dropped.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn wait_event(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Option<Event>, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Ok(Some(event));
                }
            }
            if !self.pump(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Reads one message, if one comes before the deadline, and files it.
    fn pump(&mut self, deadline: Instant) -> Result<bool, QmpError> {
        let Some(message) = self.read_message(deadline)? else {
            return Ok(false);
        };
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            if self.events.len() == MAX_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event {
                name: name.to_owned(),
                data: message.get("data").cloned().unwrap_or(Value::Null),
                time_us: event_time_us(&message),
            });
        } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
            self.replies.push_back((id, message));
        }
        Ok(true)
    }

    /// One JSON line; `None` when the deadline passes first.
    fn read_message(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let end = self.scanned + end;
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                self.scanned = 0;
                return match serde_json::from_slice(&line) {
                    Ok(value) => Ok(Some(value)),
                    Err(error) => Err(QmpError::Protocol(format!("not JSON: {error}"))),
                };
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(QmpError::Protocol("a message longer than 32 MiB".into()));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<bool, QmpError> {
        let mut chunk = [0u8; 16384];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(self.stream.as_fd(), left)? {
                return Ok(false);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::net::send(&self.stream, &bytes[done..], SendFlags::NOSIGNAL) {
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(QmpError::Closed);
                }
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
        Ok(())
    }
}

/// Whether `fd` has something to read (or is closed) within `timeout`.
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> std::io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn connect_socket(path: &Path, timeout: Duration) -> Result<UnixStream, QmpError> {
    let gone = || QmpError::Gone {
        path: path.to_owned(),
    };
    let address = SocketAddrUnix::new(path).map_err(|_| gone())?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(std::io::Error::from)?;
    // A full backlog would block connect() for ever; the send timeout bounds it.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))
        .map_err(std::io::Error::from)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Err(gone()),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INPROGRESS) => {
            return Err(QmpError::Busy {
                path: path.to_owned(),
            });
        }
        Err(errno) => return Err(std::io::Error::from(errno).into()),
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(COMMAND_TIMEOUT))
        .map_err(std::io::Error::from)?;
    Ok(UnixStream::from(socket))
}

fn unwrap_reply(message: Value, command: &str) -> Result<Value, QmpError> {
    if let Some(error) = message.get("error") {
        let text = |key: &str| {
            error
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned()
        };
        return Err(QmpError::Refused {
            command: command.to_owned(),
            class: text("class"),
            message: text("desc"),
        });
    }
    Ok(message.get("return").cloned().unwrap_or(Value::Null))
}

fn event_time_us(message: &Value) -> u64 {
    let part = |key: &str| message["timestamp"][key].as_u64().unwrap_or(0);
    part("seconds")
        .saturating_mul(1_000_000)
        .saturating_add(part("microseconds"))
}

#[cfg(test)]
mod tests;
