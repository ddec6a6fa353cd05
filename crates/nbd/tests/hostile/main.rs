//! Servers that lie, stall or talk nonsense: every call ends in time with an error.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail them"
)]

mod server;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use server::{Request, answering, chunk, connect, cookie, handshake, option_reply, options};
use vmtwin_nbd::{Client, Error, context};

const DONE: u16 = 1;
const DATA: u16 = 1;
const HOLE: u16 = 2;
const STATUS: u16 = 5;
const ERROR: u16 = 0x8001;

/// `offset` and 512 bytes, or as many as `len`.
fn data(offset: u64, len: usize) -> Vec<u8> {
    [offset.to_be_bytes().as_slice(), &vec![7; len]].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [offset.to_be_bytes().as_slice(), &len.to_be_bytes()].concat()
}

fn status(id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let words = extents.iter().flat_map(|(len, flags)| [*len, *flags]);
    std::iter::once(id)
        .chain(words)
        .flat_map(u32::to_be_bytes)
        .collect()
}

type Answer = fn(&Request) -> Vec<u8>;

/// Lies in the reply to a read of 1024 bytes at 512.
const READ_LIES: &[(&str, Answer)] = &[
    ("wrong magic", |_| vec![0x5a; 32]),
    ("was not sent", |r| {
        let mut other = *r;
        other[8] ^= 0xff;
        chunk(&other, DONE, DATA, &data(512, 1024))
    }),
    ("outside of the request", |r| {
        chunk(r, DONE, DATA, &data(0, 1024))
    }),
    ("outside of the request", |r| {
        chunk(r, DONE, DATA, &data(512, 1025))
    }),
    ("outside of the request", |r| {
        chunk(r, DONE, DATA, &data(u64::MAX, 1024))
    }),
    ("outside of the request", |r| {
        chunk(r, DONE, HOLE, &hole(1024, 1024))
    }),
    ("outside of the request", |r| {
        chunk(r, DONE, HOLE, &hole(512, 0))
    }),
    ("outside of the request", |r| {
        chunk(r, 0, DATA, &data(600, 0))
    }),
    ("hole of wrong form", |r| {
        chunk(r, DONE, HOLE, &data(512, 1024))
    }),
    ("short chunk", |r| chunk(r, DONE, DATA, &[0; 7])),
    ("missing parts", |r| chunk(r, DONE, 0, &[])),
    ("missing parts", |r| chunk(r, DONE, DATA, &data(512, 512))),
    ("overlap", |r| {
        [
            chunk(r, 0, DATA, &data(512, 600)),
            chunk(r, DONE, DATA, &data(1024, 512)),
        ]
        .concat()
    }),
    ("does not fit", |r| chunk(r, 0, 0, &[])),
    ("does not fit", |r| {
        chunk(r, DONE, STATUS, &status(1, &[(1024, 0)]))
    }),
    ("does not fit", |r| chunk(r, DONE, 99, &[])),
    ("where data is due", |r| {
        [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], &cookie(r)[..]].concat()
    }),
    ("overlong message", |r| {
        chunk(r, DONE, ERROR, b"\0\0\0\x05\xff\xff")
    }),
    ("overlong message", |r| {
        chunk(r, DONE, ERROR, b"\0\0\0\x05\0\0and more")
    }),
    ("short error", |r| chunk(r, DONE, ERROR, b"\0\0\0\x05")),
    ("without a code", |r| chunk(r, DONE, ERROR, b"\0\0\0\0\0\0")),
    ("endless chunks", |r| {
        chunk(r, 0, ERROR, b"\0\0\0\x05\0\0").repeat(70_000)
    }),
    ("broke", |r| {
        chunk(r, 0, DATA, &data(512, 1024))[..100].to_vec()
    }),
];

/// Lies in the reply to a status of 4096 bytes at 0.
const STATUS_LIES: &[(&str, Answer)] = &[
    ("no length", |r| {
        chunk(r, DONE, STATUS, &status(1, &[(0, 0)]))
    }),
    ("past the request", |r| {
        chunk(r, DONE, STATUS, &status(1, &[(4096, 0), (1, 1)]))
    }),
    ("wrong form", |r| chunk(r, DONE, STATUS, &status(1, &[]))),
    ("wrong form", |r| chunk(r, DONE, STATUS, &[0; 13])),
    ("without the context", |r| {
        chunk(r, DONE, STATUS, &status(2, &[(4096, 0)]))
    }),
    ("without the context", |r| chunk(r, DONE, 0, &[])),
    ("two statuses", |r| {
        chunk(r, 0, STATUS, &status(1, &[(4096, 0)])).repeat(2)
    }),
    ("too many extents", |r| {
        let mut bytes = chunk(r, DONE, STATUS, &status(1, &[(1, 0)]));
        bytes[16..20].copy_from_slice(&0xffff_fffc_u32.to_be_bytes());
        bytes
    }),
    ("does not fit", |r| chunk(r, DONE, DATA, &data(0, 4096))),
];

/// The lie is called by its name, and the connection is closed after it.
fn check_lie(expected: &str, client: &Client, error: &Error) {
    let message = error.to_string();
    assert!(
        message.contains(expected),
        "{message:?} should say {expected:?}"
    );
    assert!(!error.is_connection_usable());
    let again = client.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(again, Error::Closed { .. }), "{again}");
}

/// Answers the first request with a lie and then closes.
fn lying(answer: Answer) -> Client {
    connect(Duration::from_secs(5), move |mut stream| {
        let mut request = [0; 28];
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&answer(&request));
        }
    })
    .unwrap()
}

#[test]
fn lies_in_replies_to_reads_are_found() {
    for (expected, answer) in READ_LIES {
        let client = lying(*answer);
        let error = client.read_at(512, &mut [0; 1024]).unwrap_err();
        check_lie(expected, &client, &error);
    }
}

#[test]
fn lies_in_replies_to_statuses_are_found() {
    for (expected, answer) in STATUS_LIES {
        let client = lying(*answer);
        let error = client
            .block_status(context::BASE_ALLOCATION, 0, 4096)
            .unwrap_err();
        check_lie(expected, &client, &error);
    }
}

#[test]
fn honest_replies_of_unusual_form_are_taken() {
    let client = answering(|r| {
        [
            chunk(r, 0, DATA, &data(1024, 512)),
            chunk(r, 0, HOLE, &hole(512, 512)),
            chunk(r, DONE, 0, &[]),
        ]
        .concat()
    });
    let mut buf = [1; 1024];
    client.read_at(512, &mut buf).unwrap();
    assert_eq!((buf[0], buf[511], buf[512], buf[1023]), (0, 0, 7, 7));

    let client = answering(|r| {
        let other = chunk(r, 0, STATUS, &status(9, &[(1, 1)]));
        [
            other,
            chunk(
                r,
                DONE,
                STATUS,
                &status(1, &[(512, 3), (512, 3), (u32::MAX, 0)]),
            ),
        ]
        .concat()
    });
    let extents = client
        .block_status(context::BASE_ALLOCATION, 0, 4096)
        .unwrap();
    let extents: Vec<_> = extents.iter().map(|e| (e.len_bytes, e.flags)).collect();
    assert_eq!(extents, [(1024, 3), (3072, 0)]);
}

#[test]
fn a_reported_error_leaves_the_connection_usable() {
    let client = answering(|r| {
        let offset = u64::from_be_bytes(*r[16..].first_chunk().unwrap());
        match offset {
            0 => chunk(r, DONE, ERROR, b"\0\0\0\x05\0\x08bad disk"),
            _ => chunk(r, DONE, DATA, &data(offset, 512)),
        }
    });
    let error = client.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, Error::Server { code: 5, .. }), "{error}");
    assert!(error.to_string().contains("bad disk"), "{error}");
    client.read_at(512, &mut [0; 512]).unwrap();
}

#[test]
fn replies_in_any_order_reach_their_callers() {
    const THREADS: usize = 6;
    let client = connect(Duration::from_secs(10), |mut stream| {
        for _ in 0..50 {
            let mut requests = [[0; 28]; THREADS];
            if requests
                .iter_mut()
                .any(|request| stream.read_exact(request).is_err())
            {
                return;
            }
            // Last come, first served, and in two pieces that are interleaved.
            for half in [0, 256] {
                for request in requests.iter().rev() {
                    let offset = u64::from_be_bytes(*request[16..].first_chunk().unwrap());
                    let fill = [(offset >> 9) as u8; 256];
                    let payload = [(offset + half).to_be_bytes().as_slice(), &fill].concat();
                    let flags = if half == 256 { DONE } else { 0 };
                    let _ = stream.write_all(&chunk(request, flags, DATA, &payload));
                }
            }
        }
    })
    .unwrap();
    thread::scope(|scope| {
        for number in 0..THREADS as u64 {
            let client = &client;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut buf = [0; 512];
                    client.read_at(number * 512, &mut buf).unwrap();
                    assert_eq!(buf, [number as u8; 512]);
                }
            });
        }
    });
}

/// Runs `serve` after the handshake; the call must time out for all threads, soon.
fn check_timeout(serve: fn(UnixStream)) {
    let client = connect(Duration::from_millis(400), serve).unwrap();
    let begun = Instant::now();
    let errors: Vec<Error> = thread::scope(|scope| {
        let read = || client.read_at(0, &mut [0; 4096]).unwrap_err();
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    let timeouts = errors
        .iter()
        .filter(|error| matches!(error, Error::Timeout { .. }))
        .count();
    assert_eq!(timeouts, 1, "{errors:?}");
    assert!(errors.iter().all(|error| !error.is_connection_usable()));
}

#[test]
fn a_server_that_stalls_is_given_up() {
    // It keeps the connection open and says nothing.
    check_timeout(|mut stream| while stream.read(&mut [0; 64]).is_ok_and(|len| len > 0) {});
    // It drips, so that every single read succeeds.
    check_timeout(|mut stream| {
        let mut request = [0; 28];
        stream.read_exact(&mut request).unwrap();
        for byte in chunk(&request, DONE, DATA, &data(0, 4096)) {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_server_that_does_not_read_is_given_up() {
    let serve = |stream: UnixStream| {
        thread::sleep(Duration::from_secs(2));
        drop(stream);
    };
    let client = connect(Duration::from_millis(300), serve);
    // The flags of the handshake allow writes.
    let error = client.unwrap().write_at(0, &vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

fn negotiate(said: Vec<u8>) -> Result<Client, Error> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let _ = theirs.write_all(&said);
        let _ = std::io::copy(&mut theirs, &mut std::io::sink());
    });
    Client::from_stream(ours, "disk", &options(Duration::from_millis(300)))
}

#[test]
fn lies_in_the_handshake_are_found() {
    let start = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let ok = option_reply(8, 1, &[]);
    let with = |more: &[Vec<u8>]| [start.clone(), ok.clone(), more.concat()].concat();
    let contexts = option_reply(10, 1, &[]);
    let block_size = |min: u32, preferred: u32, max: u32| {
        let words = [min, preferred, max].map(u32::to_be_bytes).concat();
        option_reply(7, 3, &[&[0, 3], words.as_slice()].concat())
    };
    let cases = [
        (
            b"SSH-2.0-OpenSSH_9.2 is not NBD".to_vec(),
            "not an NBD server",
        ),
        (
            b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0".to_vec(),
            "old-style",
        ),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), "fixed new style"),
        ([start.clone(), vec![0; 20]].concat(), "wrong magic"),
        (
            [start.clone(), option_reply(7, 1, &[])].concat(),
            "was not sent",
        ),
        (
            [start.clone(), option_reply(8, 1, &[0; 20_000])].concat(),
            "overlong reply",
        ),
        (
            [start.clone(), option_reply(8, 3, &[])].concat(),
            "unexpected reply",
        ),
        (
            with(&[option_reply(10, 4, b"\0\0\0\x01other")]),
            "not asked for",
        ),
        (
            with(&[option_reply(10, 4, b"\0")]),
            "short metadata context",
        ),
        (
            with(&vec![option_reply(10, 4, b"\0\0\0\x01base:allocation"); 2]),
            "twice",
        ),
        (
            with(&[contexts.clone(), option_reply(7, 1, &[])]),
            "without a size",
        ),
        (
            with(&[contexts.clone(), option_reply(7, 3, &[0, 0, 1])]),
            "short information",
        ),
        (
            with(&[
                contexts.clone(),
                option_reply(7, 3, &[0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ]),
            "impossible size",
        ),
        (
            with(&[contexts.clone(), block_size(1, 0, 0)]),
            "block sizes",
        ),
        (
            with(&[
                contexts.clone(),
                vec![option_reply(7, 3, &[0, 9]); 300].concat(),
            ]),
            "endless",
        ),
        (
            with(&[contexts, option_reply(7, 0x8000_0006, b"no 'disk' here")]),
            "no 'disk' here",
        ),
        (start, "did not answer"),
    ];
    for (said, expected) in cases {
        let message = negotiate(said).unwrap_err().to_string();
        assert!(
            message.contains(expected),
            "{message:?} should say {expected:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_after_the_handshake_end_in_time(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let client = connect(Duration::from_secs(2), move |mut stream| {
            let _ = stream.write_all(&bytes);
        }).unwrap();
        prop_assert!(client.read_at(0, &mut [0; 512]).is_err());
    }

    #[test]
    fn any_byte_of_the_handshake_may_be_wrong(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut said = handshake();
        let at = at.index(said.len());
        said[at] = byte;
        let begun = Instant::now();
        let _ = negotiate(said);
        prop_assert!(begun.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = vmtwin_nbd::fuzzing::reply(&bytes);
        let _ = vmtwin_nbd::fuzzing::handshake(&bytes);
    }
}
