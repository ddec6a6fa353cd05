//! Rows of the table that follow libvirt's domains: names, ids and states are libvirt's.
//!
//! A URI is followed once a user has added it: its domains are looked up when a command starts, so
//! that new ones are there by themselves. A domain that is undefined keeps its row, as its
//! snapshots do.
//!
//! In a cluster all nodes share the table. A node follows its own libvirt and touches its own rows;
//! another node's become its own where the guest, by its UUID, has moved here ([`is_here_now`]). A
//! guest whose domain is gone from its node is on none, until one finds it. Two guests of one name
//! are told apart by their nodes: the later one is listed as `NAME@NODE`.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use vmtwin_catalog::{Connection, ConnectionKind, NewVm, NodeId, Vm, VmId, VmRole, VmState};
use vmtwin_libvirt::{Connection as Libvirt, Domain, DomainState};

use super::twin::MARK;
use crate::backup::Cx;
use crate::cluster::place::{Here, Place};
use crate::db::Db;

/// Setting that holds the URIs that are followed, as a JSON array.
const FOLLOWED: &str = "libvirt.followed";

/// Brings the rows of all libvirt guests up to what libvirt says. A libvirt that does not answer is
/// noted, and hinders nothing else.
pub(crate) fn follow(cx: &Cx<'_>) -> Result<()> {
    let here = Here::of(cx.home, cx.db)?;
    here.take_sockets(cx)?;
    let followed = followed(cx, &here)?;
    let mut uris: Vec<String> = followed.clone();
    // Where a guest that moved here would be; this node may have no libvirt at all.
    let mut others = Vec::new();
    for vm in cx.db.run(async |c| c.vms().await)? {
        if vm.connection.kind == ConnectionKind::Libvirt && vm.role == VmRole::Guest {
            match here.place(&vm) {
                Place::Here => uris.push(vm.connection.address),
                _ => others.push(vm.connection.address),
            }
        }
    }
    let ours = uris.len();
    let mut seen = HashSet::new();
    for (number, uri) in uris.into_iter().chain(others).enumerate() {
        if !seen.insert(uri.clone()) {
            continue;
        }
        let looked_up = Libvirt::open(&uri).map_err(anyhow::Error::from);
        let done = looked_up.and_then(|libvirt| bring_up(cx, &here, &uri, &libvirt, &followed));
        if let Err(error) = done
            && number < ours
        {
            cx.ui
                .note(&format!("warning: {uri} cannot be followed: {error:#}"));
        }
    }
    Ok(())
}

/// Follows all domains of `uri` from now on; returns how many there are.
pub(crate) fn add_all(cx: &Cx<'_>, uri: &str) -> Result<usize> {
    let libvirt = open(uri)?;
    let here = Here::of(cx.home, cx.db)?;
    let mut all = followed(cx, &here)?;
    if !all.iter().any(|one| one == uri) {
        all.push(uri.to_owned());
        set_followed(cx, &here, &all)?;
    }
    bring_up(cx, &here, uri, &libvirt, &all)
}

/// Adds one domain; returns its name in the table.
pub(crate) fn add_one(cx: &Cx<'_>, uri: &str, name: &str) -> Result<String> {
    let libvirt = open(uri)?;
    let domain = libvirt
        .domain(name)
        .with_context(|| format!("cannot add {name}; see: virsh --connect '{uri}' list --all"))?;
    update(cx, &Here::of(cx.home, cx.db)?, uri, &domain)?;
    let id: VmId = domain.uuid()?.parse()?;
    Ok(cx.db.run(async |c| c.vm(&id).await)?.name)
}

/// Follows `uri` no more, and takes its guests out of the table; returns their names.
pub(crate) fn forget(cx: &Cx<'_>, uri: &str) -> Result<Vec<String>> {
    let here = Here::of(cx.home, cx.db)?;
    let mut all = followed(cx, &here)?;
    let before = all.len();
    all.retain(|one| one != uri);
    let vms = cx.db.run(async |c| c.vms().await)?;
    let theirs: Vec<Vm> = vms
        .into_iter()
        .filter(|vm| is_of(vm, uri) && here.place(vm) == Place::Here)
        .collect();
    if before == all.len() && theirs.is_empty() {
        bail!("{uri} is not followed, and no guest of it is in the table");
    }
    for vm in &theirs {
        cx.db.run(async |c| c.remove_vm(&vm.id).await)?;
    }
    set_followed(cx, &here, &all)?;
    Ok(theirs.into_iter().map(|vm| vm.name).collect())
}

/// Refuses to remove a single guest that would be back at once.
pub(crate) fn refuse_if_followed(cx: &Cx<'_>, vm: &Vm) -> Result<()> {
    let uri = &vm.connection.address;
    let here = Here::of(cx.home, cx.db)?;
    let is_ours = here.place(vm) == Place::Here;
    if is_ours && is_of(vm, uri) && followed(cx, &here)?.contains(uri) {
        bail!(
            "all domains of {uri} are followed, so {} would be back at once; to follow none: \
             vmtwin vm remove --libvirt '{uri}'",
            vm.name
        );
    }
    Ok(())
}

fn is_of(vm: &Vm, uri: &str) -> bool {
    vm.connection.kind == ConnectionKind::Libvirt && vm.connection.address == uri
}

fn open(uri: &str) -> Result<Libvirt> {
    check_local(uri)?;
    Libvirt::open(uri).with_context(|| format!("cannot connect to {uri}"))
}

/// Disks and memory are read beside QEMU, so it must be this host's. A transport that is a command
/// (`qemu+ext`) is none of those.
fn check_local(uri: &str) -> Result<()> {
    let parts = uri
        .split_once("://")
        .map(|(scheme, rest)| (scheme, rest.split('/').next()));
    match parts {
        Some(("qemu" | "qemu+unix", Some(""))) => Ok(()),
        Some(_) => bail!(
            "{uri} is not a libvirt of this host: run vmtwin where the guests are, with qemu:///system"
        ),
        None => bail!("{uri} is no URI of libvirt; most hosts have qemu:///system"),
    }
}

/// A node has a list of its own; one that has none yet has that of before the cluster.
fn followed(cx: &Cx<'_>, here: &Here) -> Result<Vec<String>> {
    let own = here.setting(FOLLOWED);
    let text = cx.db.run(async |c| match c.setting(&own).await? {
        None => c.setting(FOLLOWED).await,
        own => Ok(own),
    })?;
    let text = text.as_deref().unwrap_or("[]");
    serde_json::from_str(text).context("the catalog's list of libvirts is not valid")
}

fn set_followed(cx: &Cx<'_>, here: &Here, uris: &[String]) -> Result<()> {
    let text = serde_json::to_string(uris)?;
    let own = here.setting(FOLLOWED);
    cx.db
        .run(async |c| c.set_setting(&own, &text).await)
        .map_err(Into::into)
}

/// The list of one host becomes that of the cluster's first node; other nodes begin with none.
pub(crate) fn keep_followed(db: &Db, node: &NodeId) -> Result<()> {
    let own = format!("{FOLLOWED}.{node}");
    db.run(async |c| {
        let Some(uris) = c.setting(FOLLOWED).await? else {
            return Ok(());
        };
        if c.setting(&own).await?.is_none() {
            c.set_setting(&own, &uris).await?;
        }
        c.remove_setting(FOLLOWED).await
    })
    .map_err(Into::into)
}

/// One libvirt: its domains, and the rows of those that are gone.
fn bring_up(
    cx: &Cx<'_>,
    here: &Here,
    uri: &str,
    libvirt: &Libvirt,
    followed: &[String],
) -> Result<usize> {
    let all = followed.iter().any(|one| one == uri);
    let rows: Vec<Vm> = cx.db.run(async |c| c.vms().await)?;
    // Also other nodes': one of them may have moved here.
    let known: HashSet<String> = rows
        .iter()
        .filter(|vm| vm.connection.kind == ConnectionKind::Libvirt && vm.role == VmRole::Guest)
        .filter(|vm| here.node().is_some() || is_of(vm, uri))
        .map(|vm| vm.id.to_string())
        .collect();
    let mut found = HashSet::new();
    for domain in libvirt.domains()? {
        let Ok(uuid) = domain.uuid() else { continue };
        if !all && !known.contains(&uuid) {
            continue;
        }
        found.insert(uuid);
        if let Err(error) = update(cx, here, uri, &domain) {
            let name = domain.name();
            cx.ui.note(&format!("warning: domain {name}: {error:#}"));
        }
    }
    let ours = rows
        .iter()
        .filter(|vm| is_of(vm, uri) && vm.role == VmRole::Guest && here.place(vm) == Place::Here);
    for vm in ours.filter(|vm| !found.contains(vm.id.as_str())) {
        match here.node() {
            // Unless another node took it while the domains were looked at.
            Some(node) => _ = cx.db.run(async |c| c.leave_node(&vm.id, node).await)?,
            None => set_state(cx, vm, VmState::Stopped)?,
        }
    }
    Ok(found.len())
}

/// Adds the row of a domain, or brings it up to date.
fn update(cx: &Cx<'_>, here: &Here, uri: &str, domain: &Domain) -> Result<()> {
    let id: VmId = domain.uuid()?.parse()?;
    let connection = Connection {
        kind: ConnectionKind::Libvirt,
        address: uri.to_owned(),
    };
    let vm = match cx.db.run(async |c| c.vm(&id).await) {
        Ok(vm) if vm.role == VmRole::Twin => return Ok(()),
        Ok(vm) => vm,
        Err(vmtwin_catalog::Error::NoVm { .. }) if is_twin(domain)? => return Ok(()),
        Err(vmtwin_catalog::Error::NoVm { .. }) => {
            let new = NewVm {
                id: Some(id.clone()),
                name: domain.name(),
                connection: connection.clone(),
                role: VmRole::Guest,
                twin_of: None,
                node: here.node().cloned(),
            };
            add(cx, here, new)?;
            cx.db.run(async |c| c.vm(&id).await)?
        }
        Err(error) => return Err(error.into()),
    };
    let state = state_of(domain.state()?);
    if vm.connection.kind == ConnectionKind::Qmp && state == VmState::Stopped {
        return Ok(()); // a standby took its place
    }
    if vm.node.as_ref() != here.node() {
        if !is_here_now(here, &vm, state) {
            return Ok(());
        }
        if let Place::On(node) = here.place(&vm) {
            cx.ui.note(&format!("{}: moved here from {node}", vm.name));
        }
        cx.db.run(async |c| c.set_node(&id, here.node()).await)?;
    }
    if vm.connection != connection {
        cx.db
            .run(async |c| c.set_connection(&id, &connection).await)?;
    }
    rename(cx, here, &vm, domain)?;
    set_state(cx, &vm, state)
}

/// Whether a guest of another node, or of none, is this one's from now on. While it is migrated it is
/// paused here and runs there; of two that are off, the node that had it keeps it, unless that is
/// silent.
fn is_here_now(here: &Here, vm: &Vm, state: VmState) -> bool {
    match here.place(vm) {
        Place::Here | Place::Nowhere => true,
        Place::On(_) => state == VmState::Running,
        Place::Silent(_) => state != VmState::Unknown,
    }
}

/// Adds a row, by another name where a guest of another node has this one.
fn add(cx: &Cx<'_>, here: &Here, new: NewVm) -> Result<()> {
    let mut refused = None;
    let id = new.id.clone().context("a domain without a UUID")?;
    for name in here.names(&new.name, &id) {
        let new = NewVm {
            name,
            ..new.clone()
        };
        match cx.db.run(async |c| c.add_vm(new).await) {
            Err(error @ vmtwin_catalog::Error::Exists { .. }) => refused = Some(error),
            other => return other.map(|_| ()).map_err(Into::into),
        }
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}

/// The same for one that has a row. A name with this node's end stays, so that it does not change
/// when the other guest goes.
fn rename(cx: &Cx<'_>, here: &Here, vm: &Vm, domain: &Domain) -> Result<()> {
    let names = here.names(&domain.name(), &vm.id);
    if names.contains(&vm.name) {
        return Ok(());
    }
    let mut refused = None;
    for name in names {
        match cx.db.run(async |c| c.rename_vm(&vm.id, &name).await) {
            Err(error @ vmtwin_catalog::Error::Exists { .. }) => refused = Some(error),
            other => return other.map_err(Into::into),
        }
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}

/// A twin whose row is not there yet, or not any more.
fn is_twin(domain: &Domain) -> Result<bool> {
    Ok(!domain.is_persistent()? && domain.live_xml()?.contains(MARK))
}

fn set_state(cx: &Cx<'_>, vm: &Vm, state: VmState) -> Result<()> {
    if vm.state != state {
        cx.db.run(async |c| c.set_state(&vm.id, state).await)?;
    }
    Ok(())
}

fn state_of(state: DomainState) -> VmState {
    match state {
        DomainState::Running => VmState::Running,
        DomainState::Paused | DomainState::Suspended => VmState::Paused,
        DomainState::ShutOff | DomainState::Crashed => VmState::Stopped,
        _ => VmState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn only_this_host_is_followed() {
        for uri in ["qemu:///system", "qemu+unix:///system?socket=/run/x"] {
            check_local(uri).unwrap();
        }
        for uri in [
            "qemu+ssh://root@far/system",
            "qemu://far/system",
            "qemu+ext:///system?command=/bin/sh",
            "system",
        ] {
            assert!(check_local(uri).is_err(), "{uri}");
        }
    }
}
