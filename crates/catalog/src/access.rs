//! Who may ask a daemon for what, who is logged in, and what was asked.
//!
//! Of tokens and sessions there are hashes only; they are made of random numbers, so that a plain
//! hash is as good as a slow one.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::AuditId;
use crate::open::Catalog;
use crate::page::{Cursor, Page, page_of};
use crate::row::Fields;
use crate::sql::{Row, query};
use crate::text_enum::text_enum;
use crate::timestamp;

text_enum!(
    /// What a token is good for; each holds those before it.
    Scope {
        /// Look.
        View = "view",
        /// Back up, and check what was backed up.
        Backup = "backup",
        /// Restore.
        Restore = "restore",
        /// Everything.
        Admin = "admin",
    }
);

impl Scope {
    /// Whether it is good for what needs `needed`.
    pub fn allows(self, needed: Self) -> bool {
        self as u8 >= needed as u8
    }
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// Its name, which no other has.
    pub name: String,
    /// What it is good for.
    pub scope: Scope,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was last used, to the minute.
    #[serde(with = "time::serde::rfc3339::option")]
    pub used_at: Option<OffsetDateTime>,
}

/// Somebody who is logged in by a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSession {
    /// The token.
    pub token: ApiToken,
    /// What requests that change something must show.
    pub csrf: String,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// Something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// By whom.
    pub who: String,
    /// From where.
    pub origin: String,
    /// What.
    pub action: String,
    /// To what.
    pub detail: String,
    /// What came of it.
    pub outcome: String,
}

/// How exact the last use of a token is kept: not every request writes.
const USE_STEP: time::Duration = time::Duration::minutes(1);

impl Catalog {
    /// Adds a token. [`Error::Invalid`] for a name that is taken or is none.
    pub async fn add_api_token(
        &self,
        name: &str,
        hash: &str,
        scope: Scope,
        expires_at: Option<OffsetDateTime>,
    ) -> Result<()> {
        let invalid = |why: &str| Error::Invalid {
            what: "the name of the token",
            why: why.to_owned(),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.is_empty() || name.len() > 100 || !name.chars().all(is_plain) {
            return Err(invalid("letters, digits and -_.@ make one, up to 100"));
        }
        let mut write = self.write().await?;
        let added = query(
            "INSERT INTO api_token (name, hash, scope, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(name)
        .bind(hash)
        .bind(scope.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .bind(expires_at.map(timestamp::to_text))
        .execute(&mut write)
        .await;
        match added {
            Ok(_) => self.commit(write).await,
            Err(error)
                if error
                    .as_database_error()
                    .is_some_and(|error| error.is_unique_violation()) =>
            {
                Err(invalid("there is one of this name"))
            }
            Err(error) => Err(database("add a token")(error)),
        }
    }

    /// The tokens, by name.
    pub async fn api_tokens(&self) -> Result<Vec<ApiToken>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM api_token ORDER BY name")
            .fetch_all(&mut read)
            .await
            .map_err(database("list tokens"))?;
        rows.iter().map(token).collect()
    }

    /// Removes a token and all sessions of it; whether there was one.
    pub async fn remove_api_token(&self, name: &str) -> Result<bool> {
        let mut write = self.write().await?;
        let removed = query("DELETE FROM api_token WHERE name = $1")
            .bind(name)
            .execute(&mut write)
            .await
            .map_err(database("remove a token"))?;
        self.commit(write).await?;
        Ok(removed.rows_affected() == 1)
    }

    /// The token with this hash, unless it has ended; its use is noted.
    pub async fn use_api_token(&self, hash: &str) -> Result<Option<ApiToken>> {
        let row = query("SELECT * FROM api_token WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&mut *self.read().await?)
            .await
            .map_err(database("find a token"))?;
        let now = timestamp::now();
        let found = row.as_ref().map(token).transpose()?;
        let found = found.filter(|token| token.expires_at.is_none_or(|end| end > now));
        if let Some(token) = &found
            && token.used_at.is_none_or(|used| now - used > USE_STEP)
        {
            let mut write = self.write().await?;
            query("UPDATE api_token SET used_at = $2 WHERE name = $1")
                .bind(&token.name)
                .bind(timestamp::to_text(now))
                .execute(&mut write)
                .await
                .map_err(database("note the use of a token"))?;
            self.commit(write).await?;
        }
        Ok(found)
    }

    /// Adds a session of a token; those that have ended are forgotten.
    pub async fn add_session(
        &self,
        hash: &str,
        token: &str,
        csrf: &str,
        expires_at: OffsetDateTime,
    ) -> Result<()> {
        let now = timestamp::to_text(timestamp::now());
        let mut write = self.write().await?;
        query("DELETE FROM api_session WHERE expires_at < $1")
            .bind(&now)
            .execute(&mut write)
            .await
            .map_err(database("forget old sessions"))?;
        query(
            "INSERT INTO api_session (hash, token, csrf, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(hash)
        .bind(token)
        .bind(csrf)
        .bind(now)
        .bind(timestamp::to_text(expires_at))
        .execute(&mut write)
        .await
        .map_err(database("add a session"))?;
        self.commit(write).await
    }

    /// The session with this hash, unless it or its token has ended.
    pub async fn session(&self, hash: &str) -> Result<Option<ApiSession>> {
        let mut read = self.read().await?;
        let row = query(
            "SELECT t.*, s.csrf AS csrf, s.expires_at AS session_end FROM api_session s \
             JOIN api_token t ON t.name = s.token WHERE s.hash = $1",
        )
        .bind(hash)
        .fetch_optional(&mut read)
        .await
        .map_err(database("find a session"))?;
        let Some(row) = row else { return Ok(None) };
        let fields = Fields::new("api_session", &row);
        let session = ApiSession {
            token: token(&row)?,
            csrf: fields.text("csrf")?,
            expires_at: fields.time("session_end")?,
        };
        let now = timestamp::now();
        let lives =
            session.expires_at > now && session.token.expires_at.is_none_or(|end| end > now);
        Ok(Some(session).filter(|_| lives))
    }

    /// Ends a session.
    pub async fn remove_session(&self, hash: &str) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM api_session WHERE hash = $1")
            .bind(hash)
            .execute(&mut write)
            .await
            .map_err(database("end a session"))?;
        self.commit(write).await
    }

    /// Notes something that was asked for, now.
    pub async fn note_audit(
        &self,
        who: &str,
        origin: &str,
        action: &str,
        detail: &str,
        outcome: &str,
    ) -> Result<()> {
        let mut write = self.write().await?;
        query(
            "INSERT INTO audit (id, at, who, origin, action, detail, outcome) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(AuditId::random()?.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .bind(who)
        .bind(origin)
        .bind(action)
        .bind(detail)
        .bind(outcome)
        .execute(&mut write)
        .await
        .map_err(database("note what was asked for"))?;
        self.commit(write).await
    }

    /// What was asked for, the latest first.
    pub async fn audit(&self, after: Option<&Cursor>, limit: u32) -> Result<Page<AuditEntry>> {
        let mut read = self.read().await?;
        let cursor = after.cloned().unwrap_or_else(Cursor::beginning);
        let rows = query(
            "SELECT * FROM audit WHERE at < $1 OR (at = $1 AND id < $2) \
             ORDER BY at DESC, id DESC LIMIT $3",
        )
        .bind(&cursor.time)
        .bind(&cursor.id)
        .bind(i64::from(limit) + 1)
        .fetch_all(&mut read)
        .await
        .map_err(database("list what was asked for"))?;
        let entries = rows.iter().map(entry).collect::<Result<Vec<_>>>()?;
        let page = page_of(entries, limit, |(entry, id)| Cursor::at(entry.at, id));
        Ok(Page {
            items: page.items.into_iter().map(|(entry, _)| entry).collect(),
            next: page.next,
        })
    }
}

fn token(row: &Row) -> Result<ApiToken> {
    let fields = Fields::new("api_token", row);
    Ok(ApiToken {
        name: fields.text("name")?,
        scope: fields.parse("scope")?,
        created_at: fields.time("created_at")?,
        expires_at: fields.optional_time("expires_at")?,
        used_at: fields.optional_time("used_at")?,
    })
}

fn entry(row: &Row) -> Result<(AuditEntry, String)> {
    let fields = Fields::new("audit", row);
    let entry = AuditEntry {
        at: fields.time("at")?,
        who: fields.text("who")?,
        origin: fields.text("origin")?,
        action: fields.text("action")?,
        detail: fields.text("detail")?,
        outcome: fields.text("outcome")?,
    };
    Ok((entry, fields.text("id")?))
}
