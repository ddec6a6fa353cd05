//! Prune: removes what no snapshot needs. Never beside anybody, though it works beside backups.
//!
//! ```text
//!   shared lock      used blobs ─► plan ─► repack: copy used blobs into new packs, index them
//!   exclusive lock   used blobs again ─► index without what is not needed ─► old index files
//!                    removed ─► packs removed
//! ```
//! The long part, copying, only adds, so that backups and restores go on beside it. What removes
//! looks again from the beginning, alone. A kill anywhere leaves blobs twice, index files twice,
//! or packs that nothing lists: all of that is harmless, and the next prune, also restic's,
//! removes it. docs/adr/0006 says why nothing is removed beside running backups.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::blob_reader::{BlobReader, decode};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::Progress;
use crate::index::BlobPlace;
use crate::lock::{LockGuard, LockMode};
use crate::pack::PackedBlob;
use crate::repository::Repository;
use crate::store::{FileName, Kind};

use super::pack_out::{IndexOut, PackOut};
use super::{BlobKey, Table, add_used, advance, check_cancel};

/// Pause between attempts to get the exclusive lock.
const LOCK_RETRY: Duration = Duration::from_millis(500);
/// Packs that are removed between two looks at our lock.
const REMOVALS_PER_LOOK: usize = 64;
/// Longest range that repacking reads at once.
const MAX_READ_BYTES: u64 = 32 << 20;

/// How to prune.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// Unused bytes that may stay, in percent of the used ones. Default 5.
    pub max_unused_percent: f64,
    /// Only plan.
    pub dry_run: bool,
    /// How long to wait for others' locks to go. Default none.
    pub wait: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            max_unused_percent: 5.0,
            dry_run: false,
            wait: Duration::ZERO,
        }
    }
}

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Packs that stay as they are.
    pub packs_kept: usize,
    /// Packs whose used blobs were copied into new ones.
    pub packs_repacked: usize,
    /// Packs removed, repacked ones included. In a dry run: that would be.
    pub packs_removed: usize,
    /// Bytes of the used blobs, sealed.
    pub bytes_used: u64,
    /// Unused bytes before.
    pub bytes_unused: u64,
    /// Bytes copied into new packs.
    pub bytes_repacked: u64,
    /// Bytes by which the repository got smaller (a dry run estimates).
    pub bytes_freed: u64,
    /// Who has a lock, where therefore nothing was removed. The next prune does it.
    pub waits_for: Option<String>,
}

/// What to do with each pack.
#[derive(Debug, Default)]
struct Plan {
    keep: Vec<Id>,
    repack: Vec<Id>,
    remove: Vec<Id>,
    /// Used blobs of each pack that has any. Each used blob is in exactly one pack here.
    needed: HashMap<Id, Vec<PackedBlob>>,
    bytes_used: u64,
    bytes_unused: u64,
}

impl Repository {
    /// Removes what no snapshot needs. Backups and readers may run beside the long part; where
    /// they still run when it is done, nothing is removed and the report says so.
    ///
    /// # Errors
    /// [`Error::Locked`] by somebody exclusive; [`Error::Damaged`] where anything that a snapshot
    /// needs is not there, since then a check must come first; [`Error::Cancelled`].
    pub fn prune(&self, options: &PruneOptions, progress: &dyn Progress) -> Result<PruneReport> {
        let percent = options.max_unused_percent;
        if !(0.0..=100.0).contains(&percent) {
            let reason = format!("max_unused_percent is {percent}, but must be 0 to 100");
            return Err(Error::InvalidOption { reason });
        }
        let shared = self.lock(LockMode::Shared)?;
        let (table, plan) = self.plan_prune(percent, progress)?;
        let mut report = plan.report(&table);
        if options.dry_run {
            return Ok(report);
        }
        let new = self.repack(&table, &plan, progress)?;
        drop(shared);
        match self.lock_within(options.wait, progress) {
            Ok(lock) => {
                let before: u64 = table.sizes.values().sum();
                let (removed, after) = self.remove_unneeded(&lock, progress)?;
                report.packs_removed = removed;
                report.bytes_freed = before.saturating_sub(after);
            }
            Err(error @ Error::Locked { .. }) => {
                report.packs_removed = 0;
                report.bytes_freed = 0;
                report.waits_for = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        report.bytes_repacked = new;
        Ok(report)
    }

    fn lock_within(&self, wait: Duration, progress: &dyn Progress) -> Result<LockGuard> {
        let began = Instant::now();
        loop {
            match self.lock(LockMode::Exclusive) {
                Err(Error::Locked { .. }) if began.elapsed() < wait => {
                    check_cancel(progress)?;
                    std::thread::sleep(LOCK_RETRY);
                }
                other => return other,
            }
        }
    }

    /// Looks at everything and plans. The caller holds a lock.
    fn plan_prune(&self, percent: f64, progress: &dyn Progress) -> Result<(Table, Plan)> {
        let list = self.snapshots()?;
        if let Some(damaged) = list.damaged.into_iter().next() {
            return Err(damaged.error);
        }
        let mut table = Table::load(self.store(), self.sealer())?;
        table.require_whole()?;
        let index = table.index(|pack| table.is_whole(pack))?;
        let reader = BlobReader::new(self.store_arc(), self.sealer_arc(), index.into(), None);
        let mut used = HashSet::new();
        for snapshot in &list.snapshots {
            add_used(&reader, snapshot.tree, &mut used, progress)?;
        }
        let plan = Plan::new(&table, used, percent)?;
        Ok((table, plan))
    }

    /// Copies the used blobs of the packs to repack; gives how many bytes.
    fn repack(&self, table: &Table, plan: &Plan, progress: &dyn Progress) -> Result<u64> {
        let mut out = PackOut::new(self.store(), self.sealer());
        let mut copied = 0;
        for pack in &plan.repack {
            check_cancel(progress)?;
            let blobs = plan.needed.get(pack).map_or(&[][..], Vec::as_slice);
            copied += self.repack_one(*pack, blobs, &mut out)?;
            advance(progress, table.sizes.get(pack).copied().unwrap_or(0));
        }
        out.finish()?;
        Ok(copied)
    }

    fn repack_one(&self, pack: Id, blobs: &[PackedBlob], out: &mut PackOut<'_>) -> Result<u64> {
        let mut copied = 0;
        let mut rest = blobs;
        while let Some((first, _)) = rest.split_first() {
            let (run, after) = rest.split_at(run_length(rest));
            rest = after;
            let length: u64 = run.iter().map(|b| u64::from(b.sealed_bytes)).sum();
            let mut data = vec![0; length as usize];
            let name = FileName::new(Kind::Pack, pack);
            self.store()
                .read_range(&name, u64::from(first.offset_bytes), &mut data)
                .map_err(|e| Error::store("read", name, e))?;
            let mut at = 0;
            for blob in run {
                let sealed = &data[at..at + blob.sealed_bytes as usize];
                // What is copied is checked, so that damage never gets a second name.
                let place = place(pack, blob).ok_or_else(|| Error::damaged(name, "lengths"))?;
                decode(self.sealer(), &blob.id, &place, &mut sealed.to_vec())?;
                out.push(blob, sealed)?;
                at += sealed.len();
            }
            copied += length;
        }
        Ok(copied)
    }

    /// Removes, alone, what is not needed now; gives how many packs, and the bytes that stay.
    fn remove_unneeded(&self, lock: &LockGuard, progress: &dyn Progress) -> Result<(usize, u64)> {
        let (table, plan) = self.plan_prune(100.0, progress)?;
        let mut remove = plan.remove.clone();
        remove.extend(table.orphans());
        let gone: HashSet<Id> = remove.iter().copied().collect();
        let stale = |(_, packs): &&(Id, Vec<Id>)| packs.iter().any(|p| gone.contains(p));
        let old: Vec<&(Id, Vec<Id>)> = table.files.iter().filter(stale).collect();
        let mut index = IndexOut::new(self.store(), self.sealer());
        let mut listed = HashSet::new();
        for pack in old.iter().flat_map(|(_, packs)| packs) {
            if !gone.contains(pack) && listed.insert(*pack) {
                index.push(*pack, &table.packs[pack])?;
            }
        }
        lock.check_held()?;
        let new = index.finish()?;
        for (file, _) in old {
            if !new.contains(file) {
                self.remove_file(&FileName::new(Kind::Index, *file))?;
            }
        }
        for some in remove.chunks(REMOVALS_PER_LOOK) {
            lock.check_held()?;
            check_cancel(progress)?;
            for pack in some {
                self.remove_file(&FileName::new(Kind::Pack, *pack))?;
            }
        }
        let stays = table.sizes.iter().filter(|(id, _)| !gone.contains(id));
        let removed = remove.iter().filter(|id| table.sizes.contains_key(id));
        Ok((removed.count(), stays.map(|(_, size)| size).sum()))
    }
}

/// How many of the first blobs lie one after the other, within one read.
fn run_length(blobs: &[PackedBlob]) -> usize {
    let mut end = u64::from(blobs[0].offset_bytes);
    let start = end;
    let follows = |blob: &&PackedBlob| {
        let fits = u64::from(blob.offset_bytes) == end
            && (end == start || end + u64::from(blob.sealed_bytes) - start <= MAX_READ_BYTES);
        end += u64::from(blob.sealed_bytes);
        fits
    };
    blobs.iter().take_while(follows).count()
}

/// Where a blob of a pack is.
pub(crate) fn place(pack: Id, blob: &PackedBlob) -> Option<BlobPlace> {
    Some(BlobPlace {
        pack,
        offset_bytes: blob.offset_bytes,
        sealed_bytes: blob.sealed_bytes,
        raw_bytes: blob.raw_bytes()?,
        compressed: blob.compressed_from.is_some(),
    })
}

impl Plan {
    /// Gives every used blob to one pack, the fullest of used ones first, so that what an earlier
    /// prune copied wins over what it was copied from.
    fn new(table: &Table, mut used: HashSet<BlobKey>, percent: f64) -> Result<Self> {
        let mut plan = Self::default();
        let mut order: Vec<(f64, Id)> = Vec::new();
        for (id, blobs) in table.packs.iter().filter(|(id, _)| table.is_whole(id)) {
            let is_used = |b: &&PackedBlob| used.contains(&(b.kind, b.id));
            order.push((unused_part(blobs, is_used), *id));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut wasteful = Vec::new();
        for (_, id) in order {
            let blobs = &table.packs[&id];
            let mut needed: Vec<PackedBlob> = Vec::new();
            needed.extend(blobs.iter().filter(|b| used.remove(&(b.kind, b.id))));
            needed.sort_unstable_by_key(|b| b.offset_bytes);
            let all = sealed_bytes(blobs);
            let bytes = sealed_bytes(&needed);
            plan.bytes_used += bytes;
            plan.bytes_unused += all - bytes;
            if needed.is_empty() {
                plan.remove.push(id);
                continue;
            }
            if bytes < all {
                wasteful.push(((all - bytes) as f64 / all as f64, all - bytes, id));
            } else {
                plan.keep.push(id);
            }
            plan.needed.insert(id, needed);
        }
        if let Some((kind, id)) = used.iter().next() {
            let what = format!("{kind:?} blob {id} and {} more", used.len() - 1);
            let reason = format!("snapshots need {what}, which no whole pack holds; check first");
            return Err(Error::damaged("index", reason));
        }
        // Entries of packs that are not there, or not whole, and that nothing needs any more.
        let broken = table.packs.keys().filter(|id| !table.is_whole(id));
        plan.remove.extend(broken);
        plan.choose(wasteful, percent);
        Ok(plan)
    }

    /// Repacks the most wasteful packs until the rest is within the limit.
    fn choose(&mut self, mut wasteful: Vec<(f64, u64, Id)>, percent: f64) {
        let limit = (self.bytes_used as f64 * percent / 100.0) as u64;
        let mut unused: u64 = wasteful.iter().map(|(_, bytes, _)| bytes).sum();
        wasteful.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, bytes, id) in wasteful {
            if unused > limit {
                self.repack.push(id);
                unused -= bytes;
            } else {
                self.keep.push(id);
            }
        }
    }

    fn report(&self, table: &Table) -> PruneReport {
        let orphans = table.orphans();
        let size = |id: &Id| table.sizes.get(id).copied().unwrap_or(0);
        let repacked: u64 = self.repack.iter().map(size).sum();
        let copied = self.repack.iter().filter_map(|id| self.needed.get(id));
        let copied: u64 = copied.map(|blobs| sealed_bytes(blobs)).sum();
        let gone: u64 = self.remove.iter().chain(&orphans).map(size).sum();
        PruneReport {
            packs_kept: self.keep.len(),
            packs_repacked: self.repack.len(),
            packs_removed: self.remove.len() + self.repack.len() + orphans.len(),
            bytes_used: self.bytes_used,
            bytes_unused: self.bytes_unused + orphans.iter().map(size).sum::<u64>(),
            bytes_repacked: copied,
            bytes_freed: gone + repacked.saturating_sub(copied),
            waits_for: None,
        }
    }
}

fn sealed_bytes(blobs: &[PackedBlob]) -> u64 {
    blobs.iter().map(|b| u64::from(b.sealed_bytes)).sum()
}

fn unused_part<'a>(blobs: &'a [PackedBlob], used: impl FnMut(&&'a PackedBlob) -> bool) -> f64 {
    let needed: u64 = blobs
        .iter()
        .filter(used)
        .map(|b| u64::from(b.sealed_bytes))
        .sum();
    let all = sealed_bytes(blobs).max(1);
    1.0 - needed as f64 / all as f64
}
