//! The configuration of one node, as XML: `node.xsd` beside this file is its schema, and the tests
//! hold every document against it.
//!
//! ```text
//! <vmtwin-node version="1" name="node1" id="…" taken-at="2026-11-22T19:22:41Z" program="0.1.0">
//!   <hardware> host, processor, memory, NUMA nodes, PCI, mdev and network devices </hardware>
//!   <logical>  objects: pools, volumes, networks, filters, secrets               </logical>
//!   <virtual>  objects: domains with their snapshots and checkpoints; settings   </virtual>
//! </vmtwin-node>
//! ```
//!
//! What another program defined (libvirt) is kept as the text it gave, so that nothing is lost and
//! it can be given back as it was. Hardware cannot be given back: it is what a restore compares.

mod hardware;
mod read;
mod sysfs;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use hardware::{
    Bond, Bridge, Hardware, Host, Interface, InterfaceKind, Mdev, Memory, NumaNode, Pci, Processor,
    Vlan,
};
pub use sysfs::collect_hardware;

use crate::error::{Error, Result};
use crate::name::NodeName;

/// The newest version of the schema that this program knows.
pub const VERSION: u32 = 1;
/// The schema, for `xmllint` and other programs.
pub const SCHEMA: &str = include_str!("node.xsd");

/// The configuration of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "vmtwin-node", deny_unknown_fields)]
pub struct NodeDocument {
    /// The version of the schema.
    #[serde(rename = "@version")]
    pub version: u32,
    /// The node's name.
    #[serde(rename = "@name")]
    pub name: NodeName,
    /// The node's id, a UUID.
    #[serde(rename = "@id")]
    pub id: String,
    /// When it was taken.
    #[serde(rename = "@taken-at", with = "time::serde::rfc3339")]
    pub taken_at: OffsetDateTime,
    /// The version of the program that took it.
    #[serde(rename = "@program")]
    pub program: String,
    /// What the node is made of.
    pub hardware: Hardware,
    /// What is defined for guests to use.
    pub logical: Objects,
    /// The guests.
    pub r#virtual: Objects,
}

/// Things that are defined on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    /// In the order in which they can be defined.
    #[serde(default, rename = "object")]
    pub objects: Vec<Object>,
    /// Settings of vmtwin on this node.
    #[serde(default, rename = "setting")]
    pub settings: Vec<Setting>,
}

/// A thing that is defined on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Whose words `kind` and `definition` are: `libvirt`.
    #[serde(rename = "@by")]
    pub by: String,
    /// `domain`, `network`, `pool`, `volume`, `nwfilter`, `secret`…
    #[serde(rename = "@kind")]
    pub kind: String,
    /// Its name.
    #[serde(rename = "@name")]
    pub name: String,
    /// Its UUID, where it has one.
    #[serde(rename = "@uuid", default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Whether it was active.
    #[serde(rename = "@active", default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// Whether it is started with the node.
    #[serde(
        rename = "@autostart",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub autostart: Option<bool>,
    /// What defines it, word for word. White space alone, which defines nothing, comes back empty.
    pub definition: String,
    /// What belongs to it: snapshots, checkpoints, UEFI variables.
    #[serde(default, rename = "part")]
    pub parts: Vec<Part>,
}

/// What belongs to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// `snapshot`, `current-snapshot`, `checkpoint`, `live`, `transient`, `nvram`, `volume`.
    #[serde(rename = "@kind")]
    pub kind: String,
    /// Its name.
    #[serde(rename = "@name")]
    pub name: String,
    /// How the content is written, if it is no text: `base64`.
    #[serde(rename = "@encoding", default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// The content.
    #[serde(rename = "$text", default)]
    pub content: String,
}

/// A setting of vmtwin on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its name.
    #[serde(rename = "@name")]
    pub name: String,
    /// Its value. White space alone comes back empty.
    #[serde(rename = "$text", default)]
    pub value: String,
}

impl NodeDocument {
    /// The document as XML, UTF-8, with a line for each element.
    pub fn to_xml(&self) -> Result<String> {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let mut serializer = quick_xml::se::Serializer::new(&mut xml);
        serializer.indent(' ', 2);
        self.serialize(serializer).map_err(|error| Error::BadNode {
            why: error.to_string(),
        })?;
        xml.push('\n');
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r') || c >= ' ';
        if !xml
            .chars()
            .all(|c| allowed(c) && !matches!(c, '\u{fffe}' | '\u{ffff}'))
        {
            return Err(Error::BadNode {
                why: "it holds a character that XML cannot hold".to_owned(),
            });
        }
        // Readers make a line feed of one that is not written by its number.
        Ok(xml.replace('\r', "&#13;"))
    }

    /// Reads a document that may come from anywhere.
    pub fn from_xml(xml: &str) -> Result<Self> {
        read::document(xml).map_err(|why| Error::BadNode { why })
    }
}
