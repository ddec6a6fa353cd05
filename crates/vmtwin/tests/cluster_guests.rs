//! Guests' backups in a cluster: two real nodes on one machine, each with its own network, libvirtd and
//! host name, one PostgreSQL, and one repository and folder of disks that both reach.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{PASSWORD, code, document, text, told};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, LibvirtHost, Mode, Postgres, Workdir, run};

const URI: &str = "qemu:///system";
/// For what takes little time, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node: its host, and its `vmtwin serve`.
struct Node {
    host: LibvirtHost,
    repo: PathBuf,
    serve: Option<Child>,
}

impl Node {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command
            .args(["--json", "--home"])
            .arg(self.host.file("home"))
            .args(args)
            .env("VMTWIN_CONFIG", "/dev/null")
            .env("VMTWIN_REPO", &self.repo)
            .env("VMTWIN_PASSWORD", PASSWORD)
            .env_remove("VMTWIN_FAILPOINT");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it to a good end.
    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", told(&output));
        document(&output)
    }

    /// Runs it to exit code 1; returns what it says.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 1, "{args:?}: {}", told(&output));
        told(&output)
    }

    fn backup(&self, guest: &str) -> Value {
        self.ok(&["backup", guest, "--consistency", "crash"])[0].clone()
    }

    /// The rows of the table as this node sees them: name, node, state.
    fn rows(&self) -> Vec<(String, String, String)> {
        let rows = self.ok(&["vm", "list"]);
        let rows = rows.as_array().unwrap().iter();
        let word = |row: &Value, key: &str| row[key].as_str().unwrap_or("-").to_owned();
        rows.map(|row| (word(row, "name"), word(row, "node"), word(row, "state")))
            .collect()
    }

    /// Starts its `vmtwin serve`.
    fn serve(&mut self) {
        let log = File::create(self.host.file("serve.log")).unwrap();
        let mut serve = self.command(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--agent-listen",
            "127.0.0.1:7420",
        ]);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.serve = Some(serve.spawn().unwrap());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.host.file("serve.log")).unwrap_or_default()
    }

    fn kill_serve(&mut self) {
        if let Some(serve) = self.serve.take() {
            kill_inside(serve);
        }
    }
}

/// Kills what `nsenter` started, not only that.
fn kill_inside(mut outer: Child) {
    let path = format!("/proc/{0}/task/{0}/children", outer.id());
    let children = std::fs::read_to_string(path).unwrap_or_default();
    for pid in children.split_whitespace() {
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = outer.wait();
}

/// Two nodes, which follow their libvirts.
struct Lab {
    n1: Node,
    n2: Node,
    database: String,
    work: Workdir,
}

impl Lab {
    /// Nothing, and a reason on stderr, where libvirt hosts are not possible.
    fn start() -> Option<Lab> {
        if let Some(reason) = LibvirtHost::hindrance() {
            eprintln!("not run: {reason}");
            return None;
        }
        let work = Workdir::new();
        let node = |name| {
            let repo = work.join("repo");
            thread::spawn(move || Node {
                host: LibvirtHost::start(name),
                repo,
                serve: None,
            })
        };
        let (n1, n2) = (node("n1"), node("n2"));
        let (n1, n2) = (n1.join().unwrap(), n2.join().unwrap());
        let url = Postgres::shared().database();
        let database = url.split('?').next().unwrap().rsplit('/').next().unwrap();
        let lab = Lab {
            database: database.to_owned(),
            n1,
            n2,
            work,
        };
        lab.n1.ok(&["init"]);
        lab.n1.ok(&[
            "cluster",
            "create",
            "lab",
            "--database",
            &url,
            "--node",
            "n1",
        ]);
        lab.n2
            .ok(&["cluster", "join", "--database", &url, "--node", "n2"]);
        for node in [&lab.n1, &lab.n2] {
            node.ok(&["vm", "add", "--libvirt", URI]);
        }
        Some(lab)
    }

    fn sql(&self, statements: &str) -> String {
        Postgres::shared().sql(&self.database, statements)
    }

    fn set_lease(&self, seconds: u32) {
        self.sql(&format!(
            "INSERT INTO setting VALUES ('cluster.lease-s', '{seconds}') \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        ));
    }

    fn check(&self) {
        let mut restic = Command::new("restic");
        restic.args(["check", "--read-data", "--repo"]);
        restic
            .arg(self.work.join("repo"))
            .env("RESTIC_PASSWORD", PASSWORD);
        run(&mut restic);
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Longer ones run with the whole suite.
fn is_short_run() -> bool {
    let all = std::env::var_os("VMTWIN_TEST_ALL").is_some();
    if !all {
        eprintln!("not run: set VMTWIN_TEST_ALL=1");
    }
    !all
}

/// Defines and starts on `to` what is defined on `from`, whose disks both reach.
fn define_there(from: &Node, to: &Node, guest: &str) {
    let xml = from.host.virsh(&["dumpxml", "--inactive", guest]);
    let file = to.host.file(format!("{guest}.moved.xml"));
    std::fs::write(&file, xml).unwrap();
    to.host.virsh(&["define", text(&file)]);
}

fn row(name: &str, node: &str, state: &str) -> (String, String, String) {
    (name.to_owned(), node.to_owned(), state.to_owned())
}

/// Guests of one name on two nodes; each node backs up its own, and one guest is backed up once at a
/// time. Then a node dies in the middle of a backup, and its guest is started on the other one.
#[test]
fn nodes_back_up_their_own_guests() {
    let Some(lab) = Lab::start() else { return };
    let (n1, n2) = (&lab.n1, &lab.n2);
    let guest = LibvirtGuest::start(&n1.host, "web01", Mode::Load, 1);
    LibvirtGuest::define(&n2.host, "web01", Mode::Load, 1);
    // Whoever looks first gives the names.
    assert_eq!(n1.rows(), [row("web01", "n1", "running")]);
    let both = [
        row("web01", "n1", "running"),
        row("web01@n2", "n2", "stopped"),
    ];
    for node in [n2, n1, n2] {
        assert_eq!(node.rows(), both);
    }
    let refused = n2.fails(&["backup", "web01"]);
    assert!(refused.contains("web01 runs on n1"), "{refused}");
    assert_eq!(lab.sql("SELECT count(*) FROM job").trim(), "0");
    let stopped = n2.backup("web01@n2");
    assert!(stopped["snapshot"].is_string(), "{stopped}");

    // Asked at once, on the node where it is and on the other one, for which the table says by now
    // that it is nowhere.
    let mut slow = n1.command(&["backup", "web01", "--consistency", "crash"]);
    slow.env("VMTWIN_FAILPOINT", "read virtio-disk0=sleep:6000");
    let first = slow
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let running = "SELECT count(*) FROM step s JOIN job j ON j.id = s.job_id \
                   WHERE j.state = 'running' AND s.name = 'exports'";
    wait_for("no backup begins", || lab.sql(running) == "1");
    lab.sql("UPDATE vm SET node = NULL WHERE name = 'web01'");
    let refused = n2.run(&["backup", "web01", "--consistency", "crash"]);
    assert_eq!(code(&refused), 1);
    assert!(told(&refused).contains("on n1"), "{}", told(&refused));
    let first = first.wait_with_output().unwrap();
    assert_eq!(code(&first), 0, "{}", told(&first));
    assert_eq!(n1.rows(), both, "it is found again");

    // n1 dies in the middle of a backup, and the guest is started on n2.
    let mut cut = n1.command(&["backup", "web01", "--consistency", "crash"]);
    cut.env("VMTWIN_FAILPOINT", "read virtio-disk0=kill");
    assert!(!cut.output().unwrap().status.success());
    assert_eq!(lab.sql(running), "1");
    n1.host.virsh(&["destroy", "web01"]);
    n2.host.virsh(&["undefine", "web01"]);
    define_there(n1, n2, "web01");
    assert_eq!(
        n2.rows()[0],
        row("web01", "n1", "running"),
        "n1 may be alive"
    );
    n2.host.virsh(&["start", "web01"]);
    let moved = [
        row("web01", "n2", "running"),
        row("web01@n2", "-", "stopped"),
    ];
    assert_eq!(n2.rows(), moved);
    let refused = n2.fails(&["backup", "web01", "--consistency", "crash"]);
    assert!(refused.contains("on n1"), "{refused}");
    lab.set_lease(1);
    thread::sleep(Duration::from_millis(1100));
    n2.backup("web01");
    assert_eq!(lab.sql(running), "1", "n1's journal waits for n1");

    // n1 comes back: it takes back what was its own, and leaves the guest alone.
    lab.set_lease(600);
    let recovered = n1.ok(&["recover"]);
    assert_eq!(
        recovered["failed"].as_array().unwrap().len(),
        0,
        "{recovered}"
    );
    assert_eq!(lab.sql(running), "0");
    assert_eq!(n1.rows(), moved);
    assert_eq!(n2.host.virsh(&["domstate", "web01"]).trim(), "running");

    // All of it is one history.
    n2.host.virsh(&["destroy", "web01"]);
    let after = n2.backup("web01");
    let dir = lab.work.join("restored");
    let id = after["snapshot"].as_str().unwrap();
    n2.ok(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    same(&dir.join("virtio-disk0.raw"), &guest.disks()[0]);
    let of = lab.sql(
        "SELECT count(DISTINCT vm_id) || ' ' || count(*) FROM snapshot WHERE vm_name = 'web01'",
    );
    assert_eq!(of, "1 3");
    lab.check();
}

/// The judge of two images is QEMU's own tool.
fn same(restored: &Path, disk: &Path) {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "qcow2"]);
    run(compare.arg(restored).arg(disk));
}

/// What the table has of the runs of a schedule: due time, subject (a guest's name), host, outcome,
/// note.
fn runs(lab: &Lab, schedule: &str) -> Vec<[String; 5]> {
    let rows = lab.sql(&format!(
        "SELECT r.due_at, COALESCE(v.name, r.subject), r.owner::json->>'host', \
         COALESCE(r.outcome, '-'), COALESCE(r.note, '-') FROM schedule_run r \
         JOIN schedule s ON s.id = r.schedule_id LEFT JOIN vm v ON v.id = r.subject \
         WHERE s.name = '{schedule}' ORDER BY r.due_at, r.started_at"
    ));
    let row = |row: &str| {
        let mut fields = row.splitn(5, '|').map(str::to_owned);
        std::array::from_fn(|_| fields.next().unwrap())
    };
    rows.lines().map(row).collect()
}

/// Whether some due time brought all of this: subject, host, outcome.
fn has_all(runs: &[[String; 5]], wanted: &[(&str, &str, &str)]) -> bool {
    let brought = |due: &str, (subject, host, outcome): (&str, &str, &str)| {
        runs.iter().any(|run| {
            run[0] == due
                && run[1] == subject
                && (host == "any" || run[2] == host)
                && run[3] == outcome
        })
    };
    runs.iter()
        .any(|run| wanted.iter().all(|one| brought(&run[0], *one)))
}

/// Both nodes follow one schedule, each for its own guests; a guest that moves is its new node's, and
/// what a silent node leaves undone is told.
#[test]
fn all_nodes_follow_a_schedule() {
    let Some(mut lab) = Lab::start() else { return };
    LibvirtGuest::define(&lab.n1.host, "one", Mode::Load, 1);
    LibvirtGuest::define(&lab.n2.host, "two", Mode::Load, 1);
    lab.set_lease(6);
    lab.n1.serve();
    lab.n2.serve();
    let add = [
        "schedule",
        "add",
        "often",
        "--every",
        "8s",
        "--all",
        "--keep-last",
        "1",
    ];
    let added = lab.n1.ok(&[&add[..], &["--consistency", "crash"]].concat());
    assert!(added["spec"]["host"].is_null(), "{added}");
    let nodes = ["schedule", "add", "nodes", "--every", "8s", "--cluster"];
    let folder = lab.n2.host.file("backups");
    lab.n2
        .ok(&[&nodes[..], &["--output", text(&folder)]].concat());
    let mut wanted = vec![
        ("one", "n1", "done"),
        ("two", "n2", "done"),
        ("node n1", "n1", "done"),
        ("node n2", "n2", "done"),
        ("all nodes", "any", "done"),
        ("retention", "any", "done"),
    ];
    let said = |lab: &Lab| {
        format!(
            "{:#?}\n{}\n{}",
            runs(lab, "often"),
            lab.n1.log(),
            lab.n2.log()
        )
    };
    let soon = |lab: &Lab, wanted: &[(&str, &str, &str)]| {
        let begun = Instant::now();
        while !has_all(&runs(lab, "often"), wanted) {
            assert!(begun.elapsed() < PATIENCE, "{wanted:?}: {}", said(lab));
            thread::sleep(Duration::from_millis(300));
        }
    };
    soon(&lab, &wanted);

    define_there(&lab.n1, &lab.n2, "one");
    lab.n1.host.virsh(&["undefine", "one"]);
    wanted[0].1 = "n2";
    soon(&lab, &wanted);

    // n2 is away: its guests are missed by name, and the others do not wait for it for ever.
    lab.n2.kill_serve();
    let before = runs(&lab, "often").len();
    wait_for("nobody says what n2 leaves undone", || {
        runs(&lab, "often")[before..].iter().any(|run| {
            run[1] == "all nodes" && run[3] == "failed" && run[4].contains("two (n2 is silent)")
        })
    });
    let shown = lab.n1.ok(&["schedule", "show", "often"]);
    assert!(
        shown["runs"].to_string().contains("n2 is silent"),
        "{shown}"
    );

    // The cluster's configuration was backed up once for each due time.
    let configurations = runs(&lab, "nodes");
    assert!(!configurations.is_empty());
    assert!(
        configurations.iter().all(|run| run[1] == "cluster"),
        "{configurations:?}"
    );
    lab.n1.kill_serve();
    // One snapshot of each guest is kept, but of the latest runs.
    let most = "SELECT max(n) FROM (SELECT count(*) AS n FROM snapshot GROUP BY vm_name) AS counts";
    assert!(lab.sql(most).parse::<u32>().unwrap() <= 3);
    lab.check();
}

/// A guest that is migrated while it runs keeps its history, and what both nodes stored is shared.
#[test]
fn a_migrated_guest_keeps_its_history() {
    if is_short_run() {
        return;
    }
    let Some(lab) = Lab::start() else { return };
    let (n1, n2) = (&lab.n1, &lab.n2);
    let guest = LibvirtGuest::start(&n1.host, "web01", Mode::Load, 1);
    n1.backup("web01");
    n1.backup("web01");
    let socket = lab.work.join("migration");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::create_dir(&socket).unwrap();
    std::fs::set_permissions(&socket, open).unwrap();
    let uri = format!("unix://{}", socket.join("socket").display());
    let to = n2.host.uri();
    n1.host.virsh(&[
        "migrate",
        "--live",
        "--unsafe",
        "--persistent",
        "--undefinesource",
        "web01",
        &to,
        "--migrateuri",
        &uri,
    ]);
    guest.wait_for_more("tick", PATIENCE);
    assert_eq!(n2.rows(), [row("web01", "n2", "running")]);
    assert_eq!(n1.rows(), n2.rows());
    // QEMU has written out all when it stands still, so the disk is what the backup holds. It may build
    // on a bitmap that came along in the image: then this is the proof that it may.
    n2.host.virsh(&["suspend", "web01"]);
    let moved = n2.backup("web01");
    eprintln!("{moved:#}");
    n2.host.virsh(&["destroy", "web01"]);
    let dir = lab.work.join("restored");
    let id = moved["snapshot"].as_str().unwrap();
    n2.ok(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    same(&dir.join("virtio-disk0.raw"), &guest.disks()[0]);
    let one = lab.sql("SELECT count(DISTINCT vm_id) || ' ' || count(*) FROM snapshot");
    assert_eq!(one, "1 3");
    lab.check();
}
