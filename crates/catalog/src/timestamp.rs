//! Times as text: RFC 3339, UTC, always six digits of a second, so that the order of the texts is
//! the order of the times.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// Now, to the microsecond: what is stored reads back as the same value.
pub(crate) fn now() -> OffsetDateTime {
    truncate(OffsetDateTime::now_utc())
}

fn truncate(time: OffsetDateTime) -> OffsetDateTime {
    // Cannot fail: the microsecond of a time is a valid microsecond.
    time.replace_microsecond(time.microsecond()).unwrap_or(time)
}

/// The text of a time.
pub(crate) fn to_text(time: OffsetDateTime) -> String {
    let utc = time.to_offset(UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        utc.year(),
        u8::from(utc.month()),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second(),
        utc.microsecond()
    )
}

/// The time of a text, or nothing if it is none.
pub(crate) fn from_text(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_order_is_time_order(a in 0i64..4_000_000_000_000_000, b in 0i64..4_000_000_000_000_000) {
            let time = |micros: i64| {
                OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap()
            };
            prop_assert_eq!(from_text(&to_text(time(a))), Some(time(a)));
            prop_assert_eq!(to_text(time(a)).cmp(&to_text(time(b))), a.cmp(&b));
        }
    }

    #[test]
    fn now_survives_storage() {
        let now = now();
        assert_eq!(from_text(&to_text(now)), Some(now));
    }
}
