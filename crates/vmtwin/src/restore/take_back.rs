//! What a restore has begun, as values that another process can take back.
//!
//! Each is written down before the thing is done, or, for a file, as soon as its inode is known. So
//! applying one must hold whether or not the thing was done, was taken back already, or was done and
//! undone by somebody else: files are told by their inode, processes by an argument that no other
//! process has.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmtwin_hypervisor::process::{ProcessId, with_argument_that};

use super::launch_files::LaunchFiles;

/// How long a process may take to end after it was killed: it writes out nothing.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// One thing to take back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TakeBack {
    /// Remove a folder, if it is empty.
    Folder(RawPath),
    /// Remove a file of ours, and give the one that it replaced its name again.
    File(OurFile),
    /// End what was started with this very argument.
    Process {
        /// The argument; the path in it is in the folder of the restore.
        argument: String,
    },
    /// Remove what the programs wrote.
    LaunchFiles(LaunchFiles),
}

/// A file of ours, under its partial name or its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OurFile {
    /// The name to come.
    path: RawPath,
    /// The name that it begins with; once the file is published, that of the one it replaced.
    partial: RawPath,
    device: u64,
    inode: u64,
}

impl TakeBack {
    /// Takes it back; what is not there is no error.
    pub(super) fn apply(&self) -> io::Result<()> {
        match self {
            TakeBack::Folder(path) => {
                // It stays if somebody else put something into it.
                let _ = fs::remove_dir(&**path);
                Ok(())
            }
            TakeBack::File(file) => file.take_back(),
            TakeBack::Process { argument } => end_processes(argument),
            TakeBack::LaunchFiles(files) => {
                files.remove();
                Ok(())
            }
        }
    }
}

impl OurFile {
    /// `file` was just made as `partial`.
    pub(super) fn new(path: &Path, partial: &Path, file: &fs::File) -> io::Result<OurFile> {
        let metadata = file.metadata()?;
        Ok(OurFile {
            path: path.into(),
            partial: partial.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }

    fn take_back(&self) -> io::Result<()> {
        let replaced = is_there(&self.partial) && !self.is_at(&self.partial);
        // Ours may be gone by now, if a program of ours worked on it.
        if replaced && (self.is_at(&self.path) || !is_there(&self.path)) {
            fs::rename(&*self.partial, &*self.path)?;
        } else if self.is_at(&self.path) {
            fs::remove_file(&*self.path)?;
        }
        match self.is_at(&self.partial) {
            true => fs::remove_file(&*self.partial),
            false => Ok(()),
        }
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Ends every process that has this argument and is no older than this one.
fn end_processes(argument: &str) -> io::Result<()> {
    let since = ProcessId::of(std::process::id()).map_or(0, |own| own.start_ticks);
    let mut outcome = Ok(());
    for process in with_argument_that(|one| one == argument) {
        if process.start_ticks >= since
            && let Err(error) = process.kill(END_TIMEOUT)
        {
            outcome = Err(error);
        }
    }
    outcome
}

/// A path in JSON: its bytes, since it need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub(super) struct RawPath(PathBuf);

impl Deref for RawPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl From<&Path> for RawPath {
    fn from(path: &Path) -> RawPath {
        RawPath(path.to_owned())
    }
}

impl From<Vec<u8>> for RawPath {
    fn from(bytes: Vec<u8>) -> RawPath {
        RawPath(OsString::from_vec(bytes).into())
    }
}

impl From<RawPath> for Vec<u8> {
    fn from(path: RawPath) -> Vec<u8> {
        path.0.into_os_string().into_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Case {
        dir: tempfile::TempDir,
        file: OurFile,
    }

    impl Case {
        fn new() -> Case {
            let dir = tempfile::tempdir().unwrap();
            let (path, partial) = (dir.path().join("a"), dir.path().join(".a.partial"));
            let made = fs::File::create(&partial).unwrap();
            let file = OurFile::new(&path, &partial, &made).unwrap();
            Case { dir, file }
        }

        /// Names and contents of what is left after it was taken back, twice.
        fn left(&self) -> Vec<(String, String)> {
            self.file.take_back().unwrap();
            self.file.take_back().unwrap();
            let entries = fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap);
            entries
                .map(|entry| {
                    let name = entry.file_name().into_string().unwrap();
                    (name, fs::read_to_string(entry.path()).unwrap())
                })
                .collect()
        }
    }

    #[test]
    fn a_file_goes_whatever_its_name_is_by_then() {
        let begun = Case::new();
        assert_eq!(begun.left(), []);
        let published = Case::new();
        fs::rename(&*published.file.partial, &*published.file.path).unwrap();
        assert_eq!(published.left(), []);
        let between = Case::new();
        fs::hard_link(&*between.file.partial, &*between.file.path).unwrap();
        assert_eq!(between.left(), []);
        let gone = Case::new();
        fs::remove_file(&*gone.file.partial).unwrap();
        assert_eq!(gone.left(), []);
    }

    #[test]
    fn what_was_replaced_returns_and_what_is_not_ours_stays() {
        let old = [("a".to_owned(), "old".to_owned())];
        let replaced = Case::new();
        fs::rename(&*replaced.file.partial, &*replaced.file.path).unwrap();
        fs::write(&*replaced.file.partial, "old").unwrap();
        assert_eq!(replaced.left(), old);
        let taken = Case::new();
        fs::rename(&*taken.file.partial, dir_file(&taken, "elsewhere")).unwrap();
        fs::write(&*taken.file.partial, "old").unwrap();
        fs::remove_file(dir_file(&taken, "elsewhere")).unwrap();
        assert_eq!(taken.left(), old);
        let not_yet = Case::new();
        fs::write(&*not_yet.file.path, "old").unwrap();
        assert_eq!(not_yet.left(), old);
    }

    fn dir_file(case: &Case, name: &str) -> PathBuf {
        case.dir.path().join(name)
    }

    #[test]
    fn a_process_is_found_by_its_argument_alone() {
        let argument = |n: u32| format!("take-back-test-{}-{n}", std::process::id());
        let start = |argument: String| {
            let mut command = Command::new("sh");
            command.args(["-c", "read line", &argument]);
            command.stdin(std::process::Stdio::piped()).spawn().unwrap()
        };
        let (mut ours, mut other) = (start(argument(1)), start(argument(2)));
        end_processes(&argument(1)).unwrap();
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        drop(other.stdin.take());
        other.wait().unwrap();
        end_processes(&argument(1)).unwrap();
    }

    #[test]
    fn values_survive_the_pipe() {
        let value = TakeBack::Folder(RawPath::from(b"/a\xff\nb".to_vec()));
        let text = serde_json::to_string(&value).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<TakeBack>(&text).unwrap(), value);
    }
}
