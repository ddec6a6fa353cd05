//! Many agents in one process, for `bench/cluster`: each has a certificate and a port of its own,
//! speaks the real protocol, and answers with a document made of a template.
//!
//! ```text
//! agents AUTHORITY.json CLUSTER COUNT TEMPLATE.xml DELAY_MS
//! ```
//! `@NAME@` and `@ID@` in the template become the node's. Prints a line `NAME ID ADDRESS
//! FINGERPRINT` for each, then `ready`, and serves until it is killed.
#![allow(
    clippy::unwrap_used,
    reason = "a program of a benchmark ends where something is wrong"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use serde::Deserialize;
use vmtwin_server::{
    Authority, CertificateRequest, Credentials, Limits, Listener, NodeKey, PeerCertificate,
};

#[derive(Deserialize)]
struct KeptAuthority {
    certificate: String,
    key: String,
}

#[derive(Clone)]
struct Node {
    document: Bytes,
    delay: Duration,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, authority, cluster, count, template, delay_ms] = &arguments[..] else {
        eprintln!("agents AUTHORITY.json CLUSTER COUNT TEMPLATE.xml DELAY_MS");
        std::process::exit(2);
    };
    let kept = std::fs::read(authority).unwrap();
    let kept: KeptAuthority = serde_json::from_slice(&kept).unwrap();
    let authority = Authority::from_pem(&kept.certificate, &kept.key).unwrap();
    let template = std::fs::read_to_string(template).unwrap();
    let delay = Duration::from_millis(delay_ms.parse().unwrap());
    for number in 0..count.parse::<u32>().unwrap() {
        let name = format!("sim{number:04}");
        let id = format!("00000000-0000-4000-8000-{number:012x}");
        let key = NodeKey::make().unwrap();
        let request = CertificateRequest::from_pem(&key.request_pem().unwrap()).unwrap();
        let signed = authority.sign(&request, &id, cluster).unwrap();
        let credentials = Credentials {
            certificate: signed.pem.clone(),
            key: key.to_pem(),
            authority: authority.certificate_pem().to_owned(),
        };
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(any_port, &credentials, Limits::default()).await;
        let listener = listener.unwrap();
        let address = listener.address().unwrap();
        println!("{name} {id} {address} {}", signed.fingerprint);
        let document = template.replace("@NAME@", &name).replace("@ID@", &id);
        let node = Node {
            document: document.into(),
            delay,
        };
        let router = Router::new()
            .route("/v1/node/config", get(config))
            .route("/v1/node/secrets", post(secrets))
            .with_state(node);
        tokio::spawn(listener.serve(router, std::future::pending()));
    }
    println!("ready");
    std::future::pending::<()>().await;
}

/// Sealed secrets are bytes that the asker cannot read; these are none.
async fn secrets(Extension(peer): Extension<PeerCertificate>) -> Response {
    if peer.0.is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let sealed = "x0Z9".repeat(8 << 10);
    let held = r#"{"values":5,"passwords":20,"files":4}"#;
    format!(r#"{{"sealed":"{sealed}","held":{held},"warnings":[]}}"#).into_response()
}

async fn config(State(node): State<Node>, Extension(peer): Extension<PeerCertificate>) -> Response {
    if peer.0.is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    tokio::time::sleep(node.delay).await;
    let kind = [(header::CONTENT_TYPE, "application/xml")];
    (kind, node.document).into_response()
}
