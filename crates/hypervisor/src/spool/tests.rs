//! Tests of the spool with disks that are slow, full or broken.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1024 * 1024;

#[derive(Debug, Default)]
struct TestFile {
    bytes: std::sync::Mutex<Vec<u8>>,
    delay: Duration,
    error: Option<i32>,
    hang: AtomicBool,
}

impl SpillFile for TestFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        thread::sleep(self.delay);
        while self.hang.load(SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(errno) = self.error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut file = self.bytes.lock().unwrap();
        let offset = offset as usize;
        let len = file.len().max(offset + bytes.len());
        file.resize(len, 0);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.bytes.lock().unwrap();
        let offset = offset as usize;
        bytes.copy_from_slice(&file[offset..offset + bytes.len()]);
        Ok(())
    }
}

struct Sent {
    bytes: u64,
    longest_write: Duration,
    error: Option<io::ErrorKind>,
}

fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

/// Writes `total` bytes of the pattern, as QEMU would, and notes how long it had to wait.
fn produce(mut to: UnixStream, total: u64, piece: usize) -> JoinHandle<Sent> {
    thread::spawn(move || {
        let mut sent = Sent {
            bytes: 0,
            longest_write: Duration::ZERO,
            error: None,
        };
        while sent.bytes < total {
            let len = piece.min((total - sent.bytes) as usize);
            let data = pattern(sent.bytes, len);
            let start = Instant::now();
            if let Err(error) = to.write_all(&data) {
                sent.error = Some(error.kind());
                break;
            }
            sent.longest_write = sent.longest_write.max(start.elapsed());
            sent.bytes += len as u64;
        }
        sent
    })
}

fn options(memory: u64, margin: u64, disk: u64) -> SpoolOptions {
    SpoolOptions {
        memory_limit_bytes: memory,
        memory_margin_bytes: margin,
        disk_limit_bytes: disk,
        deadline: Duration::from_secs(30),
        stall: Duration::from_secs(10),
        ..SpoolOptions::new(std::env::temp_dir())
    }
}

fn pair() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs)
}

fn start(options: SpoolOptions, file: TestFile) -> (Spool, UnixStream, Arc<TestFile>) {
    let (ours, theirs) = pair();
    let file = Arc::new(file);
    let spill = Arc::clone(&file) as Arc<dyn SpillFile>;
    let spool = Spool::with_file(ours, options, Some(spill)).unwrap();
    (spool, theirs, file)
}

fn assert_pattern(data: &SpoolData) {
    let mut all = vec![0; data.len_bytes() as usize];
    data.read_at(0, &mut all).unwrap();
    assert!(all == pattern(0, all.len()));
}

#[test]
fn a_follower_gets_everything_and_leaves_nothing() {
    for (memory, pause_ms) in [(64 * MIB, 0), (2 * MIB, 2)] {
        let slow = TestFile::default();
        let (spool, theirs, _) = start(options(memory, 64 * MIB, 64 * MIB), slow);
        let producer = produce(theirs, 20 * MIB + 77, 100_000);
        let mut reader = spool.follow();
        let mut all = Vec::new();
        let mut piece = vec![0; 300_000];
        loop {
            let count = io::Read::read(&mut reader, &mut piece).unwrap();
            if count == 0 {
                break;
            }
            all.extend_from_slice(&piece[..count]);
            thread::sleep(Duration::from_millis(pause_ms));
        }
        assert_eq!(producer.join().unwrap().error, None);
        assert!(all == pattern(0, 20 * 1024 * 1024 + 77));
    }
}

#[test]
fn a_follower_hears_of_the_end_and_its_own_end_frees_the_guest() {
    let (spool, theirs, _) = start(options(64 * MIB, MIB, 0), TestFile::default());
    let mut reader = spool.follow();
    reader.handle().give_up("enough");
    let error = io::Read::read(&mut reader, &mut [0; 8]).unwrap_err();
    assert!(error.to_string().contains("enough"), "{error}");
    drop(theirs);

    let (spool, theirs, _) = start(options(64 * MIB, MIB, 0), TestFile::default());
    let producer = produce(theirs, u64::MAX, 100_000);
    drop(spool.follow());
    assert!(producer.join().unwrap().error.is_some());
}

#[test]
fn everything_arrives_through_memory_and_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = pair();
    let options = SpoolOptions {
        dir: dir.path().to_owned(),
        ..options(2 * MIB, 64 * MIB, 64 * MIB)
    };
    let spool = Spool::start(ours, options).unwrap();
    let producer = produce(theirs, 20 * MIB + 77, 100_003);
    assert!(spool.wait_for_bytes(5 * MIB, Duration::from_secs(10)));
    assert!(!spool.wait_for_bytes(u64::MAX, Duration::from_millis(1)));
    let data = spool.finish().unwrap();
    assert_eq!(producer.join().unwrap().bytes, 20 * MIB + 77);
    assert_eq!(data.len_bytes(), 20 * MIB + 77);
    assert!(data.memory_bytes() + data.disk_bytes() >= data.len_bytes());
    assert_pattern(&data);
    let mut beyond = [0; 2];
    assert!(data.read_at(data.len_bytes() - 1, &mut beyond).is_err());
    assert!(data.read_at(u64::MAX, &mut beyond).is_err());
}

#[test]
fn a_slow_disk_never_blocks_the_producer() {
    let file = TestFile {
        delay: Duration::from_millis(200),
        ..TestFile::default()
    };
    let (spool, theirs, _file) = start(options(4 * MIB, 64 * MIB, 64 * MIB), file);
    let producer = produce(theirs, 24 * MIB, 65_536);
    let shared = Arc::clone(&spool.handle.shared);
    let data = spool.finish().unwrap();
    let sent = producer.join().unwrap();
    assert!(
        sent.longest_write < Duration::from_millis(150),
        "{:?}",
        sent.longest_write
    );
    assert!(shared.most_memory_bytes() <= 68 * MIB);
    assert_pattern(&data);
}

#[test]
fn a_disk_that_keeps_up_bounds_memory() {
    let (spool, theirs, _file) = start(options(3 * MIB, 9 * MIB, 64 * MIB), TestFile::default());
    let shared = Arc::clone(&spool.handle.shared);
    let producer = thread::spawn(move || {
        let mut to = theirs;
        for at in 0..30 {
            to.write_all(&pattern(at * MIB, MIB as usize)).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    });
    let data = spool.finish().unwrap();
    producer.join().unwrap();
    assert!(shared.most_memory_bytes() <= 12 * MIB);
    assert!(data.disk_bytes() >= 18 * MIB);
    assert_pattern(&data);
}

#[test]
fn a_hanging_disk_ends_the_spool_at_the_hard_limit() {
    let file = TestFile {
        hang: AtomicBool::new(true),
        ..TestFile::default()
    };
    let (spool, theirs, file) = start(options(2 * MIB, 4 * MIB, 64 * MIB), file);
    let shared = Arc::clone(&spool.handle.shared);
    let producer = produce(theirs, 64 * MIB, 65_536);
    let start = Instant::now();
    let error = spool.finish().unwrap_err();
    assert!(matches!(error, SpoolError::MemoryFull { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(shared.most_memory_bytes(), 6 * MIB);
    assert_cut_off(producer.join().unwrap().error);
    file.hang.store(false, SeqCst);
}

#[test]
fn a_full_disk_ends_the_spool() {
    let file = TestFile {
        error: Some(rustix::io::Errno::NOSPC.raw_os_error()),
        ..TestFile::default()
    };
    let (spool, theirs, _file) = start(options(2 * MIB, 64 * MIB, 64 * MIB), file);
    let producer = produce(theirs, 32 * MIB, 65_536);
    let error = spool.finish().unwrap_err();
    assert!(
        matches!(&error, SpoolError::Write(e) if e.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert!(producer.join().unwrap().error.is_some());
}

#[test]
fn the_disk_limit_ends_the_spool() {
    for disk in [0, 3 * MIB] {
        let (spool, theirs, _file) = start(options(2 * MIB, 64 * MIB, disk), TestFile::default());
        let producer = produce(theirs, 32 * MIB, 65_536);
        let error = spool.finish().unwrap_err();
        assert!(matches!(error, SpoolError::DiskLimit { .. }), "{error}");
        assert!(producer.join().unwrap().error.is_some());
    }
}

#[test]
fn deadline_and_stall_shut_the_socket() {
    for deadline in [true, false] {
        let mut limits = options(64 * MIB, 0, 0);
        let limit = match deadline {
            true => &mut limits.deadline,
            false => &mut limits.stall,
        };
        *limit = Duration::from_millis(150);
        let (ours, mut theirs) = pair();
        let spool = Spool::start(ours, limits).unwrap();
        theirs.write_all(b"begun").unwrap();
        let start = Instant::now();
        let error = spool.finish().unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2));
        match deadline {
            true => assert!(matches!(error, SpoolError::Deadline { .. }), "{error}"),
            false => assert!(matches!(error, SpoolError::Stalled { .. }), "{error}"),
        }
        assert!(theirs.write_all(b"more").is_err());
    }
}

#[test]
fn giving_up_wakes_everybody() {
    let (ours, theirs) = pair();
    let spool = Spool::start(ours, options(64 * MIB, 0, 0)).unwrap();
    let handle = spool.handle();
    let waiting = thread::spawn(move || handle.wait_for_bytes(1, Duration::from_secs(20)));
    let producer = produce(theirs, u64::MAX, 65_536);
    thread::sleep(Duration::from_millis(20));
    spool.give_up("the guest's pause was too long");
    assert!(producer.join().unwrap().error.is_some());
    waiting.join().unwrap();
    let error = spool.finish().unwrap_err();
    assert_eq!(
        error.to_string(),
        "given up: the guest's pause was too long"
    );
}

#[test]
fn a_dropped_spool_lets_qemu_go() {
    let (ours, theirs) = pair();
    let producer = produce(theirs, u64::MAX, 65_536);
    drop(Spool::start(ours, options(64 * MIB, 0, 0)).unwrap());
    assert!(producer.join().unwrap().error.is_some());
}

#[test]
fn waiting_ends_with_the_stream() {
    let (ours, theirs) = pair();
    let spool = Spool::start(ours, options(64 * MIB, 0, 0)).unwrap();
    drop(theirs);
    let start = Instant::now();
    assert!(!spool.wait_for_bytes(1, Duration::from_secs(20)));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(spool.finish().unwrap().len_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn reads_are_equal_at_every_boundary(
        len in prop_oneof![0..5 * MIB, Just(MIB), Just(3 * MIB), Just(3 * MIB + 1)],
        piece in 1_000_usize..300_000,
        memory in 0..4 * MIB,
        cuts in prop::collection::vec((0.0..1.0_f64, 0..2 * MIB), 1..8),
    ) {
        let (spool, theirs, _file) =
            start(options(memory, 64 * MIB, 64 * MIB), TestFile::default());
        let producer = produce(theirs, len, piece);
        let data = spool.finish().unwrap();
        producer.join().unwrap();
        prop_assert_eq!(data.len_bytes(), len);
        for (at, count) in cuts {
            let offset = (at * len as f64) as u64;
            let count = count.min(len - offset) as usize;
            let mut bytes = vec![0; count];
            data.read_at(offset, &mut bytes).unwrap();
            prop_assert!(bytes == pattern(offset, count));
        }
    }
}

/// The socket was shut: a reset where bytes were still unread, a broken pipe where none were.
fn assert_cut_off(error: Option<io::ErrorKind>) {
    let cut_off = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(error.is_some_and(|e| cut_off.contains(&e)), "{error:?}");
}
