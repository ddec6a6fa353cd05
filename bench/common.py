"""What the benchmarks with a running guest share: the guest, its heartbeat, QMP, vmtwin."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "benchguest"


def say(*words):
    print("bench:", *words, file=sys.stderr, flush=True)


def die(*words):
    sys.exit("bench: error: " + " ".join(str(word) for word in words))


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def binaries(folder):
    """vmtwin and vmtwin-test-guest: from a folder, or built here."""
    if folder is None:
        say("building vmtwin and the guest's launcher (release)")
        command = ["cargo", "build", "--quiet", "--release", "-p", "vmtwin", "-p", "vmtwin-testkit"]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            die("the build failed")
        folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"))
        folder = (ROOT / folder) / "release"
    folder = pathlib.Path(folder).resolve()
    found = [folder / "vmtwin", folder / "vmtwin-test-guest"]
    for path in found:
        if not path.exists():
            die("there is no", path)
    return found


def described(vmtwin, given):
    """What was measured: this checkout, or a binary that could be of any."""
    said = subprocess.run([vmtwin, "--version"], capture_output=True, text=True).stdout.strip()
    if given is not None:
        return f"{said}, a binary given ({vmtwin.parent.name})"
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return f"{said} {commit or 'of an unknown commit'}, release"


def work_folder(parent):
    """A folder that goes away with the process, also when that is told to end."""

    def end(number, _frame):
        sys.exit(128 + number)

    for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(one, end)
    return tempfile.TemporaryDirectory(prefix="vmtwin-bench.", dir=parent)


def processors():
    return len(os.sched_getaffinity(0))


def load_average():
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def table(rows):
    """Prints rows of cells in columns; the first row is the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join(cells).rstrip())


class QmpError(Exception):
    """What the monitor answered."""


class Qmp:
    """One connection to a monitor, which serves one client at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(600)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.events = []
        if "QMP" not in self._read():
            die("the monitor did not greet")
        self.execute("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

    def _read(self):
        line = self.lines.readline()
        if not line:
            die("the guest's monitor closed")
        return json.loads(line)

    def execute(self, command, **arguments):
        try:
            return self.try_execute(command, **arguments)
        except QmpError as error:
            die(f"{command}: {error}")

    def try_execute(self, command, **arguments):
        message = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    def wait_event(self, wanted):
        """Takes events until `wanted` says yes to one."""
        seen = 0
        while True:
            while seen < len(self.events):
                if wanted(self.events[seen]):
                    return self.events[seen]
                seen += 1
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)


def event_ms(event):
    """QEMU's own time of an event."""
    stamp = event["timestamp"]
    return stamp["seconds"] * 1e3 + stamp["microseconds"] / 1e3


class Heartbeat:
    """The guest's 100 Hz lines, by the time they arrived here."""

    def __init__(self, path):
        self.arrivals = []
        self.path = str(path)
        self._connect()
        threading.Thread(target=self._listen, daemon=True).start()

    def _connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.path)

    def _listen(self):
        """Until the guest's QEMU is gone."""
        while data := self.socket.recv(4096):
            if b"\n" in data:
                self.arrivals.append(time.monotonic())

    def longest_gap_ms(self, since, until):
        """The longest time without a beat that touches the time given."""
        limit = time.monotonic() + 30
        while not self.arrivals or self.arrivals[-1] < until:
            if time.monotonic() > limit:
                die("the guest's heartbeat has ended")
            time.sleep(0.01)
        times = list(self.arrivals)
        pairs = zip(times, times[1:])
        return max(b - a for a, b in pairs if b > since and a < until) * 1e3


class LoadGuest:
    """A tiny guest in mode `load`, whoever started it: it dirties memory and two disks
    all the while."""

    def __init__(self, folder, dirty_mib, working_set_mib):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.serial = self.folder / "serial.log"
        self.disks = [self.folder / name for name in ("a.qcow2", "b.qcow2")]
        self.working_set_mib = working_set_mib
        self.dirty_mib = dirty_mib
        self.ticked_at = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def _wait_for_tick(self):
        limit = time.monotonic() + 180
        while not self.serial.exists() or b"tick n=" not in self.serial.read_bytes():
            if time.monotonic() > limit or not self.is_running():
                die("the guest did not boot")
            time.sleep(0.1)
        self.ticked_at = time.monotonic()

    def fill(self):
        """Waits until the working set was written once, as far as can be seen from here."""
        once = self.working_set_mib / self.dirty_mib
        limit = self.ticked_at + 3 * once + 10
        last, still = 0, 0
        time.sleep(max(0, self.ticked_at + once - time.monotonic()))
        while still < 3 and time.monotonic() < limit:
            now = self.resident_mib()
            still = still + 1 if now - last < self.dirty_mib / 4 else 0
            last = now
            time.sleep(1)


class Guest(LoadGuest):
    """One that belongs to no management, with a monitor of its own."""

    def __init__(self, launcher, folder, memory_mib, dirty_mib, working_set_mib):
        super().__init__(folder, dirty_mib, working_set_mib)
        self.qmp = self.folder / "qmp.sock"
        command = [str(launcher), "--name", NAME, "--memory", str(memory_mib)]
        for disk in self.disks:
            command += ["--disk", str(disk)]
        command += ["--mode", "load", "--dirty", str(dirty_mib)]
        command += ["--working-set", str(working_set_mib)]
        command += ["--qmp", str(self.qmp), "--serial", str(self.serial), "--daemonize"]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode != 0:
            die("the guest did not start:", said.stderr)
        self.pid = int(said.stdout)
        self.started = self._start_time()
        try:
            self._wait_for_tick()
            self.heartbeat = self._listen()
        except BaseException:
            self.end()
            raise

    def _start_time(self):
        """When the process began: with the id, that names exactly one process."""
        try:
            text = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]

    def is_running(self):
        return self._start_time() == self.started

    def end(self):
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
        while self.is_running():
            time.sleep(0.02)

    def _listen(self):
        """Gives the heartbeat's serial port, that leads nowhere, a socket."""
        path = self.folder / "heartbeat.sock"
        address = {"type": "unix", "data": {"path": str(path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        with Qmp(self.qmp) as qmp:
            qmp.execute("chardev-change", id="heartbeat", backend=backend)
        return Heartbeat(path)

    def argument(self, option):
        """What QEMU was given for it."""
        words = pathlib.Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        return words[words.index(option.encode()) + 1].decode()

    def accel(self):
        return self.argument("-accel")

    def resident_mib(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    def stand(self):
        with Qmp(self.qmp) as qmp:
            qmp.execute("stop")

    def run(self):
        with Qmp(self.qmp) as qmp:
            qmp.execute("cont")


class Vmtwin:
    """A home and a repository of one's own, with the guest in the table."""

    def __init__(self, program, folder, *address, inside=(), password="bench"):
        """`address` is what `vm add` is told; `inside` is a command that runs it elsewhere;
        without a `password` it is that which `init` makes."""
        self.program = [*inside, str(program)]
        self.folder = pathlib.Path(folder)
        self.repository = self.folder / "repository"
        self.environment = dict(os.environ)
        for name in ("REPO", "PASSWORD", "PASSWORD_FILE", "PASSWORD_COMMAND"):
            self.environment.pop("VMTWIN_" + name, None)
        if password is not None:
            self.environment["VMTWIN_PASSWORD"] = password
        self.environment["VMTWIN_HOME"] = str(self.folder / "home")
        self._run("init", "--repo", str(self.repository))
        self._run("vm", "add", NAME, *map(str, address))

    def _run(self, *arguments, **variables):
        said = subprocess.run(
            [*self.program, *arguments, "--json"],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
        )
        if not said.stdout.strip():
            die("vmtwin", " ".join(arguments), "failed:", said.stderr)
        return json.loads(said.stdout)

    def backup(self, consistency="state", **variables):
        """The report of a backup; its `error` says whether it failed."""
        arguments = ("backup", NAME, "--consistency", consistency)
        return self._run(*arguments, **variables)[0]

    def remove(self):
        shutil.rmtree(self.folder)
