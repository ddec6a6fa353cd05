//! What libvirt defines on this host, word for word, in an order fit for defining it again.
//!
//! Passwords and the values of secrets are left out. What could not be read is told: a backup that
//! lacks something must say so.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmtwin_cluster::node::{Object, Part};
use vmtwin_cluster::plan::{self, CURRENT_SNAPSHOT, NVRAM, TRANSIENT};
use vmtwin_libvirt::{Connection, Domain, DomainState, Error, ErrorCode, Kind};

/// The system's libvirt, and where it answers if it runs.
const URI: &str = "qemu:///system";
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];
/// What libvirt can define again, in the order of what needs what, and our names for it.
const LOGICAL: [(Kind, &str); 4] = [
    (Kind::Secret, "secret"),
    (Kind::NwFilter, "nwfilter"),
    (Kind::Network, "network"),
    (Kind::StoragePool, "pool"),
];

/// Most that UEFI variables may have, bytes: x86 has 528 KiB, a full flash chip of Arm 64 MiB.
pub(super) const MAX_NVRAM_BYTES: u64 = 4 << 20;

/// What is defined.
#[derive(Debug, Default)]
pub(super) struct Defined {
    pub(super) logical: Vec<Object>,
    pub(super) guests: Vec<Object>,
    pub(super) warnings: Vec<String>,
    pub(super) sight: Sight,
}

/// How much of libvirt could be seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    #[default]
    Whole,
    /// It did not answer, or not to the end: more may be defined than was seen.
    Broken,
    /// There is none on this host, or it was not started.
    Nothing,
}

/// Whether libvirt runs on this host.
pub(super) fn is_here() -> bool {
    SOCKETS.iter().any(|path| Path::new(path).exists())
}

/// This host's libvirt.
pub(super) fn connect() -> Result<Connection, Error> {
    Connection::open(URI)
}

/// Reads everything; nothing where libvirt does not run.
pub(super) fn collect() -> Defined {
    let mut defined = Defined::default();
    if !is_here() {
        defined.sight = Sight::Nothing;
        return defined;
    }
    let connection = match connect() {
        Ok(connection) => connection,
        Err(error) => {
            let why =
                format!("libvirt runs on this host, and nothing of it was collected: {error}");
            defined.warnings.push(why);
            defined.sight = Sight::Broken;
            return defined;
        }
    };
    for (kind, name) in LOGICAL {
        let found = logical(&connection, kind, name);
        let objects = defined.taken(name, found);
        defined.logical.extend(objects);
    }
    let found = connection
        .domains()
        .map(|domains| domains.iter().map(guest).collect());
    defined.guests = defined.taken("domain", found);
    for guest in &mut defined.guests {
        if let Err(why) = add_nvram(guest) {
            let why = format!("the UEFI variables of {} were not kept: {why}", guest.name);
            defined.warnings.push(why);
        }
    }
    defined
}

/// Adds a guest's UEFI variables, where it has a file of them.
fn add_nvram(guest: &mut Object) -> std::io::Result<()> {
    let Some(path) = plan::nvram_path(&guest.definition) else {
        return Ok(());
    };
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        // Made at its first start.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other(format!("{path} is no file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_NVRAM_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_NVRAM_BYTES {
        let why = format!("{path} has more than {MAX_NVRAM_BYTES} bytes");
        return Err(std::io::Error::other(why));
    }
    guest.parts.push(Part {
        encoding: Some("base64".to_owned()),
        ..part(NVRAM, &path, BASE64_STANDARD.encode(bytes))
    });
    Ok(())
}

/// How many guests are defined; nothing where libvirt does not run, or does not answer.
pub(super) fn count_guests() -> Option<usize> {
    if !SOCKETS.iter().any(|path| Path::new(path).exists()) {
        return None;
    }
    let connection = Connection::open(URI).ok()?;
    connection.domains().ok().map(|domains| domains.len())
}

type Found = Result<Vec<Result<Object, Error>>, Error>;

impl Defined {
    /// What was read, in the order of names; notes what was not.
    fn taken(&mut self, what: &str, found: Found) -> Vec<Object> {
        let found = match found {
            Ok(found) => found,
            // A libvirt without this driver has nothing of the kind.
            Err(error) if error.code() == Some(ErrorCode::NO_SUPPORT) => return Vec::new(),
            Err(error) => {
                self.sight = Sight::Broken;
                let why = format!("libvirt did not list any {what}: {error}");
                self.warnings.push(why);
                return Vec::new();
            }
        };
        let mut objects: Vec<Object> = Vec::new();
        for object in found {
            match object {
                Ok(object) => objects.push(object),
                // Removed since it was listed.
                Err(error) if error.is_missing() => {}
                Err(error) => {
                    // One that cannot be read does not hide the others; a libvirt that ended does.
                    if error.is_disconnected() {
                        self.sight = Sight::Broken;
                    }
                    let why = format!("libvirt did not give a {what}: {error}");
                    self.warnings.push(why);
                }
            }
        }
        objects.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
        objects
    }
}

fn logical(connection: &Connection, kind: Kind, name: &str) -> Found {
    let objects = connection.objects(kind)?;
    let read = |object: &vmtwin_libvirt::Object| {
        let mut parts = Vec::new();
        if kind == Kind::StoragePool && object.is_active()? {
            for volume in object.volumes()? {
                parts.push(part("volume", &volume.name(), volume.xml()?));
            }
            parts.sort_by(|one, other| one.name.cmp(&other.name));
        }
        if !object.is_persistent()? {
            parts.push(part(TRANSIENT, &object.name()?, String::new()));
        }
        Ok(Object {
            by: "libvirt".to_owned(),
            kind: name.to_owned(),
            name: object.name()?,
            uuid: object.uuid()?,
            active: Some(object.is_active()?),
            // Not every kind has it.
            autostart: object.autostart().ok(),
            definition: object.xml()?,
            parts,
        })
    };
    Ok(objects.iter().map(read).collect())
}

fn guest(domain: &Domain) -> Result<Object, Error> {
    let active = domain.state()? != DomainState::ShutOff;
    let mut parts = Vec::new();
    if active {
        parts.push(part("live", &domain.name(), domain.live_xml()?));
    }
    for (kind, all) in [
        ("snapshot", domain.snapshots()),
        ("checkpoint", domain.checkpoints()),
    ] {
        for (number, xml) in all?.into_iter().enumerate() {
            parts.push(part(kind, &number.to_string(), xml));
        }
    }
    if let Some(name) = domain.current_snapshot()? {
        parts.push(part(CURRENT_SNAPSHOT, &name, String::new()));
    }
    if !domain.is_persistent()? {
        parts.push(part(TRANSIENT, &domain.name(), String::new()));
    }
    Ok(Object {
        by: "libvirt".to_owned(),
        kind: "domain".to_owned(),
        name: domain.name(),
        uuid: Some(domain.uuid()?),
        active: Some(active),
        autostart: domain.autostart().ok(),
        definition: domain.public_definition()?,
        parts,
    })
}

fn part(kind: &str, name: &str, content: String) -> Part {
    Part {
        kind: kind.to_owned(),
        name: name.to_owned(),
        encoding: None,
        content,
    }
}
