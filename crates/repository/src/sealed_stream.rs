//! A long file sealed in segments, so that it is written and read without being held whole.
//!
//! Every segment is `seal(stream (16) ‖ number (u64 LE) ‖ last (u8) ‖ content)`. The random name of
//! the stream and the number keep segments from being exchanged, the mark of the last one keeps the
//! end from being cut off. All but the last hold [`SEGMENT_BYTES`] of content.

use std::io::{self, Read, Write};

use crate::crypto::{NONCE_BYTES, SEAL_BYTES, Sealer, TAG_BYTES};

/// Content of a segment, bytes.
const SEGMENT_BYTES: usize = 1 << 20;
/// What stands before the content.
const HEAD_BYTES: usize = 16 + 8 + 1;
/// A whole segment as it is stored.
const STORED_BYTES: usize = SEAL_BYTES + HEAD_BYTES + SEGMENT_BYTES;

/// Seals what is written. Without [`SealedWriter::finish`] the stream is not readable.
pub(crate) struct SealedWriter<'a, W> {
    sealer: &'a Sealer,
    out: W,
    stream: [u8; 16],
    number: u64,
    content: Vec<u8>,
}

impl<'a, W: Write> SealedWriter<'a, W> {
    pub(crate) fn new(sealer: &'a Sealer, out: W) -> io::Result<Self> {
        let mut stream = [0; 16];
        aws_lc_rs::rand::fill(&mut stream).map_err(io::Error::other)?;
        let content = Vec::with_capacity(SEGMENT_BYTES);
        Ok(Self {
            sealer,
            out,
            stream,
            number: 0,
            content,
        })
    }

    /// Writes the last segment.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.segment(true)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn segment(&mut self, last: bool) -> io::Result<()> {
        let mut plain = Vec::with_capacity(HEAD_BYTES + self.content.len());
        plain.extend_from_slice(&self.stream);
        plain.extend_from_slice(&self.number.to_le_bytes());
        plain.push(u8::from(last));
        plain.append(&mut self.content);
        let sealed = self.sealer.seal(&plain).map_err(io::Error::other)?;
        self.number += 1;
        self.out.write_all(&sealed)
    }
}

impl<W: Write> Write for SealedWriter<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(SEGMENT_BYTES - self.content.len());
        self.content.extend_from_slice(&buf[..taken]);
        if self.content.len() == SEGMENT_BYTES {
            self.segment(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what a [`SealedWriter`] wrote; anything else is `InvalidData`.
pub(crate) struct SealedReader<'a, R> {
    sealer: &'a Sealer,
    input: R,
    stream: Option<[u8; 16]>,
    number: u64,
    last: bool,
    segment: Vec<u8>,
    /// What was given away of the segment.
    at: usize,
}

impl<'a, R: Read> SealedReader<'a, R> {
    pub(crate) fn new(sealer: &'a Sealer, input: R) -> Self {
        Self {
            sealer,
            input,
            stream: None,
            number: 0,
            last: false,
            segment: Vec::new(),
            at: 0,
        }
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        self.segment.clear();
        let limit = STORED_BYTES as u64;
        (&mut self.input)
            .take(limit)
            .read_to_end(&mut self.segment)?;
        let opened = self.sealer.open_in_place(&mut self.segment);
        let plain = opened.map_err(|_| wrong("a segment does not open"))?;
        let (head, content) = plain
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(|| wrong("a segment is too short"))?;
        let stream: &[u8; 16] = head.first_chunk().ok_or_else(|| wrong("no name"))?;
        let in_order = head[16..24] == self.number.to_le_bytes()
            && self.stream.get_or_insert(*stream) == stream;
        self.last = head[24] == 1;
        if !in_order || (!self.last && content.len() != SEGMENT_BYTES) {
            return Err(wrong("a segment is out of its place"));
        }
        self.number += 1;
        // The content stands behind the nonce and the head, the tag behind it.
        self.at = NONCE_BYTES + HEAD_BYTES;
        self.segment.truncate(self.segment.len() - TAG_BYTES);
        Ok(())
    }
}

impl<R: Read> Read for SealedReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.segment.len() {
            if self.last {
                return Ok(0);
            }
            self.next_segment()?;
        }
        let given = buf.len().min(self.segment.len() - self.at);
        buf[..given].copy_from_slice(&self.segment[self.at..self.at + given]);
        self.at += given;
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    fn written(content: &[u8]) -> Vec<u8> {
        let sealer = sealer();
        let mut writer = SealedWriter::new(&sealer, Vec::new()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn read(stored: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        SealedReader::new(&sealer(), stored).read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn what_is_written_is_read() {
        for length in [
            0,
            1,
            SEGMENT_BYTES - 1,
            SEGMENT_BYTES,
            2 * SEGMENT_BYTES + 5,
        ] {
            let content: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            assert!(read(&written(&content)).unwrap() == content, "{length}");
        }
    }

    #[test]
    fn what_was_changed_is_not_read() {
        let stored = written(&vec![7; 2 * SEGMENT_BYTES + 5]);
        for at in [0, 20, STORED_BYTES - 1, STORED_BYTES, stored.len() - 1] {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "byte {at}");
        }
        for length in [0, 1, STORED_BYTES - 1, STORED_BYTES, 2 * STORED_BYTES] {
            assert!(read(&stored[..length]).is_err(), "cut at {length}");
        }
        let mut exchanged = stored.clone();
        let (first, second) = exchanged.split_at_mut(STORED_BYTES);
        first.swap_with_slice(&mut second[..STORED_BYTES]);
        assert!(read(&exchanged).is_err(), "exchanged");
        let mut mixed = stored;
        mixed[..STORED_BYTES]
            .copy_from_slice(&written(&vec![7; 2 * SEGMENT_BYTES])[..STORED_BYTES]);
        assert!(read(&mixed).is_err(), "mixed");
    }
}
