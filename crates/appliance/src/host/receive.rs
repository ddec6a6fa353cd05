//! What takes the stream of a request for files.

use std::io::{self, Write};

use super::error::ApplianceError;
use crate::wire::Reply;

/// Takes what the machine hands out, and refuses what makes no sense: it is hostile.
pub trait Receiver {
    /// Data of the file that was begun last.
    ///
    /// # Errors
    /// When it has no place, or cannot be written.
    fn data(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), ApplianceError>;

    /// Everything but data.
    ///
    /// # Errors
    /// When it makes no sense, or cannot be written.
    fn reply(&mut self, reply: Reply) -> Result<(), ApplianceError>;
}

/// Writes one file to a stream, with zeros for its holes.
pub struct FileToWriter<'a, W> {
    out: &'a mut W,
    /// Length and how much is written, once it has begun.
    file: Option<(u64, u64)>,
    warning: Option<String>,
    /// Once it has ended: why not all of it could be read.
    ended: Option<Option<String>>,
}

impl<'a, W: Write> FileToWriter<'a, W> {
    /// To `out`.
    pub fn new(out: &'a mut W) -> Self {
        FileToWriter {
            out,
            file: None,
            warning: None,
            ended: None,
        }
    }

    /// Why not all of it could be read, or is as the guest had it; `None` if it is whole.
    ///
    /// # Errors
    /// [`ApplianceError::Nonsense`] when the file has not ended.
    pub fn finish(self) -> Result<Option<String>, ApplianceError> {
        let error = self
            .ended
            .ok_or_else(|| nonsense("an end before the end"))?;
        Ok(error.or(self.warning))
    }

    fn fill_to(&mut self, end: u64) -> Result<(), ApplianceError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while let Some((_, at)) = &mut self.file
            && *at < end
        {
            let n = (end - *at).min(ZEROS.len() as u64);
            self.out.write_all(&ZEROS[..n as usize]).map_err(failed)?;
            *at += n;
        }
        Ok(())
    }
}

impl<W: Write> Receiver for FileToWriter<'_, W> {
    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), ApplianceError> {
        let end = offset.checked_add(data.len() as u64);
        match (self.file, end, &self.ended) {
            (Some((size, at)), Some(end), None) if offset >= at && end <= size => {
                self.fill_to(offset)?;
                self.out.write_all(data).map_err(failed)?;
                self.file = Some((size, end));
                Ok(())
            }
            _ => Err(nonsense("data of no file")),
        }
    }

    fn reply(&mut self, reply: Reply) -> Result<(), ApplianceError> {
        match (reply, self.file) {
            (Reply::File(entry), None) => {
                self.file = Some((entry.size_bytes, 0));
                Ok(())
            }
            (Reply::FileEnd { error }, Some((size, _))) if self.ended.is_none() => {
                if error.is_none() {
                    self.fill_to(size)?;
                }
                self.ended = Some(error);
                Ok(())
            }
            (Reply::Warning { why }, None) => {
                self.warning = Some(why);
                Ok(())
            }
            (Reply::Enter(_), None) => Err(ApplianceError::Refused(
                "it is a folder, and only a file can go to a stream".into(),
            )),
            _ => Err(nonsense("an answer to something else")),
        }
    }
}

fn nonsense(what: &str) -> ApplianceError {
    ApplianceError::Nonsense(what.into())
}

fn failed(source: io::Error) -> ApplianceError {
    ApplianceError::Target {
        what: "write",
        name: "the stream".into(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::{Entry, EntryKind, Name};

    fn file(size_bytes: u64) -> Reply {
        Reply::File(Entry {
            name: Name(b"f".to_vec()),
            kind: EntryKind::File,
            size_bytes,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
            target: None,
        })
    }

    #[test]
    fn holes_are_zeros() {
        let mut out = Vec::new();
        let mut receiver = FileToWriter::new(&mut out);
        receiver.reply(file(9)).unwrap();
        receiver.data(2, b"ab").unwrap();
        receiver.data(6, b"c").unwrap();
        assert!(receiver.data(6, b"again").is_err());
        assert!(receiver.data(7, b"too long").is_err());
        receiver.reply(Reply::FileEnd { error: None }).unwrap();
        assert!(receiver.reply(file(1)).is_err());
        assert_eq!(receiver.finish().unwrap(), None);
        assert_eq!(out, b"\0\0ab\0\0c\0\0");
    }
}
