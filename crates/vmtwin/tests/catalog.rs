//! The catalog by the binary: copies, and the move to a PostgreSQL server and back under a guest
//! that is backed up on the way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{VM, Vmtwin, text};
use serde_json::Value;
use vmtwin_testkit::{DiskSpec, Guest, Postgres};

/// The rows of the catalog, by table, with their hashes.
fn tables(vmtwin: &Vmtwin) -> Value {
    vmtwin.json(&["catalog", "show"])["tables"].clone()
}

#[test]
fn a_guest_is_backed_up_while_its_catalog_moves_to_a_server_and_back() {
    let guest = Guest::builder().disks([DiskSpec::qcow2(16)]).start();
    let vmtwin = Vmtwin::with_guest(&guest);
    let first = vmtwin.backup_as("crash", &[]);
    let url = Postgres::shared().database();
    // The undos of a job that was cut off are not left behind.
    let mut killed = vmtwin.command(&["backup", VM, "--consistency", "crash"]);
    killed.env("VMTWIN_FAILPOINT", "lock=kill");
    assert!(!killed.status().unwrap().success());
    let refused = ["not finished", "vmtwin recover"];
    vmtwin.fails(&["catalog", "move", "--to", &url], &refused);
    let copy = vmtwin.path("copy.jsonl");
    vmtwin.ok(&["catalog", "dump", text(&copy)]);
    vmtwin.fails(&["catalog", "load", text(&copy), "--force"], &refused);
    vmtwin.ok(&["recover"]);
    let before = tables(&vmtwin);

    let moved = vmtwin.json(&["catalog", "move", "--to", &url]);
    assert_eq!(moved["tables"], before, "every row is there");
    assert!(
        moved["catalog"]
            .as_str()
            .unwrap()
            .starts_with("postgres://")
    );
    // What it must not do any more: go on with the file.
    let config = std::fs::read_to_string(vmtwin.home().join("config.json")).unwrap();
    assert!(config.contains("postgres://"), "{config}");
    vmtwin.ok(&["catalog", "check"]);

    let second = vmtwin.backup_as("crash", &[]);
    let listed = vmtwin.json(&["snapshot", "list", VM]);
    let listed: Vec<&str> = (listed.as_array().unwrap().iter())
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    for report in [&first, &second] {
        let id = report["snapshot"].as_str().unwrap();
        assert!(
            listed
                .iter()
                .any(|one| one.starts_with(id) || id.starts_with(one))
        );
    }

    // The file still holds what was before: replacing it has to be asked for, and a copy is kept.
    vmtwin.fails(&["catalog", "move", "--to", "file"], &["--force"]);
    let on_server = tables(&vmtwin);
    let back = vmtwin.json(&["catalog", "move", "--to", "file", "--force"]);
    assert_eq!(back["tables"], on_server);
    assert_eq!(tables(&vmtwin), on_server);
    let kept = std::fs::metadata(back["copy"].as_str().unwrap()).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    vmtwin.backup_as("crash", &[]);
    // Whoever still works with the database is told where everything is.
    vmtwin.fails(
        &["--database", &url, "backup", VM],
        &["moved to", "catalog.db"],
    );
}

#[test]
fn a_copy_is_written_once_and_loaded_whole() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let copy = vmtwin.path("copy.jsonl");
    vmtwin.ok(&["catalog", "dump", text(&copy)]);
    vmtwin.fails(&["catalog", "dump", text(&copy)], &["exists"]);
    vmtwin.ok(&["catalog", "load", text(&copy)]);
    let mut damaged = std::fs::read(&copy).unwrap();
    *damaged.last_mut().unwrap() = b' ';
    std::fs::write(&copy, damaged).unwrap();
    vmtwin.fails(&["catalog", "load", text(&copy)], &["was not changed"]);
    let secret = "postgres://vmtwin:hunter2@127.0.0.1/catalog";
    let refused = vmtwin.run(&["--database", secret, "catalog", "show"]);
    assert_eq!(common::code(&refused), 2);
    assert!(common::told(&refused).contains("PGPASSWORD"));
    let nobody = [
        "--database",
        "postgres://vmtwin@127.0.0.1:1/catalog",
        "catalog",
        "show",
    ];
    vmtwin.fails(&nobody, &["does not answer"]);
}
