//! What a definition names that must be on the host.

use std::collections::BTreeSet;

use super::map::{PciAddress, cpu_set};
use crate::xml::Element;

/// What a definition names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) pci: BTreeSet<String>,
    pub(super) mdevs: BTreeSet<String>,
    pub(super) interfaces: BTreeSet<String>,
    pub(super) networks: BTreeSet<String>,
    pub(super) pools: BTreeSet<String>,
    pub(super) filters: BTreeSet<String>,
    pub(super) secrets: BTreeSet<String>,
    pub(super) cpus: BTreeSet<u32>,
}

/// Looks through a definition of any kind.
pub(super) fn needs(element: &Element) -> Needs {
    let mut needs = Needs::default();
    look(element, "", &mut needs);
    needs
}

/// Interfaces that a definition names, and the bridge that a network leaves to the host.
pub(super) fn interfaces(element: &Element) -> BTreeSet<String> {
    let mut wanted = needs(element).interfaces;
    let is_bridged = element.child("forward").and_then(|f| f.get("mode")) == Some("bridge");
    if is_bridged {
        let bridge = element
            .child("bridge")
            .and_then(|bridge| bridge.get("name"));
        wanted.extend(bridge.map(str::to_owned));
    }
    wanted
}

fn look(element: &Element, parent: &str, needs: &mut Needs) {
    let add = |key: &str, set: &mut BTreeSet<String>| {
        set.extend(element.get(key).map(str::to_owned));
    };
    match (parent, element.name.as_str()) {
        (_, "metadata") => return,
        ("interface", "source") => {
            add("bridge", &mut needs.interfaces);
            add("dev", &mut needs.interfaces);
            add("network", &mut needs.networks);
        }
        ("disk", "source") => add("pool", &mut needs.pools),
        ("forward", "interface" | "pf") => add("dev", &mut needs.interfaces),
        ("network", "forward") => add("dev", &mut needs.interfaces),
        (_, "filterref") => add("filter", &mut needs.filters),
        (_, "secret") => add("uuid", &mut needs.secrets),
        ("source" | "forward", "address") => match element.get("uuid") {
            Some(uuid) => {
                needs.mdevs.insert(uuid.to_lowercase());
            }
            None if element.get("type").is_none_or(|kind| kind == "pci") => {
                let address = PciAddress::of(element).map(|address| address.to_string());
                needs.pci.extend(address);
            }
            None => {}
        },
        _ => {}
    }
    if let Some(set) = element.get("cpuset") {
        needs.cpus.extend(cpu_set(set).unwrap_or_default());
    }
    for child in element.children() {
        look(child, &element.name, needs);
    }
}

/// Files and folders that a definition of this kind names.
pub(super) fn paths(element: &Element, kind: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    match kind {
        "pool" | "volume" => paths.extend(
            element
                .at(&["target", "path"])
                .map(Element::text)
                .filter(|path| path.starts_with('/')),
        ),
        "domain" => paths.extend(domain_paths(element)),
        _ => {}
    }
    paths
}

fn domain_paths(domain: &Element) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut add = |path: Option<String>| paths.extend(path.filter(|path| path.starts_with('/')));
    for name in ["loader", "kernel", "initrd"] {
        add(domain.at(&["os", name]).map(Element::text));
    }
    add(nvram(domain));
    let Some(devices) = domain.child("devices") else {
        return paths;
    };
    add(devices.text_of("emulator"));
    for disk in devices.all("disk") {
        add(disk_path(disk));
    }
    paths
}

/// Images of a domain's disks, and what it boots from; its UEFI variables may be made anew.
pub(super) fn domain_images(domain: &Element) -> BTreeSet<String> {
    let mut paths = domain_paths(domain);
    if let Some(nvram) = nvram(domain) {
        paths.remove(&nvram);
    }
    paths
}

/// Where a disk's image is, if it is a file or a device of the host.
pub(crate) fn disk_path(disk: &Element) -> Option<String> {
    let source = disk.child("source")?;
    let path = source.get("file").or_else(|| source.get("dev"))?;
    Some(path.to_owned())
}

/// Where a domain's UEFI variables are, if they are in a file.
pub(super) fn nvram(domain: &Element) -> Option<String> {
    let nvram = domain.at(&["os", "nvram"])?;
    let path = match nvram.child("source") {
        Some(source) => source.get("file")?.to_owned(),
        None => nvram.text(),
    };
    path.starts_with('/').then_some(path)
}
