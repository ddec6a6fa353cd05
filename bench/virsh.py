"""A libvirt of the benchmark's own, and in it a guest like the plain one."""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
from xml.sax.saxutils import escape

from common import NAME, Heartbeat, LoadGuest, die

# What libvirtd writes to: here it gets folders of its own.
PLACES = {
    "run": "/run",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

# The guest may use files of root's, and nothing outside the namespaces is asked for leave.
CONFIGURATION = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
namespaces = [ ]
stdio_handler = "file"
"""

# First process of the namespaces: all in them ends with it, and it ends with its standard
# input. Until then the shell waits for `cat` and reaps orphans. With `exec cat` nobody
# would, and libvirtd waits in vain for its QEMUs to be gone. The control groups are hidden
# so that libvirtd leaves none behind on the host.
FIRST_PROCESS = """\
set -e
cd "$0"
! mountpoint -q /sys/fs/cgroup || umount --recursive --lazy /sys/fs/cgroup
{mounts}
libvirtd --daemon
echo ready
cat >/dev/null
exit 0
"""

DOMAIN = """\
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{processors}</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='{cpu}'/>
  <devices>
    <emulator>{emulator}</emulator>
{disks}
    <serial type='file'><source path='{serial}' append='on'/></serial>
    <serial type='unix'><source mode='bind' path='{heartbeat}'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""

DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{path}'/>
      <target dev='{target}' bus='virtio'/>
      <address type='pci' bus='0' slot='{slot}'/>
    </disk>"""

EVENT = re.compile(r"event (STOP|RESUME) at (\d+\.\d+) for domain")


def hindrance():
    """Why there can be no guest of libvirt's here, or nothing."""
    if os.geteuid() != 0:
        return "not run: needs root"
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        return "not run: no libvirt (tools/setup)"
    return None


def version():
    said = subprocess.run(["virsh", "--version"], capture_output=True, text=True)
    return said.stdout.strip()


class VirshError(Exception):
    """What virsh complained about."""


class Libvirt:
    """libvirtd in mount, network and process namespaces, which end with all that is in
    them when `end` is called, and also when this process dies."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        for name in PLACES:
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc" / "qemu.conf").write_text(CONFIGURATION)
        mounts = "\n".join(f"mount --bind {name} {place}" for name, place in PLACES.items())
        script = FIRST_PROCESS.format(mounts=mounts)
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
        complaints = self.folder / "complaints"
        with complaints.open("w") as file:
            self.first = subprocess.Popen(
                [*command, "sh", "-c", script, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # a terminal's Ctrl-C is for us to handle
            )
        self.events = []
        self.listener = None
        try:
            if self.first.stdout.readline() != b"ready\n":
                die("no libvirtd (--virsh-rounds 0 does without):", complaints.read_text())
            self.virsh("version")  # after which libvirtd knows its QEMU
            self._listen()
        except BaseException:
            self.end()
            raise

    def _command(self, *words):
        uri = f"qemu+unix:///system?socket={self.folder}/run/libvirt/libvirt-sock"
        return ["virsh", "--connect", uri, *map(str, words)]

    def inside(self):
        """What runs a command beside libvirtd, in its namespaces."""
        namespaces = ["--mount", "--net", "--pid"]
        return ["nsenter", *namespaces, "--target", str(self._first_inside())]

    def _first_inside(self):
        children = f"/proc/{self.first.pid}/task/{self.first.pid}/children"
        return int(pathlib.Path(children).read_text().split()[0])

    def cpu_s(self):
        """Processor time of all that runs in the namespaces, and of all that ended there:
        libvirtd and QEMU, and what a tool leaves to itself."""
        namespace = os.readlink(f"/proc/{self._first_inside()}/ns/pid")
        ticks = 0
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns/pid") != namespace:
                    continue
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def virsh(self, *words):
        try:
            return self.try_virsh(*words)
        except VirshError as error:
            die(f"virsh {words[0]}: {error}")

    def try_virsh(self, *words):
        said = subprocess.run(self._command(*words), capture_output=True, text=True)
        if said.returncode != 0:
            raise VirshError(said.stderr.strip())
        return said.stdout

    def _listen(self):
        """Gathers STOP and RESUME with QEMU's own times."""
        command = self._command("qemu-monitor-event", "--loop", "--regex", "--event", "STOP|RESUME")
        self.listener = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        threading.Thread(target=self._gather, args=[self.listener.stdout], daemon=True).start()

    def _gather(self, lines):
        for line in lines:
            if found := EVENT.match(line):
                self.events.append((found[1], float(found[2]) * 1e3))

    def paused_ms(self, work):
        """From the first STOP to the last RESUME of what `work` does."""
        before = len(self.events)
        work()
        limit = time.monotonic() + 30
        while True:
            events = self.events[before:]
            if events and events[-1][0] == "RESUME":
                stops = [at for name, at in events if name == "STOP"]
                if not stops:
                    die("the guest resumed, but never stopped")
                return events[-1][1] - stops[0]
            if time.monotonic() > limit:
                die("libvirt told of no RESUME")
            time.sleep(0.005)

    def end(self):
        if self.listener is not None:
            self.listener.kill()
            self.listener.wait()
        self.first.stdin.close()
        self.first.wait()


class LastingHeartbeat(Heartbeat):
    """One that goes on with the next QEMU when the guest gets another."""

    def _listen(self):
        while True:
            try:
                super()._listen()
            except OSError:
                pass  # that QEMU is gone
            while not self._connected_again():
                if not pathlib.Path(self.path).parent.exists():
                    return
                time.sleep(0.002)

    def _connected_again(self):
        try:
            self._connect()
        except OSError:
            return False
        return True


class VirshGuest(LoadGuest):
    """A domain with the kernel, memory, disks and load of a plain guest."""

    def __init__(self, folder, plain):
        super().__init__(folder, plain.dirty_mib, plain.working_set_mib)
        self.libvirt = Libvirt(self.folder / "libvirt")
        try:
            self._start(plain)
        except BaseException:
            self.end()
            raise

    def _start(self, plain):
        for mine, other in zip(self.disks, plain.disks):
            make_like(mine, other)
        heartbeat = self.folder / "heartbeat.sock"
        description = self.folder / "domain.xml"
        description.write_text(domain(plain, self.disks, self.serial, heartbeat))
        self.libvirt.virsh("define", description)
        self.libvirt.virsh("start", NAME)
        self._wait_for_tick()
        self.heartbeat = LastingHeartbeat(heartbeat)

    def end(self):
        self.libvirt.end()

    def is_running(self):
        return self.libvirt.virsh("domstate", NAME).strip() == "running"

    def resident_mib(self):
        statistics = self.libvirt.virsh("dommemstat", NAME).split()
        return int(statistics[statistics.index("rss") + 1]) // 1024

    def stand(self):
        self.libvirt.virsh("suspend", NAME)

    def run(self):
        self.libvirt.virsh("resume", NAME)

    def save_and_restore(self, path):
        self.libvirt.try_virsh("save", NAME, path)
        self.libvirt.virsh("restore", path)

    def snapshot(self, path, live):
        """Memory to a file, and an overlay over each disk."""
        command = ["snapshot-create-as", NAME, "bench", "--no-metadata"]
        command += ["--memspec", f"file={path},snapshot=external"]
        for target, overlay in self._overlays():
            command += ["--diskspec", f"{target},snapshot=external,file={overlay}"]
        self.libvirt.try_virsh(*command, *(["--live"] if live else []))

    def tidy(self):
        """Undoes what a snapshot did to the disks."""
        for target, overlay in self._overlays():
            if overlay.exists():
                self.libvirt.virsh("blockcommit", NAME, target, "--active", "--pivot", "--wait")
                overlay.unlink()

    def _overlays(self):
        return [(target_of(i), disk.with_suffix(".overlay")) for i, disk in enumerate(self.disks)]


def target_of(index):
    return f"vd{'abcdefgh'[index]}"


def make_like(path, other):
    """An empty disk of the same size."""
    command = ["qemu-img", "info", "--force-share", str(other)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size = re.search(r"\((\d+) bytes\)", said)[1]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)


def domain(plain, disks, serial, heartbeat):
    values = {
        "type": "kvm" if plain.accel() == "kvm" else "qemu",
        "name": NAME,
        "memory": plain.argument("-m"),
        "processors": plain.argument("-smp"),
        "machine": plain.argument("-machine"),
        "cpu": {"host": "host-passthrough", "max": "maximum"}[plain.argument("-cpu")],
        "kernel": plain.argument("-kernel"),
        "initrd": plain.argument("-initrd"),
        "cmdline": plain.argument("-append"),
        "emulator": shutil.which("qemu-system-x86_64"),
        "serial": str(serial),
        "heartbeat": str(heartbeat),
    }
    values = {name: escape(value, {"'": "&apos;"}) for name, value in values.items()}
    values["disks"] = "\n".join(
        DISK.format(path=escape(str(path), {"'": "&apos;"}), target=target_of(i), slot=i + 2)
        for i, path in enumerate(disks)
    )
    return DOMAIN.format(**values)
