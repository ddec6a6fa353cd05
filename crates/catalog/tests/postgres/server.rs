//! What only a server has.

use vmtwin_catalog::{Catalog, Error, newest_schema};
use vmtwin_testkit::Postgres;

use crate::common::guest;

/// The name of the database that a URL of the testkit leads to.
fn name_of(url: &str) -> &str {
    url.split(['/', '?']).nth(3).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_open_an_empty_database_at_once() {
    let url = Postgres::shared().database();
    let openers = (0..8).map(|number| {
        let url = url.clone();
        tokio::spawn(async move {
            let catalog = Catalog::open_postgres(&url).await.unwrap();
            let name = format!("guest{number}");
            catalog.add_vm(guest(&name)).await.unwrap();
        })
    });
    for opener in openers.collect::<Vec<_>>() {
        opener.await.unwrap();
    }
    let catalog = Catalog::open_postgres(&url).await.unwrap();
    assert_eq!(catalog.vms().await.unwrap().len(), 8);
    assert!(catalog.is_shared());
}

#[tokio::test]
async fn names_are_in_the_order_of_their_bytes_whatever_the_locale() {
    let url = Postgres::shared().database();
    let catalog = Catalog::open_postgres(&url).await.unwrap();
    for name in ["b", "a", "C", "_"] {
        catalog.add_vm(guest(name)).await.unwrap();
    }
    let names: Vec<_> = catalog.vms().await.unwrap();
    let names: Vec<_> = names.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["C", "_", "a", "b"]);
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_alone() {
    let server = Postgres::shared();
    let url = server.database();
    server.sql(name_of(&url), "CREATE TABLE photo (id INTEGER)");
    let error = Catalog::open_postgres(&url).await.unwrap_err();
    assert!(matches!(error, Error::NotACatalog { .. }), "{error:?}");
    let tables = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.sql(name_of(&url), tables), "1");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let server = Postgres::shared();
    let url = server.database();
    Catalog::open_postgres(&url).await.unwrap().close().await;
    server.sql(
        name_of(&url),
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9000, 'future', TRUE, '', 1)",
    );
    let error = Catalog::open_postgres(&url).await.unwrap_err();
    let Error::NewerSchema { found, known, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((*found, *known), (9000, newest_schema()));
}

#[tokio::test]
async fn a_database_that_is_not_there_and_a_server_that_is_not_there_are_told_apart() {
    let server = Postgres::shared();
    let error = Catalog::open_postgres(&server.url("nowhere")).await;
    assert!(matches!(error, Err(Error::Denied { .. })), "{error:?}");
    let error = Catalog::open_postgres("postgres:///catalog?host=/nonexistent").await;
    assert!(matches!(error, Err(Error::Unreachable { .. })), "{error:?}");
}

#[tokio::test]
async fn what_was_committed_outlives_a_crash_of_the_server() {
    let server = Postgres::start();
    let catalog = Catalog::open_postgres(&server.database()).await.unwrap();
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog.set_resume_flag(&id, true).await.unwrap();
    server.kill();
    server.run_again();
    let web = catalog.vm_by_name("web").await.unwrap();
    assert!(web.resume_flag);
    catalog.set_resume_flag(&id, false).await.unwrap();
}
