//! Zeros: a fast test, and the ids that chunks of zeros have.

use std::collections::HashMap;

use crate::id::Id;

/// Block that the test looks at as a whole, which compiles to wide vector instructions.
const BLOCK_BYTES: usize = 256;

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let blocks = data.chunks_exact(BLOCK_BYTES);
    let rest = blocks.remainder();
    blocks
        .into_iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Different lengths that are hashed for one image. Ours have at most three; a repository that
/// lists a thousand lengths must not make us hash a thousand buffers.
const MAX_LENGTHS: usize = 16;

/// Ids of zero chunks, by length.
#[derive(Default)]
pub(crate) struct ZeroIds {
    by_length: HashMap<u32, Id>,
}

impl ZeroIds {
    /// Whether `id` is that of `length` zeros. May answer no where it would be yes.
    pub(crate) fn contains(&mut self, length: u32, id: &Id) -> bool {
        if let Some(known) = self.by_length.get(&length) {
            return known == id;
        }
        if self.by_length.len() >= MAX_LENGTHS {
            return false;
        }
        let known = Id::of(&vec![0; length as usize]);
        self.by_length.insert(length, known);
        known == *id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_seen() {
        for length in [0, 1, 255, 256, 257, 1000] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for at in 0..length {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {length}");
                data[at] = 0;
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let mut ids = ZeroIds::default();
        for length in 0..100 {
            let id = Id::of(&vec![0; length as usize]);
            assert_eq!(ids.contains(length, &id), length < 16);
        }
        assert_eq!(ids.by_length.len(), MAX_LENGTHS);
    }
}
