//! Which bytes of a read have arrived: chunks come in any order, may not overlap, and must
//! leave no gap.

use crate::Error;

/// Disjoint, sorted ranges; neighbours are joined, so that a read in order is one range.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    ranges: Vec<(usize, usize)>,
}

impl Coverage {
    /// Notes that `start..end` has arrived; `start` is less than `end`.
    pub(crate) fn add(&mut self, start: usize, end: usize) -> Result<(), Error> {
        let at = self.ranges.partition_point(|range| range.1 <= start);
        if self.ranges.get(at).is_some_and(|next| next.0 < end) {
            return Err(Error::protocol("chunks of a read overlap"));
        }
        let joins_before = at > 0 && self.ranges[at - 1].1 == start;
        let joins_after = self.ranges.get(at).is_some_and(|next| next.0 == end);
        match (joins_before, joins_after) {
            (true, true) => self.ranges[at - 1].1 = self.ranges.remove(at).1,
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = start,
            (false, false) => self.ranges.insert(at, (start, end)),
        }
        Ok(())
    }

    /// Whether all of `0..len` has arrived.
    pub(crate) fn is_complete(&self, len: usize) -> bool {
        self.ranges == [(0, len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(pieces in prop::collection::vec((0..40usize, 1..9usize), 1..20)) {
            let mut coverage = Coverage::default();
            let mut map = [false; 64];
            for (start, len) in pieces {
                let piece = &mut map[start..start + len];
                let free = piece.iter().all(|seen| !seen);
                prop_assert_eq!(coverage.add(start, start + len).is_ok(), free);
                piece.fill(true);
                if !free {
                    return Ok(());
                }
                let whole = map.iter().take_while(|seen| **seen).count();
                let alone = map[whole..].iter().all(|seen| !seen);
                prop_assert_eq!(whole > 0 && coverage.is_complete(whole), whole > 0 && alone);
            }
        }
    }
}
