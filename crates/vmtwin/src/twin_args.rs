//! How a twin is ended, and other settings of a guest in the catalog: options of commands too.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use vmtwin_catalog::Vm;
use vmtwin_hypervisor::twin::{Chord, ShutdownOptions};

/// Longest line that is typed on a console, bytes.
const MAX_LINE_BYTES: usize = 1024;

/// How a twin is ended. What is not given is as set for the guest, or the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct TwinArgs {
    /// How long a twin runs before its power button is pressed, seconds [default: 0]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) twin_wait_s: Option<u64>,
    /// Longest shutdown of a twin; after it the twin is killed, seconds [default: 300]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) twin_deadline_s: Option<u64>,
    /// Keys to press before the power button, such as 'ret' or 'ctrl-alt-f2,ret'
    #[arg(long, value_name = "KEYS", value_parser = keys)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) twin_keys: Option<String>,
    /// Line to type on the twin's first serial console before the power button
    #[arg(long, value_name = "LINE", value_parser = line)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) twin_console: Option<String>,
}

/// What the user set for a guest, as the catalog keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// How its twins are ended.
    #[serde(flatten)]
    pub(crate) twin: TwinArgs,
    /// Names of further repositories that its backups go to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) also: Vec<String>,
    /// Groups it is in, for schedules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<String>,
}

/// Letters, digits, `-`, `_` and `.`.
pub(crate) fn group(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("a group's name has up to 64 letters, digits, - _ and .".to_owned()),
    }
}

impl Settings {
    /// Those of a guest.
    pub(crate) fn of(vm: &Vm) -> Result<Settings> {
        let Some(settings) = vm.settings.clone() else {
            return Ok(Settings::default());
        };
        serde_json::from_value(settings).with_context(|| {
            let name = &vm.name;
            format!("the settings of {name} are not understood; forget them: vmtwin vm set {name} --clear")
        })
    }
}

impl TwinArgs {
    /// These, and for what is not given the settings of a guest.
    pub(crate) fn over(&self, vm: &Vm) -> Result<TwinArgs> {
        let settings = TwinArgs::of(vm)?;
        Ok(TwinArgs {
            twin_wait_s: self.twin_wait_s.or(settings.twin_wait_s),
            twin_deadline_s: self.twin_deadline_s.or(settings.twin_deadline_s),
            twin_keys: self.twin_keys.clone().or(settings.twin_keys),
            twin_console: self.twin_console.clone().or(settings.twin_console),
        })
    }

    /// The settings of a guest.
    pub(crate) fn of(vm: &Vm) -> Result<TwinArgs> {
        Ok(Settings::of(vm)?.twin)
    }

    /// As the twin takes them.
    pub(crate) fn options(&self) -> ShutdownOptions {
        let default = ShutdownOptions::default();
        ShutdownOptions {
            wait: self.twin_wait_s.map_or(default.wait, Duration::from_secs),
            deadline: (self.twin_deadline_s).map_or(default.deadline, Duration::from_secs),
            keys: (self.twin_keys.as_deref())
                .and_then(|keys| chords(keys).ok())
                .unwrap_or_default(),
            console: self.twin_console.clone(),
            ..default
        }
    }
}

fn chords(keys: &str) -> Result<Vec<Chord>, String> {
    keys.split(',').map(str::parse).collect()
}

fn keys(text: &str) -> Result<String, String> {
    chords(text).map(|_| text.to_owned())
}

fn line(text: &str) -> Result<String, String> {
    match text.len() > MAX_LINE_BYTES || text.chars().any(char::is_control) {
        true => Err("one line of at most 1024 bytes, without control characters".into()),
        false => Ok(text.to_owned()),
    }
}
