//! Watching a guest: whether it runs, ended in order, or failed; and whether its point still holds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmtwin_hypervisor::capture::Capture;
use vmtwin_hypervisor::qmp::Event;
use vmtwin_nbd::{Client, Options};

/// How often the point is read.
const CHECK_PERIOD: Duration = Duration::from_millis(500);
/// Longest answer of the guest's NBD server.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// It is there.
    There,
    /// Its user or its host ended it in order: nobody is to take its place.
    Ended,
    /// It panicked, or its process went without a word.
    Failed,
}

/// Watches the guest of a capture.
pub(super) struct Watch {
    exports: Vec<(String, Client)>,
    checked: Instant,
    ended: bool,
}

impl Watch {
    /// Connects to the exports of `disks`.
    pub(super) fn begin(capture: &Capture<'_>, disks: &[String]) -> Result<Watch> {
        let connect = |disk: &String| -> Result<(String, Client)> {
            let options = Options {
                request_timeout: READ_TIMEOUT,
                ..Options::default()
            };
            let client = Client::connect_unix(capture.nbd_socket(), disk, &options)
                .with_context(|| format!("cannot read the point of disk {disk}"))?;
            Ok((disk.clone(), client))
        };
        Ok(Watch {
            exports: disks.iter().map(connect).collect::<Result<_>>()?,
            checked: Instant::now(),
            ended: false,
        })
    }

    /// Looks at the guest.
    pub(super) fn guest(&mut self, capture: &mut Capture<'_>) -> Result<Guest> {
        let alive = capture.guest().process.is_alive();
        match capture.qmp().take_events() {
            Ok(events) => {
                for event in &events {
                    match judge(event) {
                        Some(Guest::Ended) => self.ended = true,
                        Some(other) => return Ok(other),
                        None => {}
                    }
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(match (alive, self.ended) {
            (_, true) => Guest::Ended,
            (true, false) => Guest::There,
            (false, false) => Guest::Failed,
        })
    }

    /// Reads from the point of every disk, now and then: a point that broke (scratch full, storage
    /// daemon gone) can't be promoted.
    pub(super) fn check_point(&mut self) -> Result<()> {
        if self.checked.elapsed() < CHECK_PERIOD {
            return Ok(());
        }
        for (disk, client) in &self.exports {
            client
                .read_at(0, &mut [0; 512])
                .with_context(|| format!("the point of disk {disk} is lost (scratch full?)"))?;
        }
        self.checked = Instant::now();
        Ok(())
    }
}

fn judge(event: &Event) -> Option<Guest> {
    match event.name.as_str() {
        "SHUTDOWN" => Some(match event.data["reason"].as_str() {
            Some("guest-panic") => Guest::Failed,
            _ => Guest::Ended,
        }),
        "GUEST_PANICKED" => Some(Guest::Failed),
        _ => None,
    }
}

/// Bytes on disk of the files in a folder.
pub(super) fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.blocks() * 512)
        .sum()
}
