//! What libvirt complains about.

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libvirt is not installed, or too old.
    #[error(
        "libvirt's client library cannot be loaded: install it (Debian: apt-get install libvirt0)"
    )]
    Library(#[source] libloading::Error),
    /// A text that holds a zero byte cannot be given to libvirt.
    #[error("a text for libvirt holds a zero byte")]
    ZeroByte,
    /// libvirt has no such operation for this kind of object.
    #[error("libvirt cannot {operation} a {kind}")]
    Unsupported {
        /// What was asked.
        operation: &'static str,
        /// Of what.
        kind: &'static str,
    },
    /// libvirt refused, in its own words.
    #[error("libvirt: {message}")]
    Refused {
        /// Which error.
        code: ErrorCode,
        /// The part of libvirt that says so: `virErrorDomain` of `libvirt/virterror.h`.
        domain: i32,
        /// libvirt's message.
        message: String,
        /// The call.
        call: &'static str,
    },
}

impl Error {
    /// libvirt's code, if libvirt said something.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// There is no such object.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(
            self.code(),
            Some(
                ErrorCode::NO_DOMAIN
                    | ErrorCode::NO_NETWORK
                    | ErrorCode::NO_STORAGE_POOL
                    | ErrorCode::NO_STORAGE_VOLUME
                    | ErrorCode::NO_NODE_DEVICE
                    | ErrorCode::NO_INTERFACE
                    | ErrorCode::NO_SECRET
                    | ErrorCode::NO_NWFILTER
            )
        )
    }

    /// The connection to libvirtd is gone: connect again.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        match self {
            Error::Refused {
                code,
                domain,
                message,
                ..
            } => match *code {
                ErrorCode::RPC | ErrorCode::INVALID_CONN => true,
                // What the client says of a connection that ended in a call, or before it.
                ErrorCode::SYSTEM_ERROR | ErrorCode::INTERNAL_ERROR => {
                    *domain == DOMAIN_RPC || message.contains("client socket is closed")
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// `VIR_FROM_RPC`.
const DOMAIN_RPC: i32 = 7;

/// A `virErrorNumber` of `libvirt/virterror.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub i32);

#[allow(missing_docs, reason = "libvirt's own names")]
impl ErrorCode {
    pub const INTERNAL_ERROR: ErrorCode = ErrorCode(1);
    pub const NO_SUPPORT: ErrorCode = ErrorCode(3);
    pub const INVALID_CONN: ErrorCode = ErrorCode(6);
    pub const OPERATION_FAILED: ErrorCode = ErrorCode(9);
    pub const SYSTEM_ERROR: ErrorCode = ErrorCode(38);
    pub const RPC: ErrorCode = ErrorCode(39);
    pub const NO_DOMAIN: ErrorCode = ErrorCode(42);
    pub const NO_NETWORK: ErrorCode = ErrorCode(43);
    pub const AUTH_FAILED: ErrorCode = ErrorCode(45);
    pub const NO_STORAGE_POOL: ErrorCode = ErrorCode(49);
    pub const NO_STORAGE_VOLUME: ErrorCode = ErrorCode(50);
    pub const NO_NODE_DEVICE: ErrorCode = ErrorCode(53);
    pub const OPERATION_INVALID: ErrorCode = ErrorCode(55);
    pub const NO_INTERFACE: ErrorCode = ErrorCode(57);
    pub const NO_NWFILTER: ErrorCode = ErrorCode(62);
    pub const NO_SECRET: ErrorCode = ErrorCode(66);
    pub const OPERATION_TIMEOUT: ErrorCode = ErrorCode(68);
    pub const CONFIG_UNSUPPORTED: ErrorCode = ErrorCode(67);
    pub const ACCESS_DENIED: ErrorCode = ErrorCode(88);
}
