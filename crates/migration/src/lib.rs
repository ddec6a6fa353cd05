//! QEMU migration stream: parse, index RAM pages, rebuild a stream.
