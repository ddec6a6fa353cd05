//! Long lists in pages: by time and id, the latest first, so that what is added meanwhile moves
//! nothing.

use std::fmt;
use std::str::FromStr;

use time::OffsetDateTime;

use crate::error::{Error, Result};
use crate::timestamp;

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) time: String,
    pub(crate) id: String,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next part begins; none: this is the end.
    pub next: Option<Cursor>,
}

impl Cursor {
    /// Before all that is listed: later than any time as text.
    pub(crate) fn beginning() -> Self {
        Self {
            time: "9999".to_owned(),
            id: String::new(),
        }
    }

    pub(crate) fn at(time: OffsetDateTime, id: &str) -> Self {
        Self {
            time: timestamp::to_text(time),
            id: id.to_owned(),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}", self.time, self.id)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('~').filter(|(time, id)| {
            timestamp::from_text(time).is_some()
                && id.len() <= 200
                && id.chars().all(|c| c.is_ascii_graphic())
        });
        let (time, id) = parts.ok_or_else(|| Error::Invalid {
            what: "the cursor",
            why: "it is none that a list gave".to_owned(),
        })?;
        Ok(Self {
            time: time.to_owned(),
            id: id.to_owned(),
        })
    }
}

/// A page of items of which one more than the limit was asked for.
pub(crate) fn page_of<T>(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> Cursor) -> Page<T> {
    let limit = limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    Page { items, next }
}
