//! Rows of the table that follow libvirt's domains: names, ids and states are libvirt's.
//!
//! A URI is followed once a user has added it: its domains are looked up when a command starts, so
//! that new ones are there by themselves. A domain that is undefined keeps its row, as its
//! snapshots do.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use vmtwin_catalog::{Connection, ConnectionKind, NewVm, Vm, VmId, VmRole, VmState};
use vmtwin_libvirt::{Connection as Libvirt, Domain, DomainState};

use super::twin::MARK;
use crate::backup::Cx;

/// Setting that holds the URIs that are followed, as a JSON array.
const FOLLOWED: &str = "libvirt.followed";

/// Brings the rows of all libvirt guests up to what libvirt says. A libvirt that does not answer is
/// noted, and hinders nothing else.
pub(crate) fn follow(cx: &Cx<'_>) -> Result<()> {
    let followed = followed(cx)?;
    let mut uris: Vec<String> = followed.clone();
    for vm in cx.db.run(async |c| c.vms().await)? {
        if vm.connection.kind == ConnectionKind::Libvirt && vm.role == VmRole::Guest {
            uris.push(vm.connection.address);
        }
    }
    let mut seen = HashSet::new();
    uris.retain(|uri| seen.insert(uri.clone()));
    for uri in uris {
        let looked_up = Libvirt::open(&uri).map_err(anyhow::Error::from);
        let done = looked_up.and_then(|libvirt| bring_up(cx, &uri, &libvirt, &followed));
        if let Err(error) = done {
            cx.ui
                .note(&format!("warning: {uri} cannot be followed: {error:#}"));
        }
    }
    Ok(())
}

/// Follows all domains of `uri` from now on; returns how many there are.
pub(crate) fn add_all(cx: &Cx<'_>, uri: &str) -> Result<usize> {
    let libvirt = open(uri)?;
    let mut all = followed(cx)?;
    if !all.iter().any(|one| one == uri) {
        all.push(uri.to_owned());
        set_followed(cx, &all)?;
    }
    bring_up(cx, uri, &libvirt, &all)
}

/// Adds one domain.
pub(crate) fn add_one(cx: &Cx<'_>, uri: &str, name: &str) -> Result<()> {
    let libvirt = open(uri)?;
    let domain = libvirt
        .domain(name)
        .with_context(|| format!("cannot add {name}; see: virsh --connect '{uri}' list --all"))?;
    update(cx, uri, &domain)
}

/// Follows `uri` no more, and takes its guests out of the table; returns their names.
pub(crate) fn forget(cx: &Cx<'_>, uri: &str) -> Result<Vec<String>> {
    let mut all = followed(cx)?;
    let before = all.len();
    all.retain(|one| one != uri);
    let vms = cx.db.run(async |c| c.vms().await)?;
    let theirs: Vec<Vm> = vms.into_iter().filter(|vm| is_of(vm, uri)).collect();
    if before == all.len() && theirs.is_empty() {
        bail!("{uri} is not followed, and no guest of it is in the table");
    }
    for vm in &theirs {
        cx.db.run(async |c| c.remove_vm(&vm.id).await)?;
    }
    set_followed(cx, &all)?;
    Ok(theirs.into_iter().map(|vm| vm.name).collect())
}

/// Refuses to remove a single guest that would be back at once.
pub(crate) fn refuse_if_followed(cx: &Cx<'_>, vm: &Vm) -> Result<()> {
    let uri = &vm.connection.address;
    if is_of(vm, uri) && followed(cx)?.contains(uri) {
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

fn followed(cx: &Cx<'_>) -> Result<Vec<String>> {
    let text = cx.db.run(async |c| c.setting(FOLLOWED).await)?;
    let text = text.as_deref().unwrap_or("[]");
    serde_json::from_str(text).context("the catalog's list of libvirts is not valid")
}

fn set_followed(cx: &Cx<'_>, uris: &[String]) -> Result<()> {
    let text = serde_json::to_string(uris)?;
    cx.db
        .run(async |c| c.set_setting(FOLLOWED, &text).await)
        .map_err(Into::into)
}

/// One libvirt: its domains, and the rows of those that are gone.
fn bring_up(cx: &Cx<'_>, uri: &str, libvirt: &Libvirt, followed: &[String]) -> Result<usize> {
    let all = followed.iter().any(|one| one == uri);
    let rows: Vec<Vm> = cx.db.run(async |c| c.vms().await)?;
    let known: HashSet<String> = rows
        .iter()
        .filter(|vm| is_of(vm, uri) && vm.role == VmRole::Guest)
        .map(|vm| vm.id.to_string())
        .collect();
    let mut here = HashSet::new();
    for domain in libvirt.domains()? {
        let Ok(uuid) = domain.uuid() else { continue };
        if !all && !known.contains(&uuid) {
            continue;
        }
        here.insert(uuid);
        if let Err(error) = update(cx, uri, &domain) {
            let name = domain.name();
            cx.ui.note(&format!("warning: domain {name}: {error:#}"));
        }
    }
    let gone = rows
        .iter()
        .filter(|vm| is_of(vm, uri) && vm.role == VmRole::Guest);
    for vm in gone.filter(|vm| !here.contains(vm.id.as_str())) {
        set_state(cx, vm, VmState::Stopped)?;
    }
    Ok(here.len())
}

/// Adds the row of a domain, or brings it up to date.
fn update(cx: &Cx<'_>, uri: &str, domain: &Domain) -> Result<()> {
    let id: VmId = domain.uuid()?.parse()?;
    let name = domain.name();
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
                name: name.clone(),
                connection: connection.clone(),
                role: VmRole::Guest,
                twin_of: None,
            };
            cx.db.run(async |c| c.add_vm(new).await)?;
            cx.db.run(async |c| c.vm(&id).await)?
        }
        Err(error) => return Err(error.into()),
    };
    let state = state_of(domain.state()?);
    if vm.connection.kind == ConnectionKind::Qmp && state == VmState::Stopped {
        return Ok(()); // a standby took its place
    }
    if vm.connection != connection {
        cx.db
            .run(async |c| c.set_connection(&id, &connection).await)?;
    }
    if vm.name != name {
        cx.db.run(async |c| c.rename_vm(&id, &name).await)?;
    }
    set_state(cx, &vm, state)
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
