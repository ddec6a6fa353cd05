//! Upkeep by the binary, on snapshots that stock restic made: no guest is needed to look after a
//! repository.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

use std::path::Path;
use std::process::{Command, Output};

const PASSWORD: &str = "upkeep";

fn vmtwin(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmtwin"))
        .args(["--json", "--home"])
        .arg(dir.join("home"))
        .args(arguments)
        .env("VMTWIN_PASSWORD", PASSWORD)
        .env("VMTWIN_TO_PASSWORD", PASSWORD)
        .env_remove("VMTWIN_REPO")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn expect(dir: &Path, code: i32, arguments: &[&str]) -> String {
    let output = vmtwin(dir, arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn restic(repo: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("restic");
    command.args(["--no-cache", "-r"]).arg(repo).args(arguments);
    let output = command.env("RESTIC_PASSWORD", PASSWORD).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

/// A disk of a guest, by restic, at a time of our choice.
fn backup(dir: &Path, vm: &str, time: &str, content: &str) {
    let disk = dir.join("disks/vda");
    std::fs::create_dir_all(&disk).unwrap();
    std::fs::write(disk.join("00000000"), content.repeat(4000)).unwrap();
    let tag = format!("vm={vm}");
    let folder = dir.join("disks");
    let arguments = ["backup", "--tag", &tag, "--time", time];
    let arguments = [&arguments[..], &[folder.to_str().unwrap()]].concat();
    restic(&dir.join("repo"), &arguments);
}

#[test]
fn forget_prune_copy_stats_and_check() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let repo = dir.join("repo");
    expect(dir, 0, &["init", "--repo", repo.to_str().unwrap()]);
    backup(dir, "web01", "2026-01-01 10:00:00", "first");
    backup(dir, "web01", "2026-01-02 10:00:00", "second");
    backup(dir, "db01", "2026-01-01 10:00:00", "third");

    let refused = expect(dir, 1, &["snapshot", "forget"]);
    assert!(refused.contains("--keep-daily"), "{refused}");
    let refused = expect(dir, 1, &["snapshot", "forget", "--keep-tag", "none"]);
    assert!(refused.contains("--force"), "{refused}");
    expect(dir, 2, &["snapshot", "forget", "abc", "--keep-last", "1"]);
    let forget = ["snapshot", "forget", "--keep-daily", "1"];
    let plan = expect(dir, 0, &[&forget[..], &["--dry-run"]].concat());
    assert!(
        plan.contains("\"removed\": 1") && plan.contains("\"daily\""),
        "{plan}"
    );
    assert_eq!(restic(&repo, &["snapshots"]).matches("web01").count(), 2);
    let done = expect(dir, 0, &[&forget[..], &["--prune"]].concat());
    assert!(
        done.contains("\"kept\": 2") && done.contains("\"packs_removed\": "),
        "{done}"
    );
    assert_eq!(restic(&repo, &["snapshots"]).matches("web01").count(), 1);
    restic(&repo, &["check", "--read-data"]);

    let other = dir.join("other");
    let other = other.to_str().unwrap();
    let second = dir.join("second");
    expect(&second, 0, &["init", "--repo", other]);
    let copied = expect(dir, 0, &["copy", "--to", other, "--vm", "web01"]);
    assert!(copied.contains("\"skipped\": false"), "{copied}");
    let copied = expect(dir, 0, &["copy", "--to", other, "--vm", "web01"]);
    assert!(!copied.contains("\"skipped\": false"), "{copied}");
    restic(Path::new(other), &["check", "--read-data"]);

    let stats = expect(dir, 0, &["stats", "web01"]);
    assert!(stats.contains("\"logical_bytes\": 24000"), "{stats}");
    let good = expect(dir, 0, &["check", "--read-data"]);
    assert!(good.contains("\"ok\": true"), "{good}");
    std::fs::remove_dir_all(repo.join("data")).unwrap();
    let hurt = expect(dir, 1, &["check"]);
    assert!(hurt.contains("\"vm\": \"db01\""), "{hurt}");
    let refused = expect(dir, 1, &["prune"]);
    assert!(refused.contains("vmtwin check"), "{refused}");
}
