//! The folder of an image while it is stored: grains come in at any order, a group's tree is
//! written as soon as its last grain is there, so that memory does not grow with the image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::blob_writer::{BlobWriter, Scratch};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::layout::{FLAT_SEGMENTS, GROUP_SEGMENTS, SEGMENT_GRAINS, group_name, segment_name};
use crate::pack::BlobKind;
use crate::stats::ImageStats;
use crate::tree::Node;
use crate::tree_builder::store_tree;

/// The chunks of one grain.
#[derive(Clone, Default)]
pub(crate) enum Slot {
    #[default]
    Zero,
    One(Id),
    Pieces(Box<[Id]>),
}

impl Slot {
    /// How many chunks it has that are not known to be zero.
    pub(crate) fn chunks(&self) -> u64 {
        match self {
            Slot::Zero => 0,
            Slot::One(_) => 1,
            Slot::Pieces(ids) => ids.len() as u64,
        }
    }
}

/// The folder of one image.
pub(crate) struct ImageTrees<'a> {
    writer: &'a BlobWriter,
    size_bytes: u64,
    grain_bytes: u64,
    grains: usize,
    /// Grains of a group; all, where the segments lie in the image's own folder.
    group_grains: usize,
    state: Mutex<State>,
    /// Zero chunks by their length: a whole grain, and the last grain of the image.
    zeros: Mutex<Vec<(u64, Id)>>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<usize, Open>,
    /// Trees of the groups that are complete.
    done: BTreeMap<usize, Id>,
}

/// A group that is not complete.
struct Open {
    slots: Vec<Slot>,
    left: usize,
}

impl<'a> ImageTrees<'a> {
    pub(crate) fn new(writer: &'a BlobWriter, size_bytes: u64, grain_bytes: usize) -> Result<Self> {
        let grains = usize::try_from(size_bytes.div_ceil(grain_bytes as u64));
        let grains = grains.map_err(|_| Error::InvalidOption {
            reason: "the image is too long for its grain".to_owned(),
        })?;
        let flat = grains <= FLAT_SEGMENTS * SEGMENT_GRAINS;
        Ok(Self {
            writer,
            size_bytes,
            grain_bytes: grain_bytes as u64,
            grains,
            group_grains: match flat {
                true => grains.max(1),
                false => GROUP_SEGMENTS * SEGMENT_GRAINS,
            },
            state: Mutex::default(),
            zeros: Mutex::default(),
        })
    }

    /// Begin and length of a grain; the last may be short.
    fn length(&self, grain: usize) -> u64 {
        let start = grain as u64 * self.grain_bytes;
        self.grain_bytes.min(self.size_bytes.saturating_sub(start))
    }

    fn group_range(&self, group: usize) -> Range<usize> {
        let start = group * self.group_grains;
        start..(start + self.group_grains).min(self.grains)
    }

    /// Puts grains in, from `first` on. Each grain is put in once.
    pub(crate) fn put(
        &self,
        first: usize,
        slots: impl ExactSizeIterator<Item = Slot>,
        scratch: &mut Scratch,
        stats: &mut ImageStats,
    ) -> Result<()> {
        let (mut at, end) = (first, first + slots.len());
        let mut slots = slots;
        while at < end {
            let group = at / self.group_grains;
            let range = self.group_range(group);
            let count = end.min(range.end) - at;
            let complete = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let open = state.open.entry(group).or_insert_with(|| Open {
                    slots: vec![Slot::Zero; range.len()],
                    left: range.len(),
                });
                let from = at - range.start;
                for (place, slot) in open.slots[from..from + count].iter_mut().zip(&mut slots) {
                    *place = slot;
                }
                open.left -= count;
                match open.left {
                    0 => state.open.remove(&group),
                    _ => None,
                }
            };
            if let Some(group_slots) = complete {
                let tree = self.store_group(range, &group_slots.slots, scratch, stats)?;
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.done.insert(group, tree);
            }
            at += count;
        }
        Ok(())
    }

    /// Stores the tree of a group: its segments.
    fn store_group(
        &self,
        range: Range<usize>,
        slots: &[Slot],
        scratch: &mut Scratch,
        stats: &mut ImageStats,
    ) -> Result<Id> {
        let mut segments = Vec::new();
        // An empty image is one empty segment, so that it is a folder of segments like any other.
        let parts: Vec<&[Slot]> = match slots.is_empty() {
            true => vec![&[]],
            false => slots.chunks(SEGMENT_GRAINS).collect(),
        };
        for (number, part) in parts.into_iter().enumerate() {
            let first = range.start + number * SEGMENT_GRAINS;
            let mut content = Vec::with_capacity(part.len());
            let mut size = 0;
            for (grain, slot) in (first..).zip(part) {
                let length = self.length(grain);
                size += length;
                match slot {
                    Slot::Zero => content.push(self.zero_chunk(length, scratch, stats)?),
                    Slot::One(id) => content.push(*id),
                    Slot::Pieces(ids) => content.extend_from_slice(ids),
                }
            }
            let name = segment_name(first / SEGMENT_GRAINS);
            segments.push(Node::file(&name, size, content));
        }
        store_tree(segments, self.writer, scratch)
    }

    /// The zero chunk of a length; it is hashed and stored once.
    fn zero_chunk(&self, length: u64, scratch: &mut Scratch, stats: &mut ImageStats) -> Result<Id> {
        let mut zeros = self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, id)) = zeros.iter().find(|(known, _)| *known == length) {
            stats.chunks += 1;
            return Ok(*id);
        }
        let data = vec![0; length as usize];
        let id = Id::of(&data);
        let stored = self.writer.store(BlobKind::Data, id, &data, scratch)?;
        stats.count(data.len(), stored);
        zeros.push((length, id));
        Ok(id)
    }

    /// Stores the image's own folder, when all grains are in; gives its tree.
    pub(crate) fn finish(self, scratch: &mut Scratch, stats: &mut ImageStats) -> Result<Id> {
        if self.grains == 0 {
            return self.store_group(0..0, &[], scratch, stats);
        }
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let groups = self.grains.div_ceil(self.group_grains);
        if !state.open.is_empty() || state.done.len() != groups {
            return Err(Error::AlreadyFailed);
        }
        if groups == 1 && self.grains <= FLAT_SEGMENTS * SEGMENT_GRAINS {
            return state.done.into_values().next().ok_or(Error::AlreadyFailed);
        }
        let folders = state.done.into_iter();
        let nodes = folders.map(|(group, tree)| Node::folder(&group_name(group), tree));
        store_tree(nodes.collect(), self.writer, scratch)
    }
}
