//! Ctrl-C: one flag that every long step looks at. What was begun is undone before the exit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the user asked to stop.
#[derive(Debug, Clone)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the flag on SIGINT, SIGTERM and SIGHUP from now on.
    pub(crate) fn on_signals() -> Result<Cancel> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Cancel(flag))
    }

    /// From now on those signals end the process at once: for one whose work is safest cut off, so
    /// that nothing of it fails because of a flag.
    pub(crate) fn end_at_once() -> Result<()> {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let always = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always)?;
        }
        Ok(())
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
