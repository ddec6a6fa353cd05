//! All that a real libvirt defined is wiped and comes back from the backup, word for word; what runs,
//! and what the backup does not know, is left alone.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{PATIENCE, action, code, document, text, told};
use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, LibvirtHost, Mode};

const SECRET: &str = "3c0c7e0a-91cf-4a5d-8f57-6f1f0f3c2a11";
/// The guest that boots, and has a checkpoint.
const BOOT: &str = "boot";

/// vmtwin on a host, with a home folder of this name.
struct Node<'a> {
    host: &'a LibvirtHost,
    home: PathBuf,
}

impl<'a> Node<'a> {
    fn new(host: &'a LibvirtHost, home: &str) -> Node<'a> {
        let home = host.file(home);
        Node { host, home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command.arg("--json").arg("--home").arg(&self.home);
        command.args(args);
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

    /// A node of a new cluster, backed up.
    fn backed_up(&self) -> PathBuf {
        self.ends(&["cluster", "create", "lab", "--node", "n1"], 0);
        let report = self.ends(&["cluster", "backup"], 0);
        PathBuf::from(report["file"].as_str().unwrap())
    }
}

fn define(host: &LibvirtHost, command: &str, xml: &str) {
    let file = host.file(format!("{command}.xml"));
    std::fs::write(&file, xml).unwrap();
    host.virsh(&[command, text(&file)]);
}

fn run_on(host: &LibvirtHost, command: &str) -> String {
    let mut words = command.split(' ');
    let mut program = host.command(words.next().unwrap());
    String::from_utf8_lossy(&vmtwin_testkit::run(program.args(words)).stdout).into_owned()
}

fn lines(host: &LibvirtHost, arguments: &[&str]) -> Vec<String> {
    let all = host.virsh(arguments);
    let lines = all.lines().map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Secrets, filters, networks, a pool with a chain of images, and guests of all sorts.
fn furnish(host: &LibvirtHost) -> LibvirtGuest {
    define(
        host,
        "secret-define",
        &format!(
            "<secret ephemeral='no' private='no'><uuid>{SECRET}</uuid>\
             <usage type='volume'><volume>/images/a</volume></usage></secret>"
        ),
    );
    define(
        host,
        "nwfilter-define",
        "<filter name='z-base'><rule action='drop' direction='in' priority='500'><mac/></rule>\
         </filter>",
    );
    define(
        host,
        "nwfilter-define",
        "<filter name='a-web'><filterref filter='z-base'/></filter>",
    );
    // A bridge of the host's own, which a network and a guest stand on.
    run_on(host, "ip link add tbr0 mtu 1400 type bridge");
    run_on(host, "ip link set tbr0 up");
    for network in [
        "<network><name>wired</name><forward mode='bridge'/><bridge name='tbr0'/></network>",
        "<network><name>nat</name><forward mode='nat'/><bridge name='tnat0'/>\
         <ip address='10.98.7.1' netmask='255.255.255.0'>\
         <dhcp><range start='10.98.7.10' end='10.98.7.99'/></dhcp></ip></network>",
        "<network><name>isolated</name><bridge name='tiso0'/></network>",
        "<network><name>uplink</name><forward mode='bridge'/><bridge name='nosuchbr0'/></network>",
    ] {
        define(host, "net-define", network);
    }
    host.virsh(&["net-start", "nat"]);
    host.virsh(&["net-autostart", "nat"]);
    host.virsh(&["net-start", "isolated"]);
    let images = host.file("images");
    std::fs::create_dir(&images).unwrap();
    define(
        host,
        "pool-define",
        &format!(
            "<pool type='dir'><name>images</name><target><path>{}</path></target></pool>",
            images.display()
        ),
    );
    host.virsh(&["pool-start", "images"]);
    host.virsh(&["pool-autostart", "images"]);
    // Two that no definition outlives.
    let passing = host.file("passing");
    std::fs::create_dir(&passing).unwrap();
    define(
        host,
        "net-create",
        "<network><name>passing</name><bridge name='tpas0'/></network>",
    );
    define(
        host,
        "pool-create",
        &format!(
            "<pool type='dir'><name>passing</name><target><path>{}</path></target></pool>",
            passing.display()
        ),
    );
    let create = |name: &str, more: &[&str]| {
        let fixed = ["vol-create-as", "images", name, "8M", "--format", "qcow2"];
        host.virsh(&[&fixed[..], more].concat());
    };
    create("base.qcow2", &[]);
    create(
        "web.qcow2",
        &[
            "--backing-vol",
            "base.qcow2",
            "--backing-vol-format",
            "qcow2",
        ],
    );
    guests(host, &images);
    let boot = LibvirtGuest::start(host, BOOT, Mode::Count, 1);
    host.virsh(&["checkpoint-create-as", BOOT, "first"]);
    host.virsh(&["checkpoint-create-as", BOOT, "second"]);
    boot
}

/// One with two snapshots that starts with the host, and one with UEFI variables.
fn guests(host: &LibvirtHost, images: &Path) {
    let web = format!(
        "<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{}/web.qcow2'/><target dev='vda' bus='virtio'/></disk>\
         <interface type='network'><source network='nat'/><filterref filter='a-web'/></interface>\
         <interface type='bridge'><source bridge='tbr0'/></interface>\
         <graphics type='vnc' port='-1' autoport='yes' passwd='hunter2'/></devices></domain>",
        images.display()
    );
    define(host, "define", &web);
    host.virsh(&["autostart", "web"]);
    host.virsh(&["snapshot-create-as", "web", "one"]);
    host.virsh(&["snapshot-create-as", "web", "two"]);
    let nvram = host.file("uefi_VARS.fd");
    std::fs::write(&nvram, b"variables of a guest").unwrap();
    let uefi = format!(
        "<domain type='qemu'><name>uefi</name><memory unit='MiB'>64</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type>\
         <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>\
         <nvram>{}</nvram></os><features><acpi/></features></domain>",
        nvram.display()
    );
    define(host, "define", &uefi);
}

/// Everything that libvirt has to say, by what it is of.
fn everything(host: &LibvirtHost) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut keep = |arguments: &[&str], only: &str| {
        let told = host.virsh(arguments);
        // How full a pool is.
        let filling = ["<capacity", "<allocation", "<available"];
        let lasts = |line: &&str| !filling.iter().any(|word| line.contains(word));
        let lines = told.lines().filter(lasts);
        let lines: Vec<&str> = lines.filter(|line| line.starts_with(only)).collect();
        all.insert(format!("{} {only}", arguments.join(" ")), lines.join("\n"));
    };
    for uuid in lines(host, &["secret-list"]) {
        keep(&["secret-dumpxml", uuid.split(' ').next().unwrap()], "");
    }
    for filter in lines(host, &["nwfilter-list"]) {
        keep(
            &["nwfilter-dumpxml", filter.rsplit(' ').next().unwrap()],
            "",
        );
    }
    for network in lines(host, &["net-list", "--all", "--name"]) {
        keep(&["net-dumpxml", "--inactive", &network], "");
        keep(&["net-info", &network], "");
    }
    for guest in lines(host, &["list", "--all", "--name"]) {
        keep(&["dumpxml", "--inactive", &guest], "");
        keep(&["dominfo", &guest], "Autostart");
        for snapshot in lines(host, &["snapshot-list", &guest, "--name"]) {
            keep(&["snapshot-dumpxml", &guest, &snapshot], "");
            keep(&["snapshot-info", &guest, &snapshot], "");
        }
        for checkpoint in lines(host, &["checkpoint-list", &guest, "--name"]) {
            keep(&["checkpoint-dumpxml", &guest, &checkpoint], "");
        }
    }
    for pool in lines(host, &["pool-list", "--all", "--name"]) {
        keep(&["vol-list", &pool], "");
        keep(&["pool-dumpxml", "--inactive", &pool], "");
        for word in ["State", "Autostart", "Persistent"] {
            keep(&["pool-info", &pool], word);
        }
    }
    all
}

/// Takes all from libvirt; images stay.
fn wipe(host: &LibvirtHost) {
    for guest in lines(host, &["list", "--name"]) {
        host.virsh(&["destroy", &guest]);
    }
    for guest in lines(host, &["list", "--all", "--name"]) {
        host.virsh(&[
            "undefine",
            &guest,
            "--snapshots-metadata",
            "--checkpoints-metadata",
            "--nvram",
        ]);
    }
    for network in lines(host, &["net-list", "--name"]) {
        host.virsh(&["net-destroy", &network]);
    }
    // Those that are left have a definition.
    for network in lines(host, &["net-list", "--all", "--name"]) {
        host.virsh(&["net-undefine", &network]);
    }
    host.virsh(&["pool-destroy", "passing"]);
    host.virsh(&["pool-destroy", "images"]);
    host.virsh(&["pool-undefine", "images"]);
    for filter in ["a-web", "z-base"] {
        host.virsh(&["nwfilter-undefine", filter]);
    }
    host.virsh(&["secret-undefine", SECRET]);
    run_on(host, "ip link del tbr0");
    assert_eq!(everything(host), BTreeMap::new());
}

fn hindered() -> bool {
    let hindrance = LibvirtHost::hindrance();
    if let Some(reason) = &hindrance {
        eprintln!("not run: {reason}");
    }
    hindrance.is_some()
}

#[test]
fn a_wiped_node_comes_back_word_for_word() {
    if hindered() {
        return;
    }
    let host = LibvirtHost::start("restore");
    let boot = furnish(&host);
    let before = everything(&host);
    let node = Node::new(&host, "home");
    let file = node.backed_up();
    let file = text(&file);

    let view = node.ends(&["cluster", "view", file, "--mapping"], 0);
    let chains = view[0]["chains"].as_array().unwrap().iter();
    let web = chains.filter(|chain| chain["guest"] == "web");
    let links: Vec<String> = web.map(|chain| chain["links"].to_string()).collect();
    assert!(
        links[0].starts_with(r#"["volume web.qcow2","pool images""#),
        "{links:?}"
    );
    assert!(
        links[1].starts_with(r#"["network nat (nat)","#),
        "{links:?}"
    );
    let valid = node.ends(&["cluster", "validate", file], 0);
    assert_eq!(action(&valid["nodes"][0], "domain", "web"), "same");

    // As it is, there is nothing to do: neither for the node, nor to it.
    let same = node.run(&["cluster", "restore", file, "--type", "virtual", "--dry-run"]);
    assert_eq!(code(&same), 0, "{}", told(&same));
    let restore = ["cluster", "restore", file, "--skip-database", "--yes"];
    let nothing = node.ends(&restore, 3);
    assert_eq!(nothing["nodes"][0]["deployed"].as_array().unwrap().len(), 0);
    assert!(nothing["safety_backup"].is_null());

    wipe(&host);
    let images = host.file("images");
    let volume = std::fs::read(images.join("web.qcow2")).unwrap();
    let planned = node.ends(&["cluster", "restore", file, "--dry-run"], 3);
    assert_eq!(action(&planned["nodes"][0], "domain", "web"), "create");
    assert_eq!(action(&planned["nodes"][0], "interface", "tbr0"), "create");
    assert_eq!(everything(&host), BTreeMap::new());
    let asked = node.ends(&restore[..4], 1);
    assert!(asked.as_str().unwrap().contains("--yes"), "{asked}");

    // Killed in the middle, stopped by Ctrl-C in the middle, and then to its end.
    for stop in ["8=kill", "6=interrupt"] {
        let mut stopped = node.command(&restore);
        let stopped = stopped.env("VMTWIN_FAILPOINT", stop).output().unwrap();
        assert_ne!(code(&stopped), 0, "{}", told(&stopped));
        assert_ne!(everything(&host), before);
    }
    let report = node.ends(&restore, 3);
    assert!(Path::new(report["safety_backup"].as_str().unwrap()).exists());
    let failed = report["nodes"][0]["not_deployed"].as_array().unwrap();
    assert!(!failed.iter().any(|one| one["failed"] == true), "{report}");
    assert_eq!(everything(&host), before);
    assert_eq!(std::fs::read(images.join("web.qcow2")).unwrap(), volume);
    let bridge = run_on(&host, "ip -oneline -details link show tbr0");
    for part in ["mtu 1400", "UP", "bridge ", "stp_state 0"] {
        assert!(bridge.contains(part), "{bridge}");
    }
    host.virsh(&["start", "web"]);
    host.virsh(&["destroy", "web"]);
    let nvram = std::fs::read(host.file("uefi_VARS.fd")).unwrap();
    assert_eq!(nvram, b"variables of a guest");

    // What was changed since is changed back, and a password that is in no backup is kept.
    let password = "s/autoport='yes'/& passwd='hunter2'/; s/65536</66560</";
    host.virsh(&["autostart", "web", "--disable"]);
    let mut edit = host.command("env");
    edit.arg(format!("EDITOR=sed -i -e \"{password}\""));
    vmtwin_testkit::run(edit.args(["virsh", "edit", "web"]));
    assert_ne!(everything(&host), before);
    let changed = node.ends(&restore, 3);
    assert_eq!(action(&changed["nodes"][0], "domain", "web"), "change");
    assert_eq!(everything(&host), before);
    let secure = host.virsh(&["dumpxml", "--inactive", "--security-info", "web"]);
    assert!(secure.contains("passwd='hunter2'"), "{secure}");

    // The one that ran runs again, the others do not.
    node.ends(&[&restore[..], &["--start-guests"]].concat(), 3);
    assert_eq!(lines(&host, &["list", "--name"]), [BOOT]);
    let _ = boot.wait_for_more("ready mode=", PATIENCE * 4);
    let _ = boot.wait_for_more("count", PATIENCE * 4);
}

#[test]
fn what_runs_or_is_not_known_is_left_alone() {
    if hindered() {
        return;
    }
    let host = LibvirtHost::start("alone");
    let guest = LibvirtGuest::start(&host, BOOT, Mode::Count, 1);
    let node = Node::new(&host, "home");
    let file = node.backed_up();
    let file = text(&file);
    let before = host.virsh(&["dumpxml", "--inactive", BOOT]);
    host.virsh(&["desc", BOOT, "--config", "changed since"]);
    let changed = host.virsh(&["dumpxml", "--inactive", BOOT]);
    assert_ne!(before, changed);
    define(&host, "net-define", "<network><name>later</name></network>");

    let restore = ["cluster", "restore", file, "--skip-database", "--yes"];
    let left = node.ends(&restore, 3);
    assert_eq!(action(&left["nodes"][0], "domain", BOOT), "left-alone");
    assert_eq!(action(&left["nodes"][0], "network", "later"), "unknown");
    assert_eq!(host.virsh(&["dumpxml", "--inactive", BOOT]), changed);
    let forced = node.run(&[&restore[..], &["--force"]].concat());
    assert!(matches!(code(&forced), 0 | 3), "{}", told(&forced));
    assert_eq!(host.virsh(&["dumpxml", "--inactive", BOOT]), before);
    let _ = guest.wait_for_more("count", PATIENCE * 4);
    host.virsh(&["net-info", "later"]);

    // The database goes with it, and a home that was lost is the node's again.
    let nodes = node.ends(&["cluster", "nodes"], 0);
    let whole = ["cluster", "restore", file, "--yes"];
    let refused = node.ends(&whole, 1);
    assert!(refused.as_str().unwrap().contains("--skip-database"));
    let fresh = Node::new(&host, "fresh");
    let output = fresh.run(&whole);
    assert!(matches!(code(&output), 0 | 3), "{}", told(&output));
    let found = fresh.ends(&["cluster", "nodes"], 0);
    assert_eq!(found[0]["id"], nodes[0]["id"]);
    fresh.ends(&["cluster", "backup"], 0);

    // Another cluster's, and a damaged one.
    let other = Node::new(&host, "other");
    other.ends(&["cluster", "create", "other", "--node", "n1"], 0);
    let refused = other.ends(&restore, 1);
    assert!(refused.as_str().unwrap().contains("nothing was changed"));
    let damaged = host.file("damaged.zip");
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    node.ends(&["cluster", "restore", text(&damaged), "--yes"], 1);
    let stranger = node.ends(&[&restore[..], &["--node", "n2"]].concat(), 1);
    assert!(stranger.as_str().unwrap().contains("n1"), "{stranger}");
}

#[test]
fn another_host_has_other_names() {
    if hindered() {
        return;
    }
    let host = LibvirtHost::start("moved");
    define(
        &host,
        "net-define",
        "<network><name>uplink</name><forward mode='bridge'/><bridge name='oldbr0'/></network>",
    );
    let (old, new) = (host.file("old"), host.file("new"));
    std::fs::create_dir(&old).unwrap();
    let pool = format!(
        "<pool type='dir'><name>images</name><target><path>{}</path></target></pool>",
        old.display()
    );
    define(&host, "pool-define", &pool);
    host.virsh(&["pool-start", "images"]);
    host.virsh(&["vol-create-as", "images", "a.img", "1M"]);
    let node = Node::new(&host, "home");
    let file = node.backed_up();
    host.virsh(&["net-undefine", "uplink"]);
    host.virsh(&["pool-destroy", "images"]);
    host.virsh(&["pool-undefine", "images"]);
    std::fs::write(old.join("a.img"), b"precious").unwrap();

    // It is another machine now.
    let id = "0123456789abcdef0123456789abcdef";
    let changed = format!("echo {id} >/etc/machine-id");
    vmtwin_testkit::run(host.command("sh").args(["-c", &changed]));
    let refused = node.ends(&["cluster", "restore", text(&file), "--dry-run"], 1);
    assert!(
        refused.as_str().unwrap().contains("--to-new-hardware"),
        "{refused}"
    );

    let path = format!("{}={}", old.display(), new.display());
    let restore = [
        "cluster",
        "restore",
        text(&file),
        "--skip-database",
        "--yes",
        "--to-new-hardware",
        "--map",
        "oldbr0=lo",
        "--map",
        &path,
    ];
    let told = node.ends(&restore, 3);
    assert_eq!(
        action(&told["nodes"][0], "volume", "images/a.img"),
        "cannot"
    );
    assert_eq!(action(&told["nodes"][0], "network", "uplink"), "create");
    let network = host.virsh(&["net-dumpxml", "uplink"]);
    assert!(network.contains("<bridge name='lo'/>"), "{network}");
    let pool = host.virsh(&["pool-dumpxml", "images"]);
    assert!(pool.contains(text(&new)), "{pool}");
    assert!(host.virsh(&["pool-info", "images"]).contains("running"));
    assert!(!new.join("a.img").exists());

    node.ends(&[&restore[..], &["--create-volumes"]].concat(), 3);
    assert_eq!(std::fs::metadata(new.join("a.img")).unwrap().len(), 1 << 20);
    assert_eq!(std::fs::read(old.join("a.img")).unwrap(), b"precious");
    // What is there is not made again.
    std::fs::write(new.join("a.img"), b"restored").unwrap();
    node.ends(&[&restore[..], &["--create-volumes"]].concat(), 0);
    assert_eq!(std::fs::read(new.join("a.img")).unwrap(), b"restored");
}
