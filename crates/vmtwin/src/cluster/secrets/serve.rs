//! `POST /v1/node/secrets`: this node's secrets, sealed here for the keys in the request. Who asks can
//! open them, so it must be a node that may restore this one, and so may do here what root may.

use std::sync::Arc;

use anyhow::Result;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use vmtwin_cluster::manifest::HeldSecrets;
use vmtwin_server::Problem;

use super::super::agent::{Shared, blocking};
use super::super::restoring::require_permission;
use super::{Recipients, collect};

pub(in crate::cluster) const PATH: &str = "/v1/node/secrets";
/// Most of an answer, bytes: what an entry may have, in base64.
pub(in crate::cluster) const MAX_GIVEN_BYTES: u64 = 24 << 20;
/// Most of a request, bytes: some 1,000 keys.
const MAX_WANTED_BYTES: usize = 64 << 10;

/// What a node is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct Wanted {
    /// Public keys of age.
    pub(in crate::cluster) recipients: Vec<String>,
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct Given {
    /// In base64.
    sealed: String,
    pub(in crate::cluster) held: HeldSecrets,
    pub(in crate::cluster) warnings: Vec<String>,
}

impl Given {
    /// This node's own.
    pub(in crate::cluster) fn of_this_node(
        home: &crate::home::Home,
        node: &str,
        recipients: &Recipients,
    ) -> Result<Given> {
        let (secrets, warnings) = collect(home, node)?;
        Ok(Given {
            sealed: BASE64_STANDARD.encode(recipients.seal(&secrets)?),
            held: secrets.held(),
            warnings,
        })
    }

    pub(in crate::cluster) fn sealed(&self) -> Result<Vec<u8>> {
        Ok(BASE64_STANDARD.decode(&self.sealed)?)
    }
}

/// Requests of nodes that may restore this one.
pub(in crate::cluster) fn routes(agent: &Shared) -> Router<Shared> {
    Router::new()
        .route(PATH, post(give))
        .layer(DefaultBodyLimit::max(MAX_WANTED_BYTES))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(agent),
            require_permission,
        ))
}

async fn give(
    State(agent): State<Shared>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<Given>, Problem> {
    let recipients: Result<Recipients, String> = wanted.recipients.join(",").parse();
    let recipients = recipients.map_err(|why| Problem::new(StatusCode::BAD_REQUEST, why))?;
    tracing::warn!(%recipients, "this node's secrets are given, sealed");
    let given = blocking(&agent, move |agent| {
        crate::failpoint::pass("agent-secrets")?;
        Given::of_this_node(&agent.home, agent.identity.id.as_str(), &recipients)
    });
    given.await.map(Json).map_err(|error| {
        tracing::error!("{error:#}");
        let detail = format!("the secrets cannot be taken: {error:#}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    })
}
