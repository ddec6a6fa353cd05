//! A test tool: a store that fails, stalls, is slow, or gives back damaged bytes.
//!
//! Wraps any store. It is part of the crate so that tests of everything above can use it; no
//! product code does, and nothing in the environment turns it on.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::store::{FileName, Kind, Store, StoredFile};

/// What goes wrong. The default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Writes are no faster than this.
    pub write_bytes_per_s: Option<u64>,
    /// So many writes and removals work; all later ones fail with `error_kind`.
    pub fail_after_ops: Option<u64>,
    /// The failure, `Other` if not given. `StorageFull` and `ReadOnlyFilesystem` are the ENOSPC
    /// and EROFS of a file system.
    pub error_kind: Option<io::ErrorKind>,
    /// Writes and removals hang until the limits are changed.
    pub stall: bool,
    /// Reads of this kind of object end early or give back flipped bits.
    pub damage: Option<Damage>,
}

/// Damage to every object of a kind, as readers see it.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// Which objects.
    pub kind: Kind,
    /// How.
    pub form: DamageForm,
}

/// A form of damage.
#[derive(Clone, Copy, Debug)]
pub enum DamageForm {
    /// The object ends after so many bytes.
    Truncated(u64),
    /// The bits of a mask are flipped in the byte at an offset.
    Flipped {
        /// Offset of the byte; beyond the end nothing is flipped.
        offset_bytes: u64,
        /// Bits to flip.
        mask: u8,
    },
}

/// A store with [`Limits`].
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    limits: Mutex<Limits>,
    changed: Condvar,
    ops: AtomicU64,
}

impl FaultyStore {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, limits: Limits) -> Self {
        Self {
            inner,
            limits: Mutex::new(limits),
            changed: Condvar::new(),
            ops: AtomicU64::new(0),
        }
    }

    /// Changes the limits; ends stalls; counts operations from zero again.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        self.ops.store(0, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Writes and removals since the limits were set, failed ones included.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.ops.load(Ordering::SeqCst)
    }

    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every operation that changes something comes through here.
    fn change(&self, bytes: u64) -> io::Result<()> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        while limits.stall {
            limits = self
                .changed
                .wait(limits)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let limits = *limits;
        let done = self.ops.fetch_add(1, Ordering::SeqCst);
        if limits.fail_after_ops.is_some_and(|most| done >= most) {
            return Err(limits.error_kind.unwrap_or(io::ErrorKind::Other).into());
        }
        if let Some(rate) = limits.write_bytes_per_s {
            std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        }
        Ok(())
    }

    fn damage(&self, kind: Kind) -> Option<DamageForm> {
        self.limits()
            .damage
            .filter(|damage| damage.kind == kind)
            .map(|damage| damage.form)
    }
}

impl Store for FaultyStore {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn create(&self) -> io::Result<()> {
        self.change(0)?;
        self.inner.create()
    }

    fn list(&self, kind: Kind) -> io::Result<Vec<StoredFile>> {
        self.inner.list(kind)
    }

    fn retain(&self, file: &FileName) -> io::Result<()> {
        self.inner.retain(file)
    }

    fn read_full(&self, file: &FileName, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut data = self.inner.read_full(file, max_bytes)?;
        match self.damage(file.kind) {
            None => {}
            Some(DamageForm::Truncated(length)) => data.truncate(length as usize),
            Some(DamageForm::Flipped { offset_bytes, mask }) => {
                if let Some(byte) = data.get_mut(offset_bytes as usize) {
                    *byte ^= mask;
                }
            }
        }
        Ok(data)
    }

    fn read_range(&self, file: &FileName, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_range(file, offset_bytes, buf)?;
        match self.damage(file.kind) {
            Some(DamageForm::Truncated(length)) if offset_bytes + buf.len() as u64 > length => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Some(DamageForm::Flipped {
                offset_bytes: at,
                mask,
            }) => {
                let byte = at
                    .checked_sub(offset_bytes)
                    .and_then(|at| buf.get_mut(at as usize));
                if let Some(byte) = byte {
                    *byte ^= mask;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&self, file: &FileName, data: &[u8]) -> io::Result<()> {
        self.change(data.len() as u64)?;
        self.inner.write(file, data)
    }

    fn remove(&self, file: &FileName) -> io::Result<()> {
        self.change(0)?;
        self.inner.remove(file)
    }

    fn listing_delay(&self) -> Duration {
        self.inner.listing_delay()
    }
}
