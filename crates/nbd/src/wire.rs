//! Numbers of the protocol, from NBD's `doc/proto.md`. All integers are big-endian.

pub(crate) const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(crate) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(crate) const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const HANDSHAKE_NO_ZEROES: u16 = 2;

pub(crate) const OPTION_EXPORT_NAME: u32 = 1;
pub(crate) const OPTION_ABORT: u32 = 2;
pub(crate) const OPTION_LIST: u32 = 3;
pub(crate) const OPTION_INFO: u32 = 6;
pub(crate) const OPTION_GO: u32 = 7;
pub(crate) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPTION_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPTION_SET_META_CONTEXT: u32 = 10;

pub(crate) const REPLY_ACK: u32 = 1;
pub(crate) const REPLY_SERVER: u32 = 2;
pub(crate) const REPLY_INFO: u32 = 3;
pub(crate) const REPLY_META_CONTEXT: u32 = 4;
/// Set in the type of every reply that refuses.
pub(crate) const REPLY_ERROR_BIT: u32 = 1 << 31;
pub(crate) const REPLY_UNSUPPORTED: u32 = REPLY_ERROR_BIT | 1;
pub(crate) const REPLY_INVALID: u32 = REPLY_ERROR_BIT | 3;
pub(crate) const REPLY_UNKNOWN: u32 = REPLY_ERROR_BIT | 6;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

pub(crate) const FLAG_HAS_FLAGS: u16 = 1 << 0;
pub(crate) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(crate) const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub(crate) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

pub(crate) const COMMAND_READ: u16 = 0;
pub(crate) const COMMAND_WRITE: u16 = 1;
pub(crate) const COMMAND_DISCONNECT: u16 = 2;
pub(crate) const COMMAND_FLUSH: u16 = 3;
pub(crate) const COMMAND_TRIM: u16 = 4;
pub(crate) const COMMAND_WRITE_ZEROES: u16 = 6;
pub(crate) const COMMAND_BLOCK_STATUS: u16 = 7;

/// Write zeros without making a hole.
pub(crate) const COMMAND_FLAG_NO_HOLE: u16 = 1 << 1;

/// Describe one extent and no more.
pub(crate) const COMMAND_FLAG_REQ_ONE: u16 = 1 << 3;

pub(crate) const NOT_PERMITTED: u32 = 1;
pub(crate) const IO_ERROR: u32 = 5;
pub(crate) const INVALID: u32 = 22;

/// The last chunk of a reply.
pub(crate) const CHUNK_FLAG_DONE: u16 = 1;

pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_OFFSET_DATA: u16 = 1;
pub(crate) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(crate) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(crate) const CHUNK_ERROR: u16 = (1 << 15) + 1;
pub(crate) const CHUNK_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// Longest string of the protocol, in bytes.
pub(crate) const MAX_STRING: u32 = 4096;

/// Largest payload that a server must take if it does not say so, in bytes.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;

/// The meaning of an error number of the protocol.
pub(crate) fn error_name(code: u32) -> &'static str {
    match code {
        1 => "not permitted",
        5 => "I/O error",
        12 => "out of memory",
        22 => "invalid request",
        28 => "no space left",
        75 => "too large",
        95 => "not supported",
        108 => "the server shuts down",
        _ => "unknown error",
    }
}

/// The meaning of a refused option.
pub(crate) fn refusal_name(kind: u32) -> &'static str {
    match kind & !REPLY_ERROR_BIT {
        1 => "not supported",
        2 => "forbidden by policy",
        3 => "invalid request",
        4 => "not supported on this platform",
        5 => "TLS is required",
        6 => "no such export",
        7 => "the server shuts down",
        8 => "block sizes are required",
        9 => "too large",
        _ => "unknown reason",
    }
}
