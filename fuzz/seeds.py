#!/usr/bin/env python3
"""Writes the seeds: small valid inputs, from which the fuzzer starts. Run it in this folder."""
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
