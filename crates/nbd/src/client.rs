//! One connection to one export.

use std::{
    io,
    os::unix::net::UnixStream,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::{
    Error, Extents, Options, StatusExtent,
    connection::{Connection, Request},
    deadline::{Deadline, prepare},
    negotiate::{Export, Negotiation},
    reply::Expect,
    wire,
};

/// Longest range asked for in one status request, in bytes: 2 GiB, aligned for any disk.
const MAX_STATUS_BYTES: u64 = 1 << 31;

/// Longest range zeroed by one request, in bytes. A server without fast zeros writes it out,
/// which must end before the request's deadline.
const MAX_ZEROES_BYTES: u64 = 128 << 20;

/// Pause before a full backlog of connections is tried again.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// Time for saying goodbye when a client is dropped.
const DROP_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection to an export. Share it by reference; each thread has one request in flight.
/// Dropping it says goodbye to the server without waiting for it.
#[derive(Debug)]
pub struct Client {
    export: Export,
    connection: Connection,
    max_payload: usize,
}

impl Client {
    /// Connects to the socket `path` and opens the export `name`.
    ///
    /// # Errors
    /// If the socket cannot be reached in time, or the server refuses the export.
    pub fn connect_unix(path: &Path, name: &str, options: &Options) -> Result<Self, Error> {
        let deadline = Instant::now() + options.connect_timeout;
        let stream = connect_until(path, deadline).map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::negotiate(stream, name, options, deadline)
    }

    /// Opens the export `name` over a fresh connection.
    ///
    /// # Errors
    /// If the server does not answer in time or refuses the export.
    pub fn from_stream(stream: UnixStream, name: &str, options: &Options) -> Result<Self, Error> {
        let deadline = Instant::now() + options.connect_timeout;
        Self::negotiate(stream, name, options, deadline)
    }

    fn negotiate(
        stream: UnixStream,
        name: &str,
        options: &Options,
        deadline: Instant,
    ) -> Result<Self, Error> {
        prepare(&stream).map_err(Error::Io)?;
        let wire = Deadline::new(&stream, deadline);
        let mut negotiation = Negotiation {
            input: wire,
            output: wire,
        };
        let export = negotiation
            .run(name, &options.contexts)
            .map_err(|error| match error {
                Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => Error::Timeout {
                    after: options.connect_timeout,
                },
                other => other,
            })?;
        let max_payload = export
            .max_payload_bytes
            .min(options.max_payload_bytes.max(512)) as usize;
        let connection = Connection::new(stream, export.structured, options.request_timeout);
        Ok(Self {
            export,
            connection,
            max_payload,
        })
    }

    /// Size of the export, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.export.size_bytes
    }

    /// Whether the server refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.export.flags & wire::FLAG_READ_ONLY != 0
    }

    /// Whether several connections to this export see the same content.
    #[must_use]
    pub fn can_multi_conn(&self) -> bool {
        self.export.flags & wire::FLAG_CAN_MULTI_CONN != 0
    }

    /// Whether the server granted this metadata context.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.context_id(name).is_some()
    }

    /// Fills `buf` from `offset` (bytes). On an error the content of `buf` is undefined.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] past the end, [`Error::Server`] if the server cannot read, others
    /// if the connection fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.check_range(offset, buf.len() as u64)?;
        let mut at = offset;
        for piece in buf.chunks_mut(self.max_payload) {
            let len = piece.len() as u32;
            let request = Request {
                command: wire::COMMAND_READ,
                flags: 0,
                offset: at,
                len_bytes: len,
                payload: &[],
            };
            self.call(
                "read",
                request,
                Expect::Data {
                    offset: at,
                    buf: piece,
                },
            )?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Writes `bytes` at `offset` (bytes). They are durable after [`Client::flush`].
    ///
    /// # Errors
    /// [`Error::NotOffered`] if the export is read-only, otherwise as [`Client::read_at`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_writable()?;
        self.check_range(offset, bytes.len() as u64)?;
        let mut at = offset;
        for piece in bytes.chunks(self.max_payload) {
            let len = piece.len() as u32;
            let request = Request {
                command: wire::COMMAND_WRITE,
                flags: 0,
                offset: at,
                len_bytes: len,
                payload: piece,
            };
            self.call("write", request, Expect::Nothing)?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Makes `len_bytes` at `offset` (bytes) read as zeros; they stay allocated if `allocate`.
    ///
    /// # Errors
    /// As [`Client::write_at`], and [`Error::NotOffered`] if the server has no such command.
    pub fn write_zeroes(&self, offset: u64, len_bytes: u64, allocate: bool) -> Result<(), Error> {
        self.check_writable()?;
        self.check_offered(wire::FLAG_SEND_WRITE_ZEROES, "writing zeros")?;
        self.check_range(offset, len_bytes)?;
        let flags = if allocate {
            wire::COMMAND_FLAG_NO_HOLE
        } else {
            0
        };
        let end = offset + len_bytes;
        let mut at = offset;
        while at < end {
            let len = (end - at).min(MAX_ZEROES_BYTES);
            let request = Request {
                command: wire::COMMAND_WRITE_ZEROES,
                flags,
                offset: at,
                len_bytes: len as u32,
                payload: &[],
            };
            self.call("zeroing", request, Expect::Nothing)?;
            at += len;
        }
        Ok(())
    }

    /// Makes all completed writes durable. Does nothing if the server needs no flush.
    ///
    /// # Errors
    /// [`Error::Server`] if the server cannot, others if the connection fails.
    pub fn flush(&self) -> Result<(), Error> {
        if self.export.flags & wire::FLAG_SEND_FLUSH == 0 {
            return Ok(());
        }
        let request = Request {
            command: wire::COMMAND_FLUSH,
            flags: 0,
            offset: 0,
            len_bytes: 0,
            payload: &[],
        };
        self.call("flush", request, Expect::Nothing).map(drop)
    }

    /// The status of a range in one request: extents without a gap from `offset` (bytes), at
    /// least one. The server may answer for less than `len_bytes`; [`Client::extents`] goes on.
    /// Empty only if `len_bytes` is 0.
    ///
    /// # Errors
    /// [`Error::NotOffered`] if the server did not grant `context`, otherwise as
    /// [`Client::read_at`].
    pub fn block_status(
        &self,
        context: &str,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Vec<StatusExtent>, Error> {
        let id = self.context_id(context);
        let id = id.ok_or_else(|| Error::NotOffered {
            what: context.to_owned(),
        })?;
        self.check_range(offset, len_bytes)?;
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        let len_bytes = len_bytes.min(MAX_STATUS_BYTES);
        let request = Request {
            command: wire::COMMAND_BLOCK_STATUS,
            flags: 0,
            offset,
            len_bytes: len_bytes as u32,
            payload: &[],
        };
        self.call("block status", request, Expect::Status { id, len_bytes })
    }

    /// Walks over the status of the whole range, with as many requests as it takes.
    #[must_use]
    pub fn extents<'a>(&'a self, context: &'a str, offset: u64, len_bytes: u64) -> Extents<'a> {
        Extents::new(self, context, offset, len_bytes)
    }

    /// Says goodbye and waits until the server has closed the connection. Flush before.
    ///
    /// # Errors
    /// If the connection fails, or the server does not close it in time.
    pub fn disconnect(self) -> Result<(), Error> {
        self.connection.disconnect()
    }

    fn call(
        &self,
        command: &'static str,
        request: Request<'_>,
        expect: Expect<'_>,
    ) -> Result<Vec<StatusExtent>, Error> {
        let (offset, len_bytes) = (request.offset, u64::from(request.len_bytes));
        self.connection.call(request, expect)?.map_err(|failure| {
            let (code, message) = (failure.code, failure.message);
            Error::Server {
                command,
                offset,
                len_bytes,
                code,
                message,
            }
        })
    }

    fn context_id(&self, name: &str) -> Option<u32> {
        let found = self
            .export
            .contexts
            .iter()
            .find(|(_, granted)| granted == name);
        found.map(|(id, _)| *id)
    }

    fn check_range(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let size_bytes = self.export.size_bytes;
        match offset.checked_add(len_bytes) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(Error::OutOfRange {
                offset,
                len_bytes,
                size_bytes,
            }),
        }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.is_read_only() {
            return Err(Error::NotOffered {
                what: "writing".into(),
            });
        }
        Ok(())
    }

    fn check_offered(&self, flag: u16, what: &str) -> Result<(), Error> {
        if self.export.flags & flag == 0 {
            return Err(Error::NotOffered { what: what.into() });
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The socket is closed anyway; a goodbye spares the server a warning.
        let _ = self.connection.goodbye(Instant::now() + DROP_TIMEOUT);
    }
}

/// A connect of a unix socket blocks, without a timeout, while the backlog is full: so it is
/// tried without blocking until the deadline.
fn connect_until(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::AGAIN) if Instant::now() >= deadline => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(Errno::AGAIN) => sleep(CONNECT_RETRY),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
