//! Hardware of two documents. What is a matter of configuration is made again where it is not there
//! (interfaces, mediated devices, virtual functions); what is missing else is told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::difference::difference_of_fields;
use super::map::{PciAddress, is_uuid};
use super::{Action, Context, Item, Section, Step, UNTIL_BOOT, interfaces, item};
use crate::node::{Hardware, Mdev, NodeDocument, Pci};
use crate::xml::Element;

/// Longest name of a type of mediated devices, or of what they are a part of.
const MAX_MDEV_NAME: usize = 100;

/// Each thing but interfaces by a name of its own, with what is to be compared of it: not what changes
/// while all stays the same. A function's driver is another while a guest has it, its IOMMU group is
/// numbered at each start, and kernels keep more or less of the memory for themselves.
fn things(hardware: &Hardware) -> BTreeMap<String, Value> {
    // Values of our own types, which JSON can always hold.
    let value = |result: Result<Value, _>| result.unwrap_or(Value::Null);
    let mut things = BTreeMap::new();
    let processor = value(serde_json::to_value(&hardware.processor));
    things.insert("processor".to_owned(), processor);
    let memory_gib = hardware.memory.bytes.div_ceil(1 << 30);
    things.insert("memory".to_owned(), json!({"GiB": memory_gib}));
    for pci in &hardware.pci {
        let mut fields = value(serde_json::to_value(pci));
        for passing in ["@driver", "@iommu-group"] {
            fields.as_object_mut().map(|all| all.remove(passing));
        }
        things.insert(format!("pci {}", pci.address), fields);
    }
    for mdev in &hardware.mdevs {
        let name = format!("mdev {}", mdev.uuid);
        things.insert(name, value(serde_json::to_value(mdev)));
    }
    things
}

/// What of the hardware is not as it was. On new hardware only what guests and networks need.
pub(super) fn items(cx: &Context<'_>) -> Vec<Item> {
    let mut items = Vec::new();
    if !cx.options.to_new_hardware {
        devices(cx, &mut items);
    }
    items.extend(interfaces::items(cx));
    let is_whole = items.iter().all(|item| item.action == Action::Unknown);
    if is_whole && !cx.options.to_new_hardware {
        let host = &cx.document.hardware.host.name;
        items.push(item(Section::Hardware, "host", host));
    }
    items
}

/// Processors, memory, PCI functions and mediated devices.
fn devices(cx: &Context<'_>, items: &mut Vec<Item>) {
    let (then, now) = (&cx.document.hardware, &cx.live.document.hardware);
    let switched_on = virtual_functions(then, now);
    let mdevs = then.mdevs.iter().map(|mdev| (mdev.uuid.as_str(), mdev));
    let mdevs: BTreeMap<&str, &Mdev> = mdevs.collect();
    let pci = then.pci.iter().map(|pci| (pci.address.as_str(), pci));
    let pci: BTreeMap<&str, &Pci> = pci.collect();
    let (old, new) = (things(then), things(now));
    for (thing, value) in &old {
        let (kind, name) = thing.split_once(' ').unwrap_or((thing, ""));
        let mut one = item(Section::Hardware, kind, name);
        let Some(other) = new.get(thing) else {
            items.push(match (kind, mdevs.get(name), pci.get(name)) {
                ("mdev", Some(mdev), _) => missing_mdev(mdev, now, one),
                (_, _, Some(pci)) => missing_function(pci, &switched_on, one),
                _ => one.cannot("this host has it no more"),
            });
            continue;
        };
        if other == value {
            continue;
        }
        one.differences = difference_of_fields(other, value);
        items.push(match switched_on.get(name) {
            Some(count) if kind == "pci" => {
                one.action = Action::Change;
                one.steps.push(Step::SetVirtualFunctions {
                    address: name.to_owned(),
                    count: *count,
                });
                one.warnings.push(UNTIL_BOOT.to_owned());
                one
            }
            _ => one.cannot("this host has another"),
        });
    }
    for thing in new.keys().filter(|thing| !old.contains_key(*thing)) {
        let (kind, name) = thing.split_once(' ').unwrap_or((thing, ""));
        items.push(item(Section::Hardware, kind, name).unknown());
    }
}

/// PCI functions that had virtual ones and have none now, but can, with how many they had. Where
/// there are some, guests may use them: their number could be changed only by taking all away.
fn virtual_functions<'a>(then: &'a Hardware, now: &Hardware) -> BTreeMap<&'a str, u32> {
    let could = |pci: &&Pci| {
        let count = pci.sriov.filter(|count| *count > 0);
        count.is_some_and(|count| {
            now.pci.iter().any(|now| {
                let is_it = now.address == pci.address && now.id == pci.id;
                let address: Result<PciAddress, ()> = now.address.parse();
                let is_off = now.sriov == Some(0) && now.sriov_max >= Some(count);
                is_it && address.is_ok() && is_off
            })
        })
    };
    let all = then.pci.iter().filter(could);
    all.map(|pci| (pci.address.as_str(), pci.sriov.unwrap_or(0)))
        .collect()
}

fn missing_function(pci: &Pci, switched_on: &BTreeMap<&str, u32>, mut one: Item) -> Item {
    match &pci.physical {
        Some(of) if switched_on.contains_key(of.as_str()) => {
            // It comes with the others.
            one.action = Action::Create;
            one.differences
                .push(format!("as a virtual function of {of}"));
            one
        }
        Some(of) => one.cannot(format!("it is no virtual function of {of} any more")),
        None => one.cannot("this host has it no more"),
    }
}

fn missing_mdev(mdev: &Mdev, now: &Hardware, mut one: Item) -> Item {
    let is_name = |name: &str| {
        let allowed = |c: char| c.is_ascii_graphic() && c != '/';
        let is_short = (1..=MAX_MDEV_NAME).contains(&name.len());
        is_short && !name.starts_with('.') && name.chars().all(allowed)
    };
    if !is_uuid(&mdev.uuid) || !is_name(&mdev.parent) || !is_name(&mdev.kind) {
        return one.cannot("the backup says what cannot be");
    }
    let on_pci: Result<PciAddress, ()> = mdev.parent.parse();
    if on_pci.is_ok() && !now.pci.iter().any(|pci| pci.address == mdev.parent) {
        let parent = &mdev.parent;
        return one.cannot(format!("{parent}, which it is a part of, is not here"));
    }
    one.action = Action::Create;
    one.steps.push(Step::MakeMdev {
        uuid: mdev.uuid.to_lowercase(),
        kind: mdev.kind.clone(),
        parent: mdev.parent.clone(),
    });
    one.warnings.push(UNTIL_BOOT.to_owned());
    one
}

/// What will be on the host beside what is: names of interfaces, addresses of PCI functions, UUIDs
/// of mediated devices.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) interfaces: BTreeSet<String>,
    pub(super) pci: BTreeSet<String>,
    pub(super) mdevs: BTreeSet<String>,
}

impl Made {
    pub(super) fn by(items: &[Item]) -> Made {
        let made = |kind: &str| {
            let all = items.iter();
            let made = all.filter(|item| item.kind == kind && item.action == Action::Create);
            made.map(|item| item.name.clone()).collect::<BTreeSet<_>>()
        };
        Made {
            interfaces: made("interface"),
            pci: made("pci"),
            mdevs: made("mdev")
                .iter()
                .map(|uuid| uuid.to_lowercase())
                .collect(),
        }
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
