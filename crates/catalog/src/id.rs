//! Ids as types, so that a job is never taken for a VM. VMs and jobs carry random UUIDs, made
//! here from the system's random numbers: any process may make one without asking another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Length of a UUID as text.
const UUID_LEN: usize = 36;

macro_rules! uuid_id {
    ($(#[$meta:meta])* $name:ident, $what:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id that nothing else has.
            pub fn random() -> Result<Self> {
                Ok(Self(random_uuid()?))
            }

            /// The id as text: a UUID in lower case.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match normal_uuid(text) {
                    Some(uuid) => Ok(Self(uuid)),
                    None => Err(Error::Invalid {
                        what: $what,
                        why: format!("{text:?} is not a UUID"),
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

uuid_id!(
    /// A VM: the UUID that its hypervisor gave it, or one made here.
    VmId,
    "VM id"
);
uuid_id!(
    /// A node of a cluster.
    NodeId,
    "node id"
);
uuid_id!(
    /// A schedule.
    ScheduleId,
    "schedule id"
);
uuid_id!(
    /// A job.
    JobId,
    "job id"
);
uuid_id!(
    /// A task.
    TaskId,
    "task id"
);
uuid_id!(
    /// An entry of the audit.
    AuditId,
    "audit id"
);

uuid_id!(
    /// Somebody who is told of what goes wrong.
    TargetId,
    "notification id"
);
uuid_id!(
    /// A message to somebody.
    MessageId,
    "message id"
);

/// A step in a job's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub i64);

impl StepId {
    /// A random id: a counter would need a lock, or a type that differs between databases.
    pub(crate) fn random() -> Result<Self> {
        let bits = getrandom::u64().map_err(Error::Random)? >> 1;
        Ok(Self(bits.cast_signed()))
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40; // version 4: random
    bytes[8] = (bytes[8] & 0x3f) | 0x80; // the variant of RFC 9562
    let mut text = String::with_capacity(UUID_LEN);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// The UUID in lower case, or nothing if the text is none.
fn normal_uuid(text: &str) -> Option<String> {
    let well_formed = text.len() == UUID_LEN
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    well_formed.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_uuids_of_version_4() {
        let id = VmId::random().unwrap();
        assert_eq!(id, id.as_str().parse().unwrap());
        assert_eq!(&id.as_str()[14..15], "4");
        assert!("89ab".contains(&id.as_str()[19..20]));
        assert_ne!(id, VmId::random().unwrap());
    }

    #[test]
    fn only_uuids_are_ids() {
        let upper = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8";
        assert_eq!(
            upper.parse::<JobId>().unwrap().as_str(),
            upper.to_ascii_lowercase()
        );
        for wrong in ["", "6ba7b810", "6ba7b810x9dad-11d1-80b4-00c04fd430c8"] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<VmId>("\"x\"").is_err());
    }
}
