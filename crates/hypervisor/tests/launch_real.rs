//! Machines of a real QEMU: saved, planned, and started again on copies of their disks.
//!
//! SeaBIOS alone runs in them; that is enough for QEMU to compare every device with the state.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::launch::{
    Incoming, LaunchRequest, Launched, Network, RestoredDisk, StartError, plan, start,
};
use vmtwin_hypervisor::machine::{AddressKind, Disk, MACHINE_FORMAT, Machine};

const QEMU: &str = "qemu-system-x86_64";
const PATIENCE: Duration = Duration::from_secs(20);

struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> Qmp {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
            }
            sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
        };
        qmp.reader.read_line(&mut String::new()).unwrap();
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        self.reader
            .get_mut()
            .write_all(request.to_string().as_bytes())
            .unwrap();
        loop {
            let mut line = String::new();
            assert!(
                self.reader.read_line(&mut line).unwrap() > 0,
                "QEMU is gone"
            );
            let answer: Value = serde_json::from_str(&line).unwrap();
            if answer.get("event").is_none() {
                return answer
                    .get("return")
                    .unwrap_or_else(|| panic!("{command}: {answer}"))
                    .clone();
            }
        }
    }

    fn wait_for(&mut self, command: &str, status: &str) {
        let begin = Instant::now();
        loop {
            let answer = self.run(command, json!({}));
            if answer["status"] == status {
                return;
            }
            assert_ne!(answer["status"], "failed", "{answer}");
            assert!(begin.elapsed() < PATIENCE, "{answer}");
            sleep(Duration::from_millis(10));
        }
    }
}

/// The old machine. Ended when the test is.
struct Old {
    child: Child,
    qmp: Qmp,
}

impl Drop for Old {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The new machine. Ended when the test is.
struct New(Launched);

impl Drop for New {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// Runs `options`, in which `@` is the test's folder.
fn boot(dir: &Path, options: &str, namespace: bool) -> Old {
    let line = format!("{QEMU} -accel tcg -m 32 {options} -qmp unix:@/old.qmp,server=on,wait=off");
    let line = line.replace('@', dir.to_str().unwrap());
    let wrapper = if namespace { unshare() } else { &[] };
    let words: Vec<&str> = wrapper.iter().copied().chain(line.split(' ')).collect();
    let child = Command::new(words[0])
        .args(&words[1..])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let qmp = Qmp::connect(&dir.join("old.qmp"));
    Old { child, qmp }
}

fn unshare() -> &'static [&'static str] {
    match rustix::process::geteuid().is_root() {
        true => &["unshare", "--net", "--"],
        false => &["unshare", "--user", "--map-root-user", "--net", "--"],
    }
}

/// Some containers allow neither; then only what needs no namespace is tested.
fn has_namespaces() -> bool {
    let words = unshare();
    let status = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .status();
    let can = status.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: no network namespaces here");
    }
    can
}

fn image(path: &Path) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg("16M")
        .status()
        .unwrap();
    assert!(made.success());
}

/// The manifest, as an inspection would make it.
fn inspect(old: &mut Old, dir: &Path) -> Machine {
    let pid = old.child.id();
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let args = String::from_utf8(args).unwrap();
    let machine_type = old
        .qmp
        .run("qom-get", json!({"path": "/machine", "property": "type"}));
    let blocks = old.qmp.run("query-block", json!({}));
    let disks = blocks
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|block| disk(block, dir));
    Machine {
        format: MACHINE_FORMAT,
        name: None,
        uuid: String::new(),
        qemu_version: String::new(),
        machine_type: machine_type
            .as_str()
            .unwrap()
            .trim_end_matches("-machine")
            .to_owned(),
        run_state: "running".to_owned(),
        memory_bytes: 32 << 20,
        pid,
        uid: 0,
        cwd: dir.to_str().unwrap().to_owned(),
        args: args
            .trim_end_matches('\0')
            .split('\0')
            .map(str::to_owned)
            .collect(),
        disks: disks.collect(),
        files: Vec::new(),
        memory_blockers: Vec::new(),
        blockers: Vec::new(),
    }
}

fn disk(block: &Value, dir: &Path) -> Option<Disk> {
    let inserted = block.get("inserted")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let qdev = text(&block["qdev"]);
    let device_id = qdev
        .strip_prefix("/machine/peripheral/")
        .unwrap_or_default();
    let device_id = device_id.split('/').next().unwrap_or_default().to_owned();
    let id = [
        device_id,
        text(&block["device"]),
        text(&inserted["node-name"]),
    ]
    .into_iter()
    .find(|id| !id.is_empty())?;
    Some(Disk {
        id,
        qdev,
        node_name: text(&inserted["node-name"]),
        address: dir.join(text(&inserted["file"])).to_str()?.to_owned(),
        kind: AddressKind::File,
        format: text(&inserted["drv"]),
        size_bytes: inserted["image"]["virtual-size"].as_u64()?,
        read_only: inserted["ro"].as_bool()?,
        firmware: false,
        included: !inserted["ro"].as_bool()?,
        excluded_because: None,
        backing: Vec::new(),
    })
}

fn copies(machine: &Machine, dir: &Path) -> Vec<RestoredDisk> {
    let copy = |disk: &Disk| {
        let path = dir.join(format!("new-{}", disk.id));
        std::fs::copy(&disk.address, &path).unwrap();
        RestoredDisk {
            id: disk.id.clone(),
            path,
            format: disk.format.clone(),
        }
    };
    machine
        .disks
        .iter()
        .filter(|d| d.included)
        .map(copy)
        .collect()
}

fn request(dir: &Path, disks: Vec<RestoredDisk>) -> LaunchRequest {
    LaunchRequest {
        disks,
        qmp_socket: dir.join("new.qmp"),
        incoming: Incoming::State,
        network: Network::None,
        name: Some("new".to_owned()),
        console_log: dir.join("console.log"),
        console_socket: None,
        agent_socket: None,
        dir: dir.to_owned(),
        accel_override: None,
        new_vmgenid: true,
        tpm_socket: None,
    }
}

/// Saves the machine, ends it, and hands out its manifest.
fn save(dir: &Path, options: &str, namespace: bool) -> Machine {
    let mut old = boot(dir, options, namespace);
    old.qmp.run("cont", json!({}));
    sleep(Duration::from_millis(400));
    let machine = inspect(&mut old, dir);
    let state: PathBuf = dir.join("state");
    old.qmp.run(
        "migrate",
        json!({"uri": format!("file:{}", state.display())}),
    );
    old.qmp.wait_for("query-migrate", "completed");
    old.qmp.run("quit", json!({}));
    old.child.wait().unwrap();
    machine
}

/// What the machine's generation is before it is copied.
const OLD_GENERATION: &str = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";

/// Saves a machine and starts it again; both a live state and a boot must run.
fn round_trip(options: &str, namespace: bool) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(&dir.join("a.qcow2"));
    image(&dir.join("b,c.qcow2"));
    let machine = save(dir, options, namespace);
    let mut request = request(dir, copies(&machine, dir));
    for incoming in [Incoming::State, Incoming::None] {
        request.incoming = incoming;
        let plan = plan(&machine, &request).unwrap();
        if plan.own_network && !has_namespaces() {
            continue;
        }
        let state = plan
            .incoming
            .then(|| File::open(dir.join("state")).unwrap().into());
        let new = start(&plan, state, &dir.join("qemu.log"))
            .unwrap_or_else(|error| panic!("{error}\n{plan:#?}"));
        let mut new = New(new);
        let mut qmp = Qmp::connect(&plan.qmp_socket);
        qmp.wait_for("query-status", "running");
        if options.contains("vmgenid") {
            let id = qmp.run("query-vm-generation-id", json!({}));
            assert_ne!(
                id["guid"], OLD_GENERATION,
                "it does not know that it is a copy"
            );
        }
        let blocks = qmp.run("query-block", json!({})).to_string();
        for disk in &machine.disks {
            assert!(!blocks.contains(&format!("\"{}\"", disk.address)) || disk.read_only);
        }
        new.0.kill().unwrap();
        let log = new.0.log_tail();
        assert!(!log.contains("error") && !log.contains("failed"), "{log}");
        assert!(dir.join("console.log").exists() || !options_have_console(options));
    }
}

fn options_have_console(options: &str) -> bool {
    !options.contains("-nodefaults")
        || options.contains("-serial")
        || options.contains("isa-serial")
}

#[test]
fn a_drive_on_virtio() {
    round_trip(
        "-display none -net none -drive file=a.qcow2,if=virtio,format=qcow2",
        false,
    );
}

#[test]
fn a_short_disk_option_and_the_default_network() {
    round_trip(
        "-display none -hda a.qcow2 -drive file=b,,c.qcow2,if=ide,index=1 -S",
        false,
    );
}

#[test]
fn q35_with_nodes_and_a_user_network() {
    round_trip(
        "-M q35 -display none -blockdev driver=file,node-name=p0,filename=@/a.qcow2 \
         -blockdev driver=qcow2,node-name=n0,file=p0 -device virtio-blk-pci,drive=n0,id=vd0 \
         -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22 -device virtio-net-pci,netdev=net0",
        false,
    );
}

#[test]
fn nodes_in_json() {
    round_trip(
        r#"-nodefaults -display none -blockdev {"driver":"qcow2","node-name":"n0","file":{"driver":"file","filename":"a.qcow2"}} -device {"driver":"virtio-blk-pci","drive":"n0"}"#,
        false,
    );
}

#[test]
fn nographic_with_all_defaults() {
    round_trip("-nographic", false);
}

#[test]
fn serial_ports_and_a_nic_in_short() {
    round_trip(
        "-display none -nic user,model=virtio -serial none -serial null -serial file:@/old.log \
         -parallel none",
        false,
    );
}

#[test]
fn a_tap_insists_on_a_tap() {
    if has_namespaces() {
        let tap = "tap,id=n,script=no,downscript=no";
        round_trip(
            &format!("-nodefaults -display none -netdev {tap} -device virtio-net-pci,netdev=n"),
            true,
        );
        round_trip(
            &format!(
                "-nodefaults -display none -netdev {tap},queues=2 \
                 -device virtio-net-pci,netdev=n,mq=on,vectors=6"
            ),
            true,
        );
        round_trip(
            "-display none -nic tap,script=no,downscript=no,model=e1000",
            true,
        );
    }
}

#[test]
fn memory_in_a_shared_file() {
    round_trip(
        "-nodefaults -display none -object memory-backend-file,id=m,size=32M,mem-path=@/mem,share=on \
         -machine pc,memory-backend=m",
        false,
    );
}

#[test]
fn channels_of_every_kind() {
    round_trip(
        "-nodefaults -display none -vga std -chardev socket,id=ga,path=@/ga,server=on,wait=off \
         -device virtio-serial-pci -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0 \
         -chardev null,id=c0 -device isa-serial,chardev=c0 \
         -device vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87 \
         -chardev socket,id=mon,path=@/mon,server=on,wait=off -mon chardev=mon \
         -fsdev local,id=f,path=@,security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t \
         -audiodev none,id=snd -device AC97,audiodev=snd -vnc unix:@/vnc",
        false,
    );
}

#[test]
fn a_medium_that_went_away() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("cd.iso"), vec![0; 2 << 20]).unwrap();
    let machine = save(dir, "-display none -net none -cdrom cd.iso", false);
    std::fs::remove_file(dir.join("cd.iso")).unwrap();
    let plan = plan(&machine, &request(dir, Vec::new())).unwrap();
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    let state = File::open(dir.join("state")).unwrap().into();
    let _new = New(start(&plan, Some(state), &dir.join("qemu.log")).unwrap());
    Qmp::connect(&plan.qmp_socket).wait_for("query-status", "running");
}

#[test]
fn an_early_end_is_told_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut old = boot(dir, "-nodefaults -display none", false);
    let mut machine = inspect(&mut old, dir);
    machine.args.push("-no-such-option".to_owned());
    let mut request = request(dir, Vec::new());
    request.incoming = Incoming::None;
    let plan = plan(&machine, &request).unwrap();
    let error = start(&plan, None, &dir.join("qemu.log")).unwrap_err();
    assert!(
        matches!(&error, StartError::EndedEarly { tail, .. } if tail.contains("no-such-option")),
        "{error}"
    );
}
