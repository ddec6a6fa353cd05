//! Standby: a twin kept paused in memory, and the process that watches its guest.
//!
//! ```text
//!   vmtwin twin start ─► keeper: capture (old data in a storage daemon) ─► twin loaded, blank disks
//!        ─► watch ─┬─ guest fails, or `twin promote` ─► fence ─► disks of the point, network ─► resume
//!                  └─ guest ends in order, `twin stop`, Ctrl-C ─► twin and filters are removed
//! ```
//! The keeper is one process per standby; whoever wants something of it asks over a socket in the
//! standby's folder. If it is killed, recovery removes what it had begun, and the guest runs on.
//! After a promotion the folder holds the machine's disks, and the VM's row leads to the twin.

mod control;
mod keeper;
mod watch;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmtwin_catalog::VmRole;

use crate::backup::Cx;
use crate::cli::{TwinCommand, TwinStartArgs};
use crate::home::Home;
use crate::recover;
use crate::ui::table;

/// How long a standby may take until it watches.
const START_TIMEOUT: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(50);

/// A standby, as its keeper tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its name.
    pub(crate) twin: String,
    /// Its guest.
    pub(crate) vm: String,
    /// `starting`, `standby` or `failed` (the guest failed, and promotion is left to a person).
    pub(crate) state: String,
    /// The point, RFC 3339.
    pub(crate) time: String,
    /// Age of its state: what the guest did since is lost on promotion, seconds.
    pub(crate) age_s: f64,
    /// STOP to RESUME of the guest when it was made, milliseconds.
    pub(crate) pause_ms: Option<f64>,
    /// Folder of its files.
    pub(crate) dir: PathBuf,
    /// Old data kept for the point, bytes on disk.
    pub(crate) scratch_bytes: u64,
}

/// Runs `vmtwin twin …`.
pub(crate) fn run(cx: &Cx<'_>, command: &TwinCommand) -> Result<i32> {
    recover::dead_jobs(cx)?;
    match command {
        TwinCommand::Start(args) => start(cx, args),
        TwinCommand::List => list(cx),
        TwinCommand::Promote { twin, force } => {
            let request = if *force { "promote force" } else { "promote" };
            ask_and_show(cx, twin, request)
        }
        TwinCommand::Stop { twin } => ask_and_show(cx, twin, "stop"),
    }
}

/// Folder of a standby. The name is the user's, and must be one.
fn dir_of(home: &Home, name: &str) -> Result<PathBuf> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
        bail!("{name:?} is no name for a twin: letters, digits, '-', '_' and '.' only");
    }
    let dir = home.standby_dir()?.join(name);
    if dir.as_os_str().len() > 90 {
        bail!(
            "the folder {} has too long a name for a socket",
            dir.display()
        );
    }
    Ok(dir)
}

fn start(cx: &Cx<'_>, args: &TwinStartArgs) -> Result<i32> {
    if !args.standby {
        bail!(
            "only --standby twins can be started; to look at a guest beside itself, back it up \
             with --consistency state and use: vmtwin restore ID --run"
        );
    }
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("{}-twin", args.vm));
    let dir = dir_of(cx.home, &name)?;
    if args.foreground {
        return keeper::run(cx, args, &name, &dir).map(|()| 0);
    }
    let log = dir.with_extension("log");
    let mut keeper = detached(&dir, &log)?;
    let spinner = cx.ui.spinner("making the standby");
    let begun = Instant::now();
    while begun.elapsed() < START_TIMEOUT {
        if let Ok(answer) = control::ask(&dir, "status") {
            let status: Status = serde_json::from_value(answer)?;
            if status.state != "starting" {
                spinner.finish_and_clear();
                cx.ui.result(&status, || line(&status))?;
                return Ok(0);
            }
        }
        if keeper.try_wait()?.is_some() || cx.cancel.is_set() {
            break;
        }
        std::thread::sleep(POLL);
    }
    spinner.finish_and_clear();
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_child(&keeper),
        rustix::process::Signal::TERM,
    );
    keeper.wait()?;
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    bail!("{}", said.trim().trim_start_matches("error: "))
}

/// Starts this very command again, as a keeper that stays and writes to `log`.
fn detached(dir: &Path, log: &Path) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    if control::ask(dir, "status").is_ok() {
        bail!("there is a standby of this name; see: vmtwin twin list");
    }
    let mut arguments: Vec<_> = crate::task::own_arguments().collect();
    // No options come after `--`.
    let end = arguments.iter().position(|argument| argument == "--");
    arguments.insert(end.unwrap_or(arguments.len()), "--foreground".into());
    Command::new("/proc/self/exe")
        .args(arguments)
        .env_remove("VMTWIN_PASSWORD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(log)?)
        .process_group(0)
        .spawn()
        .context("the keeper could not be started")
}

fn list(cx: &Cx<'_>) -> Result<i32> {
    let mut found = Vec::new();
    for vm in cx.db.run(async |c| c.vms().await)? {
        if vm.role != VmRole::Twin {
            continue;
        }
        let dir = cx.home.standby_dir()?.join(&vm.name);
        if let Ok(answer) = control::ask(&dir, "status") {
            found.push(serde_json::from_value::<Status>(answer)?);
        }
    }
    cx.ui.result(&found, || {
        if found.is_empty() {
            return "no standby; make one: vmtwin twin start VM --standby".into();
        }
        let cells: Vec<Vec<String>> = found
            .iter()
            .map(|s| {
                vec![
                    s.twin.clone(),
                    s.vm.clone(),
                    s.state.clone(),
                    s.time.get(..19).unwrap_or(&s.time).replace('T', " "),
                    format!("{:.0} s", s.age_s),
                    crate::ui::bytes(s.scratch_bytes),
                ]
            })
            .collect();
        table(
            &["TWIN", "OF", "STATE", "POINT (UTC)", "AGE", "OLD DATA"],
            &cells,
        )
    })?;
    Ok(0)
}

fn line(status: &Status) -> String {
    let pause = status
        .pause_ms
        .map_or(String::new(), |ms| format!(" (paused {ms:.1} ms)"));
    format!(
        "{}: standby of {}{pause}, watching; see: vmtwin twin list",
        status.twin, status.vm
    )
}

fn ask_and_show(cx: &Cx<'_>, twin: &str, request: &str) -> Result<i32> {
    let dir = dir_of(cx.home, twin)?;
    let answer = control::ask(&dir, request)
        .with_context(|| format!("no keeper of a standby {twin} answers; see: vmtwin twin list"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{error}");
    }
    cx.ui.result(&answer, || text(&answer))?;
    Ok(0)
}

fn text(answer: &Value) -> String {
    match answer["text"].as_str() {
        Some(text) => text.to_owned(),
        None => answer.to_string(),
    }
}
