//! Priorities around the pause: ours above everything while the guest stands still, since every
//! wake-up of ours would lengthen it; QEMU's snapshot thread below the guest's processors after it.

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// Nice value during the pause.
const URGENT: i32 = -20;
/// Nice value of QEMU's snapshot thread while it writes memory out. A processor of the guest that
/// waits for it sleeps, and so leaves it the host's.
const BACKGROUND: i32 = 10;

/// Puts QEMU's snapshot thread behind the guest's processors, for the rest of its life. Without the
/// privilege nothing changes.
pub(super) fn yield_to_guest(tid: i32) {
    let outcome = setpriority_process(Pid::from_raw(tid), BACKGROUND);
    if let Err(error) = outcome {
        tracing::debug!(%error, "the snapshot thread keeps its priority");
    }
}

/// Gives all threads of a process this nice value. Without the privilege nothing changes.
pub(crate) fn lower_all(pid: u32, nice: i32) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let tid = task.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(tid) = tid.and_then(Pid::from_raw)
            && let Err(error) = setpriority_process(Some(tid), nice)
        {
            tracing::debug!(%error, "a thread keeps its priority");
        }
    }
}

/// Raises this thread until it is dropped. Without the privilege nothing changes.
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
