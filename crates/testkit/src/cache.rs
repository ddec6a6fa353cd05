//! The folder that keeps what is costly to make: `$VMTWIN_CACHE`, or
//! `~/.cache/vmtwin`.
//!
//! Files are named by the content they are made of, published by rename, and made
//! under a lock, so that parallel tests make each of them once.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The cache folder; it may not exist yet.
pub(crate) fn folder() -> PathBuf {
    let given = std::env::var_os("VMTWIN_CACHE").filter(|value| !value.is_empty());
    given.map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into()))
                .join(".cache/vmtwin")
        },
        PathBuf::from,
    )
}

/// The path of a program that `tools/setup --all` installs there.
#[must_use]
pub fn cached(program: &str) -> PathBuf {
    folder().join(program)
}

/// A name for content, good within one cache.
pub(crate) fn content_hash(parts: &[&[u8]]) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The path of the file `name`; `make` is called to write it if there is none.
pub(crate) fn file(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = folder();
    let path = folder.join(name);
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("opening the cache's lock")?;
    lock.lock().context("locking the cache")?;
    if !path.exists() {
        let draft = folder.join(format!("{name}.draft"));
        make(&draft)?;
        std::fs::rename(&draft, &path).with_context(|| format!("publishing {}", path.display()))?;
    }
    Ok(path)
}
