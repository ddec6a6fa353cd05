//! Our own priority around the pause: on a busy host every wake-up of ours would lengthen it.

use rustix::process::{getpriority_process, setpriority_process};

/// Nice value during the pause.
const URGENT: i32 = -20;

/// Raises this thread until it is dropped. Threads begun meanwhile keep it: those of the spool, which
/// must never let the guest wait. Without the privilege nothing changes.
pub(super) struct Urgent {
    before: Option<i32>,
}

impl Urgent {
    pub(super) fn begin() -> Urgent {
        let before = getpriority_process(None).ok();
        let raised = before.is_some() && setpriority_process(None, URGENT).is_ok();
        Urgent {
            before: before.filter(|_| raised),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(nice) = self.before {
            let _ = setpriority_process(None, nice);
        }
    }
}
