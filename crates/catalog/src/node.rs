//! The cluster that the catalog belongs to, its nodes, and the last configuration each one gave.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::NodeId;
use crate::job;
use crate::membership;
use crate::open::Catalog;
use crate::row::Fields;
use crate::setting;
use crate::sql::{Row, Session, query};
use crate::timestamp;

/// Settings that hold the cluster.
const CLUSTER_ID: &str = "cluster.id";
const CLUSTER_NAME: &str = "cluster.name";

/// The cluster that a catalog belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id, a UUID.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name, which no other node has.
    pub name: String,
    /// The name of its host.
    pub host: String,
    /// The version of the program that it ran last.
    pub version: String,
    /// Where its agent answers, `HOST:PORT`, if it ever had one.
    #[serde(default)]
    pub address: Option<String>,
    /// When it joined.
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
    /// When it was heard of last.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    /// Of when its last known configuration is.
    #[serde(with = "time::serde::rfc3339::option")]
    pub configuration_at: Option<OffsetDateTime>,
}

/// A node that is to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The name of its host.
    pub host: String,
    /// The version of the program that it runs.
    pub version: String,
    /// Where its agent answers, `HOST:PORT`; `None` leaves it as it is.
    pub address: Option<String>,
}

impl Catalog {
    /// The cluster that the catalog belongs to, if any.
    pub async fn cluster(&self) -> Result<Option<Cluster>> {
        let mut settings = self.settings().await?;
        let id = settings.remove(CLUSTER_ID);
        let name = settings.remove(CLUSTER_NAME);
        Ok(id.zip(name).map(|(id, name)| Cluster { id, name }))
    }

    /// Makes the catalog that of a cluster. May be repeated with the same name.
    pub async fn create_cluster(&self, name: &str) -> Result<Cluster> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Error::Invalid {
                what: "the name of the cluster",
                why: "it is empty, or holds a control character".to_owned(),
            });
        }
        let mut write = self.write().await?;
        let stored = setting::get(&mut write, CLUSTER_NAME).await?;
        match stored {
            Some(stored) if stored != name => return Err(Error::OtherCluster { name: stored }),
            Some(_) => {}
            None => {
                let id = NodeId::random()?;
                setting::set(&mut write, CLUSTER_ID, id.as_str()).await?;
                setting::set(&mut write, CLUSTER_NAME, name).await?;
            }
        }
        self.commit(write).await?;
        self.cluster().await?.ok_or(Error::NoCluster)
    }

    /// Adds a node, or notes that it is there under this name, host, version and address.
    /// [`Error::NodeExists`] if another node has the name, [`Error::NodeRemoved`] if this one was
    /// removed.
    pub async fn join_node(&self, node: &NewNode) -> Result<()> {
        let mut write = self.write().await?;
        if membership::was_removed(&mut write, &node.id).await? {
            return Err(Error::NodeRemoved);
        }
        put(&mut write, node).await?;
        self.commit(write).await
    }

    /// Notes that a node's agent is there, at this address. False if it is no node any more.
    pub async fn see_node(&self, id: &NodeId, address: &str, version: &str) -> Result<bool> {
        let mut write = self.write().await?;
        let touched =
            query("UPDATE node SET seen_at = $2, address = $3, version = $4 WHERE id = $1")
                .bind(id.as_str())
                .bind(timestamp::to_text(timestamp::now()))
                .bind(address)
                .bind(version)
                .execute(&mut write)
                .await
                .map_err(database("note that a node is there"))?;
        self.commit(write).await?;
        Ok(touched.rows_affected() == 1)
    }

    /// Removes a node and its last known configuration, and takes its certificates back; its VMs are
    /// on no node then, and jobs that its host did not finish are ended: returns how many. It is no
    /// error if it is not there.
    pub async fn remove_node(&self, id: &NodeId) -> Result<u64> {
        let mut write = self.write().await?;
        let ended = end_jobs_of(&mut write, id).await?;
        query("DELETE FROM node WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut write)
            .await
            .map_err(database("remove a node"))?;
        query("UPDATE vm SET node = NULL WHERE node = $1")
            .bind(id.as_str())
            .execute(&mut write)
            .await
            .map_err(database("remove a node"))?;
        membership::revoke(&mut write, id).await?;
        self.commit(write).await?;
        Ok(ended)
    }

    /// The nodes, by name.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        list(&mut *self.read().await?).await
    }

    /// Keeps the configuration of a node as its last known one.
    pub async fn keep_configuration(
        &self,
        id: &NodeId,
        xml: &str,
        taken_at: OffsetDateTime,
    ) -> Result<()> {
        let mut write = self.write().await?;
        let touched = query(
            "UPDATE node SET configuration = $2, configuration_at = $3, seen_at = $4 WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(xml)
        .bind(timestamp::to_text(taken_at))
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("keep the configuration of a node"))?;
        match touched.rows_affected() {
            0 => Err(Error::NoNode {
                node: id.to_string(),
            }),
            _ => self.commit(write).await,
        }
    }

    /// The last configuration that a node gave, if it ever gave one.
    pub async fn configuration(&self, id: &NodeId) -> Result<Option<String>> {
        let mut read = self.read().await?;
        let row = query("SELECT configuration FROM node WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut read)
            .await
            .map_err(database("read the configuration of a node"))?;
        match row {
            None => Ok(None),
            Some(row) => Fields::new("node", &row).optional_text("configuration"),
        }
    }
}

/// Ends what the host of a node that is being removed has not finished; how many jobs.
async fn end_jobs_of(write: &mut Session, id: &NodeId) -> Result<u64> {
    let nodes = list(write).await?;
    let Some(node) = nodes.iter().find(|node| node.id == *id) else {
        return Ok(0);
    };
    // Two nodes of one host are told apart by nothing that a job says.
    if nodes.iter().any(|n| n.id != *id && n.host == node.host) {
        return Ok(0);
    }
    query("UPDATE vm SET resume_flag = FALSE WHERE node = $1")
        .bind(id.as_str())
        .execute(write)
        .await
        .map_err(database("remove a node"))?;
    let why = format!(
        "its node {} was removed from the cluster before it was finished; nobody undoes what it began \
         there",
        node.name
    );
    job::end_those_of(write, &node.host, &why).await
}

/// The nodes, by name.
pub(crate) async fn list(session: &mut Session) -> Result<Vec<Node>> {
    let rows = query(
        "SELECT id, name, host, version, address, joined_at, seen_at, configuration_at FROM node",
    )
    .fetch_all(session)
    .await
    .map_err(database("list nodes"))?;
    let mut nodes = rows.iter().map(from_row).collect::<Result<Vec<_>>>()?;
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(nodes)
}

/// Adds a node, or changes what is noted of it.
pub(crate) async fn put(write: &mut Session, node: &NewNode) -> Result<()> {
    if setting::get(write, CLUSTER_ID).await?.is_none() {
        return Err(Error::NoCluster);
    }
    let joined = query(
        "INSERT INTO node (id, name, host, version, address, joined_at, seen_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (id) DO UPDATE SET \
         name = excluded.name, host = excluded.host, version = excluded.version, \
         address = COALESCE(excluded.address, node.address), seen_at = excluded.seen_at",
    )
    .bind(node.id.as_str())
    .bind(&node.name)
    .bind(&node.host)
    .bind(&node.version)
    .bind(node.address.clone())
    .bind(timestamp::to_text(timestamp::now()))
    .execute(write)
    .await;
    match joined {
        Ok(_) => Ok(()),
        Err(error)
            if error
                .as_database_error()
                .is_some_and(|e| e.is_unique_violation()) =>
        {
            Err(Error::NodeExists {
                name: node.name.clone(),
            })
        }
        Err(error) => Err(database("add a node")(error)),
    }
}

fn from_row(row: &Row) -> Result<Node> {
    let fields = Fields::new("node", row);
    Ok(Node {
        id: fields.parse("id")?,
        name: fields.text("name")?,
        host: fields.text("host")?,
        version: fields.text("version")?,
        address: fields.optional_text("address")?,
        joined_at: fields.time("joined_at")?,
        seen_at: fields.time("seen_at")?,
        configuration_at: fields.optional_time("configuration_at")?,
    })
}
