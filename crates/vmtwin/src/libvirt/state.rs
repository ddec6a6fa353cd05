//! Gives a live state to libvirt, which starts the domain it is of: a save image that is never a
//! file.
//!
//! ```text
//!   header · definition · 0 · QEMU's migration stream      (libvirt's save image, version 2)
//! ```
//! libvirt takes a FIFO for a save image, and opens it twice: once for the definition, and once for
//! all. To tell the two apart without a race, each has a FIFO of its own: as soon as the first is
//! open, the second takes its name, and the definition is written only then. A libvirt that opens
//! once keeps the first one open, and gets the rest there.
//!
//! The first bytes of the stream are the same in all, and are written at once: QEMU never notices the
//! end of a pipe that it has read nothing from, so that a restore that is cut off would not end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use vmtwin_libvirt::{Connection, RestoreAs};

const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const VERSION: u32 = 2;
/// What every stream begins with: `QEMU_VM_FILE_MAGIC` and `QEMU_VM_FILE_VERSION`.
const STREAM_BEGINS: &[u8; 8] = b"QEVM\0\0\0\x03";
/// Bytes of the header's fields that are not used.
const UNUSED: usize = 14 * 4;
/// After this time a libvirt that has the first FIFO open still is taken for one that opens once.
const ONCE_AFTER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);
const LET_GO_PERIOD: Duration = Duration::from_millis(100);
/// Room in the pipe, where the system allows it.
const PIPE_BYTES: usize = 1 << 20;

/// A domain that is loaded.
pub(crate) struct Load<'a> {
    /// Of the connection.
    pub(crate) uri: &'a str,
    /// What is loaded into, see [`super::running`].
    pub(crate) xml: &'a str,
    /// A folder of ours, for a moment.
    pub(crate) dir: &'a Path,
    /// Running, or paused.
    pub(crate) state: RestoreAs,
    pub(crate) cancelled: &'a dyn Fn() -> bool,
}

impl Load<'_> {
    /// Has libvirt start the domain on what `write` writes: QEMU's migration stream. It is called
    /// once QEMU has begun to read.
    ///
    /// # Errors
    /// Nothing runs then. libvirt's own words, where it says why.
    pub(crate) fn feed<T>(&self, write: impl FnOnce(Stream) -> Result<T>) -> Result<T> {
        let (first, second) = (self.dir.join("state-1"), self.dir.join("state-2"));
        let removed = [Removed(first.clone()), Removed(second.clone())];
        make_fifo(&first)?;
        make_fifo(&second)?;
        let restoring = self.restore(&first)?;
        let fed = self.try_feed(&first, &second, &restoring, write);
        let restored = loop {
            match restoring.recv_timeout(LET_GO_PERIOD) {
                Ok(outcome) => break outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(anyhow!("libvirt's restore ended without a word"));
                }
                // One that waits for us to open what is not fed any more reads the end of it.
                Err(RecvTimeoutError::Timeout) => drop(open_nonblocking(&first)),
            }
        };
        drop(removed);
        match (restored, fed) {
            (Ok(()), fed) => fed,
            // A stream that broke is the effect, unless it could not be written in the first place.
            (Err(error), Err(cause)) if is_broken_pipe(&cause) => Err(error),
            (Err(_), Err(cause)) => Err(cause),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    /// libvirt's restore, in a thread of its own: it answers when the state is in.
    fn restore(&self, from: &Path) -> Result<Receiver<Result<()>>> {
        let libvirt = Connection::open(self.uri)?;
        let from = from.to_str().context("a folder's name is not text")?;
        let (from, state) = (from.to_owned(), self.state);
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let outcome = libvirt.restore(&from, None, state);
            let _ = sender.send(outcome.context("libvirt does not take the state"));
        });
        Ok(receiver)
    }

    fn try_feed<T>(
        &self,
        first: &Path,
        second: &Path,
        restoring: &Receiver<Result<()>>,
        write: impl FnOnce(Stream) -> Result<T>,
    ) -> Result<T> {
        let mut check = || {
            if (self.cancelled)() {
                bail!("cancelled");
            }
            match restoring.try_recv() {
                Err(TryRecvError::Empty) => Ok(()),
                Ok(Err(error)) => Err(error),
                _ => Err(anyhow!("libvirt ended its restore before the state came")),
            }
        };
        let mut out = loop {
            match open_nonblocking(first)? {
                Some(open) => break open,
                None => check()?,
            }
            std::thread::sleep(POLL);
        };
        std::fs::rename(second, first)?;
        let head = image_head(self.xml)?;
        write_patiently(&out, &head, &mut check)?;
        let begun = Instant::now();
        let again = loop {
            if let Some(again) = open_nonblocking(first)? {
                break Some(again);
            }
            if begun.elapsed() > ONCE_AFTER && !is_closed(&out)? {
                break None;
            }
            check()?;
            std::thread::sleep(POLL);
        };
        if let Some(again) = again {
            write_patiently(&again, &head, &mut check)?;
            out = again;
        }
        let _ = rustix::pipe::fcntl_setpipe_size(&out, PIPE_BYTES);
        rustix::io::ioctl_fionbio(&out, false)?;
        out.write_all(STREAM_BEGINS)?;
        // Read by QEMU, which has all it was started with by then; its refusal comes before.
        while rustix::io::ioctl_fionread(&out)? > 0 {
            check()?;
            std::thread::sleep(POLL);
        }
        write(Stream { out, begun: 0 })
    }
}

/// A stream whose beginning is written already.
pub(crate) struct Stream {
    out: File,
    /// How much of it came since, up to [`STREAM_BEGINS`].
    begun: usize,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let expected = &STREAM_BEGINS[self.begun..];
        if expected.is_empty() || bytes.is_empty() {
            return self.out.write(bytes);
        }
        let count = expected.len().min(bytes.len());
        if expected[..count] != bytes[..count] {
            let text = "the stored state is no migration stream";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.begun += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Removes a file at its end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn make_fifo(path: &Path) -> Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("cannot make the FIFO {}", path.display()))
}

/// Opens a FIFO for writing; `None` while nobody reads.
fn open_nonblocking(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let flags = OFlags::NONBLOCK.bits();
    let opened = options
        .write(true)
        .custom_flags(i32::from_ne_bytes(flags.to_ne_bytes()))
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Writes into a pipe that does not block.
fn write_patiently(
    mut out: &File,
    mut bytes: &[u8],
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                check()?;
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether nobody reads any more.
fn is_closed(out: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    poll(&mut fds, Some(&rustix::event::Timespec::default()))?;
    Ok(fds[0].revents().contains(PollFlags::ERR))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The save image up to the stream: `virQEMUSaveHeader` of libvirt's `qemu_saveimage.h`.
fn image_head(xml: &str) -> Result<Vec<u8>> {
    const WAS_RUNNING: u32 = 1;
    const RAW: u32 = 0;
    const NO_COOKIE: u32 = 0;
    let len = u32::try_from(xml.len() + 1).context("the definition is too long")?;
    let mut head = MAGIC.to_vec();
    for number in [VERSION, len, WAS_RUNNING, RAW, NO_COOKIE] {
        head.extend(number.to_le_bytes());
    }
    head.extend([0; UNUSED]);
    head.extend(xml.as_bytes());
    head.push(0);
    Ok(head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_head_is_that_of_a_save_image() {
        let head = image_head("<domain/>").unwrap();
        assert_eq!(head.len(), 92 + 10);
        assert_eq!(&head[..20], b"LibvirtQemudSave\x02\0\0\0");
        assert_eq!(head[20..24], 10u32.to_le_bytes());
        assert!(head.ends_with(b"<domain/>\0"));
    }

    #[test]
    fn the_beginning_is_written_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let out = file.reopen().unwrap();
        let mut stream = Stream { out, begun: 0 };
        stream.write_all(b"QEV").unwrap();
        stream.write_all(b"M\0\0\0\x03abc").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abc");
        let out = file.reopen().unwrap();
        assert!(Stream { out, begun: 0 }.write_all(b"QEVm").is_err());
    }

    #[test]
    fn a_fifo_without_a_reader_is_not_open_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        make_fifo(&path).unwrap();
        assert!(open_nonblocking(&path).unwrap().is_none());
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let open = open_nonblocking(&path).unwrap().unwrap();
        assert!(!is_closed(&open).unwrap());
        drop(reader);
        assert!(is_closed(&open).unwrap());
    }
}
