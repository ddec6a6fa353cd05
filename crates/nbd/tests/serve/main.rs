//! The server, judged by libnbd's tools, by QEMU's, by our own client, and by clients that lie or
//! stall.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail them"
)]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmtwin_nbd::{
    Client, Error, Listener, Options, ServedExport, ServedExtent, ServedImage, Server, ServerError,
    context,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 40 * MIB + 512;

/// Every third MiB is a hole; one read fails where that is wanted.
struct Pattern {
    bytes: Vec<u8>,
    broken_at: Option<u64>,
}

impl Pattern {
    fn new(broken_at: Option<u64>) -> Pattern {
        let mut bytes = vec![0; SIZE as usize];
        let mut state = 1u64;
        for (at, byte) in bytes.iter_mut().enumerate() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            if at as u64 / MIB % 3 != 2 {
                *byte = (state >> 56) as u8;
            }
        }
        Pattern { bytes, broken_at }
    }
}

impl ServedImage for Pattern {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<ServedExtent> {
        Ok(ServedExtent {
            len_bytes: MIB - offset_bytes % MIB,
            zero: offset_bytes / MIB % 3 == 2,
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes + buf.len() as u64;
        if self
            .broken_at
            .is_some_and(|at| (offset_bytes..end).contains(&at))
        {
            return Err(io::ErrorKind::Other.into());
        }
        buf.copy_from_slice(&self.bytes[offset_bytes as usize..end as usize]);
        Ok(())
    }
}

/// A server in a thread, with a folder of its own. It ends with this value.
struct Serving {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

fn exports() -> Vec<ServedExport> {
    let export = |name: &str, broken_at| ServedExport {
        name: name.to_owned(),
        description: format!("disk {name}"),
        image: Arc::new(Pattern::new(broken_at)),
    };
    vec![export("a", None), export("broken", Some(MIB + 4096))]
}

impl Serving {
    fn start(exports: Vec<ServedExport>) -> Serving {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::Unix(UnixListener::bind(dir.path().join("s")).unwrap());
        let server = Server::new(exports).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = Some(thread::spawn(move || server.run(&listener, &flag)));
        Serving { dir, stop, thread }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    fn connect(&self, name: &str) -> Result<Client, Error> {
        let options = Options::with_contexts([context::BASE_ALLOCATION]);
        Client::connect_unix(&self.socket(), name, &options)
    }

    /// What it holds, as a file.
    fn expected(&self) -> PathBuf {
        let path = self.dir.path().join("expected.raw");
        std::fs::write(&path, Pattern::new(None).bytes).unwrap();
        path
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn libnbd_reads_names_holes_and_bytes() {
    let serving = Serving::start(exports());
    let list = run("nbdinfo", &["--json", "--list", &serving.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["structured"], true);
    let listed = list["exports"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["export-name"], "a");
    assert_eq!(listed[0]["description"], "disk a");
    assert_eq!(listed[0]["export-size"], SIZE);
    assert_eq!(listed[0]["is_read_only"], true);
    assert_eq!(listed[0]["can_multi_conn"], true);
    assert_eq!(listed[0]["contexts"][0], "base:allocation");

    let map = run("nbdinfo", &["--map", "--json", &serving.uri("a")]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let map = map.as_array().unwrap();
    assert_eq!(map.len(), 27, "{map:?}");
    assert_eq!(
        (&map[0]["length"], &map[0]["type"]),
        (&(2 * MIB).into(), &0.into())
    );
    assert_eq!(
        (&map[1]["length"], &map[1]["type"]),
        (&MIB.into(), &3.into())
    );

    let copy = serving.dir.path().join("copy.raw");
    run("nbdcopy", &[&serving.uri("a"), text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == Pattern::new(None).bytes);
    run(
        "nbdcopy",
        &[
            "--synchronous",
            "--connections=1",
            &serving.uri("a"),
            text(&copy),
        ],
    );
    assert!(std::fs::read(&copy).unwrap() == Pattern::new(None).bytes);
}

#[test]
fn qemu_finds_it_identical_and_cannot_write() {
    let serving = Serving::start(exports());
    let expected = serving.expected();
    let formats = ["compare", "-f", "raw", "-F", "raw"];
    run(
        "qemu-img",
        &[&formats[..], &[text(&expected), &serving.uri("a")]].concat(),
    );
    let copy = serving.dir.path().join("copy.qcow2");
    let qcow2 = ["convert", "-f", "raw", "-O", "qcow2"];
    run(
        "qemu-img",
        &[&qcow2[..], &[&serving.uri("a"), text(&copy)]].concat(),
    );
    let formats = ["compare", "-f", "raw", "-F", "qcow2"];
    run(
        "qemu-img",
        &[&formats[..], &[text(&expected), text(&copy)]].concat(),
    );
    let write = ["-f", "raw", "-c", "write 0 4096", &serving.uri("a")];
    let output = Command::new("qemu-io").args(write).output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn many_threads_read_random_places() {
    let serving = Serving::start(exports());
    let expected = Pattern::new(None).bytes;
    let client = serving.connect("a").unwrap();
    thread::scope(|scope| {
        for seed in 0..8u64 {
            let (client, expected) = (&client, &expected);
            scope.spawn(move || {
                let mut state = seed;
                for _ in 0..100 {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(seed | 1);
                    let at = (state >> 20) % (SIZE - 3 * MIB);
                    let mut buf = vec![1; ((state >> 8) % (3 * MIB)) as usize];
                    client.read_at(at, &mut buf).unwrap();
                    assert!(buf == expected[at as usize..at as usize + buf.len()]);
                }
            });
        }
    });
}

#[test]
fn a_failed_read_is_an_error_of_that_read_alone() {
    let serving = Serving::start(exports());
    let client = serving.connect("broken").unwrap();
    let mut buf = vec![0; 4096];
    let error = client.read_at(MIB + 4096, &mut buf).unwrap_err();
    assert!(error.to_string().contains("I/O error"), "{error}");
    // Also behind a chunk that was good.
    assert!(client.read_at(0, &mut vec![0; 2 * MIB as usize]).is_err());
    client.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, Pattern::new(None).bytes[..4096]);
}

#[test]
fn names_are_checked() {
    let serving = Serving::start(exports());
    assert!(matches!(serving.connect("c"), Err(Error::Refused { .. })));
    assert!(matches!(serving.connect(""), Err(Error::Refused { .. })));
    let only = Serving::start(exports().into_iter().take(1).collect());
    assert_eq!(only.connect("").unwrap().size_bytes(), SIZE);
    let twice = exports().into_iter().chain(exports()).collect();
    assert!(matches!(Server::new(twice), Err(ServerError::Twice(_))));
}

/// The oldest handshake, with simple replies, spoken by hand.
fn old_client(serving: &Serving) -> UnixStream {
    let mut stream = UnixStream::connect(serving.socket()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut hello = 1u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend([1u32.to_be_bytes(), 1u32.to_be_bytes()].concat());
    hello.push(b'a');
    stream.write_all(&hello).unwrap();
    let mut described = [0; 134];
    stream.read_exact(&mut described).unwrap();
    assert_eq!(described[..8], SIZE.to_be_bytes());
    stream
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0u16.to_be_bytes(), command.to_be_bytes()].concat());
    bytes.extend([cookie.to_be_bytes(), offset.to_be_bytes()].concat());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The error of a simple reply with this cookie.
fn simple_reply(stream: &mut UnixStream, cookie: u64) -> u32 {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
    assert_eq!(head[8..], cookie.to_be_bytes());
    u32::from_be_bytes(head[4..8].try_into().unwrap())
}

#[test]
fn what_would_write_is_not_permitted() {
    let serving = Serving::start(exports());
    let mut stream = old_client(&serving);
    let mut write = request(1, 7, 0, 512);
    write.extend([9; 512]);
    stream.write_all(&write).unwrap();
    assert_eq!(simple_reply(&mut stream, 7), 1);
    for (command, error) in [(4, 1), (6, 1), (3, 0), (7, 22), (5, 22), (99, 22)] {
        stream.write_all(&request(command, 8, 0, 512)).unwrap();
        assert_eq!(simple_reply(&mut stream, 8), error, "command {command}");
    }
    for (offset, len) in [(SIZE, 1), (u64::MAX, 512), (0, u32::MAX)] {
        stream.write_all(&request(0, 9, offset, len)).unwrap();
        assert_eq!(simple_reply(&mut stream, 9), 22);
    }
    stream.write_all(&request(0, 10, MIB, 512)).unwrap();
    assert_eq!(simple_reply(&mut stream, 10), 0);
    let mut read = [0; 512];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(read, Pattern::new(None).bytes[MIB as usize..][..512]);
}

#[test]
fn who_stalls_or_dies_harms_only_himself() {
    let serving = Serving::start(exports());
    let mut stalled: Vec<UnixStream> = (0..20).map(|_| old_client(&serving)).collect();
    for stream in &mut stalled {
        // Far more than the socket holds, and nothing is read.
        for cookie in 0..8 {
            stream.write_all(&request(0, cookie, 0, 8 << 20)).unwrap();
        }
    }
    for _ in 0..20 {
        let mut stream = old_client(&serving);
        stream.write_all(&request(0, 1, 0, 8 << 20)).unwrap();
    }
    // These say nothing at all.
    let silent = UnixStream::connect(serving.socket()).unwrap();
    let begun = Instant::now();
    let client = serving.connect("a").unwrap();
    client.read_at(0, &mut vec![0; 8 << 20]).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it waits for others"
    );
    drop((stalled, silent));
}

#[test]
fn it_ends_when_told_also_with_clients() {
    let serving = Serving::start(exports());
    let client = serving.connect("a").unwrap();
    let silent = UnixStream::connect(serving.socket()).unwrap();
    let mut stalled = old_client(&serving);
    stalled.write_all(&request(0, 1, 0, 32 << 20)).unwrap();
    let begun = Instant::now();
    drop(serving);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(client.read_at(0, &mut [0; 512]).is_err());
    drop(silent);
}

/// A handshake that gets as far as requests, so that these are tried too.
fn good_handshake() -> Vec<u8> {
    let option = |number: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let name = [4u32.to_be_bytes().as_slice(), b"disk"].concat();
    let query = [
        1u32.to_be_bytes().as_slice(),
        &15u32.to_be_bytes(),
        b"base:allocation",
    ]
    .concat();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(8, &[]));
    bytes.extend(option(10, &[name.clone(), query].concat()));
    bytes.extend(option(7, &[name.as_slice(), &0u16.to_be_bytes()].concat()));
    bytes
}

#[test]
fn all_requests_of_a_good_client_are_answered() {
    let mut said = good_handshake();
    for (command, len) in [(0, 2048), (7, 2048), (3, 0), (6, 512)] {
        said.extend(request(command, 1, 0, len));
    }
    said.extend(request(2, 1, 0, 0));
    assert_eq!(vmtwin_nbd::fuzzing::serve(&said).unwrap(), 4);
}

proptest! {
    #[test]
    fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = vmtwin_nbd::fuzzing::serve(&bytes);
    }

    #[test]
    fn any_options_end_without_a_panic(
        options in prop::collection::vec((0u32..12, prop::collection::vec(0u8..8, 0..40)), 0..8),
    ) {
        let mut said = 1u32.to_be_bytes().to_vec();
        for (number, data) in options {
            said.extend(b"IHAVEOPT");
            said.extend(number.to_be_bytes());
            said.extend((data.len() as u32).to_be_bytes());
            said.extend(data);
        }
        let _ = vmtwin_nbd::fuzzing::serve(&said);
    }

    #[test]
    fn any_requests_end_without_a_panic(
        requests in prop::collection::vec((0u16..9, 0u64..4096, 0u32..4096), 0..20),
    ) {
        let mut said = good_handshake();
        for (command, offset, len) in requests {
            said.extend(request(command, 3, offset, len));
        }
        let _ = vmtwin_nbd::fuzzing::serve(&said);
    }
}
