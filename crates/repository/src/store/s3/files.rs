//! Plain files in a bucket, beside what repositories keep there: by their names, whole, in one request.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use rusty_s3::S3Action;
use rusty_s3::actions::PutObject;

use super::failure::Failure;
use super::{S3Place, S3Store, StoreOptions};

/// Files whose names begin with a prefix of a bucket. No folders: a name has no `/`.
pub struct S3Files {
    store: S3Store,
}

impl S3Files {
    /// Whether a text means a place in S3.
    #[must_use]
    pub fn claims(text: &str) -> bool {
        S3Place::claims(text)
    }

    /// Finds keys and endpoint for `s3://bucket/prefix` or `s3:https://host/bucket/prefix`; the service is
    /// not asked yet.
    ///
    /// # Errors
    /// When it is no such place, or there are no keys; the text says which.
    pub fn open(text: &str, options: &StoreOptions) -> io::Result<Self> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        let place = S3Place::parse(text).map_err(invalid)?;
        let store = S3Store::new(&place, options)?;
        Ok(Self { store })
    }

    /// The place as users write it.
    #[must_use]
    pub fn place(&self) -> String {
        self.store.place.to_string()
    }

    /// Names and bytes of the files.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let base = self.store.key("");
        let mut files = Vec::new();
        let listed = self.store.list_keys(&base, |key, size_bytes| {
            let name = key.strip_prefix(&base).filter(|name| is_name(name));
            files.extend(name.map(|name| (name.to_owned(), size_bytes)));
        });
        listed.map_err(Failure::into_io)?;
        Ok(files)
    }

    /// Reads a file of at most `max_bytes`.
    ///
    /// # Errors
    /// `NotFound`; `FileTooLarge`; any other failure.
    pub fn read(&self, name: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        let key = self.key(name)?;
        let client = &self.store.client;
        let read = client.persist(&format!("read {name}"), || {
            let answer = client.send(self.store.get(&key, None), &[], &[], max_bytes)?;
            client.read_body(answer, max_bytes)
        });
        read.map_err(Failure::into_io)
    }

    /// Writes a file by one PUT: after `Ok` it is there whole, and not at all or whole after an error.
    ///
    /// # Errors
    /// When it is not known to be there.
    pub fn write(&self, name: &str, data: &[u8]) -> io::Result<()> {
        let key = self.key(name)?;
        let digest = BASE64.encode(Md5::digest(data));
        let client = &self.store.client;
        let sent = client.persist(&format!("write {name}"), || {
            let mut action = PutObject::new(&client.bucket, Some(&client.credentials), &key);
            action.headers_mut().insert("content-md5", &*digest);
            client.send_only(action, data)
        });
        sent.map_err(Failure::into_io)
    }

    /// Removes a file; what is not there is fine.
    ///
    /// # Errors
    /// When it may still be there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let key = self.key(name)?;
        let client = &self.store.client;
        let removed = client.persist(&format!("remove {name}"), || {
            let action = client.bucket.delete_object(Some(&client.credentials), &key);
            client.send_only(action, &[])
        });
        match removed {
            Err(failure) if failure.code == "NoSuchKey" => Ok(()),
            other => other.map_err(Failure::into_io),
        }
    }

    fn key(&self, name: &str) -> io::Result<String> {
        match is_name(name) {
            true => Ok(self.store.key(name)),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "that is no name of a file",
            )),
        }
    }
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 200
        && !name.contains('/')
        && !name.chars().any(char::is_control)
}
