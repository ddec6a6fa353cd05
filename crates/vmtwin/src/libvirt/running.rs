//! The definition that a live state is loaded into: that of the running domain at the point, with
//! other disks, and where it is to be cut off, with network cards that nothing is joined to.
//!
//! What the guest sees stays: a state fits one machine only. So a card that was on a tap is on a tap
//! again (`type='ethernet'`, joined to no bridge), since its device insists on `vnet_hdr` and on the
//! number of queues; see also [`vmtwin_hypervisor::twin::cut_off`].

use anyhow::{Result, bail};
use vmtwin_hypervisor::launch::Network;

use super::definition::{self, Identity, NewDisk, devices};
use super::xml::Element;

/// What a card keeps when it is put elsewhere: the guest's side of it.
const CARD: &[&str] = &[
    "acpi", "address", "alias", "boot", "driver", "mac", "model", "mtu", "rom",
];

/// The stored definition of a running domain, for its state. With `copy` it may run beside the
/// original, but keeps the MAC addresses: they are in the state.
pub(crate) fn definition(
    xml: &str,
    copy: Option<&Identity>,
    disks: &[NewDisk],
    network: Network,
) -> Result<String> {
    let mut domain = definition::parse(xml)?;
    let mut unsaid = |_| {};
    if let Some(copy) = copy {
        definition::rename(&mut domain, copy, &mut unsaid);
        definition::share_nothing(&mut domain, &mut unsaid);
    }
    definition::put_disks(&mut domain, disks, &mut unsaid)?;
    forget_this_run(&mut domain);
    for card in devices(&mut domain).all_mut("interface") {
        match network {
            Network::None | Network::Standby => isolate(card)?,
            Network::User => {
                keep_guest_side(card);
                card.set("type", "user");
            }
            Network::Original => {}
        }
    }
    domain.to_xml()
}

/// Takes away what libvirt chose for the one run that the definition is of.
pub(super) fn forget_this_run(domain: &mut Element) {
    let dynamic = |e: &Element| e.name == "seclabel" && !e.is("type", "static");
    domain.children.retain(|child| !dynamic(child));
    for device in &mut devices(domain).children {
        let chosen = |e: &Element| {
            let user = e.get("name").is_some_and(|name| name.starts_with("ua-"));
            e.name == "alias" && !user
        };
        device.children.retain(|child| !chosen(child));
        match device.name.as_str() {
            "interface" => {
                device.remove(&["target"]);
            }
            "channel" if device.is("type", "unix") => {
                let path = device.child("source").and_then(|source| source.get("path"));
                if path.is_some_and(|path| path.contains("/libvirt/qemu/")) {
                    device.remove(&["source"]);
                }
            }
            _ => {}
        }
    }
}

/// Puts a network card on a cable that leads nowhere.
pub(super) fn isolate(card: &mut Element) -> Result<()> {
    let kind = card.get("type").unwrap_or_default();
    let new = match kind {
        "network" | "bridge" | "direct" | "ethernet" => "ethernet",
        "user" | "null" => "null",
        other => bail!("a network card of type '{other}' cannot be cut off"),
    };
    keep_guest_side(card);
    card.set("type", new);
    Ok(())
}

fn keep_guest_side(card: &mut Element) {
    card.children
        .retain(|child| CARD.contains(&child.name.as_str()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const XML: &str = "<domain type='kvm' id='3'><name>web</name><uuid>u-1</uuid><devices>\
        <disk type='file' device='disk'><source file='/v/a'/><target dev='vda' bus='virtio'/>\
        <alias name='virtio-disk0'/></disk>\
        <interface type='network'><mac address='52:54:00:00:00:01'/>\
        <source network='lan' portid='p'/><target dev='vnet7'/><model type='virtio'/>\
        <driver queues='4'/><alias name='net0'/></interface>\
        <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/x'/>\
        <target type='virtio' name='x'/></channel>\
        </devices><seclabel type='dynamic' model='dac' relabel='yes'/></domain>";

    fn changed(copy: Option<&Identity>, network: Network) -> String {
        let disk = NewDisk {
            id: "virtio-disk0".into(),
            old: "/v/a".into(),
            new: "/n/a".into(),
            format: "qcow2".into(),
        };
        definition(XML, copy, &[disk], network).unwrap()
    }

    #[test]
    fn a_state_that_is_cut_off_keeps_its_cards() {
        let copy = Identity {
            name: "web2".into(),
            uuid: "u-2".into(),
            keeps_macs: true,
        };
        let xml = changed(Some(&copy), Network::None);
        for kept in ["52:54:00:00:00:01", "queues=\"4\"", "type=\"ethernet\""] {
            assert!(xml.contains(kept), "{kept}: {xml}");
        }
        for gone in ["u-1", "lan", "vnet7", "seclabel", "/run/libvirt", "net0"] {
            assert!(!xml.contains(gone), "{gone}: {xml}");
        }
    }

    #[test]
    fn the_original_goes_back_to_its_network() {
        let xml = changed(None, Network::Original);
        assert!(xml.contains("network=\"lan\""), "{xml}");
        assert!(!xml.contains("vnet7"), "{xml}");
    }

    #[test]
    fn a_card_that_is_a_device_of_the_host_is_refused() {
        let mut card = Element::new("interface", &[("type", "hostdev")]);
        assert!(isolate(&mut card).is_err());
    }
}
