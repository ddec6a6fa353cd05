//! Figures for Prometheus: true to the reports, and judged by promtool with the rules and the board.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use vmtwin_testkit::{promtool, run};

use common::{VM, Vmtwin, code, loaded_guest, text};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

/// The value of a sample; none where there is none.
fn sample(figures: &str, name: &str) -> Option<f64> {
    let mut lines = figures.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

/// Names of ours in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("vmtwin_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn figures_are_true_and_what_watches_them_knows_their_names() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let figures = || {
        let file = vmtwin.path("vmtwin.prom");
        vmtwin.ok(&["metrics", "--out", text(&file)]);
        std::fs::read_to_string(file).unwrap()
    };
    let of_vm = |name: &str| format!("vmtwin_guest_{name}{{vm=\"{VM}\"}}");
    let before = figures();
    assert_eq!(sample(&before, &of_vm("has_backup")), Some(0.0));
    assert_eq!(sample(&before, &of_vm("last_backup_age_seconds")), None);

    let add = ["schedule", "add", "nightly", "--on", "2099-01-01"];
    vmtwin.ok(&[&add[..], &["--all", "--consistency", "crash"]].concat());
    vmtwin.ok(&["schedule", "run", "nightly"]);
    let report = vmtwin.backup_as("crash", &[]);
    let now = figures();
    for (name, field) in [
        ("last_backup_read_bytes", "bytes_read"),
        ("last_backup_new_bytes", "bytes_new"),
        ("last_backup_stored_bytes", "bytes_stored"),
    ] {
        assert_eq!(sample(&now, &of_vm(name)), report[field].as_f64(), "{name}");
    }
    let pause_s = report["pause_ms"].as_f64().unwrap() / 1000.0;
    let shown = sample(&now, &of_vm("last_backup_pause_seconds")).unwrap();
    assert!((shown - pause_s).abs() < 1e-9, "{shown} {pause_s}");
    assert!(sample(&now, &of_vm("last_backup_age_seconds")).unwrap() < 300.0);
    assert_eq!(sample(&now, &of_vm("snapshots")), Some(2.0));
    assert_eq!(sample(&now, &of_vm("backup_failing")), Some(0.0));
    let kept = format!("vmtwin_guest_last_backup_consistency{{vm=\"{VM}\",consistency=\"crash\"}}");
    assert_eq!(sample(&now, &kept), Some(1.0));
    let outcome = "vmtwin_schedule_last_outcome{schedule=\"nightly\",outcome=\"done\"}";
    assert_eq!(sample(&now, outcome), Some(1.0));
    assert_eq!(
        sample(&now, "vmtwin_jobs{kind=\"backup\",state=\"done\"}"),
        Some(2.0)
    );

    let away = vmtwin.path("away");
    std::fs::rename(vmtwin.repo(), &away).unwrap();
    assert_eq!(
        code(&vmtwin.run(&["backup", VM, "--consistency", "crash"])),
        1
    );
    std::fs::rename(&away, vmtwin.repo()).unwrap();
    let failed = figures();
    assert_eq!(sample(&failed, &of_vm("backup_failing")), Some(1.0));

    // As promtool sees them.
    let file = std::fs::File::open(vmtwin.path("vmtwin.prom")).unwrap();
    run(Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::from(file)));

    // Whatever the rules and the board ask for is there. What has no sample yet has its head.
    let known = names_in(&failed);
    let read = |path: &str| std::fs::read_to_string(packaging().join(path)).unwrap();
    let rules = names_in(&read("prometheus/vmtwin.rules.yml"));
    let board = read("grafana/vmtwin.json");
    serde_json::from_str::<Value>(&board).unwrap();
    let mut asked: BTreeSet<String> = rules.union(&names_in(&board)).cloned().collect();
    assert!(asked.len() > 12, "{asked:?}");
    // Of the daemon alone.
    asked.remove("vmtwin_process_resident_memory_bytes");
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn alerts_fire_when_they_should() {
    let folder = packaging().join("prometheus");
    run(Command::new(promtool())
        .args(["check", "rules", "vmtwin.rules.yml"])
        .current_dir(&folder));
    run(Command::new(promtool())
        .args(["test", "rules", "vmtwin.test.yml"])
        .current_dir(&folder));
}
