//! `vmtwin cluster view`: what a backup holds, for people and as JSON.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use vmtwin_cluster::manifest::{HeldSecrets, Manifest, Node, NodeState, Sealed};
use vmtwin_cluster::node::{InterfaceKind, NodeDocument, Object, Objects};
use vmtwin_cluster::{Archive, EntryPath, NodeName};

use super::at;
use crate::cluster;
use crate::cluster::cli::DeviceType;
use crate::ui::Ui;

/// What a backup says of itself, and the nodes of it that it holds: all, or one.
pub(super) fn read_nodes(
    file: &Path,
    node: Option<&NodeName>,
) -> Result<(Manifest, Vec<NodeDocument>)> {
    let mut archive = Archive::open(file)?;
    let manifest = archive.manifest().clone();
    if let Some(name) = node
        && !manifest.nodes.iter().any(|one| one.name == *name)
    {
        bail!("{} holds no node {name}", file.display());
    }
    let mut documents = Vec::new();
    for one in &manifest.nodes {
        let wanted = node.is_none_or(|name| one.name == *name);
        if wanted && manifest.entry(&EntryPath::Node(one.name.clone())).is_some() {
            documents.push(cluster::read_node(&mut archive, &one.name)?);
        }
    }
    Ok((manifest, documents))
}

/// Text of a file that comes from anywhere: other control characters than these would act on the
/// terminal.
pub(super) fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => '?',
        c => c,
    };
    text.chars().map(plain).collect()
}

pub(super) fn mapping_view(ui: &Ui, documents: &[NodeDocument]) -> Result<()> {
    let nodes = documents.iter().map(|document| {
        let chains = vmtwin_cluster::chains(document);
        json!({"node": document.name, "chains": chains})
    });
    let nodes: Vec<Value> = nodes.collect();
    ui.result(&nodes, || {
        let mut lines = Vec::new();
        for document in documents {
            lines.push(format!("node {}", document.name));
            lines.extend(vmtwin_cluster::chains(document).iter().map(|chain| {
                let (guest, device) = (&chain.guest, &chain.device);
                format!("  {guest} {device} -> {}", chain.links.join(" -> "))
            }));
        }
        plain(&lines.join("\n"))
    })
}

pub(super) fn view(
    ui: &Ui,
    manifest: &Manifest,
    documents: &[NodeDocument],
    kind: Option<DeviceType>,
    detail: bool,
) -> Result<()> {
    let shown: Vec<Value> = documents
        .iter()
        .map(|document| document_json(document, kind))
        .collect::<Result<_>>()?;
    let result = json!({"manifest": manifest, "nodes": shown});
    ui.result(&result, || {
        let mut lines = manifest_lines(manifest);
        for document in documents {
            lines.push(String::new());
            lines.extend(document_lines(document, kind, detail));
        }
        plain(&lines.join("\n"))
    })
}

fn document_json(document: &NodeDocument, kind: Option<DeviceType>) -> Result<Value> {
    let mut value = serde_json::to_value(document)?;
    if let (Some(fields), Some(kind)) = (value.as_object_mut(), kind) {
        for (name, other) in [
            ("hardware", DeviceType::Hardware),
            ("logical", DeviceType::Logical),
            ("virtual", DeviceType::Virtual),
        ] {
            if other != kind {
                fields.remove(name);
            }
        }
    }
    Ok(value)
}

fn manifest_lines(manifest: &Manifest) -> Vec<String> {
    let mut lines = vec![format!(
        "cluster {} ({}), {} UTC, by {}",
        manifest.cluster.name,
        manifest.cluster.id,
        at(manifest.time),
        manifest.coordinator
    )];
    if let Some(database) = &manifest.database {
        lines.push(format!(
            "  database: schema {}, {} rows",
            database.schema, database.rows
        ));
    }
    lines.extend(manifest.nodes.iter().map(|node| {
        let state = match node.state {
            NodeState::Collected => "collected".to_owned(),
            NodeState::LastKnown => format!("last known, of {}", node.as_of.map_or("?".into(), at)),
            NodeState::Missing => "MISSING".to_owned(),
        };
        let secrets = match (&manifest.sealed, node.secrets) {
            (Some(_), Some(_)) => ", with its secrets",
            (Some(_), None) => ", WITHOUT its secrets",
            (None, _) => "",
        };
        format!("  node {}: {state}{secrets}", node.name)
    }));
    let sealed = manifest.sealed.as_ref();
    lines.extend(sealed.map(|sealed| format!("  {}", sealed_text(sealed, &manifest.nodes))));
    lines
}

fn document_lines(document: &NodeDocument, kind: Option<DeviceType>, detail: bool) -> Vec<String> {
    let mut lines = vec![format!(
        "node {}, {} UTC",
        document.name,
        at(document.taken_at)
    )];
    let wanted = |one| kind.is_none_or(|kind| kind == one);
    if wanted(DeviceType::Hardware) {
        lines.extend(hardware_lines(document, detail));
    }
    if wanted(DeviceType::Logical) {
        lines.extend(object_lines("logical", &document.logical, detail));
    }
    if wanted(DeviceType::Virtual) {
        lines.extend(object_lines("virtual", &document.r#virtual, detail));
    }
    lines
}

fn hardware_lines(document: &NodeDocument, detail: bool) -> Vec<String> {
    let hardware = &document.hardware;
    let processor = &hardware.processor;
    let mut lines = vec![
        format!(
            "  host       {}, {} on {}",
            hardware.host.name,
            hardware.host.system.as_deref().unwrap_or("?"),
            hardware.host.architecture
        ),
        format!(
            "  processor  {} threads, {} cores, {} sockets; {}",
            processor.threads,
            processor.cores,
            processor.sockets,
            processor.model.as_deref().unwrap_or("?")
        ),
        format!("  memory     {} MiB", hardware.memory.bytes >> 20),
    ];
    if detail {
        let id = hardware.host.machine_id.as_deref().unwrap_or("?");
        let board = hardware.host.board.as_deref().unwrap_or("?");
        let kernel = &hardware.host.kernel;
        lines.push(format!(
            "  host       machine-id {id}, {board}, kernel {kernel}"
        ));
        lines.extend(hardware.numa_nodes.iter().map(|node| {
            let memory_mib = node.memory_bytes.unwrap_or(0) >> 20;
            let processors = &node.processors;
            format!(
                "  numa-node  {} processors {processors}, {memory_mib} MiB",
                node.id
            )
        }));
    }
    for pci in &hardware.pci {
        let driver = pci.driver.as_deref().unwrap_or("-");
        let mut line = format!("  pci        {} {} {driver}", pci.address, pci.id);
        if detail {
            let group = pci.iommu_group.as_deref().unwrap_or("-");
            let functions = pci.sriov.unwrap_or(0);
            line += &format!(
                " class {} IOMMU group {group} virtual {functions}",
                pci.class
            );
        }
        lines.push(line);
    }
    for mdev in &hardware.mdevs {
        lines.push(format!(
            "  mdev       {} {} of {}",
            mdev.uuid, mdev.kind, mdev.parent
        ));
    }
    for interface in &hardware.interfaces {
        if interface.kind == InterfaceKind::Loopback && !detail {
            continue;
        }
        let kind = format!("{:?}", interface.kind).to_lowercase();
        let mut line = format!("  interface  {} {kind}", interface.name);
        if let Some(master) = &interface.master {
            line += &format!(" in {master}");
        }
        if let Some(vlan) = &interface.vlan {
            line += &format!(" {} on {}", vlan.id, vlan.parent);
        }
        if detail {
            let address = interface.address.as_deref().unwrap_or("-");
            line += &format!(" {address} mtu {}", interface.mtu.unwrap_or(0));
            if let Some(bridge) = &interface.bridge {
                line += &format!(
                    " stp {} vlan-filtering {}",
                    bridge.stp, bridge.vlan_filtering
                );
            }
            if let Some(bond) = &interface.bond {
                let primary = bond.primary.as_deref().unwrap_or("-");
                let every = bond.miimon_ms.unwrap_or(0);
                line += &format!(" {} miimon {every} ms primary {primary}", bond.mode);
            }
        }
        lines.push(line);
    }
    lines
}

fn object_lines(what: &str, objects: &Objects, detail: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for object in &objects.objects {
        lines.push(format!("  {what}    {} {}", object.kind, object.name));
        if detail {
            lines.extend(object_details(object));
        }
    }
    for setting in &objects.settings {
        lines.push(format!(
            "  {what}    setting {} = {}",
            setting.name, setting.value
        ));
    }
    lines
}

fn object_details(object: &Object) -> Vec<String> {
    let said = |flag: Option<bool>| flag.map_or("-", |flag| if flag { "yes" } else { "no" });
    let mut lines = vec![format!(
        "    uuid {}, active {}, autostart {}",
        object.uuid.as_deref().unwrap_or("-"),
        said(object.active),
        said(object.autostart)
    )];
    lines.push(object.definition.clone());
    for part in &object.parts {
        lines.push(format!("    {} {}", part.kind, part.name));
        // UEFI variables are no text; what a guest was started with is long, and its definition is there.
        if part.encoding.is_none() && part.kind != "live" && !part.content.is_empty() {
            lines.push(part.content.clone());
        }
    }
    lines
}

/// Whose secrets there are, and who can open them.
pub(super) fn sealed_text(sealed: &Sealed, nodes: &[Node]) -> String {
    let held = nodes.iter().filter_map(|node| node.secrets);
    // What nodes say that they have, so no sum is too large.
    let count = |of: fn(&HeldSecrets) -> u64| {
        let all = held.clone().map(|one| of(&one));
        all.fold(0, u64::saturating_add)
    };
    let values = count(|held| held.values);
    let passwords = count(|held| held.passwords);
    let files = count(|held| held.files);
    let mut by = sealed.recipients.clone();
    if sealed.passphrase {
        by.push("who knows the passphrase".to_owned());
    }
    format!(
        "secrets of {} of {} nodes ({values} values, {passwords} guests with passwords, {files} files of \
         the nodes), sealed for {}",
        held.clone().count(),
        nodes.len(),
        by.join(", ")
    )
}
