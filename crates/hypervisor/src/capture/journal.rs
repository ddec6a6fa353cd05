//! What a capture needs of a journal.

use crate::undo::Undo;

/// Where undos are written before they are due. An error stops the capture, and what was
/// registered is undone.
pub trait Journal {
    /// Notes that `undo` may be due from now on. Returns a token for [`Journal::undone`].
    ///
    /// # Errors
    /// It could not be written; the thing must not be done.
    fn register(&mut self, step: &str, undo: &Undo) -> Result<u64, JournalError>;
    /// The undo was applied.
    ///
    /// # Errors
    /// It could not be written.
    fn undone(&mut self, token: u64) -> Result<(), JournalError>;
    /// A step is about to begin: for progress, and for tests to fail at.
    ///
    /// # Errors
    /// The step shall not be begun.
    fn step(&mut self, name: &str) -> Result<(), JournalError>;
}

/// What a journal could not do.
pub type JournalError = Box<dyn std::error::Error + Send + Sync>;
