//! Three real nodes on one machine, each with its own network, libvirtd and agent, and one PostgreSQL:
//! what one of them restores on the others, and what it may not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{Node, backup, hindered, ip, lab, of};
use common::{PATIENCE, action, code, document, text, told};
use serde_json::Value;
use vmtwin_testkit::{Postgres, run};

fn deployed(report: &Value, name: &str) -> usize {
    let node = of(report, name);
    assert!(node["error"].is_null(), "{report}");
    node["deployed"].as_array().unwrap().len()
}

/// Longer ones run with the whole suite.
fn is_short_run() -> bool {
    let all = std::env::var_os("VMTWIN_TEST_ALL").is_some();
    if !all {
        eprintln!("not run: set VMTWIN_TEST_ALL=1");
    }
    !all
}

#[test]
fn one_node_restores_all_that_let_it() {
    if hindered() {
        return;
    }
    let (mut nodes, database) = lab();
    let (file, _) = backup(&nodes[0], &["--require-all"]);
    let file = text(&file);
    let before = nodes.each_ref().map(Node::everything);
    for node in &nodes {
        node.wipe();
    }
    let restore = ["cluster", "restore", file, "--skip-database", "--yes"];

    // A certificate of the cluster is not enough.
    let refused = nodes[0].ends(&restore, 3);
    for name in ["n2", "n3"] {
        let why = of(&refused, name)["not_reached"].as_str().unwrap();
        assert!(why.contains("allow-restore n1"), "{why}");
    }
    assert_eq!(nodes[0].everything(), before[0]);
    assert_eq!(nodes[1].everything(), "");
    for node in &nodes[1..] {
        let allowed = node.ends(&["cluster", "node", "allow-restore", "n1"], 0);
        assert_eq!(allowed["nodes"][0]["name"], "n1");
    }

    // Nor is the word of the database, which every node can write: n3 says there that it is n1.
    let sql = |statements: &str| Postgres::shared().sql(&database, statements);
    let ids = sql("SELECT id FROM node ORDER BY name");
    let ids: Vec<&str> = ids.lines().collect();
    let swap = |from: &str, to: &str| {
        sql(&format!(
            "UPDATE node_certificate SET node = '{to}' WHERE node = '{from}'"
        ));
    };
    let n2 = [
        "cluster",
        "restore",
        file,
        "--node",
        "n2",
        "--dry-run",
        "--skip-database",
    ];
    swap(ids[2], ids[0]);
    let refused = nodes[2].ends(&n2, 1);
    assert!(
        refused.as_str().unwrap().contains("allow-restore n1"),
        "{refused}"
    );
    sql(&format!(
        "UPDATE node_certificate SET node = '{}' WHERE issued_at = \
         (SELECT max(issued_at) FROM node_certificate)",
        ids[2]
    ));

    // What all would do is shown, and nothing is done.
    let planned = nodes[0].ends(&["cluster", "restore", file, "--dry-run"], 0);
    for name in ["n2", "n3"] {
        let items = of(&planned, name)["plan"]["items"].to_string();
        assert!(items.contains(&format!("lan-{name}")), "{items}");
    }
    assert_eq!(nodes[1].everything(), "");

    // One is down: it is named, the others come back; later it comes back by itself.
    nodes[2].kill_agent();
    let report = nodes[0].ends(&restore, 3);
    assert_eq!(deployed(&report, "n2"), 2);
    assert!(of(&report, "n3")["not_reached"].is_string(), "{report}");
    assert_eq!(nodes[1].everything(), before[1]);
    assert_eq!(nodes[2].everything(), "");
    let kept = of(&report, "n2")["kept_on_node"].as_str().unwrap();
    assert!(std::path::Path::new(kept).exists());
    nodes[2].serve(None);
    let report = nodes[0].ends(&[&restore[..], &["--node", "n3"]].concat(), 0);
    assert_eq!(deployed(&report, "n3"), 2);
    assert_eq!(nodes[2].everything(), before[2]);
    assert_eq!(deployed(&nodes[0].ends(&restore, 0), "n2"), 0);

    // Then the database, once; the audit in it is of before.
    let audit =
        "SELECT count(*) FROM audit WHERE action = 'restore of a node' AND outcome = 'done'";
    assert_eq!(sql(audit), "2");
    let whole = ["cluster", "restore", file, "--yes", "--force"];
    // Killed when the nodes are done, before it is replaced and after: it is the one or the other.
    for (step, rows) in [("cluster-database", "2"), ("cluster-database-loaded", "0")] {
        let mut killed = nodes[0].command(&whole);
        let killed = killed.env("VMTWIN_FAILPOINT", format!("{step}=kill"));
        let killed = killed.output().unwrap();
        assert!(killed.stdout.is_empty(), "{}", told(&killed));
        assert_eq!(sql(audit), rows, "{step}");
    }
    let whole = nodes[0].run(&whole);
    assert!(matches!(code(&whole), 0 | 3), "{}", told(&whole));
    assert!(document(&whole)["database"].is_object());
    assert_eq!(sql(audit), "0");

    nodes[1].ends(&["cluster", "node", "deny-restore", "n1"], 0);
    let refused = nodes[0].ends(&n2, 1);
    assert!(
        refused.as_str().unwrap().contains("does not let n1"),
        "{refused}"
    );
}

/// An agent that cannot see what its libvirt defines gives nothing: what was known counts.
#[test]
fn an_agent_whose_libvirt_is_down_is_not_collected() {
    if hindered() {
        return;
    }
    let (nodes, _) = lab();
    let (_, report) = backup(&nodes[0], &["--require-all"]);
    let known = of(&report, "n2")["as_of"].clone();
    nodes[1].host.kill_libvirtd();
    for what_to_do in ["restart libvirtd", "start libvirtd"] {
        let (file, report) = backup(&nodes[0], &[]);
        let node = of(&report, "n2");
        assert_eq!(node["state"], "last-known", "{report}");
        assert_eq!(node["as_of"], known);
        let error = node["error"].as_str().unwrap();
        assert!(error.contains(what_to_do), "{error}");
        assert_eq!(of(&report, "n3")["state"], "collected", "{report}");
        let view = nodes[0].ends(&["cluster", "view", text(&file), "--node", "n2"], 0);
        assert!(view.to_string().contains("<name>guest-n2</name>"), "{view}");
        let refused = nodes[0].ends(&["cluster", "backup", "--require-all"], 1);
        assert!(refused.as_str().unwrap().contains("nothing was written"));
        // Then its sockets go too.
        run(nodes[1].host.command("rm").args(["-rf", "/run/libvirt"]));
    }
}

#[test]
fn what_is_lost_in_the_middle_is_done_by_the_end() {
    if hindered() || is_short_run() {
        return;
    }
    let (mut nodes, _) = lab();
    for node in &nodes[1..] {
        node.ends(&["cluster", "node", "allow-restore", "n1"], 0);
    }
    let (file, _) = backup(&nodes[0], &["--require-all"]);
    let file = text(&file);
    let before = nodes.each_ref().map(Node::everything);
    let restore = ["cluster", "restore", file, "--skip-database", "--yes"];
    let one = [&restore[..], &["--node", "n2"]].concat();

    // The link is cut while a node is being restored: it goes on, and its outcome comes later.
    nodes[1].wipe();
    nodes[1].serve(Some("cluster restore step=sleep:3000"));
    let asking = nodes[0]
        .command(&one)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let asking = asking.unwrap();
    wait_for(|| nodes[1].log().contains("is being restored"));
    // Another asker meanwhile is told so, or finds it done.
    ip(&nodes[0].host, "link set to-n2 down");
    thread::sleep(Duration::from_secs(8));
    ip(&nodes[0].host, "link set to-n2 up");
    let output = asking.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert_eq!(deployed(&document(&output), "n2"), 2);
    assert_eq!(nodes[1].everything(), before[1]);

    // Two askers at once: one restores, the other is told, or finds nothing to do.
    nodes[1].wipe();
    let both = [0, 1].map(|_| {
        let mut ask = nodes[0].command(&one);
        ask.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let both = both.map(|asked| asked.wait_with_output().unwrap());
    assert!(
        both.iter().any(|output| code(output) == 0),
        "{}",
        told(&both[0])
    );
    assert_eq!(nodes[1].everything(), before[1]);

    // The agent is killed in the middle; the second run goes on.
    nodes[1].wipe();
    nodes[1].serve(Some("cluster restore step=kill"));
    let asking = nodes[0]
        .command(&one)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let asking = asking.unwrap();
    wait_for(|| nodes[1].log().contains("is being restored"));
    thread::sleep(Duration::from_secs(1));
    nodes[1].serve(None);
    let output = asking.wait_with_output().unwrap();
    assert_eq!(code(&output), 1, "{}", told(&output));
    let error = of(&document(&output), "n2")["error"].to_string();
    assert!(error.contains("was ended"), "{error}");
    nodes[0].ends(&one, 0);
    assert_eq!(nodes[1].everything(), before[1]);

    // n2 and n3 cannot talk to each other, n1 to both.
    for port in ["to-n2", "to-n3"] {
        let link = format!("link set {port} type bridge_slave isolated on");
        ip(&nodes[0].host, &link);
    }
    let (_, report) = backup(&nodes[1], &["--node-timeout", "5"]);
    assert_eq!(of(&report, "n3")["state"], "last-known", "{report}");
    assert_eq!(of(&report, "n1")["state"], "collected", "{report}");
    let (_, report) = backup(&nodes[0], &["--require-all"]);
    assert_eq!(of(&report, "n3")["state"], "collected", "{report}");
    for port in ["to-n2", "to-n3"] {
        let link = format!("link set {port} type bridge_slave isolated off");
        ip(&nodes[0].host, &link);
    }

    // n3 is gone for good: n2 takes what it had, beside its own.
    nodes[2].kill_agent();
    let mine = nodes[1].everything();
    nodes[0].ends(
        &[
            &restore[..],
            &["--node", "n3", "--onto", "n2", "--to-new-hardware"],
        ]
        .concat(),
        0,
    );
    let both = nodes[1].everything();
    assert!(
        both.len() > mine.len() && both.contains("<name>guest-n3</name>"),
        "{both}"
    );

    // All ask all at once.
    nodes[2].serve(None);
    thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| backup(node, &["--require-all"]));
        }
    });
}

fn wait_for(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < PATIENCE * 2);
        thread::sleep(Duration::from_millis(50));
    }
}

fn running(node: &Node) -> String {
    node.host
        .virsh(&["list", "--name", "--state-running"])
        .trim()
        .to_owned()
}

#[test]
fn all_nodes_and_the_database_are_lost_and_one_command_brings_them_back() {
    if hindered() {
        return;
    }
    let (nodes, database) = lab();
    for node in &nodes[1..] {
        node.ends(&["cluster", "node", "allow-restore", "n1"], 0);
    }
    for node in &nodes {
        node.host
            .virsh(&["net-start", &format!("lan-{}", node.name)]);
        node.host.virsh(&["start", &format!("guest-{}", node.name)]);
    }
    let (file, _) = backup(&nodes[0], &["--require-all"]);
    let before = nodes.each_ref().map(Node::everything);

    // All nodes are compared, and nothing of them is touched.
    let valid = nodes[1].ends(&["cluster", "validate", text(&file)], 0);
    for node in &nodes {
        let guest = format!("guest-{}", node.name);
        assert_eq!(action(of(&valid, node.name), "domain", &guest), "same");
    }
    nodes[2].host.virsh(&["net-autostart", "lan-n3"]);
    let valid = nodes[1].ends(&["cluster", "validate", text(&file)], 3);
    assert_eq!(action(of(&valid, "n3"), "network", "lan-n3"), "change");
    let one = ["cluster", "validate", text(&file), "--node", "n2"];
    nodes[1].ends(&one, 0);

    for node in &nodes {
        let (guest, network) = (format!("guest-{}", node.name), format!("lan-{}", node.name));
        node.host.virsh(&["destroy", &guest]);
        node.host.virsh(&["net-destroy", &network]);
        node.wipe();
    }
    let sql = |statements: &str| Postgres::shared().sql(&database, statements);
    let rows = "SELECT count(*) FROM node_certificate";
    assert_eq!(sql(rows), "3");
    sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    // Agents let nobody in without it; they are to be there when it is back.
    thread::sleep(Duration::from_secs(1));

    let restore = ["cluster", "restore", text(&file), "--yes", "--start-guests"];
    let report = nodes[0].ends(&restore, 0);
    assert!(report["database"].is_object(), "{report}");
    for (node, before) in nodes.iter().zip(&before) {
        assert_eq!(deployed(&report, node.name), 2);
        assert_eq!(node.everything(), *before);
        assert_eq!(running(node), format!("guest-{}", node.name));
    }
    assert_eq!(sql(rows), "3");
    let (_, report) = backup(&nodes[1], &["--require-all"]);
    assert_eq!(of(&report, "n3")["state"], "collected", "{report}");
    nodes[0].ends(&["cluster", "validate", text(&file)], 0);

    // What the database holds is replaced only where that is said, and it is said before a node is touched.
    nodes[0].host.virsh(&["destroy", "guest-n1"]);
    let restore = ["cluster", "restore", text(&file), "--yes", "--start-guests"];
    let refused = nodes[0].ends(&restore, 1);
    let told = refused.as_str().unwrap();
    assert!(told.contains("--replace-database"), "{told}");
    assert_eq!(running(&nodes[0]), "");
}

#[test]
fn a_guest_is_never_started_on_two_nodes() {
    if hindered() {
        return;
    }
    let (mut nodes, _) = lab();
    let (file, _) = backup(&nodes[0], &["--require-all"]);
    let restore = [
        "cluster",
        "restore",
        text(&file),
        "--skip-database",
        "--yes",
        "--start-guests",
        "--node",
        "n1",
    ];
    // It moves to n2, and nobody has told the cluster yet.
    let guest = nodes[0].host.virsh(&["dumpxml", "--inactive", "guest-n1"]);
    let network = nodes[0]
        .host
        .virsh(&["net-dumpxml", "--inactive", "lan-n1"]);
    nodes[1].define("net-define", &network);
    nodes[1].define("define", &guest);
    nodes[1].host.virsh(&["net-start", "lan-n1"]);
    nodes[1].host.virsh(&["start", "guest-n1"]);
    nodes[0].wipe();

    // The backup that is made before anything is changed finds it out.
    let refused = nodes[0].ends(&restore, 1);
    let told = refused.as_str().unwrap();
    assert!(told.contains("has changed since"), "{told}");
    assert!(told.contains("node n2 has it"), "{told}");
    assert_eq!(nodes[0].everything(), "");
    let report = nodes[0].ends(&restore, 3);
    assert_eq!(
        action(of(&report, "n1"), "domain", "guest-n1"),
        "left-alone"
    );
    assert_eq!(running(&nodes[0]), "");
    assert_eq!(running(&nodes[1]), "guest-n1");

    // A backup in which n1 is as it was last known, and n2 as it is: both hold the guest.
    nodes[0].define("net-define", &network);
    nodes[0].define("define", &guest);
    nodes[0].ends(&["cluster", "collect"], 0);
    nodes[0].wipe();
    nodes[0].kill_agent();
    let (both, report) = backup(&nodes[1], &["--node-timeout", "5"]);
    assert_eq!(of(&report, "n1")["state"], "last-known", "{report}");
    let mut from = restore;
    from[2] = text(&both);
    let report = nodes[0].ends(&from, 3);
    assert_eq!(
        action(of(&report, "n1"), "domain", "guest-n1"),
        "left-alone"
    );
    assert_eq!(running(&nodes[0]), "");
}
