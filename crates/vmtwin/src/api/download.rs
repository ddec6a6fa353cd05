//! Files out of snapshots, as they are read: `snapshot get --to -` in a process, whose output is the
//! answer's body.

use std::io::Read;
use std::process::Child;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::mpsc::{self, Sender};
use utoipa::IntoParams;
use vmtwin_catalog::Scope;
use vmtwin_server::Problem;

use super::access::{Caller, Named, Params};
use super::model::ProblemView;
use super::{Answer, Shared};

/// Bytes that are read at one time, and how many such pieces wait for who reads.
const PIECE: usize = 64 << 10;
const WAITING: usize = 8;
/// Most of what a command says that is kept.
const MAX_SAID_BYTES: u64 = 16 << 10;
const MAX_NAME_CHARS: usize = 4096;

/// Which file.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichFile {
    /// The disk or file system, as `snapshot ls ID` names it.
    disk: String,
    /// The path in it.
    path: String,
    /// Which file system of the disk, where it has several; as `snapshot ls ID` names it.
    filesystem: Option<String>,
}

/// A file out of a snapshot.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/download", tag = "snapshots",
    params(("id" = String, Path), WhichFile),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = "4XX", body = ProblemView)))]
pub(super) async fn file(
    State(api): State<Shared>,
    caller: Caller,
    Named(id): Named,
    Params(which): Params<WhichFile>,
) -> Answer<Response> {
    caller.needs(Scope::Restore)?;
    let target = target(&id, &which)?;
    let filesystem = which.filesystem.clone();
    let (who, from, detail) = (caller.name, caller.from, target.clone());
    let runner = std::sync::Arc::clone(&api.runner);
    let child = api
        .blocking(move |api| {
            api.db.run(async |c| {
                c.note_audit(&who, &from, "download", &detail, "asked")
                    .await
            })?;
            let mut line = ["snapshot", "get", "--to=-"].map(str::to_owned).to_vec();
            line.extend(filesystem.map(|name| format!("--filesystem={name}")));
            line.extend(["--".to_owned(), target]);
            runner.spawn(&line)
        })
        .await?;
    let (sender, mut receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || pour(child, &sender));
    // Until the first bytes are there, an error can still be told as one.
    let first = match receiver.recv().await {
        Some(Ok(first)) => Some(first),
        Some(Err(said)) => return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, said)),
        None => None,
    };
    let rest = futures_util::stream::unfold((first, receiver), async |(first, mut receiver)| {
        let next = match first {
            Some(first) => Ok(first),
            None => receiver.recv().await?.map_err(std::io::Error::other),
        };
        Some((next, (None, receiver)))
    });
    let fields = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, disposition(&which.path)),
    ];
    Ok((fields, Body::from_stream(Box::pin(rest))).into_response())
}

fn target(id: &str, which: &WhichFile) -> Answer<String> {
    let wrong = |why: &str| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why));
    if id.len() < 4 || id.len() > 64 || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(super::not_found("there is no snapshot of this id"));
    }
    let filesystem = which.filesystem.as_deref().unwrap_or_default();
    let length = which.disk.len() + which.path.len() + filesystem.len();
    if filesystem.contains('\0') {
        return wrong("the file system is no name");
    }
    if length > MAX_NAME_CHARS || which.disk.contains('\0') || which.path.contains('\0') {
        return wrong("the disk or the path is too long, or no name");
    }
    if which.disk.is_empty() || which.disk.contains('/') {
        return wrong("give the disk, as `snapshot ls ID` names it");
    }
    let path = which.path.trim_start_matches('/');
    Ok(format!("{id}:{}/{path}", which.disk))
}

/// A file name that no browser and no shell takes for something else; RFC 6266 and 5987.
fn disposition(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let encoded: String = name
        .bytes()
        .map(
            |byte| match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            },
        )
        .collect();
    format!("attachment; filename*=UTF-8''{encoded}")
}

/// Hands on what the process prints; ends it when nobody reads any more.
fn pour(mut child: Child, to: &Sender<Result<Bytes, String>>) {
    let said = child.stderr.take().map(|err| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut limited = err.take(MAX_SAID_BYTES);
            let _ = limited.read_to_end(&mut text);
            let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    if let Some(mut out) = child.stdout.take() {
        let mut piece = vec![0; PIECE];
        while let Ok(read @ 1..) = out.read(&mut piece) {
            if to
                .blocking_send(Ok(Bytes::copy_from_slice(&piece[..read])))
                .is_err()
            {
                // The end of its stdin has it undo what it began.
                drop(child.stdin.take());
                break;
            }
        }
    }
    let good = child.wait().is_ok_and(|status| status.success());
    if !good {
        let said = said
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let last = said.lines().rfind(|line| line.starts_with("error"));
        let last = last.unwrap_or("the file could not be read");
        let _ = to.blocking_send(Err(last.trim_start_matches("error: ").to_owned()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_target_is_one_file_of_a_disk() {
        let which = |disk: &str, path: &str| WhichFile {
            disk: disk.into(),
            path: path.into(),
            filesystem: None,
        };
        let good = target("1a2b3c4d", &which("vda:1", "/etc/hosts")).unwrap();
        assert_eq!(good, "1a2b3c4d:vda:1/etc/hosts");
        assert!(target("--to", &which("vda", "x")).is_err());
        assert!(target("1a2b3c4d", &which("a/b", "x")).is_err());
        assert!(target("1a2b3c4d", &which("", "x")).is_err());
        assert!(target("1a2b3c4d", &which("vda", "a\0b")).is_err());
        let named = disposition("/etc/a \"b\"\r\nSet-Cookie: x");
        assert!(
            named.chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{named}"
        );
        assert!(
            named.ends_with("a%20%22b%22%0D%0ASet-Cookie%3A%20x"),
            "{named}"
        );
    }
}
