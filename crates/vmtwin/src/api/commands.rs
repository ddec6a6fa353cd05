//! Commands as JSON. What the command line takes is known to clap; bodies, their schemas and the
//! arguments they become are made of that, so that none of them is ever behind it.
//!
//! ```text
//!   {"vms": ["web01"], "consistency": "crash"}  ─►  backup --consistency=crash -- web01
//! ```
//! A long option's name is a field with `_` for `-`; a positional argument is a field of its id; what
//! needs no value is a flag.

use clap::{Arg, ArgAction, CommandFactory};
use serde_json::{Map, Value, json};

use crate::cli::Cli;

/// Commands that are no requests: they serve, print for a shell, or are this program's own.
const NOT_ASKED_FOR: &[&str] = &[
    "serve",
    "completions",
    "man",
    "schedule follow",
    "help",
    // What it makes is to be kept away from this host.
    "cluster secrets-key",
    // A job's arguments and its output are kept, and who may look at jobs sees them: no tokens.
    "cluster join",
    "cluster token",
    "token add",
];
/// Longest value.
const MAX_VALUE_CHARS: usize = 1024;
/// Most values of one argument.
const MAX_VALUES: usize = 100;

/// A command that can be asked for.
pub(super) struct Asked {
    /// Its words: `vm add`.
    pub(super) words: String,
    pub(super) command: clap::Command,
}

/// All of them.
pub(super) fn all() -> Vec<Asked> {
    let mut root = Cli::command();
    root.build();
    let mut found = Vec::new();
    collect(&root, "", &mut found);
    found
}

fn collect(command: &clap::Command, before: &str, found: &mut Vec<Asked>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let words = format!("{before} {}", sub.get_name()).trim().to_owned();
        if NOT_ASKED_FOR.contains(&words.as_str()) || words.ends_with(" help") {
            continue;
        }
        match sub.has_subcommands() {
            true => collect(sub, &words, found),
            false => found.push(Asked {
                words,
                command: sub.clone(),
            }),
        }
    }
}

/// The command of these words.
pub(super) fn find(words: &str) -> Option<Asked> {
    all().into_iter().find(|asked| asked.words == words)
}

impl Asked {
    /// What can be said of it.
    fn arguments(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments().filter(|arg| {
            let is_value = !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            );
            is_value && !arg.is_global_set() && !arg.is_hide_set()
        })
    }

    /// The arguments that a body stands for, or what is wrong with it.
    pub(super) fn line(&self, body: &Map<String, Value>) -> Result<Vec<String>, String> {
        let mut line: Vec<String> = self.words.split(' ').map(str::to_owned).collect();
        let mut positionals = Vec::new();
        let known: Vec<&Arg> = self.arguments().collect();
        if let Some(strange) = body
            .keys()
            .find(|key| !known.iter().any(|a| field(a) == **key))
        {
            let fields: Vec<String> = known.iter().map(|arg| field(arg)).collect();
            return Err(format!(
                "{} has no field {strange:?}; it has {}",
                self.words,
                fields.join(", ")
            ));
        }
        for arg in known {
            let Some(given) = body.get(&field(arg)) else {
                continue;
            };
            if is_flag(arg) {
                match given.as_bool() {
                    Some(true) => line.push(option(arg)),
                    Some(false) => {}
                    None => return Err(format!("{}: true or false", field(arg))),
                }
                continue;
            }
            for value in values(arg, given)? {
                match arg.is_positional() {
                    true => positionals.push(value),
                    false => line.push(format!("{}={value}", option(arg))),
                }
            }
        }
        if !positionals.is_empty() {
            line.push("--".to_owned());
            line.extend(positionals);
        }
        Ok(line)
    }

    /// The schema of its body.
    pub(super) fn schema(&self) -> Value {
        let properties: Map<String, Value> = self
            .arguments()
            .map(|arg| (field(arg), schema_of(arg)))
            .collect();
        let required: Vec<String> = self
            .arguments()
            .filter(|arg| arg.is_required_set())
            .map(field)
            .collect();
        let mut schema = json!({
            "type": "object", "additionalProperties": false, "properties": properties,
        });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        schema
    }

    /// What it does, in a line.
    pub(super) fn summary(&self) -> String {
        let about = self.command.get_about();
        about.map(ToString::to_string).unwrap_or_default()
    }
}

/// The field of an argument.
fn field(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) => long.replace('-', "_"),
        None => arg.get_id().as_str().to_owned(),
    }
}

fn option(arg: &Arg) -> String {
    format!("--{}", arg.get_long().unwrap_or_default())
}

fn is_flag(arg: &Arg) -> bool {
    !arg.get_action().takes_values()
}

fn is_list(arg: &Arg) -> bool {
    let many = arg.get_num_args().is_some_and(|n| n.max_values() > 1);
    many || matches!(arg.get_action(), ArgAction::Append)
}

fn is_number(arg: &Arg) -> bool {
    use std::any::TypeId;
    let kind = arg.get_value_parser().type_id();
    let numbers = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
    ];
    numbers.iter().any(|number| kind == *number)
}

fn values(arg: &Arg, given: &Value) -> Result<Vec<String>, String> {
    let field = field(arg);
    let one = |value: &Value| match value {
        Value::String(text) => {
            let is_long = text.chars().count() > MAX_VALUE_CHARS;
            match is_long || text.contains('\0') {
                true => Err(format!(
                    "{field}: up to {MAX_VALUE_CHARS} characters of text"
                )),
                false => Ok(text.clone()),
            }
        }
        Value::Number(number) if is_number(arg) => Ok(number.to_string()),
        _ if is_number(arg) => Err(format!("{field}: a number or a text is needed")),
        _ => Err(format!("{field}: a text is needed")),
    };
    match (given, is_list(arg)) {
        (Value::Array(all), true) if all.len() <= MAX_VALUES => all.iter().map(one).collect(),
        (_, true) => Err(format!("{field}: a list of up to {MAX_VALUES} is needed")),
        (single, false) => Ok(vec![one(single)?]),
    }
}

fn schema_of(arg: &Arg) -> Value {
    let mut schema = match (is_flag(arg), is_number(arg)) {
        (true, _) => json!({"type": "boolean"}),
        // Some are read from texts such as 1d.
        (false, true) => {
            json!({"type": ["integer", "string"], "minimum": 0, "maxLength": MAX_VALUE_CHARS})
        }
        (false, false) => json!({"type": "string", "maxLength": MAX_VALUE_CHARS}),
    };
    let possible = arg.get_possible_values();
    if !is_flag(arg) && !possible.is_empty() {
        let names: Vec<&str> = possible.iter().map(|value| value.get_name()).collect();
        schema = json!({"type": "string", "enum": names});
    }
    if is_list(arg) {
        schema = json!({"type": "array", "items": schema, "maxItems": MAX_VALUES});
    }
    if let Some(help) = arg.get_help() {
        schema["description"] = json!(help.to_string());
    }
    schema
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn line(words: &str, body: Value) -> Result<Vec<String>, String> {
        find(words).unwrap().line(body.as_object().unwrap())
    }

    #[test]
    fn a_body_is_what_the_command_line_says() {
        let body = json!({"vms": ["web01", "-x"], "consistency": "crash"});
        let expected = ["backup", "--consistency=crash", "--", "web01", "-x"];
        assert_eq!(line("backup", body).unwrap(), expected);
        let body = json!({"id": "latest", "to": "a b", "run": true, "memory": false});
        let expected = ["restore", "--to=a b", "--run", "--", "latest"];
        assert_eq!(line("restore", body).unwrap(), expected);
        let body = json!({"name": "n", "every": "1d", "all": true, "keep_last": 3});
        let expected = [
            "schedule",
            "add",
            "--every=1d",
            "--all",
            "--keep-last=3",
            "--",
            "n",
        ];
        assert_eq!(line("schedule add", body).unwrap(), expected);
    }

    #[test]
    fn what_a_command_does_not_take_is_refused() {
        for (words, body) in [
            ("backup", json!({"vm": ["x"]})),
            ("backup", json!({"vms": [{}]})),
            ("backup", json!({"vms": ["a\0b"]})),
            ("backup", json!({"consistency": ["crash", "state"]})),
            ("backup", json!({"order": null})),
            ("restore", json!({"run": null})),
            ("restore", json!({"run": "yes"})),
            ("restore", json!({"password_command": "sh"})),
            ("restore", json!({"home": "/"})),
            ("restore", json!({"help": true})),
        ] {
            assert!(line(words, body.clone()).is_err(), "{words} {body}");
        }
        for hidden in ["serve", "man", "pause-guard", "schedule follow", "help", ""] {
            assert!(find(hidden).is_none(), "{hidden}");
        }
    }

    #[test]
    fn every_command_has_a_schema() {
        let all = all();
        assert!(all.len() > 30, "{}", all.len());
        let backup = find("backup").unwrap().schema();
        assert_eq!(backup["properties"]["vms"]["type"], "array");
        assert_eq!(
            backup["properties"]["consistency"]["enum"],
            json!(["application", "state", "filesystem", "crash"])
        );
        assert_eq!(
            find("vm show").unwrap().schema()["required"],
            json!(["name"])
        );
    }
}
