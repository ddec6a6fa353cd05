//! Schedules: what is due happens by itself, once, whoever looks; and what is cut off is noted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::assert_clean;

use common::{PATIENCE, VM, Vmtwin, code, loaded_guest, told};

const OFTEN: [&str; 9] = [
    "schedule",
    "add",
    "often",
    "--every",
    "3s",
    "--vm",
    VM,
    "--consistency",
    "crash",
];

/// The runs of a schedule, the latest first.
fn runs(vmtwin: &Vmtwin, name: &str) -> Vec<Value> {
    let shown = vmtwin.json(&["schedule", "show", name]);
    shown["runs"].as_array().unwrap().clone()
}

fn with_outcome(runs: &[Value], outcome: &str) -> usize {
    runs.iter().filter(|run| run["outcome"] == outcome).count()
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE * 2, "{what}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn follow(vmtwin: &Vmtwin, failpoint: &str) -> Child {
    follow_by(vmtwin, &["schedule", "follow"], failpoint)
}

fn follow_by(vmtwin: &Vmtwin, command: &[&str], failpoint: &str) -> Child {
    let mut follow = vmtwin.command(command);
    follow.env("VMTWIN_FAILPOINT", failpoint);
    follow.stdout(Stdio::null()).stderr(Stdio::piped());
    follow.spawn().unwrap()
}

fn end(follower: Child, signal: Signal) -> String {
    kill_process(Pid::from_child(&follower), signal).unwrap();
    let output = follower.wait_with_output().unwrap();
    if signal == Signal::INT {
        assert_eq!(code(&output), 0, "{}", told(&output));
    }
    told(&output)
}

#[test]
fn what_is_due_happens_once_whoever_looks() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    for (wrong, why) in [
        (&["--on", "often"][..], "no calendar event"),
        (&["--every", "0s"][..], "no time such as"),
        (&[][..], "required"),
    ] {
        let refused = vmtwin.run(&[&["schedule", "add", "x", "--all"], wrong].concat());
        assert_eq!(code(&refused), 2, "{}", told(&refused));
        assert!(told(&refused).contains(why), "{}", told(&refused));
    }
    let unknown = vmtwin.run(&["schedule", "add", "x", "--on", "daily", "--vm", "nobody"]);
    assert_eq!(code(&unknown), 1);

    let keep = ["--keep-last", "2", "--tag", "often"];
    let added = vmtwin.json(&[&OFTEN[..], &keep].concat());
    assert_eq!(added["next"].as_array().map(Vec::len), Some(5), "{added}");
    let again = vmtwin.run(&OFTEN);
    assert!(told(&again).contains("already"), "{}", told(&again));

    let followers = [
        follow(&vmtwin, ""),
        follow_by(&vmtwin, &["serve", "--listen", "127.0.0.1:0"], ""),
    ];
    let done = |runs: &[Value]| {
        let backups = runs.iter().filter(|run| run["subject"] != "retention");
        backups.filter(|run| run["outcome"] == "done").count()
    };
    wait_until("no two runs", || {
        let runs = runs(&vmtwin, "often");
        done(&runs) >= 2 && with_outcome(&runs, "done") >= 4
    });
    for follower in followers {
        end(follower, Signal::INT);
    }
    let runs_then = runs(&vmtwin, "often");
    // Each due time has a backup and retention, and no other snapshot was made.
    let made = done(&runs_then);
    let ids = vmtwin.snapshots();
    assert!(
        made >= 2 && ids.len() <= made && ids.len() <= 3,
        "{ids:?} {runs_then:#?}"
    );
    // On a busy machine a due time may find the one before at work, or the end that it is told.
    let is_expected = |run: &Value| {
        let note = run["note"].as_str().unwrap_or_default();
        run["outcome"] != "failed" || note == "cancelled" || note.contains("has been working")
    };
    assert!(runs_then.iter().all(is_expected), "{runs_then:#?}");
    let list = vmtwin.json(&["schedule", "list"]);
    assert_eq!(list[0]["name"], "often");
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
}

#[test]
fn what_is_cut_off_or_missed_is_noted() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.ok(&OFTEN);
    // A timer that is killed while a backup runs: the next one says so.
    let follower = follow(&vmtwin, "snapshot=sleep:4000");
    wait_until("no run", || !runs(&vmtwin, "often").is_empty());
    end(follower, Signal::KILL);
    vmtwin.ok(&["schedule", "disable", "often"]);
    let follower = follow(&vmtwin, "");
    wait_until("not marked", || {
        with_outcome(&runs(&vmtwin, "often"), "interrupted") == 1
    });
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(runs(&vmtwin, "often").len(), 1, "it is disabled");
    end(follower, Signal::INT);
    // Its backup ended with it, in order.
    assert!(vmtwin.snapshots().is_empty());
    assert_clean(&guest);

    // One that is told to end ends the backup in order.
    vmtwin.ok(&["schedule", "enable", "often"]);
    let follower = follow(&vmtwin, "snapshot=sleep:3000");
    wait_until("no second run", || runs(&vmtwin, "often").len() == 2);
    std::thread::sleep(Duration::from_secs(1));
    end(follower, Signal::INT);
    assert!(!runs(&vmtwin, "often")[0]["outcome"].is_null());
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
    vmtwin.ok(&["schedule", "remove", "often"]);

    // What nobody followed in time.
    let late = ["schedule", "add", "late", "--every", "8s", "--window", "1s"];
    vmtwin.ok(&[&late[..], &["--vm", VM, "--consistency", "crash"]].concat());
    std::thread::sleep(Duration::from_secs(11));
    let follower = follow(&vmtwin, "");
    wait_until("nothing missed", || {
        with_outcome(&runs(&vmtwin, "late"), "missed") > 0
    });
    end(follower, Signal::INT);

    let now = vmtwin.json(&["schedule", "run", "late"]);
    assert_eq!(now[0]["outcome"], "done", "{now}");
    let busy = vmtwin.run(&["schedule", "run", "nothing"]);
    assert!(told(&busy).contains("schedule list"), "{}", told(&busy));
}

/// A schedule of a group backs up who is in it when the time comes.
#[test]
fn a_group_is_backed_up() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let add = ["schedule", "add", "prod", "--on", "yearly"];
    let rest = ["--group", "prod", "--consistency", "crash"];
    vmtwin.ok(&[&add[..], &rest].concat());
    vmtwin.ok(&["schedule", "run", "prod"]);
    assert!(vmtwin.snapshots().is_empty(), "nobody is in it yet");
    assert_eq!(code(&vmtwin.run(&["vm", "set", VM, "--group", "a b"])), 2);
    let shown = vmtwin.json(&["vm", "set", VM, "--group", "prod", "--group", "web"]);
    assert_eq!(shown["settings"]["groups"][1], "web", "{shown}");
    vmtwin.ok(&["schedule", "run", "prod"]);
    assert_eq!(vmtwin.snapshots().len(), 1);
    assert_clean(&guest);
}
