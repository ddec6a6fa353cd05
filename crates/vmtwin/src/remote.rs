//! `vmtwin --server URL …`: the same command, on the host where a `vmtwin serve` is. Its arguments are
//! sent as they are; paths are that host's. What it says and how far it is comes back as it happens,
//! Ctrl-C is passed on, and the exit code is the command's own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::cancel::Cancel;
use crate::cli::Global;
use crate::ui::Ui;

/// Longest answer that is read in one piece.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
const MAX_TOKEN_BYTES: u64 = 4096;
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence of a server: its event streams say something every 15 seconds.
const SILENCE: Duration = Duration::from_secs(180);
/// Options that are for this side, and whether a value follows.
const OURS: &[(&str, bool)] = &[
    ("--server", true),
    ("--server-ca", true),
    ("--token-file", true),
    ("--json", false),
    ("--quiet", false),
    ("-q", false),
];
/// A job's exit code where the server gives none.
const EXIT_FAILED: i32 = 1;

/// A job, as the API tells it.
#[derive(Deserialize)]
struct Job {
    id: Option<String>,
    state: String,
    ended_at: Option<String>,
    progress: Option<Progress>,
    exit_code: Option<i32>,
    error: Option<String>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Progress {
    label: String,
    done: u64,
    total: Option<u64>,
}

/// Runs the command of this process on the server; gives its exit code.
pub(crate) fn run(server: &str, global: &Global, ui: &Ui, cancel: &Cancel) -> Result<i32> {
    let server = Server::new(server, global)?;
    let arguments = arguments(std::env::args_os().skip(1))?;
    let asked = server.post("/api/v1/commands", &json!({ "arguments": arguments }))?;
    let mut job: Job = serde_json::from_value(asked)?;
    if let (Some(id), None) = (job.id.clone(), &job.ended_at) {
        server.follow(&id, ui, cancel)?;
        job = serde_json::from_value(server.get(&format!("/api/v1/jobs/{id}"))?)?;
    }
    if !job.result.is_null() {
        let text = job.text.unwrap_or_default();
        ui.result(&job.result, || text)?;
    }
    if let Some(error) = job.error {
        let verb = if job.state == "cancelled" {
            "cancelled"
        } else {
            "error"
        };
        ui.note(&format!("{verb}: {error}"));
    }
    Ok(job.exit_code.unwrap_or(EXIT_FAILED))
}

/// What is sent: all but what is for this side.
fn arguments(all: impl Iterator<Item = OsString>) -> Result<Vec<String>> {
    let mut sent = Vec::new();
    let mut all = all;
    while let Some(argument) = all.next() {
        let text = argument.into_string().map_err(|argument| {
            let shown = argument.display().to_string();
            anyhow::anyhow!("{shown} is no UTF-8: that cannot be sent to a server")
        })?;
        if text == "--" {
            sent.push(text);
            for rest in all {
                sent.push(rest.into_string().map_err(|_| {
                    anyhow::anyhow!("an argument is no UTF-8: that cannot be sent to a server")
                })?);
            }
            break;
        }
        let name = text.split_once('=').map_or(text.as_str(), |(name, _)| name);
        match OURS.iter().find(|(ours, _)| *ours == name) {
            Some((_, true)) if !text.contains('=') => {
                all.next();
            }
            Some(_) => {}
            None => sent.push(text),
        }
    }
    Ok(sent)
}

struct Server {
    url: String,
    token: String,
    agent: Agent,
}

impl Server {
    fn new(url: &str, global: &Global) -> Result<Server> {
        let url = url.trim_end_matches('/').to_owned();
        let is_local = ["http://127.0.0.1", "http://localhost", "http://[::1]"]
            .iter()
            .any(|local| {
                url.strip_prefix(local).is_some_and(|rest| {
                    !rest.contains('@') && (rest.is_empty() || rest.starts_with(':'))
                })
            });
        if !url.starts_with("https://") && !is_local {
            bail!("{url}: away from this machine the token goes over https:// only");
        }
        Ok(Server {
            url,
            token: token(global)?,
            agent: agent(global.server_ca.as_deref())?,
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let answer = request.header("authorization", self.bearer()).call();
        self.document(answer)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request
            .header("authorization", self.bearer())
            .header("content-type", "application/json");
        self.document(request.send(body.to_string()))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answered(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut answer = answer.with_context(|| format!("{} cannot be reached", self.url))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = text_of(answer.body_mut())?;
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        match problem["detail"].as_str() {
            Some(detail) => bail!("{detail}"),
            None => bail!("{} answers {status}; is a vmtwin serve there?", self.url),
        }
    }

    fn document(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Value> {
        let mut answer = self.answered(answer)?;
        if answer.status().as_u16() == 202 {
            return Ok(Value::Null);
        }
        let text = text_of(answer.body_mut())?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} answers something else than JSON", self.url))
    }

    /// Shows what a job says and how far it is, until it is over.
    fn follow(&self, id: &str, ui: &Ui, cancel: &Cancel) -> Result<()> {
        let request = self
            .agent
            .get(format!("{}/api/v1/jobs/{id}/events", self.url));
        let answer = request.header("authorization", self.bearer()).call();
        let mut answer = self.answered(answer)?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.pass_on(id, cancel, &over));
            let read = show(answer.body_mut().as_reader(), ui);
            over.store(true, Ordering::Relaxed);
            read
        })
    }

    /// Passes Ctrl-C on, once.
    fn pass_on(&self, id: &str, cancel: &Cancel, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            if cancel.is_set() {
                let _ = self.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({}));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Reads an event stream to its end.
fn show(from: impl Read, ui: &Ui) -> Result<()> {
    let mut kind = String::new();
    let mut bar: Option<(String, indicatif::ProgressBar)> = None;
    for line in BufReader::new(from.take(MAX_ANSWER_BYTES)).lines() {
        let line = line.context("the server went away; the job goes on there")?;
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut kind);
        } else if let Some(data) = line.strip_prefix("data: ") {
            match kind.as_str() {
                "log" => {
                    let data: Value = serde_json::from_str(data)?;
                    ui.note(data["line"].as_str().unwrap_or_default());
                }
                "job" => {
                    let job: Job = serde_json::from_str(data)?;
                    follow_progress(&mut bar, job.progress, ui);
                }
                _ => {}
            }
        }
    }
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

fn follow_progress(
    bar: &mut Option<(String, indicatif::ProgressBar)>,
    progress: Option<Progress>,
    ui: &Ui,
) {
    let Some(progress) = progress else { return };
    if bar
        .as_ref()
        .is_none_or(|(label, _)| *label != progress.label)
    {
        if let Some((_, old)) = bar.take() {
            old.finish_and_clear();
        }
        let new = match progress.total {
            Some(total) => ui.bar(&progress.label, total),
            None => ui.spinner(&progress.label),
        };
        *bar = Some((progress.label, new));
    }
    if let Some((_, bar)) = bar {
        bar.set_position(progress.done);
    }
}

fn text_of(body: &mut Body) -> Result<String> {
    let text = body.with_config().limit(MAX_ANSWER_BYTES).read_to_string();
    text.context("the answer of the server broke off")
}

/// The token, from where no other user of this machine sees it.
fn token(global: &Global) -> Result<String> {
    if let Some(file) = &global.token_file {
        let open = std::fs::File::open(file);
        let mut text = String::new();
        open.and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
            .with_context(|| format!("cannot read the token in {}", file.display()))?;
        return Ok(text.lines().next().unwrap_or_default().trim().to_owned());
    }
    match std::env::var("VMTWIN_TOKEN") {
        Ok(token) if !token.trim().is_empty() => Ok(token.trim().to_owned()),
        _ => bail!(
            "a server needs a token: set VMTWIN_TOKEN, or give --token-file; there: vmtwin token \
             add NAME --scope admin"
        ),
    }
}

fn agent(ca: Option<&Path>) -> Result<Agent> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = match ca {
        None => RootCerts::PlatformVerifier,
        Some(file) => {
            let pem =
                std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let found: Vec<_> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if found.is_empty() {
                bail!("{} holds no certificate (PEM)", file.display());
            }
            RootCerts::Specific(Arc::new(found))
        }
    };
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(roots)
        .build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("vmtwin/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_resolve(Some(CONNECT))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .build()
        .new_agent())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_for_this_side_is_not_sent() {
        let line = "--server http://x backup web01 --json --token-file=/t -q --order random";
        let sent = arguments(line.split(' ').map(OsString::from)).unwrap();
        assert_eq!(sent, ["backup", "web01", "--order", "random"]);
        let line = "snapshot get --server=x -- --json";
        let sent = arguments(line.split(' ').map(OsString::from)).unwrap();
        assert_eq!(sent, ["snapshot", "get", "--", "--json"]);
    }

    #[test]
    fn a_token_goes_over_no_open_line() {
        let global = |url: &str| {
            let line = [
                "vmtwin",
                "--server",
                url,
                "--token-file",
                "/dev/null",
                "doctor",
            ];
            let cli = <crate::cli::Cli as clap::Parser>::try_parse_from(line).unwrap();
            Server::new(url, &cli.global).map(|_| ())
        };
        for open in [
            "http://host",
            "http://localhost.evil",
            "http://127.0.0.1@evil",
            "ftp://x",
        ] {
            assert!(global(open).is_err(), "{open}");
        }
        for closed in [
            "https://host:7400/",
            "http://127.0.0.1:7400",
            "http://[::1]:7400",
        ] {
            assert!(global(closed).is_ok(), "{closed}");
        }
    }
}
