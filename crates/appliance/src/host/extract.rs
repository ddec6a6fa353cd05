//! Writes what the machine hands out below one folder, and nowhere else.
//!
//! The machine may have been taken over by a file system that it reads, so its stream is hostile: each
//! name must be that of an entry, each entry is made new in a folder that is held open, links are made
//! and never followed, and files get no more than their data.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, futimens, mkdirat,
    openat, symlinkat, utimensat,
};

use super::error::ApplianceError;
use super::receive::Receiver;
use crate::wire::{Entry, EntryKind, MAX_DEPTH, Name, Reply};

/// Permissions that are never given on: set-user-id, set-group-id, sticky.
const PLAIN_MODE: u32 = 0o777;

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Files.
    pub files: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Data written; holes are not.
    pub bytes: u64,
    /// What was left out, or is not whole: its path and why. The first thousand.
    pub skipped: Vec<(Name, String)>,
    /// How many were left out.
    pub skipped_count: u64,
}

/// Called with the data bytes so far.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Extracted);

/// Files on their way into a folder.
pub struct Extraction<'a> {
    /// The target, then folders that have begun.
    folders: Vec<Level>,
    /// The one being written.
    file: Option<Open>,
    /// What the one thing asked for is called in the target.
    name: Name,
    /// Whether it has come.
    begun: bool,
    keep_owner: bool,
    done: Extracted,
    progress: OnProgress<'a>,
}

struct Level {
    folder: OwnedFd,
    entry: Option<Entry>,
}

struct Open {
    file: File,
    entry: Entry,
    /// Where the next data may begin.
    next: u64,
}

impl<'a> Extraction<'a> {
    /// Into the folder `target`, as its new entry `name`. `keep_owner` keeps owners and groups by their
    /// numbers, which takes root.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn new(
        target: &std::path::Path,
        name: Name,
        keep_owner: bool,
        progress: OnProgress<'a>,
    ) -> Result<Extraction<'a>, ApplianceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, target, flags, Mode::empty());
        let folder = folder.map_err(|error| ApplianceError::file("open", target)(error.into()))?;
        Ok(Extraction {
            folders: vec![Level {
                folder,
                entry: None,
            }],
            file: None,
            name,
            begun: false,
            keep_owner,
            done: Extracted::default(),
            progress,
        })
    }

    /// What was written, once all is there.
    ///
    /// # Errors
    /// [`ApplianceError::Nonsense`] when something had begun and not ended.
    pub fn finish(self) -> Result<Extracted, ApplianceError> {
        match (self.begun, self.folders.len(), &self.file) {
            (true, 1, None) => Ok(self.done),
            _ => Err(nonsense("an end before the end")),
        }
    }

    /// The name that an entry gets, and the folder it goes to.
    fn place(&mut self, entry: &Entry) -> Result<(&OwnedFd, Name), ApplianceError> {
        if self.file.is_some() {
            return Err(nonsense("a file in a file"));
        }
        let name = match self.folders.len() {
            1 if self.begun => return Err(nonsense("more than was asked for")),
            1 => self.name.clone(),
            _ if !entry.name.is_entry() => return Err(nonsense("a name that leads elsewhere")),
            _ => entry.name.clone(),
        };
        self.begun = true;
        match self.folders.last() {
            Some(level) => Ok((&level.folder, name)),
            None => Err(nonsense("an end too many")),
        }
    }

    fn enter(&mut self, entry: Entry) -> Result<(), ApplianceError> {
        if self.folders.len() > MAX_DEPTH {
            return Err(nonsense("folders too deep"));
        }
        let (parent, name) = self.place(&entry)?;
        // Ours alone until it is complete.
        let made = mkdirat(parent, name.as_os_str(), Mode::RWXU);
        made.map_err(target("make the folder", &name))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(parent, name.as_os_str(), flags, Mode::empty());
        let folder = folder.map_err(target("open the folder", &name))?;
        self.folders.push(Level {
            folder,
            entry: Some(Entry { name, ..entry }),
        });
        self.done.folders += 1;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), ApplianceError> {
        let level = self.folders.pop().filter(|_| self.file.is_none());
        let Some(Level {
            folder,
            entry: Some(entry),
        }) = level
        else {
            return Err(nonsense("an end too many"));
        };
        self.finish_entry(&folder, &entry)
    }

    fn begin(&mut self, entry: Entry) -> Result<(), ApplianceError> {
        let (parent, name) = self.place(&entry)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name.as_os_str(), flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(target("make", &name))?);
        self.file = Some(Open {
            file,
            entry: Entry { name, ..entry },
            next: 0,
        });
        Ok(())
    }

    fn end(&mut self, error: Option<String>) -> Result<(), ApplianceError> {
        let open = self
            .file
            .take()
            .ok_or_else(|| nonsense("the end of no file"))?;
        let sized = open.file.set_len(open.entry.size_bytes);
        sized.map_err(target("write", &open.entry.name))?;
        self.finish_entry(&open.file, &open.entry)?;
        self.done.files += 1;
        if let Some(why) = error {
            self.skip(
                &open.entry.name,
                format!("not all of it could be read: {why}"),
            );
        }
        (self.progress)(&self.done);
        Ok(())
    }

    fn link(&mut self, entry: Entry) -> Result<(), ApplianceError> {
        let keep_owner = self.keep_owner;
        let (parent, name) = self.place(&entry)?;
        let (EntryKind::Link, Some(to)) = (entry.kind, &entry.target) else {
            return Err(nonsense("a link without its target"));
        };
        if to.0.is_empty() || to.0.contains(&0) {
            return Err(nonsense("a link to nothing"));
        }
        let made = symlinkat(to.as_os_str(), parent, name.as_os_str());
        made.map_err(target("make the link", &name))?;
        // A link's time matters to nobody so much that all should fail for it.
        let _ = utimensat(
            parent,
            name.as_os_str(),
            &times(&entry),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        if keep_owner {
            let (uid, gid) = owner(&entry)?;
            let owned = chownat(
                parent,
                name.as_os_str(),
                uid,
                gid,
                AtFlags::SYMLINK_NOFOLLOW,
            );
            owned.map_err(target("set the owner of", &name))?;
        }
        self.done.links += 1;
        Ok(())
    }

    /// Owner, permissions and time of what is complete.
    fn finish_entry(&self, made: impl AsFd, entry: &Entry) -> Result<(), ApplianceError> {
        let made = made.as_fd();
        if self.keep_owner {
            let (uid, gid) = owner(entry)?;
            let owned = rustix::fs::fchown(made, uid, gid);
            owned.map_err(target("set the owner of", &entry.name))?;
        }
        let mode = Mode::from_raw_mode(entry.mode & PLAIN_MODE);
        fchmod(made, mode).map_err(target("set the permissions of", &entry.name))?;
        // Not every file system can keep every time.
        let _ = futimens(made, &times(entry));
        Ok(())
    }

    fn skip(&mut self, name: &Name, why: String) {
        const KEPT: usize = 1000;
        self.done.skipped_count += 1;
        if self.done.skipped.len() < KEPT {
            let above = self.folders.iter().filter_map(|level| level.entry.as_ref());
            let mut path: Vec<u8> = Vec::new();
            for entry in above {
                path.extend_from_slice(&entry.name.0);
                path.push(b'/');
            }
            path.extend_from_slice(&name.0);
            self.done.skipped.push((Name(path), why));
        }
    }
}

impl Receiver for Extraction<'_> {
    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), ApplianceError> {
        let open = self
            .file
            .as_mut()
            .ok_or_else(|| nonsense("data of no file"))?;
        let end = offset.checked_add(data.len() as u64);
        let end = end.filter(|end| offset >= open.next && *end <= open.entry.size_bytes);
        open.next = end.ok_or_else(|| nonsense("data beyond its file"))?;
        let written = open.file.write_all_at(data, offset);
        written.map_err(target("write", &open.entry.name))?;
        self.done.bytes += data.len() as u64;
        (self.progress)(&self.done);
        Ok(())
    }

    fn reply(&mut self, reply: Reply) -> Result<(), ApplianceError> {
        match reply {
            Reply::Enter(entry) => self.enter(entry),
            Reply::Leave => self.leave(),
            Reply::File(entry) => self.begin(entry),
            Reply::FileEnd { error } => self.end(error),
            Reply::Link(entry) => self.link(entry),
            Reply::Warning { why } if !self.begun => {
                let name = self.name.clone();
                self.skip(&name, why);
                Ok(())
            }
            Reply::Skipped { name, why } if name.is_entry() => {
                self.skip(&name, why);
                Ok(())
            }
            _ => Err(nonsense("an answer to something else")),
        }
    }
}

fn owner(entry: &Entry) -> Result<(Option<Uid>, Option<Gid>), ApplianceError> {
    // All ones means "leave it as it is" to the system.
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(nonsense("an owner that nobody can be"));
    }
    Ok((
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    ))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_s,
        tv_nsec: i64::from(entry.mtime_ns.min(999_999_999)),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn nonsense(what: &str) -> ApplianceError {
    ApplianceError::Nonsense(what.into())
}

fn target<E: Into<io::Error>>(what: &'static str, name: &Name) -> impl FnOnce(E) -> ApplianceError {
    let name = name.to_string();
    move |error| ApplianceError::Target {
        what,
        name,
        source: error.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
