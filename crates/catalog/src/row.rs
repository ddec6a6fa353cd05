//! Reading a row strictly: a value that no version of the program writes is
//! [`Error::Damaged`], with the table and the column, and never a default.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result};
use crate::sql::{Readable, Row};
use crate::timestamp;

/// A row of a named table.
pub(crate) struct Fields<'r> {
    row: &'r Row,
    table: &'static str,
}

impl<'r> Fields<'r> {
    pub(crate) fn new(table: &'static str, row: &'r Row) -> Self {
        Self { row, table }
    }

    fn damaged(&self, column: &'static str, value: impl Into<String>) -> Error {
        Error::Damaged {
            table: self.table,
            column,
            value: value.into(),
        }
    }

    fn get<T: Readable>(&self, column: &'static str) -> Result<T> {
        self.row
            .get(column)
            .map_err(|error| self.damaged(column, error.to_string()))
    }

    pub(crate) fn text(&self, column: &'static str) -> Result<String> {
        self.get(column)
    }

    pub(crate) fn optional_text(&self, column: &'static str) -> Result<Option<String>> {
        self.get(column)
    }

    pub(crate) fn flag(&self, column: &'static str) -> Result<bool> {
        self.get(column)
    }

    pub(crate) fn signed(&self, column: &'static str) -> Result<i64> {
        self.get(column)
    }

    pub(crate) fn optional_signed(&self, column: &'static str) -> Result<Option<i64>> {
        self.get(column)
    }

    /// A count: never negative.
    pub(crate) fn count(&self, column: &'static str) -> Result<u64> {
        let stored: i64 = self.get(column)?;
        stored
            .try_into()
            .map_err(|_| self.damaged(column, stored.to_string()))
    }

    pub(crate) fn optional_count(&self, column: &'static str) -> Result<Option<u64>> {
        match self.get::<Option<i64>>(column)? {
            None => Ok(None),
            Some(_) => self.count(column).map(Some),
        }
    }

    /// An enum or an id.
    pub(crate) fn parse<T: FromStr>(&self, column: &'static str) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|_| self.damaged(column, text))
    }

    pub(crate) fn optional_parse<T: FromStr>(&self, column: &'static str) -> Result<Option<T>> {
        match self.optional_text(column)? {
            None => Ok(None),
            Some(_) => self.parse(column).map(Some),
        }
    }

    pub(crate) fn time(&self, column: &'static str) -> Result<OffsetDateTime> {
        let text = self.text(column)?;
        timestamp::from_text(&text).ok_or_else(|| self.damaged(column, text))
    }

    pub(crate) fn optional_time(&self, column: &'static str) -> Result<Option<OffsetDateTime>> {
        match self.optional_text(column)? {
            None => Ok(None),
            Some(_) => self.time(column).map(Some),
        }
    }

    pub(crate) fn json(&self, column: &'static str) -> Result<Value> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|_| self.damaged(column, text))
    }

    /// A type that is kept as JSON.
    pub(crate) fn typed<T: DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| self.damaged(column, error.to_string()))
    }

    pub(crate) fn optional_json(&self, column: &'static str) -> Result<Option<Value>> {
        match self.optional_text(column)? {
            None => Ok(None),
            Some(_) => self.json(column).map(Some),
        }
    }
}

/// A count as the databases hold it; beyond 8 EiB nothing is stored.
pub(crate) fn stored_count(what: &'static str, count: u64) -> Result<i64> {
    count.try_into().map_err(|_| Error::Invalid {
        what,
        why: format!("{count} is larger than {}", i64::MAX),
    })
}
