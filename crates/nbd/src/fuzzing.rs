//! The parsers alone, over bytes instead of a socket. For fuzzing only; no stable interface.

use std::io;

use crate::{
    Error,
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
