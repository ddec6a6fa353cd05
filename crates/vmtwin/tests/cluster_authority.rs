//! The authority of a cluster: certificates are renewed, and come back where an authority, a database or
//! a node's own were lost.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

mod common;

use std::sync::Arc;

use common::agents::{
    Agent, Hostile, address, backup, database_of, first_node, joined, line, log, state, tls_of,
    token, wait_for,
};
use common::{Vmtwin, code, document, told};
use serde_json::Value;
use time::OffsetDateTime;
use vmtwin_server::{Authority, CertificateRequest, NodeKey};
use vmtwin_testkit::Postgres;

#[test]
fn certificates_are_renewed_before_they_end() {
    let server = Postgres::shared();
    let url = server.database();
    let database = database_of(&url);
    let (one, agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (_three, _agent3) = joined(&one, "node3");
    let early = two.json(&["cluster", "renew"]);
    assert_eq!(early["renewed"], false, "{early}");
    let id = server.sql(database, "SELECT id FROM node WHERE name = 'node2'");
    let mine = format!("FROM node_certificate WHERE node = '{id}' AND revoked_at IS NULL");
    let count = || server.sql(database, &format!("SELECT count(*) {mine}"));
    assert_eq!(count(), "1");

    // By hand; the agent takes it up while it runs, and the old one may go.
    let old = tls_of(&two);
    let renewed = two.json(&["cluster", "renew", "--force"]);
    assert_eq!(renewed["renewed"], true, "{renewed}");
    assert_eq!(count(), "2");
    assert_ne!(tls_of(&two)["key"], old["key"]);
    let answers = |times: usize| log(&two).matches("answers at").count() == times;
    wait_for("the agent takes it up", || answers(2));
    server.sql(
        database,
        &format!(
            "UPDATE node_certificate SET revoked_at = issued_at WHERE fingerprint = \
             (SELECT fingerprint {mine} ORDER BY issued_at LIMIT 1)"
        ),
    );
    backup(&two, &["--require-all"]);
    backup(&one, &["--require-all"]);

    // By itself, when the end is near. It needs the authority, and says so where that is away.
    let node1 = address(&two, "node1");
    agent1.end();
    let near = (OffsetDateTime::now_utc() + time::Duration::days(30)).date();
    server.sql(
        database,
        &format!(
            "UPDATE node_certificate SET expires_at = '{near}T00:00:00.000000Z' WHERE node = '{id}'"
        ),
    );
    let checks = document(&two.run(&["doctor", "--json"]));
    let check = |what: &str| {
        let mut all = checks.as_array().unwrap().iter();
        all.find(|check| check["what"] == what).unwrap()["found"].to_string()
    };
    assert!(check("certificate").contains(&near.to_string()), "{checks}");
    assert!(check("host name").contains("node"), "{checks}");
    let away = two.fails(&["cluster", "renew"], &["must run `vmtwin serve`"]);
    assert!(
        away.contains("the authority's key is not on this node"),
        "{away}"
    );
    let _agent1 = Agent::start(&one, &node1, &[]);
    let node2 = address(&one, "node2");
    agent2.end();
    let _agent2 = Agent::start(&two, &node2, &[]);
    wait_for("it renews by itself", || answers(2));
    assert_eq!(two.json(&["cluster", "renew"])["renewed"], false);
    backup(&one, &["--require-all"]);

    // Who was put out gets none.
    one.ok(&["cluster", "node", "remove", "node2"]);
    two.fails(&["cluster", "renew", "--force"], &["does not count"]);
}

#[test]
fn a_lost_authority_is_made_anew() {
    let url = Postgres::shared().database();
    let (one, agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (node1, node2) = (address(&one, "node1"), address(&one, "node2"));
    let file = one.home().join("cluster-authority.json");
    one.fails(
        &["cluster", "create", "lab", "--new-authority"],
        &["no new one"],
    );
    std::fs::remove_file(&file).unwrap();
    one.fails(&["cluster", "token"], &["authority"]);

    one.ok(&["cluster", "create", "lab", "--new-authority"]);
    agent1.end();
    let _agent1 = Agent::start(&one, &node1, &[]);
    let report = backup(&one, &["--node-timeout", "5"]);
    assert_eq!(state(&report, "node2"), "missing", "{report}");
    agent2.end();
    two.ok(&["cluster", "join", &token(&one, "5m"), "--node", "node2"]);
    let _agent2 = Agent::start(&two, &node2, &[]);
    backup(&one, &["--require-all"]);
    backup(&two, &["--require-all"]);
}

#[test]
fn the_authoritys_own_node_signs_itself_in_again() {
    let server = Postgres::shared();
    let url = server.database();
    let database = database_of(&url);
    let (one, _agent1) = first_node(&url);
    let (two, _agent2) = joined(&one, "node2");
    let report = backup(&one, &["--require-all"]);
    let file = report["file"].as_str().unwrap();
    let answers = |times: usize| log(&one).matches("answers at").count() == times;

    // A database of before the last renewal, and no key any more to the certificate that it knows.
    for (number, again) in [&["renew"][..], &["create", "lab"]].into_iter().enumerate() {
        one.ok(&["cluster", "renew", "--force"]);
        wait_for("the agent takes it up", || answers(2 * number + 2));
        one.ok(&["cluster", "restore", file, "--only-database", "--force"]);
        let report = backup(&one, &["--node-timeout", "5"]);
        assert_eq!(state(&report, "node2"), "last-known", "{report}");
        let doctor = one.run(&["doctor", "--json"]);
        assert!(told(&doctor).contains("vmtwin cluster renew"));

        one.ok(&[&["cluster"], again].concat());
        wait_for("the agent takes it up", || answers(2 * number + 3));
        backup(&one, &["--require-all"]);
        backup(&two, &["--require-all"]);
    }
    // Another node's key makes no certificates.
    two.ok(&["cluster", "renew", "--force"]);
    one.ok(&["cluster", "restore", file, "--only-database", "--force"]);
    for again in [&["renew"][..], &["create", "lab"]] {
        two.fails(&[&["cluster"], again].concat(), &["does not count"]);
    }

    // No certificate counts, as where a new authority came no further.
    let revoke = "UPDATE node_certificate SET revoked_at = issued_at";
    server.sql(database, revoke);
    let before = log(&one).matches("answers at").count();
    one.ok(&["cluster", "create", "lab"]);
    wait_for("the agent takes it up", || answers(before + 1));
    assert_eq!(line(&one, "node1")["up"], true);
}

#[test]
fn a_new_authority_that_was_interrupted_is_taken_up() {
    let url = Postgres::shared().database();
    let (one, agent1) = first_node(&url);
    let (two, agent2) = joined(&one, "node2");
    let (node1, node2) = (address(&one, "node1"), address(&one, "node2"));
    std::fs::remove_file(one.home().join("cluster-authority.json")).unwrap();
    let anew = ["cluster", "create", "lab", "--new-authority"];
    let died = one
        .command(&anew)
        .env("VMTWIN_FAILPOINT", "authority-replaced=kill")
        .output()
        .unwrap();
    assert_ne!(code(&died), 0);
    one.fails(&anew, &["the same without --new-authority"]);
    one.ok(&["cluster", "create", "lab"]);
    agent1.end();
    let _agent1 = Agent::start(&one, &node1, &[]);
    agent2.end();
    two.ok(&["cluster", "join", &token(&one, "5m"), "--node", "node2"]);
    let _agent2 = Agent::start(&two, &node2, &[]);
    backup(&one, &["--require-all"]);
    backup(&two, &["--require-all"]);
}

/// What a hostile node gives to a request for a certificate, all but what it was asked for.
struct Forger {
    authority: Authority,
    cluster: String,
    own: String,
    asker: String,
    database: String,
}

impl Forger {
    fn of(one: &Vmtwin, bad: &Vmtwin, asker: &Vmtwin, database: &str) -> Forger {
        let read = |node: &Vmtwin, name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(node.home().join(name)).unwrap()).unwrap()
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let kept = read(one, "cluster-authority.json");
        Forger {
            authority: Authority::from_pem(&text(&kept["certificate"]), &text(&kept["key"]))
                .unwrap(),
            cluster: text(&tls_of(bad)["cluster"]),
            own: text(&read(bad, "node.json")["id"]),
            asker: text(&read(asker, "node.json")["id"]),
            database: database.to_owned(),
        }
    }

    fn forge(&self, what: &str, request: &str) -> String {
        let request = CertificateRequest::from_pem(request).unwrap();
        let other = NodeKey::make().unwrap().request_pem().unwrap();
        let other = CertificateRequest::from_pem(&other).unwrap();
        let stranger = Authority::make(&self.cluster).unwrap();
        let sign = |authority: &Authority, request: &CertificateRequest, node: &str| {
            authority.sign(request, node, &self.cluster).unwrap()
        };
        let signed = match what {
            "name" => sign(&self.authority, &request, &self.own),
            "key" => sign(&self.authority, &other, &self.asker),
            "authority" => sign(&stranger, &request, &self.asker),
            "not noted" => return sign(&self.authority, &request, &self.asker).pem,
            _ => return "no certificate".to_owned(),
        };
        // Every node can write the catalog.
        Postgres::shared().sql(
            &self.database,
            &format!(
                "INSERT INTO node_certificate (fingerprint, node, issued_at, expires_at) SELECT \
                 '{}', node, issued_at, expires_at FROM node_certificate WHERE node = '{}' LIMIT 1",
                signed.fingerprint, self.asker
            ),
        );
        signed.pem
    }
}

#[test]
fn a_forged_renewal_is_passed_over() {
    let server = Postgres::shared();
    let url = server.database();
    let (one, _agent1) = first_node(&url);
    // It is asked before node1, which has the authority's key.
    let (bad, agent) = joined(&one, "bad");
    let (two, _agent2) = joined(&one, "node2");
    let bad_address = address(&one, "bad");
    agent.kill();
    for what in ["name", "key", "authority", "not noted", "nonsense"] {
        let forger = Arc::new(Forger::of(&one, &bad, &two, database_of(&url)));
        let answer = move |axum::Json(asked): axum::Json<Value>| {
            let forged = forger.forge(what, asked["request"].as_str().unwrap());
            async move { axum::Json(serde_json::json!({"certificate": forged})) }
        };
        let router = axum::Router::new();
        let router = router.route("/v1/cluster/renew", axum::routing::post(answer));
        let _hostile = Hostile::start(&tls_of(&bad), &bad_address, router);
        let old = tls_of(&two);
        let renewed = two.json(&["cluster", "renew", "--force"]);
        assert_eq!(renewed["renewed"], true, "{what}: {renewed}");
        assert_ne!(tls_of(&two)["certificate"], old["certificate"], "{what}");
        assert_eq!(tls_of(&two)["authority"], old["authority"], "{what}");
        backup(&two, &["--node-timeout", "5"]);
    }
}
