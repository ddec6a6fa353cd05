//! vmtwin: live backup of QEMU/KVM guests.
//!
//! The binary joins the crates that know nothing of one another: recipes ([`backup`], [`restore`],
//! [`recover`]) over hypervisor, repository, catalog, NBD and migration streams. Errors are values
//! down there; here, at the edge, the chain is printed once, with what to do next.

mod api;
mod backup;
mod cancel;
mod cli;
mod cluster;
mod command;
mod config;
mod content;
mod daemon;
mod db;
mod export;
mod failpoint;
mod files;
mod home;
mod isolated;
mod journal;
mod libvirt;
mod metrics;
mod notify;
mod recover;
mod remote;
mod restore;
mod settle;
mod source;
mod standby;
mod task;
mod timer;
mod twin_args;
mod twin_row;
mod twin_slot;
mod ui;
mod verify;

use anyhow::Result;
use clap::FromArgMatches;

use backup::Cx;
use cancel::Cancel;
use cli::{Cli, Command, SnapshotCommand};
use command::files::FileCommands;
use command::upkeep::Upkeep;
use db::Db;
use home::Home;
use ui::Ui;

/// Done, with warnings.
const EXIT_WARNINGS: i32 = 3;
/// Failed.
const EXIT_FAILED: i32 = 1;
/// Wrong usage.
const EXIT_USAGE: i32 = 2;

fn main() {
    let cli = parse();
    match cli.command {
        Command::PauseGuard => std::process::exit(vmtwin_hypervisor::guard::run()),
        Command::RestoreGuard => std::process::exit(restore::run_guard()),
        Command::UndoGuard => {
            libvirt::enable();
            std::process::exit(vmtwin_hypervisor::undo_guard::run())
        }
        Command::ApplianceInit => vmtwin_appliance::guest::run(),
        Command::LibvirtMonitor { ref uri, ref uuid } => {
            std::process::exit(libvirt::relay::run(uri, uuid))
        }
        _ => {}
    }
    libvirt::enable();
    init_logging();
    let code = match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            EXIT_FAILED
        }
    };
    std::process::exit(code);
}

/// The command line, with the defaults of the config file.
fn parse() -> Cli {
    let line = config::command_line().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        std::process::exit(EXIT_USAGE)
    });
    let given = Cli::from_arg_matches(&line.clone().get_matches());
    given.unwrap_or_else(|error| error.format(&mut line.clone()).exit())
}

/// Logs go to stderr; `VMTWIN_LOG` sets the filter.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VMTWIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}

fn run(cli: &Cli) -> Result<i32> {
    let cancel = Cancel::on_signals()?;
    if let Some(server) = &cli.global.server
        && !cli.global.worker
        && !command::is_local(&cli.command)
    {
        let ui = Ui::new(cli.global.json, cli.global.quiet);
        return remote::run(server, &cli.global, &ui, &cancel);
    }
    let home = Home::open(&cli.global, &cancel)?;
    let ui = match cli.global.worker {
        true => {
            task::watch_parent(&cancel);
            Ui::for_worker()
        }
        false => Ui::new(cli.global.json, cli.global.quiet),
    };
    let upkeep = Upkeep {
        home: &home,
        ui: &ui,
        cancel: &cancel,
    };
    let files = FileCommands {
        home: &home,
        ui: &ui,
        cancel: &cancel,
    };
    match &cli.command {
        Command::Snapshot(SnapshotCommand::Forget(args)) => upkeep.forget(args),
        Command::Snapshot(SnapshotCommand::Forgotten) => upkeep.forgotten(),
        Command::Snapshot(SnapshotCommand::Keep(args)) => upkeep.keep(args),
        Command::Prune(args) => upkeep.prune(args),
        Command::Check(args) => upkeep.check(args),
        Command::Copy(args) => upkeep.copy(args),
        Command::Stats { vm } => upkeep.stats(vm.as_deref()),
        Command::Doctor => command::doctor::run(&home, &ui),
        Command::Completions { shell } => command::shell::completions(*shell).map(|()| 0),
        Command::Man { dir } => command::shell::man(dir).map(|()| 0),
        Command::Init => command::init::run(&home, &ui).map(|()| 0),
        Command::Repo(args) => command::repo::run(&home, &ui, &cancel, args).map(|()| 0),
        Command::Snapshot(SnapshotCommand::Ls(args)) => files.ls(args),
        Command::Snapshot(SnapshotCommand::Get(args)) => files.get(args),
        Command::Snapshot(args) if !matches!(args, SnapshotCommand::Verify(_)) => {
            command::snapshot::run(&home, &ui, args)
        }
        Command::Restore(args) => command::restore::run(&home, &ui, &cancel, args),
        Command::Export(args) => command::export::run(&home, &ui, &cancel, args),
        Command::Catalog(args) => command::catalog::run(&home, &ui, args),
        Command::Cluster(args) => command::cluster::run(&home, &ui, args),
        Command::Vm(_)
        | Command::Backup(_)
        | Command::Settle(_)
        | Command::Twin(_)
        | Command::Snapshot(_)
        | Command::Schedule(_)
        | Command::Notify(_)
        | Command::Metrics { .. }
        | Command::Serve(_)
        | Command::Token(_)
        | Command::Recover => {
            let db = Db::open(&home)?;
            let cx = Cx {
                home: &home,
                db: &db,
                ui: &ui,
                cancel: &cancel,
            };
            with_catalog(&cx, &cli.command)
        }
        Command::PauseGuard
        | Command::RestoreGuard
        | Command::ApplianceInit
        | Command::UndoGuard
        | Command::LibvirtMonitor { .. } => Ok(0),
    }
}

fn with_catalog(cx: &Cx<'_>, command: &Command) -> Result<i32> {
    libvirt::table::follow(cx)?;
    match command {
        Command::Vm(args) => {
            recover::dead_jobs(cx)?;
            command::vm::run(cx, args).map(|()| 0)
        }
        Command::Backup(args) => {
            let reports = backup::recover_and_run(cx, args)?;
            cx.ui.result(&reports, || {
                let lines: Vec<String> = reports.iter().map(backup::BackupReport::line).collect();
                lines.join("\n")
            })?;
            Ok(exit_code(&reports, args.vms.len()))
        }
        Command::Settle(args) => {
            recover::dead_jobs(cx)?;
            let report = settle::run(cx, args)?;
            cx.ui.result(&report, || report.line())?;
            Ok(exit_code(&[report], 1))
        }
        Command::Twin(command) => standby::run(cx, command),
        Command::Schedule(args) => command::schedule::run(cx, args),
        Command::Notify(args) => command::notify::run(cx, args).map(|()| 0),
        Command::Metrics { out } => command::metrics::run(cx, out.as_deref()).map(|()| 0),
        Command::Serve(args) => daemon::serve(cx, args).map(|()| 0),
        Command::Token(args) => command::token::run(cx, args).map(|()| 0),
        Command::Snapshot(SnapshotCommand::Verify(args)) => {
            recover::dead_jobs(cx)?;
            let report = verify::run(cx, args)?;
            cx.ui.result(&report, || report.line())?;
            Ok(if report.ok { 0 } else { EXIT_FAILED })
        }
        _ => {
            let report = recover::run(cx)?;
            cx.ui.result(&report, || {
                match (report.undone.as_slice(), report.failed.as_slice()) {
                    ([], []) => "nothing to recover".into(),
                    (undone, failed) => {
                        let undone = undone.iter().map(|u| format!("done: {u}"));
                        let failed = failed.iter().map(|f| format!("FAILED: {f}"));
                        undone.chain(failed).collect::<Vec<_>>().join("\n")
                    }
                }
            })?;
            Ok(if report.failed.is_empty() {
                0
            } else {
                EXIT_FAILED
            })
        }
    }
}

fn exit_code(reports: &[backup::BackupReport], asked: usize) -> i32 {
    if reports.len() < asked || reports.iter().any(|r| r.error.is_some()) {
        EXIT_FAILED
    } else if reports.iter().any(|r| !r.warnings.is_empty()) {
        EXIT_WARNINGS
    } else {
        0
    }
}
