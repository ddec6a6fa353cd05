//! What the catalog keeps of a notification: whom, how, and of what.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vmtwin_catalog::NotifyTarget;
use vmtwin_notify::Target;

/// What may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A backup failed, or what follows it
    Failure,
    /// What failed is well again
    Recovery,
    /// Something was due and not begun in time
    Missed,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Failure => "failure",
            Kind::Recovery => "recovery",
            Kind::Missed => "missed",
        }
    }
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// Whom, and how.
    pub(crate) target: Target,
    /// Of what.
    pub(crate) on: Vec<Kind>,
    /// Of which guests; none: all.
    pub(crate) vms: Option<Vec<String>>,
}

impl Spec {
    /// Of a notification in the catalog.
    pub(crate) fn of(target: &NotifyTarget) -> Result<Spec> {
        serde_json::from_value(target.spec.clone()).with_context(|| {
            let name = &target.name;
            format!("notification {name} is not understood; was it made by a newer vmtwin?")
        })
    }

    /// Whether it wants this; `guests` are those it is about, none: all.
    pub(super) fn wants(&self, kind: Kind, guests: Option<&[String]>) -> bool {
        let about = match (&self.vms, guests) {
            (Some(wanted), Some(guests)) => guests.iter().any(|name| wanted.contains(name)),
            _ => true,
        };
        about && self.on.contains(&kind)
    }
}
