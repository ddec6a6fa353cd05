//! S3 through a proxy that spoils requests and answers: what passes is tried again, what lasts is
//! given up in time, and nothing is ever half there.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{PASSWORD, files, noise};
use crate::s3::{Service, assert_restored, back_up, brisk, pack};
use vmtwin_repository::{Password, Patience, Repository};
use vmtwin_testkit::s3::{Fault, S3Server};

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";

/// What passes is tried again until it is done.
#[test]
fn faults_that_pass() {
    let service = Service::start();
    for (number, fault) in [
        Fault::Answer(503, SLOW_DOWN),
        Fault::Answer(500, ""),
        Fault::Answer(400, "<Error><Code>RequestTimeout</Code></Error>"),
        Fault::Answer(200, "<Error><Code>InternalError</Code></Error>"),
        Fault::AnswerAfter(502, "<html>bad gateway</html>"),
        Fault::DropInRequest,
        Fault::DropAnswer,
        Fault::FlipRequest,
        Fault::Stall,
    ]
    .into_iter()
    .enumerate()
    {
        let data = noise(number as u64 + 1, 300_000);
        let file = pack(&data);
        service.proxy.spoil("PUT", "data/", fault.clone(), 1);
        service
            .store
            .write(&file, &data)
            .unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(service.proxy.requests(), 2, "{fault:?}");
        assert!(service.stored(&file).unwrap() == data, "{fault:?}");
    }
    let data = noise(1, 300_000);
    let file = pack(&data);
    for fault in [
        Fault::Answer(503, SLOW_DOWN),
        Fault::CutBody(50),
        Fault::ShortBody(50),
        Fault::DropAnswer,
        Fault::FlipAnswer,
        Fault::Stall,
        Fault::Answer(200, "<Error><Code>InternalError</Code></Error>"),
    ] {
        service.proxy.spoil("GET", "data/", fault.clone(), 1);
        let read = service.store.read_full(&file, 1 << 20);
        assert!(read.unwrap() == data, "{fault:?}");
        assert_eq!(service.proxy.requests(), 2, "{fault:?}");
        if fault == Fault::FlipAnswer {
            // A part has no hash of its own: the blobs in it have.
            continue;
        }
        service.proxy.spoil("GET", "data/", fault.clone(), 1);
        let mut part = vec![0; 100_000];
        let read = service.store.read_range(&file, 9, &mut part);
        match fault {
            Fault::Answer(200, _) => {
                assert_eq!(read.unwrap_err().kind(), ErrorKind::Unsupported);
            }
            _ => {
                read.unwrap();
                assert!(part == data[9..100_009], "{fault:?}");
            }
        }
    }
}

/// What lasts is given up in time; the error names what to do, and nothing is published.
#[test]
fn faults_that_last() {
    let service = Service::start();
    let data = noise(1, 300_000);
    let file = pack(&data);
    let denied = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    for (fault, words) in [
        (
            Fault::Answer(503, SLOW_DOWN),
            ["503 SlowDown", "overloaded"],
        ),
        (
            Fault::Answer(403, denied),
            ["403 AccessDenied", "s3:PutObject"],
        ),
        (Fault::Stall, ["timed out", "given up after"]),
        (
            Fault::DropInRequest,
            ["cannot reach http://127.0.0.1", "given up after"],
        ),
        (Fault::FlipRequest, ["400 BadDigest", "given up after"]),
    ] {
        service.proxy.spoil("PUT", "data/", fault.clone(), 1000);
        let began = Instant::now();
        let error = service.store.write(&file, &data).unwrap_err().to_string();
        assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}");
        for word in words {
            assert!(error.contains(word), "{fault:?}: {error}");
        }
        assert!(!error.contains("Signature") && !error.contains(S3Server::SECRET_KEY));
        if fault != Fault::FlipRequest {
            assert!(service.stored(&file).is_none(), "{fault:?}");
        }
    }
    // An answer that never ends.
    service.proxy.set_rule(|_| Fault::Pass);
    service.store.write(&file, &data).unwrap();
    let trickle = Fault::Trickle(Duration::from_millis(20));
    let (data, file) = (&data[..9000], pack(&data[..9000]));
    service.store.write(&file, data).unwrap();
    service.proxy.spoil("GET", "data/", trickle, 1000);
    let began = Instant::now();
    let error = service.store.read_full(&file, 1 << 20).unwrap_err();
    assert!(error.to_string().contains("given up after"), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

/// A cancel ends a wait for a service that says nothing, and the lock can still be removed.
#[test]
fn a_cancel_ends_waits() {
    let cancel = Arc::new(AtomicBool::new(false));
    let service = Service::with(Patience::default(), Some(Arc::clone(&cancel)));
    let file = pack(b"x");
    service.store.write(&file, b"x").unwrap();
    service.proxy.spoil("GET", "data/", Fault::Stall, 1000);
    let (error, took) = std::thread::scope(|scope| {
        let read = scope.spawn(|| service.store.read_full(&file, 9).unwrap_err());
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        cancel.store(true, Ordering::SeqCst);
        (read.join().unwrap(), began.elapsed())
    });
    assert!(took < Duration::from_secs(6), "{took:?}: {error}");
    service.store.remove(&file).unwrap();
    assert!(service.stored(&file).is_none());
}

/// A backup through a proxy that spoils every third request, judged by stock restic.
#[test]
fn a_backup_through_faults() {
    let patience = Patience {
        give_up: Duration::from_secs(30),
        ..brisk()
    };
    let service = Service::with(patience, None);
    let repository = service.repository();
    let mut number = 0;
    service.proxy.set_rule(move |_| {
        number += 1;
        match number % 18 {
            3 => Fault::Answer(503, SLOW_DOWN),
            6 => Fault::DropInRequest,
            9 => Fault::DropAnswer,
            12 => Fault::FlipRequest,
            15 => Fault::CutBody(50),
            0 => Fault::Answer(500, ""),
            _ => Fault::Pass,
        }
    });
    let first = back_up(&repository, 1).unwrap();
    let second = back_up(&repository, 2).unwrap();
    assert_restored(&repository, &first, 1);
    service.proxy.set_rule(|_| Fault::Pass);
    assert_restored(&repository, &second, 2);
    assert!(
        service
            .restic(&["check", "--read-data"])
            .contains("no errors were found")
    );
    assert!(
        service
            .restic(&["snapshots", "--json"])
            .contains(&second.id)
    );
}

/// The service goes away at each request of a backup in turn: there is no snapshot, and the next
/// backup works.
#[test]
fn a_backup_that_is_cut_off() {
    let service = Service::start();
    let repository = service.repository();
    let password = Password::from(PASSWORD);
    let mut cut_off = 0;
    for after in (0..).step_by(3) {
        let mut left = after;
        service.proxy.set_rule(move |request| {
            let writes = request.method == "PUT";
            left -= i32::from(writes);
            if left < 0 && writes {
                Fault::DropInRequest
            } else {
                Fault::Pass
            }
        });
        let done = back_up(&repository, 7);
        service.proxy.set_rule(|_| Fault::Pass);
        // As the next run of the program would see it.
        let repository = Repository::open_with(Arc::clone(&service.store), &password).unwrap();
        let snapshots = repository.snapshots().unwrap();
        assert!(snapshots.damaged.is_empty());
        if let Ok(done) = done {
            assert_eq!(snapshots.snapshots.len(), 1);
            assert_restored(&repository, &done, 7);
            break;
        }
        assert!(snapshots.snapshots.is_empty(), "after {after} writes");
        cut_off += 1;
    }
    assert!(
        cut_off >= 2,
        "lock, packs, index, trees, snapshot: {cut_off}"
    );
    service.restic(&["check", "--read-data"]);
    let left = files(&service.server.bucket_dir("vms").join("site/one/locks"));
    assert!(left.is_empty(), "{left:?}");
}
