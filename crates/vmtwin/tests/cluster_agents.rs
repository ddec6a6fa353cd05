//! Three nodes with agents of their own: they join by tokens, one backs all of them up, and who is
//! no node gets nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::agents::{
    Agent, Hostile, address, backup, database_of, first_node, joined, line, log, state, tls_of,
    token, wait_for,
};
use common::{PATIENCE, Vmtwin, code, document, text, told};
use serde_json::Value;
use vmtwin_testkit::Postgres;

/// Stock curl asks an agent, with the certificate of a home folder or with none.
fn curl(of: &Vmtwin, credentials: Option<&Vmtwin>, asked: &Value, path: &str) -> Output {
    let kept = |vmtwin: &Vmtwin| -> Value {
        let text = std::fs::read(vmtwin.home().join("node-tls.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let tls = kept(of);
    let write = |name: &str, value: &Value| {
        let path = of.path(name);
        std::fs::write(&path, value.as_str().unwrap()).unwrap();
        path
    };
    let address = asked["address"].as_str().unwrap();
    let (host, port) = address.rsplit_once(':').unwrap();
    let name = format!(
        "{}.{}.vmtwin.internal",
        asked["id"].as_str().unwrap(),
        tls["cluster"].as_str().unwrap()
    );
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-w", "\n%{http_code}", "--noproxy", "*", "-m", "20"])
        .args(["--resolve", &format!("{name}:{port}:{host}")])
        .arg("--cacert")
        .arg(write("ca.pem", &tls["authority"]));
    if let Some(credentials) = credentials {
        let tls = kept(credentials);
        command
            .arg("--cert")
            .arg(write("cert.pem", &tls["certificate"]))
            .arg("--key")
            .arg(write("key.pem", &tls["key"]));
    }
    command
        .arg(format!("https://{name}:{port}{path}"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn status_of(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn agents_are_asked_and_a_node_that_is_down_is_named() {
    let server = Postgres::shared();
    let url = server.database();
    let (one, agent1) = first_node(&url);
    let (two, _agent2) = joined(&one, "node2");
    let (three, agent3) = joined(&one, "node3");
    assert_eq!(line(&two, "node3")["up"], true);

    // From any node, and all of it is of now.
    let report = backup(&three, &["--require-all"]);
    for name in ["node1", "node2", "node3"] {
        assert_eq!(state(&report, name), "collected", "{report}");
    }
    assert_eq!(report["asked"].as_array().unwrap().len(), 2);
    let file = report["file"].as_str().unwrap();
    assert_eq!(three.json(&["cluster", "validate", file])["entries"], 4);

    // One is down: named, with its last known configuration.
    let node3 = address(&one, "node3");
    agent3.kill();
    assert_eq!(line(&one, "node3")["up"], false);
    let report = backup(&two, &["--node-timeout", "10"]);
    assert_eq!(state(&report, "node3"), "last-known");
    assert_eq!(state(&report, "node1"), "collected");
    assert!(report["warnings"].to_string().contains("node3"), "{report}");
    let refused = two.fails(&["cluster", "backup", "--require-all"], &["node3"]);
    assert!(refused.contains("nothing was written"), "{refused}");

    // One is killed while it is asked, another only takes its time.
    let slow = [("VMTWIN_FAILPOINT", "agent-collect=kill")];
    let _dying = Agent::start(&three, &node3, &slow);
    let report = backup(&two, &["--node-timeout", "10"]);
    assert_eq!(state(&report, "node3"), "last-known");
    let slow = [("VMTWIN_FAILPOINT", "agent-collect=sleep:20000")];
    let _slow = Agent::start(&three, &node3, &slow);
    let begun = Instant::now();
    let report = backup(&two, &["--node-timeout", "2"]);
    assert_eq!(state(&report, "node3"), "last-known");
    assert!(report["warnings"].to_string().contains("within 2 s"));
    assert!(begun.elapsed() < Duration::from_secs(18));
    agent1.end();
}

#[test]
fn a_coordinator_that_dies_leaves_no_file_and_the_next_one_succeeds() {
    let url = Postgres::shared().database();
    let (one, _agent1) = first_node(&url);
    let (two, _agent2) = joined(&one, "node2");
    let partials = || {
        let folder = std::fs::read_dir(one.home().join("cluster"));
        let names = folder
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names
            .filter(|name| name.ends_with(".partial"))
            .collect::<Vec<_>>()
    };
    for step in [
        "cluster-asked",
        "cluster-collected",
        "cluster-dumped",
        "cluster-zipped",
    ] {
        let failpoint = format!("{step}=kill");
        let output = one
            .command(&["cluster", "backup"])
            .env("VMTWIN_FAILPOINT", failpoint)
            .output()
            .unwrap();
        assert_ne!(code(&output), 0);
        let listed = one.json(&["cluster", "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 0, "{step}");
        let begun = Instant::now();
        let left = || std::fs::read_dir(one.home().join("run")).unwrap().count();
        while left() > 0 {
            assert!(begun.elapsed() < PATIENCE, "{step}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!(state(&backup(&two, &[]), "node1"), "collected");
    // What the last of them left in the folder goes with the next backup; what is being written stays.
    assert_eq!(partials().len(), 1);
    let mut slow = one
        .command(&["cluster", "backup"])
        .env("VMTWIN_FAILPOINT", "cluster-zipped=sleep:8000")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let left = partials();
    wait_for("another one is being written", || {
        let now = partials();
        now.len() == 1 && now != left
    });
    let report = backup(&one, &[]);
    assert_eq!(state(&report, "node2"), "collected");
    assert_eq!(partials().len(), 1);
    assert!(matches!(slow.wait().unwrap().code(), Some(0 | 3)));
    assert_eq!(partials().len(), 0);
    assert_eq!(one.json(&["cluster", "list"]).as_array().unwrap().len(), 2);

    // The database of then lets a node in that was put out since.
    one.ok(&["cluster", "node", "remove", "node2"]);
    let file = report["file"].as_str().unwrap();
    let restore = [
        "cluster",
        "restore",
        file,
        "--only-database",
        "--force",
        "--json",
    ];
    let output = one.run(&restore);
    assert_eq!(code(&output), 3, "{}", told(&output));
    let warning = document(&output)["warnings"][0].to_string();
    assert!(warning.contains("cluster node remove node2"), "{warning}");
}

/// Nodes that do not answer take the time of one of them, not one after the other.
#[test]
fn many_that_are_silent_let_nobody_wait() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.split('?').next().unwrap().rsplit('/').next().unwrap();
    let (one, _agent1) = first_node(&url);
    let (_two, _agent2) = joined(&one, "node2");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let now = "2026-01-01T00:00:00.000000Z";
    let rows = (0..400).map(|number| {
        let id = format!("00000000-0000-4000-8000-{number:012x}");
        format!("('{id}', 'dead{number}', 'dead{number}', '0', '{now}', '{now}', '{address}')")
    });
    let rows = rows.collect::<Vec<_>>().join(", ");
    server.sql(
        database,
        &format!(
            "INSERT INTO node (id, name, host, version, joined_at, seen_at, address) VALUES {rows}"
        ),
    );
    let begun = Instant::now();
    let mut few = Command::new("prlimit");
    few.args(["--nofile=256:4096", env!("CARGO_BIN_EXE_vmtwin"), "--home"]);
    few.arg(one.home()).env("VMTWIN_CONFIG", "/dev/null");
    let output = few
        .args(["cluster", "backup", "--node-timeout", "4", "--json"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 3, "{}", told(&output));
    let report = document(&output);
    assert_eq!(state(&report, "node2"), "collected");
    assert_eq!(state(&report, "dead399"), "missing");
    assert!(
        begun.elapsed() < Duration::from_secs(14),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn who_is_no_node_gets_nothing() {
    let server = Postgres::shared();
    let url = server.database();
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (row, row2) = (line(&one, "node1"), line(&one, "node2"));
    let ask = |who: Option<&Vmtwin>, path| status_of(&curl(&one, who, &row, path));
    assert_eq!(ask(Some(&two), "/v1/node/config"), "200");
    assert_eq!(ask(None, "/healthz"), "200");
    for path in ["/v1/node", "/v1/node/config"] {
        assert_eq!(ask(None, path), "401");
    }
    // Another cluster's node: its certificate is of another authority.
    let (stranger, _agent) = first_node(&server.database());
    let output = curl(&one, Some(&stranger), &row, "/v1/node/config");
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains("vmtwin-node"));
    // And a removed one.
    one.fails(&["cluster", "node", "remove", "node1"], &["this node"]);
    one.ok(&["cluster", "node", "remove", "node2"]);
    assert_eq!(ask(Some(&two), "/v1/node/config"), "403");
    two.fails(&["cluster", "collect"], &["was removed"]);
    // Its agent says so once, and goes on: it would be a node's again if that joined.
    wait_for_beat(&two, "was removed from the cluster");
    assert_eq!(status_of(&curl(&two, None, &row2, "/healthz")), "200");
    drop(agent2);
    two.fails(
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--agent-listen",
            "127.0.0.1:0",
        ],
        &["was removed"],
    );
    let nodes = one.json(&["cluster", "nodes"]);
    assert_eq!(nodes.as_array().unwrap().len(), 1);
}

#[test]
fn a_certificate_that_was_taken_back_is_sent_nothing() {
    let url = Postgres::shared().database();
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let report = backup(&one, &["--require-all"]);
    let (stolen, address) = (tls_of(&two), address(&one, "node2"));
    agent2.kill();
    one.ok(&["cluster", "node", "remove", "node2"]);
    let token = token(&one, "5m");
    let join = ["cluster", "join", &token, "--node", "node2"];
    two.ok(&[&join[..], &["--advertise", &address]].concat());

    // Who has the old key and certificate stands where the node is looked for.
    let asked = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&asked);
    let router = axum::Router::new().fallback(async move || noted.store(true, Ordering::Relaxed));
    let thief = Hostile::start(&stolen, &address, router);
    assert_eq!(line(&one, "node2")["up"], false);
    let report_now = backup(&one, &["--node-timeout", "10"]);
    let warnings = report_now["warnings"].to_string();
    assert!(warnings.contains("does not count"), "{report_now}");
    let restore = ["cluster", "restore", report["file"].as_str().unwrap()];
    let output = one.run(&[&restore[..], &["--skip-database", "--yes", "--json"]].concat());
    assert_eq!(code(&output), 3, "{}", told(&output));
    let why = document(&output)["nodes"][1]["not_reached"].to_string();
    assert!(why.contains("does not count"), "{why}");
    assert!(!asked.load(Ordering::Relaxed));

    drop(thief);
    let _agent2 = Agent::start(&two, &address, &[]);
    backup(&one, &["--require-all"]);
}

#[test]
fn a_token_works_once_and_nothing_shows_a_secret() {
    let server = Postgres::shared();
    let url = server.database();
    let (one, _agent1) = first_node(&url);
    let once = token(&one, "5m");
    let two = Vmtwin::new();
    two.ok(&["cluster", "join", &once, "--node", "node2"]);
    let other = Vmtwin::new();
    let refused = other.fails(&["cluster", "join", &once, "--node", "node3"], &["403"]);
    assert!(refused.contains("cluster token"), "{refused}");
    let short = token(&one, "1s");
    std::thread::sleep(Duration::from_millis(1200));
    other.fails(
        &["cluster", "join", &short, "--node", "node3"],
        &["expired"],
    );
    other.fails(&["cluster", "join", "vmtwin-join-1.xx"], &["no join token"]);
    two.fails(&["cluster", "token"], &["cluster-authority.json"]);
    assert!(!other.home().join("node-tls.json").exists());

    // The secret of the token and the private keys: in no dump, archive or log.
    let report = backup(&one, &[]);
    let dump = one.path("dump.jsonl");
    one.ok(&["catalog", "dump", text(&dump)]);
    let coded = once.strip_prefix("vmtwin-join-1.").unwrap();
    let secret = secret_in(&one, coded);
    let keys = ["node-tls.json", "cluster-authority.json"].map(|name| {
        let path = one.home().join(name);
        assert_private(&path);
        let kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let pem = kept["key"].as_str().unwrap().to_owned();
        pem.lines().nth(1).unwrap().to_owned()
    });
    let unzipped = Command::new("unzip")
        .args(["-p", report["file"].as_str().unwrap()])
        .output()
        .unwrap();
    assert!(unzipped.status.success());
    let told = [
        log(&one).into_bytes(),
        std::fs::read(dump).unwrap(),
        unzipped.stdout,
    ];
    for said in told {
        let said = String::from_utf8_lossy(&said);
        for secret in [coded, &secret, &keys[0], &keys[1], "PRIVATE KEY"] {
            assert!(!said.contains(secret));
        }
    }
}

/// The secret in a token, taken out by stock base64.
fn secret_in(vmtwin: &Vmtwin, coded: &str) -> String {
    let mut standard = coded.replace('-', "+").replace('_', "/");
    while !standard.len().is_multiple_of(4) {
        standard.push('=');
    }
    let file = vmtwin.path("coded");
    std::fs::write(&file, standard).unwrap();
    let decoded = Command::new("base64").arg("-d").arg(file).output().unwrap();
    let token: Value = serde_json::from_slice(&decoded.stdout).unwrap();
    token["secret"].as_str().unwrap().to_owned()
}

fn assert_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{}", path.display());
}

/// A plan that writes to the terminal, with something to do, and what comes of it.
fn hostile_plan(status: Value) -> axum::Router {
    use axum::routing::post;
    let item = serde_json::json!({
        "section": "logical", "kind": "network\u{1b}[2J", "name": "a\u{1b}[2J", "action": "create",
        "differences": ["\u{1b}[2J\r"], "warnings": ["\u{7}"], "steps": [{"do": "start"}],
    });
    let plan = serde_json::json!({
        "plan": {"node": "\u{1b}[2J", "items": [item], "warnings": ["\u{1b}[2J"]}, "digest": "x",
    });
    let again = status.clone();
    axum::Router::new()
        .route("/v1/node/restore/plan", post(async || axum::Json(plan)))
        .route(
            "/v1/node/restore/{id}",
            post(async || axum::Json(status)).get(async || axum::Json(again)),
        )
}

#[test]
fn answers_of_a_hostile_agent_are_refused() {
    let url = Postgres::shared().database();
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let report = backup(&one, &["--require-all"]);
    let file = report["file"].as_str().unwrap();
    let address = address(&one, "node2");
    agent2.kill();

    let endless = || {
        let zeros = axum::body::Bytes::from(vec![b' '; 1 << 20]);
        let chunks =
            futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(zeros.clone()));
        axum::body::Body::from_stream(chunks)
    };
    let node1 = Command::new("unzip")
        .args(["-p", file, "nodes/node1.xml"])
        .output();
    let node1 = String::from_utf8(node1.unwrap().stdout).unwrap();
    assert!(node1.contains("node1"));
    let routers = [
        axum::Router::new().fallback(async move || endless()),
        axum::Router::new().fallback(async || "<vmtwin-node"),
        axum::Router::new().fallback(async move || node1),
    ];
    let restore = [
        "cluster",
        "restore",
        file,
        "--skip-database",
        "--yes",
        "--json",
    ];
    for router in routers {
        let _hostile = Hostile::start(&tls_of(&two), &address, router);
        let report = backup(&one, &["--node-timeout", "20"]);
        assert_eq!(state(&report, "node2"), "last-known", "{report}");
        let output = one.run(&restore);
        assert_eq!(code(&output), 3, "{}", told(&output));
        let node = &document(&output)["nodes"][1];
        assert!(node["not_reached"].is_string(), "{node}");
    }
    secrets_of_a_hostile_agent(&one, &two, &address, file);
    let other = "00000000-0000-4000-8000-000000000000";
    let status = serde_json::json!({
        "id": other, "state": "ended", "done": 0, "total": 0, "what": "", "error": null,
        "outcome": {"deployed": ["network lan"], "not_deployed": []},
    });
    let _hostile = Hostile::start(&tls_of(&two), &address, hostile_plan(status));
    let output = one.run(&restore);
    assert_eq!(code(&output), 1, "{}", told(&output));
    assert!(!told(&output).contains(['\u{1b}', '\u{7}']));
    let error = document(&output)["nodes"][1]["error"].to_string();
    assert!(error.contains("another restore"), "{error}");
}

/// Its configuration is good, and what it gives for its secrets is not: they are left out, or cannot be
/// opened, and nothing else is lost by it.
fn secrets_of_a_hostile_agent(one: &Vmtwin, two: &Vmtwin, address: &str, file: &str) {
    let document = Command::new("unzip")
        .args(["-p", file, "nodes/node2.xml"])
        .output();
    let document = String::from_utf8(document.unwrap().stdout).unwrap();
    let key = one.path("secrets.key");
    let made = one.json(&["cluster", "secrets-key", text(&key)]);
    let with = [
        "--with-secrets",
        "--secrets-recipient",
        made["recipient"].as_str().unwrap(),
    ];
    let held = r#"{"values":18446744073709551615,"passwords":1,"files":1}"#;
    for (sealed, is_in) in [("%%%", false), ("", true), ("AAAA", true)] {
        let document = document.clone();
        let given = format!(r#"{{"sealed":"{sealed}","held":{held},"warnings":["\u001b[2J"]}}"#);
        let router = axum::Router::new()
            .route("/v1/node/config", axum::routing::get(async || document))
            .route("/v1/node/secrets", axum::routing::post(async || given));
        let _hostile = Hostile::start(&tls_of(two), address, router);
        let output = one.run(&[&["cluster", "backup"], &with[..]].concat());
        assert_eq!(code(&output), 3, "{}", told(&output));
        assert!(!told(&output).contains('\u{1b}'), "{}", told(&output));
        let report = backup(one, &with);
        assert_eq!(state(&report, "node2"), "collected", "{report}");
        assert_eq!(report["nodes"][1]["secrets"].is_object(), is_in, "{report}");
        let file = report["file"].as_str().unwrap();
        let validate = [
            "cluster",
            "validate",
            file,
            "--secrets-identity",
            text(&key),
            "--json",
        ];
        let output = one.run(&validate);
        let report = document_of(&output);
        assert_eq!(
            report["secrets_opened"],
            serde_json::json!(["node1"]),
            "{report}"
        );
        assert_eq!(
            report["secrets_closed"].as_array().unwrap().len(),
            usize::from(is_in)
        );
    }
}

fn document_of(output: &Output) -> Value {
    assert!(matches!(code(output), 0 | 3), "{}", told(output));
    document(output)
}

#[test]
fn a_host_that_lost_its_home_is_its_node_again() {
    let url = Postgres::shared().database();
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (node2, tls) = (address(&one, "node2"), tls_of(&two));
    two.ok(&["cluster", "node", "allow-restore", "node1"]);
    let key = one.path("secrets.key");
    let made = one.json(&["cluster", "secrets-key", text(&key)]);
    let recipient = made["recipient"].as_str().unwrap();
    let with = [
        "--require-all",
        "--with-secrets",
        "--secrets-recipient",
        recipient,
    ];
    let report = backup(&one, &with);
    let file = report["file"].as_str().unwrap();

    agent2.end();
    std::fs::remove_dir_all(two.home()).unwrap();
    // Its settings name the cluster's database, which nobody has looked at: it is left as it is.
    let database = url.split('?').next().and_then(|url| url.rsplit('/').next());
    let sql = |statement: &str| Postgres::shared().sql(database.unwrap(), statement);
    sql("INSERT INTO setting (key, value) VALUES ('since', 'the backup')");
    let whole = ["cluster", "restore", file, "--node", "node2", "--yes"];
    let open = ["--secrets-identity", text(&key), "--json"];
    let output = two.run(&[&whole[..], &open].concat());
    assert_eq!(code(&output), 1, "{}", told(&output));
    let report = document(&output);
    let why = report["database_error"].to_string();
    assert!(why.contains("another database"), "{report}");
    let since = "SELECT value FROM setting WHERE key = 'since'";
    assert_eq!(sql(since), "the backup");

    std::fs::remove_dir_all(two.home()).unwrap();
    let restore = [
        "cluster",
        "restore",
        file,
        "--node",
        "node2",
        "--skip-database",
        "--yes",
    ];
    let more = [
        "--database",
        &url,
        "--secrets-identity",
        text(&key),
        "--json",
    ];
    let restored = document(&two.ok(&[&restore[..], &more].concat()));
    let deployed = restored["nodes"][0]["deployed"].to_string();
    assert!(deployed.contains("file node-tls.json"), "{restored}");
    assert_eq!(tls_of(&two), tls);
    let agent2 = Agent::start(&two, &node2, &[]);
    backup(&one, &["--require-all"]);
    backup(&two, &["--require-all"]);
    agent2.end();

    // A spare host, which is a node already, takes its place: with its certificate, not its own.
    let (spare, agent4) = joined(&one, "node4");
    let (fourth, own) = (address(&one, "node4"), tls_of(&spare));
    agent4.end();
    // By a part of it it becomes no other.
    let part = [
        &whole[..],
        &["--to-new-hardware", "--type", "virtual"],
        &open,
    ]
    .concat();
    document_of(&spare.run(&part));
    assert_eq!(tls_of(&spare), own);
    let place = [&restore[..], &["--to-new-hardware"], &open].concat();
    let taken = document_of(&spare.run(&place));
    let deployed = taken["nodes"][0]["deployed"].to_string();
    assert!(deployed.contains("file node-tls.json"), "{taken}");
    assert_eq!(tls_of(&spare), tls);
    let aside = std::fs::read(spare.home().join("node-tls.json.of-node4")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&aside).unwrap(), own);
    one.ok(&["cluster", "node", "remove", "node4"]);
    let _agent = Agent::start(&spare, &fourth, &[]);
    backup(&one, &["--require-all"]);

    // Without secrets it is told how to get one.
    let (other, agent5) = joined(&one, "node5");
    agent5.end();
    let place = [&restore[..], &["--to-new-hardware", "--json"]].concat();
    let taken = document_of(&other.run(&place));
    let warnings = taken["warnings"].to_string();
    assert!(warnings.contains("node remove node2"), "{taken}");
    let token = one.json(&["cluster", "token"]);
    let join = ["cluster", "join", token["token"].as_str().unwrap()];
    other.fails(&join, &["has a certificate", "node remove node2"]);
    one.ok(&["cluster", "node", "remove", "node2"]);
    let token = one.json(&["cluster", "token"]);
    other.ok(&["cluster", "join", token["token"].as_str().unwrap()]);
}

#[test]
fn a_database_that_goes_away_ends_no_agent() {
    let server = Postgres::start();
    let url = server.database();
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    backup(&one, &["--require-all"]);

    server.kill();
    one.fails(&["cluster", "backup"], &["database"]);
    server.run_again();
    backup(&one, &["--require-all"]);
    backup(&two, &["--require-all"]);

    // While a node is asked: the answer waits for nobody, and the next backup is whole.
    let node2 = address(&one, "node2");
    agent2.end();
    let slow = [("VMTWIN_FAILPOINT", "agent-collect=sleep:3000")];
    let _agent2 = Agent::start(&two, &node2, &slow);
    let files = || one.json(&["cluster", "list"]).as_array().unwrap().len();
    let before = files();
    let asking = one
        .command(&["cluster", "backup", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    server.kill();
    server.run_again();
    let output = asking.wait_with_output().unwrap();
    let expected = match code(&output) {
        0 | 3 => before + 1,
        _ => before,
    };
    assert_eq!(files(), expected, "{}", told(&output));
    backup(&one, &["--require-all"]);
}

/// Waits for what an agent says when it beats, which it says once.
fn wait_for_beat(node: &Vmtwin, what: &str) {
    let begun = Instant::now();
    while !log(node).contains(what) {
        assert!(begun.elapsed() < 2 * PATIENCE, "{what}: {}", log(node));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(log(node).matches(what).count(), 1);
}

#[test]
fn a_database_that_was_lost_ends_no_agent() {
    let server = Postgres::shared();
    let url = server.database();
    let database = database_of(&url);
    let (one, _agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (three, _agent3) = joined(&one, "node3");
    let report = backup(&one, &["--require-all"]);
    let node2 = address(&one, "node2");
    let lost = "the cluster's database does not know this node";

    server.sql(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    // Whoever opens it makes it anew.
    one.ok(&["catalog", "show"]);
    // Also one that starts only now.
    agent2.end();
    let _agent2 = Agent::start(&two, &node2, &[]);
    for node in [&one, &two, &three] {
        wait_for_beat(node, lost);
    }
    let checks = two.run(&["doctor", "--json"]);
    assert!(
        told(&checks).contains("does not know it"),
        "{}",
        told(&checks)
    );

    let file = report["file"].as_str().unwrap();
    one.ok(&["cluster", "restore", file, "--only-database"]);
    for node in [&one, &two, &three] {
        backup(node, &["--require-all"]);
    }
}
