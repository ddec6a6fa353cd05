//! Instant restore into libvirt: what its domain needs while its disks are overlays on what the
//! keeper serves.

use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};
use vmtwin_hypervisor::launch::Network;
use vmtwin_libvirt::{Connection, DomainState};

use super::define::let_go;
use super::xml::Element;
use super::{Address, definition, running};
use crate::restore::instant::{DISKS_SOCKET, Record};

/// Lets QEMU's user connect to the disks that are served in `dir`.
pub(crate) fn open_to_qemu(libvirt: &Connection, dir: &Path) -> Result<()> {
    let socket = dir.join(DISKS_SOCKET);
    match qemu_user(&libvirt.capabilities()?) {
        Some((uid, gid)) => chown(&socket, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to QEMU's user", socket.display())),
        // It runs as the one that libvirt runs as.
        None => Ok(()),
    }
}

/// The user and group that libvirt's QEMUs run as, in its `capabilities`: the base label of its
/// security model `dac`, `+UID:+GID`.
fn qemu_user(capabilities: &str) -> Option<(u32, u32)> {
    let document = Element::parse(capabilities).ok()?;
    let mut models = document.child("host")?.children.iter();
    let dac = models.find(|m| m.name == "secmodel" && m.text_of("model") == Some("dac"))?;
    let (uid, gid) = dac.text_of("baselabel")?.split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(uid)?, number(gid)?))
}

/// A definition whose overlays in `dir` say what lies under them.
pub(super) fn with_backing(xml: &str, dir: &Path) -> Result<String> {
    let Some(record) = Record::read(dir)? else {
        return Ok(xml.to_owned());
    };
    let images = record.disks.iter().map(|id| (id, Record::image(dir, id)));
    let images: Vec<_> = images.collect();
    let images: Vec<(&str, &Path)> = images.iter().map(|(id, p)| (id.as_str(), &**p)).collect();
    let mut domain = definition::parse(xml)?;
    definition::say_backing(&mut domain, &images, &dir.join(DISKS_SOCKET));
    domain.to_xml()
}

/// Goes on with an instant restore whose disks are served in `dir` again: starts the domain from
/// them, if it is gone. Says whether it did.
pub(crate) fn start_again(record: &Record, dir: &Path, network: Network) -> Result<bool> {
    let address = record.monitor.as_deref().and_then(Address::parse);
    let Address { uri, uuid } = address.context("the record of the restore names no domain")?;
    let libvirt = Connection::open(&uri)?;
    open_to_qemu(&libvirt, dir)?;
    let domain = libvirt.domain_by_uuid(&uuid)?;
    if domain.state()? != DomainState::ShutOff {
        return Ok(false);
    }
    let xml = running::definition(&domain.definition()?, None, &[], network)?;
    let started = libvirt.create_domain(&with_backing(&xml, dir)?, true)?;
    let_go(&uri, &started, network)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_qemu_is_found() {
        let of = |models: &str| {
            qemu_user(&format!(
                "<capabilities><host><uuid>u</uuid>{models}</host></capabilities>"
            ))
        };
        let none = "<secmodel><model>none</model></secmodel>";
        let dac = "<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel>\
                   <baselabel type='qemu'>+64055:+109</baselabel></secmodel>";
        assert_eq!(of(&format!("{none}{dac}")), Some((64055, 109)));
        assert_eq!(of(none), None);
        assert_eq!(qemu_user("rubbish"), None);
    }
}
