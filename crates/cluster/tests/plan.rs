//! A plan says what is not as it was and nothing else; what it says, done, leaves nothing to do.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use time::macros::datetime;
use vmtwin_cluster::node::{Hardware, Interface, InterfaceKind, Object, Objects, Part, Pci};
use vmtwin_cluster::plan::{
    Action, GivenSecrets, Item, Live, Mapping, Options, Plan, Section, Step, keep_passwords, paths,
    plan,
};
use vmtwin_cluster::{NodeDocument, chains};

const WEB: &str = "11111111-1111-4111-8111-111111111111";

fn document(logical: Vec<Object>, guests: Vec<Object>) -> NodeDocument {
    let objects = |objects| Objects {
        objects,
        settings: Vec::new(),
    };
    let nic = Interface {
        name: "eth0".to_owned(),
        kind: InterfaceKind::Physical,
        ..Interface::default()
    };
    let pci = Pci {
        address: "0000:01:00.0".to_owned(),
        ..Pci::default()
    };
    NodeDocument {
        version: 1,
        name: "n1".parse().unwrap(),
        id: WEB.to_owned(),
        taken_at: datetime!(2026-11-23 10:00 UTC),
        program: "0".to_owned(),
        hardware: Hardware {
            interfaces: vec![nic],
            pci: vec![pci],
            ..Hardware::default()
        },
        logical: objects(logical),
        r#virtual: objects(guests),
    }
}

fn object(kind: &str, name: &str, uuid: &str, inner: &str) -> Object {
    Object {
        by: "libvirt".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uuid: Some(uuid.to_owned()),
        active: Some(matches!(kind, "network" | "pool")),
        autostart: Some(matches!(kind, "network" | "pool")),
        definition: format!("<{kind}><name>{name}</name><uuid>{uuid}</uuid>{inner}</{kind}>"),
        parts: Vec::new(),
    }
}

fn part(kind: &str, name: &str, content: &str) -> Part {
    Part {
        kind: kind.to_owned(),
        name: name.to_owned(),
        encoding: None,
        content: content.to_owned(),
    }
}

fn snapshot(name: &str, parent: Option<&str>) -> Part {
    let parent = parent.map_or(String::new(), |parent| {
        format!("<parent><name>{parent}</name></parent>")
    });
    let xml = format!("<domainsnapshot><name>{name}</name>{parent}</domainsnapshot>");
    part("snapshot", name, &xml)
}

fn web() -> Object {
    let disk = "<devices><disk><source file='/images/web'/></disk>\
                <interface type='bridge'><source bridge='br0'/></interface></devices>";
    let mut web = object("domain", "web", WEB, disk);
    web.parts = vec![
        snapshot("child", Some("first")),
        snapshot("first", None),
        part("current-snapshot", "child", ""),
    ];
    web
}

fn live(document: &NodeDocument) -> Live<'_> {
    Live {
        document,
        missing_paths: BTreeSet::new(),
        elsewhere: BTreeMap::new(),
        addressed: BTreeSet::new(),
        secrets: None,
    }
}

fn find<'a>(plan: &'a Plan, name: &str) -> &'a Item {
    let mut found = plan.items.iter().filter(|item| item.name == name);
    found.next().unwrap_or_else(|| panic!("no {name}: {plan}"))
}

#[test]
fn values_of_secrets_are_set_where_they_were_opened_and_differ() {
    let uuid = "7e6b8d4e-0000-4000-8000-000000000001";
    let mut secret = object("secret", uuid, uuid, "");
    (secret.active, secret.autostart) = (None, None);
    let then = document(vec![secret], vec![object("domain", "web", WEB, "")]);
    let empty = document(Vec::new(), Vec::new());
    let given = |differs: bool| {
        Some(GivenSecrets {
            values: [(uuid.to_owned(), differs)].into(),
            passwords: [("web".to_owned(), differs)].into(),
            files: [("node-tls.json".to_owned(), differs)].into(),
        })
    };
    let planned = |now: &NodeDocument, secrets: Option<GivenSecrets>| {
        let now = Live {
            secrets,
            ..live(now)
        };
        plan(&then, &now, &Options::default())
    };

    let unopened = planned(&empty, None);
    assert!(!find(&unopened, uuid).steps.contains(&Step::SetValue));
    assert!(find(&unopened, uuid).warnings[0].contains("--secrets-identity"));
    let none = planned(&empty, Some(GivenSecrets::default()));
    assert!(find(&none, uuid).warnings[0].contains("holds no value"));

    let made = planned(&empty, given(true));
    assert_eq!(find(&made, uuid).steps.last(), Some(&Step::SetValue));
    assert!(find(&made, uuid).warnings.is_empty());
    assert_eq!(find(&made, "node-tls.json").action, Action::Create);

    let changed = planned(&then, given(true));
    assert_eq!(find(&changed, uuid).differences, ["its value"]);
    assert_eq!(find(&changed, uuid).steps, [Step::SetValue]);
    assert_eq!(find(&changed, "web").differences, ["its passwords"]);
    assert!(matches!(
        find(&changed, "web").steps[..],
        [Step::Define { .. }]
    ));
    assert!(planned(&then, given(false)).is_done());
}

/// What libvirt would hold after the steps.
fn done(plan: &Plan, before: &NodeDocument) -> NodeDocument {
    let mut after = before.clone();
    for item in &plan.items {
        let objects = match item.kind.as_str() {
            "domain" => &mut after.r#virtual.objects,
            _ => &mut after.logical.objects,
        };
        let named = |object: &Object| object.kind == item.kind && object.name == item.name;
        for step in &item.steps {
            if let Step::Define { definition } = step {
                let uuid = definition.split("<uuid>").nth(1).unwrap();
                let uuid = uuid.split("</uuid>").next().unwrap();
                if !objects.iter().any(named) {
                    let mut new = object(&item.kind, &item.name, uuid, "");
                    (new.active, new.autostart) = (Some(false), Some(false));
                    objects.push(new);
                }
            }
            if let Step::CreateVolume { pool, volume, .. } = step {
                let pool = objects.iter_mut().find(|one| one.name == *pool).unwrap();
                pool.parts.push(part("volume", volume, ""));
                continue;
            }
            let it = objects.iter_mut().find(|one| named(one)).unwrap();
            match step {
                Step::Define { definition } => definition.clone_into(&mut it.definition),
                Step::Start => it.active = Some(true),
                Step::Autostart { on } => it.autostart = Some(*on),
                Step::RedefineSnapshot {
                    name, definition, ..
                } => it.parts.push(part("snapshot", name, definition)),
                other => panic!("{other:?}"),
            }
        }
    }
    after
}

#[test]
fn a_wiped_node_is_made_again_in_order() {
    let filter = |name: &str, refers: &str, uuid: &str| object("nwfilter", name, uuid, refers);
    let then = document(
        vec![
            filter("a-first", "<filterref filter='z-last'/>", "u1"),
            filter("z-last", "", "u2"),
            object("pool", "images", "u3", ""),
            object("network", "lan", "u4", ""),
        ],
        vec![web()],
    );
    let now = document(Vec::new(), Vec::new());
    let mut live = live(&now);
    live.missing_paths.insert("/images/web".to_owned());
    let plan = plan(&then, &live, &Options::default());
    let names: Vec<&str> = plan.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["", "z-last", "a-first", "lan", "images", "web"]);
    let web = find(&plan, "web");
    let snapshots: Vec<(&str, bool)> = web
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::RedefineSnapshot { name, current, .. } => Some((name.as_str(), *current)),
            _ => None,
        })
        .collect();
    assert_eq!(snapshots, [("first", false), ("child", true)]);
    let told = web.warnings.join("\n");
    assert!(
        told.contains("/images/web") && told.contains("br0"),
        "{told}"
    );
    assert!(!plan.is_whole() && !plan.is_done());
    // No step starts a guest that was not asked for.
    assert!(!web.steps.contains(&Step::Start));
}

#[test]
fn what_runs_is_left_alone_and_what_is_not_known_stays() {
    let then = document(Vec::new(), vec![web()]);
    let mut other = web();
    other.definition = other.definition.replace("br0", "br1");
    other.active = Some(true);
    let stray = object("domain", "stray", "u9", "");
    let now = document(vec![object("network", "new", "u8", "")], vec![other, stray]);
    let options = Options::default();
    let calm = plan(&then, &live(&now), &options);
    assert_eq!(find(&calm, "web").action, Action::LeftAlone);
    assert_eq!(
        find(&calm, "web").differences,
        ["devices/interface/source bridge: 'br1' -> 'br0'"]
    );
    assert_eq!(find(&calm, "stray").action, Action::Unknown);
    assert_eq!(find(&calm, "new").action, Action::Unknown);
    assert!(calm.is_done());
    let force = Options {
        force: true,
        ..Options::default()
    };
    assert_eq!(
        find(&plan(&then, &live(&now), &force), "web").action,
        Action::Change
    );
}

#[test]
fn what_cannot_be_is_told_with_what_to_do() {
    let device = "<devices><hostdev><source><address domain='0x0000' bus='0x02' slot='0x00' \
                  function='0x0'/></source></hostdev></devices>";
    let then = document(Vec::new(), vec![object("domain", "gpu", WEB, device)]);
    let now = document(Vec::new(), Vec::new());
    let cannot = plan(&then, &live(&now), &Options::default());
    let gpu = find(&cannot, "gpu");
    assert_eq!(gpu.action, Action::Cannot);
    assert!(gpu.why.as_ref().unwrap().contains("--map 0000:02:00.0="));
    assert!(gpu.steps.is_empty());
    let options = Options {
        maps: vec![
            "0000:02:00.0=0000:01:00.0".parse().unwrap(),
            "/nowhere=/there".parse::<Mapping>().unwrap(),
        ],
        ..Options::default()
    };
    let mapped = plan(&then, &live(&now), &options);
    assert_eq!(find(&mapped, "gpu").action, Action::Create);
    assert_eq!(mapped.warnings.len(), 1, "{mapped}");

    // Another guest of the same name, and a guest that another node has.
    let mine = object("domain", "gpu", "u7", "");
    let here = document(Vec::new(), vec![mine]);
    let taken = plan(&then, &live(&here), &Options::default());
    assert_eq!(find(&taken, "gpu").action, Action::Cannot);
    let mut moved = live(&now);
    moved.elsewhere.insert(WEB.to_owned(), "n2".to_owned());
    let moved = plan(&then, &moved, &Options::default());
    assert_eq!(find(&moved, "gpu").action, Action::LeftAlone);
    let by_the_backup = Options {
        elsewhere: [(WEB.to_owned(), "n2".to_owned())].into(),
        ..Options::default()
    };
    let moved = plan(&then, &live(&now), &by_the_backup);
    assert_eq!(find(&moved, "gpu").action, Action::LeftAlone);
}

#[test]
fn a_volume_is_made_only_where_it_is_asked_for_and_not_there() {
    let mut pool = object("pool", "images", "u3", "");
    pool.definition = pool.definition.replace("<pool>", "<pool type='dir'>");
    let volume = |name: &str, base: &str| {
        let xml = format!(
            "<volume><name>{name}</name><target><path>/images/{name}</path></target>{base}</volume>"
        );
        part("volume", name, &xml)
    };
    let base = "<backingStore><path>/images/z</path></backingStore>";
    pool.parts = vec![volume("a", base), volume("there", ""), volume("z", "")];
    let then = document(vec![pool], Vec::new());
    let now = document(Vec::new(), Vec::new());
    let mut live = live(&now);
    live.missing_paths = paths(&then, &Options::default());
    assert!(live.missing_paths.remove("/images/there"));
    let told = plan(&then, &live, &Options::default());
    assert_eq!(find(&told, "images/a").action, Action::Cannot);
    assert_eq!(find(&told, "images/there").action, Action::Same);
    let options = Options {
        create_volumes: true,
        ..Options::default()
    };
    let made = plan(&then, &live, &options);
    let names: Vec<&str> = made
        .items
        .iter()
        .filter(|item| item.kind == "volume" && !item.steps.is_empty())
        .map(|item| item.name.as_str())
        .collect();
    assert_eq!(names, ["images/z", "images/a"]);
}

#[test]
fn variables_are_written_where_there_are_none_and_under_their_own_kind_of_name() {
    let guest = |path: &str| {
        let mut guest = object(
            "domain",
            "uefi",
            WEB,
            &format!("<os><nvram>{path}</nvram></os>"),
        );
        guest.parts = vec![part("nvram", path, "AAAA")];
        document(Vec::new(), vec![guest])
    };
    let now = document(Vec::new(), Vec::new());
    let written = |path: &str, missing: bool| {
        let then = guest(path);
        let mut live = live(&now);
        if missing {
            live.missing_paths.insert(path.to_owned());
        }
        let plan = plan(&then, &live, &Options::default());
        let item = find(&plan, "uefi");
        let mut steps = item.steps.iter();
        (
            steps.any(|step| matches!(step, Step::WriteNvram { .. })),
            item.warnings.len(),
        )
    };
    assert_eq!(written("/nvram/uefi_VARS.fd", true), (true, 0));
    assert_eq!(written("/nvram/uefi_VARS.fd", false), (false, 0));
    assert_eq!(written("/etc/cron.d/job", true), (false, 1));
    assert_eq!(written("/nvram/../etc/a.fd", true), (false, 1));
}

fn some_object() -> impl Strategy<Value = Object> {
    let kind = prop::sample::select(vec!["secret", "nwfilter", "network", "pool", "domain"]);
    (kind, 0..4u8, 0..3u8, any::<bool>(), any::<bool>()).prop_map(
        |(kind, name, inner, active, autostart)| {
            let uuid = format!("{name:08}-0000-4000-8000-{:012}", kind.len());
            let inner = format!("<x a='{inner}'/><filterref filter='nwfilter{inner}'/>");
            let mut object = object(kind, &format!("{kind}{name}"), &uuid, &inner);
            object.active = Some(active && matches!(kind, "network" | "pool"));
            let has = matches!(kind, "network" | "pool" | "domain");
            object.autostart = has.then_some(autostart);
            object
        },
    )
}

fn some_document() -> impl Strategy<Value = NodeDocument> {
    prop::collection::vec(some_object(), 0..12).prop_map(|objects| {
        let mut seen = BTreeSet::new();
        let objects = objects.into_iter();
        let once = objects.filter(|object| seen.insert(object.name.clone()));
        let (guests, logical) = once.partition(|object| object.kind == "domain");
        document(logical, guests)
    })
}

proptest! {
    #[test]
    fn a_document_against_itself_is_the_same(one in some_document()) {
        let plan = plan(&one, &live(&one), &Options::default());
        prop_assert!(plan.is_same() && plan.is_done(), "{}", plan);
    }

    /// Definitions may come from anywhere: cut, and with other bytes in them.
    #[test]
    fn a_damaged_definition_does_no_harm(
        at in 0usize..1200, with in "[<>/&'=a-z0-9-]{0,4}", drop in 0usize..80
    ) {
        let mut text = format!(
            "<domain><name>web</name><uuid>{WEB}</uuid><vcpu cpuset='0-3,^2'/><os><nvram>/a.fd\
             </nvram></os><devices><disk type='volume'><source pool='p' volume='v'/><target \
             dev='vda'/></disk><interface type='bridge'><source bridge='br0'/></interface>\
             <hostdev><source><address domain='0x0' bus='0x1' slot='0x0' function='0x0'/></source>\
             </hostdev><graphics type='vnc' passwd='x'/></devices></domain>"
        );
        let at = at.min(text.len());
        text.replace_range(at..(at + drop).min(text.len()), &with);
        let mut guest = web();
        guest.definition.clone_from(&text);
        guest.parts.push(part("checkpoint", "0", &text));
        let mut pool = object("pool", "p", "u3", "");
        pool.parts.push(part("volume", "v", &text));
        pool.definition.clone_from(&text);
        let then = document(vec![pool], vec![guest]);
        let now = document(Vec::new(), vec![web()]);
        let options = Options {
            maps: vec!["br0=br1".parse().unwrap(), "cpus:0=9".parse().unwrap()],
            create_volumes: true,
            ..Options::default()
        };
        let first = plan(&then, &live(&now), &options);
        prop_assert!(!first.to_string().is_empty());
        let _ = (paths(&then, &options), chains(&then), keep_passwords(&text, &text));
    }

    #[test]
    fn what_was_done_is_not_done_again(then in some_document(), now in some_document()) {
        let options = Options::default();
        let first = plan(&then, &live(&now), &options);
        let after = done(&first, &now);
        let second = plan(&then, &live(&after), &options);
        // What the backup knows is as it was; what it does not know has stayed.
        prop_assert!(second.is_done(), "{}\n{}", first, second);
        let known = |item: &&Item| item.action != Action::Unknown;
        prop_assert!(second.items.iter().filter(known).all(|item| item.action == Action::Same));
        for object in now.logical.objects.iter().chain(&now.r#virtual.objects) {
            let stays = |one: &Object| one.name == object.name && one.kind == object.kind;
            prop_assert!(
                after.logical.objects.iter().chain(&after.r#virtual.objects).any(stays)
            );
        }
    }
}

#[test]
fn options_come_through_a_document_as_they_were() {
    let maps = [
        "/old/folder=/new",
        "0000:01:00.0=0000:41:00.0",
        "cpus:3,1=6,9",
        "br0=br7",
        "3C0C7E0A-91cf-4a5d-8f57-6f1f0f3c2a11=3c0c7e0a-91cf-4a5d-8f57-6f1f0f3c2a12",
    ];
    let options = Options {
        sections: vec![Section::Logical],
        maps: maps.iter().map(|text| text.parse().unwrap()).collect(),
        force: true,
        ..Options::default()
    };
    let text = serde_json::to_string(&options).unwrap();
    assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
    // What the command line refuses, a document cannot bring in either.
    let wrong = text.replace("/old/folder", "/old/../folder");
    assert!(serde_json::from_str::<Options>(&wrong).is_err());
}
