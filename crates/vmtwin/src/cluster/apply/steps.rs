//! The steps of a plan on this node: its hardware, then its libvirt. Each finds out what is done already, so any of them
//! may be cut off and repeated.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmtwin_cluster::NodeSecrets;
use vmtwin_cluster::plan::{Item, Plan, Section, Step, keep_passwords};
use vmtwin_libvirt::{Connection, Domain, DomainState, Error, Kind};
use zeroize::Zeroizing;

use super::super::libvirt::{self, MAX_NVRAM_BYTES};
use super::super::secrets;
use super::hardware;
use super::host::Prepared;
use super::report::{NotDeployed, Outcome, named};
use crate::cancel::Cancel;
use crate::failpoint;
use crate::home::Home;

/// libvirt's own folder of them, which it makes at the first start of a guest; others are not made.
const NVRAM_DIR: &str = "/var/lib/libvirt/qemu/nvram";

/// A file of the node's own, as plans call it.
const FILE: &str = "file";

/// How many of a plan's things there is something to do with.
pub(in crate::cluster) fn count(plan: &Plan) -> usize {
    let items = plan.items.iter();
    items.filter(|item| !item.steps.is_empty()).count()
}

/// Does all steps of a plan and notes what was done. What fails does not keep others from being
/// done; Ctrl-C ends it between two steps. `progress` is told how many things were tried, and which
/// is next.
pub(in crate::cluster) fn apply(
    home: &Home,
    prepared: &Prepared,
    force: bool,
    progress: &dyn Fn(usize, &str),
    outcome: &mut Outcome,
) -> Result<()> {
    let is_of_libvirt = |item: &Item| {
        !item.steps.is_empty() && item.kind != FILE && item.section != Section::Hardware
    };
    let connection = match prepared.plan.items.iter().any(is_of_libvirt) {
        true => Some(libvirt::connect().context("libvirt does not answer on this host")?),
        // A node may have none, and files of its own all the same.
        false => None,
    };
    let host = Host {
        home,
        connection,
        secrets: prepared.secrets.as_ref().map(|(then, _)| &then.secrets),
        force,
    };
    let cancel = home.cancel();
    let mut lost = None;
    let items = prepared
        .plan
        .items
        .iter()
        .filter(|item| !item.steps.is_empty());
    for (tried, item) in items.enumerate() {
        let what = named(item);
        progress(tried, &what);
        let done = match &lost {
            Some(why) => Err(anyhow::anyhow!("its turn did not come: {why}")),
            None => host.item(item, &cancel),
        };
        match done {
            Ok(()) => outcome.deployed.push(what),
            Err(error) => {
                if cancel.is_set() {
                    lost.get_or_insert("stopped by the user");
                } else if is_disconnected(&error) {
                    lost.get_or_insert("libvirt is gone");
                }
                outcome.not_deployed.push(NotDeployed {
                    what,
                    why: format!("{error:#}"),
                    failed: true,
                });
            }
        }
    }
    Ok(())
}

fn is_disconnected(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<Error>();
    error.is_some_and(Error::is_disconnected)
}

/// What steps are done on.
struct Host<'a> {
    home: &'a Home,
    connection: Option<Connection>,
    /// What the backup's were, where they were opened.
    secrets: Option<&'a NodeSecrets>,
    /// Running guests get their definition too.
    force: bool,
}

impl Host<'_> {
    fn connection(&self) -> Result<&Connection> {
        let connection = self.connection.as_ref();
        connection.context("libvirt does not answer on this host")
    }

    fn item(&self, item: &Item, cancel: &Cancel) -> Result<()> {
        for step in &item.steps {
            if cancel.is_set() {
                bail!("stopped by the user");
            }
            failpoint::pass("cluster restore step")?;
            match (item.kind.as_str(), step) {
                _ if item.section == Section::Hardware => hardware::apply(Path::new("/"), step)?,
                ("volume", _) => volume(self.connection()?, step)?,
                ("domain", _) => self.domain(item, step)?,
                ("secret", Step::SetValue) => self.set_value(&item.name)?,
                (FILE, Step::KeepFile) => self.keep_file(&item.name)?,
                (kind, _) => object(self.connection()?, kind_of(kind)?, &item.name, step)?,
            }
        }
        Ok(())
    }

    /// A secret's name is its UUID.
    fn set_value(&self, uuid: &str) -> Result<()> {
        let value = self.secrets.and_then(|secrets| secrets.values.get(uuid));
        let value = value.context("its value is not known")?;
        let value = BASE64_STANDARD.decode(value.as_bytes());
        // The text of that error would show what it stumbled over.
        let value = value.map_err(|_| anyhow!("its value in the backup is damaged"))?;
        let secret = self.connection()?.object(Kind::Secret, uuid)?;
        Ok(secret.set_secret_value(&Zeroizing::new(value))?)
    }

    fn keep_file(&self, name: &str) -> Result<()> {
        let text = self.secrets.and_then(|secrets| secrets.files.get(name));
        secrets::keep_file(self.home, name, text.context("it is not known")?)
    }

    fn domain(&self, item: &Item, step: &Step) -> Result<()> {
        let connection = self.connection()?;
        let find = || connection.domain(&item.name);
        match step {
            Step::Define { definition } => self.define(&item.name, definition)?,
            Step::Autostart { on } => find()?.set_autostart(*on)?,
            Step::Start => {
                let domain = find()?;
                if domain.state()? == DomainState::ShutOff {
                    domain.start(false)?;
                }
            }
            Step::RedefineSnapshot {
                definition,
                current,
                ..
            } => find()?.redefine_snapshot(definition, *current)?,
            Step::RedefineCheckpoint { definition, .. } => {
                find()?.redefine_checkpoint(definition)?;
            }
            Step::WriteNvram { path, content } => write_nvram(Path::new(path), content)?,
            other => bail!("{other:?} is no step of a guest"),
        }
        Ok(())
    }

    /// With the passwords of the backup, where they were opened and it had some; else with those that it
    /// has: never with some of both.
    fn define(&self, name: &str, definition: &str) -> Result<()> {
        let now: Option<Domain> = match self.connection()?.domain(name) {
            Ok(domain) => Some(domain),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error.into()),
        };
        let mut definition = Zeroizing::new(definition.to_owned());
        let then = self
            .secrets
            .and_then(|secrets| secrets.definitions.get(name));
        if let Some(now) = &now
            && !self.force
            && now.state()? != DomainState::ShutOff
        {
            bail!("it runs now, and did not when the plan was made; nothing of it was changed");
        }
        match (then, now) {
            (Some(then), _) => keep(&mut definition, then),
            (None, Some(now)) => keep(&mut definition, &Zeroizing::new(now.definition()?)),
            (None, None) => {}
        }
        self.connection()?.define_domain(&definition)?;
        Ok(())
    }
}

fn kind_of(kind: &str) -> Result<Kind> {
    Ok(match kind {
        "secret" => Kind::Secret,
        "nwfilter" => Kind::NwFilter,
        "network" => Kind::Network,
        "pool" => Kind::StoragePool,
        other => bail!("no step is known for a {other}"),
    })
}

fn object(connection: &Connection, kind: Kind, name: &str, step: &Step) -> Result<()> {
    let find = || connection.object(kind, name);
    match step {
        Step::Define { definition } => connection.define(kind, definition).map(|_| ())?,
        // Done already, if it is there.
        Step::StartTransient { definition } => match find() {
            Ok(_) => {}
            Err(error) if error.is_missing() => {
                connection.start_transient(kind, definition).map(|_| ())?;
            }
            Err(error) => return Err(error.into()),
        },
        Step::BuildPool => find()?.build_pool()?,
        Step::Autostart { on } => find()?.set_autostart(*on)?,
        Step::Start => {
            let object = find()?;
            if !object.is_active()? {
                object.start()?;
            }
        }
        other => bail!("{other:?} is no step of a {}", kind.as_str()),
    }
    Ok(())
}

/// What is there is never touched: looked for after a refresh, by its name and by its path.
fn volume(connection: &Connection, step: &Step) -> Result<()> {
    let Step::CreateVolume {
        pool,
        volume,
        definition,
    } = step
    else {
        bail!("{step:?} is no step of a volume");
    };
    let pool = connection.object(Kind::StoragePool, pool)?;
    pool.refresh_pool()?;
    match pool.volume(volume) {
        Ok(_) => Ok(()),
        Err(error) if error.is_missing() => Ok(pool.create_volume(definition).map(|_| ())?),
        Err(error) => Err(error.into()),
    }
}

/// Puts the passwords of another definition into one.
fn keep(definition: &mut Zeroizing<String>, of: &str) {
    if let Some(with) = keep_passwords(definition, of) {
        *definition = Zeroizing::new(with);
    }
}

/// A new file, as a whole or not at all; what is there stays. libvirt gives it to QEMU's user when
/// the guest starts.
fn write_nvram(path: &Path, content: &str) -> Result<()> {
    if content.len() as u64 > MAX_NVRAM_BYTES * 2 {
        bail!("its UEFI variables have more than {MAX_NVRAM_BYTES} bytes");
    }
    let bytes = BASE64_STANDARD
        .decode(content.trim())
        .context("its UEFI variables in the backup are damaged")?;
    let folder = path.parent().context("no folder")?;
    let write = || -> std::io::Result<()> {
        if folder.starts_with(NVRAM_DIR) {
            std::fs::create_dir_all(folder)?;
        }
        let mut partial = tempfile::Builder::new()
            .prefix(".vmtwin-")
            .tempfile_in(folder)?;
        partial.write_all(&bytes)?;
        partial.as_file().sync_all()?;
        match partial.persist_noclobber(path) {
            Err(error) if error.error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error.error)
            }
            _ => Ok(()),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
