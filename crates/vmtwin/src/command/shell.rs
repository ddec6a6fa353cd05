//! `vmtwin completions` and `vmtwin man`: made from the command line's own definition, so that they
//! are never behind it.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

const NAME: &str = "vmtwin";

/// Prints what a shell completes by.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}

/// Writes a page for each command into a folder.
pub(crate) fn man(dir: &Path) -> Result<()> {
    let cannot = || format!("cannot write pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        man(dir.path()).unwrap_or_else(|error| panic!("{error:#}"));
        for page in ["vmtwin.1", "vmtwin-backup.1", "vmtwin-snapshot-get.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap_or_default();
            assert!(text.contains(".SH NAME"), "{page}");
        }
    }
}
