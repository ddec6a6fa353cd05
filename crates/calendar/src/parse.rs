//! Reads calendar events.

use std::str::FromStr;

use jiff::tz::TimeZone;

use super::{Calendar, CalendarError, Part, Set};

/// Longest expression, bytes.
const MAX_BYTES: usize = 256;
const ALL_DAYS: u8 = 0x7f;
const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];
/// What the words stand for (systemd.time(7)).
const WORDS: [(&str, &str); 9] = [
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
];

impl FromStr for Calendar {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Calendar, CalendarError> {
        read(text).map_err(|reason| CalendarError {
            text: text.chars().take(MAX_BYTES).collect(),
            reason,
        })
    }
}

fn read(text: &str) -> Result<Calendar, String> {
    if text.len() > MAX_BYTES {
        return Err("it is too long".to_owned());
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let zone = take_zone(&mut words)?;
    let spelled = words.first().map(|word| word.to_lowercase());
    let known = WORDS
        .iter()
        .find(|(word, _)| Some(*word) == spelled.as_deref());
    if let (Some((_, stands_for)), 1) = (known, words.len()) {
        words = stands_for.split(' ').collect();
    }
    if words.is_empty() {
        return Err("it says no time".to_owned());
    }
    let mut words = words.into_iter().peekable();
    let named = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    let weekdays = named.map_or(Ok(ALL_DAYS), read_weekdays)?;
    let is_time = |word: &str| word.contains(':');
    let date = words.next_if(|word| !is_time(word)).unwrap_or("*-*-*");
    let time = words.next_if(|word| is_time(word)).unwrap_or("00:00:00");
    if let Some(more) = words.next() {
        return Err(format!("what is '{more}'?"));
    }
    let (date, from_the_end) = read_date(date)?;
    let [years, months, days] = date;
    let [hours, minutes, seconds] = read_time(time)?;
    Ok(Calendar {
        text: text.trim().to_owned(),
        weekdays,
        years,
        months,
        days,
        from_the_end,
        hours,
        minutes,
        seconds,
        zone,
    })
}

/// A time zone is the last word, where that is one: `UTC`, `Europe/Berlin`.
fn take_zone(words: &mut Vec<&str>) -> Result<Option<TimeZone>, String> {
    let Some(last) = words.last().copied() else {
        return Ok(None);
    };
    let named = last.starts_with(|c: char| c.is_ascii_alphabetic());
    let lower = last.to_lowercase();
    let word = WORDS.iter().any(|(word, _)| *word == lower);
    if !named || word || read_weekdays(last).is_ok() {
        return Ok(None);
    }
    let zone = TimeZone::get(last).map_err(|_| format!("'{last}' is no time zone known here"))?;
    words.pop();
    Ok(Some(zone))
}

/// Bits of the days, Monday first.
fn read_weekdays(text: &str) -> Result<u8, String> {
    let mut days = 0;
    for part in text.trim_end_matches(',').split(',') {
        let (first, last) = match part.split_once("..").or_else(|| part.split_once('-')) {
            Some((first, last)) => (weekday(first)?, weekday(last)?),
            None => (weekday(part)?, weekday(part)?),
        };
        if first > last {
            return Err(format!("'{part}' goes backwards"));
        }
        (first..=last).for_each(|day| days |= 1 << day);
    }
    Ok(days)
}

fn weekday(name: &str) -> Result<usize, String> {
    let name = name.to_lowercase();
    let is = |day: &str| name == day || name == day[..3];
    let at = WEEKDAYS.iter().position(|day| is(day));
    at.ok_or_else(|| format!("'{name}' is no day of the week"))
}

/// Years, months and days; whether days count from the end.
fn read_date(text: &str) -> Result<([Set; 3], bool), String> {
    let from_the_end = text.contains('~');
    // The mark stands in the place of the last dash.
    let dashed = text.replacen('~', "-", 1);
    let parts: Vec<&str> = dashed.split('-').collect();
    let (year, month, day) = match parts[..] {
        [year, month, day] => (year, month, day),
        [month, day] => ("*", month, day),
        _ => return Err(format!("'{text}' is no date")),
    };
    let mut years = set(year, 1970, 2199)?;
    for part in &mut years.parts {
        part.first = whole_year(part.first);
        part.last = whole_year(part.last);
    }
    Ok(([years, set(month, 1, 12)?, set(day, 1, 31)?], from_the_end))
}

/// Two digits stand for 1970 to 2069.
fn whole_year(year: i16) -> i16 {
    match year {
        0..70 => year + 2000,
        70..100 => year + 1900,
        year => year,
    }
}

fn read_time(text: &str) -> Result<[Set; 3], String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, second) = match parts[..] {
        [hour, minute, second] => (hour, minute, second),
        [hour, minute] => (hour, minute, "0"),
        _ => return Err(format!("'{text}' is no time")),
    };
    Ok([set(hour, 0, 23)?, set(minute, 0, 59)?, set(second, 0, 59)?])
}

/// A component: `*`, `4`, `1,15`, `8..18`, `0/15`, `8..18/2`.
fn set(text: &str, least: i16, most: i16) -> Result<Set, String> {
    let bounds = least..=most;
    let part = |part: &str| -> Result<Part, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once("..") {
            _ if range == "*" => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            None => {
                let first = number(range)?;
                (first, if step.is_some() { most } else { first })
            }
        };
        let step = step.unwrap_or(1);
        let year = most > 100;
        let fits = |n: i16| bounds.contains(&n) || (year && (0..100).contains(&n));
        match step > 0 && first <= last && fits(first) && fits(last) {
            true => Ok(Part { first, last, step }),
            false => Err(format!("'{part}' is not within {least} and {most}")),
        }
    };
    Ok(Set {
        parts: text.split(',').map(part).collect::<Result<_, _>>()?,
        bounds,
    })
}

fn number(text: &str) -> Result<i16, String> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| format!("'{text}' is no number"))
}
