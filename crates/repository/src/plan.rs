//! Which grains of an image to read, from the extents its source reports.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::image_source::{Extent, ExtentKind, ImageSource};

/// Bytes that small grains are read together in.
const RUN_BYTES: usize = 1 << 20;
/// Grains that are skipped or taken over in one step, so that a cancel is seen.
const MAX_STEP_GRAINS: usize = 4096;

/// The next step of a lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Whole grains that are zero.
    Zero { first: usize, grains: usize },
    /// Whole grains that are as in the parent.
    Unchanged { first: usize, grains: usize },
    /// Whole grains to read.
    Read { first: usize, grains: usize },
    /// One grain of several kinds.
    Mixed { grain: usize, parts: Parts },
}

/// Stretches of a grain, offset and length, in ascending order; what is in none is zero.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// To be read.
    pub(crate) data: Vec<(u64, u64)>,
    /// As in the parent.
    pub(crate) unchanged: Vec<(u64, u64)>,
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.unchanged.is_empty()
    }

    /// Both, where the parent does not help.
    pub(crate) fn all(&self) -> Vec<(u64, u64)> {
        let mut all = [self.data.as_slice(), &self.unchanged].concat();
        all.sort_unstable();
        all
    }

    /// The part of a stretch that is within a range.
    pub(crate) fn clip((at, length): (u64, u64), start: u64, stop: u64) -> Option<(u64, u64)> {
        let (from, to) = (at.max(start), (at + length).min(stop));
        (from < to).then(|| (from, to - from))
    }
}

/// Hands out an image grain by grain, in ascending order.
pub(crate) struct Planner<'a> {
    source: &'a dyn ImageSource,
    size_bytes: u64,
    grain_bytes: u64,
    cursor: Mutex<Cursor>,
}

#[derive(Default)]
struct Cursor {
    /// Begin of the next grain.
    next: u64,
    /// The extent looked at last: begin, end, kind.
    extent: Option<(u64, u64, ExtentKind)>,
}

/// A failure of the source and where it was asked.
pub(crate) type SourceFailure = (u64, io::Error);

impl<'a> Planner<'a> {
    pub(crate) fn new(source: &'a dyn ImageSource, size_bytes: u64, grain_bytes: usize) -> Self {
        Self {
            source,
            size_bytes,
            grain_bytes: grain_bytes as u64,
            cursor: Mutex::default(),
        }
    }

    /// Begin and length of a grain; the last may be short.
    pub(crate) fn range(&self, grain: usize) -> (u64, u64) {
        let start = grain as u64 * self.grain_bytes;
        (
            start,
            self.grain_bytes.min(self.size_bytes.saturating_sub(start)),
        )
    }

    /// The next work, or none when all is handed out.
    pub(crate) fn claim(&self) -> Result<Option<Work>, SourceFailure> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let start = cursor.next;
        if start >= self.size_bytes {
            return Ok(None);
        }
        let first = (start / self.grain_bytes) as usize;
        let (end, kind) = self.extent(&mut cursor, start)?;
        let whole = if end >= self.size_bytes {
            (self.size_bytes - start).div_ceil(self.grain_bytes) as usize
        } else {
            ((end - start) / self.grain_bytes) as usize
        };
        if whole == 0 {
            let (_, length) = self.range(first);
            let parts = self.mixed(&mut cursor, start, start + length)?;
            cursor.next = start + length;
            return Ok(Some(match parts.is_empty() {
                true => Work::Zero { first, grains: 1 },
                false => Work::Mixed {
                    grain: first,
                    parts,
                },
            }));
        }
        let at_once = match kind {
            ExtentKind::Data => (RUN_BYTES / self.grain_bytes as usize).max(1),
            _ => MAX_STEP_GRAINS,
        };
        let grains = whole.min(at_once);
        let stop = self
            .size_bytes
            .min(start + grains as u64 * self.grain_bytes);
        cursor.next = stop;
        Ok(Some(match kind {
            ExtentKind::Hole | ExtentKind::Zero => Work::Zero { first, grains },
            ExtentKind::Unchanged => Work::Unchanged { first, grains },
            ExtentKind::Data => Work::Read { first, grains },
        }))
    }

    /// Parts of a grain of several extents.
    fn mixed(&self, cursor: &mut Cursor, start: u64, stop: u64) -> Result<Parts, SourceFailure> {
        let mut parts = Parts::default();
        let mut at = start;
        while at < stop {
            let (end, kind) = self.extent(cursor, at)?;
            let end = end.min(stop);
            let list = match kind {
                ExtentKind::Data => Some(&mut parts.data),
                ExtentKind::Unchanged => Some(&mut parts.unchanged),
                ExtentKind::Hole | ExtentKind::Zero => None,
            };
            if let Some(list) = list {
                match list.last_mut() {
                    Some((from, length)) if *from + *length == at => *length = end - *from,
                    _ => list.push((at, end - at)),
                }
            }
            at = end;
        }
        Ok(parts)
    }

    /// End and kind of the extent at `at`, joined with what follows of the same kind.
    fn extent(&self, cursor: &mut Cursor, at: u64) -> Result<(u64, ExtentKind), SourceFailure> {
        if let Some((begin, end, kind)) = cursor.extent
            && begin <= at
            && at < end
        {
            return Ok((end, kind));
        }
        let (mut end, kind) = self.ask(at)?;
        // Short extents of one kind in a row would look like a mix: join them up to a grain.
        while end < self.size_bytes && end - at < self.grain_bytes {
            let (next_end, next_kind) = self.ask(end)?;
            if next_kind != kind {
                cursor.extent = Some((at, end, kind));
                return Ok((end, kind));
            }
            end = next_end;
        }
        cursor.extent = Some((at, end, kind));
        Ok((end, kind))
    }

    fn ask(&self, at: u64) -> Result<(u64, ExtentKind), SourceFailure> {
        let Extent { kind, len } = self.source.extent_at(at).map_err(|e| (at, e))?;
        if len == 0 {
            let text = "the source reports an empty extent";
            return Err((at, io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Ok((at.saturating_add(len).min(self.size_bytes), kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Extents of given kinds and lengths, one after the other.
    struct Fixed(Vec<(ExtentKind, u64)>);

    impl ImageSource for Fixed {
        fn size_bytes(&self) -> u64 {
            self.0.iter().map(|e| e.1).sum()
        }

        fn extent_at(&self, offset: u64) -> io::Result<Extent> {
            let mut start = 0;
            for (kind, length) in &self.0 {
                if offset < start + length {
                    let len = start + length - offset;
                    return Ok(Extent { kind: *kind, len });
                }
                start += length;
            }
            Err(io::Error::other("beyond the end"))
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
    }

    fn plan(extents: &[(ExtentKind, u64)]) -> Vec<Work> {
        let source = Fixed(extents.to_vec());
        let planner = Planner::new(&source, source.size_bytes(), 1 << 20);
        std::iter::from_fn(|| planner.claim().unwrap()).collect()
    }

    fn mixed(grain: usize, data: &[(u64, u64)], unchanged: &[(u64, u64)]) -> Work {
        let parts = Parts {
            data: data.to_vec(),
            unchanged: unchanged.to_vec(),
        };
        Work::Mixed { grain, parts }
    }

    #[test]
    fn whole_and_mixed_grains() {
        use ExtentKind::*;
        let mib = 1 << 20;
        let plan = plan(&[
            (Data, mib + 10),
            (Hole, mib),
            (Unchanged, 2 * mib),
            (Zero, 5),
        ]);
        assert_eq!(
            plan,
            [
                Work::Read {
                    first: 0,
                    grains: 1
                },
                mixed(1, &[(mib, 10)], &[]),
                mixed(2, &[], &[(2 * mib + 10, mib - 10)]),
                Work::Unchanged {
                    first: 3,
                    grains: 1
                },
                mixed(4, &[], &[(4 * mib, 10)]),
            ]
        );
    }

    proptest! {
        #[test]
        fn all_is_handed_out_once_and_nothing_else_is_read(
            extents in proptest::collection::vec((0..4u8, 1u64..3_000_000), 0..20)
        ) {
            use ExtentKind::*;
            let kinds = [Hole, Zero, Data, Unchanged];
            let extents: Vec<_> =
                extents.into_iter().map(|(kind, len)| (kinds[usize::from(kind)], len)).collect();
            let source = Fixed(extents.clone());
            let planner = Planner::new(&source, source.size_bytes(), 1 << 20);
            let (mut done, mut read) = (0, 0);
            while let Some(work) = planner.claim().unwrap() {
                let span = |first, grains| {
                    let (last, length) = planner.range(first + grains - 1);
                    last + length - planner.range(first).0
                };
                done += match work {
                    Work::Zero { first, grains } => span(first, grains),
                    Work::Unchanged { first, grains } => {
                        read += span(first, grains);
                        span(first, grains)
                    }
                    Work::Read { first, grains } => {
                        read += span(first, grains);
                        span(first, grains)
                    }
                    Work::Mixed { grain, parts } => {
                        read += parts.all().iter().map(|p| p.1).sum::<u64>();
                        span(grain, 1)
                    }
                };
            }
            prop_assert_eq!(done, source.size_bytes());
            let needed = extents.iter().filter(|e| matches!(e.0, Data | Unchanged));
            prop_assert_eq!(read, needed.map(|e| e.1).sum::<u64>());
        }
    }
}
