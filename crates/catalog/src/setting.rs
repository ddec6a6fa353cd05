//! Settings: short texts by key, for what must outlive a process but deserves no table.

use std::collections::BTreeMap;

use crate::error::{Result, database};
use crate::open::Catalog;
use crate::row::Fields;
use crate::sql::query;

impl Catalog {
    /// The value of a setting, if it is set.
    pub async fn setting(&self, key: &str) -> Result<Option<String>> {
        let mut read = self.read().await?;
        let row = query("SELECT * FROM setting WHERE key = $1")
            .bind(key)
            .fetch_optional(&mut read)
            .await
            .map_err(database("read a setting"))?;
        row.map(|row| Fields::new("setting", &row).text("value"))
            .transpose()
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
        query(
            "INSERT INTO setting (key, value) VALUES ($1, $2) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&mut write)
        .await
        .map_err(database("set a setting"))?;
        self.commit(write).await
    }

    /// Removes a setting; it is no error if it was not set.
    pub async fn remove_setting(&self, key: &str) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM setting WHERE key = $1")
            .bind(key)
            .execute(&mut write)
            .await
            .map_err(database("remove a setting"))?;
        self.commit(write).await
    }
}
