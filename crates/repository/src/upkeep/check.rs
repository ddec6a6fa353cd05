//! Check: is everything there that snapshots need, and what does each damage hurt?
//!
//! Nothing is changed. Snapshots are listed before the index is read, so that a backup that ends
//! meanwhile is no damage. What is wrong is told twice: as problems of objects, and as snapshots
//! with the paths in them that cannot be restored.

use std::collections::{BTreeSet, HashSet};

use crate::blob_reader::{BlobReader, decode};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::Progress;
use crate::lock::{self, LockMode};
use crate::pack::{BlobKind, PackedBlob};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::store::{FileName, Kind};
use crate::tree::{Node, NodeKind};

use super::prune::place;
use super::{Table, advance, check_cancel};

/// Longest pack that is read whole.
const MAX_PACK_BYTES: u64 = 1 << 30;
/// Deepest folder that is walked; no backup of ours is deeper than five.
const MAX_DEPTH: usize = 200;
/// Steps of a path that a damage is told by: `/disks/vda`, not each segment of it.
const TOLD_STEPS: usize = 2;

/// What is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object, relative to the repository.
    pub object: String,
    /// What is wrong.
    pub reason: String,
}

/// A snapshot that cannot be restored whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HurtSnapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The snapshot; `None` where its own file is damaged.
    pub snapshot: Option<Snapshot>,
    /// What cannot be read, two steps deep at most; `/` for all of it.
    pub paths: Vec<String>,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Damaged or missing objects.
    pub problems: Vec<Problem>,
    /// Snapshots they hurt.
    pub hurt: Vec<HurtSnapshot>,
    /// Harmless things, such as packs that an interrupted backup left.
    pub notes: Vec<String>,
    /// Snapshots looked at.
    pub snapshots: usize,
    /// Packs in the index.
    pub packs: usize,
    /// Packs that were read whole.
    pub packs_read: usize,
    /// Their bytes.
    pub bytes_read: u64,
}

/// A pack's blobs that are good, and why the others are not.
pub(crate) struct PackState {
    pub(crate) good: Vec<PackedBlob>,
    pub(crate) problem: Option<String>,
}

impl Repository {
    /// Checks the structure, and the data of `read_percent` of the packs.
    ///
    /// # Errors
    /// [`Error::Locked`] by somebody exclusive, [`Error::Cancelled`], whatever the store says.
    /// Damage is no error: it is in the report.
    pub fn check(&self, read_percent: f64, progress: &dyn Progress) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        self.check_locks(&mut report)?;
        let damaged_lock = !report.problems.is_empty();
        // A lock that does not open keeps everybody out; looking is harmless all the same.
        let lock = match self.lock(LockMode::Shared) {
            Err(Error::Damaged { .. }) if damaged_lock => None,
            other => Some(other?),
        };
        self.check_keys(&mut report)?;
        let list = self.snapshots()?;
        let mut table = Table::load(self.store(), self.sealer())?;
        report.packs = table.packs.len();
        for (name, error) in &table.damaged {
            report.problem(name, reason(error));
        }
        self.check_packs(&mut table, read_percent, progress, &mut report)?;
        let index = table.index(|_| true)?;
        let reader = BlobReader::new(
            self.store_arc(),
            self.sealer_arc(),
            index.into(),
            lock.map(Into::into),
        );
        let mut walk = Walk::new(&reader, progress);
        for snapshot in list.snapshots {
            walk.snapshot(snapshot, &mut report)?;
        }
        for damaged in list.damaged {
            report.snapshots += 1;
            let name = format!("snapshots/{}", damaged.id);
            report.problem(name, reason(&damaged.error));
            report.hurt.push(HurtSnapshot {
                id: damaged.id,
                snapshot: None,
                paths: vec!["/".to_owned()],
            });
        }
        report.problems.extend(walk.problems);
        Ok(report)
    }

    fn check_locks(&self, report: &mut CheckReport) -> Result<()> {
        for lock in lock::list(self.store(), self.sealer())? {
            if let Some(reason) = lock.damaged {
                report.problem(format!("locks/{}", lock.id), reason);
            } else if lock.stale {
                let since = lock.time;
                report.notes.push(format!(
                    "locks/{} of {} is stale since {since}",
                    lock.id, lock.hostname
                ));
            }
        }
        Ok(())
    }

    fn check_keys(&self, report: &mut CheckReport) -> Result<()> {
        let keys = self.store().list(Kind::Key);
        for key in keys.map_err(|e| Error::store("list", "keys", e))? {
            let name = FileName::new(Kind::Key, key.id);
            let data = crate::unpacked::read_stored(self.store(), &name)?;
            if Id::of(&data) != key.id {
                report.problem(name, "its content does not have the hash it is named by");
            }
        }
        Ok(())
    }

    /// Takes out of the table what is not good.
    fn check_packs(
        &self,
        table: &mut Table,
        read_percent: f64,
        progress: &dyn Progress,
        report: &mut CheckReport,
    ) -> Result<()> {
        let mut packs: Vec<Id> = table.packs.keys().copied().collect();
        packs.sort_unstable();
        for pack in packs {
            check_cancel(progress)?;
            let whole = table.is_whole(&pack);
            let mut state = self.look_at_pack(table, pack);
            if whole && is_sampled(read_percent)? {
                state = self.read_pack(pack, &table.packs[&pack])?;
                report.packs_read += 1;
                report.bytes_read += table.sizes[&pack];
                advance(progress, table.sizes[&pack]);
            }
            if let Some(problem) = state.problem {
                report.problem(FileName::new(Kind::Pack, pack), problem);
                table.packs.insert(pack, state.good);
            }
        }
        let orphans = table.orphans().len();
        if orphans > 0 {
            report.notes.push(format!(
                "{orphans} packs are in no index: of a backup that runs or was interrupted, or \
                 of an index file that is gone"
            ));
        }
        Ok(())
    }

    fn look_at_pack(&self, table: &Table, pack: Id) -> PackState {
        let blobs = &table.packs[&pack];
        let (problem, size) = match table.sizes.get(&pack) {
            None => ("it is missing".to_owned(), 0),
            Some(size) if table.is_whole(&pack) => {
                return PackState {
                    good: blobs.clone(),
                    problem: (*size == 0).then(|| "it is empty".to_owned()),
                };
            }
            Some(size) => {
                let text = format!("its {size} bytes are not what the index says");
                (text, *size)
            }
        };
        let inside = |b: &&PackedBlob| {
            u64::from(b.offset_bytes) + u64::from(b.sealed_bytes) <= size && size > 0
        };
        PackState {
            good: blobs.iter().filter(inside).copied().collect(),
            problem: Some(problem),
        }
    }

    /// Reads a pack and looks at each blob that the index says it holds.
    pub(crate) fn read_pack(&self, pack: Id, blobs: &[PackedBlob]) -> Result<PackState> {
        let name = FileName::new(Kind::Pack, pack);
        let data = match self.store().read_full(&name, MAX_PACK_BYTES) {
            Ok(data) => data,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let problem = Some("it is missing".to_owned());
                let good = Vec::new();
                return Ok(PackState { good, problem });
            }
            Err(error) => return Err(Error::store("read", name, error)),
        };
        let is_good = |blob: &&PackedBlob| {
            let start = blob.offset_bytes as usize;
            let sealed = start
                .checked_add(blob.sealed_bytes as usize)
                .and_then(|end| data.get(start..end));
            match (place(pack, blob), sealed) {
                (Some(place), Some(sealed)) => {
                    decode(self.sealer(), &blob.id, &place, &mut sealed.to_vec()).is_ok()
                }
                _ => false,
            }
        };
        // The hash of the whole answers for all of it.
        let matches = Id::of(&data) == pack;
        let good: Vec<PackedBlob> = match matches {
            true => blobs.to_vec(),
            false => blobs.iter().filter(is_good).copied().collect(),
        };
        let problem = (!matches).then(|| {
            let bad = blobs.len() - good.len();
            format!(
                "its content does not have the hash it is named by; {bad} of {} blobs are lost",
                blobs.len()
            )
        });
        Ok(PackState { good, problem })
    }
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.hurt.is_empty()
    }

    fn problem(&mut self, object: impl ToString, reason: impl ToString) {
        self.problems.push(Problem {
            object: object.to_string(),
            reason: reason.to_string(),
        });
    }
}

/// The reason without the name of the object, which is told beside it.
fn reason(error: &Error) -> String {
    match error {
        Error::Damaged { reason, .. } => reason.clone(),
        Error::Store { action, source, .. } => format!("cannot {action} it: {source}"),
        other => other.to_string(),
    }
}

/// Draws whether a pack is read.
fn is_sampled(percent: f64) -> Result<bool> {
    if percent >= 100.0 || percent <= 0.0 {
        return Ok(percent > 0.0);
    }
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::System {
        what: "randomness",
        source: std::io::ErrorKind::Other.into(),
    })?;
    let drawn = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    Ok(drawn * 100.0 < percent)
}

/// A walk through the trees of snapshots. A folder that is good is walked once.
struct Walk<'a> {
    reader: &'a BlobReader,
    progress: &'a dyn Progress,
    good: HashSet<Id>,
    told: HashSet<Id>,
    problems: Vec<Problem>,
}

impl<'a> Walk<'a> {
    fn new(reader: &'a BlobReader, progress: &'a dyn Progress) -> Self {
        Self {
            reader,
            progress,
            good: HashSet::new(),
            told: HashSet::new(),
            problems: Vec::new(),
        }
    }

    fn snapshot(&mut self, snapshot: Snapshot, report: &mut CheckReport) -> Result<()> {
        report.snapshots += 1;
        let mut hurt = BTreeSet::new();
        self.folder(snapshot.tree, &mut Vec::new(), &mut hurt)?;
        if !hurt.is_empty() {
            report.hurt.push(HurtSnapshot {
                id: snapshot.id.clone(),
                snapshot: Some(snapshot),
                paths: hurt.into_iter().collect(),
            });
        }
        Ok(())
    }

    /// Walks a folder; gives whether all below it is good.
    fn folder(
        &mut self,
        id: Id,
        path: &mut Vec<String>,
        hurt: &mut BTreeSet<String>,
    ) -> Result<bool> {
        if self.good.contains(&id) {
            return Ok(true);
        }
        check_cancel(self.progress)?;
        let tree = match self.reader.read_tree(&id) {
            Ok(tree) if path.len() < MAX_DEPTH => tree,
            Ok(_) => return self.bad_tree(id, path, hurt, "it is too deep"),
            Err(error) => return self.bad_tree(id, path, hurt, &reason(&error)),
        };
        let mut good = true;
        for node in tree.nodes {
            path.push(node.name.clone());
            good &= match (node.kind, node.subtree) {
                (NodeKind::Dir, Some(subtree)) => self.folder(subtree, path, hurt)?,
                (NodeKind::Dir, None) => hurt_path(path, hurt),
                (NodeKind::File, _) => self.file(&node) || hurt_path(path, hurt),
                (NodeKind::Other, _) => true,
            };
            path.pop();
        }
        if good {
            self.good.insert(id);
        }
        Ok(good)
    }

    fn bad_tree(
        &mut self,
        id: Id,
        path: &[String],
        hurt: &mut BTreeSet<String>,
        reason: &str,
    ) -> Result<bool> {
        if self.told.insert(id) {
            self.problems.push(Problem {
                object: format!("tree {id}"),
                reason: reason.to_owned(),
            });
        }
        Ok(hurt_path(path, hurt))
    }

    /// Whether all blobs of a file are there and add up to its length.
    fn file(&mut self, node: &Node) -> bool {
        let mut total = 0u64;
        for id in node.content.iter().flatten() {
            match self.reader.index().find(BlobKind::Data, id) {
                Some(place) => total = total.saturating_add(u64::from(place.raw_bytes)),
                None => {
                    if self.told.insert(*id) {
                        self.problems.push(Problem {
                            object: format!("blob {id}"),
                            reason: "no good pack holds it".to_owned(),
                        });
                    }
                    return false;
                }
            }
        }
        total == node.size
    }
}

/// Notes what is hurt; always `false`: not good.
fn hurt_path(path: &[String], hurt: &mut BTreeSet<String>) -> bool {
    let steps = &path[..path.len().min(TOLD_STEPS)];
    hurt.insert(format!("/{}", steps.join("/")));
    false
}
