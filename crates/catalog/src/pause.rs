//! The pause in the catalog: row and journal change together, in one commit each way.
//!
//! ```text
//! record_pause ─► on disk: step registered, state paused, resume flag set
//!      │ the guest is paused, duplicated, resumed
//! record_resume ► on disk: step undone, state running, resume flag cleared
//! ```
//!
//! A crash anywhere between the two leaves an open step and a set flag: recovery resumes the
//! guest. A guest that was paused or stopped before must not come here, since it must not be
//! resumed.

use serde_json::Value;

use crate::error::{Result, database};
use crate::id::{JobId, StepId, VmId};
use crate::job;
use crate::open::Catalog;
use crate::sql::{Transaction, query};
use crate::step;
use crate::transition::StepState;
use crate::vm::{self, VmState};

impl Catalog {
    /// Records that a running guest is about to be paused. Pause it only after this returned.
    pub async fn record_pause(
        &self,
        job: &JobId,
        vm: &VmId,
        name: &str,
        undo: &Value,
    ) -> Result<StepId> {
        let mut write = self.write().await?;
        job::refuse_if_ended(&mut write, job).await?;
        let step = step::append(&mut write, job, name, undo).await?;
        set(&mut write, vm, VmState::Paused, true).await?;
        self.commit(write).await?;
        Ok(step)
    }

    /// Records that the guest runs again.
    pub async fn record_resume(&self, vm: &VmId, step: StepId) -> Result<()> {
        let mut write = self.write().await?;
        step::change(&mut write, step, StepState::Undone).await?;
        set(&mut write, vm, VmState::Running, false).await?;
        self.commit(write).await
    }
}

async fn set(write: &mut Transaction, id: &VmId, state: VmState, resume_flag: bool) -> Result<()> {
    vm::lock(write, id).await?;
    query("UPDATE vm SET state = $2, resume_flag = $3 WHERE id = $1")
        .bind(id.as_str())
        .bind(state.as_str())
        .bind(resume_flag)
        .execute(write)
        .await
        .map_err(database("record a pause"))?;
    Ok(())
}
