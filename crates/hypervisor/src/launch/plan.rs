//! From manifest and request to the command line to start.

use std::path::{Component, Path, PathBuf};

use super::command_line::CommandLine;
use super::error::LaunchError;
use super::network::Tap;
use super::options::escape;
use super::request::{Incoming, LaunchRequest};
use super::{blockers, board, channels, disks, memory, network, serial};
use crate::machine::Machine;

/// A command line to start, and what distinguishes it from the one in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The command line, program first.
    pub args: Vec<String>,
    /// Folder to start in.
    pub dir: PathBuf,
    /// Where the QMP socket appears.
    pub qmp_socket: PathBuf,
    /// A live state comes in, as QEMU's standard input.
    pub incoming: bool,
    /// QEMU runs in an empty network namespace of its own.
    pub own_network: bool,
    /// Taps that can be joined to a bridge later; only on [`Network::Standby`](super::Network).
    pub taps: Vec<Tap>,
    /// QEMU is killed when the thread that started it ends.
    pub dies_with_parent: bool,
    /// What is added to QEMU's nice value: 0 to 19.
    pub niceness: u8,
    /// What was changed, and why.
    pub changes: Vec<String>,
    /// What may be different from what the user expects.
    pub warnings: Vec<String>,
}

/// A plan that is being made.
pub(super) struct Work<'a> {
    pub(super) machine: &'a Machine,
    pub(super) request: &'a LaunchRequest,
    pub(super) line: CommandLine,
    pub(super) own_network: bool,
    pub(super) taps: Vec<Tap>,
    pub(super) changes: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Plans how to start `machine` again.
///
/// Looks at files that the command line names, whether they are still there, and changes nothing.
pub fn plan(machine: &Machine, request: &LaunchRequest) -> Result<LaunchPlan, LaunchError> {
    let line = CommandLine::parse(&machine.args).ok_or(LaunchError::NoCommandLine)?;
    let mut work = Work {
        machine,
        request,
        line,
        own_network: false,
        taps: Vec::new(),
        changes: Vec::new(),
        warnings: Vec::new(),
    };
    channels::descriptors(&mut work);
    blockers::refuse(&work)?;
    disks::rewrite(&mut work)?;
    network::rewrite(&mut work)?;
    channels::rewrite(&mut work)?;
    serial::rewrite(&mut work)?;
    memory::rewrite(&mut work)?;
    board::rewrite(&mut work);
    work.attach()?;
    Ok(work.finish())
}

impl Work<'_> {
    /// A live state comes in.
    pub(super) fn live(&self) -> bool {
        self.request.incoming != Incoming::None
    }

    /// Notes a change.
    pub(super) fn change(&mut self, text: impl Into<String>) {
        self.changes.push(text.into());
    }

    /// Notes a warning.
    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// A path of the old command line, made absolute.
    pub(super) fn absolute(&self, path: &str) -> String {
        absolute(&self.machine.cwd, path)
    }

    /// Removes all options of a name, and says so.
    pub(super) fn drop_all(&mut self, name: &str, why: &str) {
        let positions: Vec<usize> = self.line.all(name).iter().map(|(at, _)| *at).collect();
        for at in &positions {
            let shown = self.line.args[*at].shown();
            self.change(format!("{shown} left out: {why}"));
        }
        self.line.remove_at(&positions);
    }

    /// Adds our own socket and the live state.
    fn attach(&mut self) -> Result<(), LaunchError> {
        let socket = escape(utf8(&self.request.qmp_socket)?);
        self.line
            .push("qmp", format!("unix:{socket},server=on,wait=off"));
        if self.live() {
            self.line.push("incoming", "fd:0");
        }
        Ok(())
    }

    fn finish(self) -> LaunchPlan {
        LaunchPlan {
            args: self.line.words(),
            dir: self.request.dir.clone(),
            qmp_socket: self.request.qmp_socket.clone(),
            incoming: self.live(),
            own_network: self.own_network,
            taps: self.taps,
            dies_with_parent: false,
            niceness: 0,
            changes: self.changes,
            warnings: self.warnings,
        }
    }
}

/// A path as text; QEMU's command line of a plan is text.
pub(super) fn utf8(path: &Path) -> Result<&str, LaunchError> {
    path.to_str()
        .ok_or_else(|| LaunchError::Path(path.to_owned()))
}

/// Makes a path absolute and takes `.` and `..` out. What is no path (`nbd://…`) stays.
pub(super) fn absolute(cwd: &str, path: &str) -> String {
    if has_protocol(path) {
        return path.to_owned();
    }
    let path = path.strip_prefix("file:").unwrap_or(path);
    let mut clean = PathBuf::new();
    for part in Path::new(cwd).join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean.to_string_lossy().into_owned()
}

/// QEMU takes `word:` at the start for a protocol.
pub(super) fn has_protocol(path: &str) -> bool {
    let word = path.split('/').next().unwrap_or(path);
    word.split_once(':')
        .is_some_and(|(protocol, _)| protocol != "file" && !protocol.is_empty())
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn paths_start_in_the_old_folder() {
        let cases = [
            ("a.img", "/vm/a.img"),
            ("../b/./a.img", "/b/a.img"),
            ("/x/a:b.img", "/x/a:b.img"),
            ("file:a.img", "/vm/a.img"),
            ("nbd:localhost:10809", "nbd:localhost:10809"),
            ("json:{}", "json:{}"),
            ("./a:b", "/vm/a:b"),
        ];
        for (path, expected) in cases {
            assert_eq!(absolute("/vm", path), expected);
        }
    }
}
