//! File systems that the guest's agent freezes around the point (`--consistency filesystem`).
//!
//! ```text
//!   journal, guard ─► freeze ─► point ─► still frozen? ─► thaw ─► guard and journal released
//! ```
//! A frozen guest waits with every write, so the undo is in the journal and with a guard of its own
//! (`vmtwin_hypervisor::undo_guard`) before the agent is asked. It is thawed as soon as the point is
//! taken; disks are read afterwards.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmtwin_catalog::ConnectionKind;
use vmtwin_hypervisor::agent;
use vmtwin_hypervisor::capture::Journal;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::launch::agent_socket;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::undo::{GuestRef, Undo};
use vmtwin_hypervisor::undo_guard::UndoGuard;

use super::Work;
use crate::failpoint;
use crate::journal::JobJournal;
use crate::libvirt::monitor_of;

/// The command of the guard's process.
pub(crate) const UNDO_GUARD: &str = "undo-guard";
/// Longest time in which file systems are frozen, on top of that for freezing.
const POINT_LIMIT: Duration = Duration::from_secs(20);

/// File systems that are frozen. Dropping it thaws them.
pub(super) struct Frozen<'a> {
    agent: PathBuf,
    undo: Undo,
    guard: Option<UndoGuard>,
    journal: JobJournal<'a>,
    token: Option<u64>,
    since: Instant,
}

impl<'a> Work<'a> {
    /// Where the guest's agent is, if one answers that can freeze.
    pub(super) fn agent(&self, machine: &Machine) -> Result<PathBuf> {
        let agent = match self.vm.connection.kind {
            ConnectionKind::Libvirt => monitor_of(self.vm),
            ConnectionKind::Qmp => agent_socket(machine).context(
                "the guest has no port for a guest agent: QEMU needs a chardev of type socket with \
                 server=on behind a virtserialport called org.qemu.guest_agent.0",
            )?,
        };
        agent::can_freeze(&agent).context("its guest agent does not answer as it should")?;
        Ok(agent)
    }

    /// Freezes the guest's file systems.
    pub(super) fn freeze(&self, guest: GuestRef, agent: PathBuf) -> Result<Frozen<'a>> {
        let limit = Duration::from_secs(self.args.capture.freeze_limit_s);
        let undo = Undo::Thaw {
            guest,
            agent: agent.clone(),
        };
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let token = journal.register("freeze", &undo);
        let token = token.map_err(anyhow::Error::from_boxed)?;
        let mut frozen = Frozen {
            agent,
            undo,
            guard: None,
            journal,
            token: Some(token),
            since: Instant::now(),
        };
        let command = GuardCommand::of_this_program(UNDO_GUARD);
        let guard = UndoGuard::start(&command, &frozen.undo, limit + POINT_LIMIT);
        frozen.guard = Some(guard.context("cannot start the guard of the frozen file systems")?);
        failpoint::pass("freeze")?;
        agent::freeze(&frozen.agent, limit)
            .context("the guest's agent could not freeze its file systems")?;
        failpoint::pass("frozen")?;
        Ok(frozen)
    }
}

impl Frozen<'_> {
    /// Thaws, and says how long they were frozen. An error means that the point may lie outside: they
    /// were thawed by somebody else before.
    pub(super) fn thaw(mut self) -> Result<Duration> {
        let held = agent::is_frozen(&self.agent);
        self.end()?;
        let took = self.since.elapsed();
        match held {
            Ok(true) => Ok(took),
            Ok(false) => bail!("the file systems were thawed before the point was taken"),
            Err(error) => Err(error).context("the agent does not say whether they were frozen"),
        }
    }

    fn end(&mut self) -> Result<()> {
        let Some(token) = self.token.take() else {
            return Ok(());
        };
        self.undo.apply()?;
        let guard = self.guard.take().map(UndoGuard::release);
        self.journal
            .undone(token)
            .map_err(anyhow::Error::from_boxed)?;
        guard.transpose().context("they were frozen for too long")?;
        Ok(())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(
                "the guest's file systems may be frozen: {error:#}; run: vmtwin recover"
            );
        }
    }
}
