//! The recipe: what is done in which order.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use vmtwin_hypervisor::launch::RestoredDisk;
use vmtwin_repository::{Repository, Snapshot, SnapshotReader};

use super::error::RestoreError;
use super::folder::Folder;
use super::guard::Guard;
use super::instant::{self, Record, Serving};
use super::inventory::{Inventory, StoredDisk};
use super::launch::{Launch, Started};
use super::memory;
use super::progress::{Phase, RestoreProgress, Watch};
use super::report::{RestoreReport, RestoredDiskReport, RestoredMemory};
use super::request::{ImageFormat, RestoreRequest};
use super::state::StoredState;
use super::target::{Partial, Published, Target};
use super::{qcow2, raw, space};
use crate::failpoint;

/// Name of the file that holds the memory of a guest that is not started.
const MEMORY_FILE: &str = "memory.stream";
/// Buffer before that file.
const BUFFER_BYTES: usize = 1 << 20;

/// Everything that is known before the first byte is written.
struct Plan {
    inventory: Inventory,
    state: Option<StoredState>,
    /// In the order of the inventory's.
    disks: Vec<(ImageFormat, Target)>,
    files: Vec<Target>,
    memory: Option<Target>,
    launch: Option<Launch>,
    /// Disks are overlays on what is served.
    instant: bool,
}

/// What was written, under its partial name.
struct Written {
    disks: Vec<RestoredDiskReport>,
    memory: Option<RestoredMemory>,
    partials: Vec<Partial>,
    files: Vec<std::path::PathBuf>,
}

/// Restores a snapshot into a folder.
///
/// # Errors
/// See [`RestoreError`]. Nothing is left behind then, and nothing that was there is changed.
pub(crate) fn restore(
    repository: &Repository,
    snapshot: &Snapshot,
    request: &RestoreRequest,
    progress: &dyn RestoreProgress,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<RestoreReport, RestoreError> {
    restore_and_hold(repository, snapshot, request, progress, cancelled).map(|held| held.report)
}

/// A restore that is good. Its folder is locked until this is dropped, and its disks are served,
/// where they are overlays.
pub(crate) struct Held {
    pub(crate) report: RestoreReport,
    serving: Option<Serving>,
    folder: Folder,
}

impl Held {
    /// Why the repository cannot be read, where it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.serving.as_ref().and_then(Serving::trouble)
    }

    /// Serves no more; the folder stays locked until the answer is dropped.
    pub(crate) fn stop_serving(self) -> impl Drop {
        self.folder
    }
}

/// Restores as [`restore`] does.
///
/// # Errors
/// As [`restore`].
pub(crate) fn restore_and_hold(
    repository: &Repository,
    snapshot: &Snapshot,
    request: &RestoreRequest,
    progress: &dyn RestoreProgress,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Held, RestoreError> {
    let begun = Instant::now();
    let watch = Watch {
        progress,
        cancelled,
    };
    let reader = repository.reader(snapshot)?;
    let inventory = Inventory::read(&reader, request.disks.as_deref())?;
    let state = open_state(&reader, &inventory, request)?;
    let mut folder = Folder::open(&request.dir)?;
    let guard = Guard::start(request.guard.as_ref(), &folder)?;
    if request.instant && !request.force {
        space::check(&inventory, folder.path())?;
    }
    let mut plan = Plan::new(inventory, state, request, folder.path())?;
    failpoint::pass("folder")?;
    let mut written = plan.write(&reader, &mut folder, &guard, watch)?;
    if request.instant {
        let record = plan.record(repository, snapshot, request);
        written
            .partials
            .push(plan.write_record(&record, folder.path(), &guard)?);
    }
    failpoint::pass("publish")?;
    if (watch.cancelled)() {
        return Err(RestoreError::Cancelled);
    }
    let published = publish(written.partials, folder.path())?;
    let serving = request
        .instant
        .then(|| Serving::start(&reader, folder.path()));
    let serving = serving.transpose()?;
    let mut report = RestoreReport {
        snapshot: snapshot.id.clone(),
        vm: request
            .name
            .clone()
            .unwrap_or_else(|| plan.inventory.content.vm.clone()),
        dir: folder.path().to_owned(),
        disks: written.disks,
        memory: written.memory,
        files: written.files,
        running: None,
        warnings: plan.warnings(request),
        seconds: 0.0,
    };
    let started = plan.start(&reader, &mut folder, &guard, watch, &mut report)?;
    failpoint::pass("keep")?;
    // The restore is good from here on. What it replaced goes only after nobody would need it.
    guard.release();
    report.running = started.map(Started::keep);
    published.into_iter().for_each(Published::keep);
    folder.keep();
    progress.end();
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(Held {
        report,
        serving,
        folder,
    })
}

/// Goes on with an instant restore whose keeper is gone: serves its disks again, and starts the
/// guest if it is gone too, from its disks, since they have moved on from the point.
///
/// # Errors
/// See [`RestoreError`]. Nothing of the folder is taken back.
pub(crate) fn go_on(
    repository: &Repository,
    snapshot: &Snapshot,
    request: &RestoreRequest,
    record: &Record,
    progress: &dyn RestoreProgress,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Held, RestoreError> {
    let begun = Instant::now();
    let watch = Watch {
        progress,
        cancelled,
    };
    let reader = repository.reader(snapshot)?;
    let inventory = Inventory::read(&reader, None)?;
    let folder = Folder::open(&request.dir)?;
    let serving = Serving::start(&reader, folder.path())?;
    let mut report = RestoreReport {
        snapshot: snapshot.id.clone(),
        vm: request
            .name
            .clone()
            .unwrap_or_else(|| inventory.content.vm.clone()),
        dir: folder.path().to_owned(),
        disks: begun_disks(&inventory, record, folder.path()),
        memory: None,
        files: Vec::new(),
        running: None,
        warnings: Vec::new(),
        seconds: 0.0,
    };
    if record.monitor.is_some() {
        // Who had it started starts it again.
    } else if let Some(process) = instant::guest(folder.path()) {
        instant::let_boot(folder.path()).map_err(RestoreError::Qmp)?;
        let pid = process.pid;
        report
            .warnings
            .push(format!("the guest was running already, as pid {pid}"));
    } else {
        watch.progress.begin(Phase::Start, 0);
        let again = RestoreRequest {
            force: true,
            ..request.clone()
        };
        let disks = report.disks.iter().map(|disk| RestoredDisk {
            id: disk.id.clone(),
            path: disk.path.clone(),
            format: disk.format.name().to_owned(),
        });
        let disks = disks.collect();
        let launch = Launch::plan(&inventory, &again, folder.path(), disks, None)?;
        report.warnings.extend(launch.warnings().to_vec());
        report
            .warnings
            .push("the guest was started again from its disks".to_owned());
        let (started, _) = launch.start(&reader, None, &Guard::none(), watch)?;
        report.running = Some(started.keep());
    }
    progress.end();
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(Held {
        report,
        serving: Some(serving),
        folder,
    })
}

/// The disks of a restore that was begun.
fn begun_disks(inventory: &Inventory, record: &Record, dir: &Path) -> Vec<RestoredDiskReport> {
    let disk = |disk: &StoredDisk| {
        let format = match record.disks.contains(&disk.id) {
            true => ImageFormat::Qcow2,
            false => ImageFormat::as_it_was(&disk.format),
        };
        RestoredDiskReport {
            id: disk.id.clone(),
            path: dir.join(format!("{}.{}", disk.id, format.name())),
            format,
            size_bytes: disk.image.size_bytes(),
            written_bytes: 0,
        }
    };
    inventory.disks.iter().map(disk).collect()
}

/// The live state, where it is wanted.
fn open_state(
    reader: &SnapshotReader,
    inventory: &Inventory,
    request: &RestoreRequest,
) -> Result<Option<StoredState>, RestoreError> {
    let wanted = match request.run {
        true => inventory.content.memory.is_some(),
        false => request.memory,
    };
    wanted.then(|| inventory.open_state(reader)).transpose()
}

impl Plan {
    /// Plans, and checks that nothing is in the way.
    fn new(
        inventory: Inventory,
        state: Option<StoredState>,
        request: &RestoreRequest,
        dir: &Path,
    ) -> Result<Plan, RestoreError> {
        if request.run
            && let Some(id) = inventory.left_out().next()
        {
            return Err(RestoreError::DiskLeftOut { id: id.to_owned() });
        }
        let disks: Vec<(ImageFormat, Target)> = inventory
            .disks
            .iter()
            .map(|disk| disk_target(disk, request, dir))
            .collect();
        let files: Vec<Target> = inventory
            .files
            .iter()
            .map(|file| file.target(dir, request.force))
            .collect();
        let to_file = state.is_some() && !request.run;
        let memory = to_file.then(|| Target::new(dir, MEMORY_FILE, request.force));
        let all = disks
            .iter()
            .map(|(_, target)| target)
            .chain(&files)
            .chain(&memory);
        all.into_iter().try_for_each(Target::check)?;
        let run_state = state.as_ref().map(|_| inventory.content.run_state.as_str());
        let launch = match request.run {
            true => {
                let disks = restored_disks(&inventory, &disks);
                Some(Launch::plan(&inventory, request, dir, disks, run_state)?)
            }
            false => None,
        };
        Ok(Plan {
            inventory,
            state,
            disks,
            files,
            memory,
            launch,
            instant: request.instant,
        })
    }

    /// What is to be known for going on.
    fn record(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
        request: &RestoreRequest,
    ) -> Record {
        let overlays = self.inventory.disks.iter().filter(|disk| is_overlay(disk));
        Record {
            snapshot: snapshot.id.clone(),
            repository: repository.id(),
            disks: overlays.map(|disk| disk.id.clone()).collect(),
            monitor: request.monitor.clone(),
        }
    }

    fn write_record(
        &self,
        record: &Record,
        dir: &Path,
        guard: &Guard,
    ) -> Result<Partial, RestoreError> {
        let target = Target::new(dir, instant::RECORD, false);
        let (partial, mut file) = target.begin(guard)?;
        let text = serde_json::to_vec(record).map_err(std::io::Error::from);
        let written = text.and_then(|text| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(RestoreError::file("write", partial.path()))?;
        Ok(partial)
    }

    /// Writes all files under their partial names.
    fn write(
        &mut self,
        reader: &SnapshotReader,
        folder: &mut Folder,
        guard: &Guard,
        watch: Watch<'_>,
    ) -> Result<Written, RestoreError> {
        let mut written = Written {
            disks: Vec::new(),
            memory: None,
            partials: Vec::new(),
            files: Vec::new(),
        };
        let targets = std::mem::take(&mut self.disks);
        for (disk, (format, target)) in self.inventory.disks.iter().zip(targets) {
            let (report, partial) = match self.instant && is_overlay(disk) {
                true => begin_disk(disk, target, guard, folder.path())?,
                false => write_disk(disk, format, target, guard, watch)?,
            };
            failpoint::pass(&format!("disk {}", disk.id))?;
            written.disks.push(report);
            written.partials.push(partial);
        }
        self.write_files(reader, folder, guard, watch, &mut written)?;
        if let (Some(target), Some(state)) = (self.memory.take(), &self.state) {
            watch.progress.begin(Phase::Memory, state.total_bytes());
            let path = Some(target.path().to_owned());
            let (partial, stream_bytes) = write_memory(reader, state, target, guard, watch)?;
            written.memory = Some(RestoredMemory { path, stream_bytes });
            written.partials.push(partial);
        }
        Ok(written)
    }

    fn write_files(
        &mut self,
        reader: &SnapshotReader,
        folder: &mut Folder,
        guard: &Guard,
        watch: Watch<'_>,
        written: &mut Written,
    ) -> Result<(), RestoreError> {
        let targets = std::mem::take(&mut self.files);
        if !targets.is_empty() {
            let sizes = self.inventory.files.iter().map(|file| file.size_bytes);
            watch
                .progress
                .begin(Phase::Files, sizes.fold(0, u64::saturating_add));
        }
        for (file, target) in self.inventory.files.iter().zip(targets) {
            if (watch.cancelled)() {
                return Err(RestoreError::Cancelled);
            }
            written.files.push(target.path().to_owned());
            written
                .partials
                .push(file.write(reader, folder, guard, target, watch)?);
        }
        Ok(())
    }

    /// Starts the guest, where that is wanted.
    fn start(
        &mut self,
        reader: &SnapshotReader,
        folder: &mut Folder,
        guard: &Guard,
        watch: Watch<'_>,
        report: &mut RestoreReport,
    ) -> Result<Option<Started>, RestoreError> {
        let Some(launch) = self.launch.take() else {
            return Ok(None);
        };
        if let Some(dir) = launch.tpm_state_dir() {
            folder.make(dir, guard)?;
        }
        let state = self.state.as_ref();
        let phase = match state {
            Some(_) => Phase::Memory,
            None => Phase::Start,
        };
        let total_bytes = state.map_or(0, StoredState::total_bytes);
        watch.progress.begin(phase, total_bytes);
        let (started, stream_bytes) = launch.start(reader, state, guard, watch)?;
        report.memory = state.map(|_| RestoredMemory {
            path: None,
            stream_bytes,
        });
        Ok(Some(started))
    }

    fn warnings(&self, request: &RestoreRequest) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .launch
            .iter()
            .flat_map(|launch| launch.warnings().to_vec())
            .collect();
        if request.run && self.state.is_none() {
            warnings.push("the snapshot holds no memory: the guest boots from its disks".into());
        }
        let left_out: Vec<&str> = self.inventory.left_out().collect();
        if !left_out.is_empty() {
            warnings.push(format!(
                "disks not restored, as asked: {}",
                left_out.join(", ")
            ));
        }
        warnings
    }
}

fn disk_target(disk: &StoredDisk, request: &RestoreRequest, dir: &Path) -> (ImageFormat, Target) {
    let format = match request.instant && is_overlay(disk) {
        true => ImageFormat::Qcow2,
        false => request
            .format
            .unwrap_or_else(|| ImageFormat::as_it_was(&disk.format)),
    };
    let name = format!("{}.{}", disk.id, format.name());
    (format, Target::new(dir, &name, request.force))
}

fn restored_disks(inventory: &Inventory, targets: &[(ImageFormat, Target)]) -> Vec<RestoredDisk> {
    let disk = |(disk, (format, target)): (&StoredDisk, &(ImageFormat, Target))| RestoredDisk {
        id: disk.id.clone(),
        path: target.path().to_owned(),
        format: format.name().to_owned(),
    };
    inventory.disks.iter().zip(targets).map(disk).collect()
}

/// Whether an instant restore leaves the disk to come in later.
fn is_overlay(disk: &StoredDisk) -> bool {
    disk.image.size_bytes() > instant::SMALL_DISK_BYTES
}

/// Makes an overlay in the place of a disk.
fn begin_disk(
    disk: &StoredDisk,
    target: Target,
    guard: &Guard,
    dir: &Path,
) -> Result<(RestoredDiskReport, Partial), RestoreError> {
    let (path, size_bytes) = (target.path().to_owned(), disk.image.size_bytes());
    let (partial, file) = target.begin(guard)?;
    let socket = dir.join(instant::DISKS_SOCKET);
    instant::create_overlay(partial.path(), size_bytes, &socket, &disk.id)?;
    file.sync_all()
        .map_err(RestoreError::file("write", partial.path()))?;
    let report = RestoredDiskReport {
        id: disk.id.clone(),
        path,
        format: ImageFormat::Qcow2,
        size_bytes,
        written_bytes: 0,
    };
    Ok((report, partial))
}

fn write_disk(
    disk: &StoredDisk,
    format: ImageFormat,
    target: Target,
    guard: &Guard,
    watch: Watch<'_>,
) -> Result<(RestoredDiskReport, Partial), RestoreError> {
    let size_bytes = disk.image.size_bytes();
    watch.progress.begin(Phase::Disk(&disk.id), size_bytes);
    let path = target.path().to_owned();
    let (partial, file) = target.begin(guard)?;
    let written_bytes = match format {
        ImageFormat::Raw => raw::write(&disk.image, &partial, file, watch)?,
        ImageFormat::Qcow2 => qcow2::write(&disk.image, &partial, &file, watch)?,
    };
    let id = disk.id.clone();
    Ok((
        RestoredDiskReport {
            id,
            path,
            format,
            size_bytes,
            written_bytes,
        },
        partial,
    ))
}

fn write_memory(
    reader: &SnapshotReader,
    state: &StoredState,
    target: Target,
    guard: &Guard,
    watch: Watch<'_>,
) -> Result<(Partial, u64), RestoreError> {
    let (partial, file) = target.begin(guard)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let stream_bytes = memory::write(reader, state, &mut out, watch)?;
    let synced = out.flush().and_then(|()| out.get_ref().sync_all());
    synced.map_err(RestoreError::file("write", partial.path()))?;
    Ok((partial, stream_bytes))
}

/// Gives all files their names; where one can't have it, all go.
fn publish(partials: Vec<Partial>, dir: &Path) -> Result<Vec<Published>, RestoreError> {
    let published: Vec<Published> = partials
        .into_iter()
        .map(Partial::publish)
        .collect::<Result<_, _>>()?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(RestoreError::file("write", dir))?;
    Ok(published)
}
