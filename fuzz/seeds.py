#!/usr/bin/env python3
"""Writes the seeds: small valid inputs, from which the fuzzer starts. Run it in this folder."""
import json
import pathlib
import struct

be = lambda form, *values: struct.pack(">" + form, *values)


def save(target, name, data):
    folder = pathlib.Path("seeds") / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def stream(footers, end, config):
    foot = lambda section: be("BI", 0x7E, section) if footers else b""
    name = lambda text: be("B", len(text)) + text
    out = b"QEVM" + be("I", 3)
    if config:
        out += be("BI", 7, 2) + b"pc"
        out += b"\x05" + name(b"configuration/target-page-bits") + be("II", 1, 10)
    out += be("BI", 1, 2) + name(b"ram") + be("II", 0, 4) + be("Q", 4096 | 4)
    out += name(b"a") + be("Q", 3072) + name(b"b") + be("Q", 1024) + be("Q", 0x10) + foot(2)
    out += be("BI", 2, 2) + be("Q", 1024 | 8) + name(b"a") + bytes(range(256)) * 4
    out += be("Q", 2048 | 0x22) + b"\0" + be("Q", 2) + name(b"b") + b"\x07" + be("Q", 0x10) + foot(2)
    if end:
        out += be("BHH", 8, 11, 0) + be("BI", 3, 2) + be("Q", 0x10) + foot(2)
    out += be("BI", 4, 9) + name(b"dev") + be("II", 0, 1) + b"state" + foot(9) + b"\0"
    return out + be("BI", 6, 2) + b"{}"


for footers in (0, 1):
    for end in (0, 1):
        save("migration_stream", f"footers{footers}-end{end}", stream(footers, end, footers))

option = lambda number, kind, data: be("QIII", 0x3E889045565A9, number, kind, len(data)) + data
hello = b"NBDMAGICIHAVEOPT\0\x03" + option(8, 1, b"")
hello += option(10, 4, be("I", 1) + b"base:allocation") + option(10, 1, b"")
hello += option(7, 3, be("HQH", 0, 1 << 20, 0xED)) + option(7, 3, be("HIII", 3, 1, 4096, 1 << 25))
save("nbd_reply", "handshake", b"\0" + hello + option(7, 1, b""))
save("nbd_reply", "refused", b"\0" + hello + option(7, 0x80000006, b"no such export"))

chunk = lambda flags, kind, data: be("IHHQI", 0x668E33EF, flags, kind, 1, len(data)) + data
read = chunk(0, 1, be("Q", 8) + b"12345678") + chunk(1, 2, be("QI", 0, 8))
save("nbd_reply", "read", b"\1" + be("BH", 1, 16) + read)
save("nbd_reply", "simple-read", b"\1" + be("BH", 0, 4) + be("IIQ", 0x67446698, 0, 1) + b"1234")
status = chunk(0, 5, be("III", 2, 9, 9)) + chunk(1, 5, be("IIIII", 1, 512, 0, 512, 3))
save("nbd_reply", "status", b"\1" + be("BH", 5, 1024) + status)
save("nbd_reply", "error", b"\1" + be("BH", 7, 0) + chunk(1, 0x8001, be("IH", 5, 3) + b"bad"))

text = lambda value: json.dumps(value).encode()
digits = "0123456789abcdef" * 4
entry = lambda kind, sealed, raw: bytes([kind]) + struct.pack("<I", sealed) + raw + bytes(range(32))
save("repository_object", "pack", b"\0" + bytes(64) + struct.pack("<I", 40))
save("repository_object", "pack-header", b"\1" + entry(0, 32, b"") + entry(3, 968, struct.pack("<I", 5000)))
blob = {"id": digits, "type": "data", "offset": 0, "length": 64, "uncompressed_length": 500}
save("repository_object", "index", b"\2" + text({"packs": [{"id": digits, "blobs": [blob]}]}))
node = {"name": 'a\\"b', "type": "file", "mode": 384, "size": 3, "content": [digits]}
folder = {"name": "d", "type": "dir", "subtree": digits, "content": None}
save("repository_object", "tree", b"\3" + text({"nodes": [node, folder]}))
point = {"time": "2024-05-06T07:08:09.1+02:00", "tree": digits, "paths": ["/a"], "hostname": "h"}
save("repository_object", "snapshot", b"\4" + text(point | {"tags": ["vm=web"], "parent": digits}))
save("repository_object", "blob", b"\5\0\5\0" + b"plain")
save("repository_object", "blob-zstd", b"\5\1\5\0" + bytes.fromhex("28b52ffd200529000068656c6c6f"))

disk = {"id": "d0", "qdev": "/machine/peripheral/d0/virtio-backend", "node_name": "n0", "kind": "file"}
disk |= {"address": "/vm/a.img", "format": "qcow2", "size_bytes": 1 << 20, "read_only": False}
disk |= {"firmware": False, "included": True, "excluded_because": None, "backing": []}
machine = {"format": 1, "name": "web", "uuid": "", "qemu_version": "10.0.2", "run_state": "running"}
machine |= {"machine_type": "pc-q35-10.0", "memory_bytes": 1 << 28, "pid": 1, "uid": 0, "cwd": "/vm"}
machine |= {"disks": [disk], "files": [], "memory_blockers": [], "blockers": []}
lines = {
    "drive": "-drive file=a.img,if=none,id=x,format=qcow2 -device virtio-blk-pci,drive=x,id=d0",
    "blockdev": '-blockdev {"driver":"file","filename":"/vm/a.img","node-name":"n0"} '
    "-device virtio-blk-pci,drive=n0,id=d0 -object memory-backend-memfd,id=m,size=256M",
    "channels": "-hda a.img -netdev user,id=n,hostfwd=tcp::1-:2 -device e1000,netdev=n -serial stdio "
    "-chardev socket,id=c,path=/c,server=on -mon chardev=c -vnc :0 -nic tap -smbios file=x",
    "tpm": "-hda a.img -chardev socket,id=t,path=/t -tpmdev emulator,id=t0,chardev=t "
    "-device tpm-crb,tpmdev=t0 -device vmgenid,guid=1 -accel kvm -cpu host",
}
for name, line in lines.items():
    for choice in (1 | 2, 0xFF):
        args = ["qemu-system-x86_64", "-nodefaults", "-machine", "q35"] + line.split()
        save("manifest", f"{name}-{choice}", bytes([choice]) + text(machine | {"args": args}))
        save("manifest", f"{name}-line-{choice}", bytes([choice]) + " ".join(args[1:]).encode())
