//! Calendar events as systemd writes them: `Mon..Fri *-*-* 02:30`, `daily`, `*-*~01 18:00 Europe/Berlin`.
//!
//! Grammar and shorthands are those of systemd.time(7), "Calendar events", except fractions of
//! seconds. An expression is tried against every day from a given instant on, in its time zone or
//! that of the host. A time that a change of clocks leaves out comes as much later as the clocks
//! jump; one that comes twice is taken the first time.
//!
//! Knows no schedules: what is due, and whether it ran, is somebody else's.

mod parse;

use std::fmt;
use std::ops::RangeInclusive;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// The last year that is looked at, as in systemd.
const LAST_YEAR: i16 = 2199;

/// Why a text is no calendar event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no calendar event ({reason}); such as 'daily', 'Mon..Fri 02:30' or '*-*-01 04:00 UTC'"
)]
pub struct CalendarError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A calendar event.
#[derive(Debug, Clone, PartialEq)]
pub struct Calendar {
    text: String,
    weekdays: u8,
    years: Set,
    months: Set,
    days: Set,
    /// Days count from the last one of the month.
    from_the_end: bool,
    hours: Set,
    minutes: Set,
    seconds: Set,
    /// `None`: the host's.
    zone: Option<TimeZone>,
}

/// Numbers of a component, within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    bounds: RangeInclusive<i16>,
    parts: Vec<Part>,
}

/// `first`, `first + step`, … up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    first: i16,
    last: i16,
    step: i16,
}

impl Part {
    fn contains(self, number: i16) -> bool {
        (self.first..=self.last).contains(&number) && (number - self.first) % self.step == 0
    }
}

impl Set {
    fn contains(&self, number: i16) -> bool {
        self.parts.iter().any(|part| part.contains(number))
    }

    fn numbers(&self) -> impl Iterator<Item = i8> + '_ {
        let all = self.bounds.clone().filter(|number| self.contains(*number));
        all.filter_map(|number| i8::try_from(number).ok())
    }
}

impl Calendar {
    /// The first time after `after_s`, both in seconds since the epoch; `None` where there is none
    /// up to the year 2199.
    #[must_use]
    pub fn next_after(&self, after_s: i64) -> Option<i64> {
        let after = Timestamp::from_second(after_s).ok()?;
        let zone = self.zone.clone().unwrap_or_else(TimeZone::system);
        let mut date = after.to_zoned(zone.clone()).date();
        // A time that clocks jumped over may come on the day after its own.
        date = date.checked_sub(1.day()).unwrap_or(date);
        while date.year() <= LAST_YEAR {
            if self.is_on(date)
                && let Some(found) = self.first_on(date, &zone, after)
            {
                return Some(found.as_second());
            }
            date = self.following(date)?;
        }
        None
    }

    /// The day after, or the first of the next year that can have one.
    fn following(&self, date: Date) -> Option<Date> {
        match self.years.contains(date.year()) {
            true => date.tomorrow().ok(),
            false => Date::new(date.year() + 1, 1, 1).ok(),
        }
    }

    fn is_on(&self, date: Date) -> bool {
        let day = i16::from(date.day());
        let day = match self.from_the_end {
            true => i16::from(date.days_in_month()) - day + 1,
            false => day,
        };
        let weekday = 1 << date.weekday().to_monday_zero_offset();
        self.years.contains(date.year())
            && self.months.contains(i16::from(date.month()))
            && self.days.contains(day)
            && self.weekdays & weekday != 0
    }

    fn first_on(&self, date: Date, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        for hour in self.hours.numbers() {
            for minute in self.minutes.numbers() {
                // All of a minute is over: no second of it is tried.
                let last = at(date, hour, minute, 59, zone)?;
                if last <= after {
                    continue;
                }
                for second in self.seconds.numbers() {
                    let found = at(date, hour, minute, second, zone)?;
                    if found > after {
                        return Some(found);
                    }
                }
            }
        }
        None
    }
}

fn at(date: Date, hour: i8, minute: i8, second: i8, zone: &TimeZone) -> Option<Timestamp> {
    let time = Time::new(hour, minute, second, 0).ok()?;
    zone.to_timestamp(DateTime::from_parts(date, time)).ok()
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
