//! One option's value: `key=value,key=value` with `,,` for a comma, or JSON.
//!
//! Both are read and changed by dotted keys (`file.driver`), and what is not changed is printed as
//! it was.

use std::fmt;

use serde_json::{Map, Value};

/// An option's value, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Options {
    /// `key=value,…`.
    Fields(Vec<Field>),
    /// A JSON object.
    Json(Map<String, Value>),
}

/// One `key=value`. Without `=` it is a flag, or the first one's implied value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) key: Option<String>,
    pub(super) value: String,
    /// The key is not written: it is that of a first field without one.
    pub(super) implied: bool,
}

impl Options {
    /// No fields yet.
    pub(super) fn empty() -> Options {
        Options::Fields(Vec::new())
    }

    /// Takes a value apart. `implied` is the key of a first field that has none.
    pub(super) fn parse(text: &str, implied: &str) -> Options {
        if text.starts_with('{')
            && let Ok(Value::Object(map)) = serde_json::from_str(text)
        {
            return Options::Json(map);
        }
        let mut options = Options::Fields(split(text).iter().map(|t| Field::parse(t)).collect());
        options.name_first(implied);
        options
    }

    fn name_first(&mut self, implied: &str) {
        if let Options::Fields(fields) = self
            && !implied.is_empty()
            && let Some(first) = fields.first_mut()
            && first.key.is_none()
        {
            first.key = Some(implied.to_owned());
            first.implied = true;
        }
    }

    /// The value of a dotted key; `on` or `off` for a JSON bool.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        match self {
            Options::Fields(fields) => fields
                .iter()
                .rev()
                .find(|field| field.is(key))
                .map(|field| field.value.clone()),
            Options::Json(map) => text_of(lookup(map, key)?),
        }
    }

    /// A bool: `on`, `yes`, `true`, or a lone `key`.
    pub(super) fn is_on(&self, key: &str) -> bool {
        let lone = |fields: &[Field]| fields.iter().any(|f| f.key.is_none() && f.value == key);
        match self.get(key) {
            Some(value) => matches!(value.as_str(), "on" | "yes" | "true" | "y"),
            None => matches!(self, Options::Fields(fields) if lone(fields)),
        }
    }

    /// Sets a dotted key in place, or at the end.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        match self {
            Options::Fields(fields) => match fields.iter_mut().rev().find(|f| f.is(key)) {
                Some(field) => value.clone_into(&mut field.value),
                None => fields.push(Field {
                    key: Some(key.to_owned()),
                    value: value.to_owned(),
                    implied: false,
                }),
            },
            Options::Json(map) => insert(map, key, Value::String(value.to_owned())),
        }
    }

    /// Sets a number.
    pub(super) fn set_number(&mut self, key: &str, value: u32) {
        match self {
            Options::Fields(_) => self.set(key, &value.to_string()),
            Options::Json(map) => insert(map, key, value.into()),
        }
    }

    /// Sets a bool.
    pub(super) fn set_flag(&mut self, key: &str, value: bool) {
        match self {
            Options::Fields(_) => self.set(key, if value { "on" } else { "off" }),
            Options::Json(map) => insert(map, key, value.into()),
        }
    }

    /// Removes a key and everything under it.
    pub(super) fn remove(&mut self, key: &str) {
        match self {
            Options::Fields(fields) => fields.retain(|field| {
                let flag = field.key.is_none() && field.value == key;
                !(flag || field.is_under(key))
            }),
            Options::Json(map) => remove(map, key),
        }
    }

    /// Keeps only the keys under `prefix` (empty, or ending in a dot) whose first part `keep`
    /// accepts; keys elsewhere stay. Gives back those removed.
    pub(super) fn keep_only(&mut self, prefix: &str, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let mut removed: Vec<String> = Vec::new();
        for key in self.keys() {
            if let Some(rest) = key.strip_prefix(prefix) {
                let first = rest.split('.').next().unwrap_or(rest);
                if !keep(first) && !keep(rest) && !removed.contains(&key) {
                    removed.push(key);
                }
            }
        }
        for key in &removed {
            self.remove(key);
        }
        removed
    }

    /// All keys, dotted; of JSON those of its leaves.
    pub(super) fn keys(&self) -> Vec<String> {
        match self {
            Options::Fields(fields) => fields.iter().map(Field::name).collect(),
            Options::Json(map) => {
                let mut keys = Vec::new();
                leaves(map, "", &mut keys);
                keys.into_iter().map(|(key, _)| key).collect()
            }
        }
    }

    /// All keys and values.
    pub(super) fn entries(&self) -> Vec<(String, String)> {
        match self {
            Options::Fields(fields) => fields
                .iter()
                .map(|field| (field.name(), field.value.clone()))
                .collect(),
            Options::Json(map) => {
                let mut entries = Vec::new();
                leaves(map, "", &mut entries);
                entries
            }
        }
    }
}

impl Field {
    fn parse(text: &str) -> Field {
        match text.split_once('=') {
            Some((key, value)) => Field {
                key: Some(key.to_owned()),
                value: value.to_owned(),
                implied: false,
            },
            None => Field {
                key: None,
                value: text.to_owned(),
                implied: false,
            },
        }
    }

    fn name(&self) -> String {
        self.key.as_ref().unwrap_or(&self.value).clone()
    }

    fn is(&self, key: &str) -> bool {
        self.key.as_deref() == Some(key)
    }

    fn is_under(&self, key: &str) -> bool {
        self.key.as_deref().is_some_and(|own| {
            let rest = own.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Options::Json(map) => write!(f, "{}", Value::Object(map.clone())),
            Options::Fields(fields) => {
                for (index, field) in fields.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    match &field.key {
                        // An implied key is left out where it still comes first.
                        Some(_) if field.implied && index == 0 => {}
                        Some(key) => write!(f, "{}=", escape(key))?,
                        None => {}
                    }
                    f.write_str(&escape(&field.value))?;
                }
                Ok(())
            }
        }
    }
}

/// Doubles commas.
pub(super) fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

/// Splits at single commas and halves double ones.
fn split(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(last) = fields.last_mut() {
            last.push(char);
        }
    }
    fields
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(if *flag { "on" } else { "off" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn lookup<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    if let Some(value) = map.get(key) {
        return Some(value);
    }
    let (first, rest) = key.split_once('.')?;
    lookup(map.get(first)?.as_object()?, rest)
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        map.insert(key.to_owned(), value);
        return;
    };
    let child = map
        .entry(first)
        .or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    if let Value::Object(child) = child {
        insert(child, rest, value);
    }
}

fn remove(map: &mut Map<String, Value>, key: &str) {
    if map.shift_remove(key).is_none()
        && let Some((first, rest)) = key.split_once('.')
        && let Some(Value::Object(child)) = map.get_mut(first)
    {
        remove(child, rest);
        if child.is_empty() {
            map.shift_remove(first);
        }
    }
}

fn leaves(map: &Map<String, Value>, prefix: &str, out: &mut Vec<(String, String)>) {
    for (key, value) in map {
        match value {
            Value::Object(child) => leaves(child, &format!("{prefix}{key}."), out),
            value => out.push((format!("{prefix}{key}"), text_of(value).unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commas_are_doubled() {
        let mut options = Options::parse("file=/a,,b/c,,d.img,if=virtio,snapshot", "file");
        assert_eq!(options.get("file").unwrap(), "/a,b/c,d.img");
        assert!(options.is_on("snapshot"));
        options.set("file", "/x,y");
        options.remove("snapshot");
        assert_eq!(options.to_string(), "file=/x,,y,if=virtio");
    }

    #[test]
    fn the_first_key_may_be_implied() {
        let mut options = Options::parse("tap,id=net0,ifname=t", "type");
        assert_eq!(options.get("type").unwrap(), "tap");
        options.set("type", "hubport");
        options.keep_only("", |key| matches!(key, "type" | "id"));
        options.set_number("hubid", 7);
        assert_eq!(options.to_string(), "hubport,id=net0,hubid=7");
    }

    #[test]
    fn json_is_read_and_changed_by_dotted_keys() {
        let text =
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"a,b"},"read-only":true}"#;
        let mut options = Options::parse(text, "driver");
        assert_eq!(options.get("file.filename").unwrap(), "a,b");
        assert!(options.is_on("read-only"));
        options.remove("file");
        options.set("file.filename", "c");
        options.set_flag("read-only", false);
        assert_eq!(
            options.to_string(),
            r#"{"driver":"qcow2","read-only":false,"file":{"filename":"c"}}"#
        );
    }

    proptest! {
        #[test]
        fn what_is_parsed_prints_as_it_was(text in "[a-z=,.{\"]{0,40}", implied in "[a-z]{0,3}") {
            prop_assume!(!text.starts_with('{'));
            prop_assert_eq!(Options::parse(&text, &implied).to_string(), text);
        }

        #[test]
        fn any_text_is_survived(text in ".{0,60}") {
            let mut options = Options::parse(&text, "file");
            options.set("a.b", "c,d");
            prop_assert_eq!(options.get("a.b"), Some("c,d".to_owned()));
            options.remove("a");
            prop_assert_eq!(options.get("a.b"), None);
            let _ = (options.entries(), options.to_string());
        }

        #[test]
        fn what_is_printed_parses_as_it_was(
            fields in prop::collection::vec(("[a-z.]{1,5}", "[a-z,=]{0,8}"), 1..6),
        ) {
            let options = Options::Fields(fields.into_iter().map(|(key, value)| Field {
                key: Some(key), value, implied: false,
            }).collect());
            prop_assert_eq!(Options::parse(&options.to_string(), ""), options);
        }
    }
}
