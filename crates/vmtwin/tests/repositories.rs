//! Further repositories: one capture, the same point in each; what failed is made up for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use vmtwin_testkit::run;

use common::{VM, Vmtwin, code, document, loaded_guest, text, told};

/// The report of a backup that ends with this exit code.
fn backup(vmtwin: &Vmtwin, exit: i32) -> Value {
    let output = vmtwin.run(&["backup", VM, "--consistency", "crash", "--json"]);
    assert_eq!(code(&output), exit, "{}", told(&output));
    document(&output)[0].clone()
}

/// For each point of the guest the names of the repositories that hold it.
fn points(vmtwin: &Vmtwin) -> Vec<String> {
    let rows = vmtwin.json(&["snapshot", "list", VM, "--all-repos"]);
    let names = |row: &Value| {
        let copies = row["repositories"].as_array().unwrap().iter();
        let names = copies.map(|copy| copy["name"].as_str().unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    rows.as_array().unwrap().iter().map(names).collect()
}

fn restic_check(repo: &Path, password_file: &Path) {
    let mut restic = Command::new("restic");
    restic.args(["check", "--read-data", "--no-cache", "--repo", text(repo)]);
    run(restic.arg("--password-file").arg(password_file));
}

#[test]
fn a_point_goes_to_all_repositories() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let (offsite, usb) = (vmtwin.path("offsite"), vmtwin.path("usb"));
    let set = ["vm", "set", VM, "--also", "offsite"];
    vmtwin.fails(&set, &["no repository is called 'offsite'", "repo add"]);
    let added = vmtwin.json(&["repo", "add", "offsite", text(&offsite)]);
    assert_eq!(added["created"], true);
    let password = added["password"].as_str().unwrap().to_owned();
    let again = vmtwin.json(&["repo", "add", "offsite", text(&offsite)]);
    assert_eq!(
        (&again["created"], &again["password"]),
        (&false.into(), &Value::Null)
    );
    let own = vmtwin.path("usb.pw");
    std::fs::write(&own, "of the disk\n").unwrap();
    vmtwin.ok(&[
        "repo",
        "add",
        "usb",
        text(&usb),
        "--with-password-file",
        text(&own),
    ]);
    vmtwin.ok(&["vm", "set", VM, "--also", "offsite", "--also", "usb"]);

    let first = backup(&vmtwin, 0);
    assert_eq!(first["repository"], "main");
    assert_eq!(first["also"].as_array().unwrap().len(), 2);
    assert_eq!(points(&vmtwin), ["main offsite usb"]);
    let kept = vmtwin.home().join("password-offsite");
    assert_eq!(std::fs::read_to_string(&kept).unwrap().trim(), password);
    restic_check(&offsite, &kept);
    restic_check(&usb, &own);
    for (number, repo) in ["offsite", "usb"].iter().enumerate() {
        let (here, there) = (
            vmtwin.path(&format!("a{number}")),
            vmtwin.path(&format!("b{number}")),
        );
        let format = ["--format", "raw", "--to"];
        vmtwin.ok(&[&["restore", "latest"], &format[..], &[text(&here)]].concat());
        vmtwin.ok(&[
            &["restore", "latest", "--repo", repo],
            &format[..],
            &[text(&there)],
        ]
        .concat());
        run(Command::new("cmp")
            .arg(here.join("disk0.raw"))
            .arg(there.join("disk0.raw")));
    }
    let all = document(&vmtwin.run(&["repo", "list", "--json"]));
    assert!(!all.to_string().contains(&password));

    one_is_away(&vmtwin, &offsite);
    main_is_away(&vmtwin);
    another_repository_in_its_place(&vmtwin, &offsite);
    drop(guest);
}

/// The backup is good, and the next brings what is missing.
fn one_is_away(vmtwin: &Vmtwin, offsite: &Path) {
    let away = offsite.with_extension("away");
    std::fs::rename(offsite, &away).unwrap();
    let second = backup(vmtwin, 3);
    assert!(second["also"][0]["error"].is_string());
    assert!(second["also"][1]["snapshot"].is_string());
    std::fs::rename(&away, offsite).unwrap();
    assert_eq!(points(vmtwin), ["main offsite usb", "main usb"]);
    let third = backup(vmtwin, 0);
    assert_eq!(
        (&third["also"][0]["copied"], &third["also"][1]["copied"]),
        (&2.into(), &1.into())
    );
    assert_eq!(points(vmtwin), ["main offsite usb"; 3]);
    // What was forgotten there does not come back.
    let forgotten = document(&vmtwin.run(&["snapshot", "list", "--repo", "offsite", "--json"]));
    let oldest = forgotten[0]["id"].as_str().unwrap();
    vmtwin.ok(&["snapshot", "forget", oldest, "--repo", "offsite"]);
    let fourth = backup(vmtwin, 0);
    assert_eq!(fourth["also"][0]["copied"], 1);
    assert_eq!(points(vmtwin)[0], "main usb");
}

/// The first that opens is captured into.
fn main_is_away(vmtwin: &Vmtwin) {
    let away = vmtwin.repo().with_extension("away");
    std::fs::rename(vmtwin.repo(), &away).unwrap();
    let before = points_where(vmtwin, 3);
    let report = backup(vmtwin, 3);
    assert_eq!(report["repository"], "offsite");
    assert_eq!(points_where(vmtwin, 3), before + 1);
    std::fs::rename(&away, vmtwin.repo()).unwrap();
    assert_eq!(points(vmtwin).last().unwrap(), "offsite usb");
    let report = backup(vmtwin, 0);
    assert_eq!(report["repository"], "main");
    vmtwin.assert_nothing_left();
}

/// How many points are listed, with that exit code.
fn points_where(vmtwin: &Vmtwin, exit: i32) -> usize {
    let output = vmtwin.run(&["snapshot", "list", "--all-repos", "--json"]);
    assert_eq!(code(&output), exit, "{}", told(&output));
    document(&output).as_array().unwrap().len()
}

/// Nothing is written to a repository that is not the one that was added.
fn another_repository_in_its_place(vmtwin: &Vmtwin, offsite: &Path) {
    std::fs::remove_dir_all(offsite).unwrap();
    let mut init = vmtwin.command(&[
        "init",
        "--repo",
        text(offsite),
        "--home",
        text(&vmtwin.path("h")),
    ]);
    init.env_remove("VMTWIN_REPO");
    let kept = std::fs::read_to_string(vmtwin.home().join("password-offsite")).unwrap();
    run(init.env("VMTWIN_PASSWORD", kept.trim()));
    let report = backup(vmtwin, 3);
    let error = report["also"][0]["error"].as_str().unwrap();
    assert!(error.contains("is not the one that was added"), "{error}");
    vmtwin.ok(&["repo", "remove", "offsite"]);
    let told = backup(vmtwin, 3)["also"][0]["error"].to_string();
    assert!(told.contains("no repository is called"), "{told}");
}
