//! Repositories in S3: the store's contract on a real service that checks signatures.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::common::{PASSWORD, Quiet, TestImage, TestSink, files, grain, meta, noise, small};
use vmtwin_repository::{
    Error, FileName, Id, Kind, Location, Password, Patience, Repository, Snapshot, Store,
    StoreOptions,
};
use vmtwin_testkit::s3::{Fault, FaultProxy, Garage, S3Server};

/// Short waits, so that giving up takes a test less than a second or two.
pub(crate) fn brisk() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        silence: Duration::from_millis(400),
        request: Duration::from_secs(2),
        give_up: Duration::from_millis(700),
        give_up_unreached: Duration::from_millis(300),
        first_pause: Duration::from_millis(10),
    }
}

/// A service with a proxy before it, and a store that goes through the proxy.
pub(crate) struct Service {
    pub(crate) server: S3Server,
    pub(crate) proxy: FaultProxy,
    pub(crate) store: Arc<dyn Store>,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::with(brisk(), None)
    }

    pub(crate) fn with(patience: Patience, cancel: Option<Arc<AtomicBool>>) -> Self {
        let server = S3Server::start();
        let proxy = FaultProxy::start(server.port());
        let options = StoreOptions {
            cancel,
            patience,
            environment: environment(),
            ..StoreOptions::default()
        };
        let store = location(&proxy.endpoint()).store(&options).unwrap();
        store.create().unwrap();
        Self {
            server,
            proxy,
            store,
        }
    }

    pub(crate) fn repository(&self) -> Repository {
        Repository::init_with(Arc::clone(&self.store), &Password::from(PASSWORD)).unwrap()
    }

    /// What the service holds under a name.
    pub(crate) fn stored(&self, file: &FileName) -> Option<Vec<u8>> {
        let path = self
            .server
            .bucket_dir("vms")
            .join("site/one")
            .join(file.path());
        std::fs::read(path).ok()
    }

    /// Stock restic, straight to the service.
    pub(crate) fn restic(&self, args: &[&str]) -> String {
        let mut command = Command::new("restic");
        command.envs(S3Server::keys());
        let output = command
            .args([
                "--no-cache",
                "-r",
                &location(&self.server.endpoint()).to_string(),
            ])
            .args(args)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("these tests need `restic` installed");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "restic {args:?}: {told}{errors}");
        told
    }
}

fn location(endpoint: &str) -> Location {
    Location::parse(&format!("s3:{endpoint}/vms/site/one")).unwrap()
}

/// As a user's environment would have it.
fn environment() -> Option<HashMap<String, String>> {
    let keys = S3Server::keys().into_iter();
    Some(keys.map(|(name, value)| (name.to_owned(), value)).collect())
}

pub(crate) fn pack(data: &[u8]) -> FileName {
    FileName::new(Kind::Pack, Id::of(data))
}

pub(crate) fn back_up(repository: &Repository, seed: u64) -> Result<Snapshot, Error> {
    let backup = repository.start_backup(&small())?;
    let image = TestImage::mixed(seed, 8 << 20);
    backup.add_image("/disks/vda", &image, &grain(64), &Quiet::default())?;
    backup.add_bytes("/machine.json", b"{}")?;
    backup.finish(meta())
}

/// The image of a snapshot is that of the seed.
pub(crate) fn assert_restored(repository: &Repository, snapshot: &Snapshot, seed: u64) {
    let reader = repository.reader(snapshot).unwrap();
    let image = reader.open_image("/disks/vda").unwrap();
    let sink = TestSink::new(image.size_bytes());
    image.copy_to(&sink, &Quiet::default()).unwrap();
    assert!(sink.0.into_inner().unwrap() == TestImage::mixed(seed, 8 << 20).data);
}

#[test]
fn objects_come_and_go() {
    let service = Service::start();
    let store = &service.store;
    let data = noise(1, 3 << 20);
    let file = pack(&data);
    assert!(store.list(Kind::Pack).unwrap().is_empty());
    let none = store.read_full(&file, 9).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    store.write(&file, &data).unwrap();
    store.write(&file, &data).unwrap();
    assert_eq!(service.stored(&file).unwrap(), data);
    let listed = store.list(Kind::Pack).unwrap();
    assert_eq!((listed.len(), listed[0].id), (1, file.id));
    assert_eq!(listed[0].size_bytes, data.len() as u64);
    assert!(store.list(Kind::Snapshot).unwrap().is_empty());
    assert!(store.read_full(&file, data.len() as u64).unwrap() == data);
    let long = store.read_full(&file, data.len() as u64 - 1).unwrap_err();
    assert_eq!(long.kind(), ErrorKind::FileTooLarge);
    for (offset, length) in [
        (0, 1),
        (7, 4096),
        (data.len() - 5, 5),
        (3, 0),
        (0, data.len()),
    ] {
        let mut part = vec![0; length];
        store.read_range(&file, offset as u64, &mut part).unwrap();
        assert!(part == data[offset..offset + length], "{offset} {length}");
    }
    for offset in [data.len() - 4, data.len(), data.len() + 9] {
        let error = store
            .read_range(&file, offset as u64, &mut [0; 5])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{offset}: {error}");
    }
    store.remove(&file).unwrap();
    store.remove(&file).unwrap();
    assert!(store.list(Kind::Pack).unwrap().is_empty());
}

#[test]
fn the_configuration_is_never_replaced() {
    let service = Service::start();
    let store = &service.store;
    let config = FileName::CONFIG;
    // The answer to the first attempt is lost: the second one finds its own work.
    service.proxy.spoil("PUT", "config", Fault::DropAnswer, 1);
    store.write(&config, b"ours").unwrap();
    assert_eq!(store.list(Kind::Config).unwrap().len(), 1);
    let error = store.write(&config, b"else").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.read_full(&config, 9).unwrap(), b"ours");

    // Somebody is faster than us, between our look and our request.
    store.remove(&config).unwrap();
    let other = location(&service.server.endpoint());
    let options = StoreOptions {
        environment: environment(),
        ..StoreOptions::default()
    };
    let other = other.store(&options).unwrap();
    service.proxy.set_rule(move |request| {
        if request.method == "PUT" {
            other.write(&FileName::CONFIG, b"theirs").unwrap();
        }
        Fault::Pass
    });
    let error = store.write(&config, b"ours").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert_eq!(service.stored(&config).unwrap(), b"theirs");

    // A service that does not know conditions: the look alone has to do.
    store.remove(&config).unwrap();
    let refusal = "<Error><Code>NotImplemented</Code></Error>";
    service
        .proxy
        .spoil("PUT", "config", Fault::Answer(501, refusal), 1);
    store.write(&config, b"ours").unwrap();
    assert_eq!(service.stored(&config).unwrap(), b"ours");
}

#[test]
fn a_listing_is_complete() {
    let service = Service::start();
    let folder = service.server.bucket_dir("vms").join("site/one");
    std::fs::create_dir_all(folder.join("index")).unwrap();
    for number in 0..2345u32 {
        let file = FileName::new(Kind::Index, Id::of(&number.to_le_bytes()));
        std::fs::write(folder.join(file.path()), b"x").unwrap();
    }
    std::fs::write(folder.join("index/README"), b"not ours").unwrap();
    let mut ids: Vec<Id> = service
        .store
        .list(Kind::Index)
        .unwrap()
        .into_iter()
        .map(|file| file.id)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2345);
    assert!(service.proxy.requests() >= 3, "pages of a thousand");
    // A page that is spoilt is asked for again, or the listing fails; it is never short.
    for fault in [
        Fault::CutBody(50),
        Fault::ShortBody(50),
        Fault::DropAnswer,
        Fault::Answer(200, "<Error><Code>InternalError</Code></Error>"),
        Fault::Answer(200, ""),
        Fault::Answer(200, "<html>welcome to this network</html>"),
    ] {
        service.proxy.spoil("GET", "list-type", fault.clone(), 1);
        assert_eq!(
            service.store.list(Kind::Index).unwrap().len(),
            2345,
            "{fault:?}"
        );
        service.proxy.spoil("GET", "list-type", fault.clone(), 1000);
        let error = service.store.list(Kind::Index).unwrap_err();
        assert!(
            error.to_string().contains("given up after"),
            "{fault:?}: {error}"
        );
    }
}

#[test]
fn a_service_that_is_not_there() {
    let port = vmtwin_testkit::free_port();
    let options = StoreOptions {
        patience: brisk(),
        environment: environment(),
        ..StoreOptions::default()
    };
    let nowhere = location(&format!("http://127.0.0.1:{port}"));
    let store = nowhere.store(&options).unwrap();
    let began = Instant::now();
    let error = Repository::open_with(store, &Password::from(PASSWORD)).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("cannot reach http://127.0.0.1:"),
        "{source}"
    );
}

#[test]
fn wrong_keys() {
    let service = Service::start();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        let mut environment = environment().unwrap();
        environment.insert(name.to_owned(), "wrong".to_owned());
        let options = StoreOptions {
            environment: Some(environment),
            ..StoreOptions::default()
        };
        let store = location(&service.server.endpoint())
            .store(&options)
            .unwrap();
        let error = store.write(&pack(b"x"), b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(
            error.to_string().contains("check AWS_ACCESS_KEY_ID"),
            "{error}"
        );
    }
    let none = StoreOptions {
        environment: Some(HashMap::new()),
        ..StoreOptions::default()
    };
    let error = location("http://h").store(&none).err().unwrap();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("no keys for S3"), "{source}");
}

/// Damage that lies in the service is found, in whatever object.
#[test]
fn damage_in_the_service_is_found() {
    let service = Service::start();
    let repository = service.repository();
    let snapshot = back_up(&repository, 3).unwrap();
    let root = service.server.bucket_dir("vms").join("site/one");
    for folder in ["data", "index", "snapshots"] {
        for path in files(&root.join(folder)) {
            let right = std::fs::read(&path).unwrap();
            let mut wrong = right.clone();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 0x10;
            std::fs::write(&path, &wrong).unwrap();
            let read = repository.snapshot(&snapshot.id).and_then(|snapshot| {
                let reader = repository.reader(&snapshot)?;
                reader.read_file("/machine.json", 99)?;
                let image = reader.open_image("/disks/vda")?;
                let sink = TestSink::new(image.size_bytes());
                image.copy_to(&sink, &Quiet::default())
            });
            assert!(
                matches!(read, Err(Error::Damaged { .. })),
                "{path:?}: {read:?}"
            );
            std::fs::write(&path, &right).unwrap();
        }
    }
    assert_restored(&repository, &snapshot, 3);
}

/// What restic made, we read and go on with.
#[test]
fn a_repository_of_restic() {
    let service = Service::start();
    service.restic(&["init"]);
    let opened = Repository::open_with(Arc::clone(&service.store), &Password::from(PASSWORD));
    let repository = opened.unwrap();
    let again = Repository::init_with(Arc::clone(&service.store), &Password::from(PASSWORD));
    assert!(
        matches!(again, Err(Error::AlreadyExists { .. })),
        "{again:?}"
    );
    let snapshot = back_up(&repository, 5).unwrap();
    assert!(
        service
            .restic(&["check", "--read-data"])
            .contains("no errors were found")
    );
    service.restic(&["forget", "--prune", &snapshot.id]);
    assert!(repository.snapshots().unwrap().snapshots.is_empty());
}

/// A place with letters that need care.
fn odd_place(endpoint: &str) -> String {
    format!("s3:{endpoint}/v-m.s/a b+c/ö=&,;@'()")
}

/// Letters that URLs, signatures and listings each encode in their own way.
#[test]
fn an_odd_prefix() {
    let server = S3Server::start();
    let text = odd_place(&server.endpoint());
    let options = StoreOptions {
        environment: environment(),
        ..StoreOptions::default()
    };
    let store = Location::parse(&text).unwrap().store(&options).unwrap();
    let password = Password::from(PASSWORD);
    let repository = Repository::init_with(Arc::clone(&store), &password).unwrap();
    let snapshot = back_up(&repository, 1).unwrap();
    let repository = Repository::open_with(store, &password).unwrap();
    assert_eq!(repository.snapshots().unwrap().snapshots.len(), 1);
    assert_restored(&repository, &snapshot, 1);
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "-r", &text, "check"]);
    restic
        .envs(S3Server::keys())
        .env("RESTIC_PASSWORD", PASSWORD);
    assert!(restic.output().unwrap().status.success());
}

/// Certificates are checked, against a bundle of the user's own if there is one.
#[test]
fn certificates_are_checked() {
    let server = S3Server::start();
    let (proxy, certificate) = FaultProxy::start_tls(server.port());
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, certificate).unwrap();
    let mut environment = environment().unwrap();
    let open = |environment: &HashMap<String, String>| {
        let options = StoreOptions {
            environment: Some(environment.clone()),
            ..StoreOptions::default()
        };
        location(&proxy.endpoint()).store(&options).unwrap()
    };
    let began = Instant::now();
    let error = open(&environment).create().unwrap_err().to_string();
    assert!(error.contains("AWS_CA_BUNDLE"), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "it is not tried again"
    );
    environment.insert("AWS_CA_BUNDLE".into(), bundle.to_str().unwrap().into());
    let store = open(&environment);
    store.create().unwrap();
    let data = noise(1, 3 << 20);
    store.write(&pack(&data), &data).unwrap();
    assert!(store.read_full(&pack(&data), 4 << 20).unwrap() == data);
}

/// The contract on another service than the one that the other tests use.
#[test]
#[ignore = "needs Garage, which tools/setup --all builds"]
fn garage_keeps_the_contract() {
    let cluster = Garage::start(1, "v-m.s");
    let proxy = FaultProxy::start(cluster.port(0));
    let keys = Garage::keys().into_iter();
    let options = StoreOptions {
        patience: brisk(),
        environment: Some(keys.map(|(n, v)| (n.to_owned(), v)).collect()),
        ..StoreOptions::default()
    };
    let place = Location::parse(&odd_place(&proxy.endpoint())).unwrap();
    let store = place.store(&options).unwrap();
    store.create().unwrap();
    store.write(&FileName::CONFIG, b"ours").unwrap();
    let error = store.write(&FileName::CONFIG, b"else").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.read_full(&FileName::CONFIG, 9).unwrap(), b"ours");

    let data = noise(1, 3 << 20);
    let file = pack(&data);
    proxy.spoil("PUT", "data/", Fault::FlipRequest, 1);
    store.write(&file, &data).unwrap();
    assert_eq!(proxy.requests(), 2, "what was flipped is refused");
    assert!(store.read_full(&file, 4 << 20).unwrap() == data);
    let mut part = vec![0; 70_000];
    store.read_range(&file, 1 << 20, &mut part).unwrap();
    assert!(part == data[1 << 20..][..70_000]);
    let error = store.read_range(&file, 3 << 20, &mut part).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    let none = store.read_full(&pack(b"none"), 9).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");

    for number in 0..1100u32 {
        let content = number.to_le_bytes();
        let file = FileName::new(Kind::Index, Id::of(&content));
        store.write(&file, &content).unwrap();
    }
    assert_eq!(store.list(Kind::Index).unwrap().len(), 1100);
    assert_eq!(store.list(Kind::Pack).unwrap().len(), 1);
    store.remove(&file).unwrap();
    store.remove(&file).unwrap();
    assert!(store.list(Kind::Pack).unwrap().is_empty());
}
