//! `vmtwin metrics`: the figures for Prometheus, printed or written to a file.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::backup::Cx;
use crate::metrics;

/// Readable by node_exporter, which is another user.
const MODE: u32 = 0o644;

/// Runs `vmtwin metrics`.
pub(crate) fn run(cx: &Cx<'_>, out: Option<&Path>) -> Result<()> {
    let text = metrics::render(cx.db, false)?;
    match out {
        None => {
            let document = serde_json::json!({ "format": "prometheus-0.0.4", "text": text });
            cx.ui.result(&document, || text.clone())
        }
        Some(path) => {
            write(path, &text).with_context(|| format!("cannot write {}", path.display()))
        }
    }
}

/// A reader sees the file as it was, or as it is.
fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut draft = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    draft.write_all(text.as_bytes())?;
    let mode = std::fs::Permissions::from_mode(MODE);
    draft.as_file().set_permissions(mode)?;
    draft.persist(path)?;
    Ok(())
}
