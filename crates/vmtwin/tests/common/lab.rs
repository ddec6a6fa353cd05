//! Nodes on one machine, each with its own network, libvirtd and agent, and one PostgreSQL.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::{LibvirtHost, Postgres, run};

use super::{PATIENCE, code, document, text, told};

/// A node: its host, and its agent.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) host: LibvirtHost,
    pub(crate) address: String,
    pub(crate) agent: Option<Child>,
}

impl Node {
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        let home = self.host.file("home");
        command.args(["--json", "--home"]).arg(home).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it to this exit code.
    pub(crate) fn ends(&self, args: &[&str], with: i32) -> Value {
        let output = self.run(args);
        assert_eq!(code(&output), with, "{args:?}: {}", told(&output));
        match with {
            1 if output.stdout.is_empty() => Value::String(told(&output)),
            _ => document(&output),
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.host.file("agent.log")).unwrap_or_default()
    }

    /// Starts its agent, which may have a failpoint.
    pub(crate) fn serve(&mut self, failpoint: Option<&str>) {
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
    pub(crate) fn kill_agent(&mut self) {
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

    pub(crate) fn define(&self, command: &str, xml: &str) {
        let file = self.host.file(format!("{command}.xml"));
        std::fs::write(&file, xml).unwrap();
        self.host.virsh(&[command, text(&file)]);
    }

    /// A network and a guest that needs it.
    pub(crate) fn furnish(&self) {
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
    pub(crate) fn everything(&self) -> String {
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

    pub(crate) fn wipe(&self) {
        self.host
            .virsh(&["undefine", &format!("guest-{}", self.name)]);
        self.host
            .virsh(&["net-undefine", &format!("lan-{}", self.name)]);
        assert_eq!(self.everything(), "");
    }
}

/// `ip` in the network of a host, with the machine's process ids.
pub(crate) fn ip(host: &LibvirtHost, arguments: &str) {
    let mut ip = Command::new("nsenter");
    ip.args(["--net", "--target", &host.init_pid().to_string(), "ip"]);
    run(ip.args(arguments.split(' ')));
}

/// Three nodes; the first one's network has the bridge to which the others have a link, `to-nN`. All of
/// it goes with the hosts. Also the name of their database.
pub(crate) fn lab() -> ([Node; 3], String) {
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
    let database = url.split('?').next().and_then(|url| url.rsplit('/').next());
    let database = database.unwrap().to_owned();
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
    (nodes, database)
}

pub(crate) fn backup(node: &Node, more: &[&str]) -> (PathBuf, Value) {
    let output = node.run(&[&["cluster", "backup"], more].concat());
    assert!(matches!(code(&output), 0 | 3), "{}", told(&output));
    let report = document(&output);
    (PathBuf::from(report["file"].as_str().unwrap()), report)
}

/// What a report says of a node.
pub(crate) fn of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut nodes = report["nodes"].as_array().unwrap().iter();
    let node = |node: &&Value| node["node"] == name || node["name"] == name;
    nodes.find(node).unwrap_or_else(|| panic!("{report}"))
}

pub(crate) fn hindered() -> bool {
    let hindrance = LibvirtHost::hindrance();
    if let Some(reason) = &hindrance {
        eprintln!("not run: {reason}");
    }
    hindrance.is_some()
}
