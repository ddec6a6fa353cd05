//! A repository in a bucket with object lock: who has stolen the keys removes nothing for good, and what
//! there was at a time comes back. The service is Moto's, which knows versions and locks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_testkit::s3::S3Server;
use vmtwin_testkit::{DiskFormat, DiskLedger, assert_one_instant, cached, free_port};

use common::serve::Serve;
use common::{PATIENCE, Vmtwin, code, loaded_guest, told};

struct Service {
    child: Child,
    bucket: String,
}

impl Service {
    fn start() -> Service {
        let port = free_port();
        let mut server = Command::new(cached("moto/bin/moto_server"));
        server.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let service = Service {
            child: child.unwrap(),
            bucket: format!("http://127.0.0.1:{port}/vms"),
        };
        let begun = Instant::now();
        let lock = "x-amz-bucket-object-lock-enabled: true";
        while service.ask(&["-X", "PUT", "-H", lock], "").0 != 200 {
            assert!(begun.elapsed() < PATIENCE, "the service does not answer");
            std::thread::sleep(Duration::from_millis(200));
        }
        service
    }

    /// What somebody with the keys does: the status and the text of the answer.
    fn ask(&self, options: &[&str], path: &str) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-w", "\n%{http_code}", "-u", "stolen:keys"]);
        let output = curl.args(options).arg(format!("{}{path}", self.bucket));
        let answer = String::from_utf8_lossy(&output.output().unwrap().stdout).into_owned();
        let (text, status) = answer.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), text.to_owned())
    }

    /// Keys and versions of the objects whose keys begin so.
    fn versions(&self, prefix: &str) -> Vec<(String, String)> {
        let (status, listing) = self.ask(&[], &format!("?versions&prefix={prefix}"));
        assert_eq!(status, 200, "{listing}");
        let between = |text: &str, name: &str| {
            let (open, close) = (format!("<{name}>"), format!("</{name}>"));
            let from = text.find(&open).unwrap() + open.len();
            text[from..text.find(&close).unwrap()].to_owned()
        };
        let parts = listing.split("<Version>").skip(1);
        parts
            .map(|part| (between(part, "Key"), between(part, "VersionId")))
            .collect()
    }

    fn locked_until(&self, key: &str) -> OffsetDateTime {
        let (status, head) = self.ask(&["-I"], &format!("/{key}"));
        assert_eq!(status, 200, "{head}");
        let name = "x-amz-object-lock-retain-until-date: ";
        let found = head.lines().find_map(|line| line.strip_prefix(name));
        OffsetDateTime::parse(found.unwrap().trim(), &Rfc3339).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs Moto: tools/setup --all"]
fn stolen_keys_remove_nothing_for_good() {
    let service = Service::start();
    let mut more = S3Server::keys();
    more.push(("VMTWIN_OBJECT_LOCK", "30d".to_owned()));
    let vmtwin = Vmtwin::with_s3(&format!("s3:{}/site1", service.bucket), more);
    vmtwin.ok(&["init"]);
    let guest = loaded_guest();
    vmtwin.add(&guest);
    let report = vmtwin.backup(&[]);
    let id = report["snapshot"].as_str().unwrap();
    guest.kill();

    let packs = service.versions("site1/data/");
    let before = service.locked_until(&packs[0].0);
    let days = (before - OffsetDateTime::now_utc()).whole_hours();
    assert!((29 * 24..=30 * 24).contains(&days), "{before}");
    std::thread::sleep(Duration::from_secs(2));
    let then = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
    std::thread::sleep(Duration::from_secs(2));

    // The daemon renews what it does not know to be fresh.
    let serve = Serve::start(&vmtwin, &[], &[]);
    let begun = Instant::now();
    while service.locked_until(&packs[0].0) == before {
        assert!(begun.elapsed() < PATIENCE, "the lock is not renewed");
        std::thread::sleep(Duration::from_millis(200));
    }
    serve.end();

    rob(&service);
    assert_eq!(vmtwin.run(&["snapshot", "list"]).status.code(), Some(1));
    let listed = vmtwin.json(&["snapshot", "list", "--as-of", &then]);
    assert_eq!(listed[0]["id"], id, "{listed}");
    let to = vmtwin.path("back");
    let back = [
        "restore",
        id,
        "--to",
        to.to_str().unwrap(),
        "--as-of",
        &then,
    ];
    vmtwin.ok(&back);
    let disks = [
        DiskLedger::read(to.join("disk0.qcow2"), DiskFormat::Qcow2),
        DiskLedger::read(to.join("disk1.raw"), DiskFormat::Raw),
    ];
    assert_one_instant(None, &disks);

    // As it was then nothing can be written, and all of it can be copied to where it is safe.
    let refused = vmtwin.run(&["prune", "--as-of", &then]);
    assert_eq!(code(&refused), 1, "{}", told(&refused));
    let safe = vmtwin.path("safe");
    let there = Vmtwin::with_repo(safe.clone());
    there.ok(&["init"]);
    let mut copy = vmtwin.command(&["copy", "--as-of", &then, "--to", safe.to_str().unwrap()]);
    let copied = copy.env("VMTWIN_TO_PASSWORD", common::PASSWORD).output();
    assert_eq!(
        code(copied.as_ref().unwrap()),
        0,
        "{}",
        told(&copied.unwrap())
    );
    there.restic(&["check", "--read-data"]);
}

/// Removes all objects, writes over one, and tries to end all versions.
fn rob(service: &Service) {
    let all = service.versions("site1/");
    assert!(all.len() > 5, "{all:?}");
    for (key, _) in &all {
        assert_eq!(service.ask(&["-X", "DELETE"], &format!("/{key}")).0, 204);
    }
    let garbage = ["-X", "PUT", "-d", "garbage"];
    assert_eq!(service.ask(&garbage, &format!("/{}", all[0].0)).0, 200);
    for (key, version) in all.iter().filter(|(key, _)| !key.contains("/locks/")) {
        let path = format!("/{key}?versionId={version}");
        let (status, text) = service.ask(&["-X", "DELETE"], &path);
        assert_eq!(status, 403, "{key} was removed for good: {text}");
    }
}
