//! Tasks: commands that a daemon runs for somebody, each in a process of its own, with what it said
//! and printed. What a command does to guests is in jobs and their journals; a task that was cut off
//! needs no undo of its own.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::TaskId;
use crate::open::Catalog;
use crate::page::{Cursor, Page, page_of};
use crate::process::ProcessIdentity;
use crate::row::Fields;
use crate::sql::{Row, Transaction, query, query_built};
use crate::text_enum::text_enum;
use crate::timestamp;

text_enum!(
    /// Where a task stands.
    TaskState {
        /// It waits for its turn.
        Queued = "queued",
        /// Its process runs.
        Running = "running",
        /// It ended well.
        Done = "done",
        /// It ended well, with warnings.
        Warnings = "warnings",
        /// It failed.
        Failed = "failed",
        /// Somebody ended it.
        Cancelled = "cancelled",
        /// The daemon died, and the process with it.
        Interrupted = "interrupted",
    }
);

impl TaskState {
    /// Whether it is over.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// A task to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// The words of the command, such as `vm add`.
    pub command: String,
    /// All of the command line after the program's name.
    pub arguments: Vec<String>,
    /// Who wants it.
    pub asked_by: String,
    /// A key of theirs: the same key again is the same task.
    pub asked_key: Option<String>,
    /// The guest it is about, if it is one.
    pub vm_name: Option<String>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The words of the command, such as `vm add`.
    pub command: String,
    /// All of the command line after the program's name.
    pub arguments: Vec<String>,
    /// Who wanted it.
    pub asked_by: String,
    /// The guest it is about, if it is one.
    pub vm_name: Option<String>,
    /// Where it stands.
    pub state: TaskState,
    /// The daemon that runs it.
    pub owner: ProcessIdentity,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its process was started.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The exit code of its process.
    pub exit_code: Option<i64>,
    /// The last it said where it failed.
    pub error: Option<String>,
    /// The document that it printed; in a list it is left out.
    pub result: Option<Value>,
    /// The same for people; in a list it is left out.
    pub text: Option<String>,
    /// What it said, lines; in a list it is left out.
    pub log: Option<String>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskEnd {
    /// As what.
    pub state: TaskState,
    /// The exit code of its process.
    pub exit_code: Option<i64>,
    /// The last it said where it failed.
    pub error: Option<String>,
    /// The document that it printed.
    pub result: Option<Value>,
    /// The same for people.
    pub text: Option<String>,
    /// What it said.
    pub log: String,
}

/// What a list leaves out.
const SHORT: &str = "id, command, arguments, asked_by, vm_name, state, owner, created_at, \
                     started_at, ended_at, exit_code, error, NULL AS result, NULL AS text, NULL AS log";

impl Catalog {
    /// Adds a task, or gives the one that the same asker wanted by the same key before; `true` for
    /// a new one. [`Error::Invalid`] where that was another command.
    pub async fn add_task(&self, new: &NewTask) -> Result<(Task, bool)> {
        let id = TaskId::random()?;
        let owner = serde_json::to_string(&ProcessIdentity::of_self()?).unwrap_or_default();
        let arguments = serde_json::to_string(&new.arguments).unwrap_or_default();
        let mut write = self.write().await?;
        if let Some(key) = &new.asked_key {
            let row = query("SELECT * FROM task WHERE asked_by = $1 AND asked_key = $2")
                .bind(&new.asked_by)
                .bind(key)
                .fetch_optional(&mut write)
                .await
                .map_err(database("find a task"))?;
            if let Some(known) = row.as_ref().map(task).transpose()? {
                return match known.arguments == new.arguments {
                    true => Ok((known, false)),
                    false => Err(Error::Invalid {
                        what: "the idempotency key",
                        why: "it was used for another command".to_owned(),
                    }),
                };
            }
        }
        query(
            "INSERT INTO task (id, command, arguments, asked_by, asked_key, vm_name, state, owner, \
             created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(id.as_str())
        .bind(&new.command)
        .bind(arguments)
        .bind(&new.asked_by)
        .bind(&new.asked_key)
        .bind(&new.vm_name)
        .bind(TaskState::Queued.as_str())
        .bind(owner)
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("add a task"))?;
        let task = find(&mut write, &id).await?;
        self.commit(write).await?;
        Ok((task, true))
    }

    /// Notes that the process of a task was started.
    pub async fn begin_task(&self, id: &TaskId) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE task SET state = $2, started_at = $3 WHERE id = $1")
            .bind(id.as_str())
            .bind(TaskState::Running.as_str())
            .bind(timestamp::to_text(timestamp::now()))
            .execute(&mut write)
            .await
            .map_err(database("begin a task"))?;
        self.commit(write).await
    }

    /// Notes how a task ended.
    pub async fn end_task(&self, id: &TaskId, end: &TaskEnd) -> Result<()> {
        let mut write = self.write().await?;
        query(
            "UPDATE task SET state = $2, ended_at = $3, exit_code = $4, error = $5, result = $6, \
             log = $7, text = $8 WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(end.state.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .bind(end.exit_code)
        .bind(&end.error)
        .bind(end.result.as_ref().map(Value::to_string))
        .bind(&end.log)
        .bind(&end.text)
        .execute(&mut write)
        .await
        .map_err(database("end a task"))?;
        self.commit(write).await
    }

    /// A task, with all that is known of it. [`Error::NoTask`] if there is none.
    pub async fn task(&self, id: &TaskId) -> Result<Task> {
        find(&mut self.read().await?, id).await
    }

    /// Tasks, the latest first, in short: of one guest, in one state, or all.
    pub async fn tasks(
        &self,
        vm: Option<&str>,
        state: Option<TaskState>,
        after: Option<&Cursor>,
        limit: u32,
    ) -> Result<Page<Task>> {
        let mut read = self.read().await?;
        let cursor = after.cloned().unwrap_or_else(Cursor::beginning);
        let rows = query_built(format!(
            "SELECT {SHORT} FROM task WHERE (created_at < $1 OR (created_at = $1 AND id < $2)) \
             AND ($3 = '' OR vm_name = $3) AND ($4 = '' OR state = $4) \
             ORDER BY created_at DESC, id DESC LIMIT $5"
        ))
        .bind(&cursor.time)
        .bind(&cursor.id)
        .bind(vm.unwrap_or_default())
        .bind(state.map_or("", TaskState::as_str))
        .bind(i64::from(limit) + 1)
        .fetch_all(&mut read)
        .await
        .map_err(database("list tasks"))?;
        let tasks = rows.iter().map(task).collect::<Result<Vec<_>>>()?;
        Ok(page_of(tasks, limit, |task| {
            Cursor::at(task.created_at, task.id.as_str())
        }))
    }

    /// Tasks that are not over although their daemon, of this host, is gone.
    pub async fn dead_tasks(&self) -> Result<Vec<Task>> {
        let mut read = self.read().await?;
        let rows = query_built(format!("SELECT {SHORT} FROM task WHERE state IN ($1, $2)"))
            .bind(TaskState::Queued.as_str())
            .bind(TaskState::Running.as_str())
            .fetch_all(&mut read)
            .await
            .map_err(database("list tasks that were cut off"))?;
        let mut tasks = rows.iter().map(task).collect::<Result<Vec<_>>>()?;
        tasks.retain(|task| task.owner.is_dead());
        Ok(tasks)
    }

    /// Forgets tasks that were asked for before `before` and are over.
    pub async fn forget_tasks(&self, before: OffsetDateTime) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM task WHERE created_at < $1 AND ended_at IS NOT NULL")
            .bind(timestamp::to_text(before))
            .execute(&mut write)
            .await
            .map_err(database("forget tasks"))?;
        self.commit(write).await
    }
}

async fn find(session: &mut Transaction, id: &TaskId) -> Result<Task> {
    let row = query("SELECT * FROM task WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(session)
        .await
        .map_err(database("find a task"))?;
    let row = row.ok_or_else(|| Error::NoTask { task: id.clone() })?;
    task(&row)
}

fn task(row: &Row) -> Result<Task> {
    let fields = Fields::new("task", row);
    Ok(Task {
        id: fields.parse("id")?,
        command: fields.text("command")?,
        arguments: fields.typed("arguments")?,
        asked_by: fields.text("asked_by")?,
        vm_name: fields.optional_text("vm_name")?,
        state: fields.parse("state")?,
        owner: fields.typed("owner")?,
        created_at: fields.time("created_at")?,
        started_at: fields.optional_time("started_at")?,
        ended_at: fields.optional_time("ended_at")?,
        exit_code: fields.optional_signed("exit_code")?,
        error: fields.optional_text("error")?,
        result: fields.optional_json("result")?,
        text: fields.optional_text("text")?,
        log: fields.optional_text("log")?,
    })
}
