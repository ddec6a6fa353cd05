//! What a restore of one node would do, as a value: it is made of two documents, without a look at
//! anything else, and can be printed, stored and applied.
//!
//! ```text
//!   document of the backup ─ --map ─► definitions ─┐
//!   document of the node as it is now ─────────────┼─► items, each with its steps ─► order
//!   missing paths, guests elsewhere, IP addresses ─┘
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `hardware.rs` | what the host has not any more: mediated devices, virtual functions; what cannot be made |
//! | `interfaces.rs` | bridges, bonds, VLANs |
//! | `logical.rs` | secrets, filters, networks, pools |
//! | `volumes.rs` | volumes: whether they are there |
//! | `domain.rs` | guests with their snapshots and checkpoints |
//! | `needs.rs` | what a definition names that must be there |
//! | `map.rs` | `--map` |
//! | `passwords.rs` | passwords in definitions, which no document holds |
//! | `difference.rs` | differences for people |
//! | `text.rs` | the plan for people |
//!
//! What it never does: remove anything, touch a volume that is there, stop anything.

mod difference;
mod domain;
mod hardware;
mod interfaces;
mod logical;
mod map;
mod needs;
mod passwords;
mod text;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use map::{Mapping, PciAddress};
pub use passwords::{keep_passwords, passwords};

use crate::node::{Interface, NodeDocument, Object};
use crate::xml::Element;

/// Part of a domain: the name of its current snapshot.
pub const CURRENT_SNAPSHOT: &str = "current-snapshot";
/// Part of a domain, a network or a pool: it has no definition that outlives it.
pub const TRANSIENT: &str = "transient";
/// Part of a domain: its UEFI variables, in base64; the name is the path of their file.
pub const NVRAM: &str = "nvram";
/// What is to be said of each thing that a host's own configuration makes at its next start, or not.
const UNTIL_BOOT: &str =
    "until the host starts again: write it into the host's own configuration too";

/// A part of a node, in the order of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// What the node is made of: compared, and what is a matter of configuration made again.
    Hardware,
    /// What is defined for guests to use.
    Logical,
    /// The guests.
    Virtual,
}

/// What is to be restored, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// These parts only; empty: all.
    pub sections: Vec<Section>,
    /// Names of the old host and what they are here.
    pub maps: Vec<Mapping>,
    /// The host is another one: its hardware is not compared as such, and of interfaces only those
    /// are made that guests and networks need.
    pub to_new_hardware: bool,
    /// Guests that run get their definition too, for their next start.
    pub force: bool,
    /// Volumes that are not there are made, empty.
    pub create_volumes: bool,
    /// Guests that ran are started.
    pub start_guests: bool,
    /// Guests, by UUID, that were on another node when the backup was made, and on which: this node's
    /// configuration in it is an older one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<String, String>,
}

/// The node as it is now.
#[derive(Debug)]
pub struct Live<'a> {
    /// Its configuration.
    pub document: &'a NodeDocument,
    /// Those of [`paths`] that are not there.
    pub missing_paths: BTreeSet<String>,
    /// Guests, by UUID, that another node has: its last known configuration says so, or it was seen that
    /// they run there.
    pub elsewhere: BTreeMap<String, String>,
    /// Interfaces with an IP address, by which the host may be reached.
    pub addressed: BTreeSet<String>,
    /// What is known of the secrets of the backup, where they were opened.
    pub secrets: Option<GivenSecrets>,
}

/// What a plan wants to know of secrets: which there are, and not what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenSecrets {
    /// UUIDs of libvirt's secrets whose values there are, and whether the node has another one, or none.
    pub values: BTreeMap<String, bool>,
    /// Names of guests with passwords, and whether the node's guest has others.
    pub passwords: BTreeMap<String, bool>,
    /// Files of the node's own, and whether it has none of that name: one that is there stays.
    pub files: BTreeMap<String, bool>,
}

/// What a restore would do with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is not there and will be.
    Create,
    /// It is there, and will be as it was.
    Change,
    /// It is as it was.
    Same,
    /// It cannot be restored; `why` says why and what to do.
    Cannot,
    /// It could be, and is not: a running guest, a guest of another node.
    LeftAlone,
    /// The backup does not know it; it stays.
    Unknown,
}

/// One thing and what a restore would do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The part it belongs to.
    pub section: Section,
    /// `pci`, `network`, `pool`, `volume`, `domain`…
    pub kind: String,
    /// Its name; a volume's is `POOL/VOLUME`.
    pub name: String,
    /// What would be done.
    pub action: Action,
    /// How it differs from what it was, a line each.
    pub differences: Vec<String>,
    /// Why it is not restored, or left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What will be missing afterwards, and what to do.
    pub warnings: Vec<String>,
    /// What is done, in this order; each may be repeated.
    pub steps: Vec<Step>,
}

/// One step. Each may be repeated, and finds out by itself whether it is done already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Makes a bridge, a bond or a VLAN, and switches it on.
    AddInterface {
        /// What it is.
        interface: Interface,
    },
    /// Makes an interface a port of a bridge or of a bond.
    AddPort {
        /// The port.
        port: String,
        /// The bridge or bond.
        to: String,
        /// It is the bond's first choice.
        primary: bool,
    },
    /// Gives a PCI function, which has none, virtual ones.
    SetVirtualFunctions {
        /// Its address.
        address: String,
        /// How many.
        count: u32,
    },
    /// Makes a mediated device.
    MakeMdev {
        /// Its UUID, in small letters.
        uuid: String,
        /// Its type, in the words of its driver.
        kind: String,
        /// The device it is a part of.
        parent: String,
    },
    /// Defines it, or changes its definition.
    Define {
        /// The definition.
        definition: String,
    },
    /// Starts it without a definition that outlives it.
    StartTransient {
        /// What it is started by.
        definition: String,
    },
    /// Gives a secret the value that the backup holds.
    SetValue,
    /// Writes a file of the node's own, where there is none.
    KeepFile,
    /// Makes a pool's folder.
    BuildPool,
    /// Starts it.
    Start,
    /// Sets whether it starts with the host.
    Autostart {
        /// Whether it does.
        on: bool,
    },
    /// Makes an empty volume, where there is none.
    CreateVolume {
        /// Its pool.
        pool: String,
        /// Its name in the pool.
        volume: String,
        /// Its definition.
        definition: String,
    },
    /// Writes a guest's UEFI variables, where there are none.
    WriteNvram {
        /// The file.
        path: String,
        /// What it holds, in base64.
        content: String,
    },
    /// Notes a snapshot again; nothing is taken.
    RedefineSnapshot {
        /// Its name.
        name: String,
        /// Its definition.
        definition: String,
        /// Whether it is the current one.
        current: bool,
    },
    /// Notes a checkpoint again; no bitmap is made.
    RedefineCheckpoint {
        /// Its name.
        name: String,
        /// Its definition.
        definition: String,
    },
}

/// What a restore of a node would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The node's name in the backup.
    pub node: String,
    /// In the order in which it is done.
    pub items: Vec<Item>,
    /// Of the whole.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.items.iter().all(|item| item.steps.is_empty())
    }

    /// Whether the node is as it was, and holds nothing else.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.items.iter().all(|item| item.action == Action::Same)
    }

    /// Whether all that the backup holds is there, or will be, with nothing to be said about it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let whole = |item: &Item| {
            item.warnings.is_empty() && !matches!(item.action, Action::Cannot | Action::LeftAlone)
        };
        self.warnings.is_empty() && self.items.iter().all(whole)
    }
}

/// All that is known while a plan is made.
struct Context<'a> {
    document: &'a NodeDocument,
    live: &'a Live<'a>,
    options: &'a Options,
    used_maps: Vec<bool>,
    /// Bridges that networks make, of the backup and of the node.
    made_bridges: BTreeSet<String>,
    /// Hardware that this plan makes.
    made: hardware::Made,
}

impl Context<'_> {
    /// A definition with `--map` applied, word for word where nothing was to be changed.
    fn mapped(&mut self, definition: &str) -> Result<(String, Element), String> {
        let mut element = Element::parse(definition)?;
        let before = self.used_maps.clone();
        self.used_maps.fill(false);
        map::apply(&self.options.maps, &mut element, &mut self.used_maps);
        let changed = self.used_maps.contains(&true);
        for (used, before) in self.used_maps.iter_mut().zip(before) {
            *used |= before;
        }
        let text = match changed {
            true => element.to_xml()?,
            false => definition.to_owned(),
        };
        Ok((text, element))
    }
}

/// What a restore of the node of `document` on the host of `live` would do. Pure.
#[must_use]
pub fn plan(document: &NodeDocument, live: &Live<'_>, options: &Options) -> Plan {
    let mut cx = Context {
        document,
        live,
        options,
        used_maps: vec![false; options.maps.len()],
        made_bridges: hardware::made_by_networks(document),
        made: hardware::Made::default(),
    };
    cx.made_bridges
        .extend(hardware::made_by_networks(live.document));
    let mut items = Vec::new();
    if options.sections.is_empty() || options.sections.contains(&Section::Hardware) {
        items = hardware::items(&cx);
        cx.made = hardware::Made::by(&items);
    }
    items.extend(logical::items(&mut cx));
    items.extend(volumes::items(&mut cx));
    items.extend(domain::items(&mut cx));
    items.retain(|item| options.sections.is_empty() || options.sections.contains(&item.section));
    let unused = options.maps.iter().zip(&cx.used_maps);
    let warnings = unused
        .filter(|(_, used)| !**used)
        .map(|(map, _)| format!("--map: nothing is called {}", map::old_name(map)))
        .collect();
    Plan {
        node: document.name.to_string(),
        items,
        warnings,
    }
}

/// Paths that the definitions name, `--map` applied: the caller tells which are not there.
#[must_use]
pub fn paths(document: &NodeDocument, options: &Options) -> BTreeSet<String> {
    let mut used = vec![false; options.maps.len()];
    let mut paths = BTreeSet::new();
    let mut add = |definition: &str, kind: &str| {
        if let Ok(mut element) = Element::parse(definition) {
            map::apply(&options.maps, &mut element, &mut used);
            paths.extend(needs::paths(&element, kind));
        }
    };
    for object in objects(document) {
        add(&object.definition, &object.kind);
        for part in object.parts.iter().filter(|part| part.kind == "volume") {
            add(&part.content, "volume");
        }
    }
    paths
}

/// Interfaces that the definitions name, `--map` applied.
fn wanted_interfaces(document: &NodeDocument, options: &Options) -> BTreeSet<String> {
    let mut used = vec![false; options.maps.len()];
    let mut wanted = BTreeSet::new();
    for object in objects(document) {
        if let Ok(mut element) = Element::parse(&object.definition) {
            map::apply(&options.maps, &mut element, &mut used);
            wanted.extend(needs::interfaces(&element));
        }
    }
    wanted
}

/// Where a domain's UEFI variables are, if its definition names a file of them.
#[must_use]
pub fn nvram_path(definition: &str) -> Option<String> {
    needs::nvram(&Element::parse(definition).ok()?)
}

fn objects(document: &NodeDocument) -> impl Iterator<Item = &Object> {
    let virtual_objects = &document.r#virtual.objects;
    document.logical.objects.iter().chain(virtual_objects)
}

/// An item of which nothing is known yet.
fn item(section: Section, kind: &str, name: &str) -> Item {
    Item {
        section,
        kind: kind.to_owned(),
        name: name.to_owned(),
        action: Action::Same,
        differences: Vec::new(),
        why: None,
        warnings: Vec::new(),
        steps: Vec::new(),
    }
}

impl Item {
    fn cannot(mut self, why: impl Into<String>) -> Item {
        self.action = Action::Cannot;
        self.why = Some(why.into());
        self.steps.clear();
        self
    }

    fn left_alone(mut self, why: impl Into<String>) -> Item {
        self.action = Action::LeftAlone;
        self.why = Some(why.into());
        self.steps.clear();
        self
    }

    fn unknown(mut self) -> Item {
        self.action = Action::Unknown;
        self
    }
}
