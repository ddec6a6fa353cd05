//! The Debian guest works, and its judges tell a disk that the guest's own system
//! shut down from one that was taken away while it ran.
//!
//! The first of these tests builds the guest.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use serde_json::json;
use vmtwin_testkit::debian::{self, Acks, Judgement, judge, last_ack};
use vmtwin_testkit::{DiskFormat, DiskSpec, Guest};

const SHUTDOWN: Duration = Duration::from_secs(300);
const WORK: Duration = Duration::from_secs(10);

fn boot(words: &[&str]) -> Guest {
    let started = Instant::now();
    let guest = debian::guest().kernel_args(words.to_vec()).start();
    println!("ready in {:.1} s", started.elapsed().as_secs_f64());
    guest
}

/// Lets the guest work, and returns what it acknowledged; both ledgers must go on.
fn let_it_work(guest: &Guest) -> Acks {
    let before = last_ack(guest.log());
    std::thread::sleep(WORK);
    let after = last_ack(guest.log());
    println!("{WORK:?} of work: {before:?} to {after:?}");
    assert!(
        after.postgres > before.postgres && after.sqlite > before.sqlite,
        "{}",
        guest.log().tail()
    );
    after
}

fn press_button(guest: &Guest) {
    guest.test_qmp().execute("system_powerdown", json!({}));
}

fn judge_disk_of(guest: &Guest) -> Judgement {
    let started = Instant::now();
    let judgement = judge(guest.disk_path(0, "qcow2"));
    println!(
        "judged in {:.1} s: {judgement:#?}",
        started.elapsed().as_secs_f64()
    );
    judgement
}

#[test]
#[ignore = "boots a Debian, which takes a minute without KVM"]
fn a_shutdown_under_load_is_in_order_and_keeps_every_commit() {
    let guest = boot(&[]);
    let since = Instant::now();
    let_it_work(&guest);
    let gap_ms = guest.heartbeat().longest_gap_ms(since);
    println!("longest heartbeat gap {gap_ms:.0} ms");
    assert!(guest.heartbeat_gaps_ms(since).len() > 500);

    let pressed = Instant::now();
    guest.power_off(SHUTDOWN);
    println!("off in {:.1} s", pressed.elapsed().as_secs_f64());
    let judgement = judge_disk_of(&guest);
    judgement.assert_orderly();
    judgement.assert_holds(last_ack(guest.log()));
}

#[test]
#[ignore = "boots a Debian twice, which takes two minutes without KVM"]
fn a_killed_guest_needs_recovery_and_goes_on_after_it() {
    let guest = boot(&[]);
    let_it_work(&guest);
    guest.kill();
    let acks = last_ack(guest.log());
    let judgement = judge_disk_of(&guest);
    assert!(judgement.needs_recovery);
    assert_eq!(judgement.pg_state, "in production");
    assert!(!judgement.pg_shutdown_logged && judgement.pg_recovery_at_start);
    assert!(!judgement.sqlite_closed && judgement.sqlite_ok);
    judgement.assert_holds(acks);

    let disk = DiskSpec::over(guest.disk_path(0, "qcow2"), DiskFormat::Qcow2);
    let again = debian::guest().disks([disk]).start();
    assert!(let_it_work(&again).postgres > acks.postgres);
    again.power_off(SHUTDOWN);
    let judgement = judge_disk_of(&again);
    judgement.assert_orderly();
    judgement.assert_holds(last_ack(again.log()));
}

#[test]
#[ignore = "boots a Debian, which takes a minute without KVM"]
fn a_guest_may_ignore_its_button() {
    let guest = boot(&[debian::IGNORE_BUTTON]);
    press_button(&guest);
    std::thread::sleep(WORK);
    let_it_work(&guest);
    assert!(guest.is_running());
}

#[test]
#[ignore = "boots a Debian, which takes a minute without KVM"]
fn a_guest_may_panic_at_its_shutdown() {
    let guest = boot(&[debian::PANIC_AT_SHUTDOWN, "panic=0"]);
    press_button(&guest);
    guest.wait_for("Kernel panic", SHUTDOWN);
    assert!(guest.is_running());
    guest.kill();
    let judgement = judge_disk_of(&guest);
    // The data base had ended; the file system had not.
    assert_eq!(judgement.pg_state, "shut down");
    assert!(judgement.needs_recovery);
}

#[test]
#[ignore = "boots a Debian, which takes a minute without KVM"]
fn a_busy_guest_still_shuts_down() {
    let guest = boot(&[debian::BUSY]);
    let_it_work(&guest);
    let pressed = Instant::now();
    guest.power_off(SHUTDOWN);
    println!("off in {:.1} s", pressed.elapsed().as_secs_f64());
    judge_disk_of(&guest).assert_orderly();
}
