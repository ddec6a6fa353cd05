//! Signs of life: whether a machine that was started comes up.
//!
//! Its console is read and its screen looked at from outside; nothing in it has to help, but a guest
//! agent is asked where there is one. What it shows is evidence, not proof: `expect` makes it as
//! strong as the user wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{AGENT_SOCKET, Twin, TwinError, agent};

/// How often is looked.
const POLL: Duration = Duration::from_millis(500);
/// How often the guest agent is asked; who asks waits for two seconds.
const AGENT_PERIOD: Duration = Duration::from_secs(5);
/// What a kernel of Linux prints when it is lost.
const PANIC_WORDS: &str = "Kernel panic";
/// Most of a console that is read, bytes.
const MAX_CONSOLE_BYTES: usize = 16 << 20;

/// How to look.
#[derive(Debug, Clone)]
pub struct LifeOptions {
    /// Its console's log.
    pub console_log: PathBuf,
    /// What the console must show; nothing else is a sign then.
    pub expect: Option<String>,
    /// Folder for pictures of the screen.
    pub dir: PathBuf,
    /// How long a sign must last: the console has spoken and the machine still runs; the screen
    /// shows something and does not change any more.
    pub settle: Duration,
    /// Longest wait for a sign.
    pub limit: Duration,
    /// Resets that are no failure: a machine that boots may reset, one that goes on may not.
    pub resets: u32,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// The console showed what was expected.
    Expected,
    /// Its guest agent answered.
    Agent,
    /// The console spoke.
    Console,
    /// The screen shows something, and rests.
    Screen,
}

/// A machine that came up.
#[derive(Debug, Clone, Serialize)]
pub struct Life {
    /// By which sign.
    pub sign: Sign,
    /// After how many seconds.
    pub seconds: f64,
    /// The last picture of its screen, where it has one.
    pub screenshot: Option<PathBuf>,
}

/// Looks until there is a sign.
pub(super) fn watch(
    twin: &mut Twin,
    options: &LifeOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Life, TwinError> {
    let begun = Instant::now();
    let spoken_before = console(&options.console_log).len();
    let mut eyes = Eyes::default();
    let mut spoke_at = None;
    let agent = twin.dir.join(AGENT_SOCKET);
    let mut agent_asked = begun;
    let mut resets = 0;
    while begun.elapsed() < options.limit {
        resets += resets_in(twin)?;
        if resets > options.resets {
            return Err(TwinError::Restarted);
        }
        let text = console(&options.console_log);
        if text.contains(PANIC_WORDS) {
            return Err(TwinError::Panicked);
        }
        eyes.look(twin, &options.dir);
        if text.len() > spoken_before {
            spoke_at.get_or_insert_with(Instant::now);
        }
        let mut agent_answers = || {
            let ask = agent.exists() && agent_asked.elapsed() >= AGENT_PERIOD;
            if ask {
                agent_asked = Instant::now();
            }
            ask && agent::answers(&agent)
        };
        let lasted = |since: Option<Instant>| since.is_some_and(|t| t.elapsed() >= options.settle);
        let sign = match &options.expect {
            Some(words) => text.contains(words.as_str()).then_some(Sign::Expected),
            None if agent_answers() => Some(Sign::Agent),
            None if lasted(spoke_at) => Some(Sign::Console),
            None if lasted(eyes.rests_since) => Some(Sign::Screen),
            None => None,
        };
        if let Some(sign) = sign {
            return Ok(Life {
                sign,
                seconds: begun.elapsed().as_secs_f64(),
                screenshot: picture(twin, &options.dir),
            });
        }
        if cancelled() {
            return Err(TwinError::Cancelled);
        }
        std::thread::sleep(POLL);
    }
    let screenshot = picture(twin, &options.dir);
    Err(TwinError::NoSign {
        seconds: options.limit.as_secs(),
        screenshot,
    })
}

/// Counts resets; everything that ends a machine is an error.
fn resets_in(twin: &mut Twin) -> Result<u32, TwinError> {
    let events = twin.qmp.take_events();
    let mut resets = 0;
    for event in events.map_err(|error| twin.explain(error))? {
        match event.name.as_str() {
            "RESET" => resets += 1,
            "GUEST_PANICKED" | "GUEST_CRASHLOADED" => return Err(TwinError::Panicked),
            "SHUTDOWN" => {
                let reason = event.data["reason"].as_str().unwrap_or("unknown");
                return Err(TwinError::Stopped {
                    reason: reason.to_owned(),
                });
            }
            _ => {}
        }
    }
    Ok(resets)
}

fn console(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(MAX_CONSOLE_BYTES)..];
    String::from_utf8_lossy(tail).into_owned()
}

/// What the screen showed, and since when.
#[derive(Default)]
struct Eyes {
    last: Vec<u8>,
    rests_since: Option<Instant>,
}

impl Eyes {
    fn look(&mut self, twin: &mut Twin, dir: &Path) {
        let path = dir.join("screen.ppm");
        let taken = twin.qmp.execute("screendump", json!({"filename": path}));
        let Some(seen) = taken.ok().and_then(|_| fs::read(&path).ok()) else {
            self.rests_since = None;
            return;
        };
        if is_blank(&seen) {
            self.rests_since = None;
        } else if seen != self.last || self.rests_since.is_none() {
            self.rests_since = Some(Instant::now());
        }
        self.last = seen;
    }
}

/// Whether all of a picture (binary PPM) has one colour.
fn is_blank(ppm: &[u8]) -> bool {
    // Three lines of header: P6, width and height, 255.
    let mut lines = ppm.splitn(4, |byte| *byte == b'\n');
    let pixels = lines.nth(3).unwrap_or_default();
    let first = pixels.get(..3).unwrap_or_default();
    pixels.chunks_exact(3).all(|pixel| pixel == first)
}

/// Saves a picture for people.
fn picture(twin: &mut Twin, dir: &Path) -> Option<PathBuf> {
    let path = dir.join("screen.png");
    let arguments = json!({"filename": path, "format": "png"});
    let taken = twin.qmp.execute("screendump", arguments);
    (taken.is_ok() && path.exists()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_one_colour_is_blank() {
        let picture = |pixels: &[u8]| [b"P6\n2 1\n255\n".as_slice(), pixels].concat();
        assert!(is_blank(&picture(&[7, 8, 9, 7, 8, 9])));
        assert!(!is_blank(&picture(&[7, 8, 9, 7, 8, 10])));
        assert!(!is_blank(&picture(b"\n\n\n\n\n1")));
        assert!(is_blank(b"rubbish"));
    }
}
