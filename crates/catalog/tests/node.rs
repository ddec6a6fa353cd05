//! The nodes of a cluster in its catalog.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use common::{backup, fresh, guest};
use serde_json::json;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{
    CertificateState, Error, JobState, NewNode, NewVm, NodeId, Outcome, ProcessIdentity, VmState,
};

fn node(id: &NodeId, name: &str, host: &str, version: &str) -> NewNode {
    NewNode {
        id: id.clone(),
        name: name.to_owned(),
        host: host.to_owned(),
        version: version.to_owned(),
        address: None,
    }
}

#[tokio::test]
async fn nodes_join_a_cluster_once_and_keep_their_last_configuration() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    let early = catalog.join_node(&node(&one, "node1", "h1", "0.1.0")).await;
    assert!(matches!(early, Err(Error::NoCluster)), "{early:?}");
    let cluster = catalog.create_cluster("lab").await.unwrap();
    assert_eq!(catalog.create_cluster("lab").await.unwrap(), cluster);
    let other = catalog.create_cluster("other").await;
    assert!(matches!(other, Err(Error::OtherCluster { name }) if name == "lab"));

    catalog
        .join_node(&node(&two, "b", "h2", "0.1.0"))
        .await
        .unwrap();
    catalog
        .join_node(&node(&one, "A", "h1", "0.1.0"))
        .await
        .unwrap();
    let taken = catalog.join_node(&node(&one, "b", "h1", "0.1.0")).await;
    assert!(matches!(taken, Err(Error::NodeExists { .. })), "{taken:?}");
    catalog
        .join_node(&node(&one, "A", "h9", "0.2.0"))
        .await
        .unwrap();
    let nodes = catalog.nodes().await.unwrap();
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["A", "b"]);
    assert_eq!(
        (nodes[0].host.as_str(), nodes[0].version.as_str()),
        ("h9", "0.2.0")
    );
    assert!(nodes[0].seen_at >= nodes[0].joined_at);

    assert_eq!(catalog.configuration(&one).await.unwrap(), None);
    let at = datetime!(2026-11-22 19:22:41 UTC);
    catalog.keep_configuration(&one, "<x/>", at).await.unwrap();
    let kept = catalog.configuration(&one).await.unwrap();
    assert_eq!(kept.as_deref(), Some("<x/>"));
    assert_eq!(catalog.nodes().await.unwrap()[0].configuration_at, Some(at));
    catalog.remove_node(&one).await.unwrap();
    let gone = catalog.keep_configuration(&one, "<x/>", at).await;
    assert!(matches!(gone, Err(Error::NoNode { .. })), "{gone:?}");
    assert_eq!(catalog.nodes().await.unwrap().len(), 1);
    catalog.check().await.unwrap();
}

#[tokio::test]
async fn a_token_lets_one_key_in_and_a_removed_node_stays_out() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    assert_eq!(catalog.keep_authority("one").await.unwrap(), "one");
    assert_eq!(catalog.keep_authority("two").await.unwrap(), "one");
    let now = OffsetDateTime::now_utc();
    let (soon, past) = (now + Duration::hours(1), now - Duration::hours(1));
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    let (first, second) = (node(&one, "a", "h", "1"), node(&two, "b", "h", "1"));

    catalog.add_token("old", past).await.unwrap();
    catalog.add_token("new", soon).await.unwrap();
    for hash in ["old", "never"] {
        let refused = catalog.use_token(hash, "k1", &first, ("c0", soon)).await;
        assert!(matches!(refused, Err(Error::Token)), "{refused:?}");
    }
    assert_eq!(catalog.nodes().await.unwrap().len(), 0);
    let used = catalog.use_token("new", "k1", &first, ("c1", soon)).await;
    used.unwrap();
    let again = catalog.use_token("new", "k1", &first, ("c2", soon)).await;
    again.unwrap();
    let other = catalog.use_token("new", "k2", &second, ("c3", soon)).await;
    assert!(matches!(other, Err(Error::Token)), "{other:?}");
    // Its holder, whose key it is, gets no other node's name by it.
    let other = catalog.use_token("new", "k1", &second, ("c3", soon)).await;
    assert!(matches!(other, Err(Error::Token)), "{other:?}");
    // Nor may another token take the place of a node that is there.
    catalog.add_token("next", soon).await.unwrap();
    let stolen = catalog.use_token("next", "k2", &first, ("c4", soon)).await;
    assert!(
        matches!(stolen, Err(Error::NodeHasCertificate { .. })),
        "{stolen:?}"
    );
    catalog.add_certificate(&one, ("c5", past)).await.unwrap();
    for (certificate, state) in [
        ("c1", CertificateState::Valid(one.clone())),
        ("c2", CertificateState::Valid(one.clone())),
        ("c3", CertificateState::Unknown),
        ("c5", CertificateState::Revoked),
    ] {
        assert_eq!(catalog.certificate(certificate).await.unwrap(), state);
    }
    assert!(catalog.certificate_end("c1").await.unwrap().is_some());
    assert_eq!(catalog.certificate_end("c0").await.unwrap(), None);
    assert!(catalog.see_node(&one, "h:1", "2").await.unwrap());
    let seen = catalog.nodes().await.unwrap();
    assert_eq!(seen[0].address.as_deref(), Some("h:1"));

    catalog.remove_node(&one).await.unwrap();
    for certificate in ["c1", "c2"] {
        let state = catalog.certificate(certificate).await.unwrap();
        assert_eq!(state, CertificateState::Revoked);
        assert_eq!(catalog.certificate_end(certificate).await.unwrap(), None);
    }
    assert!(!catalog.see_node(&one, "h:1", "2").await.unwrap());
    let back = catalog.join_node(&first).await;
    assert!(matches!(back, Err(Error::NodeRemoved)), "{back:?}");
    let late = catalog.add_certificate(&one, ("c8", soon)).await;
    assert!(matches!(late, Err(Error::NodeRemoved)), "{late:?}");
    let back = catalog.use_token("new", "k1", &first, ("c7", soon)).await;
    assert!(matches!(back, Err(Error::Token)), "{back:?}");
    let back = catalog.use_token("next", "k3", &first, ("c6", soon)).await;
    back.unwrap();
    catalog.join_node(&first).await.unwrap();
    let state = catalog.certificate("c1").await.unwrap();
    assert_eq!(state, CertificateState::Revoked);
    catalog.check().await.unwrap();
}

#[tokio::test]
async fn a_new_authority_ends_all_certificates_but_the_first_of_its_own() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    catalog.keep_authority("old").await.unwrap();
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    let soon = OffsetDateTime::now_utc() + Duration::hours(1);
    for (id, name) in [(&one, "n1"), (&two, "n2")] {
        catalog.join_node(&node(id, name, name, "1")).await.unwrap();
        catalog.add_certificate(id, (name, soon)).await.unwrap();
    }
    let stranger = NodeId::random().unwrap();
    let refused = catalog
        .replace_authority("new", &stranger, ("c", soon))
        .await;
    assert!(matches!(refused, Err(Error::NodeRemoved)), "{refused:?}");
    assert_eq!(catalog.authority().await.unwrap().as_deref(), Some("old"));

    let done = catalog.replace_authority("new", &one, ("c", soon)).await;
    done.unwrap();
    assert_eq!(catalog.authority().await.unwrap().as_deref(), Some("new"));
    for (certificate, state) in [
        ("n1", CertificateState::Revoked),
        ("n2", CertificateState::Revoked),
        ("c", CertificateState::Valid(one.clone())),
    ] {
        assert_eq!(catalog.certificate(certificate).await.unwrap(), state);
    }
    // It has to join again, but was not removed.
    let there = catalog.join_node(&node(&two, "n2", "n2", "1")).await;
    there.unwrap();
    catalog.check().await.unwrap();
}

#[tokio::test]
async fn a_vm_is_on_a_node_until_that_is_removed() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    for (id, name) in [(&one, "n1"), (&two, "n2")] {
        catalog.join_node(&node(id, name, name, "1")).await.unwrap();
    }
    let early = catalog.add_vm(guest("early")).await.unwrap();
    let there = NewVm {
        node: Some(two.clone()),
        ..guest("there")
    };
    let there = catalog.add_vm(there).await.unwrap();
    catalog.give_vms_to(&one).await.unwrap();
    let on = async |vm| catalog.vm(vm).await.unwrap().node;
    assert_eq!(
        (on(&early).await, on(&there).await),
        (Some(one.clone()), Some(two.clone()))
    );
    catalog.set_node(&there, Some(&one)).await.unwrap();
    assert_eq!(on(&there).await, Some(one.clone()));
    catalog.set_node(&there, Some(&two)).await.unwrap();
    // Who looked before another node took it changes nothing.
    assert!(!catalog.leave_node(&there, &one).await.unwrap());
    assert_eq!(on(&there).await, Some(two.clone()));
    assert!(catalog.leave_node(&there, &two).await.unwrap());
    assert_eq!(on(&there).await, None);
    catalog.set_node(&there, Some(&two)).await.unwrap();
    catalog.remove_node(&two).await.unwrap();
    assert_eq!((on(&early).await, on(&there).await), (Some(one), None));
}

/// Only a guest that is elsewhere by now, and only once its old node is silent for the lease.
#[tokio::test]
async fn a_silent_nodes_job_lets_a_guest_go_that_is_on_another_node() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    let own = ProcessIdentity::of_self().unwrap();
    let (here, far) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    catalog
        .join_node(&node(&here, "here", &own.host, "1"))
        .await
        .unwrap();
    catalog
        .join_node(&node(&far, "far", "far.example", "1"))
        .await
        .unwrap();
    let vm = NewVm {
        node: Some(far.clone()),
        ..guest("web")
    };
    let vm = catalog.add_vm(vm).await.unwrap();
    let theirs = ProcessIdentity {
        host: "far.example".to_owned(),
        ..own
    };
    let cut_off = catalog.start_job_as(backup(&vm), &theirs).await.unwrap();
    catalog
        .register_step(&cut_off, "pause", &json!({"undo": "resume"}))
        .await
        .unwrap();
    let refused = async || {
        let tried = catalog.start_job(backup(&vm)).await;
        assert!(
            matches!(&tried, Err(Error::Busy { host, .. }) if host == "far.example"),
            "{tried:?}"
        );
    };

    refused().await;
    assert_eq!(catalog.lease().await.unwrap().as_secs(), 600);
    // The guest is here, but the node was heard of a moment ago.
    catalog.set_node(&vm, Some(&here)).await.unwrap();
    refused().await;
    catalog.set_setting("cluster.lease-s", "1").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    // It is silent, but the guest may run there still; then it is heard of again.
    catalog.set_node(&vm, Some(&far)).await.unwrap();
    refused().await;
    catalog.set_node(&vm, None).await.unwrap();
    refused().await;
    catalog.set_node(&vm, Some(&here)).await.unwrap();
    catalog.set_setting("cluster.lease-s", "30").await.unwrap();
    catalog.touch_node(&far).await.unwrap();
    refused().await;

    catalog.set_setting("cluster.lease-s", "1").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    // What is off here may be a definition that was left behind, and the guest runs there still.
    catalog.set_state(&vm, VmState::Stopped).await.unwrap();
    refused().await;
    catalog.set_state(&vm, VmState::Running).await.unwrap();
    catalog.start_job(backup(&vm)).await.unwrap();
    // Here nobody recovers it; its journal waits for its host.
    assert!(catalog.dead_jobs().await.unwrap().is_empty());
    assert_eq!(
        catalog.job(&cut_off).await.unwrap().state,
        JobState::Running
    );
    assert_eq!(catalog.open_steps(&cut_off).await.unwrap().len(), 1);

    catalog
        .set_setting("cluster.lease-s", "soon")
        .await
        .unwrap();
    assert!(matches!(catalog.lease().await, Err(Error::Damaged { .. })));
}

/// A copy of an earlier time makes no node silent that was heard of since, and deletes nothing later: from
/// the moment it is there, in the same transaction.
#[tokio::test]
async fn what_an_earlier_copy_brings_back_takes_no_guest_and_no_snapshot() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    let one = NodeId::random().unwrap();
    catalog
        .join_node(&node(&one, "n1", "n1", "1"))
        .await
        .unwrap();
    let soon = OffsetDateTime::now_utc() + Duration::minutes(1);
    let ids = ["s1".to_owned()];
    catalog.put_off_deletion("r1", &ids, soon).await.unwrap();
    let mut copy = Vec::new();
    catalog.dump(&mut copy).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    catalog.touch_node(&one).await.unwrap();
    let before = catalog.nodes().await.unwrap();

    let scratch = fresh.folder.path();
    let loaded = catalog
        .load(&mut copy.as_slice(), scratch, false)
        .await
        .unwrap();
    assert_eq!(catalog.nodes().await.unwrap()[0].seen_at, before[0].seen_at);
    assert!(catalog.deletions(None).await.unwrap().is_empty());
    assert_eq!(loaded.dropped_deletions, 1);
    assert_ne!(loaded.content, loaded.copied);
    assert_eq!(catalog.summary().await.unwrap(), loaded.content);
    // Again it changes nothing, and says so.
    let again = catalog
        .load(&mut copy.as_slice(), scratch, false)
        .await
        .unwrap();
    assert_eq!(again.content, loaded.content);
}

/// Where nothing was known of the nodes, all of them may be there: none is silent at once.
#[tokio::test]
async fn a_copy_in_an_empty_catalog_makes_no_node_silent() {
    let (lost, fresh) = (fresh().await, fresh().await);
    lost.catalog.create_cluster("lab").await.unwrap();
    let one = NodeId::random().unwrap();
    let joined = node(&one, "n1", "n1", "1");
    lost.catalog.join_node(&joined).await.unwrap();
    let due = OffsetDateTime::now_utc();
    let ids = ["s1".to_owned()];
    let waits = lost.catalog.put_off_deletion("r1", &ids, due).await;
    waits.unwrap();
    let mut copy = Vec::new();
    lost.catalog.dump(&mut copy).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;

    let begun = OffsetDateTime::now_utc();
    let (scratch, catalog) = (fresh.folder.path(), &fresh.catalog);
    let loaded = catalog
        .load(&mut copy.as_slice(), scratch, false)
        .await
        .unwrap();
    assert!(catalog.nodes().await.unwrap()[0].seen_at >= begun - Duration::milliseconds(1));
    assert!(catalog.deletions(None).await.unwrap().is_empty());
    assert_eq!(loaded.dropped_deletions, 1);
}

/// A move is of now: nodes are as silent as they were, and what waits goes on waiting.
#[tokio::test]
async fn a_move_keeps_what_waits() {
    let (from, to) = (fresh().await, fresh().await);
    from.catalog.create_cluster("lab").await.unwrap();
    let one = NodeId::random().unwrap();
    let joined = node(&one, "n1", "n1", "1");
    from.catalog.join_node(&joined).await.unwrap();
    let due = OffsetDateTime::now_utc() + Duration::minutes(1);
    let ids = ["s1".to_owned()];
    let waits = from.catalog.put_off_deletion("r1", &ids, due).await;
    waits.unwrap();
    let scratch = from.folder.path();
    from.catalog
        .move_to(&to.catalog, scratch, false)
        .await
        .unwrap();
    assert_eq!(to.catalog.deletions(None).await.unwrap().len(), 1);
    assert_eq!(
        to.catalog.nodes().await.unwrap(),
        from.catalog.nodes().await.unwrap()
    );
}

/// A host that died leaves its jobs running for ever: they are passed over where that is asked for and
/// nothing is heard of it, and end with its node.
#[tokio::test]
async fn jobs_of_a_dead_host_stand_in_no_way() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    let own = ProcessIdentity::of_self().unwrap();
    let (here, far) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    for (id, name, host) in [(&here, "here", &*own.host), (&far, "far", "far.example")] {
        catalog.join_node(&node(id, name, host, "1")).await.unwrap();
    }
    let vm = NewVm {
        node: Some(far.clone()),
        ..guest("web")
    };
    let vm = catalog.add_vm(vm).await.unwrap();
    let at = |host: &str| ProcessIdentity {
        host: host.to_owned(),
        ..own.clone()
    };
    let theirs = at("far.example");
    let theirs = catalog.start_job_as(backup(&vm), &theirs).await.unwrap();
    catalog
        .record_pause(&theirs, &vm, "pause", &json!({"undo": "resume"}))
        .await
        .unwrap();
    let mut copy = Vec::new();
    catalog.dump(&mut copy).await.unwrap();
    let hosts = async |force| -> Vec<String> {
        let jobs = catalog.unfinished_jobs(force).await.unwrap();
        jobs.into_iter().map(|job| job.owner.host).collect()
    };

    // It was heard of a moment ago.
    let scratch = fresh.folder.path();
    assert_eq!(hosts(true).await, ["far.example"]);
    let refused = catalog.load(&mut copy.as_slice(), scratch, true).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    catalog.set_setting("cluster.lease-s", "1").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(hosts(false).await, ["far.example"]);
    let refused = catalog.load(&mut copy.as_slice(), scratch, false).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert!(hosts(true).await.is_empty());
    // A job of this host is never passed over, however long nothing was heard of its node.
    let ours = catalog.add_vm(guest("ours")).await.unwrap();
    let ours = catalog.start_job(backup(&ours)).await.unwrap();
    assert_eq!(hosts(true).await, [own.host.as_str()]);
    let done = Outcome::Done;
    catalog.finish_job(&ours, done, None).await.unwrap();
    // The copy was made while the job ran: it is back.
    catalog
        .load(&mut copy.as_slice(), scratch, true)
        .await
        .unwrap();
    assert_eq!(hosts(false).await, ["far.example"]);

    assert_eq!(catalog.remove_node(&far).await.unwrap(), 1);
    let ended = catalog.job(&theirs).await.unwrap();
    assert_eq!(ended.state, JobState::Failed);
    assert!(ended.error.unwrap().contains("far was removed"));
    assert!(catalog.open_steps(&theirs).await.unwrap().is_empty());
    assert!(!catalog.vm(&vm).await.unwrap().resume_flag);
    catalog.start_job(backup(&vm)).await.unwrap();
    // A host that is no node is not heard of at all.
    let stray = at("stray.example");
    let other = catalog.add_vm(guest("other")).await.unwrap();
    catalog.start_job_as(backup(&other), &stray).await.unwrap();
    assert_eq!(hosts(true).await, [own.host.as_str()]);
    assert_eq!(hosts(false).await.len(), 2);
    catalog.check().await.unwrap();
}

/// Two nodes that say that they are one host (containers): the jobs are those of the one that stays.
#[tokio::test]
async fn a_removed_node_ends_no_job_of_its_namesake() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    catalog.create_cluster("lab").await.unwrap();
    let own = ProcessIdentity::of_self().unwrap();
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    for (id, name) in [(&one, "n1"), (&two, "n2")] {
        let joined = node(id, name, &own.host, "1");
        catalog.join_node(&joined).await.unwrap();
    }
    let vm = catalog.add_vm(guest("web")).await.unwrap();
    let job = catalog.start_job(backup(&vm)).await.unwrap();
    assert_eq!(catalog.remove_node(&two).await.unwrap(), 0);
    assert_eq!(catalog.job(&job).await.unwrap().state, JobState::Running);
}
