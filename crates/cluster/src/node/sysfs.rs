//! Collects a host's hardware from what its kernel says: `/sys`, `/proc` and two files of `/etc`.
//! No program is started, nothing is changed, and no right beyond reading is needed. What a kernel
//! does not say is left out.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::hardware::{
    Bond, Bridge, Hardware, Host, Interface, InterfaceKind, Mdev, Memory, NumaNode, Pci, Processor,
    Vlan,
};

/// Longest file that is read; the longest, `/proc/cpuinfo`, has 1.5 KiB a thread.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What the host is made of whose files are below `root`: `/`.
pub fn collect_hardware(root: &Path) -> Hardware {
    let root = Tree(root);
    Hardware {
        host: host(root),
        processor: processor(root),
        memory: Memory {
            bytes: field(&root.text("proc/meminfo").unwrap_or_default(), "MemTotal:")
                .map_or(0, kibibytes),
        },
        numa_nodes: numa_nodes(root),
        pci: root.each("sys/bus/pci/devices", pci),
        mdevs: root.each("sys/bus/mdev/devices", mdev),
        interfaces: interfaces(root),
    }
}

/// Files below a folder.
#[derive(Clone, Copy)]
struct Tree<'a>(&'a Path);

impl Tree<'_> {
    /// The content of a file, without the white space around it; nothing if it says nothing.
    fn text(self, path: impl AsRef<Path>) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.0.join(path)).ok()?;
        // Some files fail when read (the speed of a link that is down).
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        // XML has no way to write the other control characters.
        let printable = |c: char| !c.is_control() || c.is_whitespace();
        let text: String = text.trim().chars().filter(|c| printable(*c)).collect();
        (!text.is_empty()).then_some(text)
    }

    fn number<T: FromStr>(self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    fn flag(self, path: impl AsRef<Path>) -> bool {
        self.text(path).is_some_and(|text| text != "0")
    }

    /// The last part of where a link leads.
    fn link(self, path: impl AsRef<Path>) -> Option<String> {
        name_of(&std::fs::read_link(self.0.join(path)).ok()?)
    }

    fn exists(self, path: impl AsRef<Path>) -> bool {
        self.0.join(path).exists()
    }

    /// The names in a folder, sorted.
    fn names(self, folder: impl AsRef<Path>) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.0.join(folder)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    /// What each entry of a folder is.
    fn each<T>(self, folder: &str, read: impl Fn(Tree<'_>, &str, &Path) -> Option<T>) -> Vec<T> {
        self.names(folder)
            .iter()
            .filter_map(|name| read(self, name, &Path::new(folder).join(name)))
            .collect()
    }
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// What follows a word in a file of lines.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
    line.map(|rest| rest.trim_start_matches([' ', '\t', ':', '=']).trim())
}

fn kibibytes(text: &str) -> u64 {
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse::<u64>().unwrap_or(0).saturating_mul(1024)
}

fn host(root: Tree<'_>) -> Host {
    let release = root.text("etc/os-release").unwrap_or_default();
    let board = ["sys_vendor", "product_name"];
    let board = board
        .iter()
        .filter_map(|name| root.text(format!("sys/class/dmi/id/{name}")));
    let board = board.collect::<Vec<_>>().join(" ");
    Host {
        name: root.text("proc/sys/kernel/hostname").unwrap_or_default(),
        machine_id: root.text("etc/machine-id"),
        kernel: root.text("proc/sys/kernel/osrelease").unwrap_or_default(),
        architecture: std::env::consts::ARCH.to_owned(),
        system: field(&release, "PRETTY_NAME").map(|name| name.trim_matches('"').to_owned()),
        board: (!board.is_empty()).then_some(board),
    }
}

fn processor(root: Tree<'_>) -> Processor {
    let folder = Path::new("sys/devices/system/cpu");
    let (mut sockets, mut cores, mut threads) = (BTreeSet::new(), BTreeSet::new(), 0);
    for name in root.names(folder) {
        let topology = folder.join(&name).join("topology");
        let number = |file: &str| root.number::<u32>(topology.join(file));
        let Some(socket) = number("physical_package_id") else {
            continue;
        };
        sockets.insert(socket);
        cores.insert((socket, number("die_id"), number("core_id")));
        threads += 1;
    }
    let models = root.text("proc/cpuinfo").unwrap_or_default();
    Processor {
        model: field(&models, "model name").map(str::to_owned),
        online: root.text(folder.join("online")),
        sockets: sockets.len() as u32,
        cores: cores.len() as u32,
        threads,
    }
}

fn numa_nodes(root: Tree<'_>) -> Vec<NumaNode> {
    let mut nodes = root.each("sys/devices/system/node", |root, name, path| {
        let id = name.strip_prefix("node")?.parse().ok()?;
        let memory = root.text(path.join("meminfo")).unwrap_or_default();
        let total = memory.lines().find_map(|line| line.split_once("MemTotal:"));
        Some(NumaNode {
            id,
            processors: root.text(path.join("cpulist")).unwrap_or_default(),
            memory_bytes: total.map(|(_, total)| kibibytes(total)),
        })
    });
    nodes.sort_by_key(|node| node.id);
    nodes
}

fn pci(root: Tree<'_>, name: &str, path: &Path) -> Option<Pci> {
    let text = |file: &str| root.text(path.join(file));
    let pair = |one: &str, other: &str| Some(format!("{}:{}", text(one)?, text(other)?));
    Some(Pci {
        address: name.to_owned(),
        class: text("class")?,
        id: pair("vendor", "device")?,
        subsystem: pair("subsystem_vendor", "subsystem_device"),
        driver: root.link(path.join("driver")),
        iommu_group: root.link(path.join("iommu_group")),
        // -1 where the kernel does not know.
        numa_node: root.number(path.join("numa_node")),
        sriov_max: root.number(path.join("sriov_totalvfs")),
        sriov: root.number(path.join("sriov_numvfs")),
        physical: root.link(path.join("physfn")),
    })
}

fn mdev(root: Tree<'_>, name: &str, path: &Path) -> Option<Mdev> {
    // The device lies in the folder of its parent.
    let real = std::fs::canonicalize(root.0.join(path)).ok()?;
    Some(Mdev {
        uuid: name.to_owned(),
        kind: root.link(path.join("mdev_type"))?,
        parent: name_of(real.parent()?)?,
    })
}

fn interfaces(root: Tree<'_>) -> Vec<Interface> {
    root.each("sys/class/net", |root, name, path| {
        // `bonding_masters` is a file among them.
        root.exists(path.join("ifindex"))
            .then(|| interface(root, name, path))
    })
}

fn interface(root: Tree<'_>, name: &str, path: &Path) -> Interface {
    let vlan = vlan(root, name);
    let device = path.join("device");
    let on_pci = root.link(device.join("subsystem")).as_deref() == Some("pci");
    Interface {
        name: name.to_owned(),
        kind: kind(root, path, vlan.is_some()),
        // A port of a bond has the bond's, until it is none any more.
        address: root
            .text(path.join("bonding_slave/perm_hwaddr"))
            .or_else(|| root.text(path.join("address"))),
        mtu: root.number(path.join("mtu")),
        state: root.text(path.join("operstate")),
        pci: on_pci.then(|| root.link(&device)).flatten(),
        master: root.link(path.join("master")),
        bridge: root.exists(path.join("bridge")).then(|| Bridge {
            stp: root.flag(path.join("bridge/stp_state")),
            vlan_filtering: root.flag(path.join("bridge/vlan_filtering")),
        }),
        bond: bond(root, &path.join("bonding")),
        vlan,
    }
}

fn kind(root: Tree<'_>, path: &Path, is_vlan: bool) -> InterfaceKind {
    /// `ARPHRD_LOOPBACK` of if_arp.h.
    const LOOPBACK: u32 = 772;
    match () {
        () if root.exists(path.join("bridge")) => InterfaceKind::Bridge,
        () if root.exists(path.join("bonding")) => InterfaceKind::Bond,
        () if is_vlan => InterfaceKind::Vlan,
        () if root.exists(path.join("tun_flags")) => InterfaceKind::Tap,
        () if root.exists(path.join("device")) => InterfaceKind::Physical,
        () if root.number(path.join("type")) == Some(LOOPBACK) => InterfaceKind::Loopback,
        () => InterfaceKind::Other,
    }
}

fn bond(root: Tree<'_>, path: &Path) -> Option<Bond> {
    // The name, then the kernel's number for it.
    let mode = root.text(path.join("mode"))?;
    Some(Bond {
        mode: mode.split_whitespace().next()?.to_owned(),
        miimon_ms: root.number(path.join("miimon")),
        primary: root.text(path.join("primary")),
    })
}

/// `/proc/net/vlan/NAME`: `eth0.7  VID: 7 …`, and a line `Device: eth0`.
fn vlan(root: Tree<'_>, name: &str) -> Option<Vlan> {
    let text = root.text(PathBuf::from("proc/net/vlan").join(name))?;
    let (_, id) = text.split_once("VID:")?;
    Some(Vlan {
        id: id.split_whitespace().next()?.parse().ok()?,
        parent: field(&text, "Device:")?.to_owned(),
    })
}
