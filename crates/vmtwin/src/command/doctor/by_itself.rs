//! What is to happen by itself: schedules that somebody follows, people who are told, and a
//! certificate that still counts.

use std::path::Path;

use anyhow::Result;
use time::OffsetDateTime;
use vmtwin_catalog::CertificateState;

use super::{Check, State};
use crate::cluster::{Identity, membership};
use crate::db::Db;
use crate::home::Home;
use crate::timer::{self, Spec};

/// A certificate that ends within this time is told of: its agent should have renewed it.
const SOON: time::Duration = time::Duration::days(300);

/// Looks; says nothing where there is no catalog, which another check tells.
pub(super) fn checks(home: &Home) -> Vec<Check> {
    let Ok(db) = Db::open(home) else {
        return Vec::new();
    };
    let unread = |error: anyhow::Error| {
        let mend = "look at the catalog: vmtwin catalog check";
        vec![Check::not(
            "schedules",
            State::Warning,
            format!("{error:#}"),
            mend,
        )]
    };
    let mut all = schedules(home, &db).unwrap_or_else(unread);
    all.extend(certificate(home, &db).unwrap_or_else(unread));
    all.extend(host_name(home, &db).map_or_else(unread, Vec::from_iter));
    all
}

fn schedules(home: &Home, db: &Db) -> Result<Vec<Check>> {
    const WHAT: &str = "schedules";
    let host = timer::host()?;
    let all = db.run(async |c| c.schedules().await)?;
    let is_node = Identity::of(home)?.is_some();
    let own = |one: &&vmtwin_catalog::Schedule| {
        one.enabled && Spec::of(one).is_ok_and(|spec| spec.is_followed_by(&host, is_node))
    };
    let count = all.iter().filter(own).count();
    let file = match home.database()? {
        Some(_) => None,
        None => Some(std::fs::canonicalize(home.catalog())?),
    };
    let follow = match (count, is_followed(file.as_deref())) {
        (0, _) => Check::ok(WHAT, "none on this host"),
        (_, true) => Check::ok(WHAT, format!("{count}, and vmtwin serve runs")),
        (_, false) => Check::not(
            WHAT,
            State::Warning,
            format!("{count}, but nothing follows them: nothing is backed up by itself"),
            "systemctl enable --now vmtwin, or run: vmtwin serve",
        ),
    };
    let targets = db.run(async |c| c.notify_targets().await)?;
    let mut waiting = 0;
    for target in &targets {
        let messages = db.run(async |c| c.messages(&target.id, 100).await)?;
        let failed =
            |one: &&vmtwin_catalog::OutboxMessage| one.ended_at.is_none() && one.attempts > 0;
        waiting += messages.iter().filter(failed).count();
    }
    let told = match (targets.len(), waiting) {
        (0, _) => Check::ok(
            "notifications",
            "nobody is told of failures (vmtwin notify add)",
        ),
        (_, 0) => Check::ok(
            "notifications",
            format!("{} are told of failures", targets.len()),
        ),
        (_, waiting) => Check::not(
            "notifications",
            State::Warning,
            format!("{waiting} messages could not be delivered yet"),
            "see vmtwin notify list, and try: vmtwin notify test NAME",
        ),
    };
    Ok(vec![follow, told])
}

/// Whether a process of this host follows the schedules of a catalog: of a file, whether it has that
/// file open; of a data base, whether there is one that follows any.
fn is_followed(file: Option<&Path>) -> bool {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut processes = entries.map(|entry| entry.path());
    processes.any(|process| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        follows(&line) && file.is_none_or(|file| has_open(&process, file))
    })
}

/// Also where this user may not look.
fn has_open(process: &Path, file: &Path) -> bool {
    let Ok(open) = std::fs::read_dir(process.join("fd")) else {
        return true;
    };
    let mut paths = open.flatten().map(|fd| std::fs::read_link(fd.path()));
    paths.any(|path| path.is_ok_and(|path| path == file))
}

fn follows(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0);
    let ours = words
        .next()
        .is_some_and(|program| program.rsplit(|byte| *byte == b'/').next() == Some(b"vmtwin"));
    let words: Vec<&[u8]> = words.collect();
    let pair: [&[u8]; 2] = [b"schedule", b"follow"];
    ours && (words.contains(&&b"serve"[..]) || words.windows(2).any(|two| two == pair))
}

/// Nodes tell their jobs and schedules apart by the names of their hosts.
fn host_name(home: &Home, db: &Db) -> Result<Option<Check>> {
    let Some(own) = Identity::of(home)? else {
        return Ok(None);
    };
    let nodes = db.run(async |c| c.nodes().await)?;
    let host = timer::host()?;
    let other = nodes
        .iter()
        .find(|node| node.host == host && node.id != own.id);
    Ok(other.map(|other| {
        Check::not(
            "host name",
            State::Warning,
            format!("the node {} has this host's name too: {host}", other.name),
            "give each host a name of its own: hostnamectl set-hostname NAME, then: vmtwin cluster collect",
        )
    }))
}

/// Of a node of a cluster.
fn certificate(home: &Home, db: &Db) -> Result<Vec<Check>> {
    const WHAT: &str = "certificate";
    let Some((_, credentials)) = membership::credentials(home)? else {
        return Ok(Vec::new());
    };
    let fingerprint = credentials.fingerprint()?;
    let end = db.run(async |c| c.certificate_end(&fingerprint).await)?;
    let mend = "on the node with the authority's key: vmtwin cluster renew; elsewhere, on another node: \
                vmtwin cluster node remove NAME, then vmtwin cluster token; here: vmtwin cluster join TOKEN";
    let left = end.map(|end| (end.date(), end - OffsetDateTime::now_utc()));
    Ok(vec![match left {
        Some((date, left)) if left > SOON => Check::ok(WHAT, format!("counts until {date}")),
        Some((date, left)) if left.is_positive() => {
            let renew = "its agent could not renew it yet; on the node with the authority: vmtwin serve; \
                         here: vmtwin cluster renew";
            Check::not(WHAT, State::Warning, format!("ends on {date}"), renew)
        }
        Some((date, _)) => Check::not(WHAT, State::Warning, format!("has ended on {date}"), mend),
        None => match db.run(async |c| c.certificate(&fingerprint).await)? {
            CertificateState::Unknown => {
                let found = "the cluster's database does not know it: that was made anew, or is of before it";
                let mend = format!(
                    "bring the database back: vmtwin cluster restore FILE --only-database; or {mend}"
                );
                Check::not(WHAT, State::Warning, found, mend)
            }
            _ => Check::not(WHAT, State::Warning, "does not count in the cluster", mend),
        },
    }])
}

#[cfg(test)]
mod tests {
    use super::follows;

    #[test]
    fn a_follower_is_known_by_its_command_line() {
        for line in [
            &b"/usr/bin/vmtwin\0serve\0"[..],
            b"vmtwin\0--quiet\0serve\0--advertise\0h:1\0",
            b"./vmtwin\0schedule\0follow\0",
        ] {
            assert!(follows(line), "{}", String::from_utf8_lossy(line));
        }
        for line in [
            &b""[..],
            b"/usr/bin/vmtwin\0schedule\0list\0",
            b"tail\0vmtwin\0serve\0",
            b"vmtwin-other\0serve\0",
        ] {
            assert!(!follows(line), "{}", String::from_utf8_lossy(line));
        }
    }
}
