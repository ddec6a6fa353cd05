//! `vmtwin snapshot …`: what the repository holds.
//!
//! The repository is asked, not the catalog: what is listed is what can be restored. The catalog
//! is brought up to it on the way.

mod everywhere;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_repository::{Repository, Snapshot};

use crate::cli::SnapshotCommand;
use crate::content::{CONTENT_FORMAT, Content, MACHINE_JSON, MAX_JSON_BYTES, SNAPSHOT_JSON};
use crate::home::Home;
use crate::ui::{Ui, bytes, table};

/// A snapshot in a list.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    vm: String,
    time: String,
    consistency: String,
    hostname: String,
}

/// A snapshot in detail.
#[derive(Debug, Serialize)]
pub(crate) struct Detail {
    #[serde(flatten)]
    row: Row,
    pub(crate) content: Content,
    pub(crate) machine: Machine,
}

pub(crate) fn run(home: &Home, ui: &Ui, command: &SnapshotCommand) -> Result<i32> {
    if let SnapshotCommand::List {
        vm,
        all_repos: true,
    } = command
    {
        return everywhere::list(home, ui, vm.as_deref());
    }
    let repository = home.repository()?;
    match command {
        SnapshotCommand::List { vm, .. } => list(&repository, ui, vm.as_deref()),
        SnapshotCommand::Show { id } => show(&repository, ui, id).map(|()| 0),
        SnapshotCommand::Verify(_)
        | SnapshotCommand::Forget(_)
        | SnapshotCommand::Forgotten
        | SnapshotCommand::Keep(_)
        | SnapshotCommand::Ls(_)
        | SnapshotCommand::Get(_) => {
            bail!("this command needs more than the repository")
        }
    }
}

fn row(snapshot: &Snapshot) -> Result<Row> {
    let tag = |key| snapshot.tag(key).unwrap_or_default().to_owned();
    Ok(Row {
        id: snapshot.id.clone(),
        vm: tag("vm"),
        time: snapshot.time.format(&Rfc3339)?,
        consistency: tag("consistency"),
        hostname: snapshot.hostname.clone(),
    })
}

/// Lists guests' snapshots; others in the same repository are none of ours.
fn list(repository: &Repository, ui: &Ui, vm: Option<&str>) -> Result<i32> {
    let all = repository.snapshots()?;
    let mut rows = Vec::new();
    for snapshot in &all.snapshots {
        if snapshot
            .tag("vm")
            .is_some_and(|name| vm.is_none_or(|wanted| wanted == name))
        {
            rows.push(row(snapshot)?);
        }
    }
    for damaged in &all.damaged {
        ui.note(&format!(
            "warning: snapshot {} cannot be read: {}",
            damaged.id, damaged.error
        ));
    }
    ui.result(&rows, || {
        if rows.is_empty() {
            return "no snapshots yet; make one: vmtwin backup VM".into();
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|r| {
                let time = r.time.get(..19).unwrap_or(&r.time).replace('T', " ");
                let id = r.id.get(..8).unwrap_or(&r.id).to_owned();
                vec![
                    id,
                    r.vm.clone(),
                    time,
                    r.consistency.clone(),
                    r.hostname.clone(),
                ]
            })
            .collect();
        table(&["ID", "VM", "POINT (UTC)", "CONSISTENCY", "HOST"], &cells)
    })?;
    Ok(if all.damaged.is_empty() { 0 } else { 3 })
}

fn show(repository: &Repository, ui: &Ui, id: &str) -> Result<()> {
    let snapshot = repository.snapshot(id)?;
    let detail = Detail::read(repository, &snapshot)?;
    ui.result(&detail, || text(&detail))
}

impl Detail {
    /// Reads what a snapshot of a guest says of itself.
    pub(crate) fn read(repository: &Repository, snapshot: &Snapshot) -> Result<Detail> {
        if snapshot.tag("vm").is_none() {
            bail!(
                "snapshot {} is not of a guest; look at it with restic",
                &snapshot.id[..8]
            );
        }
        let reader = repository.reader(snapshot)?;
        let read = |path: &str| reader.read_file(path, MAX_JSON_BYTES);
        let content: Content = serde_json::from_slice(&read(SNAPSHOT_JSON)?)
            .with_context(|| format!("{SNAPSHOT_JSON} in the snapshot is not valid"))?;
        if content.format > CONTENT_FORMAT {
            bail!("the snapshot was made by a newer vmtwin; use that version");
        }
        let machine: Machine = serde_json::from_slice(&read(MACHINE_JSON)?)
            .with_context(|| format!("{MACHINE_JSON} in the snapshot is not valid"))?;
        Ok(Detail {
            row: row(snapshot)?,
            content,
            machine,
        })
    }
}

fn text(d: &Detail) -> String {
    let mut lines = vec![
        format!("{}  {}  {}", d.row.id, d.row.vm, d.row.consistency),
        format!("  point    {}", d.row.time),
        format!("  state    {} at the point", d.content.run_state),
        format!(
            "  machine  {} on QEMU {}",
            d.machine.machine_type, d.machine.qemu_version
        ),
        format!("  memory   {}", memory_text(d)),
    ];
    let cells: Vec<Vec<String>> = d
        .content
        .disks
        .iter()
        .map(|k| vec![format!("  {}", k.id), bytes(k.size_bytes), k.format.clone()])
        .collect();
    lines.push(table(&["  DISK", "SIZE", "FORMAT"], &cells));
    let id = d.row.id.get(..8).unwrap_or(&d.row.id);
    lines.push(format!("restore: vmtwin restore {id} --to DIR [--run]"));
    lines.join("\n")
}

fn memory_text(d: &Detail) -> String {
    use crate::content::ContentMemory;
    match &d.content.memory {
        None => "not held (crash-consistent)".into(),
        Some(ContentMemory::Parsed { blocks, .. }) => {
            format!("{} in {blocks} blocks", bytes(d.machine.memory_bytes))
        }
        Some(ContentMemory::Stream { stream_bytes, .. }) => {
            format!("{} as one stream", bytes(*stream_bytes))
        }
    }
}
