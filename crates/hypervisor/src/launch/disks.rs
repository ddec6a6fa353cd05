//! Disks: restored images in the places of the old ones.
//!
//! Nothing of the old machine may be written to, since it may still run. A disk is found on the
//! command line by the device it hangs on, by its node, by its address, and last by its place.

use std::path::Path;

use super::block_node::{self, Node};
use super::command_line::{Arg, CommandLine};
use super::error::LaunchError;
use super::options::Options;
use super::plan::{Work, has_protocol, utf8};
use super::request::RestoredDisk;
use crate::machine::Disk;

/// What of a `-drive` stays when another image takes its place.
const KEPT: &[&str] = &[
    "if",
    "index",
    "bus",
    "unit",
    "media",
    "id",
    "serial",
    "cache",
    "aio",
    "werror",
    "rerror",
    "discard",
    "detect-zeroes",
    "readonly",
    "read-only",
    "copy-on-read",
    "throttling",
    "bps",
    "bps_rd",
    "bps_wr",
    "iops",
    "iops_rd",
    "iops_wr",
    "iops_size",
    "bps_max",
    "bps_rd_max",
    "bps_wr_max",
    "iops_max",
    "iops_rd_max",
    "iops_wr_max",
    "group",
    "node-name",
    "auto-read-only",
];

/// Options that give a drive by its file alone, and the `-drive` they stand for.
const SHORT: &[(&str, &str)] = &[
    ("hda", "index=0,media=disk"),
    ("hdb", "index=1,media=disk"),
    ("hdc", "index=2,media=disk"),
    ("hdd", "index=3,media=disk"),
    ("cdrom", "index=2,media=cdrom"),
    ("fda", "if=floppy,index=0"),
    ("fdb", "if=floppy,index=1"),
    ("pflash", "if=pflash"),
    ("sd", "if=sd"),
    ("mtdblock", "if=mtd"),
];

/// One back end on the command line that may be a disk.
#[derive(Debug)]
struct BackEnd {
    place: Place,
    shown: String,
    /// Ids of the devices on it.
    devices: Vec<String>,
    /// Its own id, and the names of its nodes.
    names: Vec<String>,
    /// Its file, absolute.
    file: Option<String>,
    read_only: bool,
    removable: bool,
    firmware: bool,
}

#[derive(Debug)]
enum Place {
    Drive(usize),
    Nodes(Node),
}

/// Puts the restored images in.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    spell_out(&mut work.line);
    work.drop_all("snapshot", "the restored disks are the machine's own");
    let back_ends = collect(work);
    let machine = work.machine;
    let restored = &work.request.disks;
    let matched = match_disks(&machine.disks, &back_ends);
    check(&machine.disks, restored, &matched)?;
    for (back_end, disk) in back_ends.iter().zip(&matched) {
        let disk = disk.map(|index| &machine.disks[index]);
        match disk.and_then(|disk| restored.iter().find(|r| r.id == disk.id)) {
            Some(image) => replace(work, back_end, image)?,
            None => keep(work, back_end, disk)?,
        }
    }
    remove_orphans(work);
    guard(work)
}

/// Whatever was understood above: no disk of the old machine may be written to.
fn guard(work: &Work<'_>) -> Result<(), LaunchError> {
    let is_new = |path: &str| {
        let mut images = work.request.disks.iter();
        images.any(|image| image.path == Path::new(path))
    };
    for arg in work.line.args.iter().filter(|a| opens_files(a)) {
        for (_, value) in arg.options().entries() {
            let path = work.absolute(&value);
            let old = |disk: &Disk| !disk.read_only && disk.address == path;
            if work.machine.disks.iter().any(old) && !is_new(&path) {
                return Err(LaunchError::DiskNotRestored {
                    option: arg.shown(),
                });
            }
        }
    }
    Ok(())
}

fn opens_files(arg: &Arg) -> bool {
    matches!(
        arg.name.as_str(),
        "drive" | "blockdev" | "device" | "object"
    )
}

/// Writes `-hda FILE` and its like as `-drive`.
fn spell_out(line: &mut CommandLine) {
    for arg in &mut line.args {
        if let (Some((_, rest)), Some(file)) =
            (SHORT.iter().find(|(name, _)| *name == arg.name), &arg.value)
        {
            let file = super::options::escape(file);
            *arg = Arg::new("drive", format!("file={file},{rest}"));
        }
    }
}

fn collect(work: &Work<'_>) -> Vec<BackEnd> {
    let line = &work.line;
    let mut back_ends = Vec::new();
    for (at, arg) in line.args.iter().enumerate() {
        match arg.name.as_str() {
            "drive" => back_ends.push(drive(work, at, &arg.options())),
            "device" | "machine" => {
                let options = arg.options();
                let keys = ["drive", "pflash0", "pflash1"];
                let named = keys.iter().filter_map(|key| options.get(key));
                let nodes = named.filter_map(|name| Node::named(line, &name));
                back_ends.extend(nodes.map(|node| node_back_end(work, node, &options)));
            }
            _ => {}
        }
    }
    back_ends
}

fn drive(work: &Work<'_>, at: usize, options: &Options) -> BackEnd {
    let id = options.get("id");
    let users: Vec<Options> = (work.line.all("device").into_iter())
        .map(|(_, device)| device)
        .filter(|device| id.is_some() && device.get("drive") == id)
        .collect();
    let file = ["file", "file.filename"]
        .iter()
        .find_map(|k| options.get(k));
    let interface = options.get("if");
    BackEnd {
        place: Place::Drive(at),
        shown: work.line.args[at].shown(),
        devices: users.iter().filter_map(|user| user.get("id")).collect(),
        names: id.into_iter().chain(options.get("node-name")).collect(),
        file: file.filter(|f| !f.is_empty()).map(|f| work.absolute(&f)),
        read_only: options.get("media").as_deref() == Some("cdrom")
            || options.is_on("readonly")
            || options.is_on("read-only")
            || (!users.is_empty() && users.iter().all(is_optical)),
        removable: options.get("media").as_deref() == Some("cdrom")
            || interface.as_deref() == Some("floppy")
            || users.iter().any(is_removable),
        firmware: interface.as_deref() == Some("pflash"),
    }
}

fn node_back_end(work: &Work<'_>, node: Node, device: &Options) -> BackEnd {
    let line = &work.line;
    BackEnd {
        shown: line.args[node.position()].shown(),
        devices: device.get("id").into_iter().collect(),
        names: node.names(line),
        file: node.filename(line).map(|file| work.absolute(&file)),
        read_only: node.read_only(line) || is_optical(device),
        removable: is_removable(device),
        firmware: device.get("pflash0").is_some() || device.get("pflash1").is_some(),
        place: Place::Nodes(node),
    }
}

fn is_optical(device: &Options) -> bool {
    device.get("driver").is_some_and(|d| d.ends_with("-cd"))
}

fn is_removable(device: &Options) -> bool {
    is_optical(device) || device.get("driver").as_deref() == Some("floppy")
}

/// For every back end the disk that it is, by the best evidence first.
fn match_disks(disks: &[Disk], back_ends: &[BackEnd]) -> Vec<Option<usize>> {
    type Evidence = fn(&Disk, &BackEnd) -> bool;
    let evidence: [Evidence; 4] = [
        |disk, end| end.devices.contains(&disk.id),
        |disk, end| end.names.contains(&disk.node_name) || end.names.contains(&disk.id),
        |disk, end| end.file.as_ref() == Some(&disk.address),
        |disk, end| end.file.as_ref().is_some_and(|f| disk.backing.contains(f)),
    ];
    let mut matched = vec![None; back_ends.len()];
    for fits in evidence {
        for (index, disk) in disks.iter().enumerate() {
            let free = |at: &usize| matched[*at].is_none() && fits(disk, &back_ends[*at]);
            if !matched.contains(&Some(index))
                && let Some(at) = (0..back_ends.len()).find(free)
            {
                matched[at] = Some(index);
            }
        }
    }
    match_by_place(disks, back_ends, &mut matched);
    matched
}

/// The last resort: as many disks as back ends are left, and they agree in kind.
fn match_by_place(disks: &[Disk], back_ends: &[BackEnd], matched: &mut [Option<usize>]) {
    let disks_left: Vec<usize> = (0..disks.len())
        .filter(|index| !matched.contains(&Some(*index)) && disks[*index].included)
        .collect();
    let ends_left: Vec<usize> = (0..back_ends.len())
        .filter(|at| matched[*at].is_none() && !back_ends[*at].removable)
        .collect();
    let alike = |(disk, end): (&usize, &usize)| {
        let (disk, end) = (&disks[*disk], &back_ends[*end]);
        disk.read_only == end.read_only && disk.firmware == end.firmware
    };
    if disks_left.len() == ends_left.len() && disks_left.iter().zip(&ends_left).all(alike) {
        for (disk, end) in disks_left.into_iter().zip(ends_left) {
            matched[end] = Some(disk);
        }
    }
}

/// Every image has its disk, and every disk with an image has its place.
fn check(
    disks: &[Disk],
    restored: &[RestoredDisk],
    matched: &[Option<usize>],
) -> Result<(), LaunchError> {
    for image in restored {
        let Some(index) = disks.iter().position(|disk| disk.id == image.id) else {
            return Err(LaunchError::UnknownDisk {
                disk: image.id.clone(),
            });
        };
        if !matched.contains(&Some(index)) {
            return Err(LaunchError::DiskNotOnCommandLine {
                disk: image.id.clone(),
                address: disks[index].address.clone(),
            });
        }
    }
    Ok(())
}

fn replace(work: &mut Work<'_>, end: &BackEnd, image: &RestoredDisk) -> Result<(), LaunchError> {
    let path = utf8(&image.path)?;
    match &end.place {
        Place::Nodes(node) => node.replace(&mut work.line, path, &image.format),
        Place::Drive(at) => {
            let old = work.line.args[*at].options();
            let mut options = Options::empty();
            options.set("file", path);
            options.set("format", &image.format);
            for (key, value) in old.entries() {
                let first = key.split('.').next().unwrap_or(&key);
                if KEPT.contains(&first) {
                    options.set(&key, &value);
                }
            }
            work.line.args[*at].value = Some(options.to_string());
        }
    }
    work.change(format!(
        "disk {} is {path} ({}) in place of {}",
        image.id,
        image.format,
        end.file.as_deref().unwrap_or("what was there")
    ));
    Ok(())
}

/// A back end that no image takes the place of.
fn keep(work: &mut Work<'_>, end: &BackEnd, disk: Option<&Disk>) -> Result<(), LaunchError> {
    let Some(file) = &end.file else {
        return Ok(());
    };
    let there = has_protocol(file) || Path::new(file).exists();
    let read_only = end.read_only || disk.is_some_and(|disk| disk.read_only);
    if read_only && there {
        set_file(work, end, file);
        return Ok(());
    }
    if end.removable {
        empty(work, end, file, there);
        return Ok(());
    }
    if !read_only {
        return Err(LaunchError::DiskNotRestored {
            option: end.shown.clone(),
        });
    }
    if end.firmware {
        set_file(work, end, file);
        work.warn(format!("firmware {file} is no longer there"));
        return Ok(());
    }
    Err(LaunchError::DiskMissing {
        option: end.shown.clone(),
        address: file.clone(),
    })
}

fn set_file(work: &mut Work<'_>, end: &BackEnd, file: &str) {
    match &end.place {
        Place::Nodes(node) => node.set_filename(&mut work.line, file),
        Place::Drive(at) => {
            let arg = &mut work.line.args[*at];
            let mut options = arg.options();
            let plain = options.get("file").is_some();
            options.set(if plain { "file" } else { "file.filename" }, file);
            arg.value = Some(options.to_string());
        }
    }
}

/// Takes the medium out.
fn empty(work: &mut Work<'_>, end: &BackEnd, file: &str, there: bool) {
    match &end.place {
        Place::Drive(at) => {
            let arg = &mut work.line.args[*at];
            let mut options = arg.options();
            options.keep_only("", |key| {
                matches!(key, "if" | "index" | "bus" | "unit" | "media" | "id")
            });
            arg.value = Some(options.to_string());
        }
        Place::Nodes(node) => {
            let name = node.names(&work.line).into_iter().next();
            for arg in work.line.args.iter_mut().filter(|a| a.name == "device") {
                let mut options = arg.options();
                if options.get("drive").is_some() && options.get("drive") == name {
                    options.remove("drive");
                    arg.value = Some(options.to_string());
                }
            }
        }
    }
    let why = match there {
        true => "it is writable and was not restored",
        false => "it is no longer there",
    };
    work.warn(format!("{file} is taken out of its drive: {why}"));
}

/// Removes the nodes that only replaced images stood on.
fn remove_orphans(work: &mut Work<'_>) {
    loop {
        let unused = block_node::unused(&work.line);
        if unused.is_empty() {
            return;
        }
        for at in &unused {
            let shown = work.line.args[*at].shown();
            work.change(format!("{shown} left out: a restored disk stands alone"));
        }
        work.line.remove_at(&unused);
    }
}
