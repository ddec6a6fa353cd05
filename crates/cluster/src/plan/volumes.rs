//! Volumes: whether they are there. A backup of a configuration holds no data, so one that is not
//! there is told of; it is made, empty, only where that was asked for.

use std::collections::BTreeSet;

use super::logical::find;
use super::{Action, Context, Item, Section, Step, item};
use crate::node::{Object, Part};
use crate::xml::Element;

pub(super) fn items(cx: &mut Context<'_>) -> Vec<Item> {
    let document = cx.document;
    let pools = document.logical.objects.iter();
    let mut items = Vec::new();
    for pool in pools.filter(|object| object.kind == "pool") {
        let volumes = pool.parts.iter().filter(|part| part.kind == "volume");
        let mut found: Vec<Volume> = volumes.map(|part| volume(cx, pool, part)).collect();
        base_first(&mut found);
        items.extend(found.into_iter().map(|volume| volume.item));
    }
    items
}

struct Volume {
    item: Item,
    path: Option<String>,
    base: Option<String>,
}

/// Images after those that they lie over.
fn base_first(volumes: &mut Vec<Volume>) {
    let mut left: Vec<Volume> = std::mem::take(volumes);
    while !left.is_empty() {
        let waiting: BTreeSet<String> = left.iter().filter_map(|one| one.path.clone()).collect();
        let must_wait = |one: &Volume| one.base.as_ref().is_some_and(|base| waiting.contains(base));
        let (later, mut now): (Vec<_>, Vec<_>) = left.into_iter().partition(must_wait);
        let circle = now.is_empty();
        volumes.append(&mut now);
        left = later;
        if circle {
            volumes.append(&mut left);
        }
    }
}

fn volume(cx: &mut Context<'_>, pool: &Object, part: &Part) -> Volume {
    let name = format!("{}/{}", pool.name, part.name);
    let one = item(Section::Logical, "volume", &name);
    let (definition, element) = match cx.mapped(&part.content) {
        Ok(mapped) => mapped,
        Err(why) => {
            return Volume {
                item: one.cannot(format!("its definition cannot be read: {why}")),
                path: None,
                base: None,
            };
        }
    };
    let path = element.at(&["target", "path"]).map(Element::text);
    let base = element.at(&["backingStore", "path"]).map(Element::text);
    let item = match is_there(cx, pool, part, path.as_deref()) {
        Some(true) => one,
        // Steps find out by themselves whether it is there.
        Some(false) | None if cx.options.create_volumes => create(one, pool, part, definition),
        Some(false) => one.cannot(
            "it is not there, and a backup of a configuration holds no data: restore the guest's \
             disks (vmtwin restore), or give --create-volumes for empty ones",
        ),
        None => one,
    };
    Volume { item, path, base }
}

fn create(mut one: Item, pool: &Object, part: &Part, definition: String) -> Item {
    one.action = Action::Create;
    one.warnings
        .push("it is made empty: its data is not in this backup".to_owned());
    one.steps.push(Step::CreateVolume {
        pool: pool.name.clone(),
        volume: part.name.clone(),
        definition,
    });
    one
}

/// Whether a volume is there; `None` where only its pool can tell, once it is started.
fn is_there(cx: &Context<'_>, pool: &Object, part: &Part, path: Option<&str>) -> Option<bool> {
    let path = path.filter(|path| path.starts_with('/'));
    if path.is_some_and(|path| !cx.live.missing_paths.contains(path)) {
        return Some(true);
    }
    let live = find(&cx.live.document.logical.objects, pool);
    if let Some(live) = live.filter(|live| live.active == Some(true)) {
        let mut volumes = live.parts.iter();
        return Some(volumes.any(|one| one.kind == "volume" && one.name == part.name));
    }
    let kind = Element::parse(&pool.definition).ok();
    let is_folder = kind.is_some_and(|pool| pool.get("type") == Some("dir"));
    (is_folder && path.is_some()).then_some(false)
}
