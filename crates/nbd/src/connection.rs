//! One connection shared by threads: a lock for sending, and turns for receiving.
//!
//! There is no thread of our own. Threads that wait for replies take turns as the one that
//! reads the socket. It reads headers; the payload of its own reply goes straight into its
//! caller's buffer, and a header for another thread is handed to that thread, together with
//! the turn, before the payload is read. So data is never copied between threads.
//!
//! ```text
//!            ┌────────── header for me: read payload ◄──┐
//!            ▼                                          │
//! waiting ─► reading ── reply complete: pass turn on ─► done
//!    ▲       │
//!    └───────┘ header for another: hand it over with the turn
//! ```
//!
//! The turn is only ever passed to a thread that waits; one that is still sending takes it
//! when it comes to wait. Otherwise a server that stops reading until its replies are taken
//! would block everybody.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    Error, StatusExtent,
    deadline::Deadline,
    reply::{Collector, Expect, Failure, Header, read_header},
    wire,
};

/// One request, as it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) len_bytes: u32,
    pub(crate) payload: &'a [u8],
}

impl Request<'_> {
    fn header(&self, cookie: u64) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[0..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len_bytes.to_be_bytes());
        bytes
    }
}

/// The transmission phase of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    structured: bool,
    timeout: Duration,
    next_cookie: AtomicU64,
    sending: Mutex<()>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Requests without a complete reply.
    waiters: HashMap<u64, Waiter>,
    /// A header that was read by another thread than the one it is for.
    arrived: Option<Header>,
    /// Whether a thread has the turn.
    reading: bool,
    /// The first error; the connection is not used any more.
    closed: Option<String>,
}

#[derive(Debug)]
struct Waiter {
    bell: Arc<Condvar>,
    waiting: bool,
}

/// How a turn ended.
enum Turn {
    Complete,
    HandedOver,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, structured: bool, timeout: Duration) -> Self {
        Self {
            stream,
            structured,
            timeout,
            next_cookie: AtomicU64::new(1),
            sending: Mutex::new(()),
            inbox: Mutex::default(),
        }
    }

    /// Sends a request and waits for the whole of its reply. Any error but the server's own
    /// closes the connection.
    pub(crate) fn call(
        &self,
        request: Request<'_>,
        expect: Expect<'_>,
    ) -> Result<Result<Vec<StatusExtent>, Failure>, Error> {
        let deadline = Instant::now() + self.timeout;
        let cookie = self.next_cookie.fetch_add(1, Ordering::Relaxed);
        let bell = self.register(cookie)?;
        let mut collector = Collector::new(expect, self.structured);
        self.send(request, cookie, deadline)
            .and_then(|()| self.receive(cookie, &bell, deadline, &mut collector))
            .and_then(|()| collector.finish())
            .map_err(|error| self.close(error))
    }

    /// Says goodbye and waits until the server has closed, too.
    pub(crate) fn disconnect(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        self.goodbye(deadline)?;
        let mut input = Deadline::new(&self.stream, deadline);
        let end = io::copy(&mut input, &mut io::sink())
            .map(|_| ())
            .map_err(Error::Io);
        end.map_err(|error| self.close(error))
    }

    /// Says goodbye without waiting for the server.
    pub(crate) fn goodbye(&self, deadline: Instant) -> Result<(), Error> {
        let bye = Request {
            command: wire::COMMAND_DISCONNECT,
            flags: 0,
            offset: 0,
            len_bytes: 0,
            payload: &[],
        };
        self.send(bye, 0, deadline)
            .map_err(|error| self.close(error))?;
        self.stream.shutdown(Shutdown::Write).map_err(Error::Io)
    }

    fn register(&self, cookie: u64) -> Result<Arc<Condvar>, Error> {
        let mut inbox = self.inbox();
        inbox.check_open()?;
        let bell = Arc::new(Condvar::new());
        inbox.waiters.insert(
            cookie,
            Waiter {
                bell: Arc::clone(&bell),
                waiting: false,
            },
        );
        Ok(bell)
    }

    fn send(&self, request: Request<'_>, cookie: u64, deadline: Instant) -> Result<(), Error> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.inbox().check_open()?;
        let mut output = Deadline::new(&self.stream, deadline);
        output
            .write_all(&request.header(cookie))
            .map_err(Error::Io)?;
        output.write_all(request.payload).map_err(Error::Io)
    }

    fn receive(
        &self,
        cookie: u64,
        bell: &Condvar,
        deadline: Instant,
        collector: &mut Collector<'_>,
    ) -> Result<(), Error> {
        loop {
            let header = self.wait_for_turn(cookie, bell, deadline)?;
            match self.take_turn(cookie, header, deadline, collector)? {
                Turn::Complete => return Ok(()),
                Turn::HandedOver => {}
            }
        }
    }

    /// Waits until this thread may read. Returns the header, if it was read for us.
    fn wait_for_turn(
        &self,
        cookie: u64,
        bell: &Condvar,
        deadline: Instant,
    ) -> Result<Option<Header>, Error> {
        let mut inbox = self.inbox();
        loop {
            inbox.check_open()?;
            if !inbox.reading && inbox.arrived.is_none_or(|header| header.cookie == cookie) {
                inbox.set_waiting(cookie, false);
                inbox.reading = true;
                return Ok(inbox.arrived.take());
            }
            inbox.set_waiting(cookie, true);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Io(io::ErrorKind::TimedOut.into()));
            }
            inbox = bell
                .wait_timeout(inbox, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn take_turn(
        &self,
        cookie: u64,
        mut header: Option<Header>,
        deadline: Instant,
        collector: &mut Collector<'_>,
    ) -> Result<Turn, Error> {
        let mut input = Deadline::new(&self.stream, deadline);
        loop {
            let header = match header.take() {
                Some(header) => header,
                None => read_header(&mut input)?,
            };
            if header.cookie != cookie {
                self.inbox().hand_over(header)?;
                return Ok(Turn::HandedOver);
            }
            if collector.accept(header, &mut input)? {
                self.inbox().pass_on(cookie);
                return Ok(Turn::Complete);
            }
        }
    }

    /// Gives the connection up. The first to do so keeps its error; others learn the reason.
    fn close(&self, error: Error) -> Error {
        let error = match error {
            Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => Error::Timeout {
                after: self.timeout,
            },
            other => other,
        };
        let mut inbox = self.inbox();
        if let Err(closed) = inbox.check_open() {
            return closed;
        }
        inbox.closed = Some(error.to_string());
        for waiter in inbox.waiters.drain() {
            waiter.1.bell.notify_one();
        }
        // Wakes the thread that reads and the one that writes; fails only if it is closed.
        let _ = self.stream.shutdown(Shutdown::Both);
        error
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn check_open(&self) -> Result<(), Error> {
        match &self.closed {
            Some(reason) => Err(Error::Closed {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    fn set_waiting(&mut self, cookie: u64, waiting: bool) {
        if let Some(waiter) = self.waiters.get_mut(&cookie) {
            waiter.waiting = waiting;
        }
    }

    fn hand_over(&mut self, header: Header) -> Result<(), Error> {
        let unknown = Error::Protocol {
            what: "a reply to a request that was not sent",
        };
        let waiter = self.waiters.get(&header.cookie).ok_or(unknown)?;
        self.arrived = Some(header);
        self.reading = false;
        waiter.bell.notify_one();
        Ok(())
    }

    fn pass_on(&mut self, cookie: u64) {
        self.waiters.remove(&cookie);
        self.reading = false;
        if let Some(next) = self.waiters.values().find(|waiter| waiter.waiting) {
            next.bell.notify_one();
        }
    }
}
