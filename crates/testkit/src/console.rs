//! What a guest prints: a log that can be waited on, and the heartbeat that
//! tells, on the host's clock, how long the guest stood still.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(20);

/// One `tick` or `count` line of the ticker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The number that is in memory and on every disk.
    pub n: u64,
    /// How often a disk did not hold what memory said; more than 0 means that
    /// memory and disks are not of one instant. Mode `count` does not print it.
    pub skew: u64,
    /// The guest's monotonic clock.
    pub guest_ms: u64,
    /// The longest time between two heartbeats by the guest's own clock, which may
    /// stand still together with the guest.
    pub guest_gap_us: u64,
}

/// The answer to the command `report`: made between two numbers, so that in a
/// guest whose memory and disks are of one instant all numbers are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The number in memory.
    pub mem: u64,
    /// The numbers read back from the disks' headers.
    pub disks: Vec<u64>,
    /// Like [`Tick::skew`].
    pub skew: u64,
    /// Stamped pages in memory.
    pub pages: u64,
    /// Those of them that are damaged.
    pub bad: u64,
}

impl Report {
    /// Panics unless memory and disks agree and no page is damaged.
    pub fn assert_whole(&self) {
        let agree = self.disks.iter().all(|n| *n == self.mem);
        assert!(
            agree && self.skew == 0 && self.bad == 0,
            "the guest is not of one instant: {self:?}"
        );
    }
}

/// A file that a guest's serial port is logged to.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// The log may not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Log {
        Log { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it until now.
    pub fn text(&self) -> String {
        std::fs::read(&self.path).map_or_else(
            |_| String::new(),
            |bytes| String::from_utf8_lossy(&bytes).replace('\r', ""),
        )
    }

    /// The last lines, for a failure's text.
    pub fn tail(&self) -> String {
        last_lines(&self.text())
    }

    /// Its length in bytes: a mark for the `_since` functions.
    pub fn mark(&self) -> usize {
        self.text().len()
    }

    /// Waits for a line that holds `part` and returns it; panics after `timeout`.
    pub fn wait_for(&self, part: &str, timeout: Duration) -> String {
        self.wait_for_since(0, part, timeout)
    }

    /// Like [`Log::wait_for`], for what was printed after the mark.
    pub fn wait_for_since(&self, mark: usize, part: &str, timeout: Duration) -> String {
        self.try_wait_for(mark, part, timeout, || Ok(()))
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits; `still_worth_it` may end it early.
    pub(crate) fn try_wait_for(
        &self,
        mark: usize,
        part: &str,
        timeout: Duration,
        mut still_worth_it: impl FnMut() -> Result<()>,
    ) -> Result<String> {
        let end = Instant::now() + timeout;
        loop {
            let going = still_worth_it();
            let text = self.text();
            if let Some(line) = whole_lines(&text, mark).find(|line| line.contains(part)) {
                return Ok(line.to_owned());
            }
            going.with_context(|| format!("waiting for '{part}' in:\n{}", last_lines(&text)))?;
            if Instant::now() >= end {
                bail!(
                    "'{part}' did not come in {timeout:?}; the log ends with:\n{}",
                    last_lines(&text)
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// The latest tick, if any.
    pub fn last_tick(&self) -> Option<Tick> {
        whole_lines(&self.text(), 0).filter_map(parse_tick).last()
    }

    /// All ticks after the mark.
    pub fn ticks_since(&self, mark: usize) -> Vec<Tick> {
        whole_lines(&self.text(), mark)
            .filter_map(parse_tick)
            .collect()
    }

    /// Waits for a tick of a number greater than `n`.
    pub fn wait_for_tick_after(&self, n: u64, timeout: Duration) -> Tick {
        let end = Instant::now() + timeout;
        loop {
            if let Some(tick) = self.last_tick().filter(|tick| tick.n > n) {
                return tick;
            }
            assert!(
                Instant::now() < end,
                "no tick after {n} in {timeout:?}; the log ends with:\n{}",
                last_lines(&self.text())
            );
            std::thread::sleep(POLL);
        }
    }

    /// The numbers that a guest's ledger acknowledged, in mode `debian` that in PostgreSQL.
    pub fn acknowledged(&self) -> Vec<u64> {
        acknowledged(&self.text(), "ack ").collect()
    }
}

/// The numbers in whole lines that begin with the label.
pub(crate) fn acknowledged<'a>(text: &'a str, label: &'a str) -> impl Iterator<Item = u64> + 'a {
    whole_lines(text, 0).filter_map(move |line| field(line.strip_prefix(label)?, "n"))
}

/// Lines after the mark that have their end.
fn whole_lines(text: &str, mark: usize) -> impl Iterator<Item = &str> {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    text.get(mark.min(end)..end).unwrap_or("").lines()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn parse_tick(line: &str) -> Option<Tick> {
    let rest = line
        .strip_prefix("tick ")
        .or_else(|| line.strip_prefix("count "))?;
    Some(Tick {
        n: field(rest, "n")?,
        skew: field(rest, "skew").unwrap_or(0),
        guest_ms: field(rest, "ms").unwrap_or(0),
        guest_gap_us: field(rest, "gap_us").unwrap_or(0),
    })
}

/// Parses what follows the word `report`; a damaged header reads as `u64::MAX`.
pub(crate) fn parse_report(line: &str) -> Option<Report> {
    let rest = line.strip_prefix("report ")?;
    let disks = rest.split(' ').filter(|word| word.starts_with("disk"));
    let numbers = disks.filter_map(|word| word.split_once('='));
    Some(Report {
        mem: field(rest, "mem")?,
        disks: numbers
            .map(|(_, number)| number.parse().unwrap_or(u64::MAX))
            .collect(),
        skew: field(rest, "skew")?,
        pages: field(rest, "pages")?,
        bad: field(rest, "bad")?,
    })
}

/// Connects to a serial port's socket and discards what comes (the log has it),
/// so that the guest is never held up. Returns the end to write commands to.
pub(crate) fn attach(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).context("connecting to a serial port")?;
    let mut reader = stream.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while reader.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    Ok(stream)
}

/// Sends one command line.
pub(crate) fn send(stream: &UnixStream, command: &str) -> Result<()> {
    let mut stream = stream;
    stream
        .write_all(format!("{command}\n").as_bytes())
        .context("writing to a serial port")
}

/// The 100 Hz lines of a guest's second serial port, by the time they arrived.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    arrivals: Arc<Mutex<Vec<Instant>>>,
}

impl Heartbeat {
    pub(crate) fn listen(socket: &Path) -> Result<Heartbeat> {
        let stream = UnixStream::connect(socket).context("connecting to the heartbeat")?;
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&arrivals);
        std::thread::spawn(move || {
            for _line in BufReader::new(stream).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(Instant::now());
            }
        });
        Ok(Heartbeat { arrivals })
    }

    /// Milliseconds between each two beats that arrived after `since`, and from
    /// the last one until now.
    pub fn gaps_ms(&self, since: Instant) -> Vec<f64> {
        let arrivals = self.arrivals.lock().unwrap();
        let mut times: Vec<Instant> = arrivals.iter().copied().filter(|at| *at >= since).collect();
        times.push(Instant::now().max(since));
        times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3)
            .collect()
    }

    /// The longest of them; 0 if there is none.
    pub fn longest_gap_ms(&self, since: Instant) -> f64 {
        self.gaps_ms(since).into_iter().fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let tick = parse_tick("tick n=7 mem=7 skew=1 ms=900 gap_us=12000").unwrap();
        assert_eq!(
            (tick.n, tick.skew, tick.guest_ms, tick.guest_gap_us),
            (7, 1, 900, 12000)
        );
        assert_eq!(parse_tick("count n=3").unwrap().n, 3);
        assert_eq!(parse_tick("init: n=3"), None);
        let report = parse_report("report mem=9 disk1=9 disk2=-1 skew=0 pages=4 bad=0").unwrap();
        assert_eq!((report.mem, report.disks), (9, vec![9, u64::MAX]));
    }

    #[test]
    fn a_line_without_its_end_waits() {
        assert_eq!(whole_lines("a\nb", 0).collect::<Vec<_>>(), ["a"]);
        assert_eq!(whole_lines("a\nb\n", 2).collect::<Vec<_>>(), ["b"]);
        assert_eq!(whole_lines("a", 9).count(), 0);
    }
}
