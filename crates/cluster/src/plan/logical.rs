//! Secrets, filters, networks and pools.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::difference;
use super::needs::{interfaces, needs};
use super::{Action, Context, Item, Section, Step, TRANSIENT, item};
use crate::node::Object;
use crate::xml::Element;

/// What can be defined again, in the order of what needs what.
const KINDS: [&str; 4] = ["secret", "nwfilter", "network", "pool"];
/// Of a pool: how full it is.
const FILLING: [&str; 3] = ["capacity", "allocation", "available"];

pub(super) fn items(cx: &mut Context<'_>) -> Vec<Item> {
    let objects = &cx.document.logical.objects;
    let mut items = Vec::new();
    for kind in KINDS {
        let ours: Vec<&Object> = objects.iter().filter(|one| one.kind == kind).collect();
        for object in ordered(ours) {
            items.push(logical(cx, object));
        }
    }
    for object in objects {
        if !KINDS.contains(&object.kind.as_str()) {
            let why = "this program cannot define anything of this kind";
            items.push(item(Section::Logical, &object.kind, &object.name).cannot(why));
        }
    }
    items.extend(files(cx));
    items.extend(unknown(
        Section::Logical,
        objects,
        &cx.live.document.logical.objects,
    ));
    items
}

/// What is on the node and not in the backup.
pub(super) fn unknown(section: Section, then: &[Object], now: &[Object]) -> Vec<Item> {
    let known = |object: &&Object| find(then, object).is_none();
    let unknown = now.iter().filter(known);
    unknown
        .map(|object| item(section, &object.kind, &object.name).unknown())
        .collect()
}

/// The same object in a list: by its UUID, else by its name.
pub(super) fn find<'a>(among: &'a [Object], object: &Object) -> Option<&'a Object> {
    let mut ours = among.iter().filter(|one| one.kind == object.kind);
    let by_uuid = ours
        .clone()
        .find(|one| object.uuid.is_some() && one.uuid == object.uuid);
    by_uuid.or_else(|| ours.find(|one| one.name == object.name))
}

/// Filters after those that they refer to; others stay as they are.
fn ordered(objects: Vec<&Object>) -> Vec<&Object> {
    let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let names: BTreeSet<&str> = objects.iter().map(|object| object.name.as_str()).collect();
    for object in &objects {
        let found = Element::parse(&object.definition).map(|element| needs(&element).filters);
        let mut found = found.unwrap_or_default();
        found.retain(|name| *name != object.name && names.contains(name.as_str()));
        wanted.insert(&object.name, found);
    }
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut left = objects;
    let mut order = Vec::new();
    while !left.is_empty() {
        let ready = |object: &&Object| {
            let wants = &wanted[object.name.as_str()];
            wants.iter().all(|name| done.contains(name.as_str()))
        };
        let (mut now, mut later): (Vec<_>, Vec<_>) = left.into_iter().partition(ready);
        if now.is_empty() {
            // A circle: libvirt says what it thinks of it.
            now.append(&mut later);
        }
        done.extend(now.iter().map(|object| object.name.as_str()));
        order.append(&mut now);
        left = later;
    }
    order
}

fn logical(cx: &mut Context<'_>, object: &Object) -> Item {
    let mut one = item(Section::Logical, &object.kind, &object.name);
    let (mut definition, mut then) = match cx.mapped(&object.definition) {
        Ok(mapped) => mapped,
        Err(why) => return one.cannot(format!("its definition cannot be read: {why}")),
    };
    let live = find(&cx.live.document.logical.objects, object);
    if let Some(live) = live {
        if live.name != object.name {
            let why = format!("this node has it as {}; rename or remove that", live.name);
            return one.cannot(why);
        }
        if let Err(why) = keep_uuid(object, live, &mut definition, &mut then) {
            return one.cannot(why);
        }
        let mut now = match Element::parse(&live.definition) {
            Ok(now) => now,
            Err(why) => return one.cannot(format!("what this node has cannot be read: {why}")),
        };
        if object.kind == "pool" {
            then.remove(&FILLING);
            now.remove(&FILLING);
        }
        one.differences = difference(&now, &then);
    }
    let is_transient = object.parts.iter().any(|part| part.kind == TRANSIENT);
    let had = |kind: &str| live.is_some_and(|live| live.parts.iter().any(|part| part.kind == kind));
    match (is_transient, live) {
        (true, None) => {
            if let Some(folder) = missing_folder(cx, &then) {
                return one.left_alone(format!(
                    "it had no definition that outlives it, and its folder {folder} is not there"
                ));
            }
            one.steps.push(Step::StartTransient { definition });
        }
        (true, Some(_)) if !one.differences.is_empty() => {
            return one.left_alone(
                "it had no definition that outlives it, and this node has one of that name",
            );
        }
        (false, _) if live.is_none() || !one.differences.is_empty() => {
            one.steps.push(Step::Define { definition });
        }
        (false, _) if had(TRANSIENT) => {
            one.differences
                .push("it has no definition that outlives it".to_owned());
            one.steps.push(Step::Define { definition });
        }
        _ => {}
    }
    if !is_transient {
        switch(cx, object, live, &then, &mut one);
    }
    if object.kind == "secret" {
        set_value(cx, object, live, &mut one);
    }
    one.action = match live {
        None => Action::Create,
        Some(_) if one.steps.is_empty() => Action::Same,
        Some(live) => {
            warn_of_running(object, live, &mut one);
            Action::Change
        }
    };
    warn_of_interfaces(cx, &then, &mut one);
    one
}

/// A step where the node has another value, or a warning where it will have none.
fn set_value(cx: &Context<'_>, object: &Object, live: Option<&Object>, one: &mut Item) {
    let given = cx.live.secrets.as_ref();
    let differs = given.and_then(|given| given.values.get(object.uuid.as_ref()?));
    match differs {
        Some(true) => {
            one.steps.push(Step::SetValue);
            if live.is_some() {
                one.differences.push("its value".to_owned());
            }
        }
        Some(false) => {}
        None if live.is_none() => {
            let why = match given {
                Some(_) => "the backup holds no value of it",
                None => "its value is sealed in the backup, or not there (--secrets-identity)",
            };
            let name = &object.name;
            one.warnings.push(format!(
                "{why}: virsh secret-set-value {name} --interactive"
            ));
        }
        None => {}
    }
}

/// Files of the node's own that it has lost.
fn files(cx: &Context<'_>) -> Vec<Item> {
    let given = cx.live.secrets.as_ref();
    let all = given.into_iter().flat_map(|given| &given.files);
    let items = all.map(|(name, is_missing)| {
        let mut one = item(Section::Logical, "file", name);
        if *is_missing {
            one.action = Action::Create;
            one.steps.push(Step::KeepFile);
        }
        one
    });
    items.collect()
}

/// Guests name networks, pools and filters by name, so one that was made again since under another
/// UUID is the same to them, and keeps it. A secret is found by its UUID only.
fn keep_uuid(
    object: &Object,
    live: &Object,
    definition: &mut String,
    then: &mut Element,
) -> Result<(), String> {
    let (Some(ours), Some(theirs)) = (&object.uuid, &live.uuid) else {
        return Ok(());
    };
    if ours == theirs {
        return Ok(());
    }
    let child = then.children_mut().find(|child| child.name == "uuid");
    if let Some(child) = child {
        child.set_text(theirs);
        *definition = then.to_xml()?;
    }
    Ok(())
}

/// Steps that start it, now and with the host.
fn switch(
    cx: &Context<'_>,
    object: &Object,
    live: Option<&Object>,
    then: &Element,
    one: &mut Item,
) {
    let is_active = live.and_then(|live| live.active).unwrap_or(false);
    if matches!(object.kind.as_str(), "network" | "pool")
        && object.active == Some(true)
        && !is_active
    {
        // Only a folder is made: to build another pool may be to format it.
        if then.get("type") == Some("dir") && missing_folder(cx, then).is_some() {
            one.steps.push(Step::BuildPool);
        }
        one.steps.push(Step::Start);
        if live.is_some() {
            one.differences.push("it is stopped".to_owned());
        }
    }
    set_autostart(object, live, one);
}

/// Where a pool lies, if that is not there.
fn missing_folder(cx: &Context<'_>, pool: &Element) -> Option<String> {
    let folder = pool.at(&["target", "path"]).map(Element::text)?;
    let is_missing = pool.name == "pool" && cx.live.missing_paths.contains(&folder);
    is_missing.then_some(folder)
}

/// A step where it differs.
pub(super) fn set_autostart(object: &Object, live: Option<&Object>, one: &mut Item) {
    let now = live.and_then(|live| live.autostart).unwrap_or(false);
    if let Some(on) = object.autostart
        && on != now
    {
        one.steps.push(Step::Autostart { on });
        if live.is_some() {
            one.differences.push(format!("autostart: {now} -> {on}"));
        }
    }
}

fn warn_of_running(object: &Object, live: &Object, one: &mut Item) {
    let defines = one
        .steps
        .iter()
        .any(|step| matches!(step, Step::Define { .. }));
    if defines && live.active == Some(true) && matches!(object.kind.as_str(), "network" | "pool") {
        one.warnings.push(format!(
            "it goes on as it is until it is restarted: guests may be using this {}",
            object.kind
        ));
    }
}

fn warn_of_interfaces(cx: &Context<'_>, then: &Element, one: &mut Item) {
    warn_of_missing_interfaces(cx, &interfaces(then), one);
}

/// Interfaces that are not here, and that neither a network nor this plan makes.
pub(super) fn warn_of_missing_interfaces(
    cx: &Context<'_>,
    wanted: &BTreeSet<String>,
    one: &mut Item,
) {
    let interfaces = &cx.live.document.hardware.interfaces;
    for name in wanted {
        let is_here = interfaces.iter().any(|interface| interface.name == *name);
        let is_made = cx.made_bridges.contains(name) || cx.made.interfaces.contains(name);
        if is_here || is_made {
            continue;
        }
        one.warnings.push(format!(
            "this host has no interface {name}: make it, or give --map {name}=NEW"
        ));
    }
}
