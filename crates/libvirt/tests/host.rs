//! The bindings against real libvirtds, each on a host of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::os::fd::AsFd;
use std::time::Duration;

use vmtwin_libvirt::{Connection, DomainState, Error, ErrorCode, Kind, RestoreAs, UndefineFlags};
use vmtwin_testkit::{LibvirtGuest, LibvirtHost, Mode};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of `virDomainEventType`.
const DEFINED: i32 = 0;
const STARTED: i32 = 2;
const RESUMED: i32 = 4;
const STOPPED: i32 = 5;
const UUID: &str = "5b0d7a44-4d7c-4d0f-9a0a-0d5a4c1e7a01";

/// Nothing, and a reason on stderr, where libvirt hosts are not possible.
fn host(name: &str) -> Option<LibvirtHost> {
    match LibvirtHost::hindrance() {
        Some(reason) => {
            eprintln!("not run: {reason}");
            None
        }
        None => Some(LibvirtHost::start(name)),
    }
}

fn definition(kind: Kind, host: &LibvirtHost) -> Option<String> {
    Some(match kind {
        Kind::Network => "<network><name>thing</name><forward mode='nat'/><bridge name='vttest0'/>\
            <ip address='10.99.7.1' netmask='255.255.255.0'><dhcp>\
            <range start='10.99.7.2' end='10.99.7.9'/></dhcp></ip></network>"
            .to_owned(),
        Kind::StoragePool => format!(
            "<pool type='dir'><name>thing</name><target><path>{}</path></target></pool>",
            host.file("pool").display()
        ),
        Kind::Secret => format!(
            "<secret ephemeral='no' private='no'><uuid>{UUID}</uuid>\
             <usage type='volume'><volume>/thing</volume></usage></secret>"
        ),
        Kind::NwFilter => "<filter name='thing' chain='root'>\
            <rule action='drop' direction='in'><tcp dstportstart='23'/></rule></filter>"
            .to_owned(),
        Kind::NodeDevice | Kind::Interface => return None,
    })
}

/// Every kind of object is listed, defined, read, removed and defined again from what was read.
#[test]
fn objects_of_every_kind_are_read_and_defined_again() {
    let Some(host) = host("objects") else { return };
    let connection = Connection::open(&host.uri()).unwrap();
    assert_eq!(connection.hostname().unwrap(), "objects");
    assert!(connection.version().unwrap() >= 8_002_000);
    assert!(connection.capabilities().unwrap().contains("<guest>"));
    for kind in Kind::ALL {
        let before = connection.objects(kind).unwrap().len();
        let Some(xml) = definition(kind, &host) else {
            continue;
        };
        let made = connection.define(kind, &xml).unwrap();
        let name = made.name().unwrap();
        let read = made.xml().unwrap();
        made.undefine().unwrap();
        let gone = connection.object(kind, &name).unwrap_err();
        assert!(gone.is_missing(), "{kind:?}: {gone:?}");
        let again = connection.define(kind, &read).unwrap();
        assert_eq!(again.xml().unwrap(), read, "{kind:?}");
        assert_eq!(connection.objects(kind).unwrap().len(), before + 1);
    }
}

#[test]
fn pools_networks_and_secrets_are_used() {
    let Some(host) = host("uses") else { return };
    let connection = Connection::open(&host.uri()).unwrap();
    let define = |kind| {
        let xml = definition(kind, &host).unwrap();
        connection.define(kind, &xml).unwrap()
    };
    let network = define(Kind::Network);
    network.start().unwrap();
    assert!(network.is_active().unwrap());
    network.set_autostart(true).unwrap();
    assert!(network.autostart().unwrap());
    network.stop().unwrap();

    let pool = define(Kind::StoragePool);
    pool.build_pool().unwrap();
    pool.start().unwrap();
    let volume = "<volume><name>one.raw</name><capacity unit='MiB'>3</capacity></volume>";
    let volume = pool.create_volume(volume).unwrap();
    assert_eq!(
        volume.path().unwrap(),
        host.file("pool/one.raw").to_string_lossy()
    );
    assert_eq!(pool.volumes().unwrap().len(), 1);
    let missing = pool.volume("two.raw").unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::NO_STORAGE_VOLUME));

    let secret = define(Kind::Secret);
    secret.set_secret_value(b"of \0 bytes").unwrap();
    assert_eq!(secret.secret_value().unwrap(), b"of \0 bytes");
    assert!(network.secret_value().is_err());
}

/// A guest's monitor, events and files; libvirtd killed and started again.
#[test]
fn a_guest_is_reached_by_its_monitor() {
    let Some(host) = host("monitor") else { return };
    let guest = LibvirtGuest::start(&host, "ticker", Mode::Count, 2);
    let connection = Connection::open(&host.uri()).unwrap();
    let domain = connection.domain("ticker").unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Running);

    let events = domain.follow_monitor(None).unwrap();
    domain
        .monitor_command(r#"{"execute":"stop"}"#, &[])
        .unwrap();
    let stop = events.next(PATIENCE).unwrap();
    assert_eq!(stop.name, "STOP");
    domain
        .monitor_command(r#"{"execute":"cont"}"#, &[])
        .unwrap();
    let resume = events.next(PATIENCE).unwrap();
    assert_eq!(resume.name, "RESUME");
    assert!(resume.time_us > stop.time_us);

    let file = tempfile::tempfile().unwrap();
    file.set_len(3 << 20).unwrap();
    let ask = |command: &str| domain.monitor_command(command, &[]).unwrap().message;
    let give = r#"{"execute":"add-fd","arguments":{"fdset-id":77}}"#;
    let answer = domain.monitor_command(give, &[file.as_fd()]).unwrap();
    assert!(answer.message.contains("\"fdset-id\":77"), "{answer:?}");
    let added = ask(
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"given",
        "filename":"/dev/fdset/77"}}"#,
    );
    assert!(added.contains("\"return\""), "{added}");
    let nodes = ask(r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#);
    assert!(
        nodes.contains(&format!("\"virtual-size\":{}", 3 << 20)),
        "{nodes}"
    );
    let gone = ask(r#"{"execute":"blockdev-del","arguments":{"node-name":"given"}}"#);
    assert!(gone.contains("\"return\""), "{gone}");
    assert!(ask(r#"{"execute":"none"}"#).contains("CommandNotFound"));

    host.kill_libvirtd();
    let error = domain.state().unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    assert!(!connection.is_alive());
    guest.wait_for_more("count n=", PATIENCE);
    host.start_libvirtd();
    let connection = Connection::open(&host.uri()).unwrap();
    let domain = connection.domain("ticker").unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    // Waits until libvirtd has taken its QEMU up again, which it does on the side: a domain that
    // is destroyed meanwhile is gone, and destroying it an error.
    let query = r#"{"execute":"query-status"}"#;
    let status = domain.monitor_command(query, &[]).unwrap().message;
    assert!(status.contains("\"running\""), "{status}");
    domain.destroy().unwrap();
    domain.undefine(UndefineFlags::default()).unwrap();
    assert!(connection.domain("ticker").unwrap_err().is_missing());
}

/// A guest that was saved is restored; what becomes of it is told; what it has is read.
#[test]
fn a_saved_guest_is_restored_and_its_life_followed() {
    let Some(host) = host("restore") else { return };
    let connection = Connection::open(&host.uri()).unwrap();
    let life = connection.follow_domains().unwrap();
    let guest = LibvirtGuest::start(&host, "saved", Mode::Count, 1);
    let domain = connection.domain("saved").unwrap();
    assert!(domain.is_persistent().unwrap());
    assert!(domain.snapshots().unwrap().is_empty());
    host.virsh(&["checkpoint-create-as", "saved", "--name", "first"]);
    assert!(domain.checkpoints().unwrap()[0].contains("<name>first</name>"));
    host.virsh(&["checkpoint-delete", "saved", "first"]);

    let image = host.file("saved.image").to_string_lossy().into_owned();
    host.virsh(&["save", "saved", &image]);
    assert_eq!(domain.state().unwrap(), DomainState::ShutOff);
    connection.restore(&image, None, RestoreAs::Paused).unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Paused);
    domain.resume().unwrap();
    guest.wait_for_more("count n=", PATIENCE);
    let mut events = Vec::new();
    // Its first start tells of a resume as well.
    while !(events.contains(&STOPPED) && events.last() == Some(&RESUMED)) {
        let event = life.next(PATIENCE).unwrap();
        assert_eq!(event.domain, "saved");
        events.push(event.event);
    }
    assert_eq!(events[0], DEFINED, "{events:?}");
    assert!(events.contains(&STARTED), "{events:?}");
}

/// Set in the process that finds no libvirt.
const HIDDEN: &str = "VMTWIN_TEST_LIBVIRT_HIDDEN";

/// Where the library is not installed the process runs, and is told what to install.
#[test]
fn without_the_library_there_is_a_clear_error() {
    if std::env::var_os(HIDDEN).is_some() {
        let error = Connection::open("qemu:///system").unwrap_err();
        assert!(matches!(error, Error::Library(_)), "{error:?}");
        assert!(error.to_string().contains("apt-get install libvirt0"));
        return;
    }
    if let Some(reason) = LibvirtHost::hindrance() {
        eprintln!("not run: {reason}");
        return;
    }
    // Hides it from one process: in a mount namespace, an empty file lies over it.
    let hide = "for lib in $(ldconfig -p | sed -n 's/.*libvirt\\.so\\.0.*=> //p'); do
        mount --bind /dev/null \"$(readlink -f \"$lib\")\"; done; exec \"$0\" --exact \"$1\"";
    let mut process = std::process::Command::new("unshare");
    process.args(["--mount", "sh", "-ec", hide]);
    process.arg(std::env::current_exe().unwrap());
    process.arg("without_the_library_there_is_a_clear_error");
    let output = vmtwin_testkit::run(process.env(HIDDEN, "1"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
}
