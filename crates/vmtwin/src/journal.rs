//! The journal of a job: undos in the catalog before they are due.
//!
//! Joins the capture's [`Journal`] with the catalog. The undo of a pause and the table's resume
//! flag are one commit, so that a crash at any time leaves a record of who must be resumed.

use anyhow::Result;
use vmtwin_catalog::{JobId, StepId, VmId};
use vmtwin_hypervisor::capture::{Journal, JournalError};
use vmtwin_hypervisor::undo::Undo;

use crate::db::Db;
use crate::failpoint;

/// The journal of one job, on one guest or on none.
pub(crate) struct JobJournal<'a> {
    db: &'a Db,
    job: JobId,
    vm: Option<VmId>,
    pause: Option<u64>,
}

impl<'a> JobJournal<'a> {
    pub(crate) fn new(db: &'a Db, job: JobId, vm: VmId) -> JobJournal<'a> {
        JobJournal {
            db,
            job,
            vm: Some(vm),
            pause: None,
        }
    }

    /// The journal of a job that touches no guest.
    pub(crate) fn without_guest(db: &'a Db, job: JobId) -> JobJournal<'a> {
        JobJournal {
            db,
            job,
            vm: None,
            pause: None,
        }
    }

    /// Registers undos, does the thing they are for, and applies them in reverse, however it ended.
    pub(crate) fn within<T>(
        &mut self,
        undos: &[(&str, Undo)],
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut tokens = Vec::new();
        for (step, undo) in undos {
            let token = self.register(step, undo);
            tokens.push(token.map_err(anyhow::Error::from_boxed)?);
        }
        let outcome = act(self);
        for (token, (_, undo)) in tokens.into_iter().zip(undos).rev() {
            undo.apply()?;
            self.undone(token).map_err(anyhow::Error::from_boxed)?;
        }
        outcome
    }

    /// Registers an undo, does the thing, and returns the token for [`Journal::undone`].
    pub(crate) fn around<T>(
        &mut self,
        step: &str,
        undo: &Undo,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<(u64, T)> {
        let token = self
            .register(step, undo)
            .map_err(anyhow::Error::from_boxed)?;
        self.step(step).map_err(anyhow::Error::from_boxed)?;
        Ok((token, act()?))
    }
}

impl Journal for JobJournal<'_> {
    fn register(&mut self, step: &str, undo: &Undo) -> Result<u64, JournalError> {
        let value = serde_json::to_value(undo)?;
        let (db, job) = (self.db, &self.job);
        if let (Undo::Resume { .. }, Some(vm)) = (undo, &self.vm) {
            let id = db.run(async |c| c.record_pause(job, vm, step, &value).await)?;
            self.pause = Some(token(id));
            return Ok(token(id));
        }
        Ok(token(
            db.run(async |c| c.register_step(job, step, &value).await)?,
        ))
    }

    fn undone(&mut self, token: u64) -> Result<(), JournalError> {
        let step = StepId(i64::try_from(token)?);
        match &self.vm {
            Some(vm) if self.pause == Some(token) => {
                self.db.run(async |c| c.record_resume(vm, step).await)?;
                self.pause = None;
            }
            _ => self.db.run(async |c| c.mark_undone(step).await)?,
        }
        Ok(())
    }

    fn step(&mut self, name: &str) -> Result<(), JournalError> {
        failpoint::pass(name)?;
        Ok(())
    }
}

fn token(id: StepId) -> u64 {
    u64::try_from(id.0).unwrap_or(u64::MAX)
}
