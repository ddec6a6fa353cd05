//! The network: structural, not by a switch.
//!
//! `link down` does not hold for a copy, since the incoming device state overrides it. What stands
//! behind a device must lead nowhere. Which back end does depends on the live state as well:
//!
//! | old back end | with a live state | without |
//! |---|---|---|
//! | user mode | user mode, restricted, in an empty network namespace: its own state (`slirp`) comes in | hub |
//! | tap, bridge, vhost | a tap that nothing is joined to, in an empty network namespace: the device insists on `vnet_hdr` and the number of queues | hub |
//! | other | a hub of its own | hub |

use super::blockers::refused;
use super::error::LaunchError;
use super::options::Options;
use super::plan::Work;
use super::request::Network;

/// Hubs that nobody numbers by hand start here.
const FIRST_HUB: u32 = 4096;
/// Back ends that offer `vnet_hdr` to the device.
const TAP_LIKE: &[&str] = &["tap", "bridge", "vhost-user", "vhost-vdpa"];
/// Devices that never ask for `vnet_hdr`, so that any back end takes their state.
const PLAIN_DEVICES: &[&str] = &[
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82557c",
    "i82558a",
    "i82558b",
    "i82559a",
    "i82559b",
    "i82559c",
    "i82559er",
    "i82562",
    "i82801",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "usb-net",
];
/// Options of user mode that only shape the guest's own view.
const USER_KEPT: &[&str] = &[
    "type",
    "id",
    "net",
    "host",
    "dhcpstart",
    "dns",
    "dnssearch",
    "domainname",
    "hostname",
    "ipv4",
    "ipv6",
    "ipv6-net",
    "ipv6-host",
    "ipv6-prefix",
    "ipv6-dns",
    "ipv6-prefixlen",
];
/// Options of `-nic` that belong to the device.
const NIC_DEVICE: &[&str] = &["model", "mac", "macaddr", "addr", "vectors"];

/// A tap of a machine on [`Network::Standby`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name in the machine's own network namespace.
    pub name: String,
    /// Name of the tap that it stands in for, where the command line gave one.
    pub old_name: Option<String>,
    /// Bridge that the old one was on, where the command line gave it.
    pub bridge: Option<String>,
}

/// What takes the place of a back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Substitute {
    RestrictedUser,
    LonelyTap,
    Hub,
    OpenUser,
}

/// Leads the network where the request says.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    if work.request.network == Network::Original {
        warn_of_original(work);
        return Ok(());
    }
    let had_any = ["net", "netdev", "nic"].iter().any(|n| work.line.has(n));
    if !had_any {
        default_network(work);
        return Ok(());
    }
    let mut hub = next_hub(work);
    for at in 0..work.line.args.len() {
        if matches!(work.line.args[at].name.as_str(), "netdev" | "nic") {
            substitute(work, at, &mut hub)?;
        }
    }
    legacy(work);
    Ok(())
}

fn warn_of_original(work: &mut Work<'_>) {
    for name in ["net", "netdev", "nic"] {
        for (at, options) in work.line.all(name) {
            let kind = options.get("type").unwrap_or_default();
            if !matches!(kind.as_str(), "user" | "nic" | "none" | "hubport") {
                let shown = work.line.args[at].shown();
                work.warn(format!("{shown} leads where the old guest's network led"));
            }
        }
    }
}

fn next_hub(work: &Work<'_>) -> u32 {
    ["net", "netdev", "nic"]
        .iter()
        .flat_map(|name| work.line.all(name))
        .filter_map(|(_, options)| options.get("hubid")?.parse::<u32>().ok())
        .map(|hub| hub.saturating_add(1))
        .fold(FIRST_HUB, u32::max)
}

/// QEMU gives a machine with no network option a device on user mode.
fn default_network(work: &mut Work<'_>) {
    if work.line.has("nodefaults") || work.request.network == Network::User {
        return;
    }
    work.line.push("net", "nic");
    if work.live() {
        work.line.push("net", "user,restrict=on");
        work.own_network = true;
    }
    work.change("the default network device leads nowhere");
}

fn substitute(work: &mut Work<'_>, at: usize, hub: &mut u32) -> Result<(), LaunchError> {
    let arg = &work.line.args[at];
    let old = arg.options();
    let kind = old.get("type").unwrap_or_default();
    if kind == "none" {
        return Ok(());
    }
    let shown = arg.shown();
    let choice = choose(work, at, &old, &kind)?;
    let mut new = build(&old, choice, hub);
    work.own_network |= matches!(choice, Substitute::RestrictedUser | Substitute::LonelyTap);
    if choice == Substitute::LonelyTap && work.request.network == Network::Standby {
        let name = format!("vt{}", work.taps.len());
        new.set("ifname", &name);
        let bridge = (kind == "bridge").then(|| old.get("br").unwrap_or_else(|| "br0".into()));
        work.taps.push(Tap {
            name,
            old_name: old.get("ifname"),
            bridge,
        });
    }
    let arg = &mut work.line.args[at];
    arg.value = Some(new.to_string());
    let new = arg.shown();
    let why = match choice {
        Substitute::OpenUser => "the guest reaches out through this host only",
        _ => "the network leads nowhere",
    };
    work.change(format!("{shown} is now {new}: {why}"));
    Ok(())
}

fn choose(
    work: &Work<'_>,
    at: usize,
    old: &Options,
    kind: &str,
) -> Result<Substitute, LaunchError> {
    let tap_like = TAP_LIKE.contains(&kind) && !is_plain(work, at, old);
    if work.request.network == Network::User {
        return match work.live() && tap_like {
            true => Err(LaunchError::UserNetwork {
                id: old.get("id").unwrap_or_default(),
                kind: kind.to_owned(),
            }),
            false => Ok(Substitute::OpenUser),
        };
    }
    if work.request.network == Network::Standby && TAP_LIKE.contains(&kind) {
        return Ok(Substitute::LonelyTap);
    }
    Ok(match (work.live(), kind) {
        (true, "user") => Substitute::RestrictedUser,
        (true, _) if tap_like => Substitute::LonelyTap,
        _ => Substitute::Hub,
    })
}

/// Whether the device on this back end takes any back end.
fn is_plain(work: &Work<'_>, at: usize, old: &Options) -> bool {
    let driver = match work.line.args[at].name.as_str() {
        "nic" => old.get("model"),
        _ => work
            .line
            .all("device")
            .into_iter()
            .find(|(_, device)| device.get("netdev") == old.get("id"))
            .and_then(|(_, device)| device.get("driver")),
    };
    driver.is_some_and(|driver| PLAIN_DEVICES.contains(&driver.as_str()))
}

fn queues(old: &Options) -> u32 {
    let given = old.get("queues").and_then(|n| n.parse().ok());
    let passed = old.get("fds").map(|fds| fds.split(':').count() as u32);
    given.or(passed).unwrap_or(1)
}

fn build(old: &Options, choice: Substitute, hub: &mut u32) -> Options {
    let mut new = old.clone();
    let user = matches!(choice, Substitute::OpenUser | Substitute::RestrictedUser)
        && old.get("type").as_deref() == Some("user");
    let kept: &[&str] = if user { USER_KEPT } else { &["type", "id"] };
    // `addr` is the device's place on its bus, `addr.type` and its like a stream's address.
    let stream = old.keys().iter().any(|key| key.starts_with("addr."));
    new.keep_only("", |key| {
        kept.contains(&key) || (NIC_DEVICE.contains(&key) && !(stream && key == "addr"))
    });
    match choice {
        Substitute::OpenUser => new.set("type", "user"),
        Substitute::RestrictedUser => new.set_flag("restrict", true),
        Substitute::Hub => {
            new.set("type", "hubport");
            new.set_number("hubid", *hub);
            *hub = hub.saturating_add(1);
        }
        Substitute::LonelyTap => {
            new.set("type", "tap");
            new.set("script", "no");
            new.set("downscript", "no");
            if queues(old) > 1 {
                new.set_number("queues", queues(old));
            }
        }
    }
    new
}

/// `-net`: every device and back end of it hangs on one hub.
fn legacy(work: &mut Work<'_>) {
    let back_ends: Vec<(usize, Options)> = (work.line.all("net").into_iter())
        .filter(|(_, options)| !matches!(options.get("type").as_deref(), Some("nic" | "none")))
        .collect();
    let mut removed = Vec::new();
    for (at, options) in back_ends {
        let shown = work.line.args[at].shown();
        let user = options.get("type").as_deref() == Some("user");
        let open = work.request.network == Network::User;
        if open && removed.is_empty() && !work.line.args[..at].iter().any(is_user_net) {
            let new = build(&options, Substitute::OpenUser, &mut 0);
            work.line.args[at].value = Some(new.to_string());
            work.change(format!(
                "{shown} is now -net {new}: out through this host only"
            ));
        } else if user && work.live() {
            let new = build(&options, Substitute::RestrictedUser, &mut 0);
            work.line.args[at].value = Some(new.to_string());
            work.own_network = true;
            work.change(format!(
                "{shown} is now -net {new}: the network leads nowhere"
            ));
        } else {
            removed.push(at);
            work.change(format!("{shown} left out: the network leads nowhere"));
        }
    }
    work.line.remove_at(&removed);
    if !removed.is_empty() && !["net", "netdev", "nic"].iter().any(|n| work.line.has(n)) {
        // With no network option at all QEMU would add its default one.
        work.line.push("net", "none");
    }
}

fn is_user_net(arg: &super::command_line::Arg) -> bool {
    arg.name == "net" && arg.options().get("type").as_deref() == Some("user")
}

/// A device that reaches other guests or the host beside the network.
pub(super) fn vsock(work: &mut Work<'_>) -> Result<(), LaunchError> {
    if work.request.network == Network::Original {
        return Ok(());
    }
    for (at, mut device) in work.line.all("device") {
        let driver = device.get("driver").unwrap_or_default();
        if !driver.starts_with("vhost-vsock") {
            continue;
        }
        let shown = work.line.args[at].shown();
        if device.get("vhostfd").is_some() {
            return Err(refused(
                &shown,
                "it uses a descriptor that its parent opened",
                "start the machine by hand with a vsock device of its own",
            ));
        }
        let cid = fresh_cid(work, at);
        device.set_number("guest-cid", cid);
        work.line.args[at].value = Some(device.to_string());
        work.change(format!(
            "{shown} has context id {cid}: the old one may be in use"
        ));
        work.warn("the guest's vsock address differs from the old guest's");
    }
    Ok(())
}

/// A context id that other guests hardly have: they are numbered from 3 by hand.
fn fresh_cid(work: &Work<'_>, at: usize) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (&work.request.qmp_socket, at).hash(&mut hasher);
    0x4000_0000 | (hasher.finish() as u32 & 0x3FFF_FFFF)
}
