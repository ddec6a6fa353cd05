//! A repository in a bucket of an S3 service: AWS, Garage, MinIO, Ceph and others.
//!
//! Objects have the names that restic gives them. Each is written by one PUT, which S3 makes
//! visible as a whole or not at all, so nothing has to be tidied up: multipart uploads, which
//! stay behind when they are cut off, are never begun. The service compares what it got with
//! `Content-MD5` (the one checksum that all services know) before it stores it; whoever reads
//! compares SHA-256.
//!
//! The configuration is written with `If-None-Match: *`, after a look whether it is there. A
//! service that does not know that header has the look alone.
//!
//! In a bucket with object lock each object but locks can be written so that nobody removes it for a
//! time, and what is removed or written over all the same is a version that can be shown
//! ([`StoreOptions`], `versions.rs`).

mod client;
mod failure;
mod files;
mod place;
mod settings;
mod versions;

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use rusty_s3::S3Action;
use rusty_s3::actions::{GetObject, ListObjectsV2, ListObjectsV2Response, PutObject};
use ureq::http::header::CONTENT_RANGE;
use ureq::http::{Response, StatusCode};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{FileName, Kind, Store, StoreOptions, StoredFile};
use crate::id::Id;
use client::Client;
use failure::Failure;
use settings::{Settings, environment};
use versions::Past;

pub use client::Patience;
pub use files::S3Files;
pub(crate) use place::S3Place;

/// Longest page of a listing, bytes; 1000 entries take less than 1 MiB.
const MAX_PAGE_BYTES: u64 = 16 << 20;
/// Most pages of a listing: 16 million objects.
const MAX_PAGES: usize = 16_000;

/// Nobody can end such a lock before its time, not the owner of the bucket either.
const LOCK_MODE: &str = "COMPLIANCE";

/// Objects in a bucket, laid out as restic does.
pub struct S3Store {
    client: Arc<Client>,
    place: S3Place,
    retain: Option<Duration>,
    as_of: Option<OffsetDateTime>,
    /// Keys of what was there then, with their versions and sizes, by kind.
    past: Mutex<HashMap<Kind, Arc<Objects>>>,
}

/// The version and the bytes of each object, by key.
type Objects = HashMap<String, (String, u64)>;

impl S3Store {
    /// Finds keys and endpoint; the service is not asked yet.
    ///
    /// # Errors
    /// When there are no keys, or the settings make no sense; the text says which.
    pub(crate) fn new(place: &S3Place, options: &StoreOptions) -> io::Result<Self> {
        let settings = match &options.environment {
            None => Settings::find(place, &environment)?,
            Some(given) => Settings::find(place, &|name| given.get(name).cloned())?,
        };
        Ok(Self {
            client: Client::new(settings, options.patience, options.cancel.clone()),
            place: place.clone(),
            retain: options.retain,
            as_of: options.as_of,
            past: Mutex::default(),
        })
    }

    fn key(&self, path: &str) -> String {
        match self.place.prefix.as_str() {
            "" => path.to_owned(),
            prefix => format!("{prefix}/{path}"),
        }
    }

    fn get<'a>(&'a self, key: &'a str, version: Option<&'a str>) -> GetObject<'a> {
        let client = &self.client;
        let mut action = GetObject::new(&client.bucket, Some(&client.credentials), key);
        if let Some(version) = version {
            action.query_mut().insert("versionId", version);
        }
        action
    }

    /// The version to read, where a time is shown.
    fn version(&self, file: &FileName, key: &str) -> io::Result<Option<String>> {
        let Some(time) = self.as_of else {
            return Ok(None);
        };
        let past = self.objects_of(file.kind, time)?;
        let found = past.get(key).map(|(version, _)| version.clone());
        found
            .map(Some)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What there was of a kind at a time; asked once.
    fn objects_of(&self, kind: Kind, time: OffsetDateTime) -> io::Result<Arc<Objects>> {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = past.get(&kind) {
            return Ok(Arc::clone(known));
        }
        let found = self.list_past(&self.prefix(kind), time);
        let found = Arc::new(found.map_err(Failure::into_io)?);
        past.insert(kind, Arc::clone(&found));
        Ok(found)
    }

    fn list_past(&self, prefix: &str, time: OffsetDateTime) -> Result<Objects, Failure> {
        let mut past = Past::default();
        let mut next: Option<(String, String)> = None;
        for _ in 0..MAX_PAGES {
            let page = self.versions_page(prefix, next.as_ref())?;
            for version in page.versions {
                past.see(version, time);
            }
            if page.next.is_none() {
                let objects = past.objects();
                let named = objects.map(|(key, id, size)| (key.to_owned(), (id.to_owned(), size)));
                return Ok(named.collect());
            }
            if page.next == next {
                break;
            }
            next = page.next;
        }
        Err(endless())
    }

    fn versions_page(
        &self,
        prefix: &str,
        from: Option<&(String, String)>,
    ) -> Result<versions::Page, Failure> {
        let client = &self.client;
        client.persist(&format!("list versions of {prefix}"), || {
            // The URL of no object is the bucket's.
            let mut action = self.get("", None);
            let query = action.query_mut();
            query.insert("versions", "");
            query.insert("encoding-type", "url");
            query.insert("prefix", prefix);
            if let Some((key, version)) = from {
                query.insert("key-marker", key.as_str());
                if !version.is_empty() {
                    query.insert("version-id-marker", version.as_str());
                }
            }
            let answer = client.send(action, &[], &[], 0)?;
            let page = client.read_body(answer, MAX_PAGE_BYTES)?;
            let text = std::str::from_utf8(&page);
            versions::parse(text.map_err(|_| Failure::wrong_answer("the listing is not UTF-8"))?)
        })
    }

    /// What all keys of a kind begin with.
    fn prefix(&self, kind: Kind) -> String {
        match kind {
            Kind::Config => self.key("config"),
            _ => self.key(&format!("{}/", kind.folder())),
        }
    }

    /// Where a time is shown nothing is written: `Some` says what becomes of an attempt.
    fn unchanged(&self, file: &FileName) -> Option<io::Result<()>> {
        self.as_of?;
        Some(match file.kind {
            // Nothing changes there, so nobody has to be kept out.
            Kind::Lock => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "the repository is shown as it was at a time: nothing can be written",
            )),
        })
    }

    /// Until when an object of this kind that is written now is locked.
    fn retained_until(&self, kind: Kind) -> Option<String> {
        let retain = self.retain.filter(|_| kind != Kind::Lock)?;
        let until = OffsetDateTime::now_utc() + retain;
        let until = until.replace_nanosecond(0).unwrap_or(until);
        until.format(&Rfc3339).ok()
    }

    /// Writes an object; with `only_new`, `AlreadyExists` where there is one.
    fn put(&self, file: &FileName, data: &[u8], only_new: bool) -> io::Result<()> {
        let key = self.key(&file.path());
        let digest = BASE64.encode(Md5::digest(data));
        let until = self.retained_until(file.kind);
        let client = &self.client;
        let sent = client.persist(&format!("write {file}"), || {
            let mut action = PutObject::new(&client.bucket, Some(&client.credentials), &key);
            action.headers_mut().insert("content-md5", &*digest);
            if let Some(until) = &until {
                let headers = action.headers_mut();
                headers.insert("x-amz-object-lock-mode", LOCK_MODE);
                headers.insert("x-amz-object-lock-retain-until-date", until.as_str());
            }
            if only_new {
                action.headers_mut().insert("if-none-match", "*");
            }
            client.send_only(action, data)
        });
        sent.map_err(Failure::into_io)
    }

    /// Writes the configuration where there is none.
    fn put_new(&self, file: &FileName, data: &[u8]) -> io::Result<()> {
        if !self.list(file.kind)?.is_empty() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        match self.put(file, data, true) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.put(file, data, false),
            // Ours, if the answer to an attempt before was lost: no two are the same.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match self.read_full(file, data.len() as u64) {
                    Ok(there) if there == data => Ok(()),
                    _ => Err(error),
                }
            }
            other => other,
        }
    }

    fn page(&self, prefix: &str, token: Option<&str>) -> Result<ListObjectsV2Response, Failure> {
        let client = &self.client;
        client.persist(&format!("list {prefix}"), || {
            let mut action = ListObjectsV2::new(&client.bucket, Some(&client.credentials));
            action.with_prefix(prefix);
            if let Some(token) = token {
                action.with_continuation_token(token);
            }
            let answer = client.send(action, &[], &[], 0)?;
            let page = client.read_body(answer, MAX_PAGE_BYTES)?;
            parse_page(&page)
        })
    }

    /// Calls `found` with each object whose key begins so.
    fn list_keys(&self, prefix: &str, mut found: impl FnMut(&str, u64)) -> Result<(), Failure> {
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.page(prefix, token.as_deref())?;
            for object in page.contents {
                let size = object.size.ok_or_else(|| {
                    Failure::lasting(io::ErrorKind::InvalidData, "a listing without sizes")
                })?;
                found(&object.key, size);
            }
            match page.next_continuation_token {
                None => return Ok(()),
                next if next == token => break,
                next => token = next,
            }
        }
        Err(endless())
    }

    fn create_bucket(&self) -> Result<(), Failure> {
        let client = &self.client;
        let made = client.persist("make the bucket", || {
            let action = client.bucket.create_bucket(&client.credentials);
            let body = action.body();
            client.send_only(action, body.as_bytes())
        });
        match made {
            Err(failure) if failure.code == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(failure) => Err(Failure::lasting(
                failure.kind(),
                format!(
                    "there is no bucket {:?}, and it cannot be made: {}",
                    self.place.bucket,
                    failure.text()
                ),
            )),
            other => other,
        }
    }
}

fn endless() -> Failure {
    Failure::lasting(io::ErrorKind::InvalidData, "the listing has no end")
}

/// Parses a page. The end of a page that was cut off, and an error, are no page.
fn parse_page(page: &[u8]) -> Result<ListObjectsV2Response, Failure> {
    let text =
        std::str::from_utf8(page).map_err(|_| Failure::wrong_answer("the listing is not UTF-8"))?;
    if failure::is_error_document(text) {
        return Err(Failure::of_document(text));
    }
    if !text.trim_end().ends_with("</ListBucketResult>") {
        return Err(Failure::wrong_answer("the answer is no whole listing"));
    }
    ListObjectsV2::parse_response(text)
        .map_err(|e| Failure::wrong_answer(format!("the listing is not valid: {e}")))
}

/// Fills `buf` from an answer to a request for a range.
fn read_part(
    answer: Response<ureq::Body>,
    offset_bytes: u64,
    buf: &mut [u8],
) -> Result<(), Failure> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        let text = "the service does not give parts of objects, but whole ones";
        return Err(Failure::lasting(io::ErrorKind::Unsupported, text));
    }
    let range = answer.headers().get(CONTENT_RANGE);
    let (start, total) = range
        .and_then(|range| parse_range(range.to_str().ok()?))
        .ok_or_else(|| Failure::wrong_answer("the answer does not say which part it is"))?;
    if start != offset_bytes {
        return Err(Failure::wrong_answer("the answer is another part"));
    }
    let end = offset_bytes + buf.len() as u64;
    if total.is_some_and(|total| total < end) {
        let text = format!("the object ends before byte {end}");
        return Err(Failure::lasting(io::ErrorKind::UnexpectedEof, text));
    }
    let mut reader = answer.into_body().into_reader();
    reader.read_exact(buf).map_err(|e| Failure::broken(&e))?;
    // Reading to the end lets the connection be used again.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(()),
        _ => Err(Failure::wrong_answer("the answer is longer than the part")),
    }
}

/// First byte and length of the object of `bytes 0-9/100`; `*` is an unknown length.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start.parse().ok()?, total))
}

/// The object of a path below the prefix, if it is where it belongs.
fn stored_file(kind: Kind, path: &str, size_bytes: u64) -> Option<StoredFile> {
    let id = match kind {
        Kind::Config => FileName::CONFIG.id,
        _ => path.rsplit('/').next()?.parse::<Id>().ok()?,
    };
    (FileName::new(kind, id).path() == path).then_some(StoredFile { id, size_bytes })
}

impl Store for S3Store {
    fn location(&self) -> String {
        let named = S3Place {
            endpoint: Some(self.client.endpoint.clone()),
            ..self.place.clone()
        };
        match self.place.endpoint {
            Some(_) => named.to_string(),
            None => format!("{} at {}", self.place, self.client.endpoint),
        }
    }

    /// Makes the bucket where it is missing.
    fn create(&self) -> io::Result<()> {
        match self.page(&self.key(Kind::Config.folder()), None) {
            Ok(_) => Ok(()),
            Err(failure) if failure.code == "NoSuchBucket" => {
                self.create_bucket().map_err(Failure::into_io)
            }
            Err(failure) => Err(failure.into_io()),
        }
    }

    /// A missing bucket is an empty list.
    fn list(&self, kind: Kind) -> io::Result<Vec<StoredFile>> {
        let base = self.key("");
        let prefix = self.prefix(kind);
        let mut files = Vec::new();
        if let Some(time) = self.as_of {
            if kind == Kind::Lock {
                return Ok(files);
            }
            for (key, (_, size_bytes)) in self.objects_of(kind, time)?.iter() {
                let path = key.strip_prefix(&base);
                files.extend(path.and_then(|path| stored_file(kind, path, *size_bytes)));
            }
            return Ok(files);
        }
        let listed = self.list_keys(&prefix, |key, size_bytes| {
            let path = key.strip_prefix(&base);
            files.extend(path.and_then(|path| stored_file(kind, path, size_bytes)));
        });
        match listed {
            Err(failure) if failure.code == "NoSuchBucket" => Ok(Vec::new()),
            Err(failure) => Err(failure.into_io()),
            Ok(()) => Ok(files),
        }
    }

    fn read_full(&self, file: &FileName, max_bytes: u64) -> io::Result<Vec<u8>> {
        let key = self.key(&file.path());
        let version = self.version(file, &key)?;
        let mut damaged = false;
        let read = self.client.persist(&format!("read {file}"), || {
            let answer =
                self.client
                    .send(self.get(&key, version.as_deref()), &[], &[], max_bytes)?;
            let data = self.client.read_body(answer, max_bytes)?;
            // Damaged on the way? A second look tells; if not, it is for the caller to say.
            if file.kind != Kind::Config && !damaged && Id::of(&data) != file.id {
                damaged = true;
                return Err(Failure::wrong_answer(
                    "the content is not what it is named by",
                ));
            }
            Ok(data)
        });
        read.map_err(Failure::into_io)
    }

    fn read_range(&self, file: &FileName, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(last) = (buf.len() as u64).checked_sub(1) else {
            return Ok(());
        };
        let key = self.key(&file.path());
        let version = self.version(file, &key)?;
        let last = offset_bytes
            .checked_add(last)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let range = format!("bytes={offset_bytes}-{last}");
        let read = self.client.persist(&format!("read {file}"), || {
            let headers = [("range", range.as_str())];
            let length = buf.len() as u64;
            let get = self.get(&key, version.as_deref());
            let answer = self.client.send(get, &headers, &[], length)?;
            read_part(answer, offset_bytes, buf)
        });
        read.map_err(Failure::into_io)
    }

    fn write(&self, file: &FileName, data: &[u8]) -> io::Result<()> {
        if let Some(refused) = self.unchanged(file) {
            return refused;
        }
        match file.kind {
            Kind::Config => self.put_new(file, data),
            _ => self.put(file, data, false),
        }
    }

    fn retain(&self, file: &FileName) -> io::Result<()> {
        let until = self.retained_until(file.kind);
        let until = until.ok_or(io::ErrorKind::Unsupported)?;
        let key = self.key(&file.path());
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{LOCK_MODE}</Mode>\
             <RetainUntilDate>{until}</RetainUntilDate></Retention>"
        );
        let digest = BASE64.encode(Md5::digest(body.as_bytes()));
        let client = &self.client;
        let done = client.persist(&format!("lock {file}"), || {
            let mut action = PutObject::new(&client.bucket, Some(&client.credentials), &key);
            action.query_mut().insert("retention", "");
            action.headers_mut().insert("content-md5", &*digest);
            client.send_only(action, body.as_bytes())
        });
        done.map_err(Failure::into_io)
    }

    fn remove(&self, file: &FileName) -> io::Result<()> {
        if let Some(refused) = self.unchanged(file) {
            return refused;
        }
        let key = self.key(&file.path());
        let client = &self.client;
        let removed = client.persist(&format!("remove {file}"), || {
            let action = client.bucket.delete_object(Some(&client.credentials), &key);
            client.send_only(action, &[])
        });
        match removed {
            Err(failure) if failure.code == "NoSuchKey" => Ok(()),
            other => other.map_err(Failure::into_io),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["", "bytes */10", "bytes 5/10", "5-9/10", "bytes -1-9/10"] {
            assert_eq!(parse_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_what_is_where_it_belongs_is_listed() {
        let id = Id::of(b"x");
        let right = FileName::new(Kind::Pack, id).path();
        assert!(stored_file(Kind::Pack, &right, 1).is_some());
        for wrong in [
            format!("data/{id}"),
            format!("data/zz/{id}"),
            "data/".into(),
        ] {
            assert!(stored_file(Kind::Pack, &wrong, 1).is_none(), "{wrong}");
        }
        assert!(stored_file(Kind::Config, "config", 1).is_some());
        assert!(stored_file(Kind::Config, "config2", 1).is_none());
    }

    const PAGE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult \
        xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>vms</Name><KeyCount>1</KeyCount>\
        <MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>a%2Fb</Key>\
        <Size>5</Size></Contents><EncodingType>url</EncodingType></ListBucketResult>";

    #[test]
    fn pages() {
        let page = parse_page(PAGE.as_bytes()).unwrap();
        assert_eq!(
            (&*page.contents[0].key, page.contents[0].size),
            ("a/b", Some(5))
        );
        // No beginning of a page is a shorter page.
        for length in 0..PAGE.len() {
            assert!(parse_page(&PAGE.as_bytes()[..length]).is_err(), "{length}");
        }
        let truncated = PAGE.replace("false", "true");
        assert!(parse_page(truncated.as_bytes()).is_err());
        assert!(parse_page(b"<Error><Code>X</Code></Error>").is_err());
    }

    proptest! {
        #[test]
        fn no_page_panics(text in ".{0,200}", at in 0..PAGE.len()) {
            let _ = parse_page(text.as_bytes());
            let mut page = PAGE.to_owned();
            page.insert_str(at, &text);
            let _ = parse_page(page.as_bytes());
            let _ = parse_range(&text);
        }
    }
}
