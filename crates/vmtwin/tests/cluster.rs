//! Three nodes that share a PostgreSQL server: the cluster is made, backed up, looked at, lost and
//! brought back.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{PASSWORD, PATIENCE, Vmtwin, code, document, files, text, told};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::s3::{Fault, FaultProxy, S3Server};
use vmtwin_testkit::{Postgres, run};

/// Runs it to its end: done, or done with warnings (libvirt may run on this host).
fn done(vmtwin: &Vmtwin, args: &[&str]) -> Value {
    let output = vmtwin.run(&[args, &["--json"]].concat());
    assert!(
        matches!(code(&output), 0 | 3),
        "{args:?}: {}",
        told(&output)
    );
    document(&output)
}

fn warned(output: &Output, word: &str) -> Value {
    assert_eq!(code(output), 3, "{}", told(output));
    let report = document(output);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains(word), "{warnings}");
    report
}

/// node1 made the cluster, node2 and node3 joined.
fn three_nodes(url: &str) -> [Vmtwin; 3] {
    let nodes = [Vmtwin::new(), Vmtwin::new(), Vmtwin::new()];
    nodes[0].ok(&["init"]);
    nodes[0].ok(&[
        "cluster",
        "create",
        "lab",
        "--database",
        url,
        "--node",
        "node1",
    ]);
    for (node, name) in nodes[1..].iter().zip(["node2", "node3"]) {
        node.ok(&["cluster", "join", "--database", url, "--node", name]);
    }
    nodes
}

fn unzipped(vmtwin: &Vmtwin, file: &Path) -> PathBuf {
    let out = vmtwin.path("unzipped");
    run(Command::new("unzip").arg("-tqq").arg(file));
    run(Command::new("unzip")
        .args(["-qq", "-o", "-d"])
        .arg(&out)
        .arg(file));
    out
}

#[test]
fn a_cluster_is_backed_up_lost_and_brought_back() {
    let server = Postgres::shared();
    let url = server.database();
    let [one, two, three] = three_nodes(&url);
    // Again is no error, and every node sees the same.
    one.ok(&["cluster", "create", "lab", "--node", "node1"]);
    two.ok(&["cluster", "join"]);
    let nodes = three.json(&["cluster", "nodes"]);
    let names: Vec<_> = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|node| &node["name"])
        .collect();
    assert_eq!(names, ["node1", "node2", "node3"]);
    done(&two, &["cluster", "collect"]);

    let refused = one.fails(&["cluster", "backup", "--require-all"], &["node3"]);
    assert!(refused.contains("nothing was written"), "{refused}");
    assert_eq!(one.json(&["cluster", "list"]).as_array().unwrap().len(), 0);
    let report = warned(&one.run(&["cluster", "backup", "--json"]), "node3");
    let states: Vec<_> = (report["nodes"].as_array().unwrap().iter())
        .map(|node| node["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["collected", "last-known", "missing"]);
    let file = PathBuf::from(report["file"].as_str().unwrap());
    let file = text(&file);

    let out = unzipped(&one, Path::new(file));
    let schema = one.path("node.xsd");
    std::fs::write(&schema, vmtwin_cluster::node::SCHEMA).unwrap();
    for node in ["node1", "node2"] {
        run(Command::new("xmllint")
            .args(["--noout", "--nonet", "--schema"])
            .arg(&schema)
            .arg(out.join(format!("nodes/{node}.xml"))));
    }
    assert!(!out.join("nodes/node3.xml").exists());
    for entry in common::files(&out) {
        let content = std::fs::read(entry).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(PASSWORD));
    }

    let view = one.json(&[
        "cluster", "view", file, "--node", "node2", "--type", "hardware",
    ]);
    assert_eq!(view["nodes"].as_array().unwrap().len(), 1);
    assert!(view["nodes"][0]["virtual"].is_null());
    let shown = one.ok(&["cluster", "view", file, "--detail"]);
    assert!(
        told(&shown).contains("node node3: MISSING"),
        "{}",
        told(&shown)
    );
    let valid = document(&one.run(&["cluster", "validate", file, "--json"]));
    assert_eq!(valid["entries"], 3);
    let compared = |name: &str| {
        let mut nodes = valid["nodes"].as_array().unwrap().iter();
        nodes.find(|node| node["node"] == name).unwrap().clone()
    };
    assert!(compared("node1")["plan"].is_object(), "{valid}");
    let why = compared("node2")["not_compared"].to_string();
    assert!(why.contains("no agent"), "{valid}");
    let own = ["cluster", "validate", file, "--node", "node1"];
    let own = one.json(&own);
    assert_eq!(own["nodes"].as_array().unwrap().len(), 1);

    // The database is lost, and another one takes its place.
    let content = one.json(&["catalog", "show"])["tables"].clone();
    let other = server.database();
    let arguments = [
        "--database",
        &other,
        "cluster",
        "restore",
        file,
        "--only-database",
    ];
    let restored = one.json(&arguments);
    assert_eq!(restored["unchanged"], false);
    let after = one.json(&["--database", &other, "cluster", "nodes"]);
    assert_eq!(after, nodes_of_backup(&nodes, &after));
    one.fails(&arguments, &["--force"]);
    let again = one.json(&[&arguments[..], &["--force"]].concat());
    assert_eq!(again["unchanged"], true);
    assert_eq!(one.json(&["catalog", "show"])["tables"], content);
}

/// What waited for its deletion then is not deleted now, and the report says so.
#[test]
fn a_restored_database_deletes_nothing() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.split('?').next().unwrap().rsplit('/').next().unwrap();
    let node = Vmtwin::new();
    let create = ["cluster", "create", "lab", "--database", &url];
    node.ok(&[&create[..], &["--node", "n1"]].concat());
    let long_ago = "2026-01-01T00:00:00.000000Z";
    server.sql(
        database,
        &format!("INSERT INTO deletion VALUES ('r1', 's1', '{long_ago}', '{long_ago}')"),
    );
    let report = done(&node, &["cluster", "backup"]);
    let file = report["file"].as_str().unwrap();
    let restore = ["cluster", "restore", file, "--only-database", "--force"];
    let restored = warned(
        &node.run(&[&restore[..], &["--json"]].concat()),
        "1 snapshots waited",
    );
    assert_eq!(restored["unchanged"], false);
    assert_eq!(
        server.sql(database, "SELECT count(*) FROM deletion"),
        "0",
        "{restored}"
    );

    let copy = node.path("copy.jsonl");
    node.ok(&["catalog", "dump", text(&copy)]);
    node.ok(&["catalog", "load", text(&copy), "--force"]);
}

/// A host that died for good leaves a job that nobody can end from elsewhere. It stands in no way for ever.
#[test]
fn a_job_of_a_dead_host_is_passed_over_or_ended() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.split('?').next().unwrap().rsplit('/').next().unwrap();
    let sql = |statement: &str| server.sql(database, statement);
    let [one, _, _] = three_nodes(&url);
    let long_ago = "2026-01-01T00:00:00.000000Z";
    sql("UPDATE node SET host = 'dead.example' WHERE name = 'node3'");
    sql(&format!(
        "INSERT INTO job (id, kind, vm_name, state, owner_pid, owner_start, owner_boot, host, started_at) \
         VALUES ('11111111-9dad-41d1-80b4-00c04fd430c8', 'backup', 'web', 'running', 1, 1, 'b', \
         'dead.example', '{long_ago}')"
    ));
    // A copy, and a backup, that bring the job back.
    let copy = one.path("copy.jsonl");
    one.ok(&["catalog", "dump", text(&copy)]);
    let report = done(&one, &["cluster", "backup"]);
    let file = report["file"].as_str().unwrap();
    let load = ["catalog", "load", text(&copy), "--force"];
    let restore = ["cluster", "restore", file, "--only-database", "--force"];
    let ways = [
        "a backup of web on dead.example",
        "vmtwin recover",
        "cluster node remove",
        "--force",
    ];
    // The node was heard of a moment ago: its job may run.
    one.fails(&load, &ways);
    one.fails(&restore, &ways);
    sql(&format!(
        "UPDATE node SET seen_at = '{long_ago}' WHERE name = 'node3'"
    ));
    one.fails(&load[..3], &ways);
    one.fails(&restore[..4], &ways);
    one.ok(&load);
    // By the copy it was heard of until then: it is silent no more.
    sql(&format!(
        "UPDATE node SET seen_at = '{long_ago}' WHERE name = 'node3'"
    ));
    done(&one, &restore);
    let removed = one.json(&["cluster", "node", "remove", "node3"]);
    assert_eq!(removed["jobs_ended"], 1, "{removed}");
    let refused = one.fails(&load[..3], &["rows"]);
    assert!(!refused.contains("not finished"), "{refused}");
    one.ok(&["catalog", "load", text(&copy), "--force"]);
}

/// The nodes as they were listed, but for when they were seen last.
fn nodes_of_backup(before: &Value, after: &Value) -> Value {
    let mut before = before.clone();
    let pairs = before
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .zip(after.as_array().unwrap());
    for (old, new) in pairs {
        for field in ["seen_at", "configuration_at"] {
            old[field] = new[field].clone();
        }
    }
    before
}

#[test]
fn a_wrong_cluster_and_a_damaged_file_change_nothing() {
    let server = Postgres::shared();
    let (url, other) = (server.database(), server.database());
    let node = Vmtwin::new();
    node.ok(&[
        "cluster",
        "create",
        "lab",
        "--database",
        &url,
        "--node",
        "a",
    ]);
    let report = done(&node, &["cluster", "backup"]);
    let file = report["file"].as_str().unwrap();
    let stranger = Vmtwin::new();
    stranger.ok(&[
        "cluster",
        "create",
        "lab",
        "--database",
        &other,
        "--node",
        "a",
    ]);
    let before = stranger.json(&["catalog", "show"]);
    let restore = |file: &str| {
        stranger.fails(
            &["cluster", "restore", file, "--only-database", "--force"],
            &[],
        )
    };
    assert!(restore(file).contains("nothing was changed"));
    stranger.fails(&["cluster", "validate", file], &["is of the cluster lab"]);

    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let damaged = node.path("damaged.zip");
    std::fs::write(&damaged, bytes).unwrap();
    for told in [restore(text(&damaged)), restore("/etc/passwd")] {
        assert!(told.contains("nothing of it was used"), "{told}");
    }
    assert_eq!(stranger.json(&["catalog", "show"]), before);
    // The other way around: a name is taken, a cluster has its name.
    stranger.fails(&["cluster", "join", "--database", &url], &["another node"]);
    node.fails(&["cluster", "create", "other"], &["\"lab\""]);
}

#[test]
fn a_host_alone_is_a_cluster_and_keeps_as_many_backups_as_it_is_told() {
    let node = Vmtwin::new();
    node.fails(&["cluster", "backup"], &["cluster create"]);
    node.ok(&["cluster", "create", "home", "--node", "alone"]);
    let folder = node.path("backups");
    let output = [
        "cluster",
        "backup",
        "--keep",
        "2",
        "--output",
        text(&folder),
    ];
    let files: Vec<String> = (0..4)
        .map(|_| done(&node, &output)["file"].as_str().unwrap().to_owned())
        .collect();
    std::fs::write(folder.join("other.zip"), "not ours").unwrap();
    let listed = node.json(&["cluster", "list", text(&folder)]);
    let listed: Vec<_> = (listed.as_array().unwrap().iter())
        .map(|one| one["file"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, [files[3].clone(), files[2].clone()]);
    assert!(folder.join("other.zip").exists());
}

/// The backups in a folder.
fn zips(folder: &Path) -> HashSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().path().display().to_string());
    names.filter(|name| name.ends_with(".zip")).collect()
}

#[test]
fn a_schedule_backs_up_the_cluster_and_removes_only_what_it_made() {
    let node = Vmtwin::new();
    let folder = node.path("backups");
    let often = [
        "schedule",
        "add",
        "often",
        "--cluster",
        "--every",
        "1s",
        "--keep-last",
        "2",
        "--output",
        text(&folder),
    ];
    node.fails(&often, &["cluster create"]);
    node.ok(&["cluster", "create", "home", "--node", "alone"]);
    let by_hand = done(&node, &["cluster", "backup", "--output", text(&folder)]);
    let by_hand = by_hand["file"].as_str().unwrap().to_owned();
    let mut other = often;
    other[2] = "a b";
    node.fails(&other, &["letters"]);
    other[2] = "rarely";
    other[5] = "1d";
    node.ok(&other);
    let run = node.run(&["schedule", "run", "rarely"]);
    assert!(matches!(code(&run), 0 | 3), "{}", told(&run));
    let mut all = zips(&folder).into_iter();
    let rarely = all.find(|file| file.contains("home-rarely-")).unwrap();

    node.ok(&often);
    let mut follow = node.command(&["schedule", "follow"]).spawn().unwrap();
    let begun = Instant::now();
    let mut made = HashSet::new();
    while made.len() < 4 {
        assert!(begun.elapsed() < PATIENCE * 2, "{made:?}");
        let own = |file: &String| file.contains("home-often-");
        made.extend(zips(&folder).into_iter().filter(own));
        std::thread::sleep(Duration::from_millis(100));
    }
    kill_process(Pid::from_child(&follow), Signal::TERM).unwrap();
    assert!(follow.wait().unwrap().success());
    // Its own are as many as it is told, or one more where it was ended before it removed that.
    let left = zips(&folder);
    let own = left.iter().filter(|file| made.contains(*file)).count();
    assert!((1..=3).contains(&own), "{left:?}");
    assert!(
        left.contains(&by_hand) && left.contains(&rarely),
        "{left:?}"
    );
    let shown = node.json(&["schedule", "show", "often"]);
    assert_eq!(
        shown["spec"]["vms"].as_array().unwrap().len(),
        0,
        "no guest"
    );
    let runs = shown["runs"].clone();
    let done = |run: &&Value| {
        let outcome = run["outcome"].as_str();
        matches!(outcome, Some("done" | "warnings")) && run["subject"] == "cluster"
    };
    assert!(
        runs.as_array().unwrap().iter().filter(done).count() >= 3,
        "{runs}"
    );
}

/// Any node may make a backup that is due: where it keeps them has to be a place of all of them.
#[test]
fn backups_by_a_schedule_are_not_scattered_over_the_nodes() {
    let url = Postgres::shared().database();
    let one = Vmtwin::new();
    let create = ["cluster", "create", "lab", "--database", &url];
    one.ok(&[&create[..], &["--node", "n1"]].concat());
    let add = |name: &str, more: &[&str]| {
        let words = ["schedule", "add", name, "--cluster", "--every", "1d"];
        [&words[..], more].concat().join(" ")
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let run = |line: String| {
        let line = words(&line);
        one.run(&line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(code(&run(add("alone", &[]))), 0);
    let two = Vmtwin::new();
    two.ok(&["cluster", "join", "--database", &url, "--node", "n2"]);
    // What was there before goes on.
    let shown = one.json(&["schedule", "show", "alone"]);
    assert_eq!(shown["enabled"], true);
    let refused = run(add("nodes", &["--keep-last", "14"]));
    assert_eq!(code(&refused), 1);
    for way in ["--output", "s3://", "--this-host"] {
        assert!(told(&refused).contains(way), "{}", told(&refused));
    }
    assert_eq!(one.json(&["schedule", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(code(&run(add("here", &["--this-host"]))), 0);
    assert_eq!(code(&run(add("there", &["--output", "/srv/shared"]))), 0);
}

/// A backup in a bucket is as good as one in a folder, and is there whole or not at all.
#[test]
fn backups_go_to_a_bucket_and_come_back() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.port());
    let mut variables = S3Server::keys();
    variables.push(("AWS_ENDPOINT_URL", proxy.endpoint()));
    let node = Vmtwin::with_s3("s3://vms/repository", variables);
    node.ok(&["cluster", "create", "home", "--node", "alone"]);
    let there = "s3://vms/cluster";
    let backup = |label: &str| {
        let kept = ["--keep", "2", "--label", label];
        let args = [&["cluster", "backup", "--output", there][..], &kept].concat();
        let report = done(&node, &args);
        report["file"].as_str().unwrap().to_owned()
    };
    let other = backup("other");
    let all: Vec<String> = (0..3).map(|_| backup("mine")).collect();
    assert!(all[0].starts_with("s3://vms/cluster/home-mine-"), "{all:?}");
    let listed = node.json(&["cluster", "list", there]);
    let names: HashSet<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["file"].as_str().unwrap())
        .collect();
    assert_eq!(names, HashSet::from([other.as_str(), &all[1], &all[2]]));
    let stored = server.bucket_dir("vms").join("cluster");
    let file = stored.join(all[2].rsplit('/').next().unwrap());
    run(Command::new("unzip").arg("-tq").arg(&file));
    let seen = node.json(&["cluster", "view", &all[2]]);
    assert_eq!(seen["nodes"][0]["@name"], "alone", "{seen}");
    let valid = node.run(&["cluster", "validate", &all[2]]);
    assert!(matches!(code(&valid), 0 | 3), "{}", told(&valid));
    let restored = node.run(&["cluster", "restore", &all[2], "--only-database", "--force"]);
    assert!(matches!(code(&restored), 0 | 3), "{}", told(&restored));

    // What breaks off on its way is tried again, or is not there at all.
    proxy.set_rule(|request| match request.method.as_str() == "PUT" {
        true => Fault::DropInRequest,
        false => Fault::Pass,
    });
    let before = files(&stored);
    let args = ["cluster", "backup", "--output", there];
    let mut cut = node.command(&args).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    kill_process(Pid::from_child(&cut), Signal::TERM).unwrap();
    assert!(!cut.wait().unwrap().success());
    assert_eq!(files(&stored), before);
    assert_eq!(files(&node.home().join("run")), Vec::<PathBuf>::new());
    node.fails(
        &["cluster", "view", "s3://vms/cluster/nothing.zip"],
        &["nothing.zip"],
    );
}

/// What a node has set for itself changes: once it stands still, one backup is made, and no more.
#[test]
fn a_change_is_backed_up_once_it_has_settled() {
    let node = Vmtwin::new();
    let folder = node.path("backups");
    node.ok(&["cluster", "create", "home", "--node", "alone"]);
    let add = ["schedule", "add", "changes", "--cluster", "--on-change"];
    let rest = ["--settle", "2s", "--output", text(&folder)];
    node.ok(&[&add[..], &rest].concat());
    std::fs::create_dir(&folder).unwrap();
    let count = || zips(&folder).len();
    let follow = |repository: Option<&Path>| {
        let mut follow = node.command(&["schedule", "follow"]);
        follow.env("VMTWIN_LOOK_S", "1");
        if let Some(repository) = repository {
            follow.env("VMTWIN_REPO", repository);
        }
        follow.spawn().unwrap()
    };
    let wait = |wanted: usize| {
        let begun = Instant::now();
        while count() < wanted {
            assert!(begun.elapsed() < PATIENCE * 2, "{} of {wanted}", count());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let end = |mut follow: std::process::Child| {
        kill_process(Pid::from_child(&follow), Signal::TERM).unwrap();
        assert!(follow.wait().unwrap().success());
    };
    let follower = follow(None);
    wait(1);
    // Nothing changes: time for several looks, and for what could be due.
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(count(), 1);
    end(follower);
    let elsewhere = node.path("elsewhere");
    let follower = follow(Some(&elsewhere));
    wait(2);
    end(follower);
    let shown = node.json(&["schedule", "show", "changes"]);
    assert_eq!(shown["runs"].as_array().unwrap().len(), 2, "{shown}");
}
