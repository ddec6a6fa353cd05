//! Who asks, and what they may.
//!
//! A token is 32 random bytes behind a mark that scanners for leaked secrets can find. It is shown
//! once; the catalog has its SHA-256. A browser gives it once and has a session then: a cookie that
//! no script reads and no other site sends along, and a second word that must come with everything
//! that changes something.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use utoipa::ToSchema;
use vmtwin_catalog::{ApiToken, Scope};
use vmtwin_server::{PeerAddress, Problem, sha256_hex};

use super::model::{ListOf, MadeToken, Session, TokenView};
use super::{Answer, Shared};

/// What a token begins with.
const MARK: &str = "vmtwin_";
/// Longest text that is looked at as a token.
const MAX_TOKEN_CHARS: usize = 200;
/// Life of a session.
const SESSION: time::Duration = time::Duration::hours(12);
const COOKIE: &str = "vmtwin_session";
const CSRF: &str = "x-csrf-token";
/// Wrong tokens of one address in a minute.
const MAX_GUESSES: u32 = 10;
const GUESS_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// A new secret and the hash that is kept of it.
pub(crate) fn new_token() -> anyhow::Result<(String, String)> {
    let secret = random_text()?;
    let token = format!("{MARK}{secret}");
    let hash = sha256_hex(token.as_bytes());
    Ok((token, hash))
}

fn random_text() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Wrong tokens, by the address they came from.
#[derive(Default)]
pub(super) struct Guesses(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Guesses {
    fn are_too_many(&self, from: IpAddr) -> bool {
        let guesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = guesses.get(&from);
        of_it.is_some_and(|(count, since)| *count >= MAX_GUESSES && since.elapsed() < GUESS_WINDOW)
    }

    fn add(&self, from: IpAddr) {
        let mut guesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if guesses.len() >= MAX_ADDRESSES {
            guesses.retain(|_, (_, since)| since.elapsed() < GUESS_WINDOW);
        }
        let (count, since) = guesses.entry(from).or_insert((0, Instant::now()));
        if since.elapsed() >= GUESS_WINDOW {
            (*count, *since) = (0, Instant::now());
        }
        *count += 1;
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The name of the token.
    pub(super) name: String,
    pub(super) scope: Scope,
    /// The address.
    pub(super) from: String,
    csrf: Option<(String, OffsetDateTime)>,
}

impl Caller {
    /// Refuses who may not.
    pub(super) fn needs(&self, scope: Scope) -> Answer<()> {
        match self.scope.allows(scope) {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!(
                    "this needs a token of scope {scope}; yours has {}",
                    self.scope
                ),
            )),
        }
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Answer<Caller> {
        let from = parts.extensions.get::<PeerAddress>();
        let from = from.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0);
        if let Some(token) = bearer(&parts.headers) {
            let token = by_token(api, token, from).await?;
            return Ok(Caller {
                name: token.name,
                scope: token.scope,
                from: from.to_string(),
                csrf: None,
            });
        }
        let Some(cookie) = cookie(&parts.headers) else {
            return Err(unknown(
                "log in, or give a token: Authorization: Bearer TOKEN",
            ));
        };
        let hash = sha256_hex(cookie.as_bytes());
        let session = api
            .blocking(move |api| Ok(api.db.run(async |c| c.session(&hash).await)?))
            .await?;
        let session = session.ok_or_else(|| unknown("the session is over; log in again"))?;
        let shown = parts.headers.get(CSRF).map(|shown| shown.as_bytes());
        if parts.method != Method::GET && shown != Some(session.csrf.as_bytes()) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "the header X-CSRF-Token is missing or wrong; load the page again",
            ));
        }
        Ok(Caller {
            name: session.token.name,
            scope: session.token.scope,
            from: from.to_string(),
            csrf: Some((session.csrf, session.expires_at)),
        })
    }
}

fn unknown(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (kind, token) = value.split_once(' ')?;
    kind.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter();
    all.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

async fn by_token(api: &Shared, token: &str, from: IpAddr) -> Answer<ApiToken> {
    let is_one = token.starts_with(MARK) && token.len() <= MAX_TOKEN_CHARS;
    let found = match is_one {
        true => {
            let hash = sha256_hex(token.as_bytes());
            api.blocking(move |api| Ok(api.db.run(async |c| c.use_api_token(&hash).await)?))
                .await?
        }
        false => None,
    };
    // A good token is never kept out by what others at its address do.
    found.ok_or_else(|| {
        if api.guesses.are_too_many(from) {
            return Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong tokens came from your address; wait a minute",
            );
        }
        api.guesses.add(from);
        unknown("the token is not known here, or has ended; make one: vmtwin token add NAME")
    })
}

/// A body that must be JSON of this shape.
pub(super) type Body<T> = Result<Json<T>, JsonRejection>;

pub(super) fn body<T>(given: Body<T>) -> Answer<T> {
    match given {
        Ok(Json(value)) => Ok(value),
        Err(rejection) => Err(Problem::new(rejection.status(), rejection.body_text())),
    }
}

/// The part of a path that names something.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Named> {
        let given = Path::<String>::from_request_parts(parts, state).await;
        let wrong = |why: axum::extract::rejection::PathRejection| {
            Problem::new(why.status(), why.body_text())
        };
        given.map(|Path(name)| Named(name)).map_err(wrong)
    }
}

/// The query of a request.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Params<T>> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(given)) => Ok(Params(given)),
            Err(wrong) => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                wrong.body_text(),
            )),
        }
    }
}

/// A token that was given to log in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    token: String,
}

/// Log in with a token: gives a session as a cookie.
#[utoipa::path(post, path = "/api/v1/session", tag = "access", request_body = LogIn,
    responses((status = 200, body = Session), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn log_in(
    State(api): State<Shared>,
    Extension(PeerAddress(from)): Extension<PeerAddress>,
    given: Body<LogIn>,
) -> Answer<Response> {
    let given = body(given)?;
    let token = by_token(&api, given.token.trim(), from).await?;
    let secret = random_text().map_err(|error| super::problem_of(&error))?;
    let csrf = random_text().map_err(|error| super::problem_of(&error))?;
    let expires_at = OffsetDateTime::now_utc() + SESSION;
    let session = Session {
        name: token.name.clone(),
        scope: token.scope.to_string(),
        csrf: csrf.clone(),
        expires_at,
    };
    let (hash, origin) = (sha256_hex(secret.as_bytes()), from.to_string());
    api.blocking(move |api| {
        let name = &token.name;
        api.db.run(async |c| {
            c.add_session(&hash, name, &csrf, expires_at).await?;
            c.note_audit(name, &origin, "log in", "", "done").await
        })?;
        Ok(())
    })
    .await?;
    let secure = if api.is_secure { "; Secure" } else { "" };
    let age = SESSION.whole_seconds();
    let cookie =
        format!("{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}");
    Ok(([(header::SET_COOKIE, cookie)], Json(session)).into_response())
}

/// Who is logged in.
#[utoipa::path(get, path = "/api/v1/session", tag = "access",
    responses((status = 200, body = Session), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn who(caller: Caller) -> Json<Session> {
    let (csrf, expires_at) = caller.csrf.unwrap_or_else(|| {
        let end = OffsetDateTime::now_utc() + SESSION;
        (String::new(), end)
    });
    Json(Session {
        name: caller.name,
        scope: caller.scope.to_string(),
        csrf,
        expires_at,
    })
}

/// Log out.
#[utoipa::path(delete, path = "/api/v1/session", tag = "access",
    responses((status = 204), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn log_out(
    State(api): State<Shared>,
    _caller: Caller,
    headers: HeaderMap,
) -> Answer<Response> {
    if let Some(cookie) = cookie(&headers) {
        let hash = sha256_hex(cookie.as_bytes());
        api.blocking(move |api| Ok(api.db.run(async |c| c.remove_session(&hash).await)?))
            .await?;
    }
    let gone = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, gone)]).into_response())
}

/// The tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "access",
    responses((status = 200, body = ListOf<TokenView>), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn tokens(
    State(api): State<Shared>,
    caller: Caller,
) -> Answer<Json<ListOf<TokenView>>> {
    caller.needs(Scope::Admin)?;
    let tokens = api
        .blocking(|api| Ok(api.db.run(async |c| c.api_tokens().await)?))
        .await?;
    let items = tokens.into_iter().map(TokenView::from).collect();
    Ok(Json(ListOf { items, next: None }))
}

/// A token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// Letters, digits and -_.@, up to 100.
    name: String,
    /// view, backup, restore or admin.
    scope: String,
    /// When it ends; never, if it is not given.
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

/// Make a token. Its secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "access", request_body = NewToken,
    responses((status = 201, body = MadeToken), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn add_token(
    State(api): State<Shared>,
    caller: Caller,
    given: Body<NewToken>,
) -> Answer<(StatusCode, Json<MadeToken>)> {
    caller.needs(Scope::Admin)?;
    let given = body(given)?;
    let made = api
        .blocking(move |api| {
            let scope: Scope = given.scope.parse()?;
            let (token, hash) = new_token()?;
            let (name, end) = (&given.name, given.expires_at);
            api.db.run(async |c| {
                c.add_api_token(name, &hash, scope, end).await?;
                c.note_audit(&caller.name, &caller.from, "token add", name, "done")
                    .await
            })?;
            Ok(MadeToken {
                name: given.name,
                scope: scope.to_string(),
                token,
            })
        })
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Remove a token; its sessions end with it.
#[utoipa::path(delete, path = "/api/v1/tokens/{name}", tag = "access",
    params(("name" = String, Path)),
    responses((status = 204), (status = "4XX", body = super::model::ProblemView)))]
pub(super) async fn remove_token(
    State(api): State<Shared>,
    caller: Caller,
    Named(name): Named,
) -> Answer<StatusCode> {
    caller.needs(Scope::Admin)?;
    let removed = api
        .blocking(move |api| {
            let removed = api.db.run(async |c| c.remove_api_token(&name).await)?;
            if removed {
                let (who, from) = (&caller.name, &caller.from);
                api.db
                    .run(async |c| c.note_audit(who, from, "token remove", &name, "done").await)?;
            }
            Ok(removed)
        })
        .await?;
    match removed {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(super::not_found("there is no token of this name")),
    }
}
