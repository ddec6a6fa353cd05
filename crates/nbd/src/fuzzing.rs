//! The parsers alone, over bytes instead of a socket. For fuzzing only; no stable interface.

use std::io;
use std::sync::Arc;

use crate::server::{Answerer, Gate, handshake::Handshake, request::Request};
use crate::{
    Error, ServedExport, ServedExtent, ServedImage,
    negotiate::Negotiation,
    reply::{Collector, Expect, read_header},
};

/// Takes `bytes` as everything that a server says in the handshake.
///
/// # Errors
/// Nearly always.
pub fn handshake(bytes: &[u8]) -> Result<(), Error> {
    let contexts = [
        "base:allocation".to_owned(),
        "qemu:dirty-bitmap:b".to_owned(),
    ];
    Negotiation {
        input: bytes,
        output: io::sink(),
    }
    .run("disk", &contexts)
    .map(drop)
}

/// Takes `bytes` as the reply to a request, which the first three bytes choose.
///
/// # Errors
/// Nearly always.
pub fn reply(bytes: &[u8]) -> Result<(), Error> {
    let Some(([kind, high, low], mut input)) = bytes.split_first_chunk() else {
        return Ok(());
    };
    let len = u16::from_be_bytes([*high, *low]);
    let mut buf = vec![0; usize::from(len)];
    let expect = match kind >> 1 & 3 {
        0 => Expect::Data {
            offset: 0,
            buf: &mut buf,
        },
        1 => Expect::Data {
            offset: 1 << 40,
            buf: &mut buf,
        },
        2 => Expect::Status {
            id: 1,
            len_bytes: u64::from(len),
        },
        _ => Expect::Nothing,
    };
    let mut collector = Collector::new(expect, kind & 1 == 1);
    loop {
        let header = read_header(&mut input)?;
        if collector.accept(header, &mut input)? {
            return collector.finish().map(drop);
        }
    }
}

/// Four sectors: data, zeros, data that cannot be read, zeros.
struct Sectors;

impl ServedImage for Sectors {
    fn size_bytes(&self) -> u64 {
        2048
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<ServedExtent> {
        Ok(ServedExtent {
            len_bytes: 512 - offset_bytes % 512,
            zero: offset_bytes / 512 % 2 == 1,
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset_bytes + buf.len() as u64 <= 2048, "beyond the end");
        buf.fill(7);
        match offset_bytes / 512 {
            2 => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        }
    }
}

/// Takes `bytes` as everything that a client says to a server. Gives the number of requests that
/// were answered.
///
/// # Errors
/// Nearly always.
pub fn serve(mut bytes: &[u8]) -> io::Result<u64> {
    let export = |name: &str| ServedExport {
        name: name.to_owned(),
        description: String::new(),
        image: Arc::new(Sectors),
    };
    let exports = [export("disk"), export("b")];
    let Some(session) = Handshake::new(&mut bytes, io::sink(), &exports).run()? else {
        return Ok(0);
    };
    let gate = Gate::default();
    let answerer = Answerer::new(&Sectors, session, io::sink(), &gate);
    let mut buf = Vec::new();
    let mut answered = 0;
    while let Some(request) = Request::read(&mut bytes)? {
        answerer.answer(&request, &mut buf)?;
        answered += 1;
    }
    Ok(answered)
}
