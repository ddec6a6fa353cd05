//! Backs an image file up into a repository and prints what it took, for comparisons.
//!
//! `VMTWIN_PASSWORD=… backup_image REPOSITORY IMAGE [LEVEL [GRAIN_KIB [PACK_MIB]]]`
//! The repository is made where there is none; without an IMAGE nothing else is done. The last
//! snapshot's image is the parent.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmtwin_repository::{
    Error, ImageOptions, IngestOptions, Location, NoProgress, Password, Repository, SnapshotMeta,
    SparseFile,
};

fn main() -> Result<(), Box<dyn StdError>> {
    let mut arguments = std::env::args().skip(1);
    let Some(repository) = arguments.next() else {
        return Err("usage: backup_image REPOSITORY [IMAGE [LEVEL [GRAIN_KIB [PACK_MIB]]]]".into());
    };
    let image = arguments.next();
    let mut ingest = IngestOptions::default();
    let mut options = ImageOptions::default();
    if let Some(level) = arguments.next() {
        ingest.zstd_level = level.parse()?;
    }
    if let Some(kib) = arguments.next() {
        options.grain_bytes = kib.parse::<u32>()? << 10;
    }
    if let Some(mib) = arguments.next() {
        ingest.pack_bytes = mib.parse::<usize>()? << 20;
    }
    // A repository is made as `vmtwin init` makes one with a password of its own.
    let password = Password::random(std::env::var("VMTWIN_PASSWORD")?);
    let location = Location::parse(&repository)?;
    let began = Instant::now();
    let repository = match Repository::open(&location, &password) {
        Err(Error::NotARepository { .. }) => Repository::init(&location, &password)?,
        other => other?,
    };
    let opened = began.elapsed();
    let Some(image) = image else {
        return Ok(());
    };
    let parent = match repository.snapshot("latest") {
        Ok(snapshot) => Some(snapshot),
        Err(Error::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(parent) = &parent {
        let image = repository.reader(parent)?.open_parent("/image")?;
        options.parent = Some(Arc::new(image));
    }
    let backup = repository.start_backup(&ingest)?;
    let source = SparseFile::open(Path::new(&image))?;
    let stats = backup.add_image("/image", &source, &options, &NoProgress)?;
    let ingested = began.elapsed();
    let buffers = backup.buffer_peak_bytes();
    let snapshot = backup.finish(SnapshotMeta {
        paths: vec!["/image".to_owned()],
        parent: parent.map(|snapshot| snapshot.id),
        ..SnapshotMeta::default()
    })?;
    println!(
        "{{\"snapshot\":\"{}\",\"bytes_total\":{},\"bytes_read\":{},\"bytes_zero\":{},\
         \"bytes_new\":{},\"bytes_stored\":{},\"chunks\":{},\"chunks_new\":{},\
         \"pack_buffer_bytes\":{buffers},\"peak_memory_bytes\":{},\"open_s\":{:.3},\"ingest_s\":{:.3},\"seconds\":{:.3}}}",
        snapshot.id,
        stats.bytes_total,
        stats.bytes_read,
        stats.bytes_zero,
        stats.bytes_new,
        stats.bytes_stored,
        stats.chunks,
        stats.chunks_new,
        peak_memory_bytes(),
        opened.as_secs_f64(),
        (ingested - opened).as_secs_f64(),
        began.elapsed().as_secs_f64(),
    );
    Ok(())
}

/// Most memory this process ever held, by the kernel's account; zero where it has none.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
