//! The backup of a cluster's configuration, and the list of backups.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use vmtwin_catalog::Cluster;
use vmtwin_cluster::manifest::{self, Database, FORMAT, Manifest, Node, NodeState};
use vmtwin_cluster::{Archive, EntryPath, NodeDocument, NodeName, Parts};
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::undo::Undo;
use vmtwin_hypervisor::undo_guard::UndoGuard;

use super::apply::wire::clean;
use super::ask;
use super::cli::ClusterBackupArgs;
use super::node::{Collection, Identity, collect};
use super::secrets::{self, Sealing};
use crate::db::Db;
use crate::failpoint::pass;
use crate::home::Home;
use crate::ui::Ui;

/// Longest time that a backup may take.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Most warnings of one node about its secrets.
const MAX_WARNINGS: usize = 100;

/// What a backup did.
#[derive(Debug, Serialize)]
pub(crate) struct BackupReport {
    /// The file.
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) cluster: manifest::Cluster,
    pub(crate) nodes: Vec<Node>,
    /// Agents that were asked, in the order of their answers.
    pub(crate) asked: Vec<Asked>,
    pub(crate) database: Option<Database>,
    /// Who can open its secrets, if they were asked for.
    pub(crate) sealed: Option<manifest::Sealed>,
    /// Older backups that were removed.
    pub(crate) removed: Vec<PathBuf>,
    pub(crate) warnings: Vec<String>,
}

/// An agent that was asked.
#[derive(Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) node: NodeName,
    pub(crate) seconds: f64,
    pub(crate) tries: u32,
}

/// A backup in a folder.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) cluster: manifest::Cluster,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) time: OffsetDateTime,
    /// Nodes of the cluster.
    pub(crate) nodes: usize,
    /// Those that gave their configuration for this backup.
    pub(crate) collected: usize,
}

/// Backs up this node, the others as they are or were last known, and the database.
pub(crate) fn backup(home: &Home, ui: &Ui, args: &ClusterBackupArgs) -> Result<BackupReport> {
    let sealing = Sealing::of(home, args)?;
    let db = Db::open(home)?;
    let cluster = db
        .run(async |catalog| catalog.cluster().await)?
        .ok_or(vmtwin_catalog::Error::NoCluster)?;
    let time = OffsetDateTime::now_utc();
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => home.cluster_dir()?,
    };
    let mut parts = Parts::new(&home.run_dir()?)?;
    // Removes what was collected, if vmtwin dies.
    let leftover = Undo::DeletePath {
        path: parts.folder().to_owned(),
    };
    let guard = GuardCommand::of_this_program("undo-guard");
    let _guard = UndoGuard::start(&guard, &leftover, LONGEST)?;
    let own = collect(home, &db, false)?;
    // What could not be seen is told as what this node lacks.
    let mut warnings = match own.unseen {
        Some(_) => Vec::new(),
        None => own.warnings.clone(),
    };
    let (nodes, asked) = Collecting {
        home,
        db: &db,
        parts: &mut parts,
        ui,
        warnings: &mut warnings,
        sealing: sealing.as_ref(),
    }
    .run(&own, Duration::from_secs(args.node_timeout))?;
    pass("cluster-collected")?;
    warnings.extend(absence(&nodes, sealing.is_some()));
    let is_missing = |node: &Node| {
        node.state != NodeState::Collected || sealing.is_some() && node.secrets.is_none()
    };
    if args.require_all && nodes.iter().any(is_missing) {
        bail!(
            "not all of every node is of now, and nothing was written: {}",
            warnings.join("; ")
        );
    }
    let database = add_database(&db, &mut parts)?;
    let sealed = sealing.map(|sealing| sealing.finish(&mut parts));
    let sealed = sealed.transpose()?;
    pass("cluster-dumped")?;
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: match sealed {
            Some(_) => manifest::VERSION,
            None => manifest::VERSION_WITHOUT_SECRETS,
        },
        cluster: manifest::Cluster {
            id: cluster.id.clone(),
            name: cluster.name.clone(),
        },
        time,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        coordinator: own.document.name,
        nodes,
        database: Some(database),
        sealed,
        entries: Vec::new(),
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let file = folder.join(file_name(&cluster.name, args.label.as_deref(), time)?);
    let zipped = parts.zip(manifest, &file)?;
    pass("cluster-zipped")?;
    let manifest = zipped.publish()?;
    pass("cluster-published")?;
    // What was published is read back before older backups go.
    Archive::open(&file)?.verify()?;
    let removed = match args.keep {
        Some(keep) => remove_old(
            &folder,
            &file,
            &cluster,
            args.label.as_deref(),
            keep as usize,
        )?,
        None => Vec::new(),
    };
    Ok(BackupReport {
        bytes: std::fs::metadata(&file)?.len(),
        file,
        cluster: manifest.cluster,
        nodes: manifest.nodes,
        asked,
        database: manifest.database,
        sealed: manifest.sealed,
        removed,
        warnings,
    })
}

/// Which nodes are not in a backup as they are now, and why.
fn absence(nodes: &[Node], with_secrets: bool) -> Vec<String> {
    let secrets = match with_secrets {
        true => ", without its secrets",
        false => "",
    };
    let absent = nodes
        .iter()
        .filter(|node| node.state != NodeState::Collected);
    let told = absent.map(|node| {
        let (name, why) = (&node.name, node.error.as_deref().unwrap_or("not asked"));
        match node.as_of {
            Some(as_of) => {
                format!("{name}: {why}; its last known configuration is of {as_of}{secrets}")
            }
            None => format!("{name}: {why}; no configuration is known"),
        }
    });
    told.collect()
}

/// `NAME-20261122T192241.123456Z.zip` or `NAME-LABEL-…`, with what no file's name may hold left out.
fn file_name(cluster: &str, label: Option<&str>, time: OffsetDateTime) -> Result<String> {
    let format =
        format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:6]Z");
    let plain = |c: char| match c.is_ascii_alphanumeric() || c == '-' {
        true => c,
        false => '_',
    };
    let name: String = cluster.chars().map(plain).take(64).collect();
    let label = label.map_or(String::new(), |label| format!("{label}-"));
    Ok(format!("{name}-{label}{}.zip", time.format(&format)?))
}

/// Nodes on their way into the archive.
struct Collecting<'a> {
    home: &'a Home,
    db: &'a Db,
    parts: &'a mut Parts,
    ui: &'a Ui,
    warnings: &'a mut Vec<String>,
    sealing: Option<&'a Sealing>,
}

impl Collecting<'_> {
    /// Puts this node, those whose agents answer, and the last known configuration of the others
    /// into the archive.
    fn run(mut self, own: &Collection, limit: Duration) -> Result<(Vec<Node>, Vec<Asked>)> {
        let rows = self.db.run(async |catalog| catalog.nodes().await)?;
        let client = ask::client(self.home)?;
        let (mut nodes, mut asked, mut to_ask) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            if row.id.as_str() == own.document.id {
                nodes.push(self.add_own(&row, own)?);
            } else if client.is_some() && row.address.is_some() {
                to_ask.push(row);
            } else {
                let why = match row.address {
                    Some(_) => {
                        "not asked: this node has no certificate (vmtwin cluster join TOKEN)"
                    }
                    None => "not asked: it has no agent (vmtwin serve)",
                };
                nodes.push(self.add_last_known(&row, why.to_owned())?);
            }
        }
        if let Some(client) = client {
            pass("cluster-asked")?;
            let asking = ask::Asking {
                client,
                limit,
                scratch: &self.home.run_dir()?,
                recipients: self.sealing.map(|sealing| &sealing.recipients),
                cancel: self.home.cancel(),
            };
            ask::configurations(&asking, &to_ask, |reply| {
                let row = &to_ask[reply.index];
                asked.push(Asked {
                    node: row.name.parse()?,
                    seconds: reply.seconds,
                    tries: reply.tries,
                });
                let node = match reply.given {
                    Ok(given) => self.add_given(row, given, reply.secrets)?,
                    Err(error) => self.add_last_known(row, format!("{error:#}"))?,
                };
                nodes.push(node);
                Ok(())
            })?;
        }
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((nodes, asked))
    }

    fn add_own(&mut self, row: &vmtwin_catalog::Node, own: &Collection) -> Result<Node> {
        if let Some(why) = &own.unseen {
            return self.add_last_known(row, why.clone());
        }
        let xml = own.document.to_xml()?;
        let mut node = collected(row, own.document.taken_at)?;
        let (home, id) = (self.home, &own.document.id);
        let given = self
            .sealing
            .map(|sealing| secrets::Given::of_this_node(home, id, &sealing.recipients));
        self.add_secrets(&mut node, given);
        self.add(node, &mut xml.as_bytes())
    }

    fn add(&mut self, node: Node, xml: &mut dyn Read) -> Result<Node> {
        self.parts.add(EntryPath::Node(node.name.clone()), xml)?;
        let state = match node.state {
            NodeState::Collected => "collected",
            NodeState::LastKnown => "last known",
            NodeState::Missing => "missing",
        };
        self.ui.note(&format!("{}: {state}", node.name));
        Ok(node)
    }

    /// Adds what a node gave of its secrets, or says why they are not there.
    fn add_secrets(&mut self, node: &mut Node, given: Option<Result<secrets::Given>>) {
        let Some(given) = given else { return };
        // What another node gave is its own affair: nothing of it may end the backup of all.
        let path = EntryPath::Secrets(node.name.clone());
        let added = given.and_then(|given| {
            self.parts.add(path, &mut given.sealed()?.as_slice())?;
            Ok(given)
        });
        let given = match added {
            Ok(given) => given,
            Err(error) => {
                let name = &node.name;
                let why = format!("{name}: its secrets are not in the backup: {error:#}");
                return self.warnings.push(why);
            }
        };
        let told = given.warnings.iter().take(MAX_WARNINGS);
        let told = told.map(|told| format!("{}: {}", node.name, clean(told)));
        self.warnings.extend(told);
        node.secrets = Some(given.held);
    }

    fn add_given(
        &mut self,
        row: &vmtwin_catalog::Node,
        mut given: ask::Given,
        secrets: Option<Result<secrets::Given>>,
    ) -> Result<Node> {
        let mut node = collected(row, given.taken_at)?;
        self.add_secrets(&mut node, secrets);
        let node = self.add(node, &mut given.file)?;
        let told = given.warnings.map(|told| format!("{}: {told}", node.name));
        self.warnings.extend(told);
        Ok(node)
    }

    fn add_last_known(&mut self, row: &vmtwin_catalog::Node, why: String) -> Result<Node> {
        let mut node = Node {
            state: NodeState::LastKnown,
            error: Some(why),
            ..collected(row, OffsetDateTime::UNIX_EPOCH)?
        };
        match last_known(self.db, &row.id, &mut node)? {
            Some(xml) => self.add(node, &mut xml.as_bytes()),
            None => {
                (node.state, node.as_of) = (NodeState::Missing, None);
                self.ui.note(&format!("{}: missing", node.name));
                Ok(node)
            }
        }
    }
}

fn collected(row: &vmtwin_catalog::Node, taken_at: OffsetDateTime) -> Result<Node> {
    Ok(Node {
        name: row.name.parse()?,
        id: row.id.to_string(),
        state: NodeState::Collected,
        as_of: Some(taken_at),
        error: None,
        secrets: None,
    })
}

/// The last configuration that a node gave, if it can be read.
fn last_known(db: &Db, id: &vmtwin_catalog::NodeId, node: &mut Node) -> Result<Option<String>> {
    let Some(xml) = db.run(async |catalog| catalog.configuration(id).await)? else {
        return Ok(None);
    };
    match NodeDocument::from_xml(&xml) {
        Ok(document) => {
            node.as_of = Some(document.taken_at);
            Ok(Some(xml))
        }
        Err(error) => {
            node.error = Some(error.to_string());
            Ok(None)
        }
    }
}

fn add_database(db: &Db, parts: &mut Parts) -> Result<Database> {
    let mut part = parts.begin(EntryPath::Database)?;
    let summary = db.dump(&mut part);
    if let Some(error) = part.too_large() {
        return Err(error.into());
    }
    let summary = summary.context("cannot copy the database")?;
    parts.finish(part)?;
    Ok(Database {
        schema: summary.schema,
        rows: summary.rows(),
    })
}

/// The backups in a folder, the newest first; other files are passed over.
pub(crate) fn list(folder: &Path) -> Result<Vec<Listed>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut listed = Vec::new();
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "zip") {
            continue;
        }
        let Ok(archive) = Archive::open(&file) else {
            tracing::warn!(file = %file.display(), "this is no backup of a cluster, or a damaged one");
            continue;
        };
        let manifest = archive.manifest();
        listed.push(Listed {
            bytes: std::fs::metadata(&file)?.len(),
            file,
            cluster: manifest.cluster.clone(),
            time: manifest.time,
            nodes: manifest.nodes.len(),
            collected: manifest.nodes.len() - manifest.absent().count(),
        });
    }
    listed.sort_by(|one, other| (other.time, &other.file).cmp(&(one.time, &one.file)));
    Ok(listed)
}

/// Removes all but this backup, which was read back just now, and the newest others of this cluster
/// that have this label: `keep` in all. By its time this one need not be the newest, as nodes' clocks
/// differ.
pub(super) fn remove_old(
    folder: &Path,
    new: &Path,
    cluster: &Cluster,
    label: Option<&str>,
    keep: usize,
) -> Result<Vec<PathBuf>> {
    let ours = list(folder)?.into_iter().filter(|one| {
        let name = file_name(&one.cluster.name, label, one.time).ok();
        let is_named = one.file.file_name().and_then(|name| name.to_str()) == name.as_deref();
        one.cluster.id == cluster.id && is_named && one.file.file_name() != new.file_name()
    });
    let mut removed = Vec::new();
    for old in ours.skip(keep.saturating_sub(1)) {
        std::fs::remove_file(&old.file)
            .with_context(|| format!("cannot remove {}", old.file.display()))?;
        removed.push(old.file);
    }
    Ok(removed)
}

/// Whose backup a file is; refused if it is not of the cluster that the catalog belongs to.
pub(super) fn refuse_other_cluster(db: &Db, archive: &Archive) -> Result<()> {
    let ours = db.run(async |catalog| catalog.cluster().await)?;
    let theirs = &archive.manifest().cluster;
    match ours {
        Some(ours) if ours.id != theirs.id => bail!(
            "the backup is of the cluster {} ({}), and {} belongs to {} ({}): nothing was changed",
            theirs.name,
            theirs.id,
            db.place(),
            ours.name,
            ours.id
        ),
        _ => Ok(()),
    }
}

/// The node of this host in an archive.
pub(super) fn own_node(home: &Home, archive: &Archive) -> Result<Option<Node>> {
    let Some(own) = Identity::of(home)? else {
        return Ok(None);
    };
    let mut nodes = archive.manifest().nodes.iter();
    Ok(nodes.find(|node| node.id == own.id.to_string()).cloned())
}
