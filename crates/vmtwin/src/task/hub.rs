//! What runs now, for who watches: state, progress and log of each task, and a stream of changes
//! that a slow watcher loses parts of rather than slow anybody down.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::broadcast;
use vmtwin_catalog::{Task, TaskEnd, TaskId};

use super::process::{Progress, Told};

/// Changes that a watcher may be behind.
const BEHIND: usize = 1024;
/// Lines of a log that are kept, and bytes of a line.
const MAX_LINES: usize = 2000;
const MAX_LINE_BYTES: usize = 2000;

/// A task that is not over.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) task: Task,
    pub(crate) progress: Option<Progress>,
    log: VecDeque<String>,
    cancelled: bool,
}

/// A change.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Of state or progress; it is over when its state says so.
    Job(Arc<Live>),
    /// A line that it said.
    Line(TaskId, Arc<str>),
}

/// What runs now.
pub(crate) struct Hub {
    live: Mutex<HashMap<TaskId, Live>>,
    events: broadcast::Sender<Event>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            events: broadcast::channel(BEHIND).0,
        }
    }
}

impl Hub {
    /// From now on all changes.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// A task that is not over.
    pub(crate) fn live(&self, id: &TaskId) -> Option<Live> {
        self.lock().get(id).cloned()
    }

    /// How many are not over.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// What a task said.
    pub(crate) fn log(&self, id: &TaskId) -> Vec<String> {
        let live = self.lock();
        let log = live.get(id).map(|live| &live.log);
        log.map_or_else(Vec::new, |log| log.iter().cloned().collect())
    }

    pub(super) fn begin(&self, task: &Task) {
        let live = Live {
            task: task.clone(),
            progress: None,
            log: VecDeque::new(),
            cancelled: false,
        };
        self.lock().insert(task.id.clone(), live.clone());
        self.send(Event::Job(Arc::new(live)));
    }

    pub(super) fn started(&self, id: &TaskId) {
        self.change(id, |live| {
            live.task.state = vmtwin_catalog::TaskState::Running;
            live.task.started_at = Some(OffsetDateTime::now_utc());
        });
    }

    pub(super) fn tell(&self, id: &TaskId, told: Option<Told>) {
        match told {
            Some(Told::Progress(progress)) => {
                self.change(id, |live| live.progress = Some(progress));
            }
            Some(Told::Line(line)) => self.line(id, line),
            None => {}
        }
    }

    fn line(&self, id: &TaskId, mut line: String) {
        if line.len() > MAX_LINE_BYTES {
            let end = (0..=MAX_LINE_BYTES).rfind(|at| line.is_char_boundary(*at));
            line.truncate(end.unwrap_or(0));
        }
        if let Some(live) = self.lock().get_mut(id) {
            if live.log.len() == MAX_LINES {
                live.log.pop_front();
            }
            live.log.push_back(line.clone());
        }
        self.send(Event::Line(id.clone(), line.into()));
    }

    pub(super) fn end(&self, id: &TaskId, end: &TaskEnd) {
        let Some(mut live) = self.lock().remove(id) else {
            return;
        };
        live.task.state = end.state;
        live.task.exit_code = end.exit_code;
        live.task.error.clone_from(&end.error);
        live.task.ended_at = Some(OffsetDateTime::now_utc());
        self.send(Event::Job(Arc::new(live)));
    }

    /// Asks a task to end; `false` if there is none that runs.
    pub(super) fn cancel(&self, id: &TaskId) -> bool {
        let mut live = self.lock();
        let found = live.get_mut(id);
        found.map(|live| live.cancelled = true).is_some()
    }

    pub(super) fn cancel_all(&self) {
        self.lock()
            .values_mut()
            .for_each(|live| live.cancelled = true);
    }

    pub(super) fn is_cancelled(&self, id: &TaskId) -> bool {
        self.lock().get(id).is_some_and(|live| live.cancelled)
    }

    fn change(&self, id: &TaskId, change: impl FnOnce(&mut Live)) {
        let changed = self.lock().get_mut(id).map(|live| {
            change(live);
            live.clone()
        });
        if let Some(live) = changed {
            self.send(Event::Job(Arc::new(live)));
        }
    }

    fn send(&self, event: Event) {
        // An error says that nobody watches.
        let _ = self.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
