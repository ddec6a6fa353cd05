//! Guest memory that stands in a file, which the old guest may still use.
//!
//! Plain memory in a shared file becomes shared anonymous memory of the same size and id, which is
//! all that a live state asks for. Memory that outlives a guest by design is refused.

use super::blockers::refused;
use super::error::LaunchError;
use super::plan::Work;

/// Devices whose memory is meant to be found again in its file.
const LASTING: &[&str] = &["nvdimm", "virtio-pmem-pci", "virtio-pmem"];
const KEPT: &[&str] = &[
    "dump",
    "host-nodes",
    "id",
    "merge",
    "policy",
    "prealloc",
    "prealloc-context",
    "prealloc-threads",
    "qom-type",
    "reserve",
    "share",
    "size",
    "x-use-canonical-path-for-ramblock-id",
];

/// Takes the files away.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    for (at, mut options) in work.line.all("object") {
        let shown = work.line.args[at].shown();
        match options.get("qom-type").as_deref() {
            Some("memory-backend-file") => {}
            Some("secret") => {
                drop_missing_secret(work, at);
                continue;
            }
            _ => continue,
        }
        let id = options.get("id").unwrap_or_default();
        if is_lasting(work, &id) {
            return Err(refused(
                &shown,
                "it is persistent memory in a file, which no backup took",
                "copy the file and start the machine by hand",
            ));
        }
        options.keep_only("", |key| KEPT.contains(&key));
        options.set("qom-type", "memory-backend-memfd");
        if !options.is_on("share") {
            options.set_flag("share", false);
        }
        work.line.args[at].value = Some(options.to_string());
        work.change(format!(
            "{shown} is anonymous memory: the old guest may use the file"
        ));
    }
    work.drop_all("mem-path", "the old guest may use the file");
    let unused = |arg: &super::command_line::Arg| arg.value.as_deref() == Some("");
    let gone: Vec<usize> = (0..work.line.args.len())
        .filter(|at| work.line.args[*at].name == "object" && unused(&work.line.args[*at]))
        .collect();
    work.line.remove_at(&gone);
    Ok(())
}

fn is_lasting(work: &Work<'_>, id: &str) -> bool {
    work.line.all("device").iter().any(|(_, device)| {
        let driver = device.get("driver").unwrap_or_default();
        device.get("memdev").as_deref() == Some(id) && LASTING.contains(&driver.as_str())
    })
}

/// A secret whose file went with the old guest, and which nothing uses (libvirt's master key).
fn drop_missing_secret(work: &mut Work<'_>, at: usize) {
    let options = work.line.args[at].options();
    let id = options.get("id").unwrap_or_default();
    let Some(file) = options.get("file").map(|file| work.absolute(&file)) else {
        return;
    };
    if std::path::Path::new(&file).exists() {
        return;
    }
    let shown = work.line.args[at].shown();
    if work.line.refers_to(&id, at) {
        work.warn(format!("{shown}: the file is no longer there"));
        return;
    }
    // Marked here, removed by the caller, whose positions must not move.
    work.line.args[at].value = Some(String::new());
    work.change(format!(
        "{shown} left out: the file is no longer there and nothing uses it"
    ));
}
