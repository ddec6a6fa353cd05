//! What a node is made of. Numbers and names are as the kernel gives them.

use serde::{Deserialize, Serialize};

/// What a node is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// The host itself.
    pub host: Host,
    /// Its processors.
    pub processor: Processor,
    /// Its memory.
    pub memory: Memory,
    /// Which processors and memory are close to each other.
    #[serde(default, rename = "numa-node")]
    pub numa_nodes: Vec<NumaNode>,
    /// PCI functions, by address.
    #[serde(default, rename = "pci")]
    pub pci: Vec<Pci>,
    /// Mediated devices, by UUID.
    #[serde(default, rename = "mdev")]
    pub mdevs: Vec<Mdev>,
    /// Network interfaces, by name.
    #[serde(default, rename = "interface")]
    pub interfaces: Vec<Interface>,
}

/// A host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    #[serde(rename = "@name")]
    pub name: String,
    /// `/etc/machine-id`.
    #[serde(
        rename = "@machine-id",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub machine_id: Option<String>,
    /// The release of its kernel.
    #[serde(rename = "@kernel")]
    pub kernel: String,
    /// Its architecture, as Rust names it.
    #[serde(rename = "@architecture")]
    pub architecture: String,
    /// Its system, as `/etc/os-release` names it.
    #[serde(rename = "@system", default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Manufacturer and product of the board.
    #[serde(rename = "@board", default, skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
}

/// All processors of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Their model.
    #[serde(rename = "@model", default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Those that are online, as the kernel lists them: `0-3,8`.
    #[serde(rename = "@online", default, skip_serializing_if = "Option::is_none")]
    pub online: Option<String>,
    /// How many sockets there are.
    #[serde(rename = "@sockets")]
    pub sockets: u32,
    /// How many cores all sockets have together.
    #[serde(rename = "@cores")]
    pub cores: u32,
    /// How many threads all cores have together.
    #[serde(rename = "@threads")]
    pub threads: u32,
}

/// The memory of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Its size.
    #[serde(rename = "@bytes")]
    pub bytes: u64,
}

/// A NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Its number.
    #[serde(rename = "@id")]
    pub id: u32,
    /// Its processors: `0-3,8`.
    #[serde(rename = "@processors")]
    pub processors: String,
    /// Its memory.
    #[serde(
        rename = "@memory-bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub memory_bytes: Option<u64>,
}

/// A PCI function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pci {
    /// `0000:00:1f.2`.
    #[serde(rename = "@address")]
    pub address: String,
    /// Class, `0x020000`.
    #[serde(rename = "@class")]
    pub class: String,
    /// Vendor and device, `0x8086:0x10d3`.
    #[serde(rename = "@id")]
    pub id: String,
    /// The same of the subsystem.
    #[serde(
        rename = "@subsystem",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub subsystem: Option<String>,
    /// The driver that has it.
    #[serde(rename = "@driver", default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The IOMMU group it is given to guests with.
    #[serde(
        rename = "@iommu-group",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub iommu_group: Option<String>,
    /// The NUMA node it is close to.
    #[serde(
        rename = "@numa-node",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub numa_node: Option<u32>,
    /// How many virtual functions it may have.
    #[serde(
        rename = "@sriov-max",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub sriov_max: Option<u32>,
    /// How many virtual functions it has.
    #[serde(rename = "@sriov", default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<u32>,
    /// The function that a virtual one belongs to.
    #[serde(rename = "@physical", default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<String>,
}

/// A mediated device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mdev {
    /// Its UUID.
    #[serde(rename = "@uuid")]
    pub uuid: String,
    /// Its type, in the words of its driver.
    #[serde(rename = "@type")]
    pub kind: String,
    /// The device it is a part of.
    #[serde(rename = "@parent")]
    pub parent: String,
}

/// What a network interface is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceKind {
    /// A device of its own.
    Physical,
    /// A bridge.
    Bridge,
    /// A bond.
    Bond,
    /// A VLAN.
    Vlan,
    /// A tap, of a guest mostly.
    Tap,
    /// Loopback.
    Loopback,
    /// Anything else.
    #[default]
    Other,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    #[serde(rename = "@name")]
    pub name: String,
    /// What it is.
    #[serde(rename = "@kind")]
    pub kind: InterfaceKind,
    /// Its hardware address.
    #[serde(rename = "@address", default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its MTU, bytes.
    #[serde(rename = "@mtu", default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its state, in the kernel's words: `up`, `down`, `unknown`.
    #[serde(rename = "@state", default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The PCI function behind it.
    #[serde(rename = "@pci", default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// The bridge or bond that it is a port of.
    #[serde(rename = "@master", default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// What a bridge has beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// What a bond has beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// What a VLAN has beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
}

/// What a bridge has beside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// Whether it speaks the spanning tree protocol.
    #[serde(rename = "@stp")]
    pub stp: bool,
    /// Whether it tells VLANs apart.
    #[serde(rename = "@vlan-filtering")]
    pub vlan_filtering: bool,
}

/// What a bond has beside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bond {
    /// Its mode, in the kernel's words: `active-backup`, `802.3ad`…
    #[serde(rename = "@mode")]
    pub mode: String,
    /// How often links are looked at.
    #[serde(
        rename = "@miimon-ms",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub miimon_ms: Option<u32>,
    /// Its first choice.
    #[serde(rename = "@primary", default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
}

/// What a VLAN has beside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// Its number.
    #[serde(rename = "@id")]
    pub id: u32,
    /// The interface that carries it.
    #[serde(rename = "@parent")]
    pub parent: String,
}
