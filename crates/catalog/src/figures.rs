//! Figures of the whole catalog, for whoever watches it: a fixed number of statements, which read
//! indexes and, of each guest, the latest row. A history of any length costs no more than that.

use std::collections::HashMap;

use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::ScheduleId;
use crate::job::JobKind;
use crate::open::Catalog;
use crate::outbox::MessageOutcome;
use crate::row::Fields;
use crate::schedule::{self, RunOutcome, Schedule};
use crate::snapshot::{self, Consistency, Snapshot};
use crate::sql::{Row, Session, query};
use crate::transition::JobState;

/// Most guests, schedules or nodes that are looked at.
const MAX_ROWS: usize = 10_000;

// `CROSS JOIN` makes SQLite go from the short table to the long one, and means nothing else.

/// The latest snapshot of each guest, in whichever repositories it is.
const LATEST: &str = "SELECT s.* FROM vm v CROSS JOIN snapshot s WHERE v.role = 'guest' \
     AND s.vm_name = v.name \
     AND s.time = (SELECT MAX(n.time) FROM snapshot n WHERE n.vm_name = v.name)";
const SNAPSHOTS_BY_VM: &str =
    "SELECT vm_name AS name, COUNT(*) AS number FROM snapshot GROUP BY vm_name";
const BY_REPOSITORY: &str = "SELECT repository_id AS name, COUNT(*) AS number, \
     CAST(SUM(bytes_stored) AS BIGINT) AS bytes FROM snapshot GROUP BY repository_id";
/// How the latest backup of each guest that has ended did.
const LAST_ENDED: &str = "SELECT v.name AS name, j.state AS state FROM vm v CROSS JOIN job j \
     WHERE v.role = 'guest' AND j.id = (SELECT n.id FROM job n WHERE n.vm_id = v.id \
     AND n.kind = $1 AND n.state <> $2 ORDER BY n.started_at DESC LIMIT 1)";
const RUNNING: &str = "SELECT vm_name AS name FROM job WHERE state = $1 AND kind = $2 \
     AND vm_name IS NOT NULL";
const JOBS: &str = "SELECT kind, state, COUNT(*) AS number FROM job GROUP BY kind, state";
const OUTCOMES: &str = "SELECT schedule_id, outcome, COUNT(*) AS number FROM schedule_run \
     GROUP BY schedule_id, outcome";
/// What the latest due time of each schedule brought, part by part.
const LAST_DUE: &str = "SELECT r.schedule_id AS schedule_id, r.due_at AS due_at, \
     r.outcome AS outcome FROM schedule c CROSS JOIN schedule_run r WHERE r.schedule_id = c.id \
     AND r.due_at = (SELECT MAX(n.due_at) FROM schedule_run n WHERE n.schedule_id = c.id)";
const WAITING: &str = "SELECT COUNT(*) AS number FROM notify_message WHERE ended_at IS NULL";
const GIVEN_UP: &str = "SELECT COUNT(*) AS number FROM notify_message WHERE outcome = $1";
const NODES: &str = "SELECT name, seen_at FROM node ORDER BY name";

/// Figures of the catalog at one instant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// The guests, by name.
    pub guests: Vec<GuestFigures>,
    /// Jobs that were begun: kind, state, how many.
    pub jobs: Vec<(JobKind, JobState, u64)>,
    /// The schedules, by name.
    pub schedules: Vec<ScheduleFigures>,
    /// The repositories: id, snapshots, bytes that they grew by when those were made.
    pub repositories: Vec<(String, u64, u64)>,
    /// The nodes of the cluster, and when each was seen.
    pub nodes: Vec<(String, OffsetDateTime)>,
    /// Messages that wait to be delivered.
    pub messages_waiting: u64,
    /// Messages that were given up, as long as they are remembered.
    pub messages_given_up: u64,
}

/// Figures of a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestFigures {
    /// Its name.
    pub name: String,
    /// Its latest snapshot; of several of one point the one with the best promise.
    pub last: Option<Snapshot>,
    /// How many it has.
    pub snapshots: u64,
    /// Whether a backup of it runs.
    pub running: bool,
    /// Whether the latest backup that ended failed.
    pub failing: bool,
}

/// Figures of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleFigures {
    /// It.
    pub schedule: Schedule,
    /// How its runs ended, as long as they are remembered; none: they run.
    pub runs: Vec<(Option<RunOutcome>, u64)>,
    /// Its latest due time, and how the parts of it ended.
    pub last: Option<(OffsetDateTime, Vec<Option<RunOutcome>>)>,
}

impl Catalog {
    /// The figures of now.
    pub async fn figures(&self) -> Result<Figures> {
        let mut read = self.read().await?;
        let number = |rows: &[Row]| match rows.first() {
            Some(row) => Fields::new("notify_message", row).count("number"),
            None => Ok(0),
        };
        let given_up = query(GIVEN_UP).bind(MessageOutcome::GivenUp.as_str());
        Ok(Figures {
            guests: guests(&mut read).await?,
            jobs: jobs(&mut read).await?,
            schedules: schedules(&mut read).await?,
            repositories: repositories(&mut read).await?,
            nodes: nodes(&mut read).await?,
            messages_waiting: number(&fetch(query(WAITING), &mut read).await?)?,
            messages_given_up: number(&fetch(given_up, &mut read).await?)?,
        })
    }
}

async fn fetch(query: crate::sql::Query, read: &mut Session) -> Result<Vec<Row>> {
    query.fetch_all(read).await.map_err(database("count"))
}

async fn guests(read: &mut Session) -> Result<Vec<GuestFigures>> {
    let names = query("SELECT name FROM vm WHERE role = 'guest' ORDER BY name");
    let mut guests = HashMap::new();
    let mut order = Vec::new();
    for row in fetch(names, read).await?.iter().take(MAX_ROWS) {
        let name = Fields::new("vm", row).text("name")?;
        let guest = GuestFigures {
            name: name.clone(),
            last: None,
            snapshots: 0,
            running: false,
            failing: false,
        };
        order.push(name.clone());
        guests.insert(name, guest);
    }
    for row in fetch(query(LATEST), read).await? {
        let snapshot = snapshot::from_row(&row)?;
        if let Some(guest) = guests.get_mut(&snapshot.vm_name) {
            let best = guest.last.as_ref().map(|last| rank(last.consistency));
            if best.is_none_or(|best| rank(snapshot.consistency) > best) {
                guest.last = Some(snapshot);
            }
        }
    }
    for row in fetch(query(SNAPSHOTS_BY_VM), read).await? {
        let fields = Fields::new("snapshot", &row);
        if let Some(guest) = guests.get_mut(&fields.text("name")?) {
            guest.snapshots = fields.count("number")?;
        }
    }
    let (kind, running) = (JobKind::Backup.as_str(), JobState::Running.as_str());
    for row in fetch(query(LAST_ENDED).bind(kind).bind(running), read).await? {
        let fields = Fields::new("job", &row);
        if let Some(guest) = guests.get_mut(&fields.text("name")?) {
            guest.failing = fields.parse::<JobState>("state")? != JobState::Done;
        }
    }
    for row in fetch(query(RUNNING).bind(running).bind(kind), read).await? {
        if let Some(guest) = guests.get_mut(&Fields::new("job", &row).text("name")?) {
            guest.running = true;
        }
    }
    Ok(order
        .iter()
        .filter_map(|name| guests.remove(name))
        .collect())
}

/// The stronger the promise, the higher.
fn rank(consistency: Consistency) -> u8 {
    match consistency {
        Consistency::Crash => 0,
        Consistency::Filesystem => 1,
        Consistency::State => 2,
        Consistency::Application => 3,
    }
}

async fn jobs(read: &mut Session) -> Result<Vec<(JobKind, JobState, u64)>> {
    let rows = fetch(query(JOBS), read).await?;
    let one = |row| {
        let fields = Fields::new("job", row);
        let (kind, state) = (fields.parse("kind")?, fields.parse("state")?);
        Ok((kind, state, fields.count("number")?))
    };
    rows.iter().map(one).collect()
}

async fn schedules(read: &mut Session) -> Result<Vec<ScheduleFigures>> {
    let mut all = Vec::new();
    let listed = fetch(query("SELECT * FROM schedule ORDER BY name"), read).await?;
    for row in listed.iter().take(MAX_ROWS) {
        all.push(ScheduleFigures {
            schedule: schedule::schedule(row)?,
            runs: Vec::new(),
            last: None,
        });
    }
    for row in fetch(query(OUTCOMES), read).await? {
        let fields = Fields::new("schedule_run", &row);
        if let Some(one) = of_id(&mut all, fields.parse("schedule_id")?) {
            let outcome = fields.optional_parse("outcome")?;
            one.runs.push((outcome, fields.count("number")?));
        }
    }
    for row in fetch(query(LAST_DUE), read).await? {
        let fields = Fields::new("schedule_run", &row);
        if let Some(one) = of_id(&mut all, fields.parse("schedule_id")?) {
            let at = fields.time("due_at")?;
            let last = one.last.get_or_insert((at, Vec::new()));
            last.1.push(fields.optional_parse("outcome")?);
        }
    }
    Ok(all)
}

fn of_id(all: &mut [ScheduleFigures], id: ScheduleId) -> Option<&mut ScheduleFigures> {
    all.iter_mut().find(|one| one.schedule.id == id)
}

async fn repositories(read: &mut Session) -> Result<Vec<(String, u64, u64)>> {
    let rows = fetch(query(BY_REPOSITORY), read).await?;
    let one = |row| {
        let fields = Fields::new("snapshot", row);
        let (number, bytes) = (fields.count("number")?, fields.count("bytes")?);
        Ok((fields.text("name")?, number, bytes))
    };
    rows.iter().take(MAX_ROWS).map(one).collect()
}

async fn nodes(read: &mut Session) -> Result<Vec<(String, OffsetDateTime)>> {
    let rows = fetch(query(NODES), read).await?;
    let one = |row| {
        let fields = Fields::new("node", row);
        Ok::<_, Error>((fields.text("name")?, fields.time("seen_at")?))
    };
    rows.iter().take(MAX_ROWS).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESTS: u32 = 200;
    const HISTORY: u32 = 100_000;

    /// Tables whose rows grow with the history, and their short names in the statements.
    const LONG: [&str; 7] = ["snapshot", "s", "job", "j", "schedule_run", "r", "n"];

    /// 200 guests with 100,000 snapshots, as many jobs and as many runs of two schedules.
    async fn long_history(catalog: &Catalog) {
        let count = |last: u32| {
            format!(
                "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {})",
                last - 1
            )
        };
        let time = "strftime('%Y-%m-%dT%H:%M:%S.000000Z', 1700000000 + i * 60, 'unixepoch')";
        let uuid = |from: &str| format!("printf('00000000-0000-4000-8000-%012d', {from})");
        let vm = uuid(&format!("i % {GUESTS}"));
        let statements = [
            format!(
                "INSERT INTO vm (id, name, connection_kind, connection_address, role, state, \
                 resume_flag, added_at) {} SELECT {}, 'vm' || i, 'qmp', '/x', 'guest', 'running', \
                 FALSE, {time} FROM n",
                count(GUESTS),
                uuid("i")
            ),
            format!(
                "INSERT INTO snapshot (repository_id, id, vm_id, vm_name, time, consistency, \
                 consistency_asked, bytes_read, bytes_new, bytes_stored, state, report) {} \
                 SELECT 'main', 'id' || i, {vm}, 'vm' || (i % {GUESTS}), {time}, 'crash', 'crash', \
                 i, 2, 3, 'complete', '{{\"pause_ms\": 4.5}}' FROM n",
                count(HISTORY)
            ),
            format!(
                "INSERT INTO job (id, kind, vm_id, vm_name, state, owner_pid, owner_start, \
                 owner_boot, host, started_at, ended_at) {} SELECT {}, 'backup', {vm}, \
                 'vm' || (i % {GUESTS}), CASE WHEN i = {} THEN 'failed' ELSE 'done' END, 1, 1, 'b', \
                 'h', {time}, {time} FROM n",
                count(HISTORY),
                uuid("i"),
                HISTORY - 1
            ),
            format!(
                "INSERT INTO schedule_run (schedule_id, due_at, subject, owner, started_at, \
                 ended_at, outcome) {} SELECT (SELECT id FROM schedule WHERE name = 's' || (i % 2)), \
                 {time}, 'x', '{{}}', {time}, {time}, CASE WHEN i % 10 = 1 THEN 'missed' ELSE 'done' \
                 END FROM n",
                count(HISTORY)
            ),
        ];
        for name in ["s0", "s1"] {
            let spec = serde_json::json!({});
            catalog.add_schedule(name, &spec).await.unwrap();
        }
        let mut write = catalog.write().await.unwrap();
        for sql in statements {
            let filled = crate::sql::query_built(sql).execute(&mut write).await;
            filled.unwrap();
        }
        catalog.commit(write).await.unwrap();
    }

    #[tokio::test]
    async fn a_long_history_is_never_read_row_by_row() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.db"))
            .await
            .unwrap();
        long_history(&catalog).await;
        let figures = catalog.figures().await.unwrap();
        assert_eq!(figures.guests.len(), GUESTS as usize);
        let last = figures.guests.iter().find(|g| g.name == "vm199").unwrap();
        assert_eq!((last.snapshots, last.failing), (500, true));
        assert_eq!(last.last.as_ref().unwrap().bytes_read, 99_999);
        assert_eq!(figures.guests.iter().filter(|g| g.failing).count(), 1);
        let stored = u64::from(HISTORY) * 3;
        assert_eq!(figures.repositories, [("main".to_owned(), 100_000, stored)]);
        let s1 = &figures.schedules[1];
        assert!(
            s1.runs.contains(&(Some(RunOutcome::Missed), 10_000)),
            "{s1:?}"
        );
        assert_eq!(s1.last.as_ref().unwrap().1, [Some(RunOutcome::Done)]);

        // How the data base goes about it: no table of the history is gone through but by an index
        // that holds all that is asked for, or by a key of few rows.
        let mut read = catalog.read().await.unwrap();
        let statements = [
            LATEST,
            SNAPSHOTS_BY_VM,
            BY_REPOSITORY,
            LAST_ENDED,
            RUNNING,
            JOBS,
            OUTCOMES,
            LAST_DUE,
        ];
        for sql in statements {
            let plan = crate::sql::query_built(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan = plan.bind("backup").bind("running");
            for row in plan.fetch_all(&mut read).await.unwrap() {
                let step: String = row.get("detail").unwrap();
                let mut words = step.split(' ');
                let scanned = (words.next() == Some("SCAN")).then(|| words.next());
                let of_history = scanned.flatten().is_some_and(|name| LONG.contains(&name));
                assert!(
                    !of_history || step.contains("COVERING INDEX"),
                    "{step}: {sql}"
                );
            }
        }
    }
}
