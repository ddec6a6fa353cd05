//! Replies: their headers, and what a request makes of the chunks that follow.

use std::io::Read;

use crate::{Error, StatusExtent, coverage::Coverage, wire};

/// Most chunks of one reply: one for each 512 bytes of the largest read.
const MAX_CHUNKS: u32 = wire::MAX_PAYLOAD / 512;

/// Most extents of one status chunk; QEMU sends up to 128 Ki.
const MAX_EXTENTS: u32 = 1 << 20;

/// Which request a reply is for, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) cookie: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The whole reply, unless it is a read without structured replies: then data follows.
    Simple { code: u32 },
    /// A part of a structured reply, with a payload of `len` bytes.
    Chunk { done: bool, kind: u16, len: u32 },
}

/// Reads the header of any reply.
pub(crate) fn read_header(input: &mut dyn Read) -> Result<Header, Error> {
    let mut bytes = [0; 16];
    read(input, &mut bytes)?;
    let [a, b, c, d, rest @ ..] = bytes;
    let [e, f, g, h, cookie @ ..] = rest;
    let cookie = u64::from_be_bytes(cookie);
    match u32::from_be_bytes([a, b, c, d]) {
        wire::SIMPLE_REPLY_MAGIC => Ok(Header {
            cookie,
            kind: Kind::Simple {
                code: u32::from_be_bytes([e, f, g, h]),
            },
        }),
        wire::CHUNK_MAGIC => {
            let done = u16::from_be_bytes([e, f]) & wire::CHUNK_FLAG_DONE != 0;
            let kind = u16::from_be_bytes([g, h]);
            let len = u32::from_be_bytes(take(input)?);
            Ok(Header {
                cookie,
                kind: Kind::Chunk { done, kind, len },
            })
        }
        _ => Err(Error::protocol("wrong magic in a reply")),
    }
}

/// What the reply of a request is to bring.
#[derive(Debug)]
pub(crate) enum Expect<'a> {
    /// Success or an error.
    Nothing,
    /// Bytes from `offset`, straight into `buf`.
    Data {
        /// First byte of the request.
        offset: u64,
        /// As long as the request.
        buf: &'a mut [u8],
    },
    /// Extents of one context.
    Status {
        /// The context.
        id: u32,
        /// Length of the request, in bytes.
        len_bytes: u64,
    },
}

/// An error that the server reported for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u32,
    pub(crate) message: String,
}

/// Takes the chunks of one reply.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    expect: Expect<'a>,
    structured: bool,
    chunks: u32,
    covered: Coverage,
    extents: Option<Vec<StatusExtent>>,
    failure: Option<Failure>,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(expect: Expect<'a>, structured: bool) -> Self {
        Self {
            expect,
            structured,
            chunks: 0,
            covered: Coverage::default(),
            extents: None,
            failure: None,
        }
    }

    /// Takes what follows `header`. Returns whether the reply is complete.
    pub(crate) fn accept(&mut self, header: Header, input: &mut dyn Read) -> Result<bool, Error> {
        match header.kind {
            Kind::Simple { code } => self.simple(code, input).map(|()| true),
            Kind::Chunk { .. } if !self.structured => Err(Error::protocol(
                "a structured reply that was not negotiated",
            )),
            Kind::Chunk { done, kind, len } => {
                self.chunks += 1;
                if self.chunks > MAX_CHUNKS {
                    return Err(Error::protocol("endless chunks of a reply"));
                }
                self.chunk(done, kind, len, input)?;
                Ok(done)
            }
        }
    }

    /// The extents, if extents were asked for, or what failed. Call it on a complete reply.
    pub(crate) fn finish(self) -> Result<Result<Vec<StatusExtent>, Failure>, Error> {
        if let Some(failure) = self.failure {
            return Ok(Err(failure));
        }
        match self.expect {
            Expect::Data { buf, .. } if !self.covered.is_complete(buf.len()) => {
                Err(Error::protocol("a read with missing parts"))
            }
            Expect::Status { .. } => match self.extents {
                Some(extents) => Ok(Ok(extents)),
                None => Err(Error::protocol("a status without the context asked for")),
            },
            _ => Ok(Ok(Vec::new())),
        }
    }

    fn simple(&mut self, code: u32, input: &mut dyn Read) -> Result<(), Error> {
        if self.chunks > 0 {
            return Err(Error::protocol("a simple reply among chunks"));
        }
        match &mut self.expect {
            _ if code != 0 => {
                self.failure = Some(Failure {
                    code,
                    message: String::new(),
                })
            }
            Expect::Nothing => {}
            Expect::Data { buf, .. } if !self.structured => {
                read(input, buf)?;
                self.covered.add(0, buf.len())?;
            }
            _ => return Err(Error::protocol("a simple reply where data is due")),
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        done: bool,
        kind: u16,
        len: u32,
        input: &mut dyn Read,
    ) -> Result<(), Error> {
        match (kind, &self.expect) {
            (wire::CHUNK_NONE, _) if len == 0 && done => Ok(()),
            (wire::CHUNK_OFFSET_DATA, Expect::Data { .. }) => self.data(len, input),
            (wire::CHUNK_OFFSET_HOLE, Expect::Data { .. }) => self.hole(len, input),
            (wire::CHUNK_BLOCK_STATUS, Expect::Status { .. }) => self.status(len, input),
            (wire::CHUNK_ERROR, _) => self.error(len, false, input),
            (wire::CHUNK_ERROR_OFFSET, _) => self.error(len, true, input),
            _ => Err(Error::protocol("a chunk that does not fit the request")),
        }
    }

    fn data(&mut self, len: u32, input: &mut dyn Read) -> Result<(), Error> {
        let len = len
            .checked_sub(8)
            .ok_or(Error::protocol("a short chunk of data"))?;
        let at = u64::from_be_bytes(take(input)?);
        let target = self.part(at, len)?;
        read(input, target)
    }

    fn hole(&mut self, len: u32, input: &mut dyn Read) -> Result<(), Error> {
        if len != 12 {
            return Err(Error::protocol("a hole of wrong form"));
        }
        let at = u64::from_be_bytes(take(input)?);
        let hole_len = u32::from_be_bytes(take(input)?);
        self.part(at, hole_len)?.fill(0);
        Ok(())
    }

    /// The part of the caller's buffer for `len` bytes at `at` of the export.
    fn part(&mut self, at: u64, len: u32) -> Result<&mut [u8], Error> {
        let outside = Error::Protocol {
            what: "a chunk outside of the request",
        };
        let Expect::Data { offset, buf } = &mut self.expect else {
            return Err(outside);
        };
        let start = at
            .checked_sub(*offset)
            .and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len as usize)?));
        match range {
            Some(range) if range.end <= buf.len() && !range.is_empty() => {
                self.covered.add(range.start, range.end)?;
                Ok(&mut buf[range])
            }
            _ => Err(outside),
        }
    }

    /// `context id, (length, flags)…`. Contexts that were not asked for by this call are read
    /// and dropped.
    fn status(&mut self, len: u32, input: &mut dyn Read) -> Result<(), Error> {
        let Expect::Status { id, len_bytes } = self.expect else {
            return Err(Error::protocol("a status that was not asked for"));
        };
        let extents_len = len.checked_sub(4).filter(|len| *len > 0 && len % 8 == 0);
        let count = extents_len.ok_or(Error::protocol("a status of wrong form"))? / 8;
        if count > MAX_EXTENTS {
            return Err(Error::protocol("too many extents"));
        }
        let found = u32::from_be_bytes(take(input)?);
        if found != id {
            return discard(input, u64::from(count) * 8);
        }
        if self.extents.is_some() {
            return Err(Error::protocol("two statuses of one context"));
        }
        self.extents = Some(read_extents(count, len_bytes, input)?);
        Ok(())
    }

    /// `code, length of message, message[, offset]`. The first error is kept.
    fn error(&mut self, len: u32, with_offset: bool, input: &mut dyn Read) -> Result<(), Error> {
        let fixed = if with_offset { 14 } else { 6 };
        let room = len
            .checked_sub(fixed)
            .ok_or(Error::protocol("a short error"))?;
        let code = u32::from_be_bytes(take(input)?);
        let message_len = u16::from_be_bytes(take(input)?);
        if u32::from(message_len) > wire::MAX_STRING || u32::from(message_len) != room {
            return Err(Error::protocol("an error with an overlong message"));
        }
        if code == 0 {
            return Err(Error::protocol("an error without a code"));
        }
        let mut message = vec![0; usize::from(message_len)];
        read(input, &mut message)?;
        if with_offset {
            take::<8>(input)?;
        }
        let message = String::from_utf8_lossy(&message).into_owned();
        self.failure.get_or_insert(Failure { code, message });
        Ok(())
    }
}

/// Reads extents and cuts them at the end of the request: only the last may pass it.
fn read_extents(
    count: u32,
    len_bytes: u64,
    input: &mut dyn Read,
) -> Result<Vec<StatusExtent>, Error> {
    let mut bytes = vec![0; count as usize * 8];
    read(input, &mut bytes)?;
    let mut extents: Vec<StatusExtent> = Vec::new();
    let mut left = len_bytes;
    for pair in bytes.chunks_exact(8) {
        let [a, b, c, d, flags @ ..] = *pair.first_chunk::<8>().unwrap_or(&[0; 8]);
        let len = u64::from(u32::from_be_bytes([a, b, c, d]));
        let flags = u32::from_be_bytes(flags);
        if len == 0 || left == 0 {
            return Err(Error::protocol(
                "an extent of no length, or past the request",
            ));
        }
        let len = len.min(left);
        left -= len;
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.len_bytes += len,
            _ => extents.push(StatusExtent {
                len_bytes: len,
                flags,
            }),
        }
    }
    Ok(extents)
}

fn discard(input: &mut dyn Read, len: u64) -> Result<(), Error> {
    let mut left = len;
    let mut scratch = [0; 4096];
    while left > 0 {
        let piece = left.min(scratch.len() as u64);
        read(input, &mut scratch[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

fn take<const N: usize>(input: &mut dyn Read) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    read(input, &mut bytes)?;
    Ok(bytes)
}

fn read(input: &mut dyn Read, buf: &mut [u8]) -> Result<(), Error> {
    input.read_exact(buf).map_err(Error::Io)
}
