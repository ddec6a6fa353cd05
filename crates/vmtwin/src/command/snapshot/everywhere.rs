//! `snapshot list --all-repos`: points in all repositories, and which of them hold each.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use vmtwin_repository::{Id, Repository, Snapshot};

use super::{Row, row};
use crate::home::{Home, MAIN};
use crate::ui::{Ui, table};
use crate::{EXIT_FAILED, EXIT_WARNINGS};

/// A point of a guest.
#[derive(Debug, Serialize)]
struct PointRow {
    #[serde(flatten)]
    row: Row,
    /// Where it is.
    repositories: Vec<Copy>,
}

/// A snapshot of the point.
#[derive(Debug, Serialize)]
struct Copy {
    /// Name of the repository.
    name: String,
    /// Id of the snapshot there.
    id: String,
}

/// Lists all; a repository that cannot be read is a warning, if another can.
pub(super) fn list(home: &Home, ui: &Ui, vm: Option<&str>) -> Result<i32> {
    let mut repositories = vec![(MAIN.to_owned(), home.repository())];
    for (name, _) in home.named()? {
        let opened = home.open_named(&name);
        repositories.push((name, opened));
    }
    let (mut warnings, mut unread) = (0, 0);
    let mut points: BTreeMap<_, PointRow> = BTreeMap::new();
    let all = repositories.len();
    for (name, opened) in repositories {
        let read = opened.and_then(|repository| snapshots(&repository, ui, vm, &mut warnings));
        match read {
            Ok(snapshots) => {
                for snapshot in snapshots {
                    add(&mut points, &name, &snapshot)?;
                }
            }
            Err(error) => {
                unread += 1;
                ui.note(&format!("warning: {name} cannot be read: {error:#}"));
                if unread == all {
                    return Ok(EXIT_FAILED);
                }
            }
        }
    }
    let rows: Vec<PointRow> = points.into_values().collect();
    ui.result(&rows, || text(&rows))?;
    Ok(if warnings + unread == 0 {
        0
    } else {
        EXIT_WARNINGS
    })
}

fn snapshots(
    repository: &Repository,
    ui: &Ui,
    vm: Option<&str>,
    warnings: &mut usize,
) -> Result<Vec<Snapshot>> {
    let all = repository.snapshots()?;
    for damaged in &all.damaged {
        *warnings += 1;
        let (id, error) = (&damaged.id, &damaged.error);
        ui.note(&format!("warning: snapshot {id} cannot be read: {error}"));
    }
    let of_vm = |s: &Snapshot| {
        s.tag("vm")
            .is_some_and(|name| vm.is_none_or(|wanted| wanted == name))
    };
    Ok(all.snapshots.into_iter().filter(of_vm).collect())
}

/// Copies have the time, the origin and the content of what they were made of.
fn add(
    points: &mut BTreeMap<(i128, String, Id), PointRow>,
    name: &str,
    snapshot: &Snapshot,
) -> Result<()> {
    let origin = snapshot.original.as_ref().unwrap_or(&snapshot.id).clone();
    let key = (snapshot.time.unix_timestamp_nanos(), origin, snapshot.tree);
    let copy = Copy {
        name: name.to_owned(),
        id: snapshot.id.clone(),
    };
    match points.get_mut(&key) {
        Some(point) => point.repositories.push(copy),
        None => {
            let row = row(snapshot)?;
            let repositories = vec![copy];
            points.insert(key, PointRow { row, repositories });
        }
    }
    Ok(())
}

fn text(rows: &[PointRow]) -> String {
    if rows.is_empty() {
        return "no snapshots yet; make one: vmtwin backup VM".into();
    }
    let copies = |point: &PointRow| {
        let one = |copy: &Copy| format!("{}:{}", copy.name, copy.id.get(..8).unwrap_or(&copy.id));
        let all: Vec<String> = point.repositories.iter().map(one).collect();
        all.join(" ")
    };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|point| {
            let time = point.row.time.get(..19).unwrap_or(&point.row.time);
            vec![
                point.row.vm.clone(),
                time.replace('T', " "),
                point.row.consistency.clone(),
                copies(point),
            ]
        })
        .collect();
    table(&["VM", "POINT (UTC)", "CONSISTENCY", "IN"], &cells)
}
