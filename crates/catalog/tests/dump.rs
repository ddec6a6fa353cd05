//! Copies of the catalog: the same bytes from either database, whole or refused.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use common::{Fresh, backup, fresh, guest, inspection};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use vmtwin_catalog::{Catalog, DumpSummary, Error, NewVm, Outcome, VmId, VmRole};
use vmtwin_testkit::Postgres;

/// A twin whose row comes before that of its guest, several pages of settings, a job with a
/// journal, texts that need care.
async fn fill(catalog: &Catalog) {
    let id = |text: &str| Some(text.parse::<VmId>().unwrap());
    let web = NewVm {
        id: id("ffffffff-9dad-41d1-80b4-00c04fd430c8"),
        ..guest("web \"Ä\" \u{1f40b}")
    };
    let web = catalog.add_vm(web).await.unwrap();
    let twin = NewVm {
        id: id("00000000-9dad-41d1-80b4-00c04fd430c8"),
        role: VmRole::Twin,
        twin_of: Some(web.clone()),
        ..guest("web.twin")
    };
    catalog.add_vm(twin).await.unwrap();
    let found = inspection(&["disk0", "disk1"]);
    catalog.update_inspection(&web, found).await.unwrap();
    for number in 0..250 {
        let key = format!("{}{number}", if number % 2 == 0 { "Key" } else { "key" });
        let value = format!("line\n\"{number}\"\\\t");
        catalog.set_setting(&key, &value).await.unwrap();
    }
    let job = catalog.start_job(backup(&web)).await.unwrap();
    let step = catalog
        .record_pause(&job, &web, "pause", &json!({"at": 1}))
        .await
        .unwrap();
    catalog.record_resume(&web, step).await.unwrap();
    let report = json!({"nothing": null, "nul": "\u{0}"});
    catalog
        .finish_job(&job, Outcome::Done, Some(&report))
        .await
        .unwrap();
}

async fn dump(catalog: &Catalog) -> Vec<u8> {
    let mut bytes = Vec::new();
    catalog.dump(&mut bytes).await.unwrap();
    bytes
}

async fn load(into: &Catalog, fresh: &Fresh, mut bytes: &[u8]) -> Result<DumpSummary, Error> {
    let loaded = into.load(&mut bytes, fresh.folder.path(), false).await?;
    Ok(loaded.copied)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_from_a_file_to_a_server_and_back_byte_for_byte() {
    let (file, other_file) = (fresh().await, fresh().await);
    fill(&file.catalog).await;
    let original = dump(&file.catalog).await;
    let server = Catalog::open_postgres(&Postgres::shared().database())
        .await
        .unwrap();
    server.set_setting("stale", "goes away").await.unwrap();
    server.add_vm(guest("stale")).await.unwrap();

    let summary = load(&server, &file, &original).await.unwrap();
    let rows = |table: &str| {
        let mut tables = summary.tables.iter();
        tables.find(|one| one.table == table).unwrap().rows
    };
    assert_eq!((rows("vm"), rows("disk"), rows("setting")), (2, 2, 250));
    assert_eq!((rows("job"), rows("step")), (1, 1));
    assert!(dump(&server).await == original);
    assert_eq!(server.summary().await.unwrap(), summary);
    assert_eq!(
        server.vms().await.unwrap(),
        file.catalog.vms().await.unwrap()
    );
    // References are checked at once again: a twin of nobody is refused by the statement itself.
    let stray = NewVm {
        twin_of: Some(VmId::random().unwrap()),
        ..guest("stray")
    };
    assert!(matches!(
        server.add_vm(stray).await,
        Err(Error::NoVm { .. })
    ));

    let moved = server
        .copy_to(&other_file.catalog, file.folder.path())
        .await
        .unwrap();
    assert_eq!(moved, summary);
    assert!(dump(&other_file.catalog).await == original);
    other_file.catalog.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_leaves_nothing_to_go_on_with() {
    let fresh = fresh().await;
    fill(&fresh.catalog).await;
    let vm = fresh.catalog.vms().await.unwrap().remove(0).id;
    let url = Postgres::shared().database();
    let server = Catalog::open_postgres(&url).await.unwrap();
    let scratch = fresh.folder.path();
    let job = fresh.catalog.start_job(backup(&vm)).await.unwrap();
    let refused = fresh.catalog.move_to(&server, scratch, false).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(server.summary().await.unwrap().rows(), 0);
    let done = Outcome::Done;
    fresh.catalog.finish_job(&job, done, None).await.unwrap();

    let before = fresh.catalog.summary().await.unwrap();
    let moved = fresh
        .catalog
        .move_to(&server, scratch, false)
        .await
        .unwrap();
    assert_eq!(moved, before);
    let late = fresh.catalog.start_job(backup(&vm)).await;
    assert!(matches!(late, Err(Error::Moved { .. })), "{late:?}");
    // Nor are a job's rows replaced under it.
    let job = server.start_job(backup(&vm)).await.unwrap();
    let refused = fresh.catalog.move_to(&server, scratch, false).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    server.finish_job(&job, Outcome::Done, None).await.unwrap();
    assert_eq!(
        fresh
            .catalog
            .move_to(&server, scratch, false)
            .await
            .unwrap(),
        before
    );
}

#[tokio::test]
async fn a_damaged_copy_changes_nothing() {
    let (source, target) = (fresh().await, fresh().await);
    fill(&source.catalog).await;
    target.catalog.add_vm(guest("kept")).await.unwrap();
    let before = dump(&target.catalog).await;
    let good = dump(&source.catalog).await;
    let end = good.len();
    let mut damaged: Vec<Vec<u8>> = vec![
        Vec::new(),
        good[..end / 2].to_vec(),
        good[..end - 1].to_vec(),
        [&good[..], b"{}\n"].concat(),
        vec![b'x'; 1 << 20],
    ];
    for at in (0..end).step_by(end / 60) {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        damaged.push(flipped);
    }
    for bytes in damaged {
        // Also where it is only asked what it holds; a later schema is no damage there.
        if let Ok(told) = DumpSummary::of(&mut &bytes[..]) {
            panic!("{told:?}");
        }
        let error = load(&target.catalog, &source, &bytes).await.unwrap_err();
        let refused = matches!(error, Error::BadDump { .. } | Error::NewerDump { .. });
        assert!(refused || matches!(error, Error::DumpFile(_)), "{error:?}");
        assert!(dump(&target.catalog).await == before, "{error:?}");
    }
    let told = DumpSummary::of(&mut &good[..]).unwrap();
    let loaded = load(&target.catalog, &source, &good).await.unwrap();
    assert_eq!(told, loaded);
}

#[tokio::test]
async fn what_nobody_wrote_is_refused() {
    let fresh = fresh().await;
    let head = format!(
        "{{\"format\":\"vmtwin-database\",\"version\":1,\"schema\":{}}}\n",
        vmtwin_catalog::newest_schema()
    );
    let table = |name: &str, columns: &str| {
        format!("{head}{{\"table\":\"{name}\",\"columns\":[{columns}]}}\n")
    };
    for (text, why) in [
        (
            "{\"format\":\"other\",\"version\":1,\"schema\":1}\n".into(),
            "no copy",
        ),
        (
            "{\"format\":\"vmtwin-database\",\"version\":9,\"schema\":1}\n".into(),
            "format 9",
        ),
        (table("sqlite_master", "\"name\""), "not known"),
        (table("_sqlx_migrations", "\"version\""), "not known"),
        (table("setting", "\"key\""), "other columns"),
        (
            table("setting", "\"key\",\"value\"") + "[1,2]\n",
            "another type",
        ),
        (
            table("setting", "\"key\",\"value\"") + "[\"a\"]\n",
            "number of columns",
        ),
    ] {
        let text: String = text;
        let error = load(&fresh.catalog, &fresh, text.as_bytes())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(why), "{text}: {error}");
    }
    for name in ["a\\u001b[2J", &"a".repeat(1000), "A", ""] {
        let trailer = format!("{{\"rows\":0,\"sha256\":\"{}\"}}\n", "0".repeat(64));
        let text = table(name, "\"key\"") + &trailer;
        let error = DumpSummary::of(&mut text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("name"), "{name}: {error}");
    }
    let newer = "{\"format\":\"vmtwin-database\",\"version\":1,\"schema\":9000}\n";
    let error = load(&fresh.catalog, &fresh, newer.as_bytes()).await;
    assert!(matches!(error, Err(Error::NewerDump { found: 9000, .. })));
}

/// Random texts keep their bytes and their order on the way through both databases.
#[test]
fn any_texts_survive() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (source, target, server) = runtime.block_on(async {
        let server = Catalog::open_postgres(&Postgres::shared().database()).await;
        (fresh().await, fresh().await, server.unwrap())
    });
    let mut runner = TestRunner::new(Config::with_cases(24));
    // All of Unicode but NUL, which no name of ours may hold and PostgreSQL does not take.
    let texts = proptest::collection::btree_map("[^\u{0}]{0,12}", "[^\u{0}]{0,40}", 0..20);
    runner
        .run(&texts, |texts| {
            runtime.block_on(async {
                for key in source.catalog.settings().await.unwrap().into_keys() {
                    source.catalog.remove_setting(&key).await.unwrap();
                }
                for (key, value) in &texts {
                    source.catalog.set_setting(key, value).await.unwrap();
                }
                let original = dump(&source.catalog).await;
                load(&server, &source, &original).await.unwrap();
                let on_server = dump(&server).await;
                load(&target.catalog, &source, &on_server).await.unwrap();
                prop_assert!(on_server == original);
                prop_assert_eq!(target.catalog.settings().await.unwrap(), texts);
                Ok(())
            })
        })
        .unwrap();
}
