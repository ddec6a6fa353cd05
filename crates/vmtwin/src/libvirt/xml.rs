//! Small XML documents as trees: definitions of domains, read, changed and written again.
//!
//! What libvirt writes has no document type, no namespaces that matter here, and no text beside
//! elements. Comments and processing instructions go. Documents are from outside: their depth and
//! the number of their elements are bounded, and entities are the five of XML and characters only.

use anyhow::{Context, Result, bail};
use quick_xml::events::{BytesEnd, BytesRef, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

/// libvirt writes no declaration.
const VERSION: XmlVersion = XmlVersion::Implicit1_0;
const MAX_DEPTH: usize = 64;
const MAX_ELEMENTS: usize = 100_000;

/// An element and all in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    /// Its text; where it has children, none.
    pub(crate) text: String,
}

impl Element {
    /// An element with these attributes.
    pub(crate) fn new(name: &str, attributes: &[(&str, &str)]) -> Element {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Element {
            name: name.to_owned(),
            attributes: attributes.iter().map(owned).collect(),
            ..Element::default()
        }
    }

    /// An element with text in it.
    pub(crate) fn of_text(name: &str, text: &str) -> Element {
        Element {
            text: text.to_owned(),
            ..Element::new(name, &[])
        }
    }

    /// Reads a document.
    pub(crate) fn parse(xml: &str) -> Result<Element> {
        let mut reader = Reader::from_str(xml);
        let mut open: Vec<Element> = Vec::new();
        let mut count = 0;
        loop {
            let done = match reader.read_event()? {
                Event::Start(start) => {
                    open.push(read_start(&start)?);
                    None
                }
                Event::Empty(start) => Some(read_start(&start)?),
                Event::End(_) => open.pop(),
                Event::Text(text) => {
                    add_text(&mut open, &text.decode()?);
                    None
                }
                Event::CData(data) => {
                    add_text(&mut open, &data.decode()?);
                    None
                }
                Event::GeneralRef(reference) => {
                    add_text(&mut open, &resolve(&reference)?);
                    None
                }
                Event::DocType(_) => bail!("it has a document type"),
                Event::Eof => bail!("it ends in the middle"),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => None,
            };
            count += 1;
            if open.len() > MAX_DEPTH || count > MAX_ELEMENTS {
                bail!("it is too large, or too deep");
            }
            let Some(mut element) = done else { continue };
            if !element.children.is_empty() {
                element.text.clear();
            }
            match open.last_mut() {
                Some(parent) => parent.children.push(element),
                None => return Ok(element),
            }
        }
    }

    /// As a document.
    pub(crate) fn to_xml(&self) -> Result<String> {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write(&mut writer)?;
        Ok(String::from_utf8(writer.into_inner())?)
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> Result<()> {
        let mut start = BytesStart::new(&self.name);
        for (key, value) in &self.attributes {
            start.push_attribute((key.as_str(), value.as_str()));
        }
        if self.children.is_empty() && self.text.is_empty() {
            return Ok(writer.write_event(Event::Empty(start))?);
        }
        writer.write_event(Event::Start(start))?;
        for child in &self.children {
            child.write(writer)?;
        }
        if self.children.is_empty() {
            writer.write_event(Event::Text(BytesText::new(&self.text)))?;
        }
        Ok(writer.write_event(Event::End(BytesEnd::new(&self.name)))?)
    }

    /// The value of an attribute.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let mut all = self.attributes.iter();
        let found = all.find(|(name, _)| name == key)?;
        Some(&found.1)
    }

    /// Whether an attribute has this value.
    pub(crate) fn is(&self, key: &str, value: &str) -> bool {
        self.get(key) == Some(value)
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        match self.attributes.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Takes an attribute away.
    pub(crate) fn unset(&mut self, key: &str) {
        self.attributes.retain(|(name, _)| name != key);
    }

    /// The first child of this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first child of this name.
    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.children.iter_mut().find(|child| child.name == name)
    }

    /// All children of this name.
    pub(crate) fn all_mut(&mut self, name: &str) -> impl Iterator<Item = &mut Element> {
        self.children
            .iter_mut()
            .filter(move |child| child.name == name)
    }

    /// Takes all children of these names away; says whether there was one.
    pub(crate) fn remove(&mut self, names: &[&str]) -> bool {
        let before = self.children.len();
        let goes = |child: &Element| names.contains(&child.name.as_str());
        self.children.retain(|child| !goes(child));
        self.children.len() < before
    }

    /// Puts an element in the place of the first child of its name, or before all others.
    pub(crate) fn put(&mut self, element: Element) {
        match self.child_mut(&element.name) {
            Some(old) => *old = element,
            None => self.children.insert(0, element),
        }
    }

    /// The text of the first child of this name.
    pub(crate) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

fn read_start(start: &BytesStart<'_>) -> Result<Element> {
    let mut element = Element {
        name: String::from_utf8(start.name().as_ref().to_vec())?,
        ..Element::default()
    };
    for attribute in start.attributes() {
        let attribute = attribute?;
        let key = String::from_utf8(attribute.key.as_ref().to_vec())?;
        let value = attribute.normalized_value(VERSION)?.into_owned();
        element.attributes.push((key, value));
    }
    Ok(element)
}

fn add_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<String> {
    if let Some(character) = reference.resolve_char_ref()? {
        return Ok(character.to_string());
    }
    let name = reference.decode()?;
    let known = quick_xml::escape::resolve_predefined_entity(&name);
    Ok(known.context("it has an entity of its own")?.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documents_are_read_and_written() {
        let xml = "<?xml version='1.0'?><!-- by hand -->\n<a x='1 &lt; 2'>\n <b>t&amp;x &#65;</b>\n \
                   <c/>\n</a>";
        let a = Element::parse(xml).unwrap();
        assert_eq!(a.get("x"), Some("1 < 2"));
        assert_eq!(a.text_of("b"), Some("t&x A"));
        assert_eq!(a.text, "");
        assert_eq!(Element::parse(&a.to_xml().unwrap()).unwrap(), a);
    }

    #[test]
    fn what_is_hostile_is_refused() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        for xml in [
            "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>",
            "<a>&b;</a>",
            "<a></b>",
            "<a>",
            "",
            &deep,
        ] {
            assert!(Element::parse(xml).is_err(), "{xml}");
        }
    }

    proptest! {
        #[test]
        fn text_survives(text in "[ -~]*[!-~]", value in "[ -~äß]*") {
            let mut element = Element::of_text("a", &text);
            element.set("b", &value);
            let again = Element::parse(&element.to_xml().unwrap()).unwrap();
            prop_assert_eq!(again, element);
        }

        #[test]
        fn rubbish_does_no_harm(text in "[<>a-c/&;'\" =!\\[\\]]{0,60}") {
            let _ = Element::parse(&text);
        }
    }
}
