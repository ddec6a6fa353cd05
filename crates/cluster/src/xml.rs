//! Definitions of other programs (libvirt) as trees, so that they can be compared and changed.
//!
//! They come out of archives that may come from anywhere: no document type, no entities but XML's
//! own, and depth and number of elements are bounded. Comments and instructions go, white space
//! between elements too; all else is kept in its order.

use quick_xml::events::{BytesEnd, BytesRef, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

/// libvirt writes no declaration.
const VERSION: XmlVersion = XmlVersion::Implicit1_0;
const MAX_DEPTH: usize = 64;
const MAX_EVENTS: usize = 200_000;

/// An element and all in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) nodes: Vec<Node>,
}

/// What an element holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Element(Element),
    Text(String),
}

impl Element {
    /// Reads a document.
    pub(crate) fn parse(xml: &str) -> Result<Element, String> {
        let mut reader = Reader::from_str(xml);
        let mut open: Vec<Element> = Vec::new();
        for _ in 0..MAX_EVENTS {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let done = match event {
                Event::Start(start) => {
                    open.push(read_start(&start)?);
                    None
                }
                Event::Empty(start) => Some(read_start(&start)?),
                Event::End(_) => open.pop(),
                Event::Text(text) => {
                    let text = text.decode().map_err(|error| error.to_string())?;
                    add_text(&mut open, &text);
                    None
                }
                Event::CData(data) => {
                    let data = data.decode().map_err(|error| error.to_string())?;
                    add_text(&mut open, &data);
                    None
                }
                Event::GeneralRef(reference) => {
                    add_text(&mut open, &resolve(&reference)?);
                    None
                }
                Event::DocType(_) => return Err("it has a document type".to_owned()),
                Event::Eof => return Err("it ends in the middle".to_owned()),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => None,
            };
            if open.len() > MAX_DEPTH {
                return Err("it is too deep".to_owned());
            }
            let Some(mut element) = done else { continue };
            element.drop_white_space();
            match open.last_mut() {
                Some(parent) => parent.nodes.push(Node::Element(element)),
                None => return Ok(element),
            }
        }
        Err("it is too large".to_owned())
    }

    /// White space between elements says nothing.
    fn drop_white_space(&mut self) {
        if self.children().next().is_some() {
            let says = |node: &Node| !matches!(node, Node::Text(text) if text.trim().is_empty());
            self.nodes.retain(says);
        }
    }

    /// As a document.
    pub(crate) fn to_xml(&self) -> Result<String, String> {
        let mut writer = Writer::new(Vec::new());
        self.write(&mut writer).map_err(|error| error.to_string())?;
        String::from_utf8(writer.into_inner()).map_err(|error| error.to_string())
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(&self.name);
        for (key, value) in &self.attributes {
            start.push_attribute((key.as_str(), value.as_str()));
        }
        if self.nodes.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        for node in &self.nodes {
            match node {
                Node::Element(element) => element.write(writer)?,
                Node::Text(text) => writer.write_event(Event::Text(BytesText::new(text)))?,
            }
        }
        writer.write_event(Event::End(BytesEnd::new(&self.name)))
    }

    /// The elements in it.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The elements in it.
    pub(crate) fn children_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.nodes.iter_mut().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The elements of this name in it.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children().filter(move |child| child.name == name)
    }

    /// The first element of this name in it.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children().find(|child| child.name == name)
    }

    /// Follows first children by name.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter()
            .try_fold(self, |element, name| element.child(name))
    }

    /// The value of an attribute.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let mut all = self.attributes.iter();
        let found = all.find(|(name, _)| name == key)?;
        Some(&found.1)
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        match self.attributes.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Its own text, without white space around it.
    pub(crate) fn text(&self) -> String {
        let mut all = String::new();
        for node in &self.nodes {
            if let Node::Text(text) = node {
                all.push_str(text);
            }
        }
        all.trim().to_owned()
    }

    /// Puts text in the place of all it holds.
    pub(crate) fn set_text(&mut self, text: &str) {
        self.nodes = vec![Node::Text(text.to_owned())];
    }

    /// The text of the first element of this name in it.
    pub(crate) fn text_of(&self, name: &str) -> Option<String> {
        self.child(name).map(Element::text)
    }

    /// Takes the elements of these names out.
    pub(crate) fn remove(&mut self, names: &[&str]) {
        self.nodes.retain(|node| match node {
            Node::Element(element) => !names.contains(&element.name.as_str()),
            Node::Text(_) => true,
        });
    }
}

fn read_start(start: &BytesStart<'_>) -> Result<Element, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string());
    let mut element = Element {
        name: text(start.name().as_ref())?,
        ..Element::default()
    };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.normalized_value(VERSION);
        let value = value.map_err(|error| error.to_string())?.into_owned();
        element
            .attributes
            .push((text(attribute.key.as_ref())?, value));
    }
    Ok(element)
}

fn add_text(open: &mut [Element], more: &str) {
    let Some(element) = open.last_mut() else {
        return;
    };
    match element.nodes.last_mut() {
        Some(Node::Text(text)) => text.push_str(more),
        _ => element.nodes.push(Node::Text(more.to_owned())),
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<String, String> {
    let character = reference.resolve_char_ref();
    if let Some(character) = character.map_err(|error| error.to_string())? {
        return Ok(character.to_string());
    }
    let name = reference.decode().map_err(|error| error.to_string())?;
    match quick_xml::escape::resolve_predefined_entity(&name) {
        Some(known) => Ok(known.to_owned()),
        None => Err("it has an entity of its own".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_it_holds_survives() {
        let xml =
            "<a x='1 &lt; 2'>\n <b>t&amp;x &#65;</b>\n <c xmlns:q='u'><q:d>1</q:d> and </c>\n</a>";
        let a = Element::parse(xml).unwrap();
        assert_eq!(a.get("x"), Some("1 < 2"));
        assert_eq!(a.text_of("b").as_deref(), Some("t&x A"));
        assert_eq!(a.text_of("c").as_deref(), Some("and"));
        assert_eq!(Element::parse(&a.to_xml().unwrap()).unwrap(), a);
    }

    #[test]
    fn what_is_hostile_is_refused() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        let large = format!("<a>{}</a>", "<b/>".repeat(MAX_EVENTS));
        for xml in [
            "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>",
            "<a>&b;</a>",
            "<a></b>",
            "<a>",
            "",
            &deep,
            &large,
        ] {
            assert!(Element::parse(xml).is_err());
        }
    }

    proptest! {
        #[test]
        fn rubbish_does_no_harm(text in "[<>a-c/&;'\" =!\\[\\]]{0,60}") {
            if let Ok(element) = Element::parse(&text) {
                let again = Element::parse(&element.to_xml().unwrap()).unwrap();
                prop_assert_eq!(again.name, element.name);
            }
        }
    }
}
