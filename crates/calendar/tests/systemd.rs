//! Judged by `systemd-analyze calendar`, where it is there, and by hand.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Command;

use vmtwin_calendar::Calendar;

/// 2026-11-23 12:00:00 UTC, a Monday.
const NOW: i64 = 1_795_435_200;
const ROUNDS: usize = 6;

fn calendar(text: &str) -> Calendar {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn next(text: &str, after: i64) -> Option<i64> {
    calendar(text).next_after(after)
}

#[test]
fn times_are_those_that_systemd_names() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("not run: no systemd-analyze");
        return;
    }
    for text in [
        "daily",
        "weekly",
        "monthly",
        "quarterly",
        "semiannually",
        "yearly",
        "hourly",
        "Mon..Fri 02:30",
        "Sat,Sun 04:00:30",
        "Mon,Wed..Fri *-*-* 10:00",
        "*-*-* 0/6:15",
        "*-*-* 8..18/2:0/20",
        "*-*-01,15 03:00",
        "*-02~01",
        "*-*~03 12:00",
        "Fri *-*-13 13:13:13",
        "*-02-29 00:00",
        "2027..2028-06-01",
        "12-24 18:00",
        "*:0/5",
        "daily Europe/Berlin",
        "Sun *-10-25..31 02:30 Europe/Berlin",
        "*-*-* 02:30 America/New_York",
        "tue",
        "27-01-05 01:00",
    ] {
        let output = Command::new("systemd-analyze")
            .args(["calendar", "--base-time=@1795435200"])
            .arg(format!("--iterations={ROUNDS}"))
            .arg(text)
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        assert!(output.status.success(), "{text}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let theirs: Vec<i64> = said.lines().filter_map(seconds_of).collect();
        let mut ours = Vec::new();
        let mut at = NOW;
        while ours.len() < theirs.len() {
            at = next(text, at).unwrap();
            ours.push(at);
        }
        assert!(!theirs.is_empty(), "{said}");
        assert_eq!(ours, theirs, "{text}: {said}");
    }
}

/// Of a line such as `Next elapse: Tue 2026-11-24 02:30:00 UTC`; where the expression has a zone of
/// its own, systemd tells UTC on a line after it.
fn seconds_of(line: &str) -> Option<i64> {
    let (head, time) = line.split_once(": ")?;
    let named = head.contains("elapse") || head.contains("Iter") || head.contains("(in UTC)");
    let time = time.trim().strip_suffix(" UTC")?;
    let (_, time) = time.split_once(' ')?;
    let output = Command::new("date")
        .args(["-u", "+%s", "-d", time])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().parse().ok().filter(|_| named)
}

#[test]
fn clocks_that_change_leave_nothing_out_and_do_nothing_twice() {
    // 2027-03-28 02:30 is not there in Berlin, 2026-10-25 02:30 is there twice.
    let spring = next("*-03-28 02:30 Europe/Berlin", NOW);
    assert_eq!(spring, Some(1_806_197_400)); // 03:30 CEST
    let autumn = calendar("2026-10-25 02:30 Europe/Berlin");
    let first = autumn.next_after(1_790_000_000);
    assert_eq!(first, Some(1_792_888_200)); // CEST
    assert_eq!(autumn.next_after(1_792_888_200), None);
}

#[test]
fn what_never_comes_ends() {
    assert_eq!(next("2020-01-01", NOW), None);
    assert_eq!(next("*-02-30", NOW), None);
}

#[test]
fn rubbish_is_refused() {
    for text in [
        "",
        "  ",
        "often",
        "25:00",
        "*-13-01",
        "Mon..",
        "Fri..Mon",
        "1",
        "*-*-* 1:2:3:4",
        "*/0:00",
        "daily daily",
        "*-*-* 00:00 Nowhere/Land",
        "12:60",
        "-1:00",
        "*-*-*-*",
        "9999999:00",
        &"*-".repeat(500),
    ] {
        assert!(text.parse::<Calendar>().is_err(), "{text}");
    }
}
