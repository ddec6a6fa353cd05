//! The nodes of a cluster in its catalog.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use common::fresh;
use time::macros::datetime;
use vmtwin_catalog::{Error, NodeId};

#[tokio::test]
async fn nodes_join_a_cluster_once_and_keep_their_last_configuration() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let (one, two) = (NodeId::random().unwrap(), NodeId::random().unwrap());
    let early = catalog.join_node(&one, "node1", "h1", "0.1.0").await;
    assert!(matches!(early, Err(Error::NoCluster)), "{early:?}");
    let cluster = catalog.create_cluster("lab").await.unwrap();
    assert_eq!(catalog.create_cluster("lab").await.unwrap(), cluster);
    let other = catalog.create_cluster("other").await;
    assert!(matches!(other, Err(Error::OtherCluster { name }) if name == "lab"));

    catalog.join_node(&two, "b", "h2", "0.1.0").await.unwrap();
    catalog.join_node(&one, "A", "h1", "0.1.0").await.unwrap();
    let taken = catalog.join_node(&one, "b", "h1", "0.1.0").await;
    assert!(matches!(taken, Err(Error::NodeExists { .. })), "{taken:?}");
    catalog.join_node(&one, "A", "h9", "0.2.0").await.unwrap();
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
