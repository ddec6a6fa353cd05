//! A twin as a domain of libvirt: transient, named after its guest, visible to `virsh list`, and
//! cut off.
//!
//! ```text
//!   definition of the running guest ─► twin's: own name, overlays, no network, nothing of the host
//!   spool ─► save image that is no file ─► libvirt ─► domain, paused ─► twin (by its monitor)
//! ```
//! Only what is known to be harmless twice is taken over: a device of any other kind, or a command
//! line of the user's own, and the twin is a QEMU of vmtwin's instead, which decides by QEMU's own
//! arguments. So it is too where QEMU's user cannot reach the twin's folder, and where libvirt
//! refuses it before it has taken memory.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmtwin_catalog::{ConnectionKind, Vm, VmId};
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::process::user_and_group;
use vmtwin_hypervisor::twin::{Backing, CONSOLE_SOCKET, Overlay, Twin, cut_off};
use vmtwin_hypervisor::undo::Undo;
use vmtwin_hypervisor::undo_guard::UndoGuard;
use vmtwin_libvirt::RestoreAs;

use super::Address;
use super::definition::{self, Identity, NewDisk, devices};
use super::running::{forget_this_run, isolate};
use super::state::{Load, Stream};
use super::xml::Element;

/// Longest life of a twin whose maker died; recovery ends it earlier.
const LIFE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// What says that a domain is a twin, in its description.
pub(crate) const MARK: &str = "Twin made by vmtwin";

/// What may stand beside the devices of a twin.
const PARTS: &[&str] = &[
    "blkiotune",
    "bootloader",
    "clock",
    "cpu",
    "cputune",
    "currentMemory",
    "devices",
    "features",
    "genid",
    "iothreadids",
    "iothreads",
    "maxMemory",
    "memory",
    "memoryBacking",
    "memtune",
    "name",
    "numatune",
    "os",
    "pm",
    "resource",
    "sysinfo",
    "throttlegroups",
    "uuid",
    "vcpu",
    "vcpus",
];
/// Parts of the original that a twin has no use for.
const DROPPED_PARTS: &[&str] = &[
    "description",
    "metadata",
    "on_crash",
    "on_lockfailure",
    "on_poweroff",
    "on_reboot",
    "perf",
    "seclabel",
    "title",
];
/// Devices that nothing else can hang on.
const DEVICES: &[&str] = &[
    "audio",
    "channel",
    "console",
    "controller",
    "disk",
    "emulator",
    "graphics",
    "hub",
    "input",
    "interface",
    "iommu",
    "memballoon",
    "panic",
    "parallel",
    "rng",
    "serial",
    "sound",
    "tpm",
    "video",
    "vsock",
    "watchdog",
];

/// A twin that can be made.
pub(crate) struct DomainTwin {
    uri: String,
    identity: Identity,
    xml: String,
    overlays: Vec<Overlay>,
    dir: PathBuf,
    /// QEMU's user and group.
    owner: (u32, u32),
}

impl DomainTwin {
    /// Plans a twin of a guest that runs as `machine`, defined as `running`, in the folder `dir` to
    /// come. An error says why it cannot be a domain.
    pub(crate) fn plan(
        vm: &Vm,
        machine: &Machine,
        running: &str,
        name: &str,
        dir: &Path,
        backing: impl Fn(&str) -> Backing,
    ) -> Result<DomainTwin> {
        if vm.connection.kind != ConnectionKind::Libvirt {
            bail!("its guest is not one");
        }
        let owner = user_and_group(machine.pid).context("its guest's process is gone")?;
        may_enter(dir.parent().unwrap_or(dir), owner)?;
        let identity = Identity {
            name: name.to_owned(),
            uuid: VmId::random()?.to_string(),
            keeps_macs: true,
        };
        let disks = machine.disks.iter().filter(|disk| disk.included);
        let overlays = disks.map(|disk| match disk.firmware {
            true => Overlay::copy(disk, backing(&disk.id), dir),
            false => Overlay::new(disk, backing(&disk.id), dir),
        });
        let overlays: Vec<Overlay> = overlays.collect();
        let new = overlays.iter().map(|overlay| NewDisk {
            id: overlay.disk_id.clone(),
            old: definition::address_of(machine, &overlay.disk_id).unwrap_or_default(),
            new: overlay.path.clone(),
            format: overlay.format.to_owned(),
        });
        let new: Vec<NewDisk> = new.collect();
        let description = format!("{MARK} of {}: it is cut off, and ends by itself.", vm.name);
        let xml = definition(running, &identity, &new, &description, dir)?;
        Ok(DomainTwin {
            uri: vm.connection.address.clone(),
            identity,
            xml,
            overlays,
            dir: dir.to_owned(),
            owner,
        })
    }

    pub(crate) fn overlays(&self) -> &[Overlay] {
        &self.overlays
    }

    pub(crate) fn uuid(&self) -> &str {
        &self.identity.uuid
    }

    pub(crate) fn connection(&self) -> vmtwin_catalog::Connection {
        vmtwin_catalog::Connection {
            kind: ConnectionKind::Libvirt,
            address: self.uri.clone(),
        }
    }

    /// Where its monitor is.
    fn address(&self) -> PathBuf {
        Address {
            uri: self.uri.clone(),
            uuid: self.identity.uuid.clone(),
        }
        .to_path()
    }

    /// What ends it: its overlays are on its QEMU's command line.
    pub(crate) fn undo(&self) -> Undo {
        Undo::Process {
            argument: self.dir.clone(),
        }
    }

    /// Makes its disks, has libvirt start it on the stream that `write` writes, and takes it over,
    /// paused and cut off. `write` is not called before libvirt has taken the domain.
    pub(crate) fn load(
        &self,
        sockets: &[&Path],
        cancelled: &dyn Fn() -> bool,
        write: impl FnOnce(Stream) -> Result<()>,
    ) -> Result<(Twin, TwinGuard)> {
        let (uid, gid) = self.owner;
        for path in [self.dir.as_path()].iter().chain(sockets) {
            chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to QEMU's user", path.display()))?;
        }
        for overlay in &self.overlays {
            overlay.create()?;
            chown(&overlay.path, Some(uid), Some(gid))?;
        }
        let guard = TwinGuard::start(&self.undo())?;
        let load = Load {
            uri: &self.uri,
            xml: &self.xml,
            dir: &self.dir,
            state: RestoreAs::Paused,
            cancelled,
        };
        load.feed(write)?;
        let log = PathBuf::from(format!("/var/log/libvirt/qemu/{}.log", self.identity.name));
        let twin = Twin::adopt_relayed(&self.address(), &self.dir, &log)?;
        cut_off(twin.pid())?;
        Ok((twin, guard))
    }
}

/// Ends a twin when vmtwin dies: a domain does not by itself.
pub(crate) struct TwinGuard(UndoGuard);

impl TwinGuard {
    fn start(undo: &Undo) -> Result<TwinGuard> {
        let command = GuardCommand::of_this_program("undo-guard");
        let guard = UndoGuard::start(&command, undo, LIFE_LIMIT);
        Ok(TwinGuard(guard.context("the twin's guard does not start")?))
    }

    /// The twin has ended.
    pub(crate) fn release(self) -> Result<()> {
        Ok(self.0.release()?)
    }
}

/// Whether QEMU's user may get into a folder, by the modes of all above it.
fn may_enter(dir: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    for folder in dir.ancestors() {
        let Ok(found) = folder.metadata() else {
            continue; // it will be made, for all to enter
        };
        let execute = match (uid, found.uid() == uid, found.gid() == gid) {
            (0, ..) => 0o111,
            (_, true, _) => 0o100,
            (_, _, true) => 0o010,
            _ => 0o001,
        };
        if found.mode() & execute == 0 {
            bail!(
                "QEMU's user may not enter {}; --scratch gives it another folder",
                folder.display()
            );
        }
    }
    Ok(())
}

/// The definition of a twin.
fn definition(
    running: &str,
    identity: &Identity,
    disks: &[NewDisk],
    description: &str,
    dir: &Path,
) -> Result<String> {
    let mut domain = definition::parse(running)?;
    domain.remove(DROPPED_PARTS);
    let strange = |child: &&Element| !PARTS.contains(&child.name.as_str());
    if let Some(part) = domain.children.iter().find(strange) {
        bail!("the definition of its guest has a part <{}>", part.name);
    }
    definition::rename(&mut domain, identity, &mut |_| {});
    domain
        .children
        .insert(2, Element::of_text("description", description));
    for event in ["on_poweroff", "on_reboot", "on_crash"] {
        domain.children.push(Element::of_text(event, "destroy"));
    }
    if let Some(backing) = domain.child_mut("memoryBacking") {
        // Pages of the same content: what they lie in is not part of the state.
        backing.remove(&["hugepages", "locked", "nosharepages"]);
    }
    definition::put_disks(&mut domain, disks, &mut |_| {})?;
    forget_this_run(&mut domain);
    let mut consoles = 0;
    for device in &mut devices(&mut domain).children {
        make_harmless(device, &mut consoles, dir)?;
    }
    domain.to_xml()
}

fn make_harmless(device: &mut Element, consoles: &mut usize, dir: &Path) -> Result<()> {
    match device.name.as_str() {
        "disk" => {
            // Left in: the medium of a drive, which no twin writes to.
            let ours = device.child("source").and_then(|s| s.get("file"));
            let ours = ours.is_some_and(|file| Path::new(file).starts_with(dir));
            let medium = matches!(device.get("device"), Some("cdrom" | "floppy"));
            if !ours && !medium && device.child("readonly").is_none() {
                bail!("a disk of its guest is not part of the backup");
            }
            if let Some(driver) = device.child_mut("driver") {
                ["cache", "io"].iter().for_each(|key| driver.unset(key));
            }
        }
        "interface" => isolate(device)?,
        "serial" | "parallel" | "console" => make_console(device, consoles, dir),
        "channel" => match device.get("type") {
            Some("unix") => {
                device.remove(&["source"]);
            }
            _ => {
                device.remove(&["source", "protocol", "log"]);
                device.set("type", "null");
            }
        },
        "graphics" => {
            let kind = device.get("type").unwrap_or_default().to_owned();
            let spice = kind == "spice";
            if !spice && kind != "vnc" {
                bail!("its guest has a display of type '{kind}'");
            }
            *device = Element::new("graphics", &[("type", &kind)]);
            device
                .children
                .push(Element::new("listen", &[("type", "none")]));
        }
        "audio" => {
            let id = device.get("id").unwrap_or("1").to_owned();
            *device = Element::new("audio", &[("id", &id), ("type", "none")]);
        }
        "vsock" => {
            device.remove(&["cid"]);
            let cid = Element::new("cid", &[("auto", "yes")]);
            device.children.insert(0, cid);
        }
        "rng" => {
            let random = |b: &Element| b.is("model", "random") || b.is("model", "builtin");
            if !device.child("backend").is_some_and(random) {
                bail!("its guest's random numbers come from a program of the host");
            }
        }
        "tpm" => {
            let emulated = |b: &Element| b.is("type", "emulator");
            if !device.child("backend").is_some_and(emulated) {
                bail!("its guest's TPM is one of the host");
            }
        }
        name if !DEVICES.contains(&name) => bail!("its guest has a device <{name}>"),
        _ => {}
    }
    Ok(())
}

/// The first console can be typed on; the others lead nowhere. `<console>` stands for a serial port
/// that is there already, or is one of its own.
fn make_console(device: &mut Element, consoles: &mut usize, dir: &Path) {
    device.remove(&["source", "log", "protocol"]);
    let twice = device.name == "console"
        && device
            .child("target")
            .is_none_or(|target| target.is("type", "serial"));
    if device.name == "parallel" || (*consoles > 0 && !twice) {
        device.set("type", "null");
        return;
    }
    *consoles += 1;
    device.set("type", "unix");
    let socket = dir.join(CONSOLE_SOCKET).to_string_lossy().into_owned();
    device.children.insert(
        0,
        Element::new("source", &[("mode", "bind"), ("path", &socket)]),
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn twin_of(devices: &str, parts: &str) -> Result<String> {
        let xml = format!(
            "<domain type='kvm' id='7'><name>web</name><uuid>u-1</uuid><title>t</title>\
             <metadata><x/></metadata><memoryBacking><hugepages/><source type='memfd'/>\
             </memoryBacking><on_reboot>restart</on_reboot>{parts}<devices>\
             <disk type='file' device='disk'><driver name='qemu' type='raw' io='native'/>\
             <source file='/v/a'/><target dev='vda' bus='virtio'/></disk>{devices}</devices>\
             </domain>"
        );
        let identity = Identity {
            name: "web-twin-1".into(),
            uuid: "u-2".into(),
            keeps_macs: true,
        };
        let disk = NewDisk {
            id: "virtio-disk0".into(),
            old: "/v/a".into(),
            new: "/run/x/virtio-disk0.qcow2".into(),
            format: "qcow2".into(),
        };
        definition(&xml, &identity, &[disk], "what it is", Path::new("/run/x"))
    }

    #[test]
    fn a_twin_shares_nothing_with_its_guest() {
        let devices = "<interface type='network'><mac address='52:54:00:00:00:07'/>\
             <source network='lan'/><filterref filter='f'/></interface>\
             <serial type='file'><source path='/v/log'/><target port='0'/></serial>\
             <serial type='tcp'><source host='h'/><target port='1'/></serial>\
             <console type='file'><source path='/v/log'/><target type='serial'/></console>\
             <channel type='spicevmc'><target type='virtio' name='s'/></channel>\
             <graphics type='spice' port='5900' passwd='secret'/><audio id='1' type='spice'/>\
             <vsock><cid auto='no' address='3'/></vsock>";
        let xml = twin_of(devices, "").unwrap();
        for gone in [
            "u-1",
            "/v/",
            "lan",
            "filterref",
            "secret",
            "5900",
            "spicevmc",
            "metadata",
            "hugepages",
            "restart",
            "io=",
            "address=\"3\"",
            "tcp",
        ] {
            assert!(!xml.contains(gone), "{gone}: {xml}");
        }
        for kept in ["52:54:00:00:00:07", "memfd", "what it is"] {
            assert!(xml.contains(kept), "{kept}: {xml}");
        }
        assert_eq!(xml.matches("/run/x/tty.sock").count(), 2, "{xml}");
        assert_eq!(xml.matches("type=\"null\"").count(), 2, "{xml}");
    }

    #[test]
    fn what_may_lead_out_is_no_domain() {
        for devices in [
            "<hostdev mode='subsystem'/>",
            "<filesystem type='mount'/>",
            "<shmem name='s'/>",
            "<memory model='nvdimm'/>",
            "<rng><backend model='egd'/></rng>",
            "<tpm><backend type='passthrough'/></tpm>",
            "<interface type='hostdev'/>",
            "<disk type='file' device='disk'><source file='/v/b'/><target dev='vdb'/></disk>",
            "<unheard-of/>",
        ] {
            assert!(twin_of(devices, "").is_err(), "{devices}");
        }
        let commandline = "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>";
        assert!(twin_of("", commandline).is_err());
    }

    #[test]
    fn folders_are_entered_by_their_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&dir, closed).unwrap();
        let nobody = (65534, 65534);
        assert!(may_enter(&dir.path().join("to/come"), nobody).is_err());
        may_enter(&dir.path().join("to/come"), (0, 0)).unwrap();
        may_enter(Path::new("/tmp"), nobody).unwrap();
    }
}
