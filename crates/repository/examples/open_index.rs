//! How long a repository of many blobs takes to open for a backup, and how much memory.
//!
//! `open_index FOLDER [MILLIONS [CACHE]]`: makes a repository there with an index of so many blobs (default
//! 10) unless it is there, with empty (sparse) packs, and opens it. The folder stays. With a folder
//! for a cache, the first time makes that and others use it.

use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::time::Instant;

use vmtwin_repository::{
    Error, FileName, IngestOptions, Kind, Location, Password, Repository, synthetic,
};

fn main() -> Result<(), Box<dyn StdError>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: open_index FOLDER [MILLIONS [CACHE]]")?;
    let millions: usize = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let password = Password::from("synthetic".to_owned());
    let location = Location::parse(&folder)?;
    if let Err(Error::NotARepository { .. }) = Repository::open(&location, &password) {
        let repository = Repository::init(&location, &password)?;
        for (id, size) in synthetic::write_index(&repository, millions * 1_000_000)? {
            let path = Path::new(&folder).join(FileName::new(Kind::Pack, id).path());
            fs::create_dir_all(path.parent().ok_or("no folder")?)?;
            fs::File::create(path)?.set_len(size)?;
        }
        println!("made; run it again");
        return Ok(());
    }
    let mut repository = Repository::open(&location, &password)?;
    if let Some(cache) = arguments.next() {
        repository = repository.with_cache(Path::new(&cache));
    }
    let before = memory_mib("VmRSS")?;
    let began = Instant::now();
    let backup = repository.start_backup(&IngestOptions::default())?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "open {seconds:.2} s, index {} MiB, peak {} MiB",
        memory_mib("VmRSS")? - before,
        memory_mib("VmHWM")?
    );
    backup.abort();
    Ok(())
}

fn memory_mib(field: &str) -> Result<u64, Box<dyn StdError>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .ok_or("no such field")?;
    Ok(kib.parse::<u64>()? / 1024)
}
