//! The API of `vmtwin serve`: a guest is backed up, restored and watched by a client that is none of
//! ours; who may not is refused; and a daemon that is killed leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use vmtwin_testkit::{assert_clean, cached, run};

use common::serve::{Client, Serve, document as answer, token};
use common::{PATIENCE, VM, Vmtwin, code, files, loaded_guest, text, told};

const BACKUP: &str = "/api/v1/commands/backup";

fn crash() -> Value {
    json!({"vms": [VM], "consistency": "crash"})
}

/// A job that was begun just now.
fn begun(client: &Client, path: &str, body: &Value) -> String {
    let (status, job) = client.post(path, body);
    assert_eq!(status, 201, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

fn wait_for_state(client: &Client, id: &str, state: &str) -> Value {
    let begun = Instant::now();
    loop {
        let (_, job) = client.get(&format!("/api/v1/jobs/{id}"));
        if job["state"] == state {
            return job;
        }
        assert!(begun.elapsed() < PATIENCE, "{job}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_is_backed_up_and_restored_over_http() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let serve = Serve::start(&vmtwin, &[], &[]);
    let admin = serve.client(&token(&vmtwin, "admin"));
    let (_, before) = admin.get("/api/v1/overview");
    assert_eq!(before["guests"][0]["protection"], "never", "{before}");

    let key = [("idempotency-key", "once")];
    let body = json!({"vms": [VM], "consistency": "state"});
    let (status, job) = admin.post_with(BACKUP, &body, &key);
    assert_eq!(status, 201, "{job}");
    let id = job["id"].as_str().unwrap().to_owned();
    let (_, again) = admin.post_with(BACKUP, &body, &key);
    assert_eq!(again["id"], job["id"]);
    assert_eq!(admin.post_with(BACKUP, &crash(), &key).0, 422);

    let events = admin.events(&id);
    let jobs: Vec<&Value> = events
        .iter()
        .filter(|e| e.0 == "job")
        .map(|e| &e.1)
        .collect();
    assert!(
        jobs.iter().any(|job| job["state"] == "running"),
        "{events:?}"
    );
    assert!(
        jobs.iter().any(|job| job["progress"]["done"].is_u64()),
        "{events:?}"
    );
    assert_eq!(jobs.last().unwrap()["state"], "done", "{events:?}");
    let (_, job) = admin.get(&format!("/api/v1/jobs/{id}"));
    let snapshot = job["result"][0]["snapshot"].as_str().unwrap().to_owned();
    assert!(
        job["text"].as_str().unwrap().contains(&snapshot[..8]),
        "{job}"
    );
    assert_eq!(vmtwin.snapshots(), [snapshot.as_str()]);
    assert_clean(&guest);

    let (_, after) = admin.get("/api/v1/overview");
    let seen = &after["guests"][0];
    assert_eq!(seen["protection"], "unscheduled", "{after}");
    assert_eq!(seen["last_good"]["id"], snapshot.as_str());
    assert_eq!(seen["last_good"]["has_memory"], true);
    assert_eq!(
        admin.get(&format!("/api/v1/vms/{VM}")).1["disks"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let (_, list) = admin.get(&format!("/api/v1/snapshots?vm={VM}&limit=1"));
    assert_eq!(list["items"][0]["id"], snapshot.as_str());
    let (_, one) = admin.get(&format!("/api/v1/snapshots/{}", &snapshot[..8]));
    assert!(one["report"]["pause_ms"].is_number(), "{one}");

    let body = json!({"id": snapshot, "to": "web01"});
    let (status, job) = admin.post("/api/v1/commands/restore?wait=100", &body);
    assert_eq!((status, &job["state"]), (200, &json!("done")), "{job}");
    let restored = vmtwin.home().join("restored/web01");
    let image = files(&restored)
        .into_iter()
        .find(|file| file.extension().is_some_and(|e| e == "qcow2"));
    run(Command::new("qemu-img").arg("check").arg(image.unwrap()));
    remote_command_line(&vmtwin, &serve, &snapshot);
    serve.end();
    vmtwin.assert_nothing_left();
}

/// Nobody erases history at once, and the daemon removes what is due.
#[test]
fn a_deletion_waits_and_can_be_taken_back() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let backup = || {
        let report = vmtwin.json(&["backup", VM, "--consistency", "crash"]);
        report[0]["snapshot"].as_str().unwrap().to_owned()
    };
    let (first, second) = (backup(), backup());
    let delay = [("VMTWIN_DELETION_DELAY", "24h")];
    let serve = Serve::start(&vmtwin, &[], &delay);
    let admin = serve.client(&token(&vmtwin, "admin"));
    let ask = |path: &str, body: Value| {
        let (status, job) = admin.post(&format!("/api/v1/commands/{path}?wait=100"), &body);
        assert_eq!((status, &job["state"]), (200, &json!("done")), "{job}");
        job["result"].clone()
    };
    let asked = ask(
        "snapshot/forget",
        json!({"ids": [first, second], "prune": true}),
    );
    assert_eq!(
        (&asked["removed"], &asked["waiting"]),
        (&json!(0), &json!(2)),
        "{asked}"
    );
    let all = HashSet::from([first.clone(), second.clone()]);
    assert_eq!(HashSet::from_iter(vmtwin.snapshots()), all);
    for line in [
        &["snapshot", "forget", "--deletion-delay", "0h", &first][..],
        &["catalog", "load", "x", "--force"],
    ] {
        let (status, problem) = admin.post("/api/v1/commands", &json!({"arguments": line}));
        assert_eq!(status, 403, "{problem}");
    }
    let (_, listed) = admin.post("/api/v1/commands/snapshot/forgotten", &json!({}));
    assert_eq!(listed["result"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(ask("snapshot/keep", json!({"ids": [second]}))["kept"], 1);
    let nothing_yet = vmtwin.json(&["snapshot", "forget", "--due"]);
    assert_eq!(nothing_yet["removed"], 0);
    serve.end();

    run(Command::new("sqlite3")
        .arg(vmtwin.home().join("catalog.db"))
        .arg("UPDATE deletion SET due_at = '2026-01-01T00:00:00.000000Z'"));
    let serve = Serve::start(&vmtwin, &[], &delay);
    let begun = Instant::now();
    while vmtwin.snapshots().len() > 1 {
        assert!(begun.elapsed() < PATIENCE, "what is due is still there");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(vmtwin.snapshots(), [second.as_str()]);
    serve.end();
    assert_eq!(vmtwin.json(&["snapshot", "forgotten"]), json!([]));
    vmtwin.assert_nothing_left();
}

/// The same program from elsewhere.
fn remote_command_line(vmtwin: &Vmtwin, serve: &Serve, snapshot: &str) {
    let there = |args: &[&str]| {
        let elsewhere = vmtwin.path("elsewhere");
        let mut command = vmtwin.command(args);
        command
            .env("VMTWIN_HOME", elsewhere)
            .env_remove("VMTWIN_REPO");
        command.env("VMTWIN_SERVER", &serve.url);
        command
    };
    let token = token(vmtwin, "view");
    let run = |args: &[&str]| there(args).env("VMTWIN_TOKEN", &token).output().unwrap();
    let listed = run(&["snapshot", "list", "--json"]);
    let listed = common::document(&listed);
    assert_eq!(listed[0]["id"], snapshot, "{listed}");
    let listed = run(&["vm", "list"]);
    assert!(told(&listed).contains("NAME"), "{}", told(&listed));
    let refused = run(&["backup", VM]);
    assert!(
        code(&refused) == 1 && told(&refused).contains("scope"),
        "{}",
        told(&refused)
    );
    let unknown = there(&["vm", "list"])
        .env("VMTWIN_TOKEN", "x")
        .output()
        .unwrap();
    assert!(told(&unknown).contains("not known"), "{}", told(&unknown));
    let none = there(&["vm", "list"]).output().unwrap();
    assert!(told(&none).contains("needs a token"), "{}", told(&none));

    let file = vmtwin.path("token");
    std::fs::write(&file, self::token(vmtwin, "backup")).unwrap();
    let failed = there(&["backup", "nobody", "--token-file", text(&file)])
        .output()
        .unwrap();
    assert!(
        code(&failed) == 1 && told(&failed).contains("nobody"),
        "{}",
        told(&failed)
    );
    let args = [
        "backup",
        VM,
        "--consistency",
        "crash",
        "--token-file",
        text(&file),
    ];
    let done = there(&args).output().unwrap();
    assert!(
        code(&done) == 0 && told(&done).contains("crash"),
        "{}",
        told(&done)
    );
}

#[test]
fn what_is_cancelled_or_cut_off_is_undone() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let slow = [("VMTWIN_FAILPOINT", "read disk0=sleep:4000")];
    let serve = Serve::start(&vmtwin, &["--jobs", "1"], &slow);
    let (admin, view) = (token(&vmtwin, "admin"), token(&vmtwin, "view"));
    let client = serve.client(&admin);

    let first = begun(&client, BACKUP, &crash());
    let second = begun(&client, BACKUP, &crash());
    wait_for_state(&client, &first, "running");
    assert_eq!(
        client.get(&format!("/api/v1/jobs/{second}")).1["state"],
        "queued"
    );
    assert_eq!(
        client.get("/api/v1/jobs?state=queued").1["items"][0]["id"],
        second.as_str()
    );
    let cancel = |id: &str| format!("/api/v1/jobs/{id}/cancel");
    assert_eq!(serve.client(&view).post(&cancel(&first), &json!({})).0, 403);
    assert_eq!(client.post(&cancel(&second), &json!({})).0, 202);
    wait_for_state(&client, &second, "cancelled");
    assert_eq!(client.post(&cancel(&first), &json!({})).0, 202);
    wait_for_state(&client, &first, "cancelled");
    assert_eq!(client.post(&cancel(&first), &json!({})).0, 409);
    assert_clean(&guest);

    // Killed: its command undoes what it began, and the next daemon says so.
    let third = begun(&client, BACKUP, &crash());
    let fourth = begun(&client, BACKUP, &crash());
    wait_for_state(&client, &third, "running");
    std::thread::sleep(Duration::from_millis(1500));
    serve.kill();
    let begun = Instant::now();
    while !is_over(&vmtwin) {
        assert!(begun.elapsed() < PATIENCE, "the command goes on");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_clean(&guest);
    let serve = Serve::start(&vmtwin, &[], &[]);
    let client = serve.client(&admin);
    for id in [third, fourth] {
        wait_for_state(&client, &id, "interrupted");
    }
    let (status, job) = client.post(&format!("{BACKUP}?wait=100"), &crash());
    assert_eq!((status, &job["state"]), (200, &json!("done")), "{job}");
    serve.end();
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
}

/// Whether no backup runs any more.
fn is_over(vmtwin: &Vmtwin) -> bool {
    let run = vmtwin.home().join("run");
    std::fs::read_dir(run).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn who_may_not_is_refused() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let serve = Serve::start(&vmtwin, &[], &[]);
    let admin = serve.client(&token(&vmtwin, "admin"));
    let restore = serve.client(&token(&vmtwin, "restore"));
    let view = serve.client(&token(&vmtwin, "view"));
    let none = serve.client("vmtwin_nothing");
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(none.get(path).0, 200, "{path}");
    }
    let look = json!({});
    let elsewhere = json!({"id": "latest", "to": "/etc/vmtwin-restored"});
    for (client, path, body, expected) in [
        (&view, "/api/v1/commands/vm/list", &look, 200),
        (&view, BACKUP, &crash(), 403),
        (
            &view,
            "/api/v1/commands/schedule/add",
            &json!({"name": "x", "every": "1d", "all": true}),
            403,
        ),
        (&restore, "/api/v1/commands/restore", &elsewhere, 403),
        (&restore, "/api/v1/commands/prune", &look, 403),
        (
            &restore,
            "/api/v1/tokens",
            &json!({"name": "x", "scope": "admin"}),
            403,
        ),
        (&admin, "/api/v1/commands/serve", &look, 404),
        (
            &admin,
            "/api/v1/commands",
            &json!({"arguments": ["vm", "list", "--home", "/"]}),
            403,
        ),
        (
            &admin,
            "/api/v1/commands",
            &json!({"arguments": ["vm", "list", "\0"]}),
            422,
        ),
        (&admin, "/api/v1/commands/vm/list", &json!([]), 422),
        (&admin, "/api/v1/nothing", &look, 404),
    ] {
        let (status, said) = client.post(path, body);
        assert_eq!(status, expected, "{path} {body}: {said}");
        assert!(status < 400 || said["detail"].is_string(), "{path}: {said}");
    }
    assert_eq!(view.get("/api/v1/audit").0, 403);
    let (_, audit) = admin.get("/api/v1/audit");
    let refused = audit["items"].as_array().unwrap().iter();
    assert!(
        refused
            .filter(|entry| entry["outcome"] == "refused")
            .count()
            >= 4,
        "{audit}"
    );

    sessions(&vmtwin, &serve, &admin);
    for _ in 0..12 {
        none.get("/api/v1/overview");
    }
    assert_eq!(none.get("/api/v1/overview").0, 429);
    // No secret lies around.
    let database = std::fs::read(vmtwin.home().join("catalog.db")).unwrap();
    let text = String::from_utf8_lossy(&database);
    assert!(!text.contains("vmtwin_"), "a token is in the catalog");
}

/// As a browser does it.
fn sessions(vmtwin: &Vmtwin, serve: &Serve, client: &Client) {
    let own = token(vmtwin, "backup");
    let url = |path: &str| format!("{}/api/v1{path}", serve.url);
    let log_in = client.agent.post(url("/session"));
    let log_in = log_in.header("content-type", "application/json");
    let given = log_in.send(json!({"token": own}).to_string()).unwrap();
    let cookie = given.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let (_, session) = answer(given);
    assert_eq!(session["scope"], "backup");
    let csrf = session["csrf"].as_str().unwrap();
    let overview = || {
        let request = client.agent.get(url("/overview")).header("cookie", &cookie);
        answer(request.call().unwrap()).0
    };
    assert_eq!(overview(), 200);
    let ask = |csrf: &str| {
        let request = client.agent.post(url("/commands/vm/list"));
        let request = request
            .header("cookie", &cookie)
            .header("x-csrf-token", csrf);
        let request = request.header("content-type", "application/json");
        answer(request.send("{}").unwrap()).0
    };
    assert_eq!(ask("wrong"), 403);
    assert_eq!(ask(csrf), 200);
    vmtwin.ok(&["token", "remove", "test-backup"]);
    assert_eq!(overview(), 401, "the session outlived its token");
}

#[test]
fn away_from_this_machine_there_is_tls() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let serve = Serve::start(&vmtwin, &["--listen", "0.0.0.0:0"], &[]);
    let port = serve.url.rsplit_once(':').unwrap().1.to_owned();
    assert!(serve.url.starts_with("https://"), "{}", serve.url);
    let token = token(&vmtwin, "view");
    let certificate = vmtwin.home().join("serve/certificate.pem");
    let list = |server: &str, more: &[&str]| {
        let args = [&["vm", "list", "--json", "--server", server], more].concat();
        vmtwin
            .command(&args)
            .env("VMTWIN_TOKEN", &token)
            .output()
            .unwrap()
    };
    let url = format!("https://localhost:{port}");
    let trusted = list(&url, &["--server-ca", text(&certificate)]);
    assert_eq!(code(&trusted), 0, "{}", told(&trusted));
    let unknown = list(&url, &[]);
    assert_eq!(code(&unknown), 1, "{}", told(&unknown));
    let open = list(
        &format!("http://{}", serve.url.trim_start_matches("https://")),
        &[],
    );
    assert!(told(&open).contains("https"), "{}", told(&open));
    kill_process(serve.pid(), Signal::TERM).unwrap();
}

/// Schemathesis reads the document and tries what it allows, and what it does not. Answers must be
/// what the document says.
#[test]
#[ignore = "takes minutes, and needs Schemathesis: tools/setup --all"]
fn the_document_holds() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let serve = Serve::start(&vmtwin, &[], &[]);
    let token = token(&vmtwin, "restore");
    let program = cached("schemathesis/bin/schemathesis");
    let mut judge = Command::new(program);
    judge.args(["run", &format!("{}/openapi.json", serve.url)]);
    judge
        .arg("-H")
        .arg(format!("Authorization: Bearer {token}"));
    // One worker: CPython 3.11's ast.parse, which the judge calls, fails at times in two threads.
    judge.args(["--phases", "coverage", "--workers", "1"]);
    judge.args(["--no-color", "--no-shrink"]);
    judge.args(["--request-timeout", "150", "--max-failures", "20"]);
    // Options that exclude each other are no part of a schema; who guesses tokens is told 429.
    judge.args(["--exclude-checks", "positive_data_acceptance,ignored_auth"]);
    judge.current_dir(vmtwin.path("."));
    let output = judge.output().unwrap();
    let said = told(&output);
    let end = &said[said.len().saturating_sub(6000)..];
    assert!(output.status.success(), "{end}");
    serve.end();
}
