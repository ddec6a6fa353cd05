//! What a backup builds on: the snapshot before it, and the guest's own note of what it wrote since.
//!
//! Every backup leaves a dirty bitmap on each disk, of a name that its snapshot carries. The next one
//! looks for the newest snapshot whose bitmap is there and good, and reads what the bitmap has noted
//! (and what the twin of that snapshot wrote, which the guest never had). Any doubt means that the
//! disk is read as a whole; the report says why.
//!
//! ```text
//!   bitmap B1, snapshot S1 ─► add B2 ─► point ─► read what B1 noted ─► save S2 ─► remove B1
//!                             └──────── on any error: remove B2 ────┘
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use vmtwin_catalog::JobId;
use vmtwin_hypervisor::bitmap::{self, Bitmap};
use vmtwin_hypervisor::capture::Journal;
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_hypervisor::qmp::{Qmp, QmpError};
use vmtwin_hypervisor::undo::{GuestRef, Undo};
use vmtwin_repository::{Backup, ParentImage, Repository, SnapshotReader};

use super::{CONNECT_TIMEOUT, Work};
use crate::cli::Consistency;
use crate::content::{self, Content, MACHINE_JSON, MAX_JSON_BYTES, SNAPSHOT_JSON};
use crate::journal::JobJournal;

/// Earlier snapshots that are looked at.
const MAX_SNAPSHOTS: usize = 50;

/// What one disk builds on.
#[derive(Default)]
pub(super) struct DiskBase {
    /// Its image in an earlier snapshot.
    pub(super) parent: Option<Arc<ParentImage>>,
    /// The bitmap that notes what was written since.
    pub(super) bitmap: Option<String>,
    /// What that snapshot's twin wrote: offset and length.
    pub(super) twin_writes: Vec<(u64, u64)>,
    /// Why there is no bitmap to go by.
    pub(super) why_all: Option<String>,
}

/// What the disks of a guest build on, by their ids.
#[derive(Default)]
pub(super) struct Base(HashMap<String, DiskBase>);

impl Base {
    /// What a disk builds on.
    pub(super) fn disk(&self, id: &str) -> Option<&DiskBase> {
        self.0.get(id)
    }

    /// Disk and bitmap, where there is one to go by.
    pub(super) fn bitmaps(&self) -> Vec<(String, String)> {
        let pair = |(id, disk): (&String, &DiskBase)| Some((id.clone(), disk.bitmap.clone()?));
        self.0.iter().filter_map(pair).collect()
    }
}

/// Beginning of the names of all bitmaps that belong to a repository.
fn prefix(repository: &Repository) -> String {
    let id = repository.id();
    format!("vmtwin-{}-", &id[..id.len().min(8)])
}

fn bitmap_name(repository: &Repository, job: &JobId) -> String {
    let digits = job.as_str().chars().filter(|c| *c != '-').take(12);
    format!("{}{}", prefix(repository), digits.collect::<String>())
}

/// An earlier snapshot, opened.
struct Earlier {
    id: String,
    bitmap: Option<String>,
    opened: Option<Opened>,
}

/// What an earlier snapshot holds.
struct Opened {
    reader: SnapshotReader,
    content: Content,
    machine: Machine,
}

impl Opened {
    /// Whether the disk's image then is its image now. Where it is not, somebody took a snapshot
    /// perhaps, and gave the new image a bitmap of the same name, as libvirt does: that one has
    /// noted nothing of what was written before.
    fn had_image_of(&self, disk: &Disk) -> bool {
        let mut then = self.machine.disks.iter();
        then.any(|then| then.id == disk.id && then.address == disk.address)
    }
}

impl Work<'_> {
    /// Finds what the disks build on. Whatever is in the way is a reason to read all, no error.
    pub(super) fn find_base(
        &self,
        qmp: &mut Qmp,
        machine: &Machine,
        repository: &Repository,
        backup: &Backup,
    ) -> Result<Base> {
        let bitmaps = bitmap::list(qmp, &prefix(repository))?;
        let mut earlier = self.earlier_snapshots(repository)?;
        let disks = machine.disks.iter().filter(|disk| disk.included);
        let base = disks.map(|disk| {
            let on_disk = bitmaps
                .iter()
                .filter(|bitmap| bitmap.node == disk.node_name);
            let base = self.disk_base(disk, &on_disk.collect::<Vec<_>>(), &mut earlier, |id| {
                open(repository, backup, id)
            });
            (disk.id.clone(), base)
        });
        Ok(Base(base.collect()))
    }

    /// Those of this guest in this repository, newest first, as far as the catalog knows them.
    fn earlier_snapshots(&self, repository: &Repository) -> Result<Vec<Earlier>> {
        let rows = self
            .cx
            .db
            .run(async |c| c.snapshots(Some(&self.vm.name)).await)?;
        let id = repository.id();
        let of_this = |row: &vmtwin_catalog::Snapshot| {
            row.repository_id == id && row.vm_id.as_ref() == Some(&self.vm.id)
        };
        let rows = rows.into_iter().rev().filter(of_this).take(MAX_SNAPSHOTS);
        let earlier = rows.map(|row| Earlier {
            bitmap: row.report["bitmap"].as_str().map(str::to_owned),
            id: row.id,
            opened: None,
        });
        Ok(earlier.collect())
    }

    fn disk_base(
        &self,
        disk: &Disk,
        bitmaps: &[&Bitmap],
        earlier: &mut [Earlier],
        open: impl Fn(&str) -> Result<Opened>,
    ) -> DiskBase {
        let usable = |snapshot: &Earlier| {
            let name = snapshot.bitmap.as_ref()?;
            let found = bitmaps.iter().find(|bitmap| bitmap.name == *name)?;
            found.usable.then(|| name.clone())
        };
        let with_bitmap = earlier
            .iter()
            .position(|snapshot| usable(snapshot).is_some());
        let Some(snapshot) = earlier.get_mut(with_bitmap.unwrap_or(0)) else {
            return DiskBase {
                why_all: Some("it is the first backup of this guest here".into()),
                ..DiskBase::default()
            };
        };
        let bitmap = usable(snapshot);
        if snapshot.opened.is_none() {
            match open(&snapshot.id) {
                Ok(opened) => snapshot.opened = Some(opened),
                Err(error) => return DiskBase::all(format!("{:.8}: {error:#}", snapshot.id)),
            }
        }
        let Some(opened) = &snapshot.opened else {
            return DiskBase::default();
        };
        let moved = bitmap.is_some() && !opened.had_image_of(disk);
        let bitmap = bitmap.filter(|_| !moved);
        match parent_of(disk, opened) {
            Err(error) => DiskBase::all(format!("snapshot {:.8}: {error:#}", snapshot.id)),
            Ok((parent, twin_writes)) => DiskBase {
                parent: Some(Arc::new(parent)),
                why_all: match &bitmap {
                    _ if self.args.full => Some("--full".into()),
                    Some(_) => None,
                    None if moved => Some("its image was another one at that time".into()),
                    None if bitmaps.iter().any(|bitmap| bitmap.inconsistent) => {
                        Some("its bitmap was lost when QEMU was killed".into())
                    }
                    None => Some(
                        "no bitmap of an earlier backup is on it: QEMU was restarted, or the \
                         disk is another one"
                            .into(),
                    ),
                },
                bitmap: bitmap.filter(|_| !self.args.full),
                twin_writes,
            },
        }
    }

    /// Puts a new bitmap on every disk; where that fails the next backup reads all of the disk.
    pub(super) fn mark(
        &mut self,
        qmp: &mut Qmp,
        machine: &Machine,
        repository: &Repository,
    ) -> Result<Marks> {
        let guest = GuestRef::of(qmp).context("the guest is gone")?;
        let mut marks = Marks {
            name: bitmap_name(repository, self.job),
            prefix: prefix(repository),
            guest,
            undos: Vec::new(),
        };
        for disk in machine.disks.iter().filter(|disk| disk.included) {
            match self.mark_disk(qmp, disk, &mut marks) {
                Ok(Ok(())) => {}
                Ok(Err(refused)) => tracing::info!(%refused, disk = disk.id, "no dirty bitmap"),
                Err(error) => {
                    marks.undo(&mut self.journal(), Some(qmp))?;
                    return Err(error);
                }
            }
        }
        Ok(marks)
    }

    fn mark_disk(
        &self,
        qmp: &mut Qmp,
        disk: &Disk,
        marks: &mut Marks,
    ) -> Result<Result<(), QmpError>> {
        let undo = Undo::Bitmap {
            guest: marks.guest.clone(),
            node: disk.node_name.clone(),
            name: marks.name.clone(),
        };
        let mut journal = self.journal();
        let step = format!("mark {}", disk.id);
        let token = journal.register(&step, &undo);
        marks
            .undos
            .push((token.map_err(anyhow::Error::from_boxed)?, undo));
        journal.step(&step).map_err(anyhow::Error::from_boxed)?;
        match bitmap::add(qmp, disk, &marks.name) {
            Err(error @ QmpError::Refused { .. }) => Ok(Err(error)),
            other => Ok(Ok(other?)),
        }
    }

    /// Removes new bitmaps: no snapshot carries their name.
    pub(super) fn unmark(&self, marks: &Marks) -> Result<()> {
        marks.undo(&mut self.journal(), None)
    }

    fn journal(&self) -> JobJournal<'_> {
        JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone())
    }

    /// The snapshot is saved: its bitmaps stay, and those of earlier ones go. A bitmap too many
    /// costs the guest a little, so it is a warning.
    pub(super) fn advance(&mut self, marks: Marks) {
        let outcome = marks
            .keep(&mut self.journal())
            .and_then(|()| marks.remove_others());
        if let Err(error) = outcome {
            self.warn(format!(
                "dirty bitmaps of earlier backups are left: {error:#}"
            ));
        }
    }
}

impl DiskBase {
    fn all(why: String) -> DiskBase {
        DiskBase {
            why_all: Some(why),
            ..DiskBase::default()
        }
    }
}

fn open(repository: &Repository, backup: &Backup, id: &str) -> Result<Opened> {
    let reader = backup.reader(&repository.snapshot(id)?);
    let content = reader.read_file(SNAPSHOT_JSON, MAX_JSON_BYTES)?;
    let content = serde_json::from_slice(&content).context("its list is not valid")?;
    let machine = reader.read_file(MACHINE_JSON, MAX_JSON_BYTES)?;
    let machine = serde_json::from_slice(&machine).context("its machine is not valid")?;
    Ok(Opened {
        reader,
        content,
        machine,
    })
}

/// The disk's image in a snapshot, and what its twin wrote.
fn parent_of(disk: &Disk, opened: &Opened) -> Result<(ParentImage, Vec<(u64, u64)>)> {
    let Opened {
        reader, content, ..
    } = opened;
    let stored = content.disks.iter().find(|stored| stored.id == disk.id);
    let stored = stored.context("it does not hold this disk")?;
    anyhow::ensure!(
        stored.size_bytes == disk.size_bytes,
        "the disk's size has changed"
    );
    let image = reader.open_parent(&content::disk_dir(&disk.id))?;
    anyhow::ensure!(
        image.size_bytes() == disk.size_bytes,
        "its image has another size"
    );
    let twin_writes = match stored.twin_writes {
        false if content.consistency == Consistency::Application.as_str() => {
            anyhow::bail!("it does not tell what its twin wrote")
        }
        false => Vec::new(),
        true => {
            let bytes = reader.read_file(&content::twin_writes(&disk.id), MAX_JSON_BYTES)?;
            serde_json::from_slice(&bytes).context("the list of its twin's writes is not valid")?
        }
    };
    Ok((image, twin_writes))
}

/// New bitmaps on a guest's disks. They go unless the snapshot that they belong to is saved.
pub(super) struct Marks {
    pub(super) name: String,
    prefix: String,
    guest: GuestRef,
    undos: Vec<(u64, Undo)>,
}

impl Marks {
    /// Removes them, over the connection that is open, if one is.
    fn undo(&self, journal: &mut JobJournal<'_>, mut qmp: Option<&mut Qmp>) -> Result<()> {
        for (token, undo) in &self.undos {
            undo.apply_with(qmp.as_deref_mut())?;
            journal.undone(*token).map_err(anyhow::Error::from_boxed)?;
        }
        Ok(())
    }

    /// They are no longer to be removed.
    fn keep(&self, journal: &mut JobJournal<'_>) -> Result<()> {
        for (token, _) in &self.undos {
            journal.undone(*token).map_err(anyhow::Error::from_boxed)?;
        }
        Ok(())
    }

    /// Whether a bitmap is on no disk's root.
    fn is_below(&self, bitmap: &Bitmap) -> bool {
        let on = |undo: &Undo| matches!(undo, Undo::Bitmap { node, .. } if *node == bitmap.node);
        !self.undos.iter().any(|(_, undo)| on(undo))
    }

    fn remove_others(&self) -> Result<()> {
        let mut qmp = match Qmp::connect(&self.guest.qmp, CONNECT_TIMEOUT) {
            Err(error) if error.is_gone() => return Ok(()),
            other => other?,
        };
        for other in bitmap::list(&mut qmp, &self.prefix)? {
            if other.name == self.name {
                continue;
            }
            match bitmap::remove(&mut qmp, &other.node, &other.name) {
                // In an image below somebody's snapshot. It goes when that image is written again.
                Err(error @ QmpError::Refused { .. }) if self.is_below(&other) => {
                    tracing::info!(%error, "a dirty bitmap is left");
                }
                other => other?,
            }
        }
        Ok(())
    }
}
