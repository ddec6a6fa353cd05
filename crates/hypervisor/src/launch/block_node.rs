//! Disks given by `-blockdev`: a graph of nodes over one or more options, inline or by name.

use super::command_line::CommandLine;
use super::options::Options;

/// Drivers that stand above an image and pass through what is under them.
const FILTERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "preallocate",
    "throttle",
];

/// What of an image's node stays when another image takes its place.
const KEPT: &[&str] = &[
    "auto-read-only",
    "cache",
    "detect-zeroes",
    "discard",
    "node-name",
    "read-only",
];

/// A place in the graph: an option, and the prefix of its keys there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    at: usize,
    prefix: String,
}

impl Node {
    /// The node of this name, if an option gives it at its top.
    pub(super) fn named(line: &CommandLine, name: &str) -> Option<Node> {
        let (at, _) = line
            .all("blockdev")
            .into_iter()
            .find(|(_, options)| options.get("node-name").as_deref() == Some(name))?;
        Some(Node {
            at,
            prefix: String::new(),
        })
    }

    fn options(&self, line: &CommandLine) -> Options {
        line.args[self.at].options()
    }

    fn get(&self, line: &CommandLine, key: &str) -> Option<String> {
        self.options(line).get(&format!("{}{key}", self.prefix))
    }

    /// The node under `key`: named or inline.
    fn child(&self, line: &CommandLine, key: &str) -> Option<Node> {
        if let Some(name) = self.get(line, key) {
            return Node::named(line, &name);
        }
        let prefix = format!("{}{key}.", self.prefix);
        let inline = |k: &String| k.starts_with(&prefix);
        let found = self.options(line).keys().iter().any(inline);
        found.then_some(Node {
            at: self.at,
            prefix,
        })
    }

    /// This node and those under it along `file`.
    pub(super) fn chain(&self, line: &CommandLine) -> Vec<Node> {
        let mut chain = vec![self.clone()];
        while let Some(node) = chain.last().and_then(|last| last.child(line, "file")) {
            if chain.contains(&node) {
                break;
            }
            chain.push(node);
        }
        chain
    }

    /// The names of the nodes in the chain.
    pub(super) fn names(&self, line: &CommandLine) -> Vec<String> {
        self.chain(line)
            .iter()
            .filter_map(|node| node.get(line, "node-name"))
            .collect()
    }

    /// The file name at the bottom.
    pub(super) fn filename(&self, line: &CommandLine) -> Option<String> {
        self.chain(line)
            .iter()
            .find_map(|node| node.get(line, "filename"))
    }

    /// Whether any node in the chain is read-only.
    pub(super) fn read_only(&self, line: &CommandLine) -> bool {
        self.chain(line).iter().any(|node| {
            let key = format!("{}read-only", node.prefix);
            node.options(line).is_on(&key)
        })
    }

    /// The option that gives this node.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Puts an image in place of the first node that is not a filter, with all under it.
    pub(super) fn replace(&self, line: &mut CommandLine, path: &str, format: &str) {
        let chain = self.chain(line);
        let is_filter = |node: &&Node| {
            let driver = node.get(line, "driver").unwrap_or_default();
            !FILTERS.contains(&driver.as_str())
        };
        let image = chain.iter().find(is_filter).unwrap_or(self).clone();
        let mut options = image.options(line);
        let prefix = &image.prefix;
        options.keep_only(prefix, |key| key == "driver" || KEPT.contains(&key));
        options.set(&format!("{prefix}driver"), format);
        options.set(&format!("{prefix}file.driver"), "file");
        options.set(&format!("{prefix}file.filename"), path);
        line.args[image.at].value = Some(options.to_string());
    }

    /// Makes the file name at the bottom absolute.
    pub(super) fn set_filename(&self, line: &mut CommandLine, path: &str) {
        let chain = self.chain(line);
        if let Some(node) = chain.iter().find(|n| n.get(line, "filename").is_some()) {
            let mut options = node.options(line);
            options.set(&format!("{}filename", node.prefix), path);
            line.args[node.at].value = Some(options.to_string());
        }
    }
}

/// Positions of the `-blockdev` options whose node no other option refers to.
pub(super) fn unused(line: &CommandLine) -> Vec<usize> {
    line.all("blockdev")
        .into_iter()
        .filter(|(at, options)| {
            let name = options.get("node-name").unwrap_or_default();
            !line.refers_to(&name, *at)
        })
        .map(|(at, _)| at)
        .collect()
}
