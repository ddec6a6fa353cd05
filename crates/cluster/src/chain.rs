//! From guests down to hardware: which guest uses which network over which bridge over which
//! interface, and which disk is in which volume of which pool on what.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::node::{Interface, InterfaceKind, NodeDocument, Object};
use crate::plan::PciAddress;
use crate::xml::Element;

/// What is under one device of a guest, from the guest down. A link is `KIND NAME`; where ways
/// part, each has a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The guest.
    pub guest: String,
    /// Its device: `vda`, the address of a network card, `hostdev`.
    pub device: String,
    /// What is under it.
    pub links: Vec<String>,
}

/// The chains of all guests of a node.
#[must_use]
pub fn chains(document: &NodeDocument) -> Vec<Chain> {
    let finder = Finder {
        document,
        volumes: volumes(document),
    };
    let mut chains = Vec::new();
    let guests = document.r#virtual.objects.iter();
    for guest in guests.filter(|object| object.kind == "domain") {
        let Ok(domain) = Element::parse(&guest.definition) else {
            continue;
        };
        let Some(devices) = domain.child("devices") else {
            continue;
        };
        for device in devices.children() {
            let (name, ways) = match device.name.as_str() {
                "disk" => (target(device, "dev"), vec![finder.disk(device)]),
                "interface" => (card(device), finder.card(device)),
                "hostdev" => ("hostdev".to_owned(), vec![finder.passed(device)]),
                "filesystem" => (target(device, "dir"), vec![finder.folder(device)]),
                _ => continue,
            };
            chains.extend(ways.into_iter().map(|links| Chain {
                guest: guest.name.clone(),
                device: name.clone(),
                links,
            }));
        }
    }
    chains
}

fn target(device: &Element, key: &str) -> String {
    let target = device.child("target").and_then(|target| target.get(key));
    target.unwrap_or("?").to_owned()
}

fn card(device: &Element) -> String {
    let mac = device.child("mac").and_then(|mac| mac.get("address"));
    mac.unwrap_or("interface").to_owned()
}

struct Finder<'a> {
    document: &'a NodeDocument,
    /// Pool and name of each volume, by its path.
    volumes: BTreeMap<String, (String, String)>,
}

fn volumes(document: &NodeDocument) -> BTreeMap<String, (String, String)> {
    let pools = document.logical.objects.iter();
    let pools = pools.filter(|object| object.kind == "pool");
    let volumes = pools.flat_map(|pool| {
        let volumes = pool.parts.iter().filter(|part| part.kind == "volume");
        volumes.filter_map(|part| {
            let volume = Element::parse(&part.content).ok()?;
            let path = volume.at(&["target", "path"])?.text();
            Some((path, (pool.name.clone(), part.name.clone())))
        })
    });
    volumes.collect()
}

impl Finder<'_> {
    fn object(&self, kind: &str, name: &str) -> Option<&Object> {
        let mut objects = self.document.logical.objects.iter();
        objects.find(|object| object.kind == kind && object.name == name)
    }

    fn disk(&self, disk: &Element) -> Vec<String> {
        let Some(source) = disk.child("source") else {
            return vec!["empty".to_owned()];
        };
        if let (Some(pool), Some(volume)) = (source.get("pool"), source.get("volume")) {
            return self.volume(pool, volume, None);
        }
        let path = source.get("file").or_else(|| source.get("dev"));
        if let Some(path) = path {
            return match self.volumes.get(path) {
                Some((pool, volume)) => self.volume(pool, volume, Some(path)),
                None => vec![format!("path {path}")],
            };
        }
        match (source.get("protocol"), source.get("name")) {
            (Some(protocol), name) => vec![format!("{protocol} {}", name.unwrap_or("?"))],
            _ => vec!["unknown".to_owned()],
        }
    }

    fn volume(&self, pool: &str, volume: &str, path: Option<&str>) -> Vec<String> {
        let mut links = vec![format!("volume {volume}"), format!("pool {pool}")];
        links.extend(path.map(|path| format!("path {path}")));
        let definition = self.object("pool", pool).map(|pool| &pool.definition);
        let source = definition.and_then(|xml| Element::parse(xml).ok());
        let Some(source) = source.as_ref().and_then(|pool| pool.child("source")) else {
            return links;
        };
        let hosts = source.all("host").filter_map(|host| host.get("name"));
        links.extend(hosts.map(|host| format!("host {host}")));
        let devices = source.all("device").filter_map(|device| device.get("path"));
        links.extend(devices.map(|device| format!("device {device}")));
        links
    }

    fn card(&self, card: &Element) -> Vec<Vec<String>> {
        let Some(source) = card.child("source") else {
            return vec![vec!["nothing of the host".to_owned()]];
        };
        if let Some(network) = source.get("network") {
            let begin = vec![format!("network {network}")];
            return match self.object("network", network) {
                Some(object) => self.network(begin, &object.definition),
                None => vec![begin],
            };
        }
        if source.child("address").is_some() {
            return vec![self.passed(card)];
        }
        match source.get("bridge").or_else(|| source.get("dev")) {
            Some(name) => self.under(Vec::new(), name, &mut BTreeSet::new()),
            None => vec![vec!["nothing of the host".to_owned()]],
        }
    }

    fn network(&self, begin: Vec<String>, definition: &str) -> Vec<Vec<String>> {
        let Ok(network) = Element::parse(definition) else {
            return vec![begin];
        };
        let bridge = network.child("bridge").and_then(|one| one.get("name"));
        let forward = network.child("forward");
        let mut tops: Vec<&str> = bridge.into_iter().collect();
        if let Some(forward) = forward {
            let devices = forward.children().filter_map(|one| one.get("dev"));
            tops.extend(forward.get("dev").into_iter().chain(devices));
        }
        let mode = match forward {
            Some(forward) => forward.get("mode").unwrap_or("nat"),
            None => "isolated",
        };
        let begin = vec![format!("{} ({mode})", begin.join(" "))];
        if tops.is_empty() {
            return vec![begin];
        }
        tops.sort_unstable();
        tops.dedup();
        tops.into_iter()
            .flat_map(|top| self.under(begin.clone(), top, &mut BTreeSet::new()))
            .collect()
    }

    /// An interface and all that is under it; each is met once on a way.
    fn under(
        &self,
        mut begin: Vec<String>,
        name: &str,
        met: &mut BTreeSet<String>,
    ) -> Vec<Vec<String>> {
        let interfaces = &self.document.hardware.interfaces;
        let Some(interface) = interfaces.iter().find(|one| one.name == name) else {
            begin.push(format!("interface {name}"));
            return vec![begin];
        };
        begin.push(format!("{:?} {name}", interface.kind).to_lowercase());
        if !met.insert(name.to_owned()) {
            return vec![begin];
        }
        begin.extend(interface.pci.as_ref().map(|pci| format!("pci {pci}")));
        let mut below: Vec<&str> = interface
            .vlan
            .as_ref()
            .map(|vlan| vlan.parent.as_str())
            .into_iter()
            .collect();
        let is_port = |one: &&Interface| {
            one.master.as_deref() == Some(name) && one.kind != InterfaceKind::Tap
        };
        below.extend(
            interfaces
                .iter()
                .filter(is_port)
                .map(|one| one.name.as_str()),
        );
        if below.is_empty() {
            return vec![begin];
        }
        below
            .into_iter()
            .flat_map(|name| self.under(begin.clone(), name, met))
            .collect()
    }

    fn passed(&self, device: &Element) -> Vec<String> {
        let address = device.at(&["source", "address"]);
        let Some(address) = address else {
            return vec!["a device of the host".to_owned()];
        };
        if let Some(uuid) = address.get("uuid") {
            let mut mdevs = self.document.hardware.mdevs.iter();
            let mdev = mdevs.find(|mdev| mdev.uuid.eq_ignore_ascii_case(uuid));
            let mut links = vec![format!("mdev {uuid}")];
            links.extend(mdev.map(|mdev| format!("pci {}", mdev.parent)));
            return links;
        }
        match PciAddress::of(address) {
            Some(address) => vec![format!("pci {address}")],
            None => vec!["a device of the host".to_owned()],
        }
    }

    fn folder(&self, device: &Element) -> Vec<String> {
        let folder = device.child("source").and_then(|source| source.get("dir"));
        vec![format!("path {}", folder.unwrap_or("?"))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Hardware, Objects, Part};
    use time::macros::datetime;

    fn object(kind: &str, name: &str, definition: &str) -> Object {
        Object {
            by: "libvirt".to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            definition: definition.to_owned(),
            ..Object::default()
        }
    }

    fn interface(name: &str, kind: InterfaceKind, master: Option<&str>) -> Interface {
        Interface {
            name: name.to_owned(),
            kind,
            master: master.map(str::to_owned),
            ..Interface::default()
        }
    }

    #[test]
    fn every_way_ends_at_the_hardware() {
        let mut pool = object(
            "pool",
            "fast",
            "<pool><source><device path='/dev/nvme0n1'/></source></pool>",
        );
        pool.parts.push(Part {
            kind: "volume".to_owned(),
            name: "web".to_owned(),
            encoding: None,
            content: "<volume><target><path>/dev/fast/web</path></target></volume>".to_owned(),
        });
        let lan = "<network><forward mode='bridge'/><bridge name='br0'/></network>";
        let web = "<domain><devices>\
            <disk><source dev='/dev/fast/web'/><target dev='vda'/></disk>\
            <disk><source file='/iso'/><target dev='sda'/></disk>\
            <interface><mac address='52:54:00:00:00:01'/><source network='lan'/></interface>\
            <hostdev><source><address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/>\
            </source></hostdev></devices></domain>";
        let mut nic = interface("eth0", InterfaceKind::Physical, Some("bond0"));
        nic.pci = Some("0000:01:00.0".to_owned());
        let objects = |objects| Objects {
            objects,
            settings: Vec::new(),
        };
        let document = NodeDocument {
            version: 1,
            name: "n1".parse().unwrap(),
            id: String::new(),
            taken_at: datetime!(2026-11-23 10:00 UTC),
            program: String::new(),
            hardware: Hardware {
                interfaces: vec![
                    interface("br0", InterfaceKind::Bridge, None),
                    interface("bond0", InterfaceKind::Bond, Some("br0")),
                    interface("vnet0", InterfaceKind::Tap, Some("br0")),
                    nic,
                    interface("eth1", InterfaceKind::Physical, Some("bond0")),
                ],
                ..Hardware::default()
            },
            logical: objects(vec![object("network", "lan", lan), pool]),
            r#virtual: objects(vec![object("domain", "web", web)]),
        };
        let told: Vec<String> = chains(&document)
            .iter()
            .map(|chain| format!("{}: {}", chain.device, chain.links.join(" > ")))
            .collect();
        assert_eq!(
            told,
            [
                "vda: volume web > pool fast > path /dev/fast/web > device /dev/nvme0n1",
                "sda: path /iso",
                "52:54:00:00:00:01: network lan (bridge) > bridge br0 > bond bond0 > physical \
                 eth0 > pci 0000:01:00.0",
                "52:54:00:00:00:01: network lan (bridge) > bridge br0 > bond bond0 > physical eth1",
                "hostdev: pci 0000:41:00.0"
            ]
        );
    }

    #[test]
    fn a_circle_ends() {
        let mut document = NodeDocument {
            version: 1,
            name: "n1".parse().unwrap(),
            id: String::new(),
            taken_at: datetime!(2026-11-23 10:00 UTC),
            program: String::new(),
            hardware: Hardware::default(),
            logical: Objects::default(),
            r#virtual: Objects::default(),
        };
        document.hardware.interfaces = vec![
            interface("a", InterfaceKind::Bridge, Some("b")),
            interface("b", InterfaceKind::Bridge, Some("a")),
        ];
        let card =
            "<domain><devices><interface><source bridge='a'/></interface></devices></domain>";
        document.r#virtual.objects = vec![object("domain", "web", card)];
        assert_eq!(chains(&document).len(), 1);
    }
}
