//! Captures a guest several times and prints the pauses: `capture QMP_SOCKET ROUNDS [crash]`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmtwin_hypervisor::capture::{Capture, CaptureOptions, Journal, JournalError};
use vmtwin_hypervisor::guard::{self, GuardCommand};
use vmtwin_hypervisor::inspect::inspect;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::spool::SpoolOptions;
use vmtwin_hypervisor::undo::Undo;

struct Forgetful;

impl Journal for Forgetful {
    fn register(&mut self, _: &str, _: &Undo) -> Result<u64, JournalError> {
        Ok(0)
    }
    fn undone(&mut self, _: u64) -> Result<(), JournalError> {
        Ok(())
    }
    fn step(&mut self, _: &str) -> Result<(), JournalError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    if args[1] == "guard" {
        std::process::exit(guard::run());
    }
    let memory = args.get(3).map(String::as_str) != Some("crash");
    for round in 0..args[2].parse()? {
        let dir = PathBuf::from(format!("/tmp/capture-{}-{round}", std::process::id()));
        std::fs::create_dir(&dir)?;
        let begun = Instant::now();
        let mut qmp = Qmp::connect(args[1].as_ref(), Duration::from_secs(2))?;
        let machine = inspect(&mut qmp)?;
        let options = CaptureOptions {
            memory,
            bitmaps: Vec::new(),
            outside: false,
            tag: format!("{:08x}", std::process::id() + round),
            dir: dir.clone(),
            guard: GuardCommand {
                program: std::env::current_exe()?,
                args: vec!["guard".into()],
            },
            pause_deadline: Duration::from_secs(2),
            preparation_limit: Duration::from_secs(10),
            spool: SpoolOptions::new(&dir),
            collapse_limit: Duration::from_secs(30),
        };
        let mut journal = Forgetful;
        let mut capture = Capture::begin(qmp, &machine, &options, &mut journal, &|| false)?;
        let at_point = begun.elapsed();
        let point = capture.point().clone();
        let spooled = capture.finish_memory(Duration::from_secs(120), &|| false)?;
        capture.release()?;
        println!(
            "{} point after {} ms, {} MiB spooled, all {} ms",
            serde_json::to_string(&point)?,
            at_point.as_millis(),
            spooled.map_or(0, |s| s.len_bytes() >> 20),
            begun.elapsed().as_millis()
        );
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}
