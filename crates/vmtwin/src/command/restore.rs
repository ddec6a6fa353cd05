//! `vmtwin restore`: maps the command line onto the restore recipe.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::json;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::launch;
use vmtwin_repository::{Repository, Snapshot};

use crate::cancel::Cancel;
use crate::cli::{Format, Network, RestoreArgs};
use crate::home::Home;
use crate::libvirt;
use crate::libvirt::define::{Plan, Wanted};
use crate::restore::instant::{self, Followed, Keeper, Record, Said};
use crate::restore::{ImageFormat, Phase, RestoreProgress, RestoreReport, RestoreRequest, restore};
use crate::ui::{Ui, bytes};

pub(crate) fn run(home: &Home, ui: &Ui, cancel: &Cancel, args: &RestoreArgs) -> Result<i32> {
    match &args.to {
        Some(dir) if args.instant && instant::is_keeper() => {
            return keep(home, cancel, args, &std::path::absolute(dir)?);
        }
        Some(dir) if args.instant => {
            return instant(home, ui, cancel, args, &std::path::absolute(dir)?);
        }
        _ => {}
    }
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
    if let Some(uri) = &args.libvirt {
        return into_libvirt(
            home,
            ui,
            args,
            uri,
            request,
            (&repository, &snapshot),
            &cancelled,
        );
    }
    let report = restore(&repository, &snapshot, &request, &progress, &cancelled)?;
    tell_warnings(ui, &report);
    ui.result(&report, || text(&report))?;
    Ok(if report.warnings.is_empty() { 0 } else { 3 })
}

/// Restores disks, and gives them to a domain of libvirt.
fn into_libvirt(
    home: &Home,
    ui: &Ui,
    args: &RestoreArgs,
    uri: &str,
    request: RestoreRequest,
    from: (&Repository, &Snapshot),
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<i32> {
    let (repository, snapshot) = from;
    let wanted = wanted(args, uri);
    let request = RestoreRequest {
        run: false,
        ..request
    };
    let reader = repository.reader(snapshot)?;
    let plan = Plan::new(ui, &reader, &wanted, &request.dir)?;
    let progress = Bars::new(ui);
    let report = restore(repository, snapshot, &request, &progress, cancelled)?;
    tell_warnings(ui, &report);
    let defined = plan.define(&report)?;
    if wanted.run.is_some() {
        plan.run(&defined, from, &home.run_dir()?, &progress, cancelled)?;
    }
    let name = defined.name();
    let mut document = serde_json::to_value(&report)?;
    document["domain"] = name.as_str().into();
    ui.result(&document, || {
        let state = match wanted.run {
            Some(_) => format!("domain {name} is there again; to see it: virsh console {name}"),
            None => format!("defined; to start it: virsh start {name}"),
        };
        format!("{}\n  {state}", text(&report))
    })?;
    Ok(if report.warnings.is_empty() { 0 } else { 3 })
}

fn tell_warnings(ui: &Ui, report: &RestoreReport) {
    for warning in &report.warnings {
        ui.note(&format!("warning: {warning}"));
    }
}

/// The command itself, where the guest is to run at once: a keeper does the work.
fn instant(home: &Home, ui: &Ui, cancel: &Cancel, args: &RestoreArgs, dir: &Path) -> Result<i32> {
    let cancelled = || cancel.is_set();
    let record = instant::Record::read(dir)?;
    if let (None, Some(uri)) = (&record, &args.libvirt) {
        show_differences(home, ui, args, uri, dir)?;
    }
    let mut report = json!({ "dir": dir, "local": false });
    if let Some(record) = record.filter(|_| instant::is_kept(dir).unwrap_or(false)) {
        record.check_is(&args.id, dir)?;
        ui.note("this restore goes on already");
        report["snapshot"] = record.snapshot.into();
    } else {
        let spinner = ui.spinner("starting");
        let said = instant::start_keeper(&cancelled);
        spinner.finish_and_clear();
        match said.context("cannot start the process that restores")? {
            Said::Failed { error } => bail!("{error}"),
            Said::Started { report: begun } => report = begun,
        }
    }
    let warnings = report["warnings"].as_array().cloned().unwrap_or_default();
    for warning in &warnings {
        ui.note(&format!(
            "warning: {}",
            warning.as_str().unwrap_or_default()
        ));
    }
    let running = &report["running"];
    if let (Some(pid), Some(console)) = (running["pid"].as_u64(), running["console_log"].as_str()) {
        ui.note(&format!(
            "the guest runs as pid {pid}; its console is {console}"
        ));
    }
    if let Some(domain) = report["domain"].as_str() {
        ui.note(&format!("the guest runs as domain {domain}"));
    }
    let followed = match args.detach {
        true => Followed::Left,
        false => follow(ui, dir, &cancelled)?,
    };
    report["local"] = (followed == Followed::Done).into();
    let text = match followed {
        Followed::Done => format!(
            "{}: all is here; the repository is not needed any more",
            dir.display()
        ),
        Followed::Left => format!(
            "{}: the disks come in by themselves; the same command shows how far",
            dir.display()
        ),
        Followed::Died => bail!(
            "the process that brings the disks in died; the guest waits where it needs one: run the \
             same command again"
        ),
    };
    ui.result(&report, || text)?;
    Ok(if followed == Followed::Left && !args.detach {
        3
    } else {
        0
    })
}

/// What the keeper, whom nobody hears, will define.
fn show_differences(home: &Home, ui: &Ui, args: &RestoreArgs, uri: &str, dir: &Path) -> Result<()> {
    let repository = home.repository()?;
    let reader = repository.reader(&repository.snapshot(&args.id)?)?;
    Plan::new(ui, &reader, &wanted(args, uri), dir).map(drop)
}

/// What a command line asks of libvirt.
fn wanted<'a>(args: &'a RestoreArgs, uri: &'a str) -> Wanted<'a> {
    Wanted {
        uri,
        name: args.name.as_deref(),
        keep_uuid: args.keep_uuid,
        keep_macs: args.keep_mac,
        run: (args.run || args.instant).then(|| network(args)),
    }
}

fn network(args: &RestoreArgs) -> launch::Network {
    match args.network {
        Network::None => launch::Network::None,
        Network::User => launch::Network::User,
        Network::Original => launch::Network::Original,
    }
}

/// Shows how far the keeper is.
fn follow(ui: &Ui, dir: &Path, stop: &dyn Fn() -> bool) -> Result<Followed> {
    let mut bar: Option<ProgressBar> = None;
    let mut trouble = None;
    let followed = instant::follow(dir, stop, &mut |progress| {
        if progress.total_bytes > 0 {
            let bar = bar.get_or_insert_with(|| ui.bar("coming in", progress.total_bytes));
            bar.set_position(progress.done_bytes);
        }
        if trouble != progress.trouble {
            trouble.clone_from(&progress.trouble);
            if let Some(text) = &trouble {
                ui.note(&format!("warning: {text}; it is tried again"));
            }
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(followed?)
}

/// The keeper: says once how it began, and works until all is local.
fn keep(home: &Home, cancel: &Cancel, args: &RestoreArgs, dir: &Path) -> Result<i32> {
    match keep_begun(home, cancel, args, dir) {
        Ok(()) => Ok(0),
        Err(error) => {
            instant::say(&Said::Failed {
                error: format!("{error:#}"),
            });
            Ok(1)
        }
    }
}

fn keep_begun(home: &Home, cancel: &Cancel, args: &RestoreArgs, dir: &Path) -> Result<()> {
    let repository = home.repository()?;
    // The latest may be a later one by now than when this was begun.
    let begun = instant::Record::read(dir)?.filter(|_| args.id == "latest");
    let id = begun.map_or_else(|| args.id.clone(), |record| record.snapshot);
    let snapshot = repository.snapshot(&id)?;
    let Some(vm) = snapshot.tag("vm") else {
        bail!("snapshot {} is not of a guest", &snapshot.id[..8]);
    };
    let request = request(args, vm, &snapshot.id)?;
    let keeper = Keeper {
        repository: &repository,
        snapshot: &snapshot,
        request: &request,
        limit_bytes_per_s: args.limit_mib_per_s << 20,
    };
    if let Some(uri) = &args.libvirt {
        return keep_domain(home, cancel, args, keeper, uri);
    }
    let held = keeper.begin(&NoBars, &|| cancel.is_set())?;
    // A read that failed because of a signal would be an error to the guest; one that meets no
    // server waits.
    Cancel::end_at_once()?;
    instant::say(&instant::started(&held.report));
    keeper.work(held).map_err(Into::into)
}

/// The same for a domain of libvirt, which libvirt starts.
fn keep_domain(
    home: &Home,
    cancel: &Cancel,
    args: &RestoreArgs,
    keeper: Keeper<'_>,
    uri: &str,
) -> Result<()> {
    let cancelled = || cancel.is_set();
    let dir = &keeper.request.dir;
    if let Some(record) = Record::read(dir)? {
        let held = keeper.begin(&NoBars, &cancelled)?;
        libvirt::instant::start_again(&record, dir, keeper.request.network)?;
        Cancel::end_at_once()?;
        instant::say(&instant::started(&held.report));
        return keeper.work(held).map_err(Into::into);
    }
    let wanted = wanted(args, uri);
    let reader = keeper.repository.reader(keeper.snapshot)?;
    let plan = Plan::new(&Ui::new(false, true), &reader, &wanted, dir)?;
    let request = RestoreRequest {
        run: false,
        monitor: Some(plan.monitor()?),
        ..keeper.request.clone()
    };
    let keeper = Keeper {
        request: &request,
        ..keeper
    };
    let held = keeper.begin(&NoBars, &cancelled)?;
    let from = (keeper.repository, keeper.snapshot);
    let started = plan.define(&held.report).and_then(|defined| {
        plan.run(&defined, from, &home.run_dir()?, &NoBars, &cancelled)?;
        Ok(defined.name())
    });
    let name = started.inspect_err(|_| instant::remove(&held.report))?;
    Cancel::end_at_once()?;
    let mut said = instant::started(&held.report);
    if let Said::Started { report } = &mut said {
        report["domain"] = name.into();
    }
    instant::say(&said);
    keeper.work(held).map_err(Into::into)
}

/// Nobody looks at a keeper.
struct NoBars;

impl RestoreProgress for NoBars {
    fn begin(&self, _phase: Phase<'_>, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn end(&self) {}
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
        run: args.run || args.instant,
        instant: args.instant,
        hold: false,
        network: network(args),
        name: args.name.clone(),
        accel: args.accel.clone(),
        disks: (!args.disks.is_empty()).then(|| args.disks.clone()),
        memory: args.memory,
        monitor: None,
        guard: Some(GuardCommand::of_this_program("restore-guard")),
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
