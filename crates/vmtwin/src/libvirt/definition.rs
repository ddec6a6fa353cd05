//! The definition of a domain (XML): kept in every snapshot of a guest of libvirt, and defined
//! again on restored disks.
//!
//! Only what must differ is changed; all else stays as libvirt wrote it. What is changed is said in
//! words, so that it can be shown before anything is done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vmtwin_hypervisor::machine::Machine;

use super::xml::Element;

/// Where it is in a snapshot. It holds passwords of displays, as the machine's disks may.
pub(crate) const STORED_AS: &str = "/files/domain.xml";
/// Where that of the running domain is, in snapshots with memory: what it was made of at the point,
/// with devices that were plugged in and the processor as the guest sees it.
pub(crate) const RUNNING_STORED_AS: &str = "/files/domain-running.xml";

/// A disk that takes the place of an old one.
#[derive(Debug, Clone)]
pub(crate) struct NewDisk {
    /// Its id in the snapshot: libvirt's alias of the device, where it has one.
    pub(crate) id: String,
    /// Where it was.
    pub(crate) old: String,
    /// Where it is.
    pub(crate) new: PathBuf,
    /// Its format: `qcow2` or `raw`.
    pub(crate) format: String,
}

/// Who a copy is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// It has the original's MAC addresses.
    pub(crate) keeps_macs: bool,
}

/// A changed definition.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) xml: String,
    pub(crate) name: String,
    pub(crate) uuid: Option<String>,
    /// Networks of the host that it needs.
    pub(crate) networks: Vec<String>,
    /// What differs, for people.
    pub(crate) changes: Vec<String>,
}

/// Old addresses of a machine's disks, by id.
pub(crate) fn address_of(machine: &Machine, id: &str) -> Option<String> {
    let disk = machine.disks.iter().find(|disk| disk.id == id)?;
    let path = Path::new(&machine.cwd).join(&disk.address);
    Some(path.to_string_lossy().into_owned())
}

/// The definition with `disks` in the places of the old ones. With `copy` it is that of a copy,
/// which may run beside the original: it gets that name and uuid, and MAC addresses of its own unless
/// it keeps them.
pub(crate) fn change(xml: &str, copy: Option<&Identity>, disks: &[NewDisk]) -> Result<Changed> {
    let mut domain = parse(xml)?;
    let mut changes = Vec::new();
    let mut say = |text: String| changes.push(text);
    if let Some(copy) = copy {
        rename(&mut domain, copy, &mut say);
        if !copy.keeps_macs {
            renew_macs(&mut domain, &mut say);
        }
        share_nothing(&mut domain, &mut say);
    }
    put_disks(&mut domain, disks, &mut say)?;
    let networks = networks(&mut domain);
    Ok(Changed {
        xml: domain.to_xml()?,
        name: domain.text_of("name").unwrap_or_default().to_owned(),
        uuid: domain.text_of("uuid").map(str::to_owned),
        networks,
        changes,
    })
}

/// Reads a stored definition.
pub(super) fn parse(xml: &str) -> Result<Element> {
    let domain = Element::parse(xml).context("the stored definition is not valid")?;
    if domain.name != "domain" || domain.child("devices").is_none() {
        bail!("the stored definition is not one of a domain");
    }
    Ok(domain)
}

pub(super) fn rename(domain: &mut Element, copy: &Identity, say: &mut dyn FnMut(String)) {
    let old = domain.text_of("name").unwrap_or_default();
    say(format!("its name is {}, not {old}", copy.name));
    if domain.text_of("uuid") != Some(&copy.uuid) {
        say("it has a uuid of its own".to_owned());
    }
    domain.put(Element::of_text("uuid", &copy.uuid));
    domain.put(Element::of_text("name", &copy.name));
    if let Some(genid) = domain.child_mut("genid") {
        genid.text.clear(); // libvirt makes a new one
    }
    // Where QEMU's firmware looks for its uuid, where a user gave it there too.
    if let Some(system) = domain
        .child_mut("sysinfo")
        .and_then(|info| info.child_mut("system"))
    {
        for entry in system.all_mut("entry").filter(|e| e.is("name", "uuid")) {
            entry.text.clone_from(&copy.uuid);
        }
    }
}

fn renew_macs(domain: &mut Element, say: &mut dyn FnMut(String)) {
    for card in devices(domain).all_mut("interface") {
        if card.remove(&["mac"]) {
            say("a network card has a MAC address of its own".to_owned());
        }
    }
}

/// Takes away what only one domain of a host can have.
pub(super) fn share_nothing(domain: &mut Element, say: &mut dyn FnMut(String)) {
    for device in &mut devices(domain).children {
        match device.name.as_str() {
            "serial" | "console" | "parallel" => {
                device.remove(&["source", "log"]);
                if !device.is("type", "pty") && !device.is("type", "null") {
                    say("a console goes to a pty, not to where the original's goes".to_owned());
                    device.set("type", "pty");
                }
            }
            // libvirt chooses another path, by the domain's name.
            "channel" if device.is("type", "unix") => {
                device.remove(&["source"]);
            }
            "graphics" if device.get("port").is_some_and(|port| port != "-1") => {
                if !device.is("autoport", "yes") {
                    say("a display has a port of its own".to_owned());
                }
                device.set("autoport", "yes");
                device.unset("port");
                device.unset("tlsPort");
                device.unset("websocket");
            }
            "vsock" => {
                device.children.retain(|child| child.name != "cid");
                device
                    .children
                    .insert(0, Element::new("cid", &[("auto", "yes")]));
            }
            "interface" => {
                device.remove(&["target"]);
            }
            _ => {}
        }
    }
}

/// Puts disks into the places of the old ones.
pub(super) fn put_disks(
    domain: &mut Element,
    disks: &[NewDisk],
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let mut left: Vec<&NewDisk> = disks.iter().collect();
    for device in devices(domain).all_mut("disk") {
        let alias = alias_of(device);
        let source = source_of(device);
        let by_id = |disk: &&NewDisk| alias.as_deref() == Some(&disk.id);
        let by_path = |disk: &&NewDisk| source.as_deref() == Some(&disk.old);
        let found = left
            .iter()
            .position(by_path)
            .or_else(|| left.iter().position(by_id));
        if let Some(at) = found {
            let disk = left.remove(at);
            say(format!("disk {} is {}", disk.old, disk.new.display()));
            put_disk(device, disk);
        }
    }
    if let Some(nvram) = domain.child_mut("os").and_then(|os| os.child_mut("nvram")) {
        let old = nvram_path(nvram);
        if let Some(at) = left.iter().position(|disk| Some(&disk.old) == old.as_ref()) {
            put_nvram(nvram, left.remove(at));
        }
    }
    match left.first() {
        None => Ok(()),
        Some(disk) => bail!(
            "the disk that was {} is not in the stored definition: restore without --libvirt and \
             define the guest by hand; its definition is then in domain.xml beside the disks",
            disk.old
        ),
    }
}

/// How long QEMU waits for a server of disks that went away, seconds: a week.
const RECONNECT_S: &str = "604800";

/// Says what lies under the overlays of an instant restore: exports of the disks' ids on `socket`,
/// whose server may go away for a while. libvirt would find them by itself, but not the patience.
pub(super) fn say_backing(domain: &mut Element, images: &[(&str, &Path)], socket: &Path) {
    for device in devices(domain).all_mut("disk") {
        let source = source_of(device);
        let of = |(_, image): &&(&str, &Path)| source.as_deref() == image.to_str();
        if let Some((id, _)) = images.iter().find(of) {
            device.remove(&["backingStore"]);
            device.children.push(served(id, socket));
        }
    }
}

fn served(id: &str, socket: &Path) -> Element {
    let socket = socket.to_string_lossy();
    let host = [("transport", "unix"), ("socket", socket.as_ref())];
    let mut source = Element::new("source", &[("protocol", "nbd"), ("name", id)]);
    source.children = vec![
        Element::new("host", &host),
        Element::new("reconnect", &[("delay", RECONNECT_S)]),
    ];
    let mut backing = Element::new("backingStore", &[("type", "network")]);
    backing.children = vec![
        Element::new("format", &[("type", "raw")]),
        source,
        Element::new("backingStore", &[]),
    ];
    backing
}

/// The disk is in a file from now on, whatever it was in.
fn put_disk(device: &mut Element, disk: &NewDisk) {
    device.set("type", "file");
    // Of images that the file does not lie over, and of an operation on the old one.
    device.remove(&["backingStore", "mirror", "auth", "encryption"]);
    let path = disk.new.to_string_lossy();
    let source = Element::new("source", &[("file", path.as_ref())]);
    match device.child_mut("source") {
        Some(old) => *old = source,
        None => device.children.push(source),
    }
    match device.child_mut("driver") {
        Some(driver) => driver.set("type", &disk.format),
        None => device.children.insert(
            0,
            Element::new("driver", &[("name", "qemu"), ("type", &disk.format)]),
        ),
    }
}

fn nvram_path(nvram: &Element) -> Option<String> {
    match nvram.child("source") {
        Some(source) => source.get("file").map(str::to_owned),
        None => Some(nvram.text.trim().to_owned()),
    }
}

fn put_nvram(nvram: &mut Element, disk: &NewDisk) {
    let path = disk.new.to_string_lossy().into_owned();
    match nvram.child_mut("source") {
        Some(source) => source.set("file", &path),
        None => nvram.text = path,
    }
    // Where none is said it is raw.
    if nvram.get("format").is_some() || disk.format != "raw" {
        nvram.set("format", &disk.format);
    }
}

/// Where a disk is, as its definition says.
fn source_of(disk: &Element) -> Option<String> {
    let source = disk.child("source")?;
    let path = source.get("file").or_else(|| source.get("dev"))?;
    Some(path.to_owned())
}

/// libvirt's alias of a disk, which is the device's id in QEMU: from the definition where it says
/// it, else as libvirt makes it from bus and place.
fn alias_of(disk: &Element) -> Option<String> {
    if let Some(alias) = disk.child("alias") {
        return alias.get("name").map(str::to_owned);
    }
    let target = disk.child("target")?;
    let bus = target.get("bus")?;
    let place = disk.child("address").filter(|a| a.is("type", "drive"));
    let at = |key: &str| place.and_then(|place| place.get(key)).unwrap_or("0");
    Some(match bus {
        "virtio" => format!("virtio-disk{}", index_of(target.get("dev")?)?),
        "usb" => format!("usb-disk{}", index_of(target.get("dev")?)?),
        "scsi" => format!(
            "scsi{}-{}-{}-{}",
            at("controller"),
            at("bus"),
            at("target"),
            at("unit")
        ),
        "ide" | "sata" | "fdc" => {
            format!("{bus}{}-{}-{}", at("controller"), at("bus"), at("unit"))
        }
        _ => return None,
    })
}

/// The place of a name in `vda`, `vdb`, … `vdz`, `vdaa`, …, from 0.
fn index_of(name: &str) -> Option<usize> {
    let letters = name.get(2..)?;
    let digit = |c: char| {
        c.is_ascii_lowercase()
            .then(|| c as usize - 'a' as usize + 1)
    };
    let number = letters
        .chars()
        .try_fold(0usize, |sum, c| sum.checked_mul(26)?.checked_add(digit(c)?));
    number?.checked_sub(1)
}

fn networks(domain: &mut Element) -> Vec<String> {
    let cards = devices(domain).all_mut("interface");
    cards
        .filter_map(|card| Some(card.child("source")?.get("network")?.to_owned()))
        .collect()
}

/// [`parse`] has seen that they are there.
pub(super) fn devices(domain: &mut Element) -> &mut Element {
    if domain.child("devices").is_none() {
        domain.children.push(Element::new("devices", &[]));
    }
    let at = domain.children.iter().position(|c| c.name == "devices");
    &mut domain.children[at.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const XML: &str = "<domain type='kvm'><name>web</name><uuid>u-1</uuid><genid>g</genid>\
        <os><nvram>/v/web.fd</nvram></os><devices>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
        <source file='/v/a&amp;b.qcow2'/><backingStore type='file'><source file='/v/base'/>\
        </backingStore><target dev='vda'/></disk>\
        <disk type='volume' device='disk'><source pool='p' volume='v'/>\
        <target dev='sdb' bus='scsi'/>\
        <address type='drive' controller='0' bus='0' target='0' unit='3'/></disk>\
        <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/>\
        </interface><serial type='file'><source path='/v/log'/><target port='0'/></serial>\
        <graphics type='vnc' port='5901' autoport='no'/>\
        </devices></domain>";

    fn disk(id: &str, old: &str, new: &str, format: &str) -> NewDisk {
        NewDisk {
            id: id.into(),
            old: old.into(),
            new: new.into(),
            format: format.into(),
        }
    }

    fn disks() -> Vec<NewDisk> {
        vec![
            disk("virtio-disk0", "/v/a&b.qcow2", "/n/a<b", "qcow2"),
            disk("scsi0-0-0-3", "/dev/vg/v", "/n/v", "raw"),
            disk("pflash1", "/v/web.fd", "/n/fd", "raw"),
        ]
    }

    #[test]
    fn a_copy_shares_nothing_with_the_original() {
        let copy = Identity {
            name: "web2".into(),
            uuid: "u-2".into(),
            keeps_macs: false,
        };
        let changed = change(XML, Some(&copy), &disks()).unwrap();
        let xml = &changed.xml;
        assert!(xml.contains("<name>web2</name>"), "{xml}");
        for old in [
            "u-1",
            "52:54",
            "/v/",
            "backingStore",
            "<genid>g",
            "pool=",
            "5901",
        ] {
            assert!(!xml.contains(old), "{old}: {xml}");
        }
        assert!(xml.contains("file=\"/n/a&lt;b\""), "{xml}");
        assert!(xml.contains("<nvram>/n/fd</nvram>"), "{xml}");
        assert_eq!(changed.networks, ["lan"]);
        assert_eq!(changed.uuid.as_deref(), Some("u-2"));
        let same = Identity {
            uuid: "u-1".into(),
            keeps_macs: true,
            ..copy
        };
        let kept = change(XML, Some(&same), &disks()).unwrap();
        assert!(kept.xml.contains("52:54:00:00:00:01"), "{}", kept.xml);
        let said = kept.changes.join("; ");
        assert!(!said.contains("uuid") && !said.contains("MAC"), "{said}");
    }

    #[test]
    fn the_original_keeps_what_it_is() {
        let changed = change(XML, None, &disks()).unwrap();
        assert_eq!(changed.name, "web");
        assert_eq!(changed.uuid.as_deref(), Some("u-1"));
        for kept in ["u-1", "52:54:00:00:00:01", "/v/log", "5901"] {
            assert!(changed.xml.contains(kept), "{kept}: {}", changed.xml);
        }
    }

    #[test]
    fn a_disk_without_a_place_and_rubbish_are_refused() {
        let stray = [disk("virtio-disk7", "/v/other", "/n/other", "raw")];
        let error = change(XML, None, &stray).unwrap_err().to_string();
        assert!(error.contains("/v/other"), "{error}");
        for rubbish in [
            "<domain",
            "<domain/>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><domain><devices/></domain>",
            "<a></b>",
        ] {
            assert!(change(rubbish, None, &disks()).is_err(), "{rubbish}");
        }
    }

    #[test]
    fn disks_have_the_ids_that_libvirt_gives_them() {
        for (name, index) in [("vda", 0), ("vdz", 25), ("vdaa", 26), ("vdab", 27)] {
            assert_eq!(index_of(name), Some(index), "{name}");
        }
        for name in ["", "vd", "vd1", "ü"] {
            assert_eq!(index_of(name), None, "{name}");
        }
        let xml = "<disk><target dev='sdc' bus='sata'/>\
                   <address type='drive' controller='0' bus='0' unit='2'/></disk>";
        let disk = Element::parse(xml).unwrap();
        assert_eq!(alias_of(&disk).as_deref(), Some("sata0-0-2"));
    }
}
