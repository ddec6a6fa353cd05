//! Hardware that is a matter of configuration, on a kernel of its own: a small virtual machine is the
//! node, with real network cards and a card that has virtual functions. Its bond, VLAN, bridges and
//! virtual functions are taken away and come back, by the word of `ip` and of `/sys`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{action, text};
use serde_json::Value;
use vmtwin_testkit::{Accel, Workdir, cached, run};

/// Beside those that every test guest has; each after what it needs.
const MODULES: [&str; 8] = [
    "net/llc/llc",
    "net/802/stp",
    "net/802/garp",
    "net/802/mrp",
    "net/8021q/8021q",
    "net/bridge/bridge",
    "net/tls/tls",
    "drivers/net/bonding/bonding",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/real:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read m; do insmod /modules/$m; done </modules/order
insmod /modules/bonding.ko max_bonds=0
hostname n1
sh /script 2>/tmp/complaints
cat /tmp/complaints
poweroff -f
"#;

/// What is between two lines is a result, by its name.
const SCRIPT: &str = r#"
show() { echo "<<$1"; shift; "$@"; echo ">>$?"; }
vmtwin() { /real/vmtwin --json --home /home "$@"; }
ip() { /real/ip "$@"; }
links() { ip -details -json link show; }
card=$(dirname /sys/bus/pci/devices/*/sriov_totalvfs)
functions() { echo [$(cat $card/sriov_numvfs)]; }

ip link add bond0 type bond mode active-backup miimon 100
ip link set eth1 master bond0
ip link set eth2 master bond0
ip link set bond0 type bond primary eth2
ip link set bond0 up
ip link add link bond0 name bond0.7 type vlan id 7
ip link add br0 type bridge stp_state 1 vlan_filtering 1
ip link set bond0.7 master br0 up
ip link set br0 up
ip link add br1 mtu 1400 type bridge
ip link set br1 up
ip link set eth0 master br1 up
ip link set eth3 master br1 up
ip link set eth4 up
ip link add link eth4 name eth4.9 type vlan id 9
ip link set eth4.9 up
echo 2 >$card/sriov_numvfs

vmtwin cluster create lab --node n1 >/dev/null
vmtwin cluster backup --output /tmp/backups >/dev/null
show links links
file=$(echo /tmp/backups/*.zip)
show same vmtwin cluster validate $file

for gone in br0 br1 bond0.7 bond0 eth4.9; do ip link del $gone; done
# No VLAN is switched on over one that is off.
ip link set eth4 down
echo 0 >$card/sriov_numvfs
# The host is reached by this one since.
ip addr add 10.0.0.1/24 dev eth3
show bare links
show planned vmtwin cluster restore $file --skip-database --dry-run
show untouched links
show restored vmtwin cluster restore $file --skip-database --yes
show after links
show functions functions
ip addr flush dev eth3
show rest vmtwin cluster restore $file --skip-database --yes
show whole links
show nothing vmtwin cluster restore $file --skip-database --yes
"#;

/// Programs with the libraries that they are linked with.
fn install(root: &Path, programs: &[(&Path, &str)]) {
    for (program, to) in programs {
        let linked = run(Command::new("ldd").arg(program));
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        let words = linked.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            let place = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(library, place).unwrap();
        }
        let mut strip = Command::new("strip");
        run(strip.arg("-o").arg(root.join(to)).arg(program));
    }
}

/// The machine's whole file system.
fn initramfs(work: &Workdir) -> PathBuf {
    let root = work.join("root");
    for folder in [
        "bin", "real", "proc", "sys", "dev", "tmp", "etc", "home", "run", "modules",
    ] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    install(
        &root,
        &[
            (Path::new(env!("CARGO_BIN_EXE_vmtwin")), "real/vmtwin"),
            (Path::new("/bin/ip"), "real/ip"),
        ],
    );
    let kernel = cached("kernel");
    let mut order = fs::read_to_string(kernel.join("modules/order")).unwrap();
    for module in order.lines() {
        let to = root.join("modules").join(module);
        fs::copy(kernel.join("modules").join(module), to).unwrap();
    }
    for module in MODULES {
        let file = format!("{}.ko", module.rsplit('/').next().unwrap());
        let from = kernel.join(format!("all/kernel/{module}.ko"));
        fs::copy(from, root.join("modules").join(&file)).unwrap();
        if file != "bonding.ko" {
            order += &format!("{file}\n");
        }
    }
    fs::write(root.join("modules/order"), order).unwrap();
    fs::write(root.join("script"), SCRIPT).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    run(Command::new("chmod").arg("+x").arg(root.join("init")));
    let image = work.join("initramfs");
    let pack = "cd \"$1\"; find . | cpio --quiet -o -H newc >\"$2\"";
    run(Command::new("sh")
        .args(["-ec", pack, "sh"])
        .arg(&root)
        .arg(&image));
    image
}

/// Runs the machine to its end; what it said.
fn boot(initramfs: &Path) -> String {
    let mut qemu = Command::new("timeout");
    qemu.args(["150", "qemu-system-x86_64", "-M", "q35", "-m", "1G"]);
    qemu.args(["-accel", Accel::detect().name(), "-cpu", "max"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args([
        "-serial",
        "stdio",
        "-kernel",
        text(&cached("kernel/vmlinuz")),
    ]);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet loglevel=1"]);
    qemu.args(["-initrd", text(initramfs)]);
    for number in 0..5 {
        // Each on a wire of its own: in two bridges of one wire, what is sent goes round for ever.
        qemu.args(["-netdev", &format!("hubport,hubid={number},id=n{number}")]);
        let card = format!("virtio-net-pci,netdev=n{number},mac=52:54:00:00:00:0{number}");
        qemu.args(["-device", &card]);
    }
    qemu.args(["-device", "pcie-root-port,id=root0"]);
    qemu.args(["-device", "nvme-subsys,id=subsystem"]);
    qemu.args([
        "-device",
        "nvme,serial=a,subsys=subsystem,bus=root0,sriov_max_vfs=2,sriov_vq_flexible=4,\
         sriov_vi_flexible=2",
    ]);
    let output = run(qemu.stdin(Stdio::null()));
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// What a machine said, and how each of it ended.
struct Said(String);

impl Said {
    fn of(&self, name: &str) -> (Value, i32) {
        let Said(all) = self;
        let read = || {
            let (_, rest) = all.split_once(&format!("<<{name}\n"))?;
            let (said, rest) = rest.split_once(">>")?;
            let code = rest.lines().next()?.parse().ok()?;
            Some((serde_json::from_str(said.trim()).ok()?, code))
        };
        read().unwrap_or_else(|| panic!("no {name}: {all}"))
    }

    /// What `ip` says of each interface that matters here, by name.
    fn links(&self, name: &str) -> Vec<String> {
        let (links, _) = self.of(name);
        let mut lines: Vec<String> = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| {
                let (kind, data) = (
                    &link["linkinfo"]["info_kind"],
                    &link["linkinfo"]["info_data"],
                );
                format!(
                    "{} in {} mtu {} {} {} up {} stp {} filter {} id {} of {} mode {} {} {}",
                    link["ifname"],
                    link["master"],
                    link["mtu"],
                    link["address"],
                    kind,
                    link["flags"].to_string().contains("\"UP\""),
                    data["stp_state"],
                    data["vlan_filtering"],
                    data["id"],
                    link["link"],
                    data["mode"],
                    data["miimon"],
                    data["primary"],
                )
            })
            .collect();
        lines.sort();
        lines
    }
}

#[test]
fn what_a_host_is_configured_to_have_comes_back() {
    let work = Workdir::new();
    let said = Said(boot(&initramfs(&work)));
    let before = said.links("links");
    let (same, code) = said.of("same");
    assert_eq!(code, 0, "{same}");
    let bare = said.links("bare");
    assert!(bare.len() + 5 == before.len(), "{bare:?}");

    let (planned, code) = said.of("planned");
    assert_eq!(code, 3, "{planned}");
    for (kind, name, wanted) in [
        ("interface", "br0", "create"),
        ("interface", "br1", "create"),
        ("interface", "bond0", "create"),
        ("interface", "bond0.7", "create"),
        ("interface", "eth4.9", "create"),
        ("interface", "eth0", "change"),
        ("interface", "eth1", "change"),
        // It is what the host is reached by.
        ("interface", "eth3", "cannot"),
        ("pci", "0000:01:00.0", "change"),
        ("pci", "0000:01:00.1", "create"),
    ] {
        assert_eq!(
            action(&planned["nodes"][0], kind, name),
            wanted,
            "{name}: {planned}"
        );
    }
    assert_eq!(said.links("untouched"), bare);

    let (restored, code) = said.of("restored");
    assert_eq!(code, 3, "{restored}");
    assert!(restored["safety_backup"].is_string());
    let failed = restored["nodes"][0]["not_deployed"].as_array().unwrap();
    assert_eq!(failed.len(), 1, "{restored}");
    assert_eq!(failed[0]["what"], "interface eth3");
    assert_eq!(said.of("functions").0, serde_json::json!([2]));
    let but_eth3 = |links: &[String]| -> Vec<String> {
        let others = links.iter().filter(|link| !link.contains("\"eth3\""));
        others.cloned().collect()
    };
    assert_eq!(but_eth3(&said.links("after")), but_eth3(&before));

    // Once its address is gone, the rest is done, and then nothing.
    let (rest, _) = said.of("rest");
    let deployed = rest["nodes"][0]["deployed"].to_string();
    assert_eq!(deployed, r#"["interface eth3"]"#);
    assert_eq!(said.links("whole"), before);
    let (nothing, code) = said.of("nothing");
    assert_eq!(code, 0, "{nothing}");
    assert_eq!(nothing["nodes"][0]["deployed"].to_string(), "[]");
}
