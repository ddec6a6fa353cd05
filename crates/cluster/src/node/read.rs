//! Reading the configuration of a node that may come from anywhere. Its size was bounded by whoever
//! read it; here it is walked once before anything is built of it.

use quick_xml::Reader;
use quick_xml::events::Event;

use super::{NodeDocument, VERSION};

/// Deepest nesting of ours is 5.
const MAX_DEPTH: usize = 16;
/// Most elements: some hundred for each of ten thousand guests.
const MAX_ELEMENTS: usize = 2_000_000;
/// What a reference may be: the five of XML itself, and characters by number.
const ENTITIES: [&[u8]; 5] = [b"amp", b"lt", b"gt", b"quot", b"apos"];

/// Refuses what this program never writes, then reads the document.
pub(super) fn document(xml: &str) -> Result<NodeDocument, String> {
    walk(xml)?;
    let document: NodeDocument = quick_xml::de::from_str(xml).map_err(|error| error.to_string())?;
    match document.version {
        1..=VERSION => Ok(document),
        other => Err(format!(
            "it is of version {other}, this program knows versions up to {VERSION}"
        )),
    }
}

/// No DTD (and so no entities that unfold), no instructions for programs, nothing too deep.
fn walk(xml: &str) -> Result<(), String> {
    let mut reader = Reader::from_str(xml);
    let (mut depth, mut elements, mut roots) = (0usize, 0usize, 0usize);
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let name = match &event {
            Event::Eof if depth == 0 && roots == 1 => return Ok(()),
            Event::Eof => return Err("it ends too early".to_owned()),
            Event::DocType(_) => return Err("it has a document type".to_owned()),
            Event::PI(_) => return Err("it has an instruction for a program".to_owned()),
            Event::GeneralRef(name) => {
                let known = name.starts_with(b"#") || ENTITIES.contains(&name.as_ref());
                match known {
                    true => continue,
                    false => return Err("it refers to an entity".to_owned()),
                }
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                continue;
            }
            Event::Start(start) | Event::Empty(start) => start.name().as_ref().to_vec(),
            _ => continue,
        };
        elements += 1;
        if depth == 0 {
            roots += 1;
            if roots > 1 || name != b"vmtwin-node" {
                return Err("it is no configuration of a node".to_owned());
            }
        }
        if matches!(event, Event::Start(_)) {
            depth += 1;
        }
        if depth > MAX_DEPTH || elements > MAX_ELEMENTS {
            return Err("it is too deep or too large".to_owned());
        }
    }
}
