//! Hardware that is a matter of configuration is made again where it is missing, in the order of what
//! needs what; what is there, and what the host is reached by, is left as it is.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use time::macros::datetime;
use vmtwin_cluster::NodeDocument;
use vmtwin_cluster::node::{
    Bond, Bridge, Hardware, Interface, InterfaceKind, Mdev, Object, Objects, Pci, Vlan,
};
use vmtwin_cluster::plan::{Action, Item, Live, Options, Plan, Section, Step, plan};

const MDEV: &str = "a1b2c3d4-0000-4000-8000-000000000001";

fn document(hardware: Hardware, guests: Vec<Object>) -> NodeDocument {
    NodeDocument {
        version: 1,
        name: "n1".parse().unwrap(),
        id: "11111111-1111-4111-8111-111111111111".to_owned(),
        taken_at: datetime!(2026-11-23 10:00 UTC),
        program: "0".to_owned(),
        hardware,
        logical: Objects::default(),
        r#virtual: Objects {
            objects: guests,
            settings: Vec::new(),
        },
    }
}

fn guest(devices: &str) -> Object {
    let uuid = "22222222-2222-4222-8222-222222222222";
    Object {
        by: "libvirt".to_owned(),
        kind: "domain".to_owned(),
        name: "web".to_owned(),
        uuid: Some(uuid.to_owned()),
        active: Some(false),
        autostart: Some(false),
        definition: format!(
            "<domain><name>web</name><uuid>{uuid}</uuid><devices>{devices}</devices></domain>"
        ),
        parts: Vec::new(),
    }
}

fn interface(name: &str, kind: InterfaceKind, master: Option<&str>) -> Interface {
    Interface {
        name: name.to_owned(),
        kind,
        address: Some("02:00:00:00:00:01".to_owned()),
        mtu: Some(1500),
        state: Some("up".to_owned()),
        master: master.map(str::to_owned),
        bridge: (kind == InterfaceKind::Bridge).then(Bridge::default),
        bond: (kind == InterfaceKind::Bond).then(|| Bond {
            mode: "active-backup".to_owned(),
            miimon_ms: Some(100),
            primary: Some("eth2".to_owned()),
        }),
        ..Interface::default()
    }
}

fn vlan(name: &str, parent: &str, master: Option<&str>) -> Interface {
    Interface {
        vlan: Some(Vlan {
            id: 7,
            parent: parent.to_owned(),
        }),
        ..interface(name, InterfaceKind::Vlan, master)
    }
}

/// Two NICs in a bond, which carries a VLAN, which is a port of a bridge; and a bridge with a NIC.
fn wired() -> Hardware {
    use InterfaceKind::{Bond, Bridge, Physical};
    Hardware {
        interfaces: vec![
            interface("a-bridge", Bridge, None),
            interface("bond0", Bond, None),
            vlan("bond0.7", "bond0", Some("a-bridge")),
            interface("eth0", Physical, None),
            interface("eth1", Physical, Some("bond0")),
            interface("eth2", Physical, Some("bond0")),
            interface("eth3", Physical, Some("z-bridge")),
            interface("z-bridge", Bridge, None),
        ],
        ..Hardware::default()
    }
}

/// The same with its NICs alone.
fn bare() -> Hardware {
    let mut bare = wired();
    bare.interfaces.retain(|one| one.name.starts_with("eth"));
    for one in &mut bare.interfaces {
        one.master = None;
    }
    bare
}

fn planned(then: &NodeDocument, now: &NodeDocument, addressed: &[&str], options: &Options) -> Plan {
    let live = Live {
        document: now,
        missing_paths: BTreeSet::new(),
        elsewhere: BTreeMap::new(),
        addressed: addressed.iter().map(|name| (*name).to_owned()).collect(),
        secrets: None,
    };
    plan(then, &live, options)
}

fn find<'a>(plan: &'a Plan, name: &str) -> &'a Item {
    let mut found = plan.items.iter().filter(|item| item.name == name);
    found.next().unwrap_or_else(|| panic!("no {name}: {plan}"))
}

/// What is done, in its order.
fn steps(plan: &Plan) -> Vec<String> {
    let steps = plan.items.iter().flat_map(|item| &item.steps);
    let told = steps.map(|step| match step {
        Step::AddInterface { interface } => format!("+{}", interface.name),
        Step::AddPort { port, to, primary } => {
            format!("{port}>{to}{}", if *primary { "!" } else { "" })
        }
        other => format!("{other:?}"),
    });
    told.collect()
}

#[test]
fn what_is_made_of_interfaces_is_made_again_in_order() {
    let then = document(wired(), Vec::new());
    let now = document(bare(), Vec::new());
    let made = planned(&then, &now, &["eth0"], &Options::default());
    assert_eq!(
        steps(&made),
        [
            "+a-bridge",
            "+bond0",
            "+z-bridge",
            "+bond0.7",
            "bond0.7>a-bridge",
            "eth1>bond0",
            "eth2>bond0!",
            "eth3>z-bridge"
        ],
        "{made}"
    );
    // That it does not outlive a start of the host is said of each.
    let items = made.items.iter().filter(|item| !item.steps.is_empty());
    assert!(items.clone().all(|item| item.warnings.len() == 1), "{made}");
    let same = planned(&then, &then, &[], &Options::default());
    assert!(same.is_same() && same.is_whole(), "{same}");

    // Another part than this one is restored.
    let options = Options {
        sections: vec![Section::Logical, Section::Virtual],
        ..Options::default()
    };
    assert!(planned(&then, &now, &[], &options).is_done());
}

#[test]
fn what_the_host_is_reached_by_and_what_is_there_is_left_alone() {
    let then = document(wired(), Vec::new());
    let made = planned(
        &then,
        &document(bare(), Vec::new()),
        &["eth3"],
        &Options::default(),
    );
    let port = find(&made, "eth3");
    assert_eq!(port.action, Action::Cannot);
    assert!(port.why.as_ref().unwrap().contains("IP address"), "{made}");
    assert!(!steps(&made).contains(&"eth3>z-bridge".to_owned()));

    // A bridge that is another, a port of another one, and a NIC that is gone.
    let mut now = wired();
    now.interfaces[0].bridge = Some(Bridge {
        stp: true,
        ..Bridge::default()
    });
    now.interfaces[6].master = Some("a-bridge".to_owned());
    now.interfaces.remove(3);
    let told = planned(&then, &document(now, Vec::new()), &[], &Options::default());
    assert!(told.is_done(), "{told}");
    for name in ["a-bridge", "eth3", "eth0"] {
        assert_eq!(find(&told, name).action, Action::Cannot);
    }
    assert_eq!(
        find(&told, "a-bridge").differences,
        ["bridge stp: 'true' -> 'false'"]
    );
    assert_eq!(
        find(&told, "eth3").differences,
        ["master: 'a-bridge' -> 'z-bridge'"]
    );

    // A VLAN on a card that allows less than it did.
    let mut then = bare();
    then.interfaces.push(Interface {
        mtu: Some(9000),
        ..vlan("eth0.9", "eth0", None)
    });
    let smaller = planned(
        &document(then, Vec::new()),
        &document(bare(), Vec::new()),
        &[],
        &Options::default(),
    );
    let Step::AddInterface { interface } = &find(&smaller, "eth0.9").steps[0] else {
        panic!("{smaller}");
    };
    assert_eq!(interface.mtu, None);
    assert!(find(&smaller, "eth0.9").warnings[0].contains("9000"));

    // A VLAN whose carrier is gone.
    let mut then = bare();
    then.interfaces.push(vlan("eth9.7", "eth9", None));
    let told = planned(
        &document(then, Vec::new()),
        &document(bare(), Vec::new()),
        &[],
        &Options::default(),
    );
    assert_eq!(find(&told, "eth9.7").action, Action::Cannot);
    assert!(told.is_done());
}

#[test]
fn another_host_gets_the_bridges_that_guests_need_and_no_port() {
    let nic = |bridge: &str| {
        guest(&format!(
            "<interface type='bridge'><source bridge='{bridge}'/></interface>"
        ))
    };
    let then = document(wired(), vec![nic("a-bridge")]);
    let mut options = Options {
        to_new_hardware: true,
        ..Options::default()
    };
    let now = document(bare(), Vec::new());
    let made = planned(&then, &now, &[], &options);
    let expected = ["+a-bridge", "+bond0", "+bond0.7", "bond0.7>a-bridge"];
    assert_eq!(steps(&made)[..4], expected, "{made}");
    assert!(find(&made, "bond0").warnings[0].contains("eth1, eth2"));
    // No address comes along, and nothing is said against the guest.
    let Step::AddInterface { interface: bridge } = &find(&made, "a-bridge").steps[0] else {
        panic!("{made}");
    };
    assert_eq!(bridge.address, None);
    assert!(find(&made, "web").warnings.is_empty(), "{made}");

    // A bridge that is there has what it needs, and cards of other hosts say nothing here.
    let mut hardware = wired();
    hardware
        .interfaces
        .push(vlan("eth0.9", "eth0", Some("a-bridge")));
    let wired_anew = document(hardware, vec![nic("a-bridge")]);
    let mut there = bare();
    there
        .interfaces
        .push(interface("a-bridge", InterfaceKind::Bridge, None));
    let there = planned(&wired_anew, &document(there, Vec::new()), &[], &options);
    let hardware = there.items.iter();
    assert_eq!(
        hardware.filter(|i| i.section == Section::Hardware).count(),
        0
    );
    let none = planned(&wired_anew, &now, &[], &options);
    assert_eq!(find(&none, "eth0.9").action, Action::Cannot, "{none}");

    options.maps = vec!["a-bridge=eth0".parse().unwrap()];
    let mapped = planned(&then, &now, &[], &options);
    let hardware = mapped.items.iter();
    assert_eq!(
        hardware.filter(|i| i.section == Section::Hardware).count(),
        0
    );
}

/// A card with virtual functions, and a part of another one.
fn cards(on: bool) -> Hardware {
    let function = |address: &str, sriov: Option<u32>, physical: Option<&str>| Pci {
        address: address.to_owned(),
        id: "0x8086:0x10d3".to_owned(),
        sriov_max: sriov.map(|_| 7),
        sriov,
        physical: physical.map(str::to_owned),
        ..Pci::default()
    };
    let card = "0000:01:00.0";
    let mut hardware = Hardware {
        pci: vec![
            function("0000:00:02.0", None, None),
            function(card, Some(if on { 2 } else { 0 }), None),
        ],
        ..Hardware::default()
    };
    if on {
        hardware
            .pci
            .push(function("0000:01:10.0", None, Some(card)));
        hardware.mdevs.push(Mdev {
            uuid: MDEV.to_owned(),
            kind: "i915-GVTg_V5_4".to_owned(),
            parent: "0000:00:02.0".to_owned(),
        });
    }
    hardware
}

#[test]
fn virtual_functions_and_mediated_devices_come_before_the_guests_that_have_them() {
    let guest = || {
        guest(&format!(
            "<hostdev type='pci'><source><address domain='0' bus='1' slot='16' function='0'/>\
             </source></hostdev><hostdev type='mdev'><source><address uuid='{MDEV}'/></source>\
             </hostdev>"
        ))
    };
    let then = document(cards(true), vec![guest()]);
    let made = planned(
        &then,
        &document(cards(false), Vec::new()),
        &[],
        &Options::default(),
    );
    assert_eq!(
        find(&made, "0000:01:00.0").steps,
        [Step::SetVirtualFunctions {
            address: "0000:01:00.0".to_owned(),
            count: 2
        }]
    );
    assert_eq!(
        find(&made, "0000:01:00.0").differences,
        ["sriov: '0' -> '2'"]
    );
    assert_eq!(find(&made, "0000:01:10.0").action, Action::Create);
    assert!(matches!(
        find(&made, MDEV).steps[..],
        [Step::MakeMdev { .. }]
    ));
    assert_eq!(find(&made, "web").action, Action::Create, "{made}");

    // Where hardware is not restored, the guest is told to be without.
    let options = Options {
        sections: vec![Section::Virtual],
        ..Options::default()
    };
    let without = planned(&then, &document(cards(false), Vec::new()), &[], &options);
    assert_eq!(find(&without, "web").action, Action::Cannot);

    // Some are there: they may be in use.
    let mut now = cards(false);
    now.pci[1].sriov = Some(1);
    let told = planned(&then, &document(now, Vec::new()), &[], &Options::default());
    assert_eq!(find(&told, "0000:01:00.0").action, Action::Cannot);
    assert_eq!(find(&told, "0000:01:10.0").action, Action::Cannot);
    // The card is gone, or can have fewer.
    let mut now = cards(false);
    now.pci[1].sriov_max = Some(1);
    now.pci.remove(0);
    let told = planned(&then, &document(now, Vec::new()), &[], &Options::default());
    let mut hardware = told.items.iter().filter(|i| i.section == Section::Hardware);
    assert!(hardware.all(|item| item.action == Action::Cannot), "{told}");
}

#[test]
fn what_no_host_has_is_refused() {
    let now = document(bare(), Vec::new());
    let refused = |one: Interface| {
        let mut then = bare();
        let name = one.name.clone();
        then.interfaces.push(one);
        let told = planned(&document(then, Vec::new()), &now, &[], &Options::default());
        assert_eq!(find(&told, &name).action, Action::Cannot, "{told}");
        assert!(told.is_done());
    };
    use InterfaceKind::{Bond, Bridge, Vlan};
    for name in ["-br0", "../br0", "a b", "a-name-that-is-too-long", ""] {
        refused(interface(name, Bridge, None));
    }
    refused(Interface {
        address: Some("$(reboot)".to_owned()),
        ..interface("br0", Bridge, None)
    });
    refused(Interface {
        bridge: None,
        ..interface("br0", Bridge, None)
    });
    let mut bond = interface("bond9", Bond, None);
    bond.bond.as_mut().unwrap().mode = "fast".to_owned();
    refused(bond);
    refused(interface("eth0.9", Vlan, None));
    let mut far = vlan("eth0.9", "eth0", None);
    far.vlan.as_mut().unwrap().id = 4095;
    refused(far);
    // Each waits for the other.
    let mut then = bare();
    then.interfaces.push(vlan("a.7", "b.7", None));
    then.interfaces.push(vlan("b.7", "a.7", None));
    let told = planned(&document(then, Vec::new()), &now, &[], &Options::default());
    assert!(told.is_done(), "{told}");

    for (uuid, parent) in [(MDEV, "../../net"), ("../x", "0000:00:02.0")] {
        let mut then = cards(false);
        then.mdevs.push(Mdev {
            uuid: uuid.to_owned(),
            kind: "a".to_owned(),
            parent: parent.to_owned(),
        });
        let (then, now) = (
            document(then, Vec::new()),
            document(cards(false), Vec::new()),
        );
        let told = planned(&then, &now, &[], &Options::default());
        assert_eq!(find(&told, uuid).action, Action::Cannot);
    }
}

fn some_interfaces() -> impl Strategy<Value = Vec<Interface>> {
    let one = (0..6u8, 0..4u8, prop::option::of(0..6u8), 0..6u8);
    prop::collection::vec(one, 0..8).prop_map(|all| {
        let name = |number: u8| format!("if{number}");
        let mut seen = BTreeSet::new();
        let all = all.into_iter().filter(|one| seen.insert(one.0));
        let made = all.map(|(number, kind, master, parent)| {
            let master = master.map(name);
            let master = master.as_deref();
            match kind {
                0 => interface(&name(number), InterfaceKind::Physical, master),
                1 => interface(&name(number), InterfaceKind::Bridge, master),
                2 => interface(&name(number), InterfaceKind::Bond, master),
                _ => vlan(&name(number), &name(parent), master),
            }
        });
        made.collect()
    })
}

proptest! {
    /// Nothing is named before it is there, nothing that is there is made, and done once is enough.
    #[test]
    fn each_step_can_be_done_in_its_turn(then in some_interfaces(), now in some_interfaces()) {
        let hardware = |interfaces| Hardware { interfaces, ..Hardware::default() };
        let then = document(hardware(then), Vec::new());
        let first = planned(&then, &document(hardware(now.clone()), Vec::new()), &["if1"],
            &Options::default());
        let mut after = now;
        for step in first.items.iter().flat_map(|item| &item.steps) {
            let here = |after: &Vec<Interface>, name: &str| {
                after.iter().position(|one| one.name == name)
            };
            match step {
                Step::AddInterface { interface } => {
                    prop_assert!(here(&after, &interface.name).is_none());
                    let parent = interface.vlan.as_ref().map(|vlan| &vlan.parent);
                    prop_assert!(parent.is_none_or(|parent| here(&after, parent).is_some()));
                    after.push(interface.clone());
                }
                Step::AddPort { port, to, .. } => {
                    prop_assert!(here(&after, to).is_some());
                    let at = here(&after, port).unwrap();
                    prop_assert!(after[at].master.is_none());
                    after[at].master = Some(to.clone());
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        let second = planned(&then, &document(hardware(after), Vec::new()), &["if1"],
            &Options::default());
        prop_assert!(second.is_done(), "{}\n{}", first, second);
    }
}
