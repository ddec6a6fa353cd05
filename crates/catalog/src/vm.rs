//! The VM management table: every guest and every twin, how to reach it, and whether it must be
//! resumed.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::disk::{self, Disk, InspectedDisk};
use crate::error::{Error, Result, database};
use crate::id::{NodeId, VmId};
use crate::job;
use crate::open::Catalog;
use crate::row::{Fields, stored_count};
use crate::sql::{Row, Transaction, query};
use crate::text_enum::text_enum;
use crate::timestamp;

text_enum!(
    /// How a VM is reached.
    ConnectionKind {
        /// By a QMP socket; the address is its path.
        Qmp = "qmp",
        /// By libvirt; the address is the connection's URI.
        Libvirt = "libvirt",
    }
);

text_enum!(
    /// What a VM is to us.
    VmRole {
        /// A working VM of the user.
        Guest = "guest",
        /// A duplicate that we made.
        Twin = "twin",
    }
);

text_enum!(
    /// Whether a VM runs.
    VmState {
        /// Its CPUs run.
        Running = "running",
        /// It is off.
        Stopped = "stopped",
        /// Its CPUs stand still.
        Paused = "paused",
        /// Nobody has asked the hypervisor yet.
        Unknown = "unknown",
    }
);

/// How a VM is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// By what.
    pub kind: ConnectionKind,
    /// Where: a socket's path or a URI.
    pub address: String,
}

/// A row of the VM management table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name, which no other VM of the catalog has.
    pub name: String,
    /// How it is reached.
    pub connection: Connection,
    /// Guest or twin.
    pub role: VmRole,
    /// The guest of a twin, as long as the catalog holds it.
    pub twin_of: Option<VmId>,
    /// The node of a cluster that it is on; none: the catalog is of one host, or it is on no node.
    #[serde(rename = "node_id", default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Whether it runs, as far as we know.
    pub state: VmState,
    /// True from before we pause it until it was resumed.
    pub resume_flag: bool,
    /// Size of its memory.
    pub memory_bytes: Option<u64>,
    /// What the last inspection reported; its shape is not the catalog's business.
    pub machine: Option<Value>,
    /// What the user set for it; its shape is not the catalog's business.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Value>,
    /// Its virtual disks, as of the last inspection.
    pub disks: Vec<Disk>,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub added_at: OffsetDateTime,
    /// When it was inspected last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub seen_at: Option<OffsetDateTime>,
}

/// A VM to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    /// The UUID that its hypervisor gave it; if there is none, one is made.
    pub id: Option<VmId>,
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub connection: Connection,
    /// Guest or twin.
    pub role: VmRole,
    /// The guest of a twin.
    pub twin_of: Option<VmId>,
    /// The node of a cluster that it is on.
    pub node: Option<NodeId>,
}

/// What an inspection of a VM found.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// Whether it runs.
    pub state: VmState,
    /// Size of its memory.
    pub memory_bytes: Option<u64>,
    /// Whatever else the hypervisor reported.
    pub machine: Value,
    /// All its disks; those the catalog knew before and that are not here any more are dropped.
    pub disks: Vec<InspectedDisk>,
}

impl Catalog {
    /// Every VM, by name.
    pub async fn vms(&self) -> Result<Vec<Vm>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM vm")
            .fetch_all(&mut read)
            .await
            .map_err(database("list VMs"))?;
        let mut disks = disk::all(&mut read).await?;
        let with_disks = |row| {
            let mut vm = from_row(row)?;
            vm.disks = disks.remove(&vm.id).unwrap_or_default();
            Ok(vm)
        };
        let mut vms = rows.iter().map(with_disks).collect::<Result<Vec<Vm>>>()?;
        // Not by the database, whose order of names depends on its locale.
        vms.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(vms)
    }

    /// The VM of this name, or [`Error::NoVm`].
    pub async fn vm_by_name(&self, name: &str) -> Result<Vm> {
        self.find_vm("SELECT * FROM vm WHERE name = $1", name).await
    }

    /// The VM of this id, or [`Error::NoVm`].
    pub async fn vm(&self, id: &VmId) -> Result<Vm> {
        self.find_vm("SELECT * FROM vm WHERE id = $1", id.as_str())
            .await
    }

    async fn find_vm(&self, sql: &'static str, key: &str) -> Result<Vm> {
        let mut read = self.read().await?;
        let row = query(sql)
            .bind(key)
            .fetch_optional(&mut read)
            .await
            .map_err(database("find a VM"))?;
        let mut vm = from_row(&row.ok_or_else(|| Error::NoVm {
            name: key.to_owned(),
        })?)?;
        vm.disks = disk::of_vm(&mut read, &vm.id).await?;
        Ok(vm)
    }

    /// Adds a VM; its state is unknown until it is inspected. [`Error::Exists`] if the name or
    /// the id is taken.
    pub async fn add_vm(&self, new: NewVm) -> Result<VmId> {
        check_name(&new.name)?;
        let id = new.id.map_or_else(VmId::random, Ok)?;
        let mut write = self.write().await?;
        let inserted = query(
            "INSERT INTO vm (id, name, connection_kind, connection_address, role, twin_of, state, \
             resume_flag, added_at, node) VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE, $8, $9)",
        )
        .bind(id.as_str())
        .bind(&new.name)
        .bind(new.connection.kind.as_str())
        .bind(&new.connection.address)
        .bind(new.role.as_str())
        .bind(new.twin_of.as_ref().map(VmId::as_str))
        .bind(VmState::Unknown.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .bind(new.node.as_ref().map(NodeId::as_str))
        .execute(&mut write)
        .await;
        match inserted {
            Ok(_) => self.commit(write).await.map(|()| id),
            Err(error) if is(&error, sqlx::error::ErrorKind::UniqueViolation) => {
                Err(Error::Exists { name: new.name })
            }
            Err(error) if is(&error, sqlx::error::ErrorKind::ForeignKeyViolation) => {
                Err(Error::NoVm {
                    name: new.twin_of.map(String::from).unwrap_or_default(),
                })
            }
            Err(error) => Err(database("add a VM")(error)),
        }
    }

    /// Removes a VM and its disks. Refused while a job works on it or was cut off on it; jobs and
    /// snapshots of it stay.
    pub async fn remove_vm(&self, id: &VmId) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        job::refuse_if_held(&mut write, id, |_| true).await?;
        query("DELETE FROM vm WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut write)
            .await
            .map_err(database("remove a VM"))?;
        self.commit(write).await
    }

    /// Records what an inspection found; the disks are replaced as a whole. A disk that keeps its
    /// id keeps the record of its switch. The resume flag is not touched.
    pub async fn update_inspection(&self, id: &VmId, found: Inspection) -> Result<()> {
        let memory = found
            .memory_bytes
            .map(|bytes| stored_count("memory size", bytes))
            .transpose()?;
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query(
            "UPDATE vm SET state = $2, memory_bytes = $3, machine = $4, seen_at = $5 WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(found.state.as_str())
        .bind(memory)
        .bind(found.machine.to_string())
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("record an inspection"))?;
        disk::replace(&mut write, id, &found.disks).await?;
        self.commit(write).await
    }

    /// Sets or clears the mark "we paused it, so it must be resumed". On disk when this returns.
    /// [`Catalog::record_pause`] does this together with the journal.
    pub async fn set_resume_flag(&self, id: &VmId, flag: bool) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query("UPDATE vm SET resume_flag = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(flag)
            .execute(&mut write)
            .await
            .map_err(database("set a resume flag"))?;
        self.commit(write).await
    }

    /// Records what the user set for a VM, in place of what was set before.
    pub async fn set_settings(&self, id: &VmId, settings: Option<&Value>) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query("UPDATE vm SET settings = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(settings.map(Value::to_string))
            .execute(&mut write)
            .await
            .map_err(database("record a VM's settings"))?;
        self.commit(write).await
    }

    /// Records that a VM is reached in another way from now on.
    pub async fn set_connection(&self, id: &VmId, connection: &Connection) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query("UPDATE vm SET connection_kind = $2, connection_address = $3 WHERE id = $1")
            .bind(id.as_str())
            .bind(connection.kind.as_str())
            .bind(&connection.address)
            .execute(&mut write)
            .await
            .map_err(database("record a VM's connection"))?;
        self.commit(write).await
    }

    /// Records on which node of the cluster a VM is from now on.
    pub async fn set_node(&self, id: &VmId, node: Option<&NodeId>) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query("UPDATE vm SET node = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(node.map(NodeId::as_str))
            .execute(&mut write)
            .await
            .map_err(database("record a VM's node"))?;
        self.commit(write).await
    }

    /// Records that a VM is on this node no more, and is off. Returns `false` if it is another's by
    /// now, whose row is left alone.
    pub async fn leave_node(&self, id: &VmId, node: &NodeId) -> Result<bool> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        let left = query("UPDATE vm SET node = NULL, state = $3 WHERE id = $1 AND node = $2")
            .bind(id.as_str())
            .bind(node.as_str())
            .bind(VmState::Stopped.as_str())
            .execute(&mut write)
            .await
            .map_err(database("record that a VM left a node"))?;
        self.commit(write).await?;
        Ok(left.rows_affected() > 0)
    }

    /// Gives all VMs that are on no node to this one: those of the host whose catalog became the
    /// cluster's.
    pub async fn give_vms_to(&self, node: &NodeId) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE vm SET node = $1 WHERE node IS NULL")
            .bind(node.as_str())
            .execute(&mut write)
            .await
            .map_err(database("record the node of VMs"))?;
        self.commit(write).await
    }

    /// Gives a VM another name. [`Error::Exists`] if it is taken.
    pub async fn rename_vm(&self, id: &VmId, name: &str) -> Result<()> {
        check_name(name)?;
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        let renamed = query("UPDATE vm SET name = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(name)
            .execute(&mut write)
            .await;
        match renamed {
            Ok(_) => self.commit(write).await,
            Err(error) if is(&error, sqlx::error::ErrorKind::UniqueViolation) => {
                Err(Error::Exists {
                    name: name.to_owned(),
                })
            }
            Err(error) => Err(database("rename a VM")(error)),
        }
    }

    /// Records whether a VM runs.
    pub async fn set_state(&self, id: &VmId, state: VmState) -> Result<()> {
        let mut write = self.write().await?;
        lock(&mut write, id).await?;
        query("UPDATE vm SET state = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(state.as_str())
            .execute(&mut write)
            .await
            .map_err(database("record a VM's state"))?;
        self.commit(write).await
    }
}

/// Makes sure that the VM exists, and locks its row where the database locks rows: whoever else
/// wants this VM waits for our commit.
pub(crate) async fn lock(write: &mut Transaction, id: &VmId) -> Result<()> {
    let touched = query("UPDATE vm SET name = name WHERE id = $1")
        .bind(id.as_str())
        .execute(write)
        .await
        .map_err(database("lock a VM's row"))?;
    match touched.rows_affected() {
        0 => Err(Error::NoVm {
            name: id.to_string(),
        }),
        _ => Ok(()),
    }
}

fn from_row(row: &Row) -> Result<Vm> {
    let fields = Fields::new("vm", row);
    Ok(Vm {
        id: fields.parse("id")?,
        name: fields.text("name")?,
        connection: Connection {
            kind: fields.parse("connection_kind")?,
            address: fields.text("connection_address")?,
        },
        role: fields.parse("role")?,
        twin_of: fields.optional_parse("twin_of")?,
        node: fields.optional_parse("node")?,
        state: fields.parse("state")?,
        resume_flag: fields.flag("resume_flag")?,
        memory_bytes: fields.optional_count("memory_bytes")?,
        machine: fields.optional_json("machine")?,
        settings: fields.optional_json("settings")?,
        disks: Vec::new(),
        added_at: fields.time("added_at")?,
        seen_at: fields.optional_time("seen_at")?,
    })
}

fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.contains('/') || name.chars().any(char::is_control) {
        "it holds a slash or a control character"
    } else {
        return Ok(());
    };
    Err(Error::Invalid {
        what: "the name of the VM",
        why: why.to_owned(),
    })
}

fn is(error: &sqlx::Error, kind: sqlx::error::ErrorKind) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.kind() == kind)
}
