//! What differs between two definitions, in lines for people.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::xml::Element;

/// Most lines for one definition.
const MAX_LINES: usize = 60;
/// Longest value that is shown, characters.
const MAX_VALUE: usize = 120;

/// How `now` would change to become `then`; nothing where they say the same. The order of
/// attributes says nothing; that of elements of one name does.
pub(crate) fn difference(now: &Element, then: &Element) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", now, then, &mut lines);
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("… and {more} more"));
    }
    lines
}

/// The same of two things that this crate describes, as JSON has them.
pub(super) fn difference_of_fields(now: &Value, then: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare_fields("", now, then, &mut lines);
    lines
}

fn compare_fields(path: &str, now: &Value, then: &Value, lines: &mut Vec<String>) {
    if let (Value::Object(old), Value::Object(new)) = (now, then) {
        let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let of = |all: &'_ serde_json::Map<String, Value>| {
                all.get(key).cloned().unwrap_or(Value::Null)
            };
            // Attributes of the document begin so.
            let at = format!("{path} {}", key.trim_start_matches('@'));
            compare_fields(at.trim(), &of(old), &of(new), lines);
        }
        return;
    }
    let shown = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    change(path, shown(now).as_deref(), shown(then).as_deref(), lines);
}

fn compare(path: &str, now: &Element, then: &Element, lines: &mut Vec<String>) {
    let (old, new) = (attributes(now), attributes(then));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let at = format!("{path} {key}");
        change(
            at.trim(),
            old.get(*key).copied(),
            new.get(*key).copied(),
            lines,
        );
    }
    let (old, new) = (now.text(), then.text());
    if old != new {
        change(path, Some(&old), Some(&new), lines);
    }
    let (mut old, mut new) = (by_name(now), by_name(then));
    let names: BTreeSet<_> = old
        .keys()
        .chain(new.keys())
        .map(|n| (*n).to_owned())
        .collect();
    for name in names {
        let old = old.remove(name.as_str()).unwrap_or_default();
        let new = new.remove(name.as_str()).unwrap_or_default();
        let several = old.len() > 1 || new.len() > 1;
        for number in 0..old.len().max(new.len()) {
            let at = match several {
                true => format!("{path}/{name} {}", number + 1),
                false => format!("{path}/{name}"),
            };
            let at = at.trim_start_matches('/');
            match (old.get(number), new.get(number)) {
                (Some(now), Some(then)) => compare(at, now, then, lines),
                (None, Some(then)) => lines.push(format!("+ {at}{}", summary(then))),
                (Some(now), None) => lines.push(format!("- {at}{}", summary(now))),
                (None, None) => {}
            }
        }
    }
}

fn attributes(element: &Element) -> BTreeMap<&str, &str> {
    let all = element.attributes.iter();
    all.map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

fn by_name(element: &Element) -> BTreeMap<&str, Vec<&Element>> {
    let mut all: BTreeMap<&str, Vec<&Element>> = BTreeMap::new();
    for child in element.children() {
        all.entry(&child.name).or_default().push(child);
    }
    all
}

fn change(at: &str, old: Option<&str>, new: Option<&str>, lines: &mut Vec<String>) {
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            lines.push(format!("{at}: {} -> {}", short(old), short(new)));
        }
        (Some(old), None) => lines.push(format!("- {at}: {}", short(old))),
        (None, Some(new)) => lines.push(format!("+ {at}: {}", short(new))),
        _ => {}
    }
}

/// What an element is, by the first that its attributes, its text or its children tell.
fn summary(element: &Element) -> String {
    let all = element.attributes.iter();
    let mut words: Vec<String> = all.map(|(k, v)| format!("{k}={}", short(v))).collect();
    for child in element.children() {
        let all = child.attributes.iter();
        words.extend(all.map(|(k, v)| format!("{} {k}={}", child.name, short(v))));
    }
    let text = element.text();
    if !text.is_empty() {
        words.push(short(&text));
    }
    words.truncate(6);
    match words.is_empty() {
        true => String::new(),
        false => format!(": {}", words.join(", ")),
    }
}

/// No control characters: they would act on the terminal.
fn short(value: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let text: String = value.chars().take(MAX_VALUE).map(plain).collect();
    match value.chars().count() > MAX_VALUE {
        true => format!("'{text}…'"),
        false => format!("'{text}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(now: &str, then: &str) -> Vec<String> {
        difference(
            &Element::parse(now).unwrap(),
            &Element::parse(then).unwrap(),
        )
    }

    #[test]
    fn only_what_says_something_differs() {
        let same = lines("<a b='1' c='2'><d/>\n</a>", "<a c='2' b='1'> <d></d></a>");
        assert_eq!(same, Vec::<String>::new());
    }

    #[test]
    fn each_change_is_a_line() {
        let now = "<a><m>64</m><d><k t='x'/><k t='y'/></d><gone/></a>";
        let then = "<a><m>128</m><d><k t='x'/><k t='z'/><k t='w'/></d></a>";
        assert_eq!(
            lines(now, then),
            [
                "d/k 2 t: 'y' -> 'z'",
                "+ d/k 3: t='w'",
                "- gone",
                "m: '64' -> '128'"
            ]
        );
        let bell = lines("<a/>", "<a b='&#7;'/>");
        assert_eq!(bell, ["+ b: '?'"]);
    }
}
