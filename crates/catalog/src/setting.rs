//! Settings: short texts by key, for what must outlive a process but deserves no table.

use std::collections::BTreeMap;

use crate::error::{Error, Result, database};
use crate::open::Catalog;
use crate::row::Fields;
use crate::sql::{Session, query};

/// Set when everything has moved to another catalog: to which one.
const MOVED_TO: &str = "catalog.moved-to";

impl Catalog {
    /// The value of a setting, if it is set.
    pub async fn setting(&self, key: &str) -> Result<Option<String>> {
        get(&mut *self.read().await?, key).await
    }

    /// Every setting.
    pub async fn settings(&self) -> Result<BTreeMap<String, String>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM setting")
            .fetch_all(&mut read)
            .await
            .map_err(database("read the settings"))?;
        let pair = |row| {
            let fields = Fields::new("setting", row);
            Ok((fields.text("key")?, fields.text("value")?))
        };
        rows.iter().map(pair).collect()
    }

    /// Sets a setting.
    pub async fn set_setting(&self, key: &str, value: &str) -> Result<()> {
        let mut write = self.write().await?;
        set(&mut write, key, value).await?;
        self.commit(write).await
    }

    /// Removes a setting; it is no error if it was not set.
    pub async fn remove_setting(&self, key: &str) -> Result<()> {
        let mut write = self.write().await?;
        remove(&mut write, key).await?;
        self.commit(write).await
    }
}

/// Notes that everything has moved, or that it has not.
pub(crate) async fn mark_moved(write: &mut Session, to: Option<&str>) -> Result<()> {
    match to {
        Some(to) => set(write, MOVED_TO, to).await,
        None => remove(write, MOVED_TO).await,
    }
}

/// [`Error::Moved`] if everything has moved to another catalog.
pub(crate) async fn refuse_if_moved(session: &mut Session) -> Result<()> {
    match get(session, MOVED_TO).await? {
        None => Ok(()),
        Some(to) => Err(Error::Moved { to }),
    }
}

/// The value of a setting, if it is set.
pub(crate) async fn get(session: &mut Session, key: &str) -> Result<Option<String>> {
    let row = query("SELECT * FROM setting WHERE key = $1")
        .bind(key)
        .fetch_optional(session)
        .await
        .map_err(database("read a setting"))?;
    row.map(|row| Fields::new("setting", &row).text("value"))
        .transpose()
}

/// Sets a setting.
pub(crate) async fn set(write: &mut Session, key: &str, value: &str) -> Result<()> {
    query(
        "INSERT INTO setting (key, value) VALUES ($1, $2) \
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )
    .bind(key)
    .bind(value)
    .execute(write)
    .await
    .map_err(database("set a setting"))?;
    Ok(())
}

async fn remove(write: &mut Session, key: &str) -> Result<()> {
    query("DELETE FROM setting WHERE key = $1")
        .bind(key)
        .execute(write)
        .await
        .map_err(database("remove a setting"))?;
    Ok(())
}
