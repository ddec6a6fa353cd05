//! Three real nodes on one machine, each with its own network, libvirtd and agent, and one PostgreSQL:
//! what one of them restores on the others, and what it may not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, code, document, text, told};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::{LibvirtHost, Postgres, run};

/// A node: its host, and its agent.
struct Node {
    name: &'static str,
    host: LibvirtHost,
    address: String,
    agent: Option<Child>,
}

impl Node {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        let home = self.host.file("home");
        command.args(["--json", "--home"]).arg(home).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it to this exit code.
    fn ends(&self, args: &[&str], with: i32) -> Value {
        let output = self.run(args);
        assert_eq!(code(&output), with, "{args:?}: {}", told(&output));
        match with {
            1 if output.stdout.is_empty() => Value::String(told(&output)),
            _ => document(&output),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.host.file("agent.log")).unwrap_or_default()
    }

    /// Starts its agent, which may have a failpoint.
    fn serve(&mut self, failpoint: Option<&str>) {
        self.kill_agent();
        let log = std::fs::File::create(self.host.file("agent.log")).unwrap();
        let listen = ["serve", "--listen", "127.0.0.1:0", "--agent-listen"];
        let mut serve = self.command(&[&listen[..], &[&self.address]].concat());
        if let Some(failpoint) = failpoint {
            serve.env("VMTWIN_FAILPOINT", failpoint);
        }
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(serve.spawn().unwrap());
        let begun = Instant::now();
        while !self.log().contains("answers at") {
            assert!(begun.elapsed() < PATIENCE, "{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills its agent (SIGKILL): what `nsenter` started, not only that.
    fn kill_agent(&mut self) {
        let Some(mut agent) = self.agent.take() else {
            return;
        };
        let path = format!("/proc/{0}/task/{0}/children", agent.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        for pid in children.split_whitespace() {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = agent.wait();
    }

    fn define(&self, command: &str, xml: &str) {
        let file = self.host.file(format!("{command}.xml"));
        std::fs::write(&file, xml).unwrap();
        self.host.virsh(&[command, text(&file)]);
    }

    /// A network and a guest that needs it.
    fn furnish(&self) {
        let name = self.name;
        self.define(
            "net-define",
            &format!("<network><name>lan-{name}</name><bridge name='br-{name}'/></network>"),
        );
        self.define(
            "define",
            &format!(
                "<domain type='qemu'><name>guest-{name}</name><memory unit='MiB'>64</memory>\
                 <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
                 <interface type='network'><source network='lan-{name}'/></interface></devices>\
                 </domain>"
            ),
        );
    }

    /// What libvirt has to say of both.
    fn everything(&self) -> String {
        let mut all = String::new();
        for (list, dump) in [("net-list", "net-dumpxml"), ("list", "dumpxml")] {
            for name in self
                .host
                .virsh(&[list, "--all", "--name"])
                .split_whitespace()
            {
                all.push_str(&self.host.virsh(&[dump, "--inactive", name]));
            }
        }
        all
    }

    fn wipe(&self) {
        self.host
            .virsh(&["undefine", &format!("guest-{}", self.name)]);
        self.host
            .virsh(&["net-undefine", &format!("lan-{}", self.name)]);
        assert_eq!(self.everything(), "");
    }
}

/// `ip` in the network of a host, with the machine's process ids.
fn ip(host: &LibvirtHost, arguments: &str) {
    let mut ip = Command::new("nsenter");
    ip.args(["--net", "--target", &host.init_pid().to_string(), "ip"]);
    run(ip.args(arguments.split(' ')));
}

/// Three nodes; the first one's network has the bridge to which the others have a link, `to-nN`. All of
/// it goes with the hosts.
fn lab() -> [Node; 3] {
    let names = ["n1", "n2", "n3"];
    let hosts = names.map(|name| thread::spawn(move || LibvirtHost::start(name)));
    let hosts = hosts.map(|host| host.join().unwrap());
    ip(&hosts[0], "link add lab type bridge");
    ip(&hosts[0], "addr add 10.99.0.1/24 dev lab");
    ip(&hosts[0], "link set lab up");
    for (host, name, address) in [(&hosts[1], "n2", 2), (&hosts[2], "n3", 3)] {
        let peer = host.init_pid();
        ip(
            &hosts[0],
            &format!("link add to-{name} type veth peer name eth0 netns {peer}"),
        );
        ip(&hosts[0], &format!("link set to-{name} master lab up"));
        ip(host, &format!("addr add 10.99.0.{address}/24 dev eth0"));
        ip(host, "link set eth0 up");
    }
    let mut number = 0;
    let mut nodes = hosts.map(|host| {
        number += 1;
        Node {
            name: names[number - 1],
            host,
            address: format!("10.99.0.{number}:7420"),
            agent: None,
        }
    });
    let url = Postgres::shared().database();
    for node in &nodes {
        node.furnish();
    }
    let [one, two, three] = &mut nodes;
    one.ends(
        &[
            "cluster",
            "create",
            "lab",
            "--database",
            &url,
            "--node",
            "n1",
        ],
        0,
    );
    one.serve(None);
    for node in [two, three] {
        let token = one.ends(&["cluster", "token"], 0);
        let token = token["token"].as_str().unwrap();
        node.ends(&["cluster", "join", token, "--node", node.name], 0);
        node.serve(None);
    }
    nodes
}

fn backup(node: &Node, more: &[&str]) -> (PathBuf, Value) {
    let output = node.run(&[&["cluster", "backup"], more].concat());
    assert!(matches!(code(&output), 0 | 3), "{}", told(&output));
    let report = document(&output);
    (PathBuf::from(report["file"].as_str().unwrap()), report)
}

/// What a report says of a node.
fn of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut nodes = report["nodes"].as_array().unwrap().iter();
    let node = |node: &&Value| node["node"] == name || node["name"] == name;
    nodes.find(node).unwrap_or_else(|| panic!("{report}"))
}

fn deployed(report: &Value, name: &str) -> usize {
    let node = of(report, name);
    assert!(node["error"].is_null(), "{report}");
    node["deployed"].as_array().unwrap().len()
}

fn hindered() -> bool {
    let hindrance = LibvirtHost::hindrance();
    if let Some(reason) = &hindrance {
        eprintln!("not run: {reason}");
    }
    hindrance.is_some()
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
    let mut nodes = lab();
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
    let database = "catalog0";
    let sql = |statements: &str| Postgres::shared().sql(database, statements);
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
    let whole = nodes[0].run(&["cluster", "restore", file, "--yes", "--force"]);
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

#[test]
fn what_is_lost_in_the_middle_is_done_by_the_end() {
    if hindered() || is_short_run() {
        return;
    }
    let mut nodes = lab();
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
