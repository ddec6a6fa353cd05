//! Secrets: the first line of a file, read for each delivery and wiped afterwards.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest first line, bytes.
const MAX_BYTES: u64 = 4096;
/// What secrets that sign webhooks begin with (Standard Webhooks).
pub(crate) const SIGNING_PREFIX: &str = "whsec_";
/// Length of one that is made here, bytes.
const SIGNING_BYTES: usize = 32;

/// The first line of a file.
pub(crate) fn first_line(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let bad = |why| Error::BadFile {
        path: path.to_owned(),
        why,
    };
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    match text.lines().next() {
        _ if text.len() as u64 > MAX_BYTES => Err(bad("is longer than 4 KiB")),
        Some(line) if !line.trim().is_empty() => Ok(Zeroizing::new(line.trim().to_owned())),
        _ => Err(bad("has no text in its first line")),
    }
}

/// A secret that signs webhooks, of 256 random bits.
pub fn make_signing_secret() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0u8; SIGNING_BYTES]);
    rand::fill(bytes.as_mut()).map_err(|_| Error::Random)?;
    let text = STANDARD.encode(bytes.as_ref());
    Ok(Zeroizing::new(format!("{SIGNING_PREFIX}{text}")))
}
