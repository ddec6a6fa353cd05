//! `vmtwin notify`: who is told of what goes wrong.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use vmtwin_catalog::{MessageId, NotifyTarget, OutboxMessage, VmRole};
use vmtwin_notify::{By, Command, Mail, Place, Target, Webhook, make_signing_secret};
use zeroize::Zeroizing;

use crate::backup::Cx;
use crate::cli::{NotifyAddArgs, NotifyCommand};
use crate::home::write_private;
use crate::notify::{Kind, Spec, test_message, to_deliver};
use crate::timer;
use crate::ui::table;

/// Where Debian's mail servers have it.
const SENDMAIL: &str = "/usr/sbin/sendmail";
/// Messages that are shown.
const SHOWN_MESSAGES: u32 = 20;
/// Longest time of a command, seconds.
const MAX_TIMEOUT_S: u64 = 3600;

/// A notification, for people and programs. It holds no secret.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    how: String,
    on: Vec<Kind>,
    vms: Option<Vec<String>>,
    /// The one host that can tell it.
    host: Option<String>,
    /// Messages that are not delivered yet.
    waiting: usize,
    messages: Vec<ShownMessage>,
    /// Made now, and shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownMessage {
    id: MessageId,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    summary: String,
    /// `delivered`, `given-up` or `waiting`.
    state: &'static str,
    attempts: u64,
    note: Option<String>,
}

/// Runs `vmtwin notify …`.
pub(crate) fn run(cx: &Cx<'_>, command: &NotifyCommand) -> Result<()> {
    match command {
        NotifyCommand::Add(args) => add(cx, args),
        NotifyCommand::List => list(cx),
        NotifyCommand::Show { name } => show(cx, name),
        NotifyCommand::Test { name } => test(cx, name),
        NotifyCommand::Remove { name } => remove(cx, name),
    }
}

fn find(cx: &Cx<'_>, name: &str) -> Result<NotifyTarget> {
    Ok(cx.db.run(async |c| c.notify_target(name).await)?)
}

fn add(cx: &Cx<'_>, args: &NotifyAddArgs) -> Result<()> {
    let guests = cx.db.run(async |c| c.vms().await)?;
    for name in &args.vms {
        let known = |vm: &vmtwin_catalog::Vm| vm.name == *name && vm.role == VmRole::Guest;
        if !guests.iter().any(known) {
            bail!("there is no guest {name}; see: vmtwin vm list");
        }
    }
    let mut on = args.on.clone();
    on.sort_unstable();
    on.dedup();
    let host = timer::host()?;
    let made = args
        .sign
        .then(|| cx.home.dir().join(secret_name(&args.name)));
    let spec = Spec {
        target: target(args, &host, made.as_deref())?,
        on,
        vms: (!args.vms.is_empty()).then(|| args.vms.clone()),
    };
    let local = spec.target.is_local().then_some(host.as_str());
    // The secret first, so that what is added can be checked; a name that is taken keeps its own.
    let secret = match &made {
        Some(path) => {
            let taken = cx.db.run(async |c| c.notify_targets().await)?;
            if taken.iter().any(|one| one.name == args.name) {
                let name = args.name.clone();
                return Err(vmtwin_catalog::Error::TargetExists { name }.into());
            }
            Some(keep_secret(path)?)
        }
        None => None,
    };
    let document = serde_json::to_value(&spec)?;
    let added = spec
        .target
        .check()
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            let adding = cx
                .db
                .run(async |c| c.add_notify_target(&args.name, &document, local).await);
            Ok(adding?)
        });
    if let (Err(_), Some(path)) = (&added, &made) {
        let _ = std::fs::remove_file(path);
    }
    added?;
    let mut shown = shown(cx, find(cx, &args.name)?)?;
    shown.secret = secret.map(|text| text.as_str().to_owned());
    cx.ui.result(&shown, || {
        let mut lines = vec![format!("{}: {}", shown.name, shown.how)];
        if let Some(secret) = &shown.secret {
            lines.push(format!(
                "secret: {secret}\n  Shown this once: the receiver checks signatures by it."
            ));
        }
        lines.push(format!("next: vmtwin notify test {}", shown.name));
        lines.join("\n")
    })
}

fn secret_name(name: &str) -> String {
    // A name that the catalog refuses leads nowhere else.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().filter(|c| plain(*c)).take(64).collect();
    format!("notify-{name}.secret")
}

fn keep_secret(path: &Path) -> Result<Zeroizing<String>> {
    let secret = make_signing_secret()?;
    write_private(path, format!("{}\n", secret.as_str()).as_bytes())?;
    Ok(secret)
}

fn target(args: &NotifyAddArgs, host: &str, made: Option<&Path>) -> Result<Target> {
    let absolute = |path: &PathBuf| std::path::absolute(path);
    if let Some(command) = &args.command {
        if args.timeout > MAX_TIMEOUT_S {
            bail!("--timeout is at most 1h");
        }
        return Ok(Target::Command(Command {
            command: command.clone(),
            timeout_s: args.timeout,
        }));
    }
    if !args.mail.is_empty() {
        let by = match (&args.smtp, &args.sendmail) {
            (Some(url), _) => By::Smtp {
                url: url.clone(),
                password_file: args.smtp_password_file.as_ref().map(absolute).transpose()?,
            },
            (None, program) => By::Sendmail {
                program: sendmail(program.as_deref())?,
            },
        };
        return Ok(Target::Mail(Mail {
            to: args.mail.clone(),
            from: args.from.clone().unwrap_or(format!("vmtwin@{host}")),
            by,
        }));
    }
    let url = match (&args.webhook, &args.webhook_file) {
        (Some(url), _) => Place::Here(url.clone()),
        (None, Some(file)) => Place::File(absolute(file)?),
        (None, None) => bail!("say how: --webhook, --mail or --command"),
    };
    let file = args.secret_file.as_deref().map(std::path::absolute);
    let secret_file = match made {
        Some(path) => Some(path.to_owned()),
        None => file.transpose()?,
    };
    Ok(Target::Webhook(Webhook { url, secret_file }))
}

fn sendmail(given: Option<&Path>) -> Result<PathBuf> {
    let program = std::path::absolute(given.unwrap_or(Path::new(SENDMAIL)))?;
    match program.exists() {
        true => Ok(program),
        false => bail!(
            "there is no {}: give a server by --smtp URL, or a program by --sendmail",
            program.display()
        ),
    }
}

fn list(cx: &Cx<'_>) -> Result<()> {
    let targets = cx.db.run(async |c| c.notify_targets().await)?;
    let all: Vec<Shown> = targets
        .into_iter()
        .map(|target| shown(cx, target))
        .collect::<Result<_>>()?;
    cx.ui.result(&all, || {
        if all.is_empty() {
            return "nobody is told; change that: vmtwin notify add --help".into();
        }
        let row = |one: &Shown| {
            let last = one.messages.first().map_or("-", |message| message.state);
            let of = one
                .vms
                .as_ref()
                .map_or("all".to_owned(), |vms| vms.join(", "));
            vec![
                one.name.clone(),
                one.how.clone(),
                kinds(&one.on),
                of,
                one.waiting.to_string(),
                last.to_owned(),
            ]
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        table(&["NAME", "HOW", "ON", "GUESTS", "WAITING", "LAST"], &rows)
    })
}

fn show(cx: &Cx<'_>, name: &str) -> Result<()> {
    let shown = shown(cx, find(cx, name)?)?;
    cx.ui.result(&shown, || {
        let of = shown
            .vms
            .as_ref()
            .map_or("all".to_owned(), |vms| vms.join(", "));
        let mut lines = vec![
            format!("{name}: {}", shown.how),
            format!("  on      {}", kinds(&shown.on)),
            format!("  guests  {of}"),
        ];
        if let Some(host) = &shown.host {
            lines.push(format!("  told by {host}"));
        }
        for message in &shown.messages {
            let note = message.note.as_deref().unwrap_or_default();
            let at = message
                .created_at
                .replace_nanosecond(0)
                .unwrap_or(message.created_at);
            let (state, summary) = (message.state, &message.summary);
            lines.push(
                format!("  {at}  {state}  {summary}  {note}")
                    .trim_end()
                    .to_owned(),
            );
        }
        lines.join("\n")
    })
}

fn test(cx: &Cx<'_>, name: &str) -> Result<()> {
    let target = find(cx, name)?;
    let spec = Spec::of(&target)?;
    let host = timer::host()?;
    if let Some(other) = target.host.as_deref().filter(|other| *other != host) {
        bail!("{name} is told by the host {other}, which has its files; run this there");
    }
    let now = OffsetDateTime::now_utc();
    let message = OutboxMessage {
        id: MessageId::random()?,
        target_id: target.id,
        document: test_message(&host, name),
        created_at: now,
        due_at: now,
        attempts: 1,
        ended_at: None,
        outcome: None,
        note: None,
    };
    let bar = cx.ui.spinner("sending");
    let sent = spec.target.deliver(&to_deliver(&host, &message));
    bar.finish_and_clear();
    sent.with_context(|| format!("{name}: {}", spec.target.describe()))?;
    let document = serde_json::json!({ "name": name, "id": message.id, "delivered": true });
    cx.ui.result(&document, || {
        format!("{name}: taken by the {}", spec.target.describe())
    })
}

fn remove(cx: &Cx<'_>, name: &str) -> Result<()> {
    let target = find(cx, name)?;
    cx.db
        .run(async |c| c.remove_notify_target(&target.id).await)?;
    if target.host == Some(timer::host()?) {
        let _ = std::fs::remove_file(cx.home.dir().join(secret_name(name)));
    }
    cx.ui.result(&serde_json::json!({ "removed": name }), || {
        format!("{name}: removed")
    })
}

fn kinds(on: &[Kind]) -> String {
    let words: Vec<&str> = on.iter().map(|kind| kind.as_str()).collect();
    words.join(",")
}

fn shown(cx: &Cx<'_>, target: NotifyTarget) -> Result<Shown> {
    let spec = Spec::of(&target)?;
    let id = &target.id;
    let messages = cx.db.run(async |c| c.messages(id, SHOWN_MESSAGES).await)?;
    let waiting = messages.iter().filter(|one| one.ended_at.is_none()).count();
    Ok(Shown {
        name: target.name,
        how: spec.target.describe(),
        on: spec.on,
        vms: spec.vms,
        host: target.host,
        waiting,
        messages: messages.into_iter().map(shown_message).collect(),
        secret: None,
    })
}

fn shown_message(message: OutboxMessage) -> ShownMessage {
    ShownMessage {
        id: message.id,
        created_at: message.created_at,
        summary: message.document["summary"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        state: message
            .outcome
            .map_or("waiting", |outcome| outcome.as_str()),
        attempts: message.attempts,
        note: message.note,
    }
}
