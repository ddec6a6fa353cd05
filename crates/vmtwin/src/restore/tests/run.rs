//! A guest is captured, killed, and goes on from where it was.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::inspect::{inspect, run_state};
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_migration::{Bytes, FileBytes, Limits, RamImage, RamSource, StreamIndex};
use vmtwin_repository::{
    Backup, Extent, ExtentKind, ImageOptions, ImageSource, NoProgress, Snapshot, SparseFile,
};
use vmtwin_testkit::{DiskSpec, Guest, Log};

use super::fixture::{Fixture, finish};
use crate::content::{MEMORY_HEAD, MEMORY_LAYOUT, MEMORY_TAIL, disk_dir, ram_dir};
use crate::restore::error::RestoreError;
use crate::restore::report::RunningGuest;

const PATIENCE: Duration = Duration::from_secs(90);

/// A RAM block as the source of an image.
struct Ram<'a>(RamImage<'a>);

impl ImageSource for Ram<'_> {
    fn size_bytes(&self) -> u64 {
        RamSource::size_bytes(&self.0)
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<Extent> {
        let extent = RamSource::extent_at(&self.0, offset_bytes)?;
        let kind = match extent.kind {
            vmtwin_migration::ExtentKind::Data => ExtentKind::Data,
            vmtwin_migration::ExtentKind::Zero => ExtentKind::Zero,
        };
        Ok(Extent {
            kind,
            len: extent.len_bytes,
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        RamSource::read_at(&self.0, offset_bytes, buf)
    }
}

/// Stops the guest and writes its memory to a file.
fn save_memory(qmp: &mut Qmp, path: &Path) {
    let background = json!({"capability": "background-snapshot", "state": true});
    qmp.execute("stop", Value::Null).unwrap();
    qmp.execute(
        "migrate-set-capabilities",
        json!({"capabilities": [background]}),
    )
    .unwrap();
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))
        .unwrap();
    qmp.execute(
        "migrate",
        json!({"uri": format!("file:{}", path.display())}),
    )
    .unwrap();
    let start = Instant::now();
    loop {
        let status = qmp.execute("query-migrate", Value::Null).unwrap();
        match status["status"].as_str() {
            Some("completed") => return,
            Some("failed") => panic!("{status}"),
            _ => assert!(start.elapsed() < PATIENCE, "{status}"),
        }
        sleep(Duration::from_millis(20));
    }
}

/// Stores the memory; gives what the list says of it.
fn store_memory(backup: &Backup, path: &Path) -> Value {
    let bytes = FileBytes::new(File::open(path).unwrap()).unwrap();
    let index = StreamIndex::parse(&bytes, &Limits::default()).unwrap();
    let part = |range: std::ops::Range<u64>| {
        let mut part = vec![0; (range.end - range.start) as usize];
        bytes.read_at(range.start, &mut part).unwrap();
        part
    };
    let layout = serde_json::to_vec(index.layout()).unwrap();
    backup.add_bytes(MEMORY_LAYOUT, &layout).unwrap();
    backup.add_bytes(MEMORY_HEAD, &part(index.head())).unwrap();
    backup.add_bytes(MEMORY_TAIL, &part(index.tail())).unwrap();
    let options = ImageOptions {
        grain_bytes: 64 << 10,
        ..ImageOptions::default()
    };
    for (number, block) in index.blocks().iter().enumerate() {
        if block.size_bytes > 0 {
            let ram = Ram(index.image(&bytes, number).unwrap());
            backup
                .add_image(&ram_dir(number), &ram, &options, &NoProgress)
                .unwrap();
        }
    }
    json!({"stored": "parsed", "blocks": index.blocks().len(), "stream_bytes": bytes.len_bytes()})
}

/// Stores the disks of a dead guest; gives the list of them.
fn store_disks(backup: &Backup, machine: &Machine, dir: &Path) -> Vec<Value> {
    let included = machine.disks.iter().filter(|disk| disk.included);
    let store = |disk: &vmtwin_hypervisor::machine::Disk| {
        let raw = dir.join(format!("{}.original", disk.id));
        let mut convert = Command::new("qemu-img");
        convert
            .args(["convert", "-f", &disk.format, "-O", "raw", &disk.address])
            .arg(&raw);
        assert!(convert.status().unwrap().success());
        let source = SparseFile::open(&raw).unwrap();
        let options = ImageOptions::default();
        backup
            .add_image(&disk_dir(&disk.id), &source, &options, &NoProgress)
            .unwrap();
        json!({"id": disk.id, "size_bytes": disk.size_bytes, "format": disk.format})
    };
    included.map(store).collect()
}

/// A snapshot of a guest that is dead now, and the last number that it said.
fn capture(fixture: &Fixture, run_state: &str) -> (Snapshot, u64, Guest) {
    let guest = Guest::builder()
        .disks([DiskSpec::qcow2(64), DiskSpec::raw(64)])
        .start();
    guest.wait_for_next_tick(PATIENCE);
    let mut qmp = Qmp::connect(guest.qmp_path(), PATIENCE).unwrap();
    let machine = inspect(&mut qmp).unwrap();
    let stream = fixture.dir.path().join("stream");
    save_memory(&mut qmp, &stream);
    let last = guest.last_tick().n;
    guest.kill();
    let backup = fixture.backup();
    let memory = store_memory(&backup, &stream);
    let disks = store_disks(&backup, &machine, fixture.dir.path());
    let content = json!({
        "format": 1,
        "vm": "tiny",
        "consistency": "state",
        "time": "2024-01-01T00:00:00Z",
        "run_state": run_state,
        "disks": disks,
        "memory": memory,
    });
    let machine = serde_json::to_value(machine).unwrap();
    (finish(backup, &content, &machine), last, guest)
}

/// Ends a guest that was left running.
fn quit(running: &RunningGuest) {
    let mut qmp = Qmp::connect(&running.qmp_socket, PATIENCE).unwrap();
    qmp.execute("quit", Value::Null).unwrap();
    let start = Instant::now();
    while running.qmp_socket.exists() && start.elapsed() < PATIENCE {
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_guest_goes_on() {
    let fixture = Fixture::new();
    let (snapshot, last, _dead) = capture(&fixture, "running");
    let mut request = fixture.request();
    request.run = true;
    let report = fixture.restore(&snapshot, &request).unwrap();
    let running = report.running.unwrap();
    assert!(report.memory.unwrap().stream_bytes > 0);
    let tick = Log::new(&running.console_log).wait_for_tick_after(last, PATIENCE);
    assert!(tick.n > last);

    // A second restore to the same place does no harm, by force neither.
    request.force = true;
    let refused = fixture.restore(&snapshot, &request);
    assert!(
        matches!(
            refused,
            Err(RestoreError::InUse { .. } | RestoreError::RunsHere { .. })
        ),
        "{refused:?}"
    );
    // A copy beside it does no harm.
    request.dir = fixture.dir.path().join("copy");
    let copy = fixture
        .restore(&snapshot, &request)
        .unwrap()
        .running
        .unwrap();
    Log::new(&copy.console_log).wait_for_tick_after(last, PATIENCE);
    quit(&copy);
    quit(&running);
}

#[test]
fn a_paused_guest_stays_paused_and_a_stream_is_whole() {
    let fixture = Fixture::new();
    let (snapshot, last, _dead) = capture(&fixture, "paused");
    let mut request = fixture.request();
    request.memory = true;
    let report = fixture.restore(&snapshot, &request).unwrap();
    let memory = report.memory.unwrap();
    let stream = FileBytes::new(File::open(memory.path.unwrap()).unwrap()).unwrap();
    assert_eq!(stream.len_bytes(), memory.stream_bytes);
    StreamIndex::parse(&stream, &Limits::default()).unwrap();

    request.run = true;
    request.dir = fixture.dir.path().join("paused");
    let running = fixture
        .restore(&snapshot, &request)
        .unwrap()
        .running
        .unwrap();
    let mut qmp = Qmp::connect(&running.qmp_socket, PATIENCE).unwrap();
    assert_ne!(run_state(&mut qmp).unwrap(), "running");
    sleep(Duration::from_millis(500));
    assert!(Log::new(&running.console_log).last_tick().is_none());
    qmp.execute("cont", Value::Null).unwrap();
    drop(qmp);
    Log::new(&running.console_log).wait_for_tick_after(last, PATIENCE);
    quit(&running);
}

#[test]
fn a_state_that_qemu_refuses_leaves_nothing() {
    let fixture = Fixture::new();
    let (snapshot, _, _dead) = capture(&fixture, "running");
    let mut request = fixture.request();
    request.run = true;
    request.accel = Some("no-such-accelerator".into());
    let refused = fixture.restore(&snapshot, &request);
    // Its socket may be there for a moment first.
    let ended = matches!(
        refused,
        Err(RestoreError::Start(_) | RestoreError::EndedEarly { .. })
    );
    assert!(ended, "{refused:?}");
    assert!(!fixture.target().exists());
}
