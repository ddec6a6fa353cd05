//! `vmtwin vm …`: the table of guests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_catalog::{Connection, ConnectionKind, NewVm, Vm, VmRole, VmState};
use vmtwin_hypervisor::inspect::inspect;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::qmp::{Qmp, QmpError};

use crate::backup::{CONNECT_TIMEOUT, Cx, update_table};
use crate::cli::VmCommand;
use crate::cluster::place::{Here, Place};
use crate::libvirt::{monitor_of, table};
use crate::twin_args::Settings;
use crate::ui::{bytes, table as in_columns};

/// A guest as the table holds it now.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    vm: Vm,
    /// The name of its node, in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Why QEMU could not be asked just now; the rest is what was last known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<String>,
}

pub(crate) fn run(cx: &Cx<'_>, command: &VmCommand) -> Result<()> {
    match command {
        VmCommand::Add { name, qmp, libvirt } => match (name, qmp, libvirt) {
            (Some(name), Some(qmp), None) => add(cx, name, qmp),
            (Some(name), None, Some(uri)) => {
                let name = table::add_one(cx, uri, name)?;
                show(cx, &name)
            }
            (None, None, Some(uri)) => {
                table::add_all(cx, uri)?;
                list(cx)
            }
            _ => bail!("give a name with --qmp, or --libvirt; see: vmtwin vm add --help"),
        },
        VmCommand::List => list(cx),
        VmCommand::Show { name } => show(cx, name),
        VmCommand::Set {
            name,
            clear,
            also,
            groups,
            twin,
        } => {
            let given = Settings {
                twin: twin.clone(),
                also: also.clone(),
                groups: groups.clone(),
            };
            set(cx, name, *clear, given)
        }
        VmCommand::Remove { name, libvirt } => match (name, libvirt) {
            (Some(name), None) => remove(cx, name),
            (None, Some(uri)) => remove_all(cx, uri),
            _ => bail!("give a name, or --libvirt; see: vmtwin vm remove --help"),
        },
    }
}

fn add(cx: &Cx<'_>, name: &str, socket: &Path) -> Result<()> {
    let socket: PathBuf = std::path::absolute(socket)?;
    let mut qmp =
        Qmp::connect(&socket, CONNECT_TIMEOUT).with_context(|| format!("cannot add {name}"))?;
    let machine = inspect(&mut qmp)?;
    drop(qmp);
    let connection = Connection {
        kind: ConnectionKind::Qmp,
        address: socket.display().to_string(),
    };
    let here = Here::of(cx.home, cx.db)?;
    let new = NewVm {
        id: None,
        name: name.to_owned(),
        connection: connection.clone(),
        role: VmRole::Guest,
        twin_of: None,
        node: here.node().cloned(),
    };
    match cx.db.run(async |c| c.add_vm(new).await) {
        Ok(_) => {}
        Err(vmtwin_catalog::Error::Exists { .. }) if is_added(cx, &here, name, &connection)? => {}
        Err(error) => return Err(error.into()),
    }
    let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
    update_table(cx.db, &vm, &machine)?;
    show(cx, name)
}

/// Whether it is in the table already, as this guest of this host.
fn is_added(cx: &Cx<'_>, here: &Here, name: &str, connection: &Connection) -> Result<bool> {
    let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
    Ok(vm.connection == *connection && here.place(&vm) == Place::Here)
}

fn remove_all(cx: &Cx<'_>, uri: &str) -> Result<()> {
    let names = table::forget(cx, uri)?;
    cx.ui.result(&serde_json::json!({ "removed": names }), || {
        format!(
            "{uri} is not followed any more; removed: {}",
            names.join(", ")
        )
    })
}

fn remove(cx: &Cx<'_>, name: &str) -> Result<()> {
    let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
    table::refuse_if_followed(cx, &vm)?;
    cx.db.run(async |c| c.remove_vm(&vm.id).await)?;
    cx.ui.result(&serde_json::json!({ "removed": name }), || {
        format!("removed {name}")
    })
}

/// What is not given stays as it was set.
fn set(cx: &Cx<'_>, name: &str, clear: bool, given: Settings) -> Result<()> {
    let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
    if !clear && given == Settings::default() {
        bail!("nothing to set; see: vmtwin vm set --help");
    }
    for repository in &given.also {
        cx.home.named_one(repository)?;
    }
    let settings = match clear {
        true => given,
        false => {
            let before = Settings::of(&vm)?;
            let or = |given: Vec<String>, before: Vec<String>| match given.is_empty() {
                true => before,
                false => given,
            };
            Settings {
                twin: given.twin.over(&vm)?,
                also: or(given.also, before.also),
                groups: or(given.groups, before.groups),
            }
        }
    };
    let settings = match settings == Settings::default() {
        true => None,
        false => Some(serde_json::to_value(settings)?),
    };
    cx.db
        .run(async |c| c.set_settings(&vm.id, settings.as_ref()).await)?;
    show(cx, name)
}

fn list(cx: &Cx<'_>) -> Result<()> {
    let mut rows = Vec::new();
    let here = Here::of(cx.home, cx.db)?;
    for vm in cx.db.run(async |c| c.vms().await)? {
        rows.push(refresh(cx, &here, vm)?);
    }
    let in_cluster = here.node().is_some();
    cx.ui.result(&rows, || {
        if rows.is_empty() {
            return "no guests yet; add them: vmtwin vm add --libvirt qemu:///system, or \
                    vmtwin vm add NAME --qmp SOCKET"
                .into();
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|r| {
                let included = r.vm.disks.iter().filter(|d| d.found.included);
                let mut cells = vec![
                    r.vm.name.clone(),
                    state_text(r),
                    r.vm.memory_bytes.map_or("-".into(), bytes),
                    included.clone().count().to_string(),
                    bytes(included.map(|d| d.found.size_bytes).sum()),
                    r.vm.connection.address.clone(),
                ];
                if in_cluster {
                    cells.insert(1, r.node.clone().unwrap_or("-".into()));
                }
                cells
            })
            .collect();
        let mut heads = vec!["NAME", "STATE", "MEMORY", "DISKS", "SIZE", "CONNECTION"];
        if in_cluster {
            heads.insert(1, "NODE");
        }
        in_columns(&heads, &cells)
    })
}

fn state_text(row: &Row) -> String {
    let flag = if row.vm.resume_flag {
        " (to be resumed)"
    } else {
        ""
    };
    match &row.unreachable {
        Some(_) => format!("{} (no answer){flag}", row.vm.state),
        None => format!("{}{flag}", row.vm.state),
    }
}

/// Asks QEMU; what is gone is stopped, what is busy keeps what was last known, as do guests of other
/// nodes.
fn refresh(cx: &Cx<'_>, here: &Here, vm: Vm) -> Result<Row> {
    let node = here.node_name(&vm).map(str::to_owned);
    // Whoever made a twin holds its monitor.
    if vm.role == VmRole::Twin || here.place(&vm) != Place::Here {
        let unreachable = match here.place(&vm) {
            Place::Silent(node) => Some(format!("nothing is heard of {node}")),
            _ => None,
        };
        return Ok(Row {
            vm,
            node,
            unreachable,
        });
    }
    let asked = Qmp::connect(&monitor_of(&vm), CONNECT_TIMEOUT)
        .map_err(anyhow::Error::from)
        .and_then(|mut qmp| Ok(inspect(&mut qmp)?));
    let unreachable = match asked {
        Ok(machine) => {
            update_table(cx.db, &vm, &machine)?;
            None
        }
        Err(error) => {
            let gone = error
                .downcast_ref::<QmpError>()
                .is_some_and(QmpError::is_gone);
            if gone && !vm.resume_flag {
                cx.db
                    .run(async |c| c.set_state(&vm.id, VmState::Stopped).await)?;
            }
            // libvirt has said that it is off.
            let off = gone && vm.connection.kind == ConnectionKind::Libvirt;
            (!off).then(|| format!("{error:#}"))
        }
    };
    let vm = cx.db.run(async |c| c.vm(&vm.id).await)?;
    Ok(Row {
        vm,
        node,
        unreachable,
    })
}

fn show(cx: &Cx<'_>, name: &str) -> Result<()> {
    let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
    let row = refresh(cx, &Here::of(cx.home, cx.db)?, vm)?;
    let machine: Option<Machine> = row
        .vm
        .machine
        .clone()
        .and_then(|m| serde_json::from_value(m).ok());
    cx.ui.result(&row, || text(&row, machine.as_ref()))
}

fn text(row: &Row, machine: Option<&Machine>) -> String {
    let vm = &row.vm;
    let mut lines = vec![
        format!("{}  {}", vm.name, state_text(row)),
        format!("  id          {}", vm.id),
        format!(
            "  connection  {} {}",
            vm.connection.kind, vm.connection.address
        ),
        format!(
            "  memory      {}",
            vm.memory_bytes.map_or("-".into(), bytes)
        ),
    ];
    if let Some(node) = &row.node {
        lines.insert(2, format!("  node        {node}"));
    }
    if let Some(settings) = &vm.settings {
        lines.push(format!("  settings    {settings}"));
    }
    if let Some(reason) = &row.unreachable {
        lines.push(format!("  no answer   {reason}"));
    }
    if let Some(m) = machine {
        lines.push(format!(
            "  machine     {} on QEMU {}, pid {}",
            m.machine_type, m.qemu_version, m.pid
        ));
        let cells: Vec<Vec<String>> = m
            .disks
            .iter()
            .map(|d| {
                vec![
                    format!("  {}", d.id),
                    bytes(d.size_bytes),
                    d.format.clone(),
                    d.excluded_because.clone().unwrap_or_else(|| "yes".into()),
                    d.address.clone(),
                ]
            })
            .collect();
        lines.push(in_columns(
            &["  DISK", "SIZE", "FORMAT", "BACKED UP", "ADDRESS"],
            &cells,
        ));
        for (what, reasons) in [
            ("no backup", &m.blockers),
            ("no memory", &m.memory_blockers),
        ] {
            lines.extend(reasons.iter().map(|r| format!("  {what}: {r}")));
        }
        lines.push(format!("  started as  {}", m.args.join(" ")));
    }
    lines.join("\n")
}
