//! The lives of jobs and steps, and the one function that holds every legal change.
//!
//! ```text
//! job:   running ──► done | failed | undone
//!
//! step:  registered ──► done ──► undone      the undo was executed
//!            │            └────► released    the undo is not needed any more
//!            ├──► undone
//!            └──► released
//! ```
//!
//! A step is registered before it is done, so a crash between the two leaves a registered step:
//! its undo must hold whether the step took place or not.

use crate::error::{Error, Result};
use crate::text_enum::text_enum;

text_enum!(
    /// Where a job stands.
    JobState {
        /// It was started and has not ended; its process may be gone.
        Running = "running",
        /// It ended well.
        Done = "done",
        /// It failed, and what it began was undone.
        Failed = "failed",
        /// It was cut off, and recovery undid what it had begun.
        Undone = "undone",
    }
);

text_enum!(
    /// Where a step of a journal stands.
    StepState {
        /// Its undo is on disk; it may or may not have taken place.
        Registered = "registered",
        /// It took place.
        Done = "done",
        /// Its undo was executed.
        Undone = "undone",
        /// Its undo is not needed any more.
        Released = "released",
    }
);

impl StepState {
    /// True if the undo is still to be executed, should the job end now.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Registered | Self::Done)
    }
}

/// A change of state that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Of a job, from and to.
    Job(JobState, JobState),
    /// Of a step, from and to.
    Step(StepState, StepState),
}

/// Every legal change; all others are [`Error::Transition`].
pub fn check(change: Change) -> Result<()> {
    use {JobState as J, StepState as S};
    match change {
        Change::Job(J::Running, J::Done | J::Failed | J::Undone) => Ok(()),
        Change::Step(S::Registered, S::Done | S::Undone | S::Released) => Ok(()),
        Change::Step(S::Done, S::Undone | S::Released) => Ok(()),
        Change::Job(from, to) => Err(Error::Transition {
            what: "job",
            from: from.as_str(),
            to: to.as_str(),
        }),
        Change::Step(from, to) => Err(Error::Transition {
            what: "step",
            from: from.as_str(),
            to: to.as_str(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_stays_closed_and_nothing_goes_back() {
        for &from in StepState::ALL {
            assert!(check(Change::Step(from, from)).is_err());
            assert!(check(Change::Step(from, StepState::Registered)).is_err());
            for &to in StepState::ALL {
                let legal = check(Change::Step(from, to)).is_ok();
                assert!(!legal || from.is_open(), "{from} to {to}");
                assert!(legal || !from.is_open() || to.is_open(), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_job_ends_once() {
        for &from in JobState::ALL {
            for &to in JobState::ALL {
                let legal = from == JobState::Running && to != JobState::Running;
                assert_eq!(
                    check(Change::Job(from, to)).is_ok(),
                    legal,
                    "{from} to {to}"
                );
            }
        }
    }
}
