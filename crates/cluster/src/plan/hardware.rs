//! Hardware of two documents. It cannot be restored; what is missing is told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Action, Context, Item, Section, item};
use crate::node::{Hardware, Interface, InterfaceKind, NodeDocument};
use crate::xml::Element;

/// How hardware differs, by names like `pci 0000:01:00.0`.
#[derive(Debug, Default)]
pub struct HardwareDifference {
    /// What was there and is not.
    pub missing: Vec<String>,
    /// What is there and was not.
    pub new: Vec<String>,
    /// What is there and is another.
    pub changed: Vec<String>,
}

/// Compares hardware; what makes no difference to guests (states of links) is left out.
#[must_use]
pub fn compare_hardware(then: &Hardware, now: &Hardware) -> HardwareDifference {
    let (then, now) = (things(then), things(now));
    let mut difference = HardwareDifference::default();
    for (name, value) in &then {
        match now.get(name) {
            None => difference.missing.push(name.clone()),
            Some(other) if other != value => difference.changed.push(name.clone()),
            Some(_) => {}
        }
    }
    let new = now.keys().filter(|name| !then.contains_key(*name));
    difference.new = new.cloned().collect();
    difference
}

/// Each thing by a name of its own, with what is to be compared of it.
fn things(hardware: &Hardware) -> BTreeMap<String, Value> {
    // Values of our own types, which JSON can always hold.
    let value = |result: Result<Value, _>| result.unwrap_or(Value::Null);
    let mut things = BTreeMap::new();
    let processor = value(serde_json::to_value(&hardware.processor));
    things.insert("processor".to_owned(), processor);
    things.insert("memory".to_owned(), hardware.memory.bytes.into());
    for pci in &hardware.pci {
        let name = format!("pci {}", pci.address);
        things.insert(name, value(serde_json::to_value(pci)));
    }
    for mdev in &hardware.mdevs {
        let name = format!("mdev {}", mdev.uuid);
        things.insert(name, value(serde_json::to_value(mdev)));
    }
    for interface in &hardware.interfaces {
        let mut value = value(serde_json::to_value(interface));
        // Whether a cable is in is no matter of configuration.
        if let Some(fields) = value.as_object_mut() {
            fields.remove("@state");
        }
        things.insert(format!("interface {}", interface.name), value);
    }
    things
}

pub(super) fn items(cx: &Context<'_>) -> Vec<Item> {
    if cx.options.to_new_hardware {
        return Vec::new();
    }
    let then = lasting(&cx.document.hardware, &cx.made_bridges);
    let now = lasting(&cx.live.document.hardware, &cx.made_bridges);
    let difference = compare_hardware(&then, &now);
    let named = |name: &String| {
        let (kind, name) = name.split_once(' ').unwrap_or((name, ""));
        item(Section::Hardware, kind, name)
    };
    let mut items = Vec::new();
    for name in &difference.missing {
        items.push(named(name).cannot("this host has it no more"));
    }
    for name in &difference.changed {
        items.push(named(name).cannot("this host has another"));
    }
    items.extend(difference.new.iter().map(|name| named(name).unknown()));
    if items.iter().all(|item| item.action == Action::Unknown) {
        items.push(item(Section::Hardware, "host", &then.host.name));
    }
    items
}

/// Interfaces that come and go with guests and networks are no hardware.
fn lasting(hardware: &Hardware, made: &BTreeSet<String>) -> Hardware {
    let lasting = |interface: &&Interface| {
        let comes_and_goes = matches!(
            interface.kind,
            InterfaceKind::Tap | InterfaceKind::Other | InterfaceKind::Loopback
        );
        !comes_and_goes && !made.contains(&interface.name)
    };
    Hardware {
        interfaces: hardware
            .interfaces
            .iter()
            .filter(lasting)
            .cloned()
            .collect(),
        ..hardware.clone()
    }
}

/// Bridges that libvirt makes for its networks.
pub(super) fn made_by_networks(document: &NodeDocument) -> BTreeSet<String> {
    let networks = document.logical.objects.iter();
    let networks = networks.filter(|object| object.kind == "network");
    networks
        .filter_map(|object| {
            let element = Element::parse(&object.definition).ok()?;
            let mode = element.child("forward").and_then(|f| f.get("mode"));
            match mode {
                Some("bridge") => None,
                _ => Some(element.child("bridge")?.get("name")?.to_owned()),
            }
        })
        .collect()
}
