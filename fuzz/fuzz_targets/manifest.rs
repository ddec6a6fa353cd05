//! Any bytes as the machine in a snapshot, or where they are no JSON, as the words of its command
//! line: planned to be started again with and without a state, its disks restored and not. Either
//! there is a reason why not, or a command line that has our socket.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use vmtwin_hypervisor::launch::{
    Incoming, LaunchRequest, Network, RestoredDisk, has_tpm_emulator, plan,
};
use vmtwin_hypervisor::machine::Machine;

/// The first bytes choose what is asked for; so the fuzzer can vary it.
fn request(choice: u8, machine: &Machine) -> LaunchRequest {
    let bit = |number: u8| choice >> number & 1 == 1;
    let restored = |disk: &vmtwin_hypervisor::machine::Disk| RestoredDisk {
        id: disk.id.clone(),
        path: PathBuf::from("/nowhere/new").join(&disk.id),
        format: "raw".to_owned(),
    };
    LaunchRequest {
        disks: match bit(0) {
            true => machine.disks.iter().map(restored).collect(),
            false => Vec::new(),
        },
        qmp_socket: PathBuf::from("/nowhere/qmp.sock"),
        incoming: match bit(1) {
            true => Incoming::State,
            false => Incoming::None,
        },
        network: match choice >> 2 & 3 {
            0 => Network::None,
            1 => Network::User,
            _ => Network::Original,
        },
        name: bit(4).then(|| "copy, of = it".to_owned()),
        console_log: PathBuf::from("/nowhere/console.log"),
        dir: PathBuf::from("/nowhere"),
        accel_override: bit(5).then(|| "tcg".to_owned()),
        new_vmgenid: bit(6),
        tpm_socket: bit(7).then(|| PathBuf::from("/nowhere/tpm.sock")),
    }
}

/// A machine with one disk and this command line.
fn machine_of(line: &[u8]) -> Machine {
    let words = String::from_utf8_lossy(line);
    let mut args = vec!["qemu-system-x86_64"];
    args.extend(words.split([' ', '\n']));
    serde_json::from_value(json!({
        "format": 1, "name": "web", "uuid": "", "qemu_version": "10.0.2",
        "machine_type": "pc-q35-10.0", "run_state": "running", "memory_bytes": 1 << 28,
        "pid": 1, "uid": 0, "cwd": "/vm", "args": args, "files": [],
        "memory_blockers": [], "blockers": [],
        "disks": [{
            "id": "d0", "qdev": "/machine/peripheral/d0/virtio-backend", "node_name": "n0",
            "address": "/vm/a.img", "kind": "file", "format": "qcow2", "size_bytes": 1 << 20,
            "read_only": false, "firmware": false, "included": true,
            "excluded_because": null, "backing": [],
        }],
    }))
    .expect("a machine")
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, json)) = bytes.split_first() else {
        return;
    };
    let machine = serde_json::from_slice(json).unwrap_or_else(|_| machine_of(json));
    let request = request(*choice, &machine);
    let tpm = has_tpm_emulator(&machine);
    let Ok(planned) = plan(&machine, &request) else {
        return;
    };
    assert_eq!(planned.args.first(), machine.args.first());
    assert!(!tpm || request.tpm_socket.is_some());
    let monitors: Vec<&String> = (planned.args.windows(2))
        .filter(|pair| pair[0] == "-qmp")
        .map(|pair| &pair[1])
        .collect();
    assert!(monitors.contains(&&"unix:/nowhere/qmp.sock,server=on,wait=off".to_owned()));
});
