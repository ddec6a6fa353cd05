//! Repair of the index: lists what is really there, so that a later full backup stores again what
//! is not, instead of pointing at it.
//!
//! Alone, under an exclusive lock. Packs that no index file lists are taken in; of packs that are
//! damaged the good blobs are copied into new packs; lost blobs are listed nowhere any more. New
//! index files are written before old ones are removed. No snapshot is touched.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::Progress;
use crate::lock::LockMode;
use crate::pack::{PackedBlob, parse_pack};
use crate::repository::Repository;
use crate::store::{FileName, Kind};

use super::pack_out::{IndexOut, PackOut};
use super::{Table, advance, check_cancel};

/// Longest pack that is read whole.
const MAX_PACK_BYTES: u64 = 1 << 30;

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Stale or damaged locks removed.
    pub locks_removed: usize,
    /// Index files that did not open, removed.
    pub index_files_removed: usize,
    /// Packs that were in no index and are now.
    pub packs_found: usize,
    /// Packs that were missing or damaged; they are in the index no more.
    pub packs_dropped: usize,
    /// Blobs saved from damaged packs.
    pub blobs_saved: usize,
    /// Blobs that damaged or missing packs held and that are lost there.
    pub blobs_lost: usize,
}

impl Repository {
    /// Repairs the index. With `read_data` every pack is read; else only those whose length is
    /// wrong.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Cancelled`], whatever the store says.
    pub fn repair_index(&self, read_data: bool, progress: &dyn Progress) -> Result<RepairReport> {
        let mut report = RepairReport {
            locks_removed: self.remove_stale_locks()?,
            ..RepairReport::default()
        };
        let lock = self.lock(LockMode::Exclusive)?;
        let table = Table::load(self.store(), self.sealer())?;
        let mut packs: HashMap<Id, Vec<PackedBlob>> = HashMap::new();
        let mut saved = PackOut::new(self.store(), self.sealer());
        for (pack, blobs) in &table.packs {
            check_cancel(progress)?;
            if table.is_whole(pack) && !read_data {
                packs.insert(*pack, blobs.clone());
                continue;
            }
            let state = self.read_pack(*pack, blobs)?;
            advance(progress, table.sizes.get(pack).copied().unwrap_or(0));
            if state.problem.is_none() {
                // Where the length is not what the index says, the pack's own list is right.
                let own = self.orphan(*pack)?.unwrap_or_else(|| blobs.clone());
                packs.insert(*pack, own);
                continue;
            }
            report.packs_dropped += 1;
            report.blobs_saved += state.good.len();
            report.blobs_lost += blobs.len() - state.good.len();
            self.save(*pack, &state.good, &mut saved)?;
        }
        for pack in table.orphans() {
            check_cancel(progress)?;
            if let Some(blobs) = self.orphan(pack)? {
                report.packs_found += 1;
                packs.insert(pack, blobs);
            }
        }
        report.index_files_removed = table.damaged.len();
        let changed = report.packs_dropped + report.packs_found + report.index_files_removed > 0;
        if changed {
            lock.check_held()?;
            // Lists the saved blobs before the old index goes.
            saved.finish()?;
            let opened = table.files.iter().map(|(id, _)| *id);
            let damaged = table.damaged.iter().map(|(name, _)| name.id);
            let old: Vec<Id> = opened.chain(damaged).collect();
            self.replace_index(&packs, &old)?;
        }
        Ok(report)
    }

    fn replace_index(&self, packs: &HashMap<Id, Vec<PackedBlob>>, old: &[Id]) -> Result<()> {
        let mut index = IndexOut::new(self.store(), self.sealer());
        let mut order: Vec<&Id> = packs.keys().collect();
        order.sort_unstable();
        for pack in order {
            index.push(*pack, &packs[pack])?;
        }
        let new = index.finish()?;
        for file in old.iter().filter(|file| !new.contains(file)) {
            self.remove_file(&FileName::new(Kind::Index, *file))?;
        }
        Ok(())
    }

    fn save(&self, pack: Id, good: &[PackedBlob], out: &mut PackOut<'_>) -> Result<()> {
        let name = FileName::new(Kind::Pack, pack);
        for blob in good {
            let mut sealed = vec![0; blob.sealed_bytes as usize];
            self.store()
                .read_range(&name, u64::from(blob.offset_bytes), &mut sealed)
                .map_err(|e| Error::store("read", name, e))?;
            out.push(blob, &sealed)?;
        }
        Ok(())
    }

    /// The blobs of a pack that no index lists; `None` where it is not whole.
    fn orphan(&self, pack: Id) -> Result<Option<Vec<PackedBlob>>> {
        let name = FileName::new(Kind::Pack, pack);
        let data = self.store().read_full(&name, MAX_PACK_BYTES);
        let data = data.map_err(|e| Error::store("read", name, e))?;
        if Id::of(&data) != pack {
            return Ok(None);
        }
        Ok(parse_pack(&data, self.sealer()).ok())
    }
}
