//! A restored guest becomes a domain of libvirt again (`restore --libvirt`), and runs where that is
//! asked for: from its state, or from its disks.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vmtwin_catalog::VmId;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::launch::Network;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::twin::cut_off;
use vmtwin_hypervisor::undo::Undo;
use vmtwin_hypervisor::undo_guard::UndoGuard;
use vmtwin_libvirt::{Connection, Domain, Kind, RestoreAs, UndefineFlags};
use vmtwin_repository::{Repository, Snapshot, SnapshotReader};

use super::definition::{self, Changed, Identity, NewDisk, RUNNING_STORED_AS, STORED_AS};
use super::running;
use super::state::{Load, Stream};
use super::tpm;
use super::{Address, instant};
use crate::backup::{CONNECT_TIMEOUT, make_dir};
use crate::content::{Content, MACHINE_JSON, MAX_JSON_BYTES, SNAPSHOT_JSON};
use crate::failpoint;
use crate::restore::instant::Record;
use crate::restore::{ImageFormat, RestoreProgress, RestoreReport, write_state};
use crate::ui::Ui;

/// Others may enter the folder, since QEMU runs as another user; what is in it stays as it is.
const ENTER_MODE: u32 = 0o711;
const RUNNING: &str = "running";
/// Longest time that a state takes.
const LOAD_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What is to be defined.
pub(crate) struct Wanted<'a> {
    pub(crate) uri: &'a str,
    /// Name of a copy; `None` for the same domain.
    pub(crate) name: Option<&'a str>,
    /// The copy keeps the original's uuid.
    pub(crate) keep_uuid: bool,
    /// The copy keeps the original's MAC addresses.
    pub(crate) keep_macs: bool,
    /// It is to run, with such a network.
    pub(crate) run: Option<Network>,
}

/// What is to be defined, checked before anything is restored.
pub(crate) struct Plan {
    uri: String,
    libvirt: Connection,
    xml: String,
    /// Of the running domain, where its state is to be loaded.
    running: Option<String>,
    machine: Machine,
    content: Content,
    copy: Option<Identity>,
    run: Option<Network>,
}

/// A guest that libvirt has again.
pub(crate) struct Defined {
    domain: Domain,
    /// What its state is loaded into.
    xml: Option<String>,
    /// Of its disks.
    dir: PathBuf,
}

impl Plan {
    /// Reads the definition in a snapshot, checks that it can be defined, and shows what will be
    /// different.
    pub(crate) fn new(
        ui: &Ui,
        reader: &SnapshotReader,
        wanted: &Wanted<'_>,
        dir: &Path,
    ) -> Result<Plan> {
        let uri = wanted.uri;
        let read = |path| reader.read_file(path, MAX_JSON_BYTES);
        let xml = read(STORED_AS).context(
            "the snapshot holds no definition of a libvirt guest; restore without --libvirt",
        )?;
        let content: Content = serde_json::from_slice(&read(SNAPSHOT_JSON)?)?;
        let running = match wanted.run.is_some() && content.memory.is_some() {
            true => Some(text(read(RUNNING_STORED_AS).context(
                "the snapshot tells not what its memory fits; without --run it can be restored, and \
                 boots from its disks",
            )?)?),
            false => None,
        };
        let xml = text(xml)?;
        let copy = |name: &str| -> Result<Identity> {
            Ok(Identity {
                name: name.to_owned(),
                uuid: match wanted.keep_uuid {
                    true => uuid_of(&xml)?,
                    false => VmId::random()?.to_string(),
                },
                keeps_macs: wanted.keep_macs,
            })
        };
        let copy = wanted.name.map(copy).transpose()?;
        let plan = Plan {
            uri: uri.to_owned(),
            libvirt: Connection::open(uri).with_context(|| format!("cannot connect to {uri}"))?,
            xml,
            running,
            machine: serde_json::from_slice(&read(MACHINE_JSON)?)?,
            content,
            copy,
            run: wanted.run,
        };
        let disks = plan.content.disks.iter().map(|disk| {
            let format = ImageFormat::as_it_was(&disk.format);
            plan.disk(&disk.id, dir.join(&disk.id), format)
        });
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let changed = plan.change(&disks)?;
        plan.running_xml(&disks)?;
        plan.refuse_if_there(&changed)?;
        plan.tell(ui, &changed);
        Ok(plan)
    }

    fn tell(&self, ui: &Ui, changed: &Changed) {
        let name = &changed.name;
        for change in &changed.changes {
            ui.note(&format!("{name}: {change}"));
        }
        if self.copy.is_some() && self.running.is_some() {
            ui.note(&format!(
                "{name}: its running system keeps the original's MAC addresses until it is shut down"
            ));
        }
        if self.run == Some(Network::None) {
            ui.note(&format!(
                "{name}: its network leads nowhere until it is shut down and started again \
                 (--network original joins it)"
            ));
        }
        for network in &changed.networks {
            if self.libvirt.object(Kind::Network, network).is_err() {
                ui.note(&format!(
                    "warning: {name} needs network {network}, which this host does not have"
                ));
            }
        }
    }

    fn disk(&self, id: &str, new: std::path::PathBuf, format: ImageFormat) -> Result<NewDisk> {
        let old = definition::address_of(&self.machine, id);
        Ok(NewDisk {
            id: id.to_owned(),
            old: old.with_context(|| format!("the snapshot does not tell what disk {id} was"))?,
            new,
            format: format.name().to_owned(),
        })
    }

    fn change(&self, disks: &[NewDisk]) -> Result<Changed> {
        definition::change(&self.xml, self.copy.as_ref(), disks)
    }

    /// What its state is loaded into; nothing where it is not.
    fn running_xml(&self, disks: &[NewDisk]) -> Result<Option<String>> {
        let (Some(xml), Some(network)) = (&self.running, self.run) else {
            return Ok(None);
        };
        running::definition(xml, self.copy.as_ref(), disks, network).map(Some)
    }

    fn refuse_if_there(&self, changed: &Changed) -> Result<()> {
        let name = &changed.name;
        let uuid = changed.uuid.as_deref();
        let by_uuid = uuid.is_some_and(|uuid| self.libvirt.domain_by_uuid(uuid).is_ok());
        if by_uuid || self.libvirt.domain(name).is_ok() {
            bail!(
                "libvirt has domain {name}; give another name (--as NAME) to restore a copy beside \
                 it, or take it away first: virsh undefine {name}"
            );
        }
        Ok(())
    }

    /// Where its monitor will be.
    pub(crate) fn monitor(&self) -> Result<PathBuf> {
        let uuid = match &self.copy {
            Some(copy) => copy.uuid.clone(),
            None => uuid_of(&self.xml)?,
        };
        let uri = self.uri.clone();
        Ok(Address { uri, uuid }.to_path())
    }

    /// Defines the domain on the restored disks.
    pub(crate) fn define(&self, report: &RestoreReport) -> Result<Defined> {
        let disks = report.disks.iter();
        let disks = disks.map(|disk| self.disk(&disk.id, disk.path.clone(), disk.format));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let changed = self.change(&disks)?;
        self.refuse_if_there(&changed)?;
        let open = std::fs::Permissions::from_mode(ENTER_MODE);
        std::fs::set_permissions(&report.dir, open)?;
        let restored = format!("the disks are restored in {}", report.dir.display());
        let domain = self.libvirt.define_domain(&changed.xml).with_context(|| {
            format!("{restored}, but libvirt does not take the definition beside them")
        })?;
        if let Err(error) = tpm::give(&report.dir, &domain.uuid()?) {
            let _ = domain.undefine(UndefineFlags::default());
            return Err(error);
        }
        let running = self.running_xml(&disks)?;
        let running = running.map(|xml| instant::with_backing(&xml, &report.dir));
        Ok(Defined {
            domain,
            xml: running.transpose()?,
            dir: report.dir.clone(),
        })
    }

    /// Lets it run; where that fails, it is not defined any more, and its disks are there.
    pub(crate) fn run(
        &self,
        defined: &Defined,
        (repository, snapshot): (&Repository, &Snapshot),
        scratch: &Path,
        progress: &dyn RestoreProgress,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        failpoint::pass("domain defined")?;
        let domain = &defined.domain;
        let ran = self.prepare(&defined.dir).and_then(|()| {
            let Some(xml) = &defined.xml else {
                return self.boot(domain, &defined.dir);
            };
            self.load(xml, domain, scratch, cancelled, |mut out| {
                failpoint::pass("domain state")?;
                Ok(write_state(
                    repository, snapshot, &mut out, progress, cancelled,
                )?)
            })?;
            self.resume(domain)
        });
        ran.map_err(|error| {
            let _ = domain.destroy();
            let _ = domain.undefine(UndefineFlags::default());
            error.context("the guest could not be started on the restored disks")
        })
    }

    /// Has libvirt start it, paused, with the state that `write` writes.
    fn load(
        &self,
        xml: &str,
        domain: &Domain,
        scratch: &Path,
        cancelled: &dyn Fn() -> bool,
        write: impl FnOnce(Stream) -> Result<u64>,
    ) -> Result<()> {
        let dir = scratch.join(format!("load-{}", domain.uuid()?));
        let undo = Undo::DeletePath { path: dir.clone() };
        let guard = GuardCommand::of_this_program("undo-guard");
        // Dropped, or when vmtwin dies, it removes the folder.
        let _guard = UndoGuard::start(&guard, &undo, LOAD_LIMIT)?;
        make_dir(&dir)?;
        let load = Load {
            uri: &self.uri,
            xml,
            dir: &dir,
            state: RestoreAs::Paused,
            cancelled,
        };
        load.feed(write).map(drop)
    }

    /// What an instant restore needs before its guest starts.
    fn prepare(&self, dir: &Path) -> Result<()> {
        match Record::read(dir)? {
            Some(_) => instant::open_to_qemu(&self.libvirt, dir),
            None => Ok(()),
        }
    }

    /// Starts it from its disks.
    fn boot(&self, domain: &Domain, dir: &Path) -> Result<()> {
        let network = self.run.unwrap_or(Network::None);
        let xml = running::definition(&domain.definition()?, None, &[], network)?;
        let xml = instant::with_backing(&xml, dir)?;
        let started = self.libvirt.create_domain(&xml, true)?;
        let_go(&self.uri, &started, network)
    }

    fn resume(&self, domain: &Domain) -> Result<()> {
        match self.content.run_state == RUNNING {
            true => let_go(&self.uri, domain, self.run.unwrap_or(Network::None)),
            false => Ok(()),
        }
    }
}

/// Lets a domain that is paused run. One that is to be cut off is so before it runs; told to go on by
/// libvirt, it would be joined again.
pub(super) fn let_go(uri: &str, domain: &Domain, network: Network) -> Result<()> {
    if network != Network::None {
        return Ok(domain.resume()?);
    }
    let address = Address {
        uri: uri.to_owned(),
        uuid: domain.uuid()?,
    };
    let mut qmp = Qmp::connect(&address.to_path(), CONNECT_TIMEOUT)?;
    cut_off(qmp.peer().pid)?;
    qmp.execute("cont", Value::Null)?;
    Ok(())
}

impl Defined {
    pub(crate) fn name(&self) -> String {
        self.domain.name()
    }
}

fn uuid_of(xml: &str) -> Result<String> {
    let domain = definition::parse(xml)?;
    let uuid = domain.text_of("uuid").map(str::to_owned);
    uuid.context("the stored definition has no uuid")
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("the stored definition is not text")
}
