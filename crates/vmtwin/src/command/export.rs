//! `vmtwin export`: serves the disks of a snapshot until Ctrl-C.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_nbd::Server;

use crate::cancel::Cancel;
use crate::cli::ExportArgs;
use crate::export::{Exports, Place};
use crate::home::Home;
use crate::ui::{Ui, bytes, table};

/// What is served.
#[derive(Debug, Serialize)]
struct Report {
    /// Id of the snapshot.
    snapshot: String,
    /// Name of the guest.
    vm: String,
    exports: Vec<Row>,
}

/// One disk.
#[derive(Debug, Serialize)]
struct Row {
    /// Id of the disk, and name of the export.
    disk: String,
    size_bytes: u64,
    /// NBD URI.
    uri: String,
}

pub(crate) fn run(home: &Home, ui: &Ui, cancel: &Cancel, args: &ExportArgs) -> Result<i32> {
    let repository = home.repository()?;
    let snapshot = repository.snapshot(&args.id)?;
    if snapshot.tag("vm").is_none() {
        let id = &snapshot.id[..8];
        bail!("snapshot {id} is not of a guest; look at it with restic");
    }
    let place = match (&args.socket, &args.listen) {
        (Some(socket), _) => Place::unix(socket)?,
        (None, Some(address)) => Place::tcp(address, args.allow_remote)?,
        (None, None) => Place::in_home(home)?,
    };
    let reader = repository.reader(&snapshot)?;
    let wanted = (!args.disks.is_empty()).then_some(args.disks.as_slice());
    let exports = Exports::open(&reader, wanted)?;
    let row = |export: &vmtwin_nbd::ServedExport| Row {
        disk: export.name.clone(),
        size_bytes: export.image.size_bytes(),
        uri: place.uri(&export.name),
    };
    let report = Report {
        snapshot: snapshot.id.clone(),
        vm: exports.vm.clone(),
        exports: exports.served.iter().map(row).collect(),
    };
    let server = Server::new(exports.served).context("cannot serve the disks")?;
    if place.is_open() {
        ui.note("warning: TCP is not protected: whoever reaches this address reads the disks");
    }
    ui.result(&report, || text(&report))?;
    ui.note("serving until Ctrl-C");
    let served = server.run(&place.listener, &cancel.flag());
    served.context("cannot go on serving")?;
    match exports.errors.load(Ordering::Relaxed) {
        0 => Ok(0),
        errors => {
            ui.note(&format!("warning: {errors} reads failed; see above"));
            Ok(3)
        }
    }
}

fn text(report: &Report) -> String {
    let cells = report.exports.iter().map(|row| {
        let size = bytes(row.size_bytes);
        vec![row.disk.clone(), size, row.uri.clone()]
    });
    let cells: Vec<Vec<String>> = cells.collect();
    let mut lines = vec![table(&["DISK", "SIZE", "URI"], &cells)];
    if let Some(row) = report.exports.first() {
        lines.push(format!("use: nbdcopy '{}' {}.raw", row.uri, row.disk));
    }
    lines.join("\n")
}
