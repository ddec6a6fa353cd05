//! The definition of a domain (XML): kept in every snapshot of a guest of libvirt, and defined
//! again on restored disks.
//!
//! Only what must differ is changed, event by event; all else stays as libvirt wrote it. What is
//! changed is said in words, so that it can be shown before anything is done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};
use vmtwin_hypervisor::machine::Machine;

/// Where it is in a snapshot. It holds passwords of displays, as the machine's disks may.
pub(crate) const STORED_AS: &str = "/files/domain.xml";

/// libvirt writes no declaration.
const VERSION: XmlVersion = XmlVersion::Implicit1_0;

/// A disk that takes the place of an old one.
#[derive(Debug, Clone)]
pub(crate) struct NewDisk {
    /// Where it was.
    pub(crate) old: String,
    /// Where it is.
    pub(crate) new: PathBuf,
}

/// A changed definition.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) xml: String,
    pub(crate) name: String,
    /// The uuid that it keeps; a copy gets a new one.
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

/// The definition with `disks` in the places of the old ones. With `name` it is that of a copy,
/// which may run beside the original: it gets a uuid and MAC addresses of its own.
pub(crate) fn change(xml: &str, name: Option<&str>, disks: &[NewDisk]) -> Result<Changed> {
    let mut work = Work {
        copy: name,
        disks,
        used: vec![false; disks.len()],
        path: Vec::new(),
        writer: Writer::new(Vec::new()),
        result: Changed {
            xml: String::new(),
            name: name.unwrap_or_default().to_owned(),
            uuid: None,
            networks: Vec::new(),
            changes: Vec::new(),
        },
    };
    work.run(xml)
        .context("the stored definition is not valid")?;
    if let Some(at) = work.used.iter().position(|used| !used) {
        bail!(
            "the disk that was {} is not in the stored definition: restore without --libvirt and \
             define the guest by hand; its definition is then in domain.xml beside the disks",
            work.disks[at].old
        );
    }
    work.result.xml = String::from_utf8(work.writer.into_inner())?;
    Ok(work.result)
}

struct Work<'a> {
    copy: Option<&'a str>,
    disks: &'a [NewDisk],
    used: Vec<bool>,
    /// Names of the elements that are open.
    path: Vec<String>,
    writer: Writer<Vec<u8>>,
    result: Changed,
}

impl Work<'_> {
    fn run(&mut self, xml: &str) -> Result<()> {
        let mut reader = Reader::from_str(xml);
        loop {
            match reader.read_event()? {
                Event::Eof => return Ok(()),
                Event::Start(start) => {
                    if let Some(start) = self.element(&start)? {
                        self.path.push(text_of(start.name().as_ref()));
                        self.writer.write_event(Event::Start(start))?;
                    } else {
                        reader.read_to_end(start.name())?;
                    }
                }
                Event::Empty(start) => {
                    if let Some(start) = self.element(&start)? {
                        self.writer.write_event(Event::Empty(start))?;
                    }
                }
                Event::End(end) => {
                    self.path.pop();
                    self.writer.write_event(Event::End(end))?;
                }
                Event::Text(text) => self.text(text)?,
                // Comes between texts, and would cut a name or a path into pieces.
                Event::GeneralRef(_) if self.is_looked_at() => {
                    bail!("its name or the path of its NVRAM holds a character that is escaped")
                }
                Event::DocType(_) => bail!("it has a document type"),
                other => self.writer.write_event(other)?,
            }
        }
    }

    fn inside(&self, path: &[&str]) -> bool {
        self.path
            .iter()
            .map(String::as_str)
            .eq(path.iter().copied())
    }

    fn is_looked_at(&self) -> bool {
        self.inside(&["domain", "name"]) || self.inside(&["domain", "os", "nvram"])
    }

    fn in_device(&self, device: &str) -> bool {
        self.inside(&["domain", "devices", device])
    }

    /// An element as it is to be; `None` where it goes, with all in it.
    fn element<'x>(&mut self, start: &BytesStart<'x>) -> Result<Option<BytesStart<'x>>> {
        let name = text_of(start.name().as_ref());
        let copy = self.copy.is_some();
        if self.inside(&["domain"]) && name == "uuid" && copy {
            self.say("it has a uuid of its own");
            return Ok(None);
        }
        if self.in_device("interface") && name == "mac" && copy {
            self.say("a network card has a MAC address of its own");
            return Ok(None);
        }
        if self.in_device("disk") && name == "backingStore" {
            return Ok(None);
        }
        let console = ["serial", "console", "parallel"];
        if copy && console.iter().any(|device| self.in_device(device)) {
            if matches!(name.as_str(), "source" | "log") {
                return Ok(None);
            }
        } else if copy
            && self.inside(&["domain", "devices"])
            && console.contains(&name.as_str())
            && value(start, "type")?.is_some_and(|kind| kind == "file")
        {
            self.say("a console goes to a pty, not to the original's file");
            return Ok(Some(with(start, &[("type", "pty")])?));
        }
        if self.in_device("interface")
            && name == "source"
            && let Some(network) = value(start, "network")?
        {
            self.result.networks.push(network);
        }
        if self.in_device("disk") && name == "source" {
            return Ok(Some(self.source(start)?));
        }
        Ok(Some(start.clone()))
    }

    /// The source of a disk. It is in a file now, whatever it was in.
    fn source<'x>(&mut self, start: &BytesStart<'x>) -> Result<BytesStart<'x>> {
        for (at, disk) in self.disks.iter().enumerate() {
            for key in ["file", "dev"] {
                if value(start, key)?.as_deref() != Some(&disk.old) {
                    continue;
                }
                self.used[at] = true;
                if key == "dev" {
                    bail!(
                        "disk {} was a block device, which is not done yet",
                        disk.old
                    );
                }
                let new = disk.new.to_string_lossy();
                self.say(&format!("disk {} is {new}", disk.old));
                return with(start, &[("file", &new)]);
            }
        }
        Ok(start.clone())
    }

    fn text(&mut self, text: BytesText<'_>) -> Result<()> {
        let old = text.decode()?.into_owned();
        let mut new = None;
        if self.inside(&["domain", "name"]) {
            match self.copy {
                Some(name) => {
                    self.say(&format!("its name is {name}, not {old}"));
                    new = Some(name.to_owned());
                }
                None => self.result.name = old.clone(),
            }
        } else if self.inside(&["domain", "uuid"]) {
            self.result.uuid = Some(old.clone());
        } else if self.inside(&["domain", "genid"]) && self.copy.is_some() {
            new = Some(String::new());
        } else if self.inside(&["domain", "os", "nvram"]) {
            for (at, disk) in self.disks.iter().enumerate() {
                if disk.old == old {
                    self.used[at] = true;
                    new = Some(disk.new.to_string_lossy().into_owned());
                }
            }
        }
        match new {
            None => self.writer.write_event(Event::Text(text))?,
            Some(new) => self.writer.write_event(Event::Text(BytesText::new(&new)))?,
        }
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.result.changes.push(text.to_owned());
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The value of an attribute.
fn value(start: &BytesStart<'_>, key: &str) -> Result<Option<String>> {
    match start.try_get_attribute(key)? {
        None => Ok(None),
        Some(attribute) => Ok(Some(attribute.normalized_value(VERSION)?.into_owned())),
    }
}

/// The same element with other values of some attributes.
fn with<'x>(start: &BytesStart<'_>, changed: &[(&str, &str)]) -> Result<BytesStart<'x>> {
    let mut new = BytesStart::new(text_of(start.name().as_ref()));
    for attribute in start.attributes() {
        let attribute = attribute?;
        let key = text_of(attribute.key.as_ref());
        let old = attribute.normalized_value(VERSION)?;
        let value = changed.iter().find(|(name, _)| *name == key);
        new.push_attribute((key.as_str(), value.map_or(old.as_ref(), |(_, new)| *new)));
    }
    Ok(new)
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
        <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/>\
        </interface><serial type='file'><source path='/v/log'/><target port='0'/></serial>\
        </devices></domain>";

    fn disks() -> Vec<NewDisk> {
        let disk = |old: &str, new: &str| NewDisk {
            old: old.into(),
            new: new.into(),
        };
        vec![disk("/v/a&b.qcow2", "/n/a<b"), disk("/v/web.fd", "/n/fd")]
    }

    #[test]
    fn a_copy_shares_nothing_with_the_original() {
        let changed = change(XML, Some("web2"), &disks()).unwrap();
        let xml = &changed.xml;
        assert!(xml.contains("<name>web2</name>"), "{xml}");
        for old in ["u-1", "52:54", "/v/", "backingStore", "<genid>g"] {
            assert!(!xml.contains(old), "{old}: {xml}");
        }
        assert!(xml.contains("file=\"/n/a&lt;b\""), "{xml}");
        assert!(xml.contains("<nvram>/n/fd</nvram>"), "{xml}");
        assert_eq!(changed.networks, ["lan"]);
        assert!(changed.uuid.is_none());
    }

    #[test]
    fn the_original_keeps_what_it_is() {
        let changed = change(XML, None, &disks()).unwrap();
        assert_eq!(changed.name, "web");
        assert_eq!(changed.uuid.as_deref(), Some("u-1"));
        for kept in ["u-1", "52:54:00:00:00:01", "/v/log"] {
            assert!(changed.xml.contains(kept), "{kept}: {}", changed.xml);
        }
    }

    #[test]
    fn a_disk_without_a_place_and_rubbish_are_refused() {
        let stray = [NewDisk {
            old: "/v/other".into(),
            new: "/n/other".into(),
        }];
        let error = change(XML, None, &stray).unwrap_err().to_string();
        assert!(error.contains("/v/other"), "{error}");
        for rubbish in [
            "<domain",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>",
            "<a></b>",
        ] {
            assert!(change(rubbish, None, &disks()).is_err(), "{rubbish}");
        }
    }
}
