//! Snapshots: what was backed up when, and the tree that holds it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::{Error, Result};
use crate::id::Id;

/// What the caller says about a backup when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The instant the backup shows.
    pub time: OffsetDateTime,
    /// Host the backup is of.
    pub hostname: String,
    /// User that made it.
    pub username: String,
    /// Labels, for example `vm=web01`.
    pub tags: Vec<String>,
    /// What was backed up, as absolute paths. restic groups snapshots by host and paths, so the
    /// same guest should always give the same ones. Empty means `/`.
    pub paths: Vec<String>,
    /// Free text; stock restic ignores it.
    pub description: Option<String>,
    /// Full hexadecimal id of the snapshot that this one builds on.
    pub parent: Option<String>,
}

impl Default for SnapshotMeta {
    /// Now, on this host, by this user, with no labels.
    fn default() -> Self {
        Self {
            time: OffsetDateTime::now_utc(),
            hostname: crate::host::hostname(),
            username: crate::host::username(),
            tags: Vec::new(),
            paths: Vec::new(),
            description: None,
            parent: None,
        }
    }
}

/// A snapshot of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The instant it shows.
    pub time: OffsetDateTime,
    /// Host it is of.
    pub hostname: String,
    /// User that made it.
    pub username: String,
    /// Labels.
    pub tags: Vec<String>,
    /// What was backed up.
    pub paths: Vec<String>,
    /// Free text.
    pub description: Option<String>,
    /// Id of the snapshot it builds on.
    pub parent: Option<String>,
    /// Id of the snapshot of another repository that it is a copy of.
    pub original: Option<String>,
    /// Id of its root tree.
    pub tree: Id,
}

impl Snapshot {
    /// The value of the first tag `key=value`.
    #[must_use]
    pub fn tag(&self, key: &str) -> Option<&str> {
        let value = |tag: &'_ String| tag.strip_prefix(key)?.strip_prefix('=').map(str::len);
        self.tags
            .iter()
            .find_map(|tag| value(tag).map(|len| &tag[tag.len() - len..]))
    }
}

/// All snapshots of a repository, and those that could not be read.
#[derive(Debug)]
pub struct SnapshotList {
    /// By time, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Files that are there but do not open.
    pub damaged: Vec<DamagedSnapshot>,
}

/// A snapshot file that does not open.
#[derive(Debug)]
pub struct DamagedSnapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Why it does not open.
    pub error: Error,
}

/// The JSON of a snapshot. Fields that restic writes and we do not need are left out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Id>,
    tree: Id,
    #[serde(default)]
    paths: Option<Vec<String>>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original: Option<Id>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    program_version: String,
}

impl SnapshotFile {
    pub(crate) fn new(meta: SnapshotMeta, tree: Id) -> Result<Self> {
        let parent = meta.parent.as_deref().map(str::parse).transpose();
        let parent = parent.map_err(|_| Error::InvalidOption {
            reason: "the parent must be a full snapshot id".to_owned(),
        })?;
        let paths = if meta.paths.is_empty() {
            vec!["/".to_owned()]
        } else {
            meta.paths
        };
        Ok(Self {
            time: meta.time,
            parent,
            tree,
            paths: Some(paths),
            hostname: meta.hostname,
            username: meta.username,
            uid: crate::host::uid(),
            gid: crate::host::gid(),
            tags: (!meta.tags.is_empty()).then_some(meta.tags),
            description: meta.description,
            original: None,
            program_version: concat!("vmtwin ", env!("CARGO_PKG_VERSION")).to_owned(),
        })
    }

    /// The same snapshot for another repository: without its parent, which has another id there.
    pub(crate) fn copy_of(self, id: Id) -> Self {
        Self {
            parent: None,
            original: Some(self.original.unwrap_or(id)),
            ..self
        }
    }

    pub(crate) fn into_snapshot(self, id: Id) -> Snapshot {
        Snapshot {
            id: id.to_hex(),
            time: self.time,
            hostname: self.hostname,
            username: self.username,
            tags: self.tags.unwrap_or_default(),
            paths: self.paths.unwrap_or_default(),
            description: self.description,
            parent: self.parent.map(|id| id.to_hex()),
            original: self.original.map(|id| id.to_hex()),
            tree: self.tree,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_restic() {
        let text = format!(
            r#"{{"time":"2024-05-06T07:08:09.123456789+02:00","tree":"{}","paths":["/a"],
                "hostname":"h","username":"u","excludes":["x"]}}"#,
            Id::of(b"")
        );
        let file: SnapshotFile = serde_json::from_str(&text).unwrap();
        let snapshot = file.into_snapshot(Id::of(b"s"));
        assert_eq!(snapshot.time.nanosecond(), 123_456_789);
        assert!(snapshot.tags.is_empty());
    }

    #[test]
    fn tags_with_values() {
        let meta = SnapshotMeta {
            tags: vec!["vmx=1".into(), "vm=web=1".into(), "vm".into()],
            ..SnapshotMeta::default()
        };
        let snapshot = SnapshotFile::new(meta, Id::of(b""))
            .unwrap()
            .into_snapshot(Id::of(b"s"));
        assert_eq!(snapshot.tag("vm"), Some("web=1"));
        assert_eq!(snapshot.tag("x"), None);
    }
}
