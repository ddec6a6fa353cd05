//! A plan for people.

use std::fmt;

use super::{Action, Item, Plan};

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Action::Create => "create",
            Action::Change => "change",
            Action::Same => "same",
            Action::Cannot => "CANNOT",
            Action::LeftAlone => "left alone",
            Action::Unknown => "not in backup",
        })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = format!("{} {}", self.kind, plain(&self.name));
        write!(f, "{:14} {}", self.action, what.trim_end())?;
        if let Some(why) = &self.why {
            write!(f, ": {}", plain(why))?;
        }
        for line in &self.differences {
            write!(f, "\n                 {}", plain(line))?;
        }
        for line in &self.warnings {
            write!(f, "\n               ! {}", plain(line))?;
        }
        Ok(())
    }
}

/// What is not as it was, a line each with lines below, and a summary.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node {}", self.node)?;
        for item in &self.items {
            if item.action != Action::Same || !item.warnings.is_empty() {
                writeln!(f, "  {item}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "  ! {}", plain(warning))?;
        }
        let count = |action| {
            let items = self.items.iter();
            items.filter(|item| item.action == action).count()
        };
        write!(
            f,
            "  {} to create, {} to change, {} the same, {} that cannot be restored, {} left \
             alone, {} not in the backup",
            count(Action::Create),
            count(Action::Change),
            count(Action::Same),
            count(Action::Cannot),
            count(Action::LeftAlone),
            count(Action::Unknown)
        )
    }
}

/// Names come from outside; control characters would act on the terminal.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(plain).collect()
}
