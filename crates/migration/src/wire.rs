//! Numbers of the format, as QEMU's `migration/savevm.c` and `migration/ram.c` define them.
//! All integers are big-endian.

/// First four bytes: `QEVM`.
pub(crate) const MAGIC: u32 = 0x5145_564d;
/// The only version of the outer format in use.
pub(crate) const VERSION: u32 = 3;

/// End of the sections.
pub(crate) const SECTION_EOF: u8 = 0x00;
/// First section of an iterative device (RAM is one): its setup.
pub(crate) const SECTION_START: u8 = 0x01;
/// A further section of an iterative device.
pub(crate) const SECTION_PART: u8 = 0x02;
/// The last section of an iterative device.
pub(crate) const SECTION_END: u8 = 0x03;
/// The whole state of an ordinary device, of no declared length.
pub(crate) const SECTION_FULL: u8 = 0x04;
/// A subsection, inside a section.
pub(crate) const SUBSECTION: u8 = 0x05;
/// JSON that describes the devices' sections, after the end of the sections.
pub(crate) const SECTION_DESCRIPTION: u8 = 0x06;
/// Machine type and what must agree on both sides, right after the header.
pub(crate) const SECTION_CONFIGURATION: u8 = 0x07;
/// A command to the receiver.
pub(crate) const SECTION_COMMAND: u8 = 0x08;
/// Follows every section (unless the machine type is very old), with the section's id.
pub(crate) const SECTION_FOOTER: u8 = 0x7e;

/// Command «the last phase begins», without payload; sent since QEMU 10.0.
pub(crate) const COMMAND_SWITCHOVER_START: u16 = 11;

/// Name of RAM among the devices.
pub(crate) const RAM_NAME: &[u8] = b"ram";
/// The version of RAM sections in use.
pub(crate) const RAM_VERSION: u32 = 4;

/// A page of one repeated byte, which follows (always zero in current versions).
pub(crate) const RAM_ZERO: u64 = 0x02;
/// The list of RAM blocks; the address is their summed size.
pub(crate) const RAM_MEM_SIZE: u64 = 0x04;
/// A page; its bytes follow.
pub(crate) const RAM_PAGE: u64 = 0x08;
/// End of this section.
pub(crate) const RAM_EOS: u64 = 0x10;
/// The page is of the same block as the page before, so no name follows.
pub(crate) const RAM_CONTINUE: u64 = 0x20;
/// Differences to an earlier version of the page.
pub(crate) const RAM_XBZRLE: u64 = 0x40;
/// Something for the transport (RDMA).
pub(crate) const RAM_HOOK: u64 = 0x80;
/// A compressed page.
pub(crate) const RAM_COMPRESSED: u64 = 0x100;
/// Pages come by other channels, too.
pub(crate) const RAM_MULTIFD_FLUSH: u64 = 0x200;

/// The name of an unsupported flag, for messages.
pub(crate) fn flag_name(flags: u64) -> &'static str {
    match flags {
        f if f & RAM_MULTIFD_FLUSH != 0 => "multifd",
        f if f & RAM_COMPRESSED != 0 => "compression",
        f if f & RAM_HOOK != 0 => "RDMA",
        f if f & RAM_XBZRLE != 0 => "xbzrle",
        _ => "an unknown kind of page",
    }
}
