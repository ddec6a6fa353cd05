//! Writes to a fresh image only what is not zero, so that the image stays as sparse as can be.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vmtwin_repository::ImageSink;

/// Leaves out blocks of zeros on the way to another sink, whose target reads as zeros.
pub(super) struct SparseSink<S> {
    inner: S,
    block_bytes: usize,
    written_bytes: AtomicU64,
}

impl<S: ImageSink> SparseSink<S> {
    /// Tests blocks of `block_bytes`, aligned.
    pub(super) fn new(inner: S, block_bytes: usize) -> Self {
        SparseSink {
            inner,
            block_bytes,
            written_bytes: AtomicU64::new(0),
        }
    }

    /// What was written, and the sink.
    pub(super) fn finish(self) -> (u64, S) {
        (self.written_bytes.into_inner(), self.inner)
    }

    /// Length of the block at an offset, up to its aligned end.
    fn block(&self, offset: u64) -> usize {
        let block = self.block_bytes as u64;
        (block - offset % block) as usize
    }
}

impl<S: ImageSink> ImageSink for SparseSink<S> {
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let mut run = 0..0;
        let write = |run: std::ops::Range<usize>| {
            if run.is_empty() {
                return Ok(());
            }
            self.written_bytes
                .fetch_add(run.len() as u64, Ordering::Relaxed);
            self.inner
                .write_at(offset_bytes + run.start as u64, &data[run])
        };
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + self.block(offset_bytes + at as u64));
            if is_zero(&data[at..end]) {
                write(std::mem::replace(&mut run, end..end))?;
            } else {
                run.end = end;
            }
            at = end;
        }
        write(run)
    }
}

/// Whether all bytes are zero. Whole rows are joined first, which the compiler does in vectors.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|row| row.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Writes(Mutex<Vec<(u64, Vec<u8>)>>);

    impl ImageSink for Writes {
        fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().push((offset_bytes, data.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn aligned_blocks_of_zeros_are_left_out() {
        let sink = SparseSink::new(Writes::default(), 4);
        sink.write_at(2, &[0, 0, 1, 1, 1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3])
            .unwrap();
        sink.write_at(100, &[0; 9]).unwrap();
        let (written, writes) = sink.finish();
        let writes = writes.0.into_inner().unwrap();
        assert_eq!(
            writes,
            [(4, vec![1, 1, 1, 1, 0, 2, 0, 0]), (16, vec![0, 3])]
        );
        assert_eq!(written, 10);
    }
}
