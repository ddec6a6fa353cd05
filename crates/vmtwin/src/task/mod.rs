//! Tasks: commands of this program, each in a process of its own, that the timer and the API start.
//!
//! ```text
//!   API ──► queue ──► thread ─┐
//!                             ├─► `vmtwin --worker …`: stdout = result, stderr = log and progress
//!   timer ────────────────────┘         │ stdin stays open as long as this process lives
//!                                       ▼
//!                    row in the catalog, and the hub for who watches
//! ```
//! A process takes its memory with it, and takes nothing else down when it dies. Cancelling is the
//! SIGINT that Ctrl-C is, so that what was begun is undone; when this process is killed, the end of
//! its stdin tells the command the same.

mod hub;
mod process;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Result, bail};
use serde_json::Value;
use time::OffsetDateTime;
use vmtwin_catalog::{NewTask, RunOutcome, Task, TaskEnd, TaskId, TaskState};

use crate::backup::Cx;
use crate::db::Db;
use crate::home::Home;
use crate::notify::{self, ByHand};
use crate::ui::Ui;

pub(crate) use hub::{Event, Hub, Live};
pub(crate) use process::{MARK, Printed, Progress, own_arguments, watch_parent};

/// What the asker of a schedule's commands is called, before the schedule's name.
pub(crate) const BY_SCHEDULE: &str = "schedule ";
/// Tasks that wait at most.
const MAX_QUEUED: usize = 256;
/// How long tasks are remembered.
const MEMORY: time::Duration = time::Duration::days(90);

/// How a command ended, as its process told it.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) state: TaskState,
    pub(crate) exit_code: Option<i32>,
    /// The document that it printed.
    pub(crate) result: Value,
    /// The same for people.
    pub(crate) text: Option<String>,
    /// The last it said.
    pub(crate) said: String,
}

/// Runs tasks.
pub(crate) struct Runner {
    home: Home,
    /// Where commands run: relative paths are taken from there.
    dir: PathBuf,
    db: Db,
    hub: Hub,
    queue: Mutex<Queue>,
    changed: Condvar,
    at_once: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Task>,
    running: usize,
    ending: bool,
}

impl Runner {
    /// `at_once` of the tasks that are submitted run at one time.
    pub(crate) fn new(home: &Home, at_once: usize) -> Result<Runner> {
        Ok(Runner {
            home: home.clone(),
            dir: PathBuf::from("."),
            db: Db::open(home)?,
            hub: Hub::default(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            at_once,
        })
    }

    /// Commands run in this folder.
    pub(crate) fn in_folder(self, dir: PathBuf) -> Runner {
        Runner { dir, ..self }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Marks what an earlier process of this host left, and forgets what is old.
    pub(crate) fn clean_up(&self) -> Result<()> {
        for task in self.db.run(async |c| c.dead_tasks().await)? {
            let end = TaskEnd {
                state: TaskState::Interrupted,
                exit_code: None,
                error: Some("vmtwin serve was killed; what it had begun was undone".to_owned()),
                result: None,
                text: None,
                log: String::new(),
            };
            self.db.run(async |c| c.end_task(&task.id, &end).await)?;
        }
        let before = OffsetDateTime::now_utc() - MEMORY;
        Ok(self.db.run(async |c| c.forget_tasks(before).await)?)
    }

    /// Has a command run when its turn comes. The same key of the same asker is the same task;
    /// `true` for a new one.
    pub(crate) fn submit(self: &Arc<Self>, new: &NewTask) -> Result<(Task, bool)> {
        if self.queue().waiting.len() >= MAX_QUEUED {
            bail!("{MAX_QUEUED} jobs wait already; cancel some, or try again later");
        }
        let (task, is_new) = self.db.run(async |c| c.add_task(new).await)?;
        if is_new {
            self.hub.begin(&task);
            self.queue().waiting.push_back(task.clone());
            self.start_waiting();
        }
        Ok((task, is_new))
    }

    /// Runs a command now, on this thread.
    pub(crate) fn run(&self, new: &NewTask, cancelled: &dyn Fn() -> bool) -> Result<Ended> {
        let (task, _) = self.db.run(async |c| c.add_task(new).await)?;
        self.hub.begin(&task);
        self.perform(&task, cancelled)
    }

    /// Runs a command that only looks, on this thread; nothing is kept of it.
    pub(crate) fn look(&self, arguments: &[String], cancelled: &dyn Fn() -> bool) -> Result<Ended> {
        process::run(&self.home, &self.dir, arguments, &mut |_| cancelled())
    }

    /// Starts a command whose output is handed on; it ends when its stdin does.
    pub(crate) fn spawn(&self, arguments: &[String]) -> Result<Child> {
        process::spawn(&self.home, &self.dir, arguments)
    }

    /// Ends a task; `false` if it is over already.
    pub(crate) fn cancel(&self, id: &TaskId) -> Result<bool> {
        let waiting = {
            let mut queue = self.queue();
            let at = queue.waiting.iter().position(|task| task.id == *id);
            at.and_then(|at| queue.waiting.remove(at))
        };
        match waiting {
            Some(task) => {
                self.finish(&task, &cancelled_before_it_began())?;
                Ok(true)
            }
            None => Ok(self.hub.cancel(id)),
        }
    }

    /// Ends all that runs and waits until it has ended; nothing is begun any more.
    pub(crate) fn end(&self) {
        let waiting = {
            let mut queue = self.queue();
            queue.ending = true;
            std::mem::take(&mut queue.waiting)
        };
        for task in waiting {
            if let Err(error) = self.finish(&task, &cancelled_before_it_began()) {
                tracing::warn!("cannot note the end of a job: {error:#}");
            }
        }
        self.hub.cancel_all();
        let mut queue = self.queue();
        while queue.running > 0 {
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_waiting(self: &Arc<Self>) {
        let mut queue = self.queue();
        while queue.running < self.at_once
            && !queue.ending
            && let Some(task) = queue.waiting.pop_front()
        {
            queue.running += 1;
            let runner = Arc::clone(self);
            thread::spawn(move || {
                if let Err(error) = runner.perform(&task, &|| false) {
                    tracing::warn!("job {}: {error:#}", task.id);
                }
                runner.queue().running -= 1;
                runner.changed.notify_all();
                runner.start_waiting();
            });
        }
    }

    /// Runs the process of a task, and notes all that comes of it.
    fn perform(&self, task: &Task, cancelled: &dyn Fn() -> bool) -> Result<Ended> {
        self.db.run(async |c| c.begin_task(&task.id).await)?;
        self.hub.started(&task.id);
        let ended = process::run(&self.home, &self.dir, &task.arguments, &mut |event| {
            self.hub.tell(&task.id, event);
            cancelled() || self.hub.is_cancelled(&task.id)
        });
        let ended = ended.unwrap_or_else(|error| Ended {
            state: TaskState::Failed,
            exit_code: None,
            result: Value::Null,
            text: None,
            said: format!("{error:#}"),
        });
        self.finish(task, &ended)?;
        if task.command == "backup" && !task.asked_by.starts_with(BY_SCHEDULE) {
            self.tell(task, &ended)?;
        }
        Ok(ended)
    }

    /// Has people told how backups went that somebody started by hand; schedules tell by themselves.
    fn tell(&self, task: &Task, ended: &Ended) -> Result<()> {
        if ended.state == TaskState::Cancelled {
            return Ok(());
        }
        let reports = ended.result.as_array().into_iter().flatten();
        let by_hand = reports.filter_map(|report| {
            let text = |key: &str| report[key].as_str().map(str::to_owned);
            let warned = report["warnings"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            Some(ByHand {
                vm: text("vm")?,
                outcome: match (text("error"), warned) {
                    (Some(_), _) => RunOutcome::Failed,
                    (None, true) => RunOutcome::Warnings,
                    (None, false) => RunOutcome::Done,
                },
                note: text("error").or(text("snapshot")),
            })
        });
        let by_hand: Vec<ByHand> = by_hand.collect();
        let ui = Ui::new(false, true);
        let cancel = self.home.cancel();
        let cx = Cx {
            home: &self.home,
            db: &self.db,
            ui: &ui,
            cancel: &cancel,
        };
        notify::after_backup(&cx, &task.asked_by, &by_hand)
    }

    fn finish(&self, task: &Task, ended: &Ended) -> Result<()> {
        let end = TaskEnd {
            state: ended.state,
            exit_code: ended.exit_code.map(i64::from),
            error: (!matches!(ended.state, TaskState::Done | TaskState::Warnings))
                .then(|| ended.said.clone()),
            result: Some(ended.result.clone()).filter(|result| !result.is_null()),
            text: ended.text.clone(),
            log: self.hub.log(&task.id).join("\n"),
        };
        let noted = self.db.run(async |c| c.end_task(&task.id, &end).await);
        self.hub.end(&task.id, &end);
        Ok(noted?)
    }
}

fn cancelled_before_it_began() -> Ended {
    Ended {
        state: TaskState::Cancelled,
        exit_code: None,
        result: Value::Null,
        text: None,
        said: "cancelled before it began".to_owned(),
    }
}
