//! `vmtwin restore`: maps the command line onto the restore recipe.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::launch;

use crate::cancel::Cancel;
use crate::cli::{Format, Network, RestoreArgs};
use crate::home::Home;
use crate::restore::{ImageFormat, Phase, RestoreProgress, RestoreReport, RestoreRequest, restore};
use crate::ui::{Ui, bytes};

pub(crate) fn run(home: &Home, ui: &Ui, cancel: &Cancel, args: &RestoreArgs) -> Result<i32> {
    let repository = home.repository()?;
    let snapshot = repository.snapshot(&args.id)?;
    let Some(vm) = snapshot.tag("vm") else {
        bail!(
            "snapshot {} is not of a guest; use restic to restore it",
            &snapshot.id[..8]
        );
    };
    let request = request(args, vm, &snapshot.id)?;
    let progress = Bars::new(ui);
    let cancelled = || cancel.is_set();
    let report = restore(&repository, &snapshot, &request, &progress, &cancelled)?;
    for warning in &report.warnings {
        ui.note(&format!("warning: {warning}"));
    }
    ui.result(&report, || text(&report))?;
    Ok(if report.warnings.is_empty() { 0 } else { 3 })
}

fn request(args: &RestoreArgs, vm: &str, id: &str) -> Result<RestoreRequest> {
    let dir = match &args.to {
        Some(dir) => dir.clone(),
        // The name comes from the repository: no path out of the current folder.
        None => {
            let safe = |c: char| {
                if c.is_ascii_alphanumeric() || c == '-' {
                    c
                } else {
                    '_'
                }
            };
            PathBuf::from(format!(
                "{}-{}",
                vm.chars().map(safe).collect::<String>(),
                &id[..8]
            ))
        }
    };
    Ok(RestoreRequest {
        dir: std::path::absolute(dir)?,
        format: args.format.map(|f| match f {
            Format::Qcow2 => ImageFormat::Qcow2,
            Format::Raw => ImageFormat::Raw,
        }),
        force: args.force,
        run: args.run,
        hold: false,
        network: match args.network {
            Network::None => launch::Network::None,
            Network::User => launch::Network::User,
            Network::Original => launch::Network::Original,
        },
        name: args.name.clone(),
        accel: args.accel.clone(),
        disks: (!args.disks.is_empty()).then(|| args.disks.clone()),
        memory: args.memory,
        guard: Some(GuardCommand {
            // This very program, also when its file was replaced by an upgrade meanwhile.
            program: PathBuf::from("/proc/self/exe"),
            args: vec!["restore-guard".into()],
        }),
    })
}

/// One bar at a time, for the phase that runs.
pub(crate) struct Bars<'a> {
    ui: &'a Ui,
    bar: Mutex<Option<ProgressBar>>,
}

impl<'a> Bars<'a> {
    pub(crate) fn new(ui: &'a Ui) -> Bars<'a> {
        Bars {
            ui,
            bar: Mutex::new(None),
        }
    }

    fn set(&self, bar: Option<ProgressBar>) {
        let mut now = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *now, bar) {
            old.finish_and_clear();
        }
    }
}

impl RestoreProgress for Bars<'_> {
    fn begin(&self, phase: Phase<'_>, total_bytes: u64) {
        let label = match phase {
            Phase::Disk(id) => format!("disk {id}"),
            Phase::Files => "files".to_owned(),
            Phase::Memory => "memory".to_owned(),
            Phase::Start => "starting".to_owned(),
        };
        let bar = match total_bytes {
            0 => self.ui.spinner(&label),
            total => self.ui.bar(&label, total),
        };
        self.set(Some(bar));
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        self.set(None);
    }
}

fn text(report: &RestoreReport) -> String {
    let mut lines = vec![format!(
        "{}: restored to {} in {:.1} s",
        report.vm,
        report.dir.display(),
        report.seconds
    )];
    for disk in &report.disks {
        lines.push(format!(
            "  {}  {} ({}, {} of {} written)",
            disk.id,
            disk.path.display(),
            disk.format.name(),
            bytes(disk.written_bytes),
            bytes(disk.size_bytes)
        ));
    }
    if let Some(path) = report.memory.as_ref().and_then(|m| m.path.as_ref()) {
        lines.push(format!("  memory  {}", path.display()));
    }
    if let Some(running) = &report.running {
        lines.push(format!("  {} as pid {}", running.run_state, running.pid));
        lines.push(format!("  QMP      {}", running.qmp_socket.display()));
        lines.push(format!("  console  {}", running.console_log.display()));
        lines.extend(running.changes.iter().map(|c| format!("  changed: {c}")));
    }
    lines.join("\n")
}
