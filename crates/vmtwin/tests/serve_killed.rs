//! `vmtwin serve` is killed (SIGKILL) in every kind of job but a standby's: what the job began is undone or
//! finished, the next daemon says so, and the job can be asked for again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_testkit::{Guest, all_tests_wanted, assert_clean};

use common::serve::{Serve, token};
use common::{PATIENCE, VM, Vmtwin, loaded_guest};

/// A job that is in the middle for a while.
struct Job {
    command: &'static str,
    body: Value,
    /// Where it waits, as a failpoint; empty: it is killed as soon as it runs.
    waits_at: &'static str,
}

fn jobs(snapshot: &str) -> Vec<Job> {
    let job = |command, body, waits_at| Job {
        command,
        body,
        waits_at,
    };
    let mut all = vec![
        job(
            "restore",
            json!({"id": snapshot, "to": "back"}),
            "disk disk0",
        ),
        job("check", json!({"read_data": "100"}), ""),
        job("prune", json!({"max_unused": "0"}), ""),
        job("cluster/backup", json!({}), "cluster-collected"),
    ];
    if all_tests_wanted() {
        let verify = json!({"id": snapshot, "boot": true});
        all.push(job("settle", json!({"id": snapshot}), "snapshot"));
        all.push(job("snapshot/verify", verify, "disk disk0"));
        all.push(job("snapshot/verify", json!({"id": snapshot}), ""));
        let instant = json!({"id": snapshot, "to": "instant", "run": true});
        all.push(job("restore", instant, "resume"));
        all.push(job("backup", json!({"vms": [VM]}), "twin state"));
    }
    all
}

#[test]
fn a_killed_daemon_leaves_no_job_half_done() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.ok(&["cluster", "create", "home", "--node", "node1"]);
    vmtwin.ok(&["schedule", "add", "often", "--every", "1h", "--vm", VM]);
    let report = vmtwin.backup(&[]);
    let snapshot = report["snapshot"].as_str().unwrap().to_owned();
    let admin = token(&vmtwin, "admin");
    for job in jobs(&snapshot) {
        let name = format!("{} at {:?}", job.command, job.waits_at);
        eprintln!("{name}");
        killed_in(&vmtwin, &guest, &admin, &job, &name);
    }
    vmtwin.restic(&["check", "--read-data"]);
    let disks = vmtwin.restored_ledgers(&snapshot, "in-the-end");
    vmtwin_testkit::assert_one_instant(None, &disks);
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
}

fn killed_in(vmtwin: &Vmtwin, guest: &Guest, admin: &str, job: &Job, name: &str) {
    let path = format!("/api/v1/commands/{}", job.command);
    let waits = format!("{}=sleep:5000", job.waits_at);
    let env = [("VMTWIN_FAILPOINT", waits.as_str())];
    let env = if job.waits_at.is_empty() {
        &[][..]
    } else {
        &env
    };
    let serve = Serve::start(vmtwin, &[], env);
    let client = serve.client(admin);
    let (status, begun) = client.post(&path, &job.body);
    assert_eq!(status, 201, "{name}: {begun}");
    let of_it = format!("/api/v1/jobs/{}", begun["id"].as_str().unwrap());
    let asked = Instant::now();
    while client.get(&of_it).1["state"] == "queued" {
        assert!(asked.elapsed() < PATIENCE, "{name}: it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    if !job.waits_at.is_empty() {
        std::thread::sleep(Duration::from_secs(2));
        let (_, now) = client.get(&of_it);
        assert_eq!(now["state"], "running", "{name}: {now}");
    }
    serve.kill();
    wait_until_over(vmtwin, name);

    let serve = Serve::start(vmtwin, &[], &[]);
    let client = serve.client(admin);
    let (_, after) = client.get(&of_it);
    let expected = match job.waits_at {
        "" => &["interrupted", "done"][..],
        _ => &["interrupted"],
    };
    let state = after["state"].as_str().unwrap();
    assert!(expected.contains(&state), "{name}: {after}");
    assert_clean(guest);
    let (status, again) = client.post(&format!("{path}?wait=120"), &job.body);
    assert_eq!(
        (status, &again["state"]),
        (200, &json!("done")),
        "{name}: {again}"
    );
    if let Some(pid) = again["result"]["running"]["pid"].as_i64() {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let (_, schedules) = client.get("/api/v1/schedules");
    assert!(
        schedules["items"][0]["next"][0].is_string(),
        "{name}: {schedules}"
    );
    serve.end();
}

/// Waits until the command that lost its daemon, and what guards it, have ended.
fn wait_until_over(vmtwin: &Vmtwin, name: &str) {
    let begun = Instant::now();
    let home = format!("VMTWIN_HOME={}", vmtwin.home().display());
    while is_at_work(&home) {
        assert!(begun.elapsed() < PATIENCE, "{name}: it goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a process of ours has this variable: guests and twins are QEMUs.
fn is_at_work(variable: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.map(|entry| entry.path()).any(|process| {
        let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let program = command.split('\0').next().unwrap_or_default();
        let is_ours = program.ends_with("vmtwin") || program.ends_with("exe");
        let environment = read("environ");
        let mut variables = environment.split(|byte| *byte == 0);
        is_ours && variables.any(|one| one == variable.as_bytes())
    })
}
