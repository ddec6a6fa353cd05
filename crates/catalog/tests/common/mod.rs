//! What several tests need: a fresh catalog, a guest in it, a process that is gone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use vmtwin_catalog::{
    Catalog, Connection, ConnectionKind, Error, InspectedDisk, Inspection, JobKind, NewJob, NewVm,
    ProcessIdentity, VmId, VmRole, VmState, is_postgres_url,
};
use vmtwin_testkit::Postgres;

/// A catalog in a folder of its own, or in a database of its own.
pub(crate) struct Fresh {
    pub(crate) folder: TempDir,
    /// The file, or the URL.
    pub(crate) path: PathBuf,
    pub(crate) catalog: Catalog,
}

pub(crate) async fn fresh() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let path = match on_postgres() {
        true => Postgres::shared().database().into(),
        false => folder.path().join("home").join("catalog.db"),
    };
    let catalog = open(&path).await.unwrap();
    Fresh {
        folder,
        path,
        catalog,
    }
}

/// Whether these are the tests of `postgres/main.rs`.
fn on_postgres() -> bool {
    env!("CARGO_CRATE_NAME") == "postgres"
}

pub(crate) async fn open(place: &Path) -> Result<Catalog, Error> {
    match place.to_str() {
        Some(url) if is_postgres_url(url) => Catalog::open_postgres(url).await,
        _ => Catalog::open(place).await,
    }
}

pub(crate) fn guest(name: &str) -> NewVm {
    NewVm {
        id: None,
        name: name.to_owned(),
        connection: Connection {
            kind: ConnectionKind::Qmp,
            address: "/run/guest.qmp".to_owned(),
        },
        role: VmRole::Guest,
        twin_of: None,
        node: None,
    }
}

pub(crate) fn disk(disk_id: &str) -> InspectedDisk {
    InspectedDisk {
        disk_id: disk_id.to_owned(),
        node: Some("#block123".to_owned()),
        qdev: Some("/machine/peripheral/virtio-disk0/virtio-backend".to_owned()),
        address: "/images/guest.qcow2".to_owned(),
        kind: "file".to_owned(),
        size_bytes: 1 << 40,
        format: "qcow2".to_owned(),
        read_only: false,
        included: true,
    }
}

pub(crate) fn inspection(disks: &[&str]) -> Inspection {
    Inspection {
        state: VmState::Running,
        memory_bytes: Some(512 << 20),
        machine: json!({"machine": "pc-q35", "cpus": 2}),
        disks: disks.iter().map(|id| disk(id)).collect(),
    }
}

pub(crate) fn backup(vm: &VmId) -> NewJob {
    NewJob {
        kind: JobKind::Backup,
        vm_id: Some(vm.clone()),
    }
}

/// Starts this test program again, to run one test as another process. That test finds the path of
/// the catalog in [`CATALOG`], and does nothing without it.
pub(crate) fn start_again(test: &str, catalog: &Path) -> Child {
    let module = match on_postgres() {
        true => "job::",
        false => "",
    };
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}{test}"), "--exact", "--nocapture"])
        .env(CATALOG, catalog)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Tells a test that it is the other process, and where the catalog is.
pub(crate) const CATALOG: &str = "VMTWIN_TEST_CATALOG";

/// A process that was there and is gone, while another one has its pid now.
pub(crate) fn reused_pid() -> ProcessIdentity {
    let own = ProcessIdentity::of_self().unwrap();
    ProcessIdentity {
        start_ticks: own.start_ticks - 1,
        ..own
    }
}
