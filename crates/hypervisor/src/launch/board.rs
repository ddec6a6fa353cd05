//! The machine itself: type, accelerator, name, and what tells QEMU how to run.

use std::path::Path;

use super::plan::Work;

/// Options that must not be repeated, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("S", "the new machine runs, or waits for its state"),
    ("incoming", "that state is long in"),
    ("loadvm", "the disks hold the point of the backup"),
    ("daemonize", "it is started detached"),
    ("pidfile", "the file belongs to the old guest"),
    ("D", "the log belongs to the old guest"),
    ("d", "the log belongs to the old guest"),
    ("trace", "the log belongs to the old guest"),
    ("runas", "it runs as whoever starts it"),
    ("chroot", "it runs where it is started"),
    ("run-with", "it runs where it is started"),
    ("preconfig", "nobody would end that state"),
    ("dump-vmstate", "nobody asked for that"),
];
/// Options whose whole value is a file.
const FILES: &[&str] = &["kernel", "initrd", "dtb", "bios", "option-rom"];

/// Settles the rest of the command line.
pub(super) fn rewrite(work: &mut Work<'_>) {
    for (name, why) in LEFT_OUT {
        work.drop_all(name, why);
    }
    machine_type(work);
    accelerator(work);
    name(work);
    generation_id(work);
    files(work);
}

/// The type with its version: an alias means another machine under another QEMU.
fn machine_type(work: &mut Work<'_>) {
    let machine_type = work.machine.machine_type.clone();
    if machine_type.is_empty() {
        work.warn("the manifest holds no machine type; QEMU's default may differ");
        return;
    }
    let mut old = None;
    for (at, mut options) in work.line.all("machine") {
        if let Some(value) = options.get("type") {
            old = Some(value);
            options.set("type", &machine_type);
            work.line.args[at].value = Some(options.to_string());
        }
    }
    match old {
        None => {
            work.line
                .args
                .insert(0, super::command_line::Arg::new("machine", &machine_type));
            work.change(format!("machine type {machine_type} is given by name"));
        }
        Some(old) if old != machine_type => {
            work.change(format!("machine type {old} was {machine_type}"));
        }
        Some(_) => {}
    }
}

fn accelerator(work: &mut Work<'_>) {
    let Some(accel) = work.request.accel_override.clone() else {
        return;
    };
    for name in ["accel", "enable-kvm", "no-kvm", "enable-hax"] {
        work.drop_all(name, "another accelerator was asked for");
    }
    let mut was_kvm_only = Vec::new();
    for (at, mut options) in work.line.all("machine") {
        options.remove("accel");
        if accel.starts_with("tcg") {
            for key in [
                "kernel_irqchip",
                "kernel-irqchip",
                "kvm_shadow_mem",
                "kvm-shadow-mem",
            ] {
                if options.get(key).is_some() {
                    options.remove(key);
                    was_kvm_only.push(key);
                }
            }
        }
        work.line.args[at].value = Some(options.to_string());
    }
    let empty: Vec<usize> = (work.line.all("machine").into_iter())
        .map(|(at, _)| at)
        .filter(|at| work.line.args[*at].value.as_deref() == Some(""))
        .collect();
    work.line.remove_at(&empty);
    for key in was_kvm_only {
        work.change(format!("machine option {key} left out: it needs KVM"));
    }
    host_cpu(work, &accel);
    work.change(format!("accelerator {accel}, as asked for"));
    work.line.push("accel", accel);
}

/// `-cpu host` needs the host's CPU.
fn host_cpu(work: &mut Work<'_>, accel: &str) {
    if !accel.starts_with("tcg") {
        return;
    }
    for (at, _) in work.line.all("cpu") {
        let value = work.line.args[at].value.clone().unwrap_or_default();
        let (model, rest) = value.split_once(',').unwrap_or((&value, ""));
        if model != "host" {
            continue;
        }
        let comma = if rest.is_empty() { "" } else { "," };
        work.line.args[at].value = Some(format!("max{comma}{rest}"));
        work.warn("-cpu host is -cpu max without KVM: a live state may not load");
    }
}

fn name(work: &mut Work<'_>) {
    let Some(name) = work.request.name.clone() else {
        return;
    };
    work.change(format!("the name is {name}, as asked for"));
    match work.line.all("name").pop() {
        Some((at, mut options)) => {
            options.set("guest", &name);
            work.line.args[at].value = Some(options.to_string());
        }
        None => {
            let name = super::options::escape(&name);
            work.line.push("name", format!("guest={name}"));
        }
    }
}

/// A copy has a generation of its own, so that its system draws new keys and random numbers.
fn generation_id(work: &mut Work<'_>) {
    if !work.request.new_vmgenid {
        return;
    }
    for (at, mut device) in work.line.all("device") {
        if device.get("driver").as_deref() == Some("vmgenid") {
            device.set("guid", "auto");
            work.line.args[at].value = Some(device.to_string());
            work.change("a new generation id tells the guest that it is a copy");
        }
    }
}

/// Files that QEMU reads as it starts.
fn files(work: &mut Work<'_>) {
    for at in 0..work.line.args.len() {
        let arg = work.line.args[at].clone();
        let Some(value) = arg.value.clone().filter(|value| !value.is_empty()) else {
            continue;
        };
        match arg.name.as_str() {
            name if FILES.contains(&name) => whole(work, at, &value, name == "bios"),
            "L" => whole(work, at, &value, true),
            "fw_cfg" | "smbios" | "acpitable" => part(work, at, "file"),
            "device" => part(work, at, "romfile"),
            "object" => part(work, at, "filename"),
            _ => {}
        }
    }
}

/// `searched`: QEMU looks for it in its own folder as well.
fn whole(work: &mut Work<'_>, at: usize, value: &str, searched: bool) {
    let path = work.absolute(value);
    if Path::new(&path).exists() {
        work.line.args[at].value = Some(path);
    } else if !searched || value.starts_with('/') {
        let shown = work.line.args[at].shown();
        work.warn(format!("{shown}: {path} is no longer there"));
    }
}

fn part(work: &mut Work<'_>, at: usize, key: &str) {
    let mut options = work.line.args[at].options();
    let Some(value) = options.get(key).filter(|value| !value.is_empty()) else {
        return;
    };
    let path = work.absolute(&value);
    if !Path::new(&path).exists() {
        if key == "file" {
            let shown = work.line.args[at].shown();
            work.warn(format!("{shown}: {path} is no longer there"));
        }
        return;
    }
    if path != value {
        options.set(key, &path);
        work.line.args[at].value = Some(options.to_string());
    }
}
