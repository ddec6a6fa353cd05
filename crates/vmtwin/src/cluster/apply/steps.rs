//! The steps of a plan on this node's libvirt. Each finds out what is done already, so any of them
//! may be cut off and repeated.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmtwin_cluster::plan::{Item, Plan, Step, keep_passwords};
use vmtwin_libvirt::{Connection, Domain, DomainState, Error, Kind};

use super::super::libvirt::{self, MAX_NVRAM_BYTES};
use super::report::{NotDeployed, Outcome, named};
use crate::cancel::Cancel;
use crate::failpoint;

/// libvirt's own folder of them, which it makes at the first start of a guest; others are not made.
const NVRAM_DIR: &str = "/var/lib/libvirt/qemu/nvram";

/// How many of a plan's things there is something to do with.
pub(in crate::cluster) fn count(plan: &Plan) -> usize {
    let items = plan.items.iter();
    items.filter(|item| !item.steps.is_empty()).count()
}

/// Does all steps of a plan and notes what was done. What fails does not keep others from being
/// done; Ctrl-C ends it between two steps. `progress` is told how many things were tried, and which
/// is next.
pub(in crate::cluster) fn apply(
    plan: &Plan,
    force: bool,
    cancel: &Cancel,
    progress: &dyn Fn(usize, &str),
    outcome: &mut Outcome,
) -> Result<()> {
    let connection = libvirt::connect().context("libvirt does not answer on this host")?;
    let mut lost = None;
    let items = plan.items.iter().filter(|item| !item.steps.is_empty());
    for (tried, item) in items.enumerate() {
        let what = named(item);
        progress(tried, &what);
        let done = match &lost {
            Some(why) => Err(anyhow::anyhow!("its turn did not come: {why}")),
            None => each(&connection, item, cancel, force),
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

fn each(connection: &Connection, item: &Item, cancel: &Cancel, force: bool) -> Result<()> {
    for step in &item.steps {
        if cancel.is_set() {
            bail!("stopped by the user");
        }
        failpoint::pass("cluster restore step")?;
        match item.kind.as_str() {
            "volume" => volume(connection, step)?,
            "domain" => domain(connection, item, step, force)?,
            kind => object(connection, kind_of(kind)?, &item.name, step)?,
        }
    }
    Ok(())
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

fn domain(connection: &Connection, item: &Item, step: &Step, force: bool) -> Result<()> {
    let find = || connection.domain(&item.name);
    match step {
        Step::Define { definition } => define(connection, item, definition, force)?,
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
        Step::RedefineCheckpoint { definition, .. } => find()?.redefine_checkpoint(definition)?,
        Step::WriteNvram { path, content } => write_nvram(Path::new(path), content)?,
        other => bail!("{other:?} is no step of a guest"),
    }
    Ok(())
}

fn define(connection: &Connection, item: &Item, definition: &str, force: bool) -> Result<()> {
    let now: Option<Domain> = match connection.domain(&item.name) {
        Ok(domain) => Some(domain),
        Err(error) if error.is_missing() => None,
        Err(error) => return Err(error.into()),
    };
    let Some(now) = now else {
        connection.define_domain(definition)?;
        return Ok(());
    };
    if !force && now.state()? != DomainState::ShutOff {
        bail!("it runs now, and did not when the plan was made; nothing of it was changed");
    }
    let with_passwords = keep_passwords(definition, &now.definition()?);
    let definition = with_passwords.as_deref().unwrap_or(definition);
    connection.define_domain(definition)?;
    Ok(())
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
