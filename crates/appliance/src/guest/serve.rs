//! Requests and their answers.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, SeekFrom, Stat, fstat, openat,
    openat2, readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::modules::Modules;
use super::mounts::Mounts;
use crate::wire::{
    DATA_BYTES, Entry, EntryKind, Frame, MAX_DEPTH, Name, Reply, Request, read_frame, write_data,
    write_json,
};

/// What is enough to look at an entry, whatever it is.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// Does not wait for the other end of a pipe.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW);

/// Serves one host.
pub(super) struct Session {
    port: File,
    modules: Option<Modules>,
    mounts: Option<Mounts>,
}

/// What ended an answer early.
enum Stop {
    /// The host is told, and may ask for something else.
    Told(String),
    /// The host is gone.
    Port(io::Error),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Stop {
        Stop::Told(error_text(error))
    }
}

/// The system's words, without a number.
pub(super) fn error_text(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

type Out<'a> = BufWriter<&'a File>;

impl Session {
    pub(super) fn new(port: File, modules: Modules) -> Session {
        Session {
            port,
            modules: Some(modules),
            mounts: None,
        }
    }

    /// Until the host closes the port.
    pub(super) fn run(mut self) -> io::Result<()> {
        write_json(&mut &self.port, &Reply::Ready)?;
        let mut buffer = Vec::new();
        loop {
            let request: Request = match read_frame(&mut &self.port, &mut buffer) {
                Ok(Frame::Json(json)) => serde_json::from_slice(json)?,
                Ok(Frame::Data { .. }) => {
                    return Err(io::Error::other("data instead of a request"));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            self.answer(&request)?;
        }
    }

    fn answer(&mut self, request: &Request) -> io::Result<()> {
        let port = self.port.try_clone()?;
        let mut out = BufWriter::with_capacity(2 * DATA_BYTES, &port);
        let last = match self.answer_all(request, &mut out) {
            Ok(()) => Reply::End,
            Err(Stop::Told(message)) => Reply::Error { message },
            Err(Stop::Port(error)) => return Err(error),
        };
        write_json(&mut out, &last)?;
        out.flush()
    }

    fn answer_all(&mut self, request: &Request, out: &mut Out<'_>) -> Result<(), Stop> {
        let mounts = match &mut self.mounts {
            Some(mounts) => mounts,
            none => {
                let modules = self.modules.take();
                let modules =
                    modules.ok_or_else(|| Stop::Told("the disks can't be read".into()))?;
                let found = Mounts::find(modules).map_err(|e| Stop::Told(e.to_string()))?;
                none.insert(found)
            }
        };
        match request {
            Request::FileSystems => mounts
                .all()
                .try_for_each(|one| say(out, &Reply::FileSystem(one.clone()))),
            Request::List { file_system, path } => {
                list(root(mounts, *file_system, out)?, path, out)
            }
            Request::Get { file_system, path } => get(root(mounts, *file_system, out)?, path, out),
        }
    }
}

/// The root of a file system, once the host is told what is wrong with it.
fn root<'a>(mounts: &'a mut Mounts, number: usize, out: &mut Out<'_>) -> Result<&'a OwnedFd, Stop> {
    let (root, warning) = mounts.root(number).map_err(Stop::Told)?;
    if let Some(why) = warning {
        let why = why.to_owned();
        say(out, &Reply::Warning { why })?;
    }
    Ok(root)
}

fn say(out: &mut Out<'_>, reply: &Reply) -> Result<(), Stop> {
    write_json(out, reply).map_err(Stop::Port)
}

/// Opens a path as in a system whose root is `root`: links never lead out of it.
fn open_in(root: &OwnedFd, path: &Name, flags: OFlags) -> Result<OwnedFd, Errno> {
    let relative: &[u8] = match path.0.iter().position(|byte| *byte != b'/') {
        Some(at) => &path.0[at..],
        None => b".",
    };
    let path = std::ffi::OsStr::from_bytes(relative);
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// The last name of a path; the root has none.
fn last_name(path: &Name) -> Name {
    let name = path.0.split(|byte| *byte == b'/').rfind(|n| !n.is_empty());
    Name(name.unwrap_or_default().to_vec())
}

fn list(root: &OwnedFd, path: &Name, out: &mut Out<'_>) -> Result<(), Stop> {
    let found = open_in(root, path, LOOK)?;
    let entry = entry_of(last_name(path), &fstat(&found)?, None);
    say(out, &Reply::Entry(entry.clone()))?;
    if entry.kind != EntryKind::Folder {
        return Ok(());
    }
    let folder = open_in(
        root,
        path,
        READ.difference(OFlags::NOFOLLOW) | OFlags::DIRECTORY,
    )?;
    for name in names(&folder)? {
        match look(folder.as_fd(), &name) {
            Ok(entry) => say(out, &Reply::Entry(entry))?,
            Err(error) => {
                let why = error_text(error);
                say(out, &Reply::Skipped { name, why })?;
            }
        }
    }
    Ok(())
}

/// All names in a folder, sorted.
fn names(folder: &OwnedFd) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = Name(entry?.file_name().to_bytes().to_vec());
        if name.is_entry() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn look(folder: BorrowedFd<'_>, name: &Name) -> Result<Entry, Errno> {
    let stat = statat(folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    let target = match FileType::from_raw_mode(stat.st_mode as RawMode) {
        FileType::Symlink => Some(Name(
            readlinkat(folder, name.as_os_str(), Vec::new())?.into_bytes(),
        )),
        _ => None,
    };
    Ok(entry_of(name.clone(), &stat, target))
}

fn entry_of(name: Name, stat: &Stat, target: Option<Name>) -> Entry {
    Entry {
        name,
        kind: match FileType::from_raw_mode(stat.st_mode as RawMode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Folder,
            FileType::Symlink => EntryKind::Link,
            _ => EntryKind::Special,
        },
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        target,
    }
}

fn get(root: &OwnedFd, path: &Name, out: &mut Out<'_>) -> Result<(), Stop> {
    let found = open_in(root, path, LOOK)?;
    let entry = entry_of(last_name(path), &fstat(&found)?, None);
    match entry.kind {
        EntryKind::Folder => {
            let flags = READ.difference(OFlags::NOFOLLOW) | OFlags::DIRECTORY;
            let folder = open_in(root, path, flags)?;
            get_folder(folder, entry, out)
        }
        EntryKind::File => {
            let file = open_in(root, path, READ.difference(OFlags::NOFOLLOW))?;
            get_file(File::from(file), entry, out)
        }
        EntryKind::Link | EntryKind::Special => {
            Err(Stop::Told("it is neither a file nor a folder".into()))
        }
    }
}

/// A folder that is being handed out.
struct Level {
    folder: OwnedFd,
    /// Reversed.
    left: Vec<Name>,
}

fn get_folder(folder: OwnedFd, entry: Entry, out: &mut Out<'_>) -> Result<(), Stop> {
    let mut levels = vec![enter(folder, entry, out)?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        let Some(name) = level.left.pop() else {
            levels.pop();
            say(out, &Reply::Leave)?;
            continue;
        };
        let folder = level.folder.as_fd();
        let below = look(folder, &name)
            .map_err(Stop::from)
            .and_then(|entry| get_entry(folder, entry, depth, out));
        match below {
            Ok(Some(level)) => levels.push(level),
            Ok(None) => {}
            Err(Stop::Told(why)) => say(out, &Reply::Skipped { name, why })?,
            Err(stop) => return Err(stop),
        }
    }
}

fn enter(folder: OwnedFd, entry: Entry, out: &mut Out<'_>) -> Result<Level, Stop> {
    let mut left = names(&folder)?;
    left.reverse();
    say(out, &Reply::Enter(entry))?;
    Ok(Level { folder, left })
}

/// Hands an entry out; gives a folder's level back, as what comes next.
fn get_entry(
    parent: BorrowedFd<'_>,
    entry: Entry,
    depth: usize,
    out: &mut Out<'_>,
) -> Result<Option<Level>, Stop> {
    let open = |flags| openat(parent, entry.name.as_os_str(), READ | flags, Mode::empty());
    match entry.kind {
        EntryKind::Folder if depth >= MAX_DEPTH => {
            Err(Stop::Told("it is too deep in folders".into()))
        }
        EntryKind::Folder => enter(open(OFlags::DIRECTORY)?, entry, out).map(Some),
        EntryKind::File => {
            let file = File::from(open(OFlags::empty())?);
            get_file(file, entry, out).map(|()| None)
        }
        EntryKind::Link => say(out, &Reply::Link(entry)).map(|()| None),
        EntryKind::Special => Err(Stop::Told("it is a pipe, a socket or a device".into())),
    }
}

fn get_file(file: File, entry: Entry, out: &mut Out<'_>) -> Result<(), Stop> {
    let size = entry.size_bytes;
    say(out, &Reply::File(entry))?;
    let error = match send_data(&file, size, out) {
        Ok(()) => None,
        Err(Stop::Told(why)) => Some(why),
        Err(stop) => return Err(stop),
    };
    say(out, &Reply::FileEnd { error })
}

/// Sends what is not a hole.
fn send_data(file: &File, size: u64, out: &mut Out<'_>) -> Result<(), Stop> {
    let mut buffer = vec![0; DATA_BYTES];
    let mut at = 0;
    while at < size {
        let (from, end) = next_data(file, at, size)?;
        at = from;
        while at < end {
            let want = usize::try_from(end - at).map_or(DATA_BYTES, |left| left.min(DATA_BYTES));
            let n = match file.read_at(&mut buffer[..want], at) {
                Ok(0) => return Err(Stop::Told("it ends before its length".into())),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Told(error_text(error))),
            };
            write_data(out, at, &buffer[..n]).map_err(Stop::Port)?;
            at += n as u64;
        }
    }
    Ok(())
}

/// The next run of data at or after a place; at the end an empty one.
fn next_data(file: &File, at: u64, size: u64) -> Result<(u64, u64), Stop> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) => match seek(file, SeekFrom::Hole(from)) {
            Ok(end) if end > from => Ok((from.min(size), end.min(size))),
            _ => Ok((from.min(size), size)),
        },
        Err(Errno::NXIO) => Ok((size, size)),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((at, size)),
        Err(error) => Err(error.into()),
    }
}
