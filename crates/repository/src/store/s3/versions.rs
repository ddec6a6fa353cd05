//! Versions of objects, in a bucket that keeps them: what was there at a time, whatever has been
//! removed or written over since.

use std::collections::HashMap;
use std::io;

use quick_xml::Reader;
use quick_xml::events::Event;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::{Failure, is_error_document};

/// Longest text of an element, bytes: keys have at most 1024, thrice that where they are encoded.
const MAX_TEXT_BYTES: usize = 4096;

/// One version of an object, or the mark that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) at: OffsetDateTime,
    /// Bytes; none: removed.
    pub(super) size_bytes: Option<u64>,
}

/// A part of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) versions: Vec<Version>,
    /// Key and version where the next part begins.
    pub(super) next: Option<(String, String)>,
}

/// What there was at a time: the id of the version and its bytes, by key.
#[derive(Debug, Default)]
pub(super) struct Past {
    newest: HashMap<String, Version>,
}

impl Past {
    /// Looks at a version; of those up to `time` the newest one of a key counts.
    pub(super) fn see(&mut self, version: Version, time: OffsetDateTime) {
        if version.at > time {
            return;
        }
        let known = self.newest.get(&version.key);
        // Versions of one second come the newest first.
        if known.is_none_or(|known| known.at < version.at) {
            self.newest.insert(version.key.clone(), version);
        }
    }

    /// The objects that were there.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let there = |one: &Version| one.size_bytes.is_some();
        let all = self.newest.values().filter(move |one| there(one));
        all.map(|one| {
            (
                one.key.as_str(),
                one.id.as_str(),
                one.size_bytes.unwrap_or(0),
            )
        })
    }
}

/// Parses an answer to `ListObjectVersions`. The end of one that was cut off, and an error, are none.
pub(super) fn parse(text: &str) -> Result<Page, Failure> {
    if is_error_document(text) {
        return Err(Failure::of_document(text));
    }
    if !text.trim_end().ends_with("</ListVersionsResult>") {
        return Err(Failure::wrong_answer("the answer is no whole listing"));
    }
    let mut page = Page::default();
    let mut reader = Reader::from_str(text);
    let (mut path, mut content) = (Vec::<String>::new(), String::new());
    let mut fields: HashMap<String, String> = HashMap::new();
    let mut top: HashMap<String, String> = HashMap::new();
    loop {
        match reader.read_event().map_err(|e| invalid(&e.to_string()))? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                content.clear();
            }
            Event::Text(text) => content.push_str(&text.decode().map_err(|_| invalid("text"))?),
            Event::GeneralRef(name) => content.push(referred(&name)?),
            Event::End(_) => {
                let name = path.pop().ok_or_else(|| invalid("an end"))?;
                let text = std::mem::take(&mut content);
                match (path.len(), name.as_str()) {
                    (1, "Version" | "DeleteMarker") => {
                        let removed = name == "DeleteMarker";
                        page.versions
                            .push(version(&std::mem::take(&mut fields), removed)?);
                    }
                    (1, _) => drop(top.insert(name, text)),
                    (2, _) => drop(fields.insert(name, text)),
                    _ => {}
                }
            }
            Event::Eof => break,
            _ => {}
        }
        if content.len() > MAX_TEXT_BYTES {
            return Err(invalid("a text is too long"));
        }
    }
    if top.get("IsTruncated").is_some_and(|text| text == "true") {
        let key = top
            .get("NextKeyMarker")
            .ok_or_else(|| invalid("no next key"))?;
        let version = top.get("NextVersionIdMarker").cloned().unwrap_or_default();
        page.next = Some((decoded(key)?, version));
    }
    Ok(page)
}

fn version(fields: &HashMap<String, String>, removed: bool) -> Result<Version, Failure> {
    let field = |name: &str| {
        let found = fields.get(name).map(String::as_str);
        found.ok_or_else(|| invalid(&format!("a version without {name}")))
    };
    let size_bytes = match removed {
        true => None,
        false => Some(field("Size")?.parse().map_err(|_| invalid("a size"))?),
    };
    let at = OffsetDateTime::parse(field("LastModified")?, &Rfc3339);
    Ok(Version {
        key: decoded(field("Key")?)?,
        id: field("VersionId")?.to_owned(),
        at: at.map_err(|_| invalid("a time"))?,
        size_bytes,
    })
}

/// A key as `encoding-type=url` gives it.
fn decoded(text: &str) -> Result<String, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next(), rest.next()].map(Option::unwrap_or_default);
                let digits = std::str::from_utf8(&digits).map_err(|_| invalid("a key"))?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| invalid("a key"))?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("a key"))
}

/// The characters that XML knows by name, and those by number; there are no others.
fn referred(name: &quick_xml::events::BytesRef<'_>) -> Result<char, Failure> {
    if let Ok(Some(found)) = name.resolve_char_ref() {
        return Ok(found);
    }
    let name: &[u8] = name;
    match name {
        b"amp" => Ok('&'),
        b"lt" => Ok('<'),
        b"gt" => Ok('>'),
        b"quot" => Ok('"'),
        b"apos" => Ok('\''),
        _ => Err(invalid("an entity")),
    }
}

fn invalid(what: &str) -> Failure {
    Failure::lasting(
        io::ErrorKind::InvalidData,
        format!("the listing of versions is not valid: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const PAGE: &str = "<?xml version=\"1.0\"?><ListVersionsResult xmlns=\"x\"><Name>b</Name>\
        <KeyMarker></KeyMarker><IsTruncated>true</IsTruncated><NextKeyMarker>a%2Fc</NextKeyMarker>\
        <NextVersionIdMarker>v9</NextVersionIdMarker>\
        <DeleteMarker><Key>a%2Fb</Key><VersionId>v3</VersionId><IsLatest>true</IsLatest>\
        <LastModified>2026-01-03T00:00:00.000Z</LastModified><Owner><ID>o</ID></Owner></DeleteMarker>\
        <Version><Key>a%2Fb</Key><VersionId>v2&amp;</VersionId><Size>7</Size>\
        <LastModified>2026-01-02T00:00:00.000Z</LastModified></Version>\
        <Version><Key>a%2Fb</Key><VersionId>v1</VersionId><Size>5</Size>\
        <LastModified>2026-01-01T00:00:00.000Z</LastModified></Version></ListVersionsResult>";

    fn past(time: OffsetDateTime) -> Vec<(String, String, u64)> {
        let mut past = Past::default();
        for version in parse(PAGE).unwrap().versions {
            past.see(version, time);
        }
        let objects = past.objects();
        objects
            .map(|(k, v, s)| (k.to_owned(), v.to_owned(), s))
            .collect()
    }

    #[test]
    fn what_was_there_at_a_time() {
        let page = parse(PAGE).unwrap();
        assert_eq!(page.next, Some(("a/c".into(), "v9".into())));
        let object = |id: &str, size| vec![("a/b".to_owned(), id.to_owned(), size)];
        assert_eq!(past(datetime!(2025-12-31 0:00 UTC)), []);
        assert_eq!(past(datetime!(2026-01-01 0:00 UTC)), object("v1", 5));
        assert_eq!(past(datetime!(2026-01-02 9:00 UTC)), object("v2&", 7));
        assert_eq!(past(datetime!(2026-01-03 0:00 UTC)), []);
    }

    #[test]
    fn no_part_of_a_page_is_a_page() {
        for length in 0..PAGE.len() {
            assert!(parse(&PAGE[..length]).is_err(), "{length}");
        }
        assert!(parse("<Error><Code>X</Code></Error>").is_err());
        assert!(parse(&PAGE.replace("&amp;", "&x;")).is_err());
    }

    proptest! {
        #[test]
        fn no_page_panics(text in ".{0,100}", at in 0..PAGE.len()) {
            let _ = parse(&text);
            let mut page = PAGE.to_owned();
            page.insert_str(at, &text);
            let _ = parse(&page);
        }
    }
}
