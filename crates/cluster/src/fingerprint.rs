//! Whether the configuration of a node is another one: a hash of it, without what comes and goes while
//! nobody changes anything.

use crate::hash::Hash;
use crate::node::{InterfaceKind, NodeDocument, Object};
use crate::xml::Element;

/// Of a pool: how full it is.
const FILLING: [&str; 3] = ["capacity", "allocation", "available"];
/// Parts of a guest that it writes itself, or that are there while it runs.
const OF_RUNNING: [&str; 2] = ["live", "nvram"];
/// A part of what is gone when it is stopped, such as a twin.
const TRANSIENT: &str = "transient";

impl NodeDocument {
    /// SHA-256, in hexadecimal, of what somebody configured: not when it was taken and by which version, not
    /// what runs, how full a pool is, the states of network cards, drivers, or the interfaces of guests.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Hash::new();
        let mut hardware = self.hardware.clone();
        hardware.interfaces.retain(|interface| {
            use InterfaceKind::{Bond, Bridge, Physical, Vlan};
            matches!(interface.kind, Physical | Bridge | Bond | Vlan)
        });
        for interface in &mut hardware.interfaces {
            interface.state = None;
        }
        // A device of a running guest has another driver.
        for device in &mut hardware.pci {
            device.driver = None;
        }
        add(
            &mut hash,
            &[&self.id, self.name.as_str(), &format!("{hardware:?}")],
        );
        for setting in &self.r#virtual.settings {
            add(&mut hash, &[&setting.name, &setting.value]);
        }
        for object in self.logical.objects.iter().chain(&self.r#virtual.objects) {
            if object.parts.iter().all(|part| part.kind != TRANSIENT) {
                add_object(&mut hash, object);
            }
        }
        hash.hex()
    }
}

fn add_object(hash: &mut Hash, object: &Object) {
    let definition = match object.kind.as_str() {
        "pool" => without_filling(&object.definition),
        _ => object.definition.clone(),
    };
    let autostart = format!("{:?}", object.autostart);
    add(
        hash,
        &[
            &object.by,
            &object.kind,
            &object.name,
            &autostart,
            &definition,
        ],
    );
    for part in &object.parts {
        if OF_RUNNING.contains(&part.kind.as_str()) {
            continue;
        }
        add(hash, &[&part.kind, &part.name]);
        if part.kind != "volume" {
            add(hash, &[&part.content]);
        }
    }
}

fn without_filling(definition: &str) -> String {
    let parsed = Element::parse(definition);
    let stripped = parsed.and_then(|mut pool| {
        pool.remove(&FILLING);
        pool.to_xml()
    });
    stripped.unwrap_or_else(|_| definition.to_owned())
}

/// Adds texts with their lengths, so that no two lists are one.
fn add(hash: &mut Hash, texts: &[&str]) {
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
}
