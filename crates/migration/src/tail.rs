//! The tail of a stream: the devices' states, an end mark, and JSON that describes them. It is
//! opaque, but a tail that was cut off must not pass for a whole one.

use std::ops::Range;

use crate::{Bytes, Error, wire};

/// The description is looked for in this many last bytes; it takes 100 KB in a small guest.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;

/// Bytes of `type, length` before the description.
const DESCRIPTION_HEADER: usize = 5;

/// Checks that the stream ends where a stream may end: with an end mark, or with an end mark
/// and a description of exactly the length it declares.
pub(crate) fn check_tail(source: &dyn Bytes, tail: Range<u64>, footers: bool) -> Result<(), Error> {
    let start = tail
        .start
        .max(tail.end.saturating_sub(MAX_DESCRIPTION_BYTES));
    let mut bytes = vec![0; (tail.end - start) as usize];
    source
        .read_at(start, &mut bytes)
        .map_err(|source| Error::Read {
            offset: start,
            source,
        })?;
    if is_description_at_end(&bytes, footers) || is_end_mark_at_end(&bytes, footers) {
        return Ok(());
    }
    Err(Error::Truncated {
        what: "the end of the devices' states",
        offset: tail.end,
    })
}

/// `… end mark, type, length, JSON`: JSON has no control characters, so the last type byte with
/// the right length is the one.
fn is_description_at_end(bytes: &[u8], footers: bool) -> bool {
    let Some(last) = bytes.len().checked_sub(DESCRIPTION_HEADER) else {
        return false;
    };
    (0..=last).rev().any(|at| {
        bytes[at] == wire::SECTION_DESCRIPTION
            && declared_len(&bytes[at..]) == Some(last - at)
            && is_end_mark_at_end(&bytes[..at], footers)
    })
}

fn declared_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.get(1..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*len)).ok()
}

/// `… footer, end mark`. Without footers an end mark is just a zero, which proves little but
/// is all there is.
fn is_end_mark_at_end(bytes: &[u8], footers: bool) -> bool {
    match bytes {
        [.., footer, _, _, _, _, wire::SECTION_EOF] if footers => *footer == wire::SECTION_FOOTER,
        [.., wire::SECTION_EOF] => !footers,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"\x04devices\x7e\0\0\0\x02\0\x06\0\0\0\x04{\"\"}";

    fn check(bytes: &[u8]) -> Result<(), Error> {
        check_tail(&bytes, 0..bytes.len() as u64, true)
    }

    #[test]
    fn a_whole_tail_passes_with_and_without_description() {
        assert!(check(WHOLE).is_ok());
        assert!(check(&WHOLE[..WHOLE.len() - 9]).is_ok());
    }

    #[test]
    fn a_tail_cut_off_anywhere_else_is_refused() {
        for len in (0..WHOLE.len()).filter(|len| *len != WHOLE.len() - 9) {
            assert!(check(&WHOLE[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn bytes_after_the_description_are_refused() {
        assert!(check(&[WHOLE, b" "].concat()).is_err());
    }
}
