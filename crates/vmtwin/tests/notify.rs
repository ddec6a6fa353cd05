//! Notifications: what goes wrong is told once, by all ways, whatever dies in between.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::{Sink, assert_clean};

use common::{PATIENCE, VM, Vmtwin, code, files, loaded_guest, text, told};

const BY_HAND: [&str; 3] = ["schedule", "run", "nightly"];

/// `KIND WHAT` of each event of the documents that a webhook got.
fn events(taken: &[Value]) -> Vec<String> {
    let documents = taken.iter().map(|request| {
        let body = request["body"].as_str().unwrap();
        serde_json::from_str::<Value>(body).unwrap()
    });
    let words = |event: &Value| {
        let word = |key: &str| event[key].as_str().unwrap().to_owned();
        format!("{} {}", word("kind"), word("what"))
    };
    documents
        .flat_map(|document| {
            let events = document["events"].as_array().unwrap();
            events.iter().map(words).collect::<Vec<_>>()
        })
        .collect()
}

fn follow(vmtwin: &Vmtwin) -> Child {
    let mut follow = vmtwin.command(&["schedule", "follow"]);
    follow.stdout(Stdio::null()).stderr(Stdio::null());
    follow.spawn().unwrap()
}

fn end(mut follower: Child) {
    kill_process(Pid::from_child(&follower), Signal::INT).unwrap();
    assert!(follower.wait().unwrap().success());
}

#[test]
fn what_goes_wrong_is_told_once_by_every_way() {
    let (http, smtp) = (Sink::http(), Sink::smtp());
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let add = ["schedule", "add", "nightly", "--on", "2099-01-01"];
    vmtwin.ok(&[&add[..], &["--vm", VM, "--consistency", "crash"]].concat());
    let url = format!("http://127.0.0.1:{}/hook", http.port());
    vmtwin.ok(&["notify", "add", "ops", "--webhook", &url]);
    let server = format!("smtp://127.0.0.1:{}", smtp.port());
    let mail = ["notify", "add", "mail", "--mail", "a@example.net"];
    vmtwin.ok(&[&mail[..], &["--smtp", &server, "--vm", VM]].concat());
    let out = vmtwin.path("told");
    let script = format!(
        "echo \"$VMTWIN_EVENT:$VMTWIN_FAILED:$VMTWIN_RECOVERED\" >>{}",
        text(&out)
    );
    let page = ["notify", "add", "page", "--command", &script];
    vmtwin.ok(&[&page[..], &["--on", "failure"]].concat());

    // What is well is not told.
    vmtwin.ok(&BY_HAND);
    assert!(http.taken().is_empty());
    // A repository that is away: told once, not again at once.
    let away = vmtwin.path("away");
    std::fs::rename(vmtwin.repo(), &away).unwrap();
    for _ in 0..2 {
        assert_eq!(code(&vmtwin.run(&BY_HAND)), 1);
    }
    assert_eq!(events(&http.taken()), ["failure web01"]);
    assert_eq!(smtp.taken().len(), 1);
    let subject = smtp.taken()[0]["subject"].as_str().unwrap().to_owned();
    assert!(subject.ends_with("web01 failed"), "{subject}");
    assert!(
        smtp.taken()[0]["text"]
            .as_str()
            .unwrap()
            .contains("schedule show nightly")
    );
    // It is back: told once.
    std::fs::rename(&away, vmtwin.repo()).unwrap();
    for _ in 0..2 {
        vmtwin.ok(&BY_HAND);
    }
    assert_eq!(events(&http.taken()), ["failure web01", "recovery web01"]);
    assert_eq!(smtp.taken().len(), 2);
    let paged = std::fs::read_to_string(&out).unwrap();
    assert_eq!(paged, "failure:web01:\n", "it asked for failures only");

    // Whoever delivers dies between claim and delivery: the next one does it, and only one of two.
    std::fs::rename(vmtwin.repo(), &away).unwrap();
    let mut killed = vmtwin.command(&BY_HAND);
    let killed = killed.env("VMTWIN_FAILPOINT", "notify=kill").output();
    assert_eq!(code(&killed.unwrap()), -1);
    assert_eq!(http.taken().len(), 2);
    assert_eq!(vmtwin.json(&["notify", "show", "ops"])["waiting"], 1);
    // It does not answer as it should at first; what is sent again has the same id.
    http.answer(500);
    let followers = [follow(&vmtwin), follow(&vmtwin)];
    http.wait_for(3);
    http.answer(204);
    let taken = http.wait_for(4);
    assert_eq!(events(&taken[2..]), ["failure web01", "failure web01"]);
    let id = |n: usize| taken[n]["headers"]["webhook-id"].as_str().unwrap();
    assert_eq!(id(2), id(3));
    let begun = Instant::now();
    let ops = || vmtwin.json(&["notify", "show", "ops"]);
    while ops()["waiting"] != 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", ops());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(ops()["messages"][0]["attempts"], 3, "{}", ops());
    assert_eq!(smtp.wait_for(3).len(), 3);
    followers.into_iter().for_each(end);
    assert_eq!(http.taken().len(), 4);

    // What nobody followed in time.
    let late = ["schedule", "add", "late", "--every", "6s", "--window", "1s"];
    vmtwin.ok(&[&late[..], &["--vm", VM, "--consistency", "crash"]].concat());
    std::thread::sleep(Duration::from_secs(8));
    let follower = follow(&vmtwin);
    let taken = http.wait_for(5);
    assert!(events(&taken[4..])[0].starts_with("missed"), "{taken:?}");
    end(follower);
    std::fs::rename(&away, vmtwin.repo()).unwrap();
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
}

#[test]
fn no_secret_is_shown_and_mistakes_are_told() {
    let sink = Sink::http();
    let vmtwin = Vmtwin::new();
    let add = |more: &[&str]| vmtwin.run(&[&["notify", "add", "ops"], more].concat());
    for (wrong, exit, why) in [
        (&[][..], 2, "required"),
        (
            &["--webhook", "https://x/", "--mail", "a@b"],
            2,
            "cannot be used",
        ),
        (&["--webhook", "ftp://x/"], 1, "https://"),
        (&["--webhook", "https://u:hidden@x/"], 1, "file"),
        (
            &["--mail", "nobody", "--smtp", "smtp://x"],
            1,
            "mail address",
        ),
        (
            &["--mail", "a@b.net", "--smtp", "smtps://me@x"],
            1,
            "--smtp-password-file",
        ),
        (
            &["--mail", "a@b.net", "--sendmail", "/nowhere"],
            1,
            "--smtp",
        ),
        (&["--webhook-file", "/nowhere"], 1, "cannot read"),
        (&["--command", "true", "--vm", "nobody"], 1, "vm list"),
        (&["--command", "true", "--on", "sometimes"], 2, "failure"),
    ] {
        let refused = add(wrong);
        assert_eq!(code(&refused), exit, "{wrong:?}: {}", told(&refused));
        assert!(
            told(&refused).contains(why),
            "{wrong:?}: {}",
            told(&refused)
        );
        assert!(!told(&refused).contains("hidden"), "{}", told(&refused));
    }
    assert_eq!(vmtwin.json(&["notify", "list"]), serde_json::json!([]));

    let url_file = vmtwin.path("url");
    let url = format!("http://127.0.0.1:{}/hidden-path\n", sink.port());
    std::fs::write(&url_file, url).unwrap();
    let added = vmtwin.json(&[
        "notify",
        "add",
        "ops",
        "--webhook-file",
        text(&url_file),
        "--sign",
    ]);
    let secret = added["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() > 40, "{added}");
    let again = add(&["--webhook", "https://example.net/", "--sign"]);
    assert!(told(&again).contains("already"), "{}", told(&again));
    let answer = vmtwin.json(&["notify", "test", "ops"]);
    let taken = sink.taken();
    assert_eq!(taken[0]["path"], "/hidden-path");
    assert_eq!(taken[0]["headers"]["webhook-id"], answer["id"]);
    assert!(
        taken[0]["headers"]["webhook-signature"]
            .as_str()
            .unwrap()
            .starts_with("v1,")
    );

    // It is in one file, which is for its owner alone.
    let holds = |path: &&std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        String::from_utf8_lossy(&bytes).contains(&secret)
    };
    let all = files(&vmtwin.home());
    let holding: Vec<_> = all.iter().filter(holds).collect();
    assert_eq!(holding.len(), 1, "{holding:?}");
    let mode = std::fs::metadata(holding[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    sink.answer(403);
    let failed = vmtwin.run(&["notify", "test", "ops"]);
    assert_eq!(code(&failed), 1);
    let shown = [
        told(&vmtwin.ok(&["notify", "list"])),
        told(&vmtwin.ok(&["notify", "show", "ops", "--json"])),
        told(&failed),
    ]
    .concat();
    assert!(shown.contains("403"), "{shown}");
    assert!(
        !shown.contains(&secret) && !shown.contains("hidden-path"),
        "{shown}"
    );
    vmtwin.ok(&["notify", "remove", "ops"]);
    assert!(!holding[0].exists());
    vmtwin.fails(&["notify", "remove", "ops"], &["notify list"]);
}
