//! Who may speak as a node: the authority's certificate, tokens to join by, certificates of nodes.
//!
//! Nothing here is secret: of a token there is a hash, of keys nothing at all.

use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::NodeId;
use crate::node::{self, NewNode};
use crate::open::Catalog;
use crate::row::Fields;
use crate::setting;
use crate::sql::{Session, query};
use crate::timestamp;

/// Setting that holds the certificate of the cluster's authority, PEM.
const AUTHORITY: &str = "cluster.authority";

/// What a certificate of a node is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// It is this node's, and the node is in the cluster.
    Valid(NodeId),
    /// It was taken back, has ended, or its node is gone.
    Revoked,
    /// Nothing is known of it.
    Unknown,
}

impl Catalog {
    /// The certificate of the cluster's authority (PEM), if it has one.
    pub async fn authority(&self) -> Result<Option<String>> {
        self.setting(AUTHORITY).await
    }

    /// Keeps the certificate of a new authority, unless there is one already; which one counts.
    pub async fn keep_authority(&self, pem: &str) -> Result<String> {
        let mut write = self.write().await?;
        if let Some(kept) = setting::get(&mut write, AUTHORITY).await? {
            return Ok(kept);
        }
        setting::set(&mut write, AUTHORITY, pem).await?;
        self.commit(write).await?;
        Ok(pem.to_owned())
    }

    /// Puts the certificate of a new authority in the place of a lost one's, and notes the first that it
    /// signed, of `node`. No certificate that the old one signed counts any more. [`Error::NodeRemoved`] if
    /// `node` is none, by now.
    pub async fn replace_authority(
        &self,
        pem: &str,
        node: &NodeId,
        certificate: (&str, OffsetDateTime),
    ) -> Result<()> {
        let mut write = self.write().await?;
        if !is_member(&mut write, node).await? {
            return Err(Error::NodeRemoved);
        }
        setting::set(&mut write, AUTHORITY, pem).await?;
        query("UPDATE node_certificate SET revoked_at = $1 WHERE revoked_at IS NULL")
            .bind(timestamp::to_text(timestamp::now()))
            .execute(&mut write)
            .await
            .map_err(database("revoke certificates"))?;
        put_certificate(&mut write, node, certificate).await?;
        self.commit(write).await
    }

    /// Notes a token that may be used once until it expires. Expired ones are forgotten.
    pub async fn add_token(&self, hash: &str, expires_at: OffsetDateTime) -> Result<()> {
        let mut write = self.write().await?;
        let now = timestamp::to_text(timestamp::now());
        query("DELETE FROM join_token WHERE expires_at < $1")
            .bind(&now)
            .execute(&mut write)
            .await
            .map_err(database("forget old tokens"))?;
        query("INSERT INTO join_token (hash, created_at, expires_at) VALUES ($1, $2, $3)")
            .bind(hash)
            .bind(&now)
            .bind(timestamp::to_text(expires_at))
            .execute(&mut write)
            .await
            .map_err(database("add a token"))?;
        self.commit(write).await
    }

    /// Uses a token for a key, and registers the node that it lets in, in one transaction. The same
    /// key may come again for the same node until the token expires, since its answer may have been
    /// lost, but not once the node was removed; another key or node may not. `certificate` is its fingerprint and its end.
    pub async fn use_token(
        &self,
        hash: &str,
        key: &str,
        node: &NewNode,
        certificate: (&str, OffsetDateTime),
    ) -> Result<()> {
        let mut write = self.write().await?;
        let user = format!("{key} {}", node.id);
        match used_by(&mut write, hash).await? {
            Some(before) if before == user && has_certificate(&mut write, &node.id).await? => {}
            Some(_) => return Err(Error::Token),
            // A node that is in the cluster keeps its identity from whoever else holds a token.
            None if has_certificate(&mut write, &node.id).await? => {
                return Err(Error::NodeHasCertificate {
                    name: node.name.clone(),
                });
            }
            None => {}
        }
        query("UPDATE join_token SET used_at = $2, used_by = $3 WHERE hash = $1")
            .bind(hash)
            .bind(timestamp::to_text(timestamp::now()))
            .bind(&user)
            .execute(&mut write)
            .await
            .map_err(database("use a token"))?;
        put_certificate(&mut write, &node.id, certificate).await?;
        node::put(&mut write, node).await?;
        self.commit(write).await
    }

    /// Notes a certificate that a node was given; [`Error::NodeRemoved`] if it is none, by now.
    pub async fn add_certificate(
        &self,
        node: &NodeId,
        certificate: (&str, OffsetDateTime),
    ) -> Result<()> {
        let mut write = self.write().await?;
        if !is_member(&mut write, node).await? {
            return Err(Error::NodeRemoved);
        }
        put_certificate(&mut write, node, certificate).await?;
        self.commit(write).await
    }

    /// What a certificate is worth.
    pub async fn certificate(&self, fingerprint: &str) -> Result<CertificateState> {
        let mut read = self.read().await?;
        let row = query(
            "SELECT c.node AS node, c.expires_at AS expires_at, c.revoked_at AS revoked_at, \
             n.id AS member FROM node_certificate c LEFT JOIN node n ON n.id = c.node \
             WHERE c.fingerprint = $1",
        )
        .bind(fingerprint)
        .fetch_optional(&mut read)
        .await
        .map_err(database("look for a certificate"))?;
        let Some(row) = row else {
            return Ok(CertificateState::Unknown);
        };
        let fields = Fields::new("node_certificate", &row);
        let counts = fields.optional_time("revoked_at")?.is_none()
            && fields.time("expires_at")? > timestamp::now()
            && fields.optional_text("member")?.is_some();
        Ok(match counts {
            true => CertificateState::Valid(fields.parse("node")?),
            false => CertificateState::Revoked,
        })
    }

    /// When a certificate that counts ends; none where it does not count.
    pub async fn certificate_end(&self, fingerprint: &str) -> Result<Option<OffsetDateTime>> {
        let mut read = self.read().await?;
        let row = query(
            "SELECT expires_at FROM node_certificate WHERE fingerprint = $1 AND revoked_at IS NULL",
        )
        .bind(fingerprint)
        .fetch_optional(&mut read)
        .await
        .map_err(database("look for a certificate"))?;
        row.map(|row| Fields::new("node_certificate", &row).time("expires_at"))
            .transpose()
    }
}

/// The key that a token was used for; [`Error::Token`] where there is none that still holds.
async fn used_by(write: &mut Session, hash: &str) -> Result<Option<String>> {
    let row = query("SELECT used_by FROM join_token WHERE hash = $1 AND expires_at > $2")
        .bind(hash)
        .bind(timestamp::to_text(timestamp::now()))
        .fetch_optional(write)
        .await
        .map_err(database("look for a token"))?;
    match row {
        None => Err(Error::Token),
        Some(row) => Fields::new("join_token", &row).optional_text("used_by"),
    }
}

/// Takes the certificates of a node back.
pub(crate) async fn revoke(write: &mut Session, node: &NodeId) -> Result<()> {
    query("UPDATE node_certificate SET revoked_at = $2 WHERE node = $1 AND revoked_at IS NULL")
        .bind(node.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .execute(write)
        .await
        .map_err(database("revoke certificates"))?;
    Ok(())
}

/// Whether a node was removed, and not let in again. One that is there is not removed, whatever its
/// certificates are worth: a new authority may have ended them.
pub(crate) async fn was_removed(write: &mut Session, node: &NodeId) -> Result<bool> {
    if is_member(write, node).await? {
        return Ok(false);
    }
    let row = query("SELECT fingerprint FROM node_certificate WHERE node = $1")
        .bind(node.as_str())
        .fetch_optional(write)
        .await
        .map_err(database("look for certificates"))?;
    Ok(row.is_some())
}

async fn is_member(write: &mut Session, node: &NodeId) -> Result<bool> {
    let row = query("SELECT id FROM node WHERE id = $1")
        .bind(node.as_str())
        .fetch_optional(write)
        .await
        .map_err(database("look for a node"))?;
    Ok(row.is_some())
}

async fn has_certificate(write: &mut Session, node: &NodeId) -> Result<bool> {
    let row = query(
        "SELECT fingerprint FROM node_certificate WHERE node = $1 AND revoked_at IS NULL \
         AND expires_at > $2",
    )
    .bind(node.as_str())
    .bind(timestamp::to_text(timestamp::now()))
    .fetch_optional(write)
    .await
    .map_err(database("look for certificates"))?;
    Ok(row.is_some())
}

async fn put_certificate(
    write: &mut Session,
    node: &NodeId,
    (fingerprint, expires_at): (&str, OffsetDateTime),
) -> Result<()> {
    query(
        "INSERT INTO node_certificate (fingerprint, node, issued_at, expires_at) \
         VALUES ($1, $2, $3, $4)",
    )
    .bind(fingerprint)
    .bind(node.as_str())
    .bind(timestamp::to_text(timestamp::now()))
    .bind(timestamp::to_text(expires_at))
    .execute(write)
    .await
    .map_err(database("note a certificate"))?;
    Ok(())
}
