//! Secrets of three real nodes: in a backup only if they were asked for, then for who has the key, and
//! otherwise in no file, no log and no answer. `age` opens what is sealed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::lab::{Node, backup, hindered, lab, of};
use common::{code, document, text, told};
use serde_json::Value;
use vmtwin_testkit::{Postgres, run};

const PRIVATE: &str = "11111111-2222-4333-8444-555555555555";

/// The UUID of a node's secret.
fn uuid(node: &Node) -> String {
    let number = node.name.trim_start_matches('n');
    format!("3c0c7e0a-91cf-4a5d-8f57-6f1f0f3c2a1{number}")
}

/// The value of a node's secret, in base64 as `virsh` shows it.
fn value(node: &Node) -> String {
    match node.name {
        "n1" => "b25lIHZlcnkgc2VjcmV0IHZhbHVl",
        "n2" => "dHdvIHZlcnkgc2VjcmV0IHZhbHVl",
        _ => "c2V2ZW4gdmVyeSBzZWNyZXQgdmFs",
    }
    .to_owned()
}

/// The password of the display of a node's guest.
fn password(node: &Node) -> String {
    format!("vNc-{}-Q", node.name)
}

fn define(node: &Node, uuid: &str, private: &str) {
    node.define(
        "secret-define",
        &format!("<secret ephemeral='no' private='{private}'><uuid>{uuid}</uuid></secret>"),
    );
}

fn set_value(node: &Node, value: &str) {
    node.host.virsh(&["secret-set-value", &uuid(node), value]);
}

/// A guest with a display that asks for a password.
fn set_password(node: &Node, password: &str) {
    let known = node.host.virsh(&["list", "--all", "--name"]);
    let name = format!("shown-{}", node.name);
    let id = match known.lines().any(|line| line.trim() == name) {
        true => format!(
            "<uuid>{}</uuid>",
            node.host.virsh(&["domuuid", &name]).trim()
        ),
        false => String::new(),
    };
    // One that was set later has an end, which is not to stay when the earlier one comes back.
    let until = match password {
        "changed" => " passwdValidTo='2027-01-01T00:00:00'",
        _ => "",
    };
    node.define(
        "define",
        &format!(
            "<domain type='qemu'><name>{name}</name>{id}<memory unit='MiB'>64</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
             <graphics type='vnc' port='-1' passwd='{password}'{until}/></devices></domain>"
        ),
    );
}

fn furnish(node: &Node) {
    define(node, &uuid(node), "no");
    set_value(node, &value(node));
    set_password(node, &password(node));
}

/// Value and password as libvirt has them.
fn secrets(node: &Node) -> [String; 2] {
    let shown = format!("shown-{}", node.name);
    [
        node.host.virsh(&["secret-get-value", &uuid(node)]),
        node.host.virsh(&["dumpxml", "--security-info", &shown]),
    ]
}

fn wipe(node: &Node) {
    node.host
        .virsh(&["undefine", &format!("shown-{}", node.name)]);
    node.host.virsh(&["secret-undefine", &uuid(node)]);
    node.wipe();
}

/// No secret of any node is in what was said.
fn assert_silent(nodes: &[Node], what: &str, said: &[u8]) {
    let said = String::from_utf8_lossy(said);
    for node in nodes {
        for secret in [value(node), plain(&value(node)), password(node)] {
            assert!(!said.contains(&secret), "{what} shows {secret}");
        }
    }
}

fn plain(base64: &str) -> String {
    let mut decode = Command::new("sh");
    decode.args(["-c", &format!("printf %s {base64} | base64 -d")]);
    String::from_utf8(run(&mut decode).stdout).unwrap()
}

/// Nor in any file of the nodes' homes and logs, nor in the archive, unpacked.
fn assert_nothing_lies_about(nodes: &[Node], archive: &Path) {
    let unpacked = run(Command::new("unzip").arg("-p").arg(archive)).stdout;
    assert!(unpacked.len() > 1000);
    assert_silent(nodes, "the archive", &unpacked);
    for node in nodes {
        assert_silent(nodes, "a log", node.log().as_bytes());
        let mut folders = vec![node.host.file("home")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    let content = std::fs::read(&path).unwrap();
                    assert_silent(nodes, text(&path), &content);
                }
            }
        }
    }
}

/// What stock `age` reads in a sealed file.
fn opened_by_age(key: &str, sealed: &Path) -> Value {
    let opened = run(Command::new("age").args(["-d", "-i", key]).arg(sealed)).stdout;
    serde_json::from_slice(&opened).unwrap()
}

fn unpacked(node: &Node, archive: &str, entry: &str) -> PathBuf {
    let to = node.host.file(entry.replace('/', "-"));
    let content = run(Command::new("unzip").args(["-p", archive, entry])).stdout;
    std::fs::write(&to, content).unwrap();
    to
}

fn says(output: &Output, with: i32, words: &str) {
    assert_eq!(code(output), with, "{}", told(output));
    assert!(told(output).contains(words), "{}", told(output));
}

#[test]
fn secrets_come_back_for_who_has_the_key() {
    if hindered() {
        return;
    }
    let (mut nodes, database) = lab();
    let url = Postgres::shared().url(&database);
    nodes.iter().for_each(furnish);
    define(&nodes[0], PRIVATE, "yes");
    nodes[0]
        .host
        .virsh(&["secret-set-value", PRIVATE, "Z2VoZWlt"]);
    let before = nodes.each_ref().map(secrets);
    let repo = nodes[0].host.file("repo");
    let made = nodes[0].ends(&["init", "--repo", text(&repo)], 0);
    let repo_password = made["password"].as_str().unwrap().to_owned();

    // Without the flag no secret is anywhere.
    let (file, report) = backup(&nodes[0], &["--require-all"]);
    assert!(report["sealed"].is_null());
    assert_nothing_lies_about(&nodes, &file);
    let none = [
        "cluster",
        "restore",
        text(&file),
        "--secrets-identity",
        "/dev/null",
    ];
    says(&nodes[0].run(&none), 1, "without --with-secrets");

    // With it, for nobody: refused. With a key: of those nodes that let this one.
    let with = ["cluster", "backup", "--with-secrets"];
    says(&nodes[0].run(&with), 1, "--secrets-recipient");
    let key = nodes[0].host.file("secrets.key");
    let key = text(&key);
    let made = nodes[0].ends(&["cluster", "secrets-key", key], 0);
    let recipient = made["recipient"].as_str().unwrap();
    let keygen = run(Command::new("age-keygen").args(["-y", key])).stdout;
    assert_eq!(String::from_utf8(keygen).unwrap().trim(), recipient);
    let with = ["--with-secrets", "--secrets-recipient", recipient];
    nodes[1].ends(&["cluster", "node", "allow-restore", "n1"], 0);
    let (_, report) = backup(&nodes[0], &with);
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("n3: its secrets are not in the backup"),
        "{warnings}"
    );
    assert!(warnings.contains("allow-restore n1"), "{warnings}");
    assert!(warnings.contains(PRIVATE), "{warnings}");
    assert_eq!(of(&report, "n1")["secrets"]["files"], 4, "{report}");
    assert_eq!(of(&report, "n2")["secrets"]["values"], 1, "{report}");
    assert_eq!(of(&report, "n2")["secrets"]["passwords"], 1, "{report}");
    assert!(of(&report, "n3")["secrets"].is_null(), "{report}");

    // All of them; `age` opens it, and only with the key.
    nodes[2].ends(&["cluster", "node", "allow-restore", "n1"], 0);
    nodes[0].host.virsh(&["secret-undefine", PRIVATE]);
    let sealed = [&["cluster", "backup", "--require-all"], &with[..]].concat();
    let report = nodes[0].ends(&sealed, 0);
    let file = PathBuf::from(report["file"].as_str().unwrap());
    assert_nothing_lies_about(&nodes, &file);
    let file = text(&file);
    run(Command::new("unzip").args(["-t", file]));
    let all = run(Command::new("unzip").args(["-p", file])).stdout;
    assert!(!String::from_utf8_lossy(&all).contains(&repo_password));
    let n2 = opened_by_age(key, &unpacked(&nodes[0], file, "secrets/n2.age"));
    assert_eq!(n2["values"][uuid(&nodes[1])], value(&nodes[1]), "{n2}");
    let checked = nodes[0].run(&["cluster", "validate", file, "--secrets-identity", key]);
    assert_eq!(
        document(&checked)["secrets_opened"]
            .as_array()
            .unwrap()
            .len(),
        3
    );

    // A node that takes another's guests stays itself: of its own files it gets none.
    let onto = ["cluster", "restore", file, "--skip-database", "--dry-run"];
    let onto = [&onto[..], &["--node", "n1", "--onto", "n3"]].concat();
    let onto = [&onto[..], &["--to-new-hardware", "--secrets-identity", key]].concat();
    let planned = told(&nodes[0].run(&onto));
    assert!(planned.contains("shown-n1"), "{planned}");
    assert!(!planned.contains("cluster-authority"), "{planned}");

    // All is lost, with the key of the authority.
    let authority = nodes[0].host.file("home/cluster-authority.json");
    let kept = std::fs::read(&authority).unwrap();
    std::fs::remove_file(&authority).unwrap();
    nodes.iter().for_each(wipe);
    let restore = ["cluster", "restore", file, "--skip-database", "--yes"];
    let open = ["--secrets-identity", key];
    let closed = [&restore[..4], &["--dry-run"]].concat();
    let closed = nodes[0].run(&closed);
    says(&closed, 3, "its value is sealed");
    let other = nodes[0].host.file("other.key");
    nodes[0].ends(&["cluster", "secrets-key", text(&other)], 0);
    let wrong = [&restore[..], &["--secrets-identity", text(&other)]].concat();
    says(&nodes[0].run(&wrong), 1, "sealed for another key");
    assert_eq!(nodes[0].everything(), "", "nothing was done");

    // It comes back, once.
    let whole = [&restore[..], &open].concat();
    let output = nodes[0].run(&whole);
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert_silent(&nodes, "the restore", &output.stdout);
    assert_silent(&nodes, "the restore", &output.stderr);
    assert_eq!(nodes.each_ref().map(secrets), before);
    assert_eq!(std::fs::read(&authority).unwrap(), kept);
    let again = nodes[0].ends(&whole, 0);
    for name in ["n1", "n2", "n3"] {
        assert_eq!(of(&again, name)["deployed"].as_array().unwrap().len(), 0);
    }

    // What was changed since is changed back, and kept, sealed for the same key.
    let changed = "Y2hhbmdlZCBzaW5jZQ==";
    for node in &nodes[..2] {
        set_value(node, changed);
        set_password(node, "changed");
    }
    let report = nodes[0].ends(&whole, 0);
    for (node, before) in nodes[..2].iter().zip(&before) {
        let differences = of(&report, node.name)["plan"]["items"].to_string();
        assert!(differences.contains("its value"), "{differences}");
        assert!(differences.contains("its passwords"), "{differences}");
        assert_eq!(secrets(node), *before);
        let before_restore = node.host.file("home/cluster/before-restore");
        let mut copies: Vec<PathBuf> = std::fs::read_dir(before_restore)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "age"))
            .collect();
        copies.sort();
        let copy = opened_by_age(key, copies.last().unwrap());
        assert_eq!(copy["values"][uuid(node)], changed, "{copy}");
    }
    assert_nothing_lies_about(&nodes, Path::new(file));

    // An agent that dies while it is asked: its configuration is there, and what is missing is said.
    nodes[1].serve(Some("agent-secrets=kill"));
    let (_, report) = backup(&nodes[0], &with);
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("n2: its secrets are not in the backup"),
        "{warnings}"
    );
    assert_eq!(of(&report, "n2")["state"], "collected", "{report}");
    nodes[1].serve(None);
    by_passphrase(&nodes);
    homes_are_lost(&mut nodes, Path::new(file), key, &url);
    assert_eq!(nodes.each_ref().map(secrets), before);
}

/// Every node loses all it had, and the database too: each is a node again without a token, and the first
/// one lets others in.
fn homes_are_lost(nodes: &mut [Node; 3], archive: &Path, key: &str, url: &str) {
    let kept = nodes[0].host.file("kept.zip");
    std::fs::copy(archive, &kept).unwrap();
    for node in nodes.iter_mut() {
        node.kill_agent();
        std::fs::remove_dir_all(node.host.file("home")).unwrap();
        wipe(node);
    }
    for (number, node) in nodes.iter_mut().enumerate() {
        let restore = [
            "cluster",
            "restore",
            text(&kept),
            "--node",
            node.name,
            "--yes",
        ];
        let more = match number {
            0 => ["--database", url, "--secrets-identity", key, "--force"],
            _ => [
                "--database",
                url,
                "--secrets-identity",
                key,
                "--skip-database",
            ],
        };
        node.ends(&[&restore[..], &more].concat(), 0);
        node.serve(None);
    }
    // What it knew of its repository, and who may restore it.
    nodes[0].ends(&["stats"], 0);
    let allowed = nodes[1].ends(&["cluster", "node", "allow-restore"], 0);
    assert_eq!(allowed["nodes"][0]["name"], "n1");
    nodes[0].ends(&["cluster", "token"], 0);
    let up = nodes[2].ends(&["cluster", "nodes"], 0);
    for node in up.as_array().unwrap() {
        assert_eq!(node["up"], true, "{up}");
    }
    nodes[2].ends(&["cluster", "backup", "--require-all"], 0);
}

/// A passphrase does the same.
fn by_passphrase(nodes: &[Node; 3]) {
    let file = |name: &str, content: &str| {
        let path = nodes[0].host.file(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (short, wrong) = (file("short", "short\n"), file("wrong", "incorrect horse\n"));
    let right = file("right", "correct horse battery\nand more\n");
    let with = |by: &Path| {
        let fixed = [
            "cluster",
            "backup",
            "--with-secrets",
            "--secrets-passphrase-file",
        ];
        nodes[0].run(&[&fixed[..], &[text(by)]].concat())
    };
    says(&with(&short), 1, "too short");
    let output = with(&right);
    assert_eq!(code(&output), 0, "{}", told(&output));
    let report = document(&output);
    assert_eq!(report["sealed"]["passphrase"], true, "{report}");
    let archive = report["file"].as_str().unwrap();
    set_value(&nodes[2], "bG9zdA==");
    let restore = |by: &[&str]| {
        let fixed = ["cluster", "restore", archive, "--skip-database", "--yes"];
        nodes[0].run(&[&fixed[..], by].concat())
    };
    let by = |file: &Path| restore(&["--secrets-passphrase-file", text(file)]);
    says(&by(&wrong), 1, "another one");
    says(
        &restore(&[
            "--secrets-identity",
            text(&nodes[0].host.file("secrets.key")),
        ]),
        1,
        "another key",
    );
    let output = by(&right);
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert_eq!(
        nodes[2]
            .host
            .virsh(&["secret-get-value", &uuid(&nodes[2])])
            .trim(),
        value(&nodes[2])
    );
}
