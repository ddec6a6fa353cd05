//! Interfaces that a host is configured to have: bridges, bonds, VLANs. One that is not here is made
//! again. One that is here is left as it is, but for a port that its bridge or bond has lost.
//!
//! What a host reaches others by is not touched: an interface with an IP address becomes no port.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::difference::difference_of_fields;
use super::map::is_interface;
use super::{Action, Context, Item, Section, Step, UNTIL_BOOT, item};
use crate::node::{Interface, InterfaceKind};

/// Modes of a bond, as the kernel's documentation names them.
const BOND_MODES: [&str; 7] = [
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];
/// Highest number of a VLAN (IEEE 802.1Q).
const MAX_VLAN: u32 = 4094;

/// Interfaces of the backup that are not as they were. On new hardware those alone that networks and
/// guests need, and none of its own devices becomes a port: their names say nothing there.
pub(super) fn items(cx: &Context<'_>) -> Vec<Item> {
    let live = &cx.live.document.hardware.interfaces;
    let then = lasting(&cx.document.hardware.interfaces, &cx.made_bridges);
    let mut host = Host {
        cx,
        then: &then,
        here: live.iter().map(|one| (one.name.as_str(), one)).collect(),
        made: BTreeSet::new(),
    };
    let (there, missing): (Vec<_>, Vec<_>) = then
        .iter()
        .copied()
        .partition(|one| host.here.contains_key(one.name.as_str()));
    let missing = match cx.options.to_new_hardware {
        true => needed(missing, super::wanted_interfaces(cx.document, cx.options)),
        false => missing,
    };
    let (ordered, circle) = ordered(missing);
    let ordered = ordered.into_iter();
    let mut items: Vec<Item> = ordered.map(|one| host.missing(one)).collect();
    let why = "the backup says what cannot be: it is needed by what it needs";
    items.extend(circle.into_iter().map(|one| named(one).cannot(why)));
    if !cx.options.to_new_hardware {
        items.extend(there.into_iter().filter_map(|one| host.there(one)));
        let known: BTreeSet<&str> = then.iter().map(|one| one.name.as_str()).collect();
        let new = lasting(live, &cx.made_bridges).into_iter();
        let new = new.filter(|one| !known.contains(one.name.as_str()));
        items.extend(new.map(|one| named(one).unknown()));
    }
    items
}

/// Those that neither guests nor networks bring along.
fn lasting<'a>(all: &'a [Interface], made_by_networks: &BTreeSet<String>) -> Vec<&'a Interface> {
    let lasting = |one: &&Interface| {
        let comes_and_goes = matches!(
            one.kind,
            InterfaceKind::Tap | InterfaceKind::Other | InterfaceKind::Loopback
        );
        !comes_and_goes && !made_by_networks.contains(&one.name)
    };
    all.iter().filter(lasting).collect()
}

/// Whether it is made by configuration, and not a device of its own.
fn is_made(one: &Interface) -> bool {
    matches!(
        one.kind,
        InterfaceKind::Bridge | InterfaceKind::Bond | InterfaceKind::Vlan
    )
}

fn named(one: &Interface) -> Item {
    item(Section::Hardware, "interface", &one.name)
}

/// What a VLAN stands on.
fn parent(one: &Interface) -> Option<&String> {
    one.vlan.as_ref().map(|vlan| &vlan.parent)
}

/// What an interface cannot be without, and what it is a port of.
fn before(one: &Interface) -> impl Iterator<Item = &String> {
    parent(one).into_iter().chain(&one.master)
}

/// Those of `all` that can be made and that are wanted, with all they consist of.
fn needed(all: Vec<&Interface>, mut wanted: BTreeSet<String>) -> Vec<&Interface> {
    loop {
        let known = wanted.len();
        for one in &all {
            // Not of a bridge that is here: that has what it needs.
            let is_port = one
                .master
                .as_ref()
                .is_some_and(|to| wanted.contains(to) && all.iter().any(|other| other.name == *to));
            if is_port && is_made(one) {
                wanted.insert(one.name.clone());
            }
            if wanted.contains(&one.name) {
                wanted.extend(parent(one).cloned());
            }
        }
        if wanted.len() == known {
            break;
        }
    }
    let is_needed = |one: &&Interface| is_made(one) && wanted.contains(&one.name);
    all.into_iter().filter(is_needed).collect()
}

/// Each after what it needs; and those that need one another, which no host has.
fn ordered(mut left: Vec<&Interface>) -> (Vec<&Interface>, Vec<&Interface>) {
    let mut order = Vec::new();
    while !left.is_empty() {
        let names: BTreeSet<&str> = left.iter().map(|one| one.name.as_str()).collect();
        let waits = |one: &&Interface| before(one).any(|name| names.contains(name.as_str()));
        let (later, mut now): (Vec<_>, Vec<_>) = left.into_iter().partition(waits);
        if now.is_empty() {
            return (order, later);
        }
        order.append(&mut now);
        left = later;
    }
    (order, left)
}

/// The host as it will be.
struct Host<'a> {
    cx: &'a Context<'a>,
    /// All of the backup.
    then: &'a [&'a Interface],
    here: BTreeMap<&'a str, &'a Interface>,
    /// Names of those that the plan makes, up to now.
    made: BTreeSet<String>,
}

impl Host<'_> {
    fn has(&self, name: &str) -> bool {
        self.here.contains_key(name) || self.made.contains(name)
    }

    /// Whether others may stand on it, or be its ports. Names of another host's cards say nothing here,
    /// and what is there already is none of that host's.
    fn is_usable(&self, name: &str) -> bool {
        match self.cx.options.to_new_hardware {
            true => self.made.contains(name),
            false => self.has(name),
        }
    }

    /// One that is not here.
    fn missing(&mut self, one: &Interface) -> Item {
        let mut item = named(one);
        if !is_made(one) {
            return item.cannot("this host has it no more");
        }
        if let Err(why) = check(one) {
            return item.cannot(format!("the backup says what cannot be: {why}"));
        }
        if let Some(parent) = parent(one).filter(|parent| !self.is_usable(parent)) {
            return item.cannot(match self.has(parent) {
                true => {
                    format!("it was on {parent} of another host; make it on what carries it here")
                }
                false => format!("{parent}, which carries it, is not here"),
            });
        }
        item.action = Action::Create;
        let interface = self.as_it_will_be(one);
        if let (Some(then), None) = (one.mtu, interface.mtu) {
            let why = format!("its MTU was {then}, which what carries it here does not allow");
            item.warnings.push(why);
        }
        item.steps.push(Step::AddInterface { interface });
        match &one.master {
            Some(to) if self.is_usable(to) => item.steps.push(self.port(one, to)),
            Some(to) => item
                .warnings
                .push(format!("it was a port of {to}, which is not here")),
            None => {}
        }
        self.warn_of_ports(one, &mut item);
        item.warnings.push(UNTIL_BOOT.to_owned());
        self.made.insert(one.name.clone());
        item
    }

    /// Without what it is given by others, or will find out by itself.
    fn as_it_will_be(&self, one: &Interface) -> Interface {
        let parent = parent(one).and_then(|parent| self.here.get(parent.as_str()));
        let most = parent.and_then(|parent| parent.mtu).unwrap_or(u32::MAX);
        Interface {
            mtu: one.mtu.filter(|mtu| *mtu <= most),
            // Two hosts of one address disturb each other, and the old one may come back.
            address: match self.cx.options.to_new_hardware {
                true => None,
                false => one.address.clone(),
            },
            state: None,
            pci: None,
            master: None,
            ..one.clone()
        }
    }

    /// On another host its devices have other names.
    fn warn_of_ports(&self, one: &Interface, item: &mut Item) {
        let ports = self.then.iter().filter(|port| {
            let is_ours = port.master.as_ref() == Some(&one.name);
            is_ours && !is_made(port) && self.cx.options.to_new_hardware
        });
        let ports: Vec<&str> = ports.map(|port| port.name.as_str()).collect();
        if !ports.is_empty() {
            item.warnings.push(format!(
                "its ports were {}; attach what this host has for them: ip link set PORT master {}",
                ports.join(", "),
                one.name
            ));
        }
    }

    /// One that is here; nothing where it is as it was.
    fn there(&self, one: &Interface) -> Option<Item> {
        let now = self.here.get(one.name.as_str())?;
        let (old, new) = (fields(now), fields(one));
        let differences = difference_of_fields(&old, &new);
        if differences.is_empty() {
            return None;
        }
        let mut item = named(one);
        item.differences = differences;
        let lost = one.master.as_ref().filter(|_| {
            let without = |mut value: Value| {
                value.as_object_mut().map(|all| all.remove("@master"));
                value
            };
            now.master.is_none() && without(old) == without(new)
        });
        let Some(to) = lost else {
            return Some(item.cannot("this host has another; what is there is not changed"));
        };
        if !self.has(to) {
            return Some(item.cannot(format!("{to} is not here")));
        }
        if self.cx.live.addressed.contains(&one.name) {
            return Some(item.cannot(format!(
                "it, or what stands on it, has an IP address, and would lose its connections as a \
                 port: move the address to {to}, then: ip link set {} master {to}",
                one.name
            )));
        }
        item.action = Action::Change;
        item.steps.push(self.port(one, to));
        item.warnings.push(UNTIL_BOOT.to_owned());
        Some(item)
    }

    fn port(&self, one: &Interface, to: &str) -> Step {
        let mut masters = self.then.iter().filter(|master| master.name == to);
        let bond = masters.find_map(|master| master.bond.as_ref());
        let primary = bond.and_then(|bond| bond.primary.as_ref());
        Step::AddPort {
            port: one.name.clone(),
            to: to.to_owned(),
            primary: primary == Some(&one.name),
        }
    }
}

/// What is compared: whether a cable is in is no matter of configuration, and the kernel gives what is
/// made by configuration an address of its own, if nobody does.
fn fields(one: &Interface) -> Value {
    // Our own types, which JSON can always hold.
    let mut value = serde_json::to_value(one).unwrap_or(Value::Null);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("@state");
        if is_made(one) {
            fields.remove("@address");
        }
    }
    value
}

/// A document comes from outside, and what it says goes to a program of the host.
fn check(one: &Interface) -> Result<(), String> {
    let name = |name: &str| match is_interface(name) && !name.starts_with(['-', '.']) {
        true => Ok(()),
        false => Err(format!("{name} is no name of an interface")),
    };
    name(&one.name)?;
    if let Some(address) = &one.address
        && !is_hardware_address(address)
    {
        return Err(format!("{address} is no hardware address"));
    }
    match (one.kind, &one.bridge, &one.bond, &one.vlan) {
        (InterfaceKind::Bridge, Some(_), None, None) => Ok(()),
        (InterfaceKind::Bond, None, Some(bond), None) => {
            match BOND_MODES.contains(&bond.mode.as_str()) {
                true => Ok(()),
                false => Err(format!("{} is no mode of a bond", bond.mode)),
            }
        }
        (InterfaceKind::Vlan, None, None, Some(vlan)) => {
            name(&vlan.parent)?;
            match (1..=MAX_VLAN).contains(&vlan.id) {
                true => Ok(()),
                false => Err(format!("{} is no number of a VLAN", vlan.id)),
            }
        }
        _ => Err("it is of no kind, or of two".to_owned()),
    }
}

/// `02:fc:00:00:00:01`.
fn is_hardware_address(text: &str) -> bool {
    let byte = |byte: &str| byte.len() == 2 && byte.chars().all(|c| c.is_ascii_hexdigit());
    text.len() == 17 && text.split(':').all(byte)
}
