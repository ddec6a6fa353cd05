//! `vmtwin cluster`: what its commands say.

mod view;

use anyhow::{Context, Result};
use serde_json::json;
use time::OffsetDateTime;
use vmtwin_cluster::NodeName;
use vmtwin_cluster::manifest::NodeState;
use vmtwin_server::JoinToken;
use zeroize::Zeroizing;

use super::catalog::move_to;
use crate::EXIT_WARNINGS;
use crate::cluster::bucket::{self, Readable};
use crate::cluster::cli::{ClusterCommand, ClusterJoinArgs, ClusterRestoreArgs, NodeCommand};
use crate::cluster::{
    self, BackupReport, Collection, Listed, NodeLine, Renewal, RestoreReport, ValidateReport,
    permission,
};
use crate::db::Db;
use crate::home::Home;
use crate::ui::{Ui, table};

pub(crate) fn run(home: &Home, ui: &Ui, command: &ClusterCommand) -> Result<i32> {
    match command {
        ClusterCommand::Create {
            name,
            node,
            new_authority,
        } => create(home, ui, (name, node.as_ref()), *new_authority).map(|()| 0),
        ClusterCommand::Renew { force } => {
            let renewal = cluster::renew(home, *force)?;
            ui.result(&renewal, || renewal_text(&renewal)).map(|()| 0)
        }
        ClusterCommand::Join(args) => join(home, ui, args).map(|()| 0),
        ClusterCommand::Token(args) => {
            let shown = cluster::membership::token(home, args)?;
            ui.result(&shown, || shown.token.to_string())?;
            ui.note("next, on the new host: vmtwin cluster join TOKEN, then: vmtwin serve");
            Ok(0)
        }
        ClusterCommand::Node(NodeCommand::Remove { name }) => {
            let (id, ended) = cluster::membership::remove(home, name)?;
            let report = json!({"removed": name, "id": id, "jobs_ended": ended});
            let jobs = match ended {
                0 => String::new(),
                count => format!("; {count} jobs that it had not finished were ended"),
            };
            ui.result(&report, || format!("{name}: removed{jobs}"))
                .map(|()| 0)
        }
        ClusterCommand::Node(NodeCommand::AllowRestore { names }) => {
            let allowed = match names.is_empty() {
                true => permission::allowed(home)?,
                false => permission::allow(home, names)?,
            };
            ui.result(&allowed, || allowed_text(&allowed)).map(|()| 0)
        }
        ClusterCommand::Node(NodeCommand::DenyRestore { names, .. }) => {
            let allowed = permission::deny(home, names)?;
            ui.result(&allowed, || allowed_text(&allowed)).map(|()| 0)
        }
        ClusterCommand::Nodes => nodes(home, ui).map(|()| 0),
        ClusterCommand::Collect { without_libvirt } => collect(home, ui, *without_libvirt),
        ClusterCommand::Backup(args) => {
            let bucket = args.output.as_deref().and_then(bucket::place);
            let report = match bucket {
                Some(place) => bucket::backup_to(home, ui, args, place)?,
                None => cluster::backup(home, ui, args)?,
            };
            ui.result(&report, || backup_text(&report))?;
            Ok(match report.warnings.is_empty() {
                true => 0,
                false => EXIT_WARNINGS,
            })
        }
        ClusterCommand::List { dir } => {
            let dir = match dir {
                Some(dir) => dir.clone(),
                None => home.cluster_dir()?,
            };
            let listed = match bucket::place(&dir) {
                Some(place) => bucket::list_there(home, place)?,
                None => cluster::list(&dir)?,
            };
            ui.result(&listed, || list_text(&listed)).map(|()| 0)
        }
        ClusterCommand::View {
            file,
            node,
            kind,
            detail,
            mapping,
        } => {
            let file = Readable::of(home, file)?;
            let (manifest, documents) = view::read_nodes(file.path(), node.as_ref())?;
            match mapping {
                true => view::mapping_view(ui, &documents)?,
                false => view::view(ui, &manifest, &documents, *kind, *detail)?,
            }
            Ok(0)
        }
        ClusterCommand::SecretsKey { file } => {
            let public = cluster::new_identity(file)?;
            let report = json!({"file": file, "recipient": public});
            ui.result(&report, || {
                format!(
                    "{}: keep it away from the nodes; it opens what is sealed for\n{public}",
                    file.display()
                )
            })
            .map(|()| 0)
        }
        ClusterCommand::Validate(args) => {
            let file = Readable::of(home, &args.file)?;
            let report = cluster::validate(home, ui, file.path(), args)?;
            ui.result(&report, || validate_text(&report))?;
            Ok(match report.is_same() {
                true => 0,
                false => EXIT_WARNINGS,
            })
        }
        ClusterCommand::Restore(args) if args.only_database => {
            let file = Readable::of(home, &args.file)?;
            let force = args.force || args.replace_database;
            let report = cluster::restore_database(home, file.path(), force)?;
            ui.result(&report, || restore_text(&report))?;
            Ok(match report.warnings.is_empty() {
                true => 0,
                false => EXIT_WARNINGS,
            })
        }
        ClusterCommand::Restore(args) => {
            let file = Readable::of(home, &args.file)?;
            let args = ClusterRestoreArgs {
                file: file.path().to_owned(),
                ..args.clone()
            };
            let report = cluster::restore(home, ui, &args)?;
            ui.result(&report, || report.text())?;
            Ok(report.exit_code())
        }
    }
}

fn allowed_text(allowed: &permission::Allowed) -> String {
    let names = allowed.nodes.iter().map(|node| node.name.as_str());
    match allowed.nodes.is_empty() {
        true => "no other node may restore this one".to_owned(),
        false => format!(
            "may restore this node: {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    }
}

fn renewal_text(renewal: &Renewal) -> String {
    let ends = at(renewal.ends_at);
    match renewal.renewed {
        true => format!("renewed; it counts until {ends}"),
        false => format!("it is not time yet: it counts until {ends} (--force renews it now)"),
    }
}

fn create(
    home: &Home,
    ui: &Ui,
    (name, node): (&str, Option<&NodeName>),
    new_authority: bool,
) -> Result<()> {
    // --database says where the catalog is to be; where it is now is in the settings.
    if let Some(url) = home.database()?
        && home.kept_database()?.is_none()
        && home.catalog().exists()
    {
        move_to(&home.without_database(), &url, false)
            .context("cannot move the catalog of this host to the database")?;
    }
    if let Some(url) = home.database()? {
        Db::open_database(home, &url)?;
        home.keep_database(Some(&url))?;
    }
    let cluster = cluster::create(home, name, node, new_authority)?;
    ui.result(&cluster, || {
        format!(
            "cluster {} ({})\nnext, here: vmtwin serve, and for every other host: vmtwin cluster token",
            cluster.name, cluster.id
        )
    })
}

fn join(home: &Home, ui: &Ui, args: &ClusterJoinArgs) -> Result<()> {
    let joined = match &args.token {
        Some(text) => {
            let token = JoinToken::parse(&token_text(text)?)?;
            cluster::membership::join(home, &token, args)?
        }
        None => {
            let url = home.database()?;
            let url =
                url.context("which cluster? Give a token, or its database: --database URL")?;
            cluster::join(home, &url, args.node.as_ref(), args.force)?
        }
    };
    ui.result(&joined, || {
        let next = match args.token {
            Some(_) => "\nnext: vmtwin serve",
            None => "",
        };
        format!("this host is a node of the cluster {}{next}", joined.name)
    })
}

/// The token, or the first line of stdin for `-`.
fn token_text(given: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    match given {
        "-" => {
            let stdin = std::io::stdin().lock();
            std::io::BufRead::read_line(&mut std::io::Read::take(stdin, 8192), &mut text)
                .context("cannot read the token from stdin")?;
        }
        given => text.push_str(given),
    }
    Ok(text)
}

fn nodes(home: &Home, ui: &Ui) -> Result<()> {
    let db = Db::open(home)?;
    if db.run(async |catalog| catalog.cluster().await)?.is_none() {
        return Err(vmtwin_catalog::Error::NoCluster.into());
    }
    let nodes = cluster::nodes(home, &db)?;
    ui.result(&nodes, || {
        let head = [
            "NODE",
            "UP",
            "VERSION",
            "GUESTS",
            "ADDRESS",
            "LAST SEEN (UTC)",
            "CONFIGURATION (UTC)",
        ];
        table(&head, &nodes.iter().map(node_row).collect::<Vec<_>>())
    })
}

fn node_row(line: &NodeLine) -> Vec<String> {
    let node = &line.node;
    let up = match line.up {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    };
    vec![
        node.name.clone(),
        up.to_owned(),
        node.version.clone(),
        line.guests
            .map_or("-".to_owned(), |guests| guests.to_string()),
        node.address.clone().unwrap_or_else(|| "-".to_owned()),
        at(node.seen_at),
        node.configuration_at.map_or("never".to_owned(), at),
    ]
}

fn collect(home: &Home, ui: &Ui, without_libvirt: bool) -> Result<i32> {
    let db = Db::open(home)?;
    let Collection {
        document,
        mut warnings,
        unseen,
    } = cluster::collect(home, &db, without_libvirt)?;
    let (is_kept, done) = match unseen {
        None => (true, "kept as its last known configuration"),
        Some(why) => {
            warnings = vec![why];
            (false, "its last known configuration was left as it was")
        }
    };
    let report = json!({
        "node": document.name, "kept": is_kept, "taken_at": at(document.taken_at), "warnings": warnings,
    });
    ui.result(&report, || {
        let mut lines = vec![format!("{}: {done}", document.name)];
        lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.join("\n")
    })?;
    Ok(match warnings.is_empty() {
        true => 0,
        false => EXIT_WARNINGS,
    })
}

/// A time as lists show it.
fn at(time: OffsetDateTime) -> String {
    let (date, clock) = (time.date(), time.time());
    let (hour, minute, second) = clock.as_hms();
    format!("{date} {hour:02}:{minute:02}:{second:02}")
}

fn backup_text(report: &BackupReport) -> String {
    let collected = report.nodes.iter();
    let collected = collected.filter(|node| node.state == NodeState::Collected);
    let mut lines = vec![format!(
        "{}: {} of {} nodes, {} rows of the database, {} bytes",
        report.file.display(),
        collected.count(),
        report.nodes.len(),
        report.database.as_ref().map_or(0, |database| database.rows),
        report.bytes
    )];
    if let Some(sealed) = &report.sealed {
        lines.push(format!("  {}", view::sealed_text(sealed, &report.nodes)));
    }
    let removed = report.removed.iter();
    lines.extend(removed.map(|file| format!("removed: {}", file.display())));
    let warnings = report.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning: {warning}")));
    lines.join("\n")
}

fn list_text(listed: &[Listed]) -> String {
    let mut lines = vec![format!(
        "{:20} {:16} {:>9} {:>10} FILE",
        "TIME (UTC)", "CLUSTER", "NODES", "BYTES"
    )];
    lines.extend(listed.iter().map(|one| {
        format!(
            "{:20} {:16} {:>9} {:>10} {}",
            at(one.time),
            one.cluster.name,
            format!("{}/{}", one.collected, one.nodes),
            one.bytes,
            one.file.display()
        )
    }));
    view::plain(&lines.join("\n"))
}

fn validate_text(report: &ValidateReport) -> String {
    let mut lines = vec![format!(
        "whole: {} entries were read and checked",
        report.entries
    )];
    if !report.secrets_opened.is_empty() {
        lines.push(format!(
            "secrets were opened: {}",
            report.secrets_opened.join(", ")
        ));
    }
    lines.extend(report.secrets_closed.clone());
    for (what, list) in [
        ("node is not in the cluster any more", &report.nodes_gone),
        ("node is not in the backup", &report.nodes_new),
    ] {
        lines.extend(list.iter().map(|name| format!("{name}: {what}")));
    }
    for node in &report.nodes {
        match (&node.plan, &node.not_compared) {
            (Some(plan), _) => lines.push(format!("a restore would do this on {plan}")),
            (None, why) => lines.push(format!(
                "{}: NOT compared: {}",
                node.node,
                why.as_deref().unwrap_or("?")
            )),
        }
    }
    lines.extend(report.database.iter().map(ToString::to_string));
    if report.is_same() {
        lines.push("the nodes are as they were".to_owned());
    }
    lines.join("\n")
}

fn restore_text(report: &RestoreReport) -> String {
    let mut lines = vec![format!(
        "{}: restored, {} rows{}",
        report.database,
        report.content.rows(),
        match report.unchanged {
            true => ", nothing had changed",
            false => "",
        }
    )];
    if let Some(copy) = &report.copy {
        lines.push(format!("before: {copy}"));
    }
    lines.extend(
        report
            .warnings
            .iter()
            .map(|text| format!("warning: {text}")),
    );
    lines.join("\n")
}
