//! `vmtwin token`: who may use the API and the pages.

use anyhow::{Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::backup::Cx;
use crate::cli::TokenCommand;
use crate::ui::table;

/// A token that was made just now.
#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    scope: vmtwin_catalog::Scope,
    token: &'a str,
}

/// Runs `vmtwin token …`.
pub(crate) fn run(cx: &Cx<'_>, command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Add {
            name,
            scope,
            expires,
        } => {
            let end = expires.map(|period| OffsetDateTime::now_utc() + period);
            let (token, hash) = crate::api::new_token()?;
            let scope = (*scope).into();
            cx.db
                .run(async |c| c.add_api_token(name, &hash, scope, end).await)?;
            let made = Made {
                name,
                scope,
                token: &token,
            };
            cx.ui.result(&made, || token.clone())?;
            cx.ui.note(
                "Keep it now: it is not shown again. Use it to log in, or as Authorization: Bearer",
            );
        }
        TokenCommand::List => list(cx)?,
        TokenCommand::Remove { name } => {
            if !cx.db.run(async |c| c.remove_api_token(name).await)? {
                bail!("there is no token {name}; see: vmtwin token list");
            }
            cx.ui.note(&format!("{name}: removed"));
        }
    }
    Ok(())
}

fn list(cx: &Cx<'_>) -> Result<()> {
    let tokens = cx.db.run(async |c| c.api_tokens().await)?;
    cx.ui.result(&tokens, || {
        if tokens.is_empty() {
            return "no token; make one: vmtwin token add me --scope admin".into();
        }
        let when = |time: Option<OffsetDateTime>| {
            let text = time.and_then(|time| time.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
            text.unwrap_or_else(|| "never".to_owned())
        };
        let cells: Vec<Vec<String>> = tokens
            .iter()
            .map(|token| {
                vec![
                    token.name.clone(),
                    token.scope.to_string(),
                    when(token.used_at),
                    when(token.expires_at),
                ]
            })
            .collect();
        table(&["TOKEN", "SCOPE", "USED", "ENDS"], &cells)
    })
}
