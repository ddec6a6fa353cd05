//! The web pages in a real browser, over a real daemon and a real guest: from the first visit to a
//! restore, and a failure. Each page is judged by axe-core, in light, dark and narrow.
//!
//! Screenshots are in the target folder, `tmp/pages`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vmtwin_testkit::{Browser, DiskFormat, DiskLedger, all_tests_wanted, run};

use common::serve::{Serve, token};
use common::{PATIENCE, VM, Vmtwin, loaded_guest, text};

/// Checks of accessibility, in the page (MPL-2.0; it is in no binary).
const AXE: &str = include_str!("vendor/axe.min.js");
/// For a backup or a restore, on a busy machine.
const JOB: Duration = Duration::from_secs(120);
/// Name, width, dark.
const LOOKS: [(&str, u32, bool); 3] = [
    ("light", 1280, false),
    ("dark", 1280, true),
    ("narrow", 390, false),
];

/// Pages that are judged in all looks each time; the others are by `./test --all`.
const IN_ALL_LOOKS: [&str; 5] = ["log-in", "overview", "guest", "restore-plan", "job-failed"];

struct Pages {
    browser: Browser,
    url: String,
    shots: PathBuf,
}

impl Pages {
    fn new(serve: &Serve) -> Pages {
        let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
        std::fs::create_dir_all(&shots).unwrap();
        let browser = Browser::start();
        browser.look(1280, false);
        Pages {
            browser,
            url: serve.url.clone(),
            shots,
        }
    }

    fn open(&self, path: &str) {
        self.browser.open(&format!("{}{path}", self.url));
    }

    fn log_in(&self, token: &str) {
        self.browser.fill("token", token);
        self.browser.click("Log in");
    }

    fn shows(&self, text: &str) {
        self.browser.wait_for_text(text, PATIENCE);
    }

    fn path(&self) -> String {
        let path = self.browser.script("return location.pathname", &[]);
        path.as_str().unwrap().to_owned()
    }

    /// Looks at the page that is shown in all ways, and has it judged.
    fn judge(&self, name: &str) {
        let is_short = !all_tests_wanted() && !IN_ALL_LOOKS.contains(&name);
        for (look, width, is_dark) in LOOKS {
            if is_short && look != "narrow" {
                continue;
            }
            self.browser.look(width, is_dark);
            self.browser
                .screenshot(&self.shots.join(format!("{name}-{look}.png")));
            self.browser.script(AXE, &[]);
            let found = self.browser.script_that_waits(
                "const done = arguments[0]; axe.run().then(({ violations }) => \
                 done(violations.map((one) => [one.id, one.nodes.map((node) => node.html)])))",
            );
            assert_eq!(found, json!([]), "{name}, {look}: {found:#}");
            let over = self.browser.script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
                &[],
            );
            assert_eq!(over, json!(0), "{name}, {look}: wider than the window");
        }
        self.browser.look(1280, false);
    }

    /// Nothing went wrong in scripts, and the policy refused nothing. What the server refuses is told
    /// there too, and expected.
    fn assert_quiet(&self) {
        let said = self.browser.console();
        let wrong: Vec<&String> = said
            .iter()
            .filter(|line| !line.contains("Failed to load resource"))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Waits for the end of the job that is shown.
    fn job_ends(&self, state: &str) {
        let ended = "const state = document.querySelector('.state .badge')?.textContent; \
             return ['Done', 'Failed', 'Done, with warnings'].includes(state) && state";
        assert!(self.path().starts_with("/jobs/"), "{}", self.path());
        let found = self.browser.wait("the job ends", ended, JOB);
        let shown = self.browser.script("return document.body.innerText", &[]);
        assert_eq!(found, json!(state), "{}", shown.as_str().unwrap());
    }
}

#[test]
fn from_the_first_visit_to_a_restore_and_a_failure() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let serve = Serve::start(&vmtwin, &[], &[("VMTWIN_DELETION_DELAY", "24h")]);
    let pages = Pages::new(&serve);
    let browser = &pages.browser;

    first_visit(&pages, &vmtwin);

    browser.click("Add a guest…");
    browser.fill("name", VM);
    browser.fill("address", text(guest.qmp_path()));
    browser.click("Add");
    pages.shows("No backup yet");
    assert_eq!(pages.path(), format!("/vms/{VM}"));
    pages.judge("guest-new");

    let snapshot = backed_up(&pages);
    restored(&pages, &vmtwin, &snapshot);
    forgotten(&pages, &snapshot);

    for (path, words, name) in [
        ("/snapshots", &snapshot[..8], "snapshots"),
        ("/schedules", "No schedules yet", "schedules-empty"),
        ("/cluster", "no cluster", "cluster"),
        ("/storage", "Stored each day", "storage"),
        ("/audit", "log in", "audit"),
        ("/settings", "test-admin", "settings"),
    ] {
        pages.open(path);
        pages.shows(words);
        pages.judge(name);
    }
    scheduled(&pages);
    clustered(&pages, &vmtwin);

    guest.kill();
    // A guest that only stopped would still be backed up from its disks.
    std::fs::remove_file(guest.disk_path(0, "qcow2")).unwrap();
    failed(&pages);
    pages.assert_quiet();

    browser.click("Log out");
    pages.shows("Log in with an access token");
    pages.open("/settings");
    pages.shows("Log in with an access token");
    serve.end();
}

/// Nobody is let in without a token; who is, reads what to do first.
fn first_visit(pages: &Pages, vmtwin: &Vmtwin) {
    pages.open("/");
    pages.shows("First visit? Make a token");
    pages.judge("log-in");
    pages.log_in("vmtwin_wrong");
    pages.browser.wait(
        "the refusal",
        "return document.querySelector('.problem')?.textContent",
        PATIENCE,
    );
    pages.log_in(&token(vmtwin, "admin"));
    pages.shows("No guests yet");
    let cookies = pages.browser.script("return document.cookie", &[]);
    assert_eq!(cookies, json!(""), "a script can read the session");
    pages.judge("first-steps");
    pages.browser.keys("?");
    pages.shows("Keyboard shortcuts");
    // Escape, as WebDriver writes it.
    pages.browser.keys("\u{e00c}");
    pages.browser.wait(
        "the dialog closes",
        "return !document.querySelector('dialog')",
        PATIENCE,
    );
}

/// A backup is started and watched to its end; returns the snapshot.
fn backed_up(pages: &Pages) -> String {
    pages.browser.click("Back up…");
    pages.browser.click("Running state");
    pages.browser.click("Back up");
    pages.browser.wait(
        "a job",
        "return location.pathname.startsWith('/jobs/')",
        PATIENCE,
    );
    pages.job_ends("Done");
    let link = pages.browser.wait(
        "the snapshot",
        "return document.querySelector('a[href^=\"/snapshots/\"]')?.title",
        PATIENCE,
    );
    pages.judge("job-done");
    pages.browser.keys("go");
    pages.shows("1 of 1 guest is not protected");
    pages.shows("No schedule");
    pages.judge("overview");
    pages.browser.click(VM);
    pages.shows("Points in time");
    pages.judge("guest");
    link.as_str().unwrap().to_owned()
}

/// The guided path: the plan first, and nothing is done before it is agreed to.
fn restored(pages: &Pages, vmtwin: &Vmtwin, snapshot: &str) {
    let dir = vmtwin
        .home()
        .join("restored")
        .join(format!("{VM}-{}", &snapshot[..8]));
    pages.browser.click("Restore");
    pages.shows("Show the plan");
    pages.judge("restore");
    pages.browser.click("Show the plan");
    pages.shows("What stays as it is");
    for words in ["disk0", "disk1", "vmtwin restore"] {
        pages.shows(words);
    }
    pages.judge("restore-plan");
    assert!(!dir.exists(), "restored before the plan was agreed to");
    pages.browser.click("Restore now");
    pages.browser.wait(
        "a job",
        "return location.pathname.startsWith('/jobs/')",
        PATIENCE,
    );
    pages.job_ends("Done");
    pages.shows(text(&dir));
    pages.judge("restore-done");
    let disk = dir.join("disk0.qcow2");
    DiskLedger::read(&disk, DiskFormat::Qcow2).assert_whole();
}

/// What is forgotten stays until its time, and is kept after all.
fn forgotten(pages: &Pages, snapshot: &str) {
    let page = format!("/snapshots/{snapshot}");
    pages.open(&page);
    pages.browser.click("Forget…");
    pages.browser.click("Forget");
    pages.browser.wait(
        "a job",
        "return location.pathname.startsWith('/jobs/')",
        PATIENCE,
    );
    pages.job_ends("Done");
    pages.open(&page);
    pages.shows("It is removed in");
    pages.judge("snapshot-forgotten");
    pages.open("/snapshots");
    pages.shows("1 snapshot is to be removed");
    pages.judge("snapshots-forgotten");
    pages.browser.click("Keep all");
    pages.browser.wait(
        "it is kept",
        "return !document.body.innerText.includes('to be removed')",
        PATIENCE,
    );
}

/// A schedule is added, and its guest is protected by what there is.
fn scheduled(pages: &Pages) {
    pages.open("/schedules");
    pages.browser.click("Add a schedule…");
    pages.browser.click("Add");
    pages.shows("Run now");
    pages.judge("schedules");
    pages.open("/");
    pages.shows("The guest is protected");
    pages.judge("overview-protected");
}

/// In a cluster each guest is shown with the node that it is on.
fn clustered(pages: &Pages, vmtwin: &Vmtwin) {
    vmtwin.ok(&["cluster", "create", "lab", "--node", "n1"]);
    vmtwin.ok(&["cluster", "backup"]);
    pages.open("/cluster");
    pages.shows("1 of 1 answered");
    pages.judge("cluster-made");
    pages.open("/");
    pages.shows("web01 on n1");
    pages.judge("overview-cluster");
    pages.open("/vms/web01");
    pages.shows("Node");
}

/// The guest is gone: the job says why it failed, and the overview that something is wrong.
fn failed(pages: &Pages) {
    pages.open("/");
    pages.browser.click("Back up");
    pages.browser.wait(
        "a job",
        "return location.pathname.startsWith('/jobs/')",
        PATIENCE,
    );
    pages.job_ends("Failed");
    pages.shows("Why it failed");
    pages.judge("job-failed");
    pages.open("/");
    pages.shows("1 of 1 guest is not protected");
    pages.judge("overview-failing");
    let state = pages.browser.script(
        "return [...document.querySelectorAll('tbody .badge')].map((one) => one.textContent)",
        &[],
    );
    assert!(
        state.as_array().unwrap().contains(&Value::from("Failing")),
        "{state}"
    );
}

/// 200 guests with 500 snapshots each, made of one real backup.
#[test]
fn a_long_history_is_drawn_fast() {
    /// A person waits; alone, the page is there in well under a second.
    const MOST_MS: f64 = 5000.0;
    if !all_tests_wanted() {
        return;
    }
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.backup_as("crash", &[]);
    run(Command::new("sqlite3")
        .arg(vmtwin.home().join("catalog.db"))
        .arg(MANY));
    let serve = Serve::start(&vmtwin, &[], &[]);
    let pages = Pages::new(&serve);
    pages.open("/");
    pages.shows("First visit?");
    pages.log_in(&token(&vmtwin, "view"));
    for (path, ready) in [
        ("/", "document.querySelectorAll('tbody tr').length === 200"),
        (
            "/vms/vm007",
            "document.querySelectorAll('.time-line circle').length === 100",
        ),
        ("/storage", "document.querySelector('.plot .bar')"),
    ] {
        pages.shows("200 guests");
        pages.open(path);
        let script = format!("return {ready} && performance.now()");
        let drawn = pages
            .browser
            .wait(path, &script, PATIENCE)
            .as_f64()
            .unwrap();
        eprintln!("{path}: drawn after {drawn:.0} ms");
        assert!(drawn < MOST_MS, "{path}: {drawn} ms");
        pages.open("/");
    }
    pages.assert_quiet();
}

/// Guests and snapshots like the one that is there; ids are UUIDs and hashes.
const MANY: &str = "
create temp table n as with recursive n(i) as (select 1 union all select i + 1 from n where i < 199)
    select i, printf('00000000-0000-4000-8000-%012x', i) as id, printf('vm%03d', i) as name from n;
create temp table k as with recursive k(j) as (select 1 union all select j + 1 from k where j < 502)
    select j from k;
insert into vm select n.id, n.name, connection_kind, connection_address, role, twin_of, state,
    resume_flag, memory_bytes, machine, added_at, seen_at, settings from vm, n;
insert into snapshot select repository_id, printf('%064x', n.i * 1000 + j), n.id, n.name,
    strftime('%Y-%m-%dT%H:%M:%S', 'now', (-12 * j) || ' hours') || '.000000Z', consistency,
    consistency_asked, bytes_read, bytes_new, bytes_stored, null, state, report from snapshot, n, k;
";
