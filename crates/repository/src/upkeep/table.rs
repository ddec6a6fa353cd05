//! The whole index as a table of packs, with the sizes the store lists.

use std::collections::{HashMap, HashSet};

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Index;
use crate::index_file::{IndexFile, IndexPack};
use crate::pack::{PackedBlob, header_bytes};
use crate::store::{FileName, Kind, Store};
use crate::unpacked;

/// What the index says of packs, and what the store says.
#[derive(Default)]
pub(crate) struct Table {
    /// Index files that open, and the packs each lists.
    pub(crate) files: Vec<(Id, Vec<Id>)>,
    /// Index files that do not open.
    pub(crate) damaged: Vec<(FileName, Error)>,
    /// Blobs of each indexed pack.
    pub(crate) packs: HashMap<Id, Vec<PackedBlob>>,
    /// Packs on the store, indexed or not, and their lengths.
    pub(crate) sizes: HashMap<Id, u64>,
}

impl Table {
    /// Reads the index, then lists the packs.
    pub(crate) fn load(store: &dyn Store, sealer: &Sealer) -> Result<Self> {
        let mut table = Self::default();
        let files = store.list(Kind::Index);
        for file in files.map_err(|e| Error::store("list", "index", e))? {
            let name = FileName::new(Kind::Index, file.id);
            let read = unpacked::load::<IndexFile>(store, sealer, &name)
                .and_then(|part| crate::index::check(&name, &part).map(|()| part));
            match read {
                Ok(part) => table.add(file.id, part),
                Err(error @ Error::Damaged { .. }) => table.damaged.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        let packs = store.list(Kind::Pack);
        let packs = packs.map_err(|e| Error::store("list", "data", e))?;
        table.sizes = packs.into_iter().map(|p| (p.id, p.size_bytes)).collect();
        Ok(table)
    }

    fn add(&mut self, file: Id, part: IndexFile) {
        let mut listed = Vec::new();
        for pack in part.packs {
            listed.push(pack.id);
            let blobs = pack.blobs.into_iter().map(PackedBlob::from);
            let known = self.packs.entry(pack.id).or_default();
            let seen: HashSet<u32> = known.iter().map(|b| b.offset_bytes).collect();
            known.extend(blobs.filter(|b| !seen.contains(&b.offset_bytes)));
        }
        self.files.push((file, listed));
    }

    /// Fails where an index file does not open: what it lists would look unneeded.
    pub(crate) fn require_whole(&mut self) -> Result<()> {
        match self.damaged.pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether a pack is there with the length its blobs make.
    pub(crate) fn is_whole(&self, pack: &Id) -> bool {
        let blobs = self.packs.get(pack);
        let size = self.sizes.get(pack);
        matches!((blobs, size), (Some(blobs), Some(size)) if *size == pack_bytes(blobs))
    }

    /// Packs on the store that no index file lists.
    pub(crate) fn orphans(&self) -> Vec<Id> {
        let mut orphans: Vec<Id> = self.sizes.keys().copied().collect();
        orphans.retain(|id| !self.packs.contains_key(id));
        orphans.sort_unstable();
        orphans
    }

    /// The index of those packs that `keep` says.
    pub(crate) fn index(&self, keep: impl Fn(&Id) -> bool) -> Result<Index> {
        let packs = self.packs.iter().filter(|(id, _)| keep(id));
        let packs = packs.map(|(id, blobs)| index_pack(*id, blobs)).collect();
        Index::of_file(
            &FileName::new(Kind::Index, Id::default()),
            IndexFile { packs },
        )
    }
}

/// A pack as an index file lists it.
pub(crate) fn index_pack(id: Id, blobs: &[PackedBlob]) -> IndexPack {
    IndexPack {
        id,
        blobs: blobs.iter().copied().map(Into::into).collect(),
    }
}

/// Length of the pack of these blobs.
fn pack_bytes(blobs: &[PackedBlob]) -> u64 {
    let sealed: u64 = blobs.iter().map(|b| u64::from(b.sealed_bytes)).sum();
    sealed + header_bytes(blobs) as u64
}
