//! Dirty bitmaps: what a guest has written since a point, as its QEMU notes it.
//!
//! A bitmap lies on a disk's root node and notes every write from when it was added. It may note
//! more than what changed since the point, never less: it is added before the point, and what is
//! read of it is a copy made after the next one ([`freeze`]). So nothing of it is in a pause.
//!
//! In a qcow2 image it is kept when QEMU ends in order. When QEMU is killed it is `inconsistent`
//! afterwards, and is good for nothing. Elsewhere it lives as long as the process.

use serde_json::{Value, json};

use crate::machine::Disk;
use crate::qmp::{Qmp, QmpError};

/// What one bit stands for: the piece that a changed grain is stored in.
const GRANULARITY_BYTES: u32 = 64 << 10;

/// A bitmap as QEMU reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// The block node that it lies on.
    pub node: String,
    /// Its name.
    pub name: String,
    /// It notes writes, has noted all of them, and nobody else works with it.
    pub usable: bool,
    /// It was lost when QEMU was killed.
    pub inconsistent: bool,
}

/// All bitmaps of a guest whose names begin with `prefix`.
///
/// # Errors
/// QEMU did not answer.
pub fn list(qmp: &mut Qmp, prefix: &str) -> Result<Vec<Bitmap>, QmpError> {
    let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true}))?;
    let mut found = Vec::new();
    for node in nodes.as_array().into_iter().flatten() {
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        let ours = bitmaps.filter_map(|bitmap| bitmap_of(node, bitmap));
        found.extend(ours.filter(|bitmap| bitmap.name.starts_with(prefix)));
    }
    Ok(found)
}

fn bitmap_of(node: &Value, bitmap: &Value) -> Option<Bitmap> {
    let flag = |key: &str| bitmap[key].as_bool().unwrap_or(false);
    Some(Bitmap {
        node: node["node-name"].as_str()?.to_owned(),
        name: bitmap["name"].as_str()?.to_owned(),
        usable: flag("recording") && !flag("busy") && !flag("inconsistent"),
        inconsistent: flag("inconsistent"),
    })
}

/// Adds a bitmap to a disk; kept in the image where its format can.
///
/// # Errors
/// QEMU refused: the image is of an old version, for example.
pub fn add(qmp: &mut Qmp, disk: &Disk, name: &str) -> Result<(), QmpError> {
    let mut arguments = json!({"node": disk.node_name, "name": name,
                               "granularity": GRANULARITY_BYTES});
    if disk.format == "qcow2" {
        arguments["persistent"] = Value::Bool(true);
        match qmp.execute("block-dirty-bitmap-add", arguments.clone()) {
            Err(QmpError::Refused { .. }) => arguments["persistent"] = Value::Bool(false),
            other => return other.map(drop),
        }
    }
    qmp.execute("block-dirty-bitmap-add", arguments).map(drop)
}

/// Copies what `bitmap` has noted so far into `copy`, which notes nothing more, so that it can be
/// exported.
///
/// # Errors
/// QEMU refused.
pub(crate) fn freeze(qmp: &mut Qmp, node: &str, bitmap: &str, copy: &str) -> Result<(), QmpError> {
    let new = json!({"node": node, "name": copy, "granularity": GRANULARITY_BYTES,
                     "disabled": true});
    qmp.execute("block-dirty-bitmap-add", new)?;
    let merge = json!({"node": node, "target": copy, "bitmaps": [bitmap]});
    qmp.execute("block-dirty-bitmap-merge", merge).map(drop)
}

/// Removes a bitmap, if it is there.
///
/// # Errors
/// QEMU refused.
pub fn remove(qmp: &mut Qmp, node: &str, name: &str) -> Result<(), QmpError> {
    let there = list(qmp, name)?;
    if !there
        .iter()
        .any(|bitmap| bitmap.node == node && bitmap.name == name)
    {
        return Ok(());
    }
    let arguments = json!({"node": node, "name": name});
    qmp.execute("block-dirty-bitmap-remove", arguments)
        .map(drop)
}
