//! What can't be started a second time, refused by name.

use super::error::LaunchError;
use super::options::Options;
use super::plan::Work;
use super::request::Network;

/// Devices that a second machine can't have: prefix of the driver, why, and what to do.
const DEVICES: &[(&str, &str, &str)] = &[
    (
        "vfio-",
        "it hands a device of the host to one guest, and its state is not in a backup",
        "take it off the machine, or start the machine by hand without its live state",
    ),
    (
        "usb-host",
        "it hands a USB device of the host to one guest",
        "unplug it before the backup, or start the machine by hand without its live state",
    ),
    (
        "vhost-user-",
        "its process serves one guest over a socket",
        "start the machine by hand with a back end process of its own",
    ),
    (
        "vhost-scsi",
        "it hands a SCSI target of the host to one guest",
        "start the machine by hand on restored disks",
    ),
    (
        "vhost-vdpa-",
        "it hands a device of the host to one guest",
        "start the machine by hand on restored disks",
    ),
    (
        "scsi-generic",
        "it hands a SCSI device of the host to one guest",
        "start the machine by hand on restored disks",
    ),
    (
        "scsi-block",
        "it hands a SCSI device of the host to one guest",
        "start the machine by hand on restored disks",
    ),
    (
        "ivshmem",
        "it shares memory with other guests",
        "start the machine by hand with shared memory of its own",
    ),
];

/// Options whose content the manifest does not have.
const OPTIONS: &[(&str, &str)] = &[
    ("readconfig", "its devices stand in a file of the host"),
    ("add-fd", "it uses a descriptor that its parent opened"),
    ("fw_cfg-fd", "it uses a descriptor that its parent opened"),
];

/// Refuses what can't be started safely.
pub(super) fn refuse(work: &Work<'_>) -> Result<(), LaunchError> {
    for arg in &work.line.args {
        if let Some((_, why)) = OPTIONS.iter().find(|(name, _)| *name == arg.name) {
            let what_to_do = "start the machine by hand on restored disks";
            return Err(refused(&arg.shown(), why, what_to_do));
        }
        match arg.name.as_str() {
            "device" => refuse_device(&arg.shown(), &arg.options())?,
            "usbdevice" if arg.value.as_deref().is_some_and(|v| v.starts_with("host:")) => {
                let what_to_do = "unplug it before the backup";
                let why = "it hands a USB device of the host to one guest";
                return Err(refused(&arg.shown(), why, what_to_do));
            }
            "netdev" | "net" | "nic" if work.request.network == Network::Original => {
                refuse_descriptor(&arg.shown(), &arg.options())?;
            }
            "object" => refuse_object(&arg.shown(), &arg.options())?,
            _ => {}
        }
    }
    Ok(())
}

fn refuse_device(shown: &str, options: &Options) -> Result<(), LaunchError> {
    let driver = options.get("driver").unwrap_or_default();
    match DEVICES.iter().find(|(name, ..)| driver.starts_with(name)) {
        Some((_, why, what_to_do)) => Err(refused(shown, why, what_to_do)),
        None => Ok(()),
    }
}

fn refuse_descriptor(shown: &str, options: &Options) -> Result<(), LaunchError> {
    let passed = ["fd", "fds", "vhostfd", "vhostfds"];
    match passed.iter().any(|key| options.get(key).is_some()) {
        true => Err(refused(
            shown,
            "it uses a descriptor that its parent opened",
            "start it with no network or on a user-mode network",
        )),
        false => Ok(()),
    }
}

fn refuse_object(shown: &str, options: &Options) -> Result<(), LaunchError> {
    match options.get("qom-type").as_deref() {
        Some("input-linux") => Err(refused(
            shown,
            "it takes an input device of the host",
            "start the machine by hand without it",
        )),
        _ => Ok(()),
    }
}

/// An option that is refused.
pub(super) fn refused(option: &str, why: &str, what_to_do: &str) -> LaunchError {
    LaunchError::Unsafe {
        option: option.to_owned(),
        why: why.to_owned(),
        what_to_do: what_to_do.to_owned(),
    }
}
