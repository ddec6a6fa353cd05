//! What the user sees: results on stdout, progress and notes on stderr.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use serde::Serialize;
use vmtwin_repository::{Progress, ProgressDelta};

use crate::cancel::Cancel;
use crate::task::{MARK, Printed, Progress as Told};

/// How often progress is told to the process that started this one.
const TELL: Duration = Duration::from_millis(300);

/// How results and progress are shown.
#[derive(Clone)]
pub(crate) struct Ui {
    json: bool,
    bars: bool,
    /// Bars whose progress is told in lines.
    told: Option<Arc<Mutex<Vec<WeakProgressBar>>>>,
}

impl Ui {
    pub(crate) fn new(json: bool, quiet: bool) -> Ui {
        Ui {
            json,
            bars: !quiet && std::io::stderr().is_terminal(),
            told: None,
        }
    }

    /// Of a process that another one started and listens to.
    pub(crate) fn for_worker() -> Ui {
        let told = Arc::new(Mutex::new(Vec::new()));
        let bars = Arc::clone(&told);
        thread::spawn(move || tell_progress(&bars));
        Ui {
            json: true,
            bars: false,
            told: Some(told),
        }
    }

    /// Prints the result: the document where JSON was asked for, else the text.
    pub(crate) fn result<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        use std::io::Write;
        let out = if self.told.is_some() {
            let text = text();
            serde_json::to_string(&Printed { document, text })?
        } else if self.json {
            serde_json::to_string_pretty(document)?
        } else {
            text()
        };
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{}", out.trim_end()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Tells the user something that is not the result.
    pub(crate) fn note(&self, text: &str) {
        use std::io::Write;
        // Nobody may listen any more; what is being done goes on.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A bar over `total` bytes.
    pub(crate) fn bar(&self, label: &str, total_bytes: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total_bytes), self.target());
        let template =
            "{prefix:24!} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec} {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        self.begin(bar, label)
    }

    /// A spinner for work of unknown length.
    pub(crate) fn spinner(&self, label: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        if let Ok(style) = ProgressStyle::with_template("{prefix:24!} {spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        self.begin(bar, label)
    }

    fn begin(&self, bar: ProgressBar, label: &str) -> ProgressBar {
        bar.set_prefix(label.to_owned());
        if let Some(told) = &self.told {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.push(bar.downgrade());
        }
        bar
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.bars {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        }
    }
}

/// Writes the progress of the latest bar, when it has moved, as lines that are not for people.
fn tell_progress(bars: &Mutex<Vec<WeakProgressBar>>) {
    use std::io::Write;
    let mut before = None;
    loop {
        thread::sleep(TELL);
        let latest = {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            bars.retain(|bar| bar.upgrade().is_some_and(|bar| !bar.is_finished()));
            bars.last().and_then(WeakProgressBar::upgrade)
        };
        let Some(bar) = latest else { continue };
        let now = Told {
            label: bar.prefix(),
            done: bar.position(),
            total: bar.length(),
        };
        drop(bar);
        if before.as_ref() != Some(&now)
            && let Ok(line) = serde_json::to_string(&now)
        {
            let _ = writeln!(std::io::stderr(), "{MARK}{line}");
            before = Some(now);
        }
    }
}

/// A bar that follows ingest, and cancels it.
pub(crate) struct BarProgress<'a> {
    pub(crate) bar: ProgressBar,
    pub(crate) cancel: &'a Cancel,
}

impl Progress for BarProgress<'_> {
    fn advance(&self, delta: ProgressDelta) {
        self.bar.inc(delta.bytes_processed);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_set()
    }
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// A table of left-aligned columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(c, w)| format!("{c:<w$}", w = *w))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(
        rows.iter()
            .map(|r| line(r.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}
