//! `--map OLD=NEW`: names of one host put in the place of those of another, in definitions.
//!
//! | form of both sides | what it is | where it is looked for |
//! |---|---|---|
//! | `/old/folder` | a path and all under it | every path in a definition |
//! | `0000:01:00.0` | a PCI address | devices that are passed through |
//! | a UUID | a mediated device | devices that are passed through |
//! | `cpus:2-3` | a set of processors, as `cpus:OLD=NEW` | places where guests may run |
//! | `eth0` | a network interface or a bridge | networks, and guests' interfaces |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::xml::{Element, Node};

/// Longest name of an interface, bytes (`IFNAMSIZ` less its end).
const MAX_INTERFACE_LEN: usize = 15;
/// Highest processor that a set may name.
const MAX_CPU: u32 = 16_383;

/// One `OLD=NEW`. In documents it is the text that it is given as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Mapping {
    /// A path and all under it; no slash at the end.
    Path(String, String),
    /// A PCI address.
    Pci(PciAddress, PciAddress),
    /// The UUID of a mediated device, in small letters.
    Mdev(String, String),
    /// Processors, each to the one at the same place.
    Cpus(Vec<u32>, Vec<u32>),
    /// An interface or a bridge.
    Interface(String, String),
}

/// An address on a PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// Domain.
    pub domain: u32,
    /// Bus.
    pub bus: u32,
    /// Slot, also called device.
    pub slot: u32,
    /// Function.
    pub function: u32,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain, self.bus, self.slot, self.function
        )
    }
}

impl FromStr for PciAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hex = |text: &str, digits: usize, max: u32| match text.len() == digits {
            true => u32::from_str_radix(text, 16).ok().filter(|n| *n <= max),
            false => None,
        };
        let read = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (slot, function) = rest.split_once('.')?;
            Some(PciAddress {
                domain: hex(domain, 4, 0xffff)?,
                bus: hex(bus, 2, 0xff)?,
                slot: hex(slot, 2, 0x1f)?,
                function: hex(function, 1, 7)?,
            })
        };
        read().ok_or(())
    }
}

impl PciAddress {
    /// As libvirt writes it, in four attributes.
    pub(crate) fn of(address: &Element) -> Option<PciAddress> {
        let number = |key: &str| {
            let text = address.get(key)?;
            match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        Some(PciAddress {
            domain: number("domain").unwrap_or(0),
            bus: number("bus")?,
            slot: number("slot")?,
            function: number("function").unwrap_or(0),
        })
    }

    fn write(self, address: &mut Element) {
        address.set("domain", &format!("0x{:04x}", self.domain));
        address.set("bus", &format!("0x{:02x}", self.bus));
        address.set("slot", &format!("0x{:02x}", self.slot));
        address.set("function", &format!("0x{:x}", self.function));
    }
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "give OLD=NEW: two paths (/a=/b), PCI addresses (0000:01:00.0=0000:02:00.0), \
                     UUIDs of mediated devices, sets of processors (cpus:2-3=6-7), or names of \
                     interfaces (br0=br1)";
        let (old, new) = text.split_once('=').ok_or(usage)?;
        if let Some(old) = old.strip_prefix("cpus:") {
            let new = new.strip_prefix("cpus:").unwrap_or(new);
            let set = |text: &str| cpu_set(text).ok_or(format!("{text} is no set of processors"));
            let (old, new) = (set(old)?, set(new)?);
            return match old.len() == new.len() {
                true => Ok(Mapping::Cpus(old, new)),
                false => Err("both sets must have as many processors".to_owned()),
            };
        }
        if let (Ok(old), Ok(new)) = (old.parse(), new.parse()) {
            return Ok(Mapping::Pci(old, new));
        }
        if let (Some(old), Some(new)) = (path(old), path(new)) {
            return Ok(Mapping::Path(old, new));
        }
        if is_uuid(old) && is_uuid(new) {
            return Ok(Mapping::Mdev(old.to_lowercase(), new.to_lowercase()));
        }
        match is_interface(old) && is_interface(new) {
            true => Ok(Mapping::Interface(old.to_owned(), new.to_owned())),
            false => Err(usage.to_owned()),
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &[u32]| set.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match self {
            Mapping::Path(old, new) | Mapping::Mdev(old, new) | Mapping::Interface(old, new) => {
                write!(f, "{old}={new}")
            }
            Mapping::Pci(old, new) => write!(f, "{old}={new}"),
            Mapping::Cpus(old, new) => write!(f, "cpus:{}={}", list(old), list(new)),
        }
    }
}

impl From<Mapping> for String {
    fn from(mapping: Mapping) -> String {
        mapping.to_string()
    }
}

impl TryFrom<String> for Mapping {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

fn path(text: &str) -> Option<String> {
    let good = text.starts_with('/') && !text.split('/').any(|part| part == "..");
    let cut = text.trim_end_matches('/');
    (good && !cut.is_empty() && !cut.contains(char::is_control)).then(|| cut.to_owned())
}

pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
}

pub(super) fn is_interface(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !"/:=".contains(c);
    (1..=MAX_INTERFACE_LEN).contains(&text.len()) && text.chars().all(allowed)
}

/// What a mapping looks for, for people.
pub(super) fn old_name(map: &Mapping) -> String {
    match map {
        Mapping::Path(old, _) | Mapping::Mdev(old, _) | Mapping::Interface(old, _) => old.clone(),
        Mapping::Pci(old, _) => old.to_string(),
        Mapping::Cpus(old, _) => format!("processor {}", cpu_list(old.clone())),
    }
}

/// Processors of a list like `0-3,8`, in its order; `^N` takes one out, as in libvirt.
pub(crate) fn cpu_set(text: &str) -> Option<Vec<u32>> {
    let number = |text: &str| text.trim().parse().ok().filter(|n| *n <= MAX_CPU);
    let mut set: Vec<u32> = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        if let Some(out) = part.strip_prefix('^') {
            let out = number(out)?;
            set.retain(|cpu| *cpu != out);
            continue;
        }
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        for cpu in first..=last {
            if !set.contains(&cpu) {
                set.push(cpu);
            }
        }
        if first > last {
            return None;
        }
    }
    (!set.is_empty()).then_some(set)
}

/// The shortest list of these processors.
fn cpu_list(mut set: Vec<u32>) -> String {
    set.sort_unstable();
    set.dedup();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

/// Applies all mappings to a definition, at once: what one has changed, no other changes again.
/// Notes in `used` which of them found something.
pub(crate) fn apply(maps: &[Mapping], element: &mut Element, used: &mut [bool]) {
    let mut mapper = Mapper { maps, used };
    mapper.element(element, "");
}

struct Mapper<'a> {
    maps: &'a [Mapping],
    used: &'a mut [bool],
}

impl Mapper<'_> {
    fn element(&mut self, element: &mut Element, parent: &str) {
        // What a person wrote, what belongs to another program, what the guest sees.
        let foreign = ["metadata", "description", "title"].contains(&element.name.as_str());
        // A folder of another host.
        let remote = element.name == "source" && element.child("host").is_some();
        if foreign || remote || (parent == "filesystem" && element.name == "target") {
            return;
        }
        for (key, value) in &mut element.attributes {
            if let Some(new) = self.attribute(parent, &element.name, key, value) {
                *value = new;
            }
        }
        self.text(element);
        if element.name == "address" && (parent == "source" || parent == "forward") {
            self.address(element);
        }
        let name = element.name.clone();
        for child in element.children_mut() {
            self.element(child, &name);
        }
    }

    fn attribute(&mut self, parent: &str, name: &str, key: &str, value: &str) -> Option<String> {
        if value.starts_with('/') {
            return self.path(value);
        }
        let interface = matches!(
            (parent, name, key),
            ("interface", "source", "bridge" | "dev")
                | ("network", "bridge", "name")
                | ("network", "forward", "dev")
                | ("forward", "interface" | "pf", "dev")
        );
        match key {
            "cpuset" => self.cpus(value),
            _ if interface => self.interface(value),
            _ => None,
        }
    }

    fn text(&mut self, element: &mut Element) {
        if element.children().next().is_some() {
            return;
        }
        let text = element.text();
        if text.starts_with('/')
            && let Some(new) = self.path(&text)
        {
            element.nodes = vec![Node::Text(new)];
        }
    }

    fn address(&mut self, address: &mut Element) {
        if let Some(uuid) = address.get("uuid").map(str::to_lowercase) {
            for (at, map) in self.maps.iter().enumerate() {
                if let Mapping::Mdev(old, new) = map
                    && *old == uuid
                {
                    self.used[at] = true;
                    return address.set("uuid", new);
                }
            }
        }
        let Some(is) = PciAddress::of(address) else {
            return;
        };
        for (at, map) in self.maps.iter().enumerate() {
            if let Mapping::Pci(old, new) = map
                && *old == is
            {
                self.used[at] = true;
                return new.write(address);
            }
        }
    }

    fn path(&mut self, value: &str) -> Option<String> {
        for (at, map) in self.maps.iter().enumerate() {
            if let Mapping::Path(old, new) = map
                && let Some(rest) = value.strip_prefix(old.as_str())
                && (rest.is_empty() || rest.starts_with('/'))
            {
                self.used[at] = true;
                return Some(format!("{new}{rest}"));
            }
        }
        None
    }

    fn interface(&mut self, value: &str) -> Option<String> {
        for (at, map) in self.maps.iter().enumerate() {
            if let Mapping::Interface(old, new) = map
                && old == value
            {
                self.used[at] = true;
                return Some(new.clone());
            }
        }
        None
    }

    fn cpus(&mut self, value: &str) -> Option<String> {
        let set = cpu_set(value)?;
        let mut changed = false;
        let mut new = Vec::new();
        for cpu in set {
            let mut to = cpu;
            for (at, map) in self.maps.iter().enumerate() {
                if let Mapping::Cpus(from, into) = map
                    && let Some(place) = from.iter().position(|one| *one == cpu)
                {
                    self.used[at] = true;
                    changed = true;
                    to = into[place];
                    break;
                }
            }
            new.push(to);
        }
        changed.then(|| cpu_list(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(maps: &[&str], xml: &str) -> (String, Vec<bool>) {
        let maps: Vec<Mapping> = maps.iter().map(|map| map.parse().unwrap()).collect();
        let mut used = vec![false; maps.len()];
        let mut element = Element::parse(xml).unwrap();
        apply(&maps, &mut element, &mut used);
        (element.to_xml().unwrap(), used)
    }

    #[test]
    fn every_form_finds_its_places() {
        let maps = [
            "/old=/new",
            "0000:01:00.0=0000:02:00.1",
            "cpus:2-3=6,9",
            "br0=br7",
            "br7=br0",
            "c2177883-f1bb-47f0-914d-32a22e3a8804=d2177883-f1bb-47f0-914d-32a22e3a8804",
            "eth9=eth8",
        ];
        let xml = "<domain><description>/old/x</description><vcpu cpuset='0-3,^1'>2</vcpu><devices>\
            <disk><source file='/old/a'/><target dev='vda'/></disk><emulator>/older/q</emulator>\
            <interface type='bridge'><source bridge='br0'/></interface>\
            <interface type='bridge'><source bridge='br7'/></interface>\
            <filesystem><source dir='/old'/><target dir='/old'/></filesystem>\
            <hostdev><source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>\
            </source><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>\
            </hostdev><hostdev><source>\
            <address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>\
            </devices></domain>";
        let (new, used) = mapped(&maps, xml);
        assert_eq!(used, [true, true, true, true, true, true, false]);
        let expected = xml
            .replace("'/old/a'", "'/new/a'")
            .replace("source dir='/old'", "source dir='/new'")
            .replace("0-3,^1", "0,6,9")
            .replace("br0", "br-")
            .replace("br7", "br0")
            .replace("br-", "br7")
            .replace("c2177883", "d2177883")
            .replacen("bus='0x01'", "bus='0x02'", 1)
            .replacen("function='0x0'", "function='0x1'", 1)
            .replace('\'', "\"");
        assert_eq!(new, expected);
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for wrong in [
            "",
            "a",
            "=",
            "a=",
            "/a=b",
            "/=/b",
            "/a=/../b",
            "cpus:0-1=2",
            "cpus:9-2=1",
            "cpus:0-4294967295=1",
            "0000:01:00.0=eth0:1",
            "averylonginterfacename=b",
        ] {
            assert!(wrong.parse::<Mapping>().is_err(), "{wrong}");
        }
    }
}
