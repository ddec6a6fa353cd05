//! QEMU's own block jobs, which copy into each overlay what is still under it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::qmp::{Qmp, QmpError};

use super::{Progress, Record};

/// How long after a failure a disk is tried again.
const AGAIN: Duration = Duration::from_secs(15);

/// The jobs of one QEMU.
pub(super) struct Streams {
    qmp: Qmp,
    limit_bytes_per_s: u64,
    /// When the job of a disk was begun last.
    begun: HashMap<usize, Instant>,
    trouble: Option<String>,
}

/// An overlay as QEMU sees it.
struct Overlay {
    node: String,
    size_bytes: u64,
    /// Something is still under it.
    over: bool,
}

impl Streams {
    pub(super) fn new(qmp: Qmp, limit_bytes_per_s: u64) -> Streams {
        Streams {
            qmp,
            limit_bytes_per_s,
            begun: HashMap::new(),
            trouble: None,
        }
    }

    /// Begins the jobs that are missing, and says how far all are; `None` once nothing is under any
    /// overlay.
    pub(super) fn step(
        &mut self,
        dir: &Path,
        disks: &[String],
    ) -> Result<Option<Progress>, QmpError> {
        self.hear()?;
        let jobs = self.qmp.execute("query-block-jobs", Value::Null)?;
        let nodes = self
            .qmp
            .execute("query-named-block-nodes", json!({ "flat": true }))?;
        let mut progress = Progress::default();
        let mut all_done = true;
        for (number, disk) in disks.iter().enumerate() {
            let image = Record::image(dir, disk);
            let Some(overlay) = overlay(&nodes, &image) else {
                let what = format!("QEMU has no block node of {}", image.display());
                return Err(QmpError::Protocol(what));
            };
            progress.total_bytes += overlay.size_bytes;
            if !overlay.over {
                progress.done_bytes += overlay.size_bytes;
                continue;
            }
            all_done = false;
            match job(&jobs, number) {
                Some(job) => {
                    progress.done_bytes += job.offset_bytes.min(overlay.size_bytes);
                    match job.copied {
                        true => self.finalize(number, &overlay.node)?,
                        false => self.adopt(number)?,
                    }
                }
                None => self.begin(number, disk, &overlay.node)?,
            }
        }
        progress.trouble = self.trouble.clone();
        Ok((!all_done).then_some(progress))
    }

    fn begin(&mut self, number: usize, disk: &str, node: &str) -> Result<(), QmpError> {
        if self
            .begun
            .get(&number)
            .is_some_and(|at| at.elapsed() < AGAIN)
        {
            return Ok(());
        }
        self.begun.insert(number, Instant::now());
        let mut arguments =
            json!({ "job-id": job_id(number), "device": node, "auto-finalize": false });
        if self.limit_bytes_per_s > 0 {
            arguments["speed"] = self.limit_bytes_per_s.into();
        }
        match self.qmp.execute("block-stream", arguments) {
            Ok(_) => Ok(()),
            Err(error) if error.is_gone() => Err(error),
            // Somebody's backup may hold the node: it is tried again.
            Err(error) => {
                self.trouble = Some(format!("disk {disk}: {error}"));
                Ok(())
            }
        }
    }

    /// Takes what is under an overlay away, now that all of it was copied.
    ///
    /// QEMU would do so at once, while the tables that say where the copies are may still be in its
    /// memory alone: were it killed then, the disk would read as zeros. So they are written first.
    fn finalize(&mut self, number: usize, node: &str) -> Result<(), QmpError> {
        let line = format!("qemu-io {node} flush");
        let said = self
            .qmp
            .execute("human-monitor-command", json!({ "command-line": line }))?;
        if let Some(words) = said.as_str().filter(|words| !words.trim().is_empty()) {
            self.trouble = Some(words.trim().to_owned());
            return Ok(());
        }
        let arguments = json!({ "id": job_id(number) });
        match self.qmp.execute("job-finalize", arguments) {
            Err(error) if error.is_gone() => Err(error),
            Err(error) => {
                self.trouble = Some(error.to_string());
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// A job that another keeper began gets the limit of this one.
    fn adopt(&mut self, number: usize) -> Result<(), QmpError> {
        if self.begun.contains_key(&number) {
            return Ok(());
        }
        self.begun.insert(number, Instant::now());
        let arguments = json!({ "device": job_id(number), "speed": self.limit_bytes_per_s });
        match self.qmp.execute("block-job-set-speed", arguments) {
            Err(error) if error.is_gone() => Err(error),
            // It may just have come to its end.
            _ => Ok(()),
        }
    }

    /// Takes in what became of jobs.
    fn hear(&mut self) -> Result<(), QmpError> {
        for event in self.qmp.take_events()? {
            let of_ours = event.data["device"].as_str();
            let of_ours = of_ours.is_some_and(|id| id.starts_with(JOB_PREFIX));
            if of_ours && event.name == "BLOCK_JOB_COMPLETED" {
                let error = event.data["error"].as_str();
                self.trouble = error.map(str::to_owned);
            }
        }
        Ok(())
    }
}

const JOB_PREFIX: &str = "vmtwin-stream-";

fn job_id(number: usize) -> String {
    format!("{JOB_PREFIX}{number}")
}

/// How far a job is.
struct Job {
    offset_bytes: u64,
    /// All is copied, and it waits to be told to finish.
    copied: bool,
}

fn job(jobs: &Value, number: usize) -> Option<Job> {
    let id = job_id(number);
    let found = jobs.as_array()?.iter().find(|job| job["device"] == id)?;
    Some(Job {
        offset_bytes: found["offset"].as_u64()?,
        copied: found["status"] == "pending",
    })
}

/// The file of an image. Where options say what lies under it, QEMU calls it by all of them, as JSON.
fn file_of(name: &str) -> Cow<'_, str> {
    let options = name.strip_prefix("json:");
    let options = options.and_then(|json| serde_json::from_str::<Value>(json).ok());
    match options
        .as_ref()
        .and_then(|o| o["file"]["filename"].as_str())
    {
        Some(file) => Cow::Owned(file.to_owned()),
        None => Cow::Borrowed(name),
    }
}

/// The node of an image, by the name of its file.
fn overlay(nodes: &Value, image: &Path) -> Option<Overlay> {
    let image = image.to_string_lossy();
    let is_it = |node: &&Value| {
        let name = node["image"]["filename"].as_str();
        node["drv"] == "qcow2" && name.is_some_and(|name| file_of(name) == image)
    };
    let node = nodes.as_array()?.iter().find(is_it)?;
    Some(Overlay {
        node: node["node-name"].as_str()?.to_owned(),
        size_bytes: node["image"]["virtual-size"].as_u64()?,
        // (`backing_file_depth` is always zero in a flat list.)
        over: node["backing_file"]
            .as_str()
            .is_some_and(|under| !under.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::file_of;

    #[test]
    fn images_are_found_by_their_files() {
        let options = r#"json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a b"}}"#;
        assert_eq!(file_of(options), "/a b");
        for name in ["/a", "json:{", "json:{}"] {
            assert_eq!(file_of(name), name);
        }
    }
}
