//! Guests, with the metadata of their snapshots and checkpoints, and their UEFI variables.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::difference;
use super::logical::{find, set_autostart, unknown, warn_of_missing_interfaces};
use super::map::cpu_set;
use super::needs::{Needs, domain_images, needs, nvram};
use super::{Action, CURRENT_SNAPSHOT, Context, Item, NVRAM, Section, Step, TRANSIENT, item};
use crate::node::{Object, Part};
use crate::xml::Element;

/// What names of files with UEFI variables end in: a backup that comes from anywhere shall not make
/// files that other programs look for.
const NVRAM_FILES: [&str; 6] = ["fd", "qcow2", "raw", "img", "bin", "nvram"];

pub(super) fn items(cx: &mut Context<'_>) -> Vec<Item> {
    let document = cx.document;
    let objects = &document.r#virtual.objects;
    let mut items: Vec<Item> = Vec::new();
    for object in objects {
        items.push(match object.kind.as_str() {
            "domain" => domain(cx, object),
            other => item(Section::Virtual, other, &object.name)
                .cannot("this program cannot define anything of this kind"),
        });
    }
    items.extend(unknown(
        Section::Virtual,
        objects,
        &cx.live.document.r#virtual.objects,
    ));
    items
}

fn domain(cx: &mut Context<'_>, object: &Object) -> Item {
    let mut one = item(Section::Virtual, "domain", &object.name);
    if object.parts.iter().any(|part| part.kind == TRANSIENT) {
        return one.left_alone("it had no definition that outlives its process");
    }
    let elsewhere = object.uuid.as_ref().and_then(|uuid| {
        let now = cx.live.elsewhere.get(uuid);
        now.or_else(|| cx.options.elsewhere.get(uuid))
    });
    if let Some(node) = elsewhere {
        return one.left_alone(format!(
            "node {node} has it, and a guest must not be on two: remove it there and run `vmtwin \
             cluster collect` there; if that node is lost: vmtwin cluster node remove {node}"
        ));
    }
    let (definition, then) = match cx.mapped(&object.definition) {
        Ok(mapped) => mapped,
        Err(why) => return one.cannot(format!("its definition cannot be read: {why}")),
    };
    let live = find(&cx.live.document.r#virtual.objects, object);
    let passwords = cx.live.secrets.as_ref();
    let passwords = passwords.and_then(|given| given.passwords.get(&object.name));
    let passwords = passwords.is_some_and(|differ| *differ);
    if let Err(why) = define(object, live, (definition, &then), passwords, &mut one) {
        return one.cannot(why);
    }
    set_autostart(object, live, &mut one);
    for result in [
        snapshots(cx, object, live, &mut one),
        checkpoints(cx, object, live, &mut one),
    ] {
        if let Err(why) = result {
            one.warnings.push(why);
        }
    }
    write_nvram(cx, object, &then, &mut one);
    let is_running = live.and_then(|live| live.active).unwrap_or(false);
    if cx.options.start_guests && object.active == Some(true) && !is_running {
        one.steps.push(Step::Start);
    }
    let needs = needs(&then);
    if let Some(why) = missing_devices(cx, &needs) {
        return match one.steps.is_empty() {
            true => one,
            false => one.cannot(why),
        };
    }
    warn(cx, &needs, &then, &mut one);
    if is_running && !one.steps.is_empty() && !cx.options.force {
        return one.left_alone("it runs; --force changes its definition, for its next start");
    }
    one.action = match (live, one.steps.is_empty()) {
        (None, _) => Action::Create,
        (Some(_), true) => Action::Same,
        (Some(_), false) => Action::Change,
    };
    one
}

fn define(
    object: &Object,
    live: Option<&Object>,
    (definition, then): (String, &Element),
    passwords: bool,
    one: &mut Item,
) -> Result<(), String> {
    if let Some(live) = live {
        if live.name != object.name {
            return Err(format!(
                "this node has it as {0}: virsh domrename {0} {1}",
                live.name, object.name
            ));
        }
        if live.uuid != object.uuid {
            return Err("this node has another guest of this name; rename that".to_owned());
        }
        let now = Element::parse(&live.definition)
            .map_err(|why| format!("what this node has cannot be read: {why}"))?;
        one.differences = difference(&now, then);
        if passwords {
            one.differences.push("its passwords".to_owned());
        }
        if one.differences.is_empty() {
            return Ok(());
        }
    }
    one.steps.push(Step::Define { definition });
    Ok(())
}

/// Names of snapshots or checkpoints, with their XML and the name of what they lie over.
fn family(parts: &[Part], kind: &str) -> Result<Vec<(String, Option<String>, String)>, String> {
    let mut all = Vec::new();
    for part in parts.iter().filter(|part| part.kind == kind) {
        let element = Element::parse(&part.content)
            .map_err(|why| format!("the {kind} {} cannot be read: {why}", part.name))?;
        let name = element
            .text_of("name")
            .ok_or_else(|| format!("the {kind} {} has no name", part.name))?;
        let parent = element.at(&["parent", "name"]).map(Element::text);
        all.push((name, parent, part.content.clone()));
    }
    // Parents first.
    let mut order = Vec::new();
    while !all.is_empty() {
        let waiting: BTreeSet<String> = all.iter().map(|(name, ..)| name.clone()).collect();
        let must_wait = |one: &(String, Option<String>, String)| {
            one.1
                .as_ref()
                .is_some_and(|parent| waiting.contains(parent))
        };
        let (later, mut now): (Vec<_>, Vec<_>) = all.into_iter().partition(must_wait);
        if now.is_empty() {
            return Err(format!("its {kind}s go round in a circle"));
        }
        order.append(&mut now);
        all = later;
    }
    Ok(order)
}

fn names(live: Option<&Object>, kind: &str) -> BTreeMap<String, String> {
    let parts = live.map(|live| live.parts.as_slice()).unwrap_or_default();
    let family = family(parts, kind).unwrap_or_default();
    let named = family.into_iter().map(|(name, _, xml)| (name, xml));
    named.collect()
}

fn snapshots(
    cx: &mut Context<'_>,
    object: &Object,
    live: Option<&Object>,
    one: &mut Item,
) -> Result<(), String> {
    let here = names(live, "snapshot");
    let mut parts = object.parts.iter();
    let current = parts.find(|part| part.kind == CURRENT_SNAPSHOT);
    for (name, _, xml) in family(&object.parts, "snapshot")? {
        let (definition, then) = cx.mapped(&xml)?;
        if let Some(now) = here.get(&name) {
            warn_of_another("snapshot", &name, now, &then, one);
            continue;
        }
        if live.is_some() {
            one.differences.push(format!("+ snapshot {name}"));
        }
        one.steps.push(Step::RedefineSnapshot {
            current: current.is_some_and(|current| current.name == name),
            name,
            definition,
        });
    }
    Ok(())
}

fn checkpoints(
    cx: &mut Context<'_>,
    object: &Object,
    live: Option<&Object>,
    one: &mut Item,
) -> Result<(), String> {
    let here = names(live, "checkpoint");
    for (name, _, xml) in family(&object.parts, "checkpoint")? {
        let (definition, then) = cx.mapped(&xml)?;
        if let Some(now) = here.get(&name) {
            warn_of_another("checkpoint", &name, now, &then, one);
            continue;
        }
        if live.is_some() {
            one.differences.push(format!("+ checkpoint {name}"));
        }
        one.steps
            .push(Step::RedefineCheckpoint { name, definition });
    }
    Ok(())
}

/// A snapshot is what it was when it was taken: one of the same name is never changed.
fn warn_of_another(kind: &str, name: &str, now: &str, then: &Element, one: &mut Item) {
    let time = |element: &Element| element.text_of("creationTime");
    let now = Element::parse(now).ok();
    if now.is_some_and(|now| time(&now) != time(then)) {
        one.warnings.push(format!(
            "the {kind} {name} here was taken at another time; it stays as it is"
        ));
    }
}

fn write_nvram(cx: &Context<'_>, object: &Object, then: &Element, one: &mut Item) {
    let Some(path) = nvram(then) else { return };
    if !cx.live.missing_paths.contains(&path) {
        return;
    }
    // Without them the guest was never started, and its template makes new ones.
    let Some(part) = object.parts.iter().find(|part| part.kind == NVRAM) else {
        return;
    };
    let kind = path.rsplit_once('.').map(|(_, kind)| kind);
    let leads_up = path.split('/').any(|part| part == "..");
    if leads_up || !kind.is_some_and(|kind| NVRAM_FILES.contains(&kind)) {
        let why = format!("{path} is no name for UEFI variables; they are not written");
        return one.warnings.push(why);
    }
    one.differences.push(format!("+ UEFI variables {path}"));
    one.steps.push(Step::WriteNvram {
        path,
        content: part.content.clone(),
    });
}

/// Why a guest cannot be defined: a device that is passed to it is not here.
fn missing_devices(cx: &Context<'_>, needs: &Needs) -> Option<String> {
    let hardware = &cx.live.document.hardware;
    let pci = hardware.pci.iter().map(|pci| pci.address.clone());
    let pci: BTreeSet<String> = pci.chain(cx.made.pci.iter().cloned()).collect();
    let mdevs = hardware.mdevs.iter().map(|mdev| mdev.uuid.to_lowercase());
    let mdevs: BTreeSet<String> = mdevs.chain(cx.made.mdevs.iter().cloned()).collect();
    if let Some(address) = needs.pci.difference(&pci).next() {
        return Some(format!(
            "this host has no PCI device {address}: give --map {address}=NEW"
        ));
    }
    let uuid = needs.mdevs.difference(&mdevs).next()?;
    let mut then = cx.document.hardware.mdevs.iter();
    Some(match then.find(|mdev| mdev.uuid.to_lowercase() == *uuid) {
        Some(mdev) => format!(
            "this host has no mediated device {uuid}: mdevctl start --uuid {uuid} --parent {} \
             --type {}, or give --map {uuid}=NEW",
            mdev.parent, mdev.kind
        ),
        None => format!("this host has no mediated device {uuid}: give --map {uuid}=NEW"),
    })
}

/// What a guest will miss when it is started.
fn warn(cx: &Context<'_>, needs: &Needs, then: &Element, one: &mut Item) {
    warn_of_missing_interfaces(cx, &needs.interfaces, one);
    for (kind, wanted) in [
        ("network", &needs.networks),
        ("pool", &needs.pools),
        ("nwfilter", &needs.filters),
        ("secret", &needs.secrets),
    ] {
        for name in wanted {
            let then = &cx.document.logical.objects;
            let mut all = then.iter().chain(&cx.live.document.logical.objects);
            if !all.any(|object| object.kind == kind && object.name == *name) {
                one.warnings
                    .push(format!("neither backup nor node has the {kind} {name}"));
            }
        }
    }
    for path in domain_images(then) {
        if cx.live.missing_paths.contains(&path) {
            one.warnings.push(format!(
                "{path} is not there: restore it (vmtwin restore), or give --map"
            ));
        }
    }
    let online = cx.live.document.hardware.processor.online.as_deref();
    if let Some(online) = online.and_then(cpu_set) {
        let online: BTreeSet<u32> = online.into_iter().collect();
        if let Some(cpu) = needs.cpus.difference(&online).next() {
            one.warnings.push(format!(
                "this host has no processor {cpu}: give --map cpus:{cpu}=NEW"
            ));
        }
    }
}
