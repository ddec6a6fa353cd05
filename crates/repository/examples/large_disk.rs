//! What an incremental backup of a large disk costs when a little of it has changed.
//!
//! `large_disk FOLDER [GIB [PER_MILLE]]`: a disk of so many GiB (default 1024) that is made of
//! numbers: so many thousandths of it (default 1), blocks of 64 KiB at random places, hold random
//! bytes, the rest holes. It is backed up; then as many blocks at other places are written and it is
//! backed up again by what changed; then those same blocks once more. The repository in FOLDER is
//! removed at the end.
//!
//! `large_disk FOLDER GIB PER_MILLE POINTS`: then so many points more, and what `stats` takes over all.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmtwin_repository::{
    Extent, ExtentKind, ImageOptions, ImageSource, ImageStats, IngestOptions, Location, NoProgress,
    Password, Repository, SnapshotMeta,
};

/// Granularity of the dirty bitmaps, bytes.
const BLOCK_BYTES: u64 = 64 << 10;

/// A disk: the seed of each block that holds something, and whether it is dirty.
struct Disk {
    blocks: u64,
    written: BTreeMap<u64, (u64, bool)>,
    /// What is not dirty: a hole at first, later as it was.
    rest: ExtentKind,
}

impl Disk {
    /// Writes to blocks; nothing else is dirty then.
    fn write(&mut self, blocks: &[u64], seed: u64) {
        self.written
            .values_mut()
            .for_each(|(_, dirty)| *dirty = false);
        for block in blocks {
            self.written.insert(*block, (seed ^ block, true));
        }
    }
}

impl ImageSource for Disk {
    fn size_bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let block = offset / BLOCK_BYTES;
        let mut dirty = self.written.range(block..).filter(|(_, (_, dirty))| *dirty);
        let next = dirty.next().map_or(self.blocks, |(block, _)| *block);
        let (kind, end) = match next == block {
            true => (ExtentKind::Data, block + 1),
            false => (self.rest, next),
        };
        let len = end * BLOCK_BYTES - offset;
        Ok(Extent { kind, len })
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let count = buf.len().min(BLOCK_BYTES as usize - within);
            let (part, rest) = buf.split_at_mut(count);
            match self.written.get(&(offset / BLOCK_BYTES)) {
                None => part.fill(0),
                Some((seed, _)) => part.copy_from_slice(&noise(*seed)[within..within + count]),
            }
            offset += count as u64;
            buf = rest;
        }
        Ok(())
    }
}

/// A block that does not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..BLOCK_BYTES / 8).map(|_| next(&mut state));
    words.flat_map(u64::to_le_bytes).collect()
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn main() -> Result<(), Box<dyn StdError>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: large_disk FOLDER [GIB [PER_MILLE]]")?;
    let gib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let per_mille: u64 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let blocks = (gib << 30) / BLOCK_BYTES;
    let mut state = 88_172_645_463_325_252;
    let mut places = || -> Vec<u64> {
        let count = blocks * per_mille / 1000;
        (0..count).map(|_| next(&mut state) % blocks).collect()
    };
    let mut disk = Disk {
        blocks,
        written: BTreeMap::new(),
        rest: ExtentKind::Hole,
    };
    let location = Location::parse(&folder)?;
    let repository = Repository::init(&location, &Password::random("large disk"))?;
    disk.write(&places(), 1);
    report("first", &repository, &folder, &disk)?;
    disk.rest = ExtentKind::Unchanged;
    let changed = places();
    for (name, seed) in [("change", 2), ("again", 3)] {
        disk.write(&changed, seed);
        report(name, &repository, &folder, &disk)?;
    }
    let points: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    for number in 0..points {
        disk.write(&places(), 4 + number);
        backup(&repository, &disk)?;
        if [points / 4, points / 2, points].contains(&(number + 1)) {
            let began = Instant::now();
            let usage = repository.usage(&|_| Some("disk".to_owned()), &NoProgress)?;
            println!(
                "stats of {} points, {} MiB used: {:.2} s, peak memory {} MiB",
                number + 4,
                usage.used_bytes >> 20,
                began.elapsed().as_secs_f64(),
                peak_mib()?,
            );
        }
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Backs the disk up and prints what it took.
fn report(
    name: &str,
    repository: &Repository,
    folder: &str,
    disk: &Disk,
) -> Result<(), Box<dyn StdError>> {
    let before = length(Path::new(folder))?;
    let began = Instant::now();
    let stats = backup(repository, disk)?;
    let seconds = began.elapsed().as_secs_f64();
    let grown = length(Path::new(folder))? - before;
    let dirty = disk.written.values().filter(|(_, dirty)| *dirty).count() as u64;
    println!(
        "{name}: {} MiB written, {} MiB read, {} MiB new, metadata {:.2} % of that, {seconds:.2} s, \
         peak memory {} MiB",
        (dirty * BLOCK_BYTES) >> 20,
        stats.bytes_read >> 20,
        stats.bytes_new >> 20,
        100.0 * (grown - stats.bytes_stored) as f64 / stats.bytes_stored as f64,
        peak_mib()?,
    );
    Ok(())
}

fn backup(repository: &Repository, disk: &Disk) -> Result<ImageStats, Box<dyn StdError>> {
    let mut options = ImageOptions::for_disk(disk.size_bytes());
    let parent = repository.snapshots()?.snapshots.pop();
    if let Some(parent) = &parent {
        let image = repository.reader(parent)?.open_parent("/disk")?;
        options.parent = Some(Arc::new(image));
    }
    let backup = repository.start_backup(&IngestOptions::default())?;
    let stats = backup.add_image("/disk", disk, &options, &NoProgress)?;
    backup.finish(SnapshotMeta {
        paths: vec!["/disk".to_owned()],
        parent: parent.map(|snapshot| snapshot.id),
        ..SnapshotMeta::default()
    })?;
    Ok(stats)
}

/// Bytes of all files below a folder.
fn length(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => length(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

fn peak_mib() -> Result<u64, Box<dyn StdError>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    Ok(kib.ok_or("no such field")?.parse::<u64>()? / 1024)
}
