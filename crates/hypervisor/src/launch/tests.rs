//! Tables of command lines and what becomes of them.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::machine::{AddressKind, Disk, Machine};

const TAIL: &str = "-qmp unix:/new/qmp,server=on,wait=off -incoming fd:0";
const SERIAL: &str = "-serial file:/new/console";

fn disk(id: &str, node_name: &str, address: &str) -> Disk {
    Disk {
        id: id.to_owned(),
        qdev: String::new(),
        node_name: node_name.to_owned(),
        address: address.to_owned(),
        kind: AddressKind::File,
        format: "qcow2".to_owned(),
        size_bytes: 1 << 30,
        read_only: false,
        firmware: false,
        included: true,
        excluded_because: None,
        backing: Vec::new(),
    }
}

fn machine(line: &str, disks: Vec<Disk>) -> Machine {
    Machine {
        format: crate::machine::MACHINE_FORMAT,
        name: Some("old".to_owned()),
        uuid: String::new(),
        qemu_version: "10.0.2".to_owned(),
        machine_type: "pc-i440fx-10.0".to_owned(),
        run_state: "running".to_owned(),
        memory_bytes: 1 << 29,
        pid: 1,
        uid: 0,
        cwd: "/vm".to_owned(),
        args: line.split(' ').map(str::to_owned).collect(),
        disks,
        files: Vec::new(),
        memory_blockers: Vec::new(),
        blockers: Vec::new(),
    }
}

/// An image for every disk, `/new/ID`, as qcow2.
fn request(machine: &Machine) -> LaunchRequest {
    let image = |disk: &Disk| RestoredDisk {
        id: disk.id.clone(),
        path: Path::new("/new").join(&disk.id),
        format: "qcow2".to_owned(),
    };
    LaunchRequest {
        disks: machine
            .disks
            .iter()
            .filter(|d| d.included)
            .map(image)
            .collect(),
        qmp_socket: PathBuf::from("/new/qmp"),
        incoming: Incoming::State,
        network: Network::None,
        name: None,
        console_log: PathBuf::from("/new/console"),
        console_socket: None,
        agent_socket: None,
        dir: PathBuf::from("/new"),
        accel_override: None,
        new_vmgenid: false,
        tpm_socket: None,
    }
}

fn planned(machine: &Machine, request: &LaunchRequest) -> String {
    plan(machine, request).unwrap().args.join(" ")
}

/// `qemu -nodefaults … -machine pc` so that only the tested option differs.
fn bare(options: &str) -> String {
    format!("qemu -nodefaults -machine pc {options}")
}

fn bare_after(options: &str) -> String {
    let space = if options.is_empty() { "" } else { " " };
    format!("qemu -nodefaults -machine pc-i440fx-10.0{space}{options} -display none {TAIL}")
}

#[test]
fn disks_are_found_however_they_are_given() {
    let cases = [
        (
            "-drive file=a.img,if=virtio,format=qcow2,cache=none,l2-cache-size=1M,snapshot=off",
            disk("virtio0", "#block1", "/vm/a.img"),
            "-drive file=/new/virtio0,format=qcow2,if=virtio,cache=none",
        ),
        (
            "-drive file=/x/a,,b.img,if=none,id=d0,file.locking=off -device virtio-blk-pci,drive=d0",
            disk("d0", "#block1", "/x/a,b.img"),
            "-drive file=/new/d0,format=qcow2,if=none,id=d0 -device virtio-blk-pci,drive=d0",
        ),
        (
            "-hda a.img",
            disk("ide0-hd0", "#block1", "/vm/a.img"),
            "-drive file=/new/ide0-hd0,format=qcow2,index=0,media=disk",
        ),
        (
            "a.img",
            disk("ide0-hd0", "#block1", "/vm/a.img"),
            "-drive file=/new/ide0-hd0,format=qcow2,index=0,media=disk",
        ),
        (
            // An external snapshot since the start: the command line names what is now a backing.
            "-drive file=base.img,if=none,id=d0 -device virtio-blk-pci,drive=d0,id=vd0",
            disk("vd0", "overlay", "/vm/overlay.img"),
            "-drive file=/new/vd0,format=qcow2,if=none,id=d0 -device virtio-blk-pci,drive=d0,id=vd0",
        ),
        (
            "-blockdev driver=raw,node-name=n0,discard=unmap,offset=0,file.driver=file,file.filename=a.img -device virtio-blk-pci,drive=n0",
            disk("n0", "n0", "/vm/a.img"),
            "-blockdev driver=qcow2,node-name=n0,discard=unmap,file.driver=file,file.filename=/new/n0 -device virtio-blk-pci,drive=n0",
        ),
        (
            "-blockdev file,node-name=p0,filename=a.img -blockdev qcow2,node-name=n0,file=p0,backing=b0 -blockdev raw,node-name=b0,file.driver=file,file.filename=b.img -device virtio-blk-pci,drive=n0,id=vd0",
            disk("vd0", "n0", "/vm/a.img"),
            "-blockdev qcow2,node-name=n0,file.driver=file,file.filename=/new/vd0 -device virtio-blk-pci,drive=n0,id=vd0",
        ),
        (
            r#"-blockdev {"driver":"file","filename":"/vm/a.img","node-name":"p0"} -blockdev {"node-name":"n0","read-only":false,"driver":"raw","file":"p0"} -device {"driver":"virtio-blk-pci","drive":"n0","id":"vd0"}"#,
            disk("vd0", "n0", "/vm/a.img"),
            r#"-blockdev {"node-name":"n0","read-only":false,"driver":"qcow2","file":{"driver":"file","filename":"/new/vd0"}} -device {"driver":"virtio-blk-pci","drive":"n0","id":"vd0"}"#,
        ),
        (
            "-object throttle-group,id=g -blockdev throttle,node-name=t0,throttle-group=g,file=n0 -blockdev qcow2,node-name=n0,file.driver=file,file.filename=a.img -device virtio-blk-pci,drive=t0",
            disk("t0", "t0", "/vm/a.img"),
            "-object throttle-group,id=g -blockdev throttle,node-name=t0,throttle-group=g,file=n0 -blockdev qcow2,node-name=n0,file.driver=file,file.filename=/new/t0 -device virtio-blk-pci,drive=t0",
        ),
        (
            "-blockdev throttle,node-name=t0,throttle-group=g,file.driver=qcow2,file.file.driver=file,file.file.filename=a.img -device virtio-blk-pci,drive=t0",
            disk("t0", "t0", "/vm/a.img"),
            "-blockdev throttle,node-name=t0,throttle-group=g,file.driver=qcow2,file.file.driver=file,file.file.filename=/new/t0 -device virtio-blk-pci,drive=t0",
        ),
        (
            // Nothing agrees but kind and place.
            "-drive file=nbd://h/x,if=virtio",
            disk("virtio0", "#block1", "nbd://h:10809/x"),
            "-drive file=/new/virtio0,format=qcow2,if=virtio",
        ),
    ];
    for (options, disk, expected) in cases {
        let machine = machine(&bare(options), vec![disk]);
        assert_eq!(planned(&machine, &request(&machine)), bare_after(expected));
    }
}

#[test]
fn two_disks_are_not_mixed_up() {
    let line = bare("-drive file=a,if=virtio -drive file=b,if=virtio");
    let machine = machine(
        &line,
        vec![disk("y", "#2", "/vm/b"), disk("x", "#1", "/vm/a")],
    );
    let expected =
        "-drive file=/new/x,format=qcow2,if=virtio -drive file=/new/y,format=qcow2,if=virtio";
    assert_eq!(planned(&machine, &request(&machine)), bare_after(expected));
}

#[test]
fn firmware_variables_are_a_disk_and_code_stays() {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("code.fd");
    std::fs::write(&code, b"code").unwrap();
    let line = bare(&format!(
        "-drive if=pflash,format=raw,readonly=on,file={} -drive if=pflash,format=raw,file=vars.fd",
        code.display()
    ));
    let mut flash = disk("pflash1", "#2", "/vm/vars.fd");
    flash.firmware = true;
    let mut rom = disk("pflash0", "#1", code.to_str().unwrap());
    (rom.firmware, rom.read_only, rom.included) = (true, true, false);
    let machine = machine(&line, vec![rom, flash]);
    let mut request = request(&machine);
    request.disks[0].format = "raw".to_owned();
    let plan = plan(&machine, &request).unwrap().args.join(" ");
    let code = code.display();
    assert!(
        plan.contains(&format!(
            "-drive if=pflash,format=raw,readonly=on,file={code} "
        )),
        "{plan}"
    );
    assert!(
        plan.contains("-drive file=/new/pflash1,format=raw,if=pflash "),
        "{plan}"
    );
}

#[test]
fn media_that_went_away_leave_an_empty_drive() {
    let cases = [
        ("-cdrom gone.iso", "-drive index=2,media=cdrom"),
        ("-fda gone.img", "-drive if=floppy,index=0"),
        (
            "-blockdev raw,node-name=c,file.driver=file,file.filename=gone.iso -device ide-cd,drive=c,id=cd",
            "-device ide-cd,id=cd",
        ),
        (
            "-drive if=ide,media=cdrom,index=1",
            "-drive if=ide,media=cdrom,index=1",
        ),
    ];
    for (options, expected) in cases {
        let machine = machine(&bare(options), Vec::new());
        assert_eq!(planned(&machine, &request(&machine)), bare_after(expected));
    }
}

#[test]
fn disks_that_cannot_be_had_are_refused() {
    let refuse = |options: &str, disks: Vec<Disk>, images: &[&str]| {
        let machine = machine(&bare(options), disks);
        let mut request = request(&machine);
        request.disks = (images.iter())
            .map(|id| RestoredDisk {
                id: (*id).to_owned(),
                path: PathBuf::from("/new/x"),
                format: "raw".to_owned(),
            })
            .collect();
        plan(&machine, &request).unwrap_err()
    };
    let old = || vec![disk("d", "#1", "/vm/a")];
    let error = refuse("-drive file=a,if=virtio", old(), &[]);
    assert!(
        matches!(error, LaunchError::DiskNotRestored { .. }),
        "{error}"
    );
    let error = refuse("-drive file=a,if=virtio", old(), &["e"]);
    assert!(matches!(error, LaunchError::UnknownDisk { .. }), "{error}");
    let error = refuse("-m 1", old(), &["d"]);
    assert!(
        matches!(error, LaunchError::DiskNotOnCommandLine { .. }),
        "{error}"
    );
    let error = refuse("-drive file=gone,if=virtio,readonly=on", Vec::new(), &[]);
    assert!(matches!(error, LaunchError::DiskMissing { .. }), "{error}");
    let error = refuse("-object x-of-tomorrow,path=/vm/a", old(), &[]);
    assert!(
        matches!(error, LaunchError::DiskNotRestored { .. }),
        "{error}"
    );
}

#[test]
fn no_network_leads_anywhere() {
    let nic = "-device virtio-net-pci,netdev=n";
    let hub = "hubport,id=n,hubid=4096";
    let tap = "tap,id=n,script=no,downscript=no";
    // Old back end and device, with a live state, whether in a namespace of its own, and without.
    let cases: &[(&str, &str, &str, bool, &str)] = &[
        (
            "user,id=n,hostfwd=tcp::1-:2,net=10.9.0.0/24",
            nic,
            "user,id=n,net=10.9.0.0/24,restrict=on",
            true,
            hub,
        ),
        (
            "tap,id=n,ifname=t0,vhost=on,queues=4",
            nic,
            &format!("{tap},queues=4"),
            true,
            hub,
        ),
        (
            "tap,id=n,fds=3:4,vhostfds=5:6",
            nic,
            &format!("{tap},queues=2"),
            true,
            hub,
        ),
        ("bridge,id=n,br=br0", nic, tap, true, hub),
        ("tap,id=n", "-device e1000,netdev=n", hub, false, hub),
        ("socket,id=n,listen=:1", nic, hub, false, hub),
        (
            "stream,id=n,server=off,addr.type=unix,addr.path=/x",
            nic,
            hub,
            false,
            hub,
        ),
    ];
    for (old, device, live, own, fresh) in cases {
        let machine = machine(&bare(&format!("-netdev {old} {device}")), Vec::new());
        let mut request = request(&machine);
        let plan = plan(&machine, &request).unwrap();
        assert_eq!(
            plan.args.join(" "),
            bare_after(&format!("-netdev {live} {device}"))
        );
        assert_eq!(plan.own_network, *own, "{old}");
        request.incoming = Incoming::None;
        let expected = bare_after(&format!("-netdev {fresh} {device}"));
        assert_eq!(
            planned(&machine, &request),
            expected.replace(" -incoming fd:0", "")
        );
    }
}

#[test]
fn short_network_options_lead_nowhere() {
    let cases = [
        (
            "-nic user,model=virtio,mac=52:54:00:00:00:01",
            "-nic user,model=virtio,mac=52:54:00:00:00:01,restrict=on",
        ),
        (
            "-nic tap,model=virtio,ifname=t0",
            "-nic tap,model=virtio,script=no,downscript=no",
        ),
        (
            "-nic tap,model=e1000,ifname=t0",
            "-nic hubport,model=e1000,hubid=4096",
        ),
        ("-nic none", "-nic none"),
        (
            "-net nic,model=e1000 -net user,hostfwd=tcp::1-:2",
            "-net nic,model=e1000 -net user,restrict=on",
        ),
        ("-net nic -net tap,ifname=t0", "-net nic"),
        (
            r#"-netdev {"type":"tap","fd":"33","id":"n"} -device e1000,netdev=n"#,
            r#"-netdev {"type":"hubport","id":"n","hubid":4096} -device e1000,netdev=n"#,
        ),
    ];
    for (options, expected) in cases {
        let machine = machine(&bare(options), Vec::new());
        assert_eq!(planned(&machine, &request(&machine)), bare_after(expected));
    }
    let machine = machine(&bare("-net tap,ifname=t0"), Vec::new());
    assert!(planned(&machine, &request(&machine)).contains(" -net none "));
}

#[test]
fn user_network_reaches_out_and_is_not_reached() {
    let user = |options: &str| {
        let machine = machine(&bare(options), Vec::new());
        let mut request = request(&machine);
        request.network = Network::User;
        plan(&machine, &request)
    };
    let args = |options: &str| user(options).unwrap().args.join(" ");
    let nic = "-device e1000,netdev=n";
    assert_eq!(
        args(&format!("-netdev user,id=n,hostfwd=tcp::1-:2 {nic}")),
        bare_after(&format!("-netdev user,id=n {nic}"))
    );
    assert_eq!(
        args(&format!("-netdev tap,id=n,ifname=t {nic}")),
        bare_after(&format!("-netdev user,id=n {nic}"))
    );
    assert_eq!(args("-net nic -net tap"), bare_after("-net nic -net user"));
    let error = user("-netdev tap,id=n -device virtio-net-pci,netdev=n").unwrap_err();
    assert!(matches!(error, LaunchError::UserNetwork { .. }), "{error}");
}

#[test]
fn defaults_are_spelled_out() {
    let machine = machine("qemu -m 64 -nographic", Vec::new());
    let mut request = request(&machine);
    let head = "qemu -machine pc-i440fx-10.0 -m 64 -nographic";
    assert_eq!(
        planned(&machine, &request),
        format!("{head} -net nic -net user,restrict=on {SERIAL} {TAIL}")
    );
    request.incoming = Incoming::None;
    assert_eq!(
        planned(&machine, &request),
        format!("{head} -net nic {SERIAL} {TAIL}").replace(" -incoming fd:0", "")
    );
}

#[test]
fn channels_lead_into_files_or_nowhere() {
    let cases = [
        (
            "-serial stdio -serial none -serial tcp::1,server=on",
            "-serial file:/new/console -serial none -serial file:/new/console.2",
        ),
        (
            "-monitor stdio -qmp unix:/q,server=on -S -s -pidfile p -daemonize -D log -vnc :1",
            "",
        ),
        (
            "-chardev socket,id=m,path=/m,server=on,wait=off -mon chardev=m,mode=control",
            "",
        ),
        (
            "-chardev stdio,mux=on,id=c -mon chardev=c -serial chardev:c",
            "-chardev file,mux=on,id=c,path=/new/console -serial chardev:c",
        ),
        (
            "-chardev pty,id=c0 -device isa-serial,chardev=c0 -chardev socket,id=ga,path=/ga,server=on -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
            "-chardev file,id=c0,path=/new/console -device isa-serial,chardev=c0 -chardev null,id=ga -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
        ),
        (
            "-add-fd set=0,fd=31,opaque=x -chardev file,id=p,path=/dev/fdset/0 -device isa-parallel,chardev=p",
            "-chardev null,id=p -device isa-parallel,chardev=p",
        ),
        (
            "-parallel /dev/lp0 -debugcon stdio",
            "-parallel null -debugcon null",
        ),
        (
            "-audiodev pa,id=a,server=x -device hda-duplex,audiodev=a",
            "-audiodev none,id=a -device hda-duplex,audiodev=a",
        ),
        (
            "-fsdev local,id=f,path=/srv,security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t",
            "-fsdev synth,id=f -device virtio-9p-pci,fsdev=f,mount_tag=t",
        ),
        (
            "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=on -x-new y",
            "-object memory-backend-memfd,id=m,size=1G,share=on -x-new y",
        ),
        (
            r#"-object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/gone/key"}"#,
            "",
        ),
    ];
    for (options, expected) in cases {
        let machine = machine(&bare(options), Vec::new());
        assert_eq!(planned(&machine, &request(&machine)), bare_after(expected));
    }
}

#[test]
fn the_board_stays_and_is_named() {
    let line = "qemu -nodefaults -M q35,accel=kvm,smm=on,kernel-irqchip=split -enable-kvm -cpu host,+x -name a,debug-threads=on -uuid u -device vmgenid,guid=1";
    let mut machine = machine(line, Vec::new());
    machine.machine_type = "pc-q35-10.0".to_owned();
    let mut request = request(&machine);
    assert_eq!(
        planned(&machine, &request),
        format!(
            "qemu -nodefaults -machine pc-q35-10.0,accel=kvm,smm=on,kernel-irqchip=split -enable-kvm -cpu host,+x -name a,debug-threads=on -uuid u -device vmgenid,guid=1 -display none {TAIL}"
        )
    );
    request.accel_override = Some("tcg".to_owned());
    request.name = Some("copy".to_owned());
    request.new_vmgenid = true;
    assert_eq!(
        planned(&machine, &request),
        format!(
            "qemu -nodefaults -machine pc-q35-10.0,smm=on -cpu max,+x -name copy,debug-threads=on -uuid u -device vmgenid,guid=auto -display none -accel tcg {TAIL}"
        )
    );
}

#[test]
fn what_serves_one_guest_is_refused_by_name() {
    let cases = [
        "-device vfio-pci,host=01:00.0",
        "-device usb-host,hostbus=1",
        "-usbdevice host:1.2",
        "-device vhost-user-blk-pci,chardev=c",
        "-device scsi-block,drive=d",
        "-readconfig x.cfg",
        "-add-fd fd=3,set=1",
        "-chardev socket,id=t,path=/t -tpmdev emulator,id=t0,chardev=t -device tpm-tis,tpmdev=t0",
        "-object memory-backend-file,id=m,size=1G,mem-path=/pm,share=on -device nvdimm,memdev=m",
    ];
    for options in cases {
        let machine = machine(&bare(options), Vec::new());
        let error = plan(&machine, &request(&machine)).unwrap_err();
        assert!(
            matches!(error, LaunchError::Unsafe { .. }),
            "{options}: {error}"
        );
    }
}

#[test]
fn a_tpm_emulator_of_its_own_is_used() {
    let line = bare("-chardev socket,id=t,path=/t -tpmdev emulator,id=t0,chardev=t");
    let machine = machine(&line, Vec::new());
    let mut request = request(&machine);
    request.tpm_socket = Some(PathBuf::from("/new/tpm"));
    let expected = "-chardev socket,id=t,path=/new/tpm -tpmdev emulator,id=t0,chardev=t";
    assert_eq!(planned(&machine, &request), bare_after(expected));
    assert!(has_tpm_emulator(&machine));
}

#[test]
fn the_hosts_tpm_is_refused_as_what_it_is() {
    let line = bare("-tpmdev passthrough,id=t0,path=/dev/tpm0");
    let machine = machine(&line, Vec::new());
    assert!(!has_tpm_emulator(&machine));
    let error = plan(&machine, &request(&machine)).unwrap_err();
    assert!(error.to_string().contains("the host's TPM"), "{error}");
}

#[test]
fn a_vsock_address_is_new() {
    let machine = machine(&bare("-device vhost-vsock-pci,guest-cid=3"), Vec::new());
    let plan = planned(&machine, &request(&machine));
    assert!(!plan.contains("guest-cid=3 "), "{plan}");
}

proptest! {
    #[test]
    fn no_command_line_makes_it_panic(words in prop::collection::vec(
        prop_oneof![
            "-(drive|blockdev|device|netdev|net|nic|chardev|serial|object|machine|M|hda|S|name)",
            "(file=|id=|type=|driver=|node-name=|chardev=|netdev=|drive=)?[a-c,.{}\":=]{0,12}",
        ], 0..14)) {
        let mut machine = machine("qemu", vec![disk("a", "b", "/vm/c")]);
        machine.args.extend(words);
        for incoming in [Incoming::State, Incoming::None] {
            let mut request = request(&machine);
            request.incoming = incoming;
            let _ = plan(&machine, &request);
            request.disks.clear();
            let _ = plan(&machine, &request);
        }
    }
}
