//! What libvirt defines on this host, word for word, in an order fit for defining it again.
//!
//! Passwords and the values of secrets are left out. What could not be read is told: a backup that
//! lacks something must say so.

use std::path::Path;

use vmtwin_cluster::node::{Object, Part};
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

/// What is defined.
#[derive(Debug, Default)]
pub(super) struct Defined {
    pub(super) logical: Vec<Object>,
    pub(super) guests: Vec<Object>,
    pub(super) warnings: Vec<String>,
}

/// Reads everything; nothing where libvirt does not run.
pub(super) fn collect() -> Defined {
    let mut defined = Defined::default();
    if !SOCKETS.iter().any(|path| Path::new(path).exists()) {
        return defined;
    }
    let connection = match Connection::open(URI) {
        Ok(connection) => connection,
        Err(error) => {
            let why =
                format!("libvirt runs on this host, and nothing of it was collected: {error}");
            defined.warnings.push(why);
            return defined;
        }
    };
    for (kind, name) in LOGICAL {
        let found = logical(&connection, kind, name);
        take(name, found, &mut defined.logical, &mut defined.warnings);
    }
    let found = connection
        .domains()
        .map(|domains| domains.iter().map(guest).collect());
    take("domain", found, &mut defined.guests, &mut defined.warnings);
    defined
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

/// Keeps what was read, in the order of names; tells what was not.
fn take(what: &str, found: Found, into: &mut Vec<Object>, warnings: &mut Vec<String>) {
    let found = match found {
        Ok(found) => found,
        // A libvirt without this driver has nothing of the kind.
        Err(error) if error.code() == Some(ErrorCode::NO_SUPPORT) => return,
        Err(error) => return warnings.push(format!("libvirt did not list any {what}: {error}")),
    };
    let mut objects = Vec::new();
    for object in found {
        match object {
            Ok(object) => objects.push(object),
            // Removed since it was listed.
            Err(error) if error.is_missing() => {}
            Err(error) => warnings.push(format!("libvirt did not give a {what}: {error}")),
        }
    }
    objects.sort_by(|one: &Object, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
    into.append(&mut objects);
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
