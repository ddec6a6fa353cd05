//! What a snapshot holds, read and checked before anything is written.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use vmtwin_hypervisor::machine::{MACHINE_FORMAT, Machine};
use vmtwin_repository::{Image, SnapshotReader};

use super::error::RestoreError;
use super::files::{self, StoredFile};
use super::name;
use super::state::StoredState;
use crate::content::{
    CONTENT_FORMAT, Content, ContentDisk, MACHINE_JSON, MAX_JSON_BYTES, SNAPSHOT_JSON, disk_dir,
};

/// What is to be restored.
pub(crate) struct Inventory {
    pub(crate) content: Content,
    pub(super) machine: Machine,
    pub(crate) disks: Vec<StoredDisk>,
    pub(super) files: Vec<StoredFile>,
}

/// A disk to be restored.
pub(crate) struct StoredDisk {
    pub(crate) id: String,
    /// Format it had on the host.
    pub(super) format: String,
    pub(crate) image: Image,
}

impl Inventory {
    /// Reads the lists and opens the images of the disks that are wanted.
    pub(crate) fn read(
        reader: &SnapshotReader,
        wanted: Option<&[String]>,
    ) -> Result<Inventory, RestoreError> {
        let content: Content = read_json(reader, SNAPSHOT_JSON, CONTENT_FORMAT)?;
        let machine: Machine = read_json(reader, MACHINE_JSON, MACHINE_FORMAT)?;
        check_ids(&content.disks)?;
        let chosen = choose(&content.disks, wanted)?;
        let disks = chosen.into_iter().map(|disk| open_disk(reader, disk));
        Ok(Inventory {
            disks: disks.collect::<Result<_, _>>()?,
            files: files::list(reader)?,
            content,
            machine,
        })
    }

    /// Disks that the snapshot holds, but that are not wanted.
    pub(super) fn left_out(&self) -> impl Iterator<Item = &str> {
        let ids = self.content.disks.iter().map(|disk| disk.id.as_str());
        ids.filter(|id| !self.disks.iter().any(|disk| disk.id == *id))
    }

    /// The memory in the snapshot, read up to its images.
    pub(super) fn open_state(&self, reader: &SnapshotReader) -> Result<StoredState, RestoreError> {
        match &self.content.memory {
            Some(memory) => StoredState::open(reader, memory),
            None => Err(RestoreError::NoMemory {
                consistency: self.content.consistency.clone(),
            }),
        }
    }
}

/// Reads a list whose `format` is known.
pub(super) fn read_json<T: DeserializeOwned>(
    reader: &SnapshotReader,
    path: &'static str,
    known: u32,
) -> Result<T, RestoreError> {
    /// All that lists of every version have.
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    let bytes = reader.read_file(path, MAX_JSON_BYTES)?;
    let damaged = |error| RestoreError::damaged(path, error);
    let version: Version = serde_json::from_slice(&bytes).map_err(damaged)?;
    match version.format {
        0 => Err(RestoreError::damaged(path, "it has format 0")),
        found if found > u64::from(known) => Err(RestoreError::NewerFormat { path, found, known }),
        _ => serde_json::from_slice(&bytes).map_err(damaged),
    }
}

fn check_ids(disks: &[ContentDisk]) -> Result<(), RestoreError> {
    let mut seen = std::collections::HashSet::new();
    for disk in disks {
        if !name::is_plain(&disk.id) {
            let why = format!("{:?} is no plain name of a disk", disk.id);
            return Err(RestoreError::damaged(SNAPSHOT_JSON, why));
        }
        if !seen.insert(&disk.id) {
            let why = format!("it lists disk {:?} twice", disk.id);
            return Err(RestoreError::damaged(SNAPSHOT_JSON, why));
        }
    }
    Ok(())
}

fn choose<'a>(
    disks: &'a [ContentDisk],
    wanted: Option<&[String]>,
) -> Result<Vec<&'a ContentDisk>, RestoreError> {
    let Some(wanted) = wanted else {
        return Ok(disks.iter().collect());
    };
    if let Some(id) = wanted
        .iter()
        .find(|id| !disks.iter().any(|disk| disk.id == **id))
    {
        let known: Vec<&str> = disks.iter().map(|disk| disk.id.as_str()).collect();
        return Err(RestoreError::UnknownDisk {
            id: id.clone(),
            known: known.join(", "),
        });
    }
    Ok(disks
        .iter()
        .filter(|disk| wanted.contains(&disk.id))
        .collect())
}

fn open_disk(reader: &SnapshotReader, disk: &ContentDisk) -> Result<StoredDisk, RestoreError> {
    let dir = disk_dir(&disk.id);
    let image = reader.open_image(&dir)?;
    if image.size_bytes() != disk.size_bytes {
        let (listed, found) = (disk.size_bytes, image.size_bytes());
        let why = format!("the list says {listed} bytes, the image has {found}");
        return Err(RestoreError::damaged(dir, why));
    }
    Ok(StoredDisk {
        id: disk.id.clone(),
        format: disk.format.clone(),
        image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: &str) -> ContentDisk {
        ContentDisk {
            id: id.into(),
            size_bytes: 1,
            format: "raw".into(),
            twin_writes: false,
        }
    }

    #[test]
    fn ids_are_plain_and_unique() {
        check_ids(&[disk("a"), disk("b")]).unwrap();
        for disks in [[disk("a"), disk("a")], [disk("a"), disk("../../etc/x")]] {
            assert!(matches!(
                check_ids(&disks),
                Err(RestoreError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn only_known_disks_are_chosen() {
        let disks = [disk("a"), disk("b")];
        let ids = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|id| (*id).to_owned()).collect();
            let chosen = choose(&disks, Some(&wanted))?;
            Ok::<_, RestoreError>(
                chosen
                    .iter()
                    .map(|disk| disk.id.clone())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(ids(&["b"]).unwrap(), ["b"]);
        assert!(ids(&[]).unwrap().is_empty());
        assert!(matches!(ids(&["c"]), Err(RestoreError::UnknownDisk { .. })));
        assert_eq!(choose(&disks, None).unwrap().len(), 2);
    }
}
