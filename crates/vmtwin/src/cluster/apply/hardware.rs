//! Steps of a plan on the host itself: interfaces by `ip`, devices by what the kernel offers in
//! `/sys`. Nothing here outlives a start of the host, which the plan says. Each step finds out what is
//! done already.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vmtwin_cluster::NodeDocument;
use vmtwin_cluster::node::Interface;
use vmtwin_cluster::plan::Step;

/// Does one step on the host whose files are below `root`: `/`.
pub(super) fn apply(root: &Path, step: &Step) -> Result<()> {
    match step {
        Step::AddInterface { interface } => add_interface(root, interface),
        Step::AddPort { port, to, primary } => add_port(root, port, to, *primary),
        Step::SetVirtualFunctions { address, count } => {
            let device = root.join("sys/bus/pci/devices").join(address);
            set_virtual_functions(&device, *count)
        }
        Step::MakeMdev { uuid, kind, parent } => {
            let made = root.join("sys/bus/mdev/devices").join(uuid);
            let types = root.join("sys/class/mdev_bus").join(parent);
            match made.exists() {
                true => Ok(()),
                false => write(
                    &types.join("mdev_supported_types").join(kind).join("create"),
                    uuid,
                ),
            }
        }
        other => bail!("{other:?} is no step of a host"),
    }
}

/// Interfaces with an IP address of more than the link's own, and those that such a one stands on, as a
/// VLAN does: by these the host is reached. All of them, where that cannot be told.
pub(super) fn addressed(host: &NodeDocument) -> BTreeSet<String> {
    let asked = ip(&["-json", "address", "show"]).and_then(|text| has_address(&text));
    asked.unwrap_or_else(|error| {
        tracing::warn!("{error:#}; no interface is made a port of another");
        let all = host.hardware.interfaces.iter();
        all.map(|interface| interface.name.clone()).collect()
    })
}

fn has_address(text: &str) -> Result<BTreeSet<String>> {
    let all: Vec<Value> = serde_json::from_str(text).context("ip tells of addresses otherwise")?;
    let has_one = |interface: &&Value| {
        let addresses = interface["addr_info"].as_array();
        addresses.is_some_and(|all| all.iter().any(|address| address["scope"] != "link"))
    };
    let name = |interface: &Value, key: &str| interface[key].as_str().map(str::to_owned);
    let names = all.iter().filter(has_one);
    let mut names: BTreeSet<String> = names.filter_map(|one| name(one, "ifname")).collect();
    loop {
        let above = |one: &&Value| name(one, "ifname").is_some_and(|it| names.contains(&it));
        let below = all.iter().filter(above).filter_map(|one| name(one, "link"));
        let ports = all.iter().filter(|one| {
            let master = name(one, "master");
            master.is_some_and(|master| names.contains(&master))
        });
        let ports = ports.filter_map(|one| name(one, "ifname"));
        let more: Vec<String> = below.chain(ports).collect();
        let known = names.len();
        names.extend(more);
        if names.len() == known {
            return Ok(names);
        }
    }
}

/// One request to the kernel, so that it is there as a whole or not at all.
fn add_interface(root: &Path, interface: &Interface) -> Result<()> {
    if root.join("sys/class/net").join(&interface.name).exists() {
        return Ok(());
    }
    let mut args = vec!["link".to_owned(), "add".to_owned()];
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    if let Some(vlan) = &interface.vlan {
        // None is switched on over one that is off.
        ip(&["link", "set", "dev", &vlan.parent, "up"])?;
        add(&["link", &vlan.parent]);
    }
    add(&["name", &interface.name]);
    if let Some(address) = &interface.address {
        add(&["address", address]);
    }
    if let Some(mtu) = interface.mtu {
        add(&["mtu", &mtu.to_string()]);
    }
    add(&["up", "type"]);
    match (&interface.bridge, &interface.bond, &interface.vlan) {
        (Some(bridge), ..) => {
            add(&["bridge", "stp_state", if bridge.stp { "1" } else { "0" }]);
            // It is off by itself, and not every kernel knows of it.
            if bridge.vlan_filtering {
                add(&["vlan_filtering", "1"]);
            }
        }
        (_, Some(bond), _) => {
            add(&["bond", "mode", &bond.mode]);
            if let Some(every) = bond.miimon_ms {
                add(&["miimon", &every.to_string()]);
            }
        }
        (.., Some(vlan)) => add(&["vlan", "id", &vlan.id.to_string()]),
        _ => bail!("it is no bridge, bond or VLAN"),
    }
    ip(&args).map(|_| ())
}

fn add_port(root: &Path, port: &str, to: &str, primary: bool) -> Result<()> {
    let net = root.join("sys/class/net");
    let master = std::fs::read_link(net.join(port).join("master")).ok();
    let master = master.as_deref().and_then(Path::file_name);
    let is_bond = net.join(to).join("bonding").exists();
    match master {
        Some(name) if name == to => {}
        Some(name) => bail!("it is a port of {} by now", name.display()),
        None => {
            let addressed = has_address(&ip(&["-json", "address", "show"])?)?;
            if addressed.contains(port) {
                bail!(
                    "it, or what stands on it, has an IP address by now, and would lose its \
                     connections as a port"
                );
            }
            // A bond takes none that is up, and switches it on itself.
            if is_bond {
                ip(&["link", "set", "dev", port, "down"])?;
            }
            let taken = ip(&["link", "set", "dev", port, "master", to]);
            ip(&["link", "set", "dev", port, "up"])?;
            taken?;
        }
    }
    if is_bond && primary {
        ip(&["link", "set", "dev", to, "type", "bond", "primary", port])?;
    }
    Ok(())
}

/// Only where there is none: to give it another number would take those away that guests may use.
fn set_virtual_functions(device: &Path, count: u32) -> Result<()> {
    let file = device.join("sriov_numvfs");
    let now = std::fs::read_to_string(&file);
    let now = now.with_context(|| format!("cannot read {}", file.display()))?;
    match now.trim() {
        "0" => write(&file, &count.to_string()),
        now if now == count.to_string() => Ok(()),
        now => bail!("it has {now} virtual functions by now; guests may use them"),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    let written = std::fs::OpenOptions::new().write(true).open(file);
    let written = written.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("cannot write {text} to {}", file.display()))
}

/// What `ip` prints.
fn ip(args: &[impl AsRef<std::ffi::OsStr>]) -> Result<String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output();
    let output = output.context("cannot run ip (package iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_link_alone_reaches_nothing() {
        let text = r#"[{"ifname":"eth0","addr_info":[{"local":"10.0.0.2","scope":"global"}]},
            {"ifname":"eth1","addr_info":[{"local":"fe80::1","scope":"link"}]},
            {"ifname":"lo","addr_info":[{"local":"127.0.0.1","scope":"host"}]},
            {"ifname":"eth2","addr_info":[]},
            {"ifname":"eth3","addr_info":[]}, {"ifname":"eth4","master":"bond0","addr_info":[]},
            {"ifname":"bond0","addr_info":[]},
            {"ifname":"eth3.7","link":"eth3","addr_info":[{"local":"10.0.1.2","scope":"global"}]},
            {"ifname":"bond0.7","link":"bond0","addr_info":[{"local":"10.0.2.2","scope":"global"}]}]"#;
        let found = has_address(text).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["bond0", "bond0.7", "eth0", "eth3", "eth3.7", "eth4", "lo"]
        );
        assert!(has_address("eth0: up").is_err());
    }

    #[test]
    fn a_mediated_device_is_asked_of_its_type_once() {
        let root = tempfile::tempdir().unwrap();
        let kind = root
            .path()
            .join("sys/class/mdev_bus/0000:00:02.0/mdev_supported_types/i915-4");
        std::fs::create_dir_all(&kind).unwrap();
        std::fs::write(kind.join("create"), "").unwrap();
        let uuid = "a1b2c3d4-0000-4000-8000-000000000001";
        let step = Step::MakeMdev {
            uuid: uuid.to_owned(),
            kind: "i915-4".to_owned(),
            parent: "0000:00:02.0".to_owned(),
        };
        apply(root.path(), &step).unwrap();
        let asked = || std::fs::read_to_string(kind.join("create")).unwrap();
        assert_eq!(asked(), uuid);
        std::fs::write(kind.join("create"), "").unwrap();
        std::fs::create_dir_all(root.path().join("sys/bus/mdev/devices").join(uuid)).unwrap();
        apply(root.path(), &step).unwrap();
        assert_eq!(asked(), "");
    }

    #[test]
    fn virtual_functions_that_are_there_stay() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::create_dir_all(&device).unwrap();
        let file = device.join("sriov_numvfs");
        let step = Step::SetVirtualFunctions {
            address: "0000:01:00.0".to_owned(),
            count: 4,
        };
        assert!(apply(root.path(), &step).is_err());
        for (before, after) in [("0\n", Some("4")), ("4\n", Some("4\n")), ("2\n", None)] {
            std::fs::write(&file, before).unwrap();
            let done = apply(root.path(), &step);
            assert_eq!(done.is_ok(), after.is_some());
            // A file of the kernel is not written over, but asked.
            let now = std::fs::read_to_string(&file).unwrap();
            assert_eq!(now.trim(), after.unwrap_or(before).trim());
        }
    }
}
