//! Opening: empty, old, newer, damaged and foreign files; modes; many openers at once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{fresh, guest};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use vmtwin_catalog::{Catalog, Error, JobState, StepState, newest_schema};

async fn raw(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn run(path: &Path, script: &'static str) {
    let mut connection = raw(path).await;
    sqlx::raw_sql(script)
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn an_empty_file_is_set_up_once_and_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.db");
    std::fs::write(&path, b"").unwrap();
    let catalog = Catalog::open(&path).await.unwrap();
    catalog.add_vm(guest("web")).await.unwrap();
    catalog.close().await;
    let again = Catalog::open(&path).await.unwrap();
    assert_eq!(again.vm_by_name("web").await.unwrap().name, "web");
    again.check().await.unwrap();
}

#[tokio::test]
async fn folder_and_files_are_private() {
    let fresh = fresh().await;
    fresh.catalog.add_vm(guest("web")).await.unwrap();
    let folder = fresh.path.parent().unwrap();
    assert_eq!(mode(folder), 0o700);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    fresh.catalog.close().await;
    std::fs::set_permissions(&fresh.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    Catalog::open(&fresh.path).await.unwrap();
    assert_eq!(mode(&fresh.path), 0o600);
}

#[tokio::test]
async fn a_catalog_of_the_first_schema_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.db");
    run(&path, include_str!("fixtures/schema-1.sql")).await;
    let catalog = Catalog::open(&path).await.unwrap();
    catalog.check().await.unwrap();
    let vm = catalog.vm_by_name("web").await.unwrap();
    assert!(vm.resume_flag);
    assert_eq!(vm.disks.len(), 2);
    let jobs = catalog.jobs(10).await.unwrap();
    assert_eq!(jobs.len(), 2);
    let cut_off = jobs
        .iter()
        .find(|job| job.state == JobState::Running)
        .unwrap();
    let open = catalog.open_steps(&cut_off.id).await.unwrap();
    assert_eq!(open[0].state, StepState::Registered);
    assert_eq!(open[1].state, StepState::Done);
    assert_eq!(catalog.snapshots(Some("web")).await.unwrap().len(), 1);
    assert_eq!(
        catalog.setting("repository").await.unwrap().as_deref(),
        Some("/srv/repository")
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let fresh = fresh().await;
    fresh.catalog.close().await;
    run(
        &fresh.path,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9000, 'future', TRUE, x'00', 1)",
    )
    .await;
    let error = Catalog::open(&fresh.path).await.unwrap_err();
    let Error::NewerSchema { found, known, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((*found, *known), (9000, newest_schema()));
    assert!(error.to_string().contains("schema 9000"), "{error}");
}

#[tokio::test]
async fn an_altered_schema_is_refused() {
    let fresh = fresh().await;
    fresh.catalog.close().await;
    run(&fresh.path, "UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let error = Catalog::open(&fresh.path).await.unwrap_err();
    assert!(
        matches!(error, Error::AlteredSchema { version: 1, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    run(&path, "CREATE TABLE photo (id INTEGER)").await;
    let error = Catalog::open(&path).await.unwrap_err();
    assert!(matches!(error, Error::NotACatalog { .. }), "{error:?}");
    let mut connection = raw(&path).await;
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(tables, 1);
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(mode, "delete");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.db");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let error = Catalog::open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("rebuild the catalog"), "{error}");
}

#[tokio::test]
async fn damaged_pages_are_found() {
    let fresh = fresh().await;
    for number in 0..50 {
        fresh
            .catalog
            .add_vm(guest(&format!("guest{number}")))
            .await
            .unwrap();
    }
    fresh.catalog.close().await;
    let mut bytes = std::fs::read(&fresh.path).unwrap();
    bytes[4096..].fill(0xa5); // all but the header and the schema's root page
    std::fs::write(&fresh.path, bytes).unwrap();
    let error = match Catalog::open(&fresh.path).await {
        Err(error) => error,
        Ok(catalog) => catalog.check().await.unwrap_err(),
    };
    assert!(
        matches!(error, Error::Corrupt { .. } | Error::Damaged { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_unknown_text_is_damage_and_never_a_default() {
    let fresh = fresh().await;
    fresh.catalog.add_vm(guest("web")).await.unwrap();
    run(&fresh.path, "UPDATE vm SET state = 'dreaming'").await;
    let error = fresh.catalog.vms().await.unwrap_err();
    let Error::Damaged {
        table,
        column,
        value,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!((table, column, value.as_str()), ("vm", "state", "dreaming"));
    assert!(fresh.catalog.check().await.is_err());
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for path in [file.join("catalog.db"), folder.path().to_owned()] {
        let error = Catalog::open(&path).await.unwrap_err();
        assert!(matches!(error, Error::NotWritable { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_open_an_empty_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.db");
    let openers = (0..16).map(|number| {
        let path = path.clone();
        tokio::spawn(async move {
            let catalog = Catalog::open(&path).await.unwrap();
            catalog
                .add_vm(guest(&format!("guest{number}")))
                .await
                .unwrap();
        })
    });
    for opener in openers.collect::<Vec<_>>() {
        opener.await.unwrap();
    }
    let catalog = Catalog::open(&path).await.unwrap();
    assert_eq!(catalog.vms().await.unwrap().len(), 16);
}
