//! The only module that touches `rustic_core`: making repositories and opening keys.
//!
//! `rustic_core` is pinned; everything on the hot path is written here in this crate. Numbers of
//! a key file are checked before they reach it, because scrypt takes as much memory as they say.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::repofile::{KeyFile, MasterKey};
use rustic_core::{
    BytesList, ConfigOptions, Credentials, ErrorKind, FileType, Id as RusticId, KeyOptions,
    ReadBackend, RepositoryBackends, RepositoryOptions, RusticError, RusticResult, WriteBackend,
};
use zeroize::Zeroizing;

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::password::Password;
use crate::store::{FileName, Kind, Store};

/// Most memory scrypt may be told to take: 1 GiB. restic's own keys take 32 to 64 MiB.
const MAX_SCRYPT_BYTES: u64 = 1 << 30;
/// Most scrypt lanes one key may ask for.
const MAX_SCRYPT_LANES: u32 = 64;

/// scrypt's N, r and p for passwords that are random: 16 MiB and some hundredths of a second.
const LIGHT_SCRYPT: (u32, u32, u32) = (1 << 14, 8, 1);

/// A repository that was just made.
pub(crate) struct Made {
    /// Its keys.
    pub(crate) sealer: Sealer,
    /// Its id.
    pub(crate) id: Id,
    /// Id of its one key file.
    pub(crate) key_file: Id,
}

/// Writes the first key and the configuration of a new repository.
pub(crate) fn init(store: Arc<dyn Store>, password: &Password) -> Result<Made> {
    let failure = Arc::new(Mutex::new(None));
    let backend = Backend {
        store: Arc::clone(&store),
        failure: Arc::clone(&failure),
    };
    let backends = RepositoryBackends::new(Arc::new(backend), None);
    let options = RepositoryOptions::default().no_cache(true);
    let keys = KeyOptions::default()
        .hostname(crate::host::hostname())
        .with_created(true);
    let made = rustic_core::Repository::new(&options, &backends).and_then(|repository| {
        let credentials = Credentials::password(password.reveal());
        repository.init(&credentials, &keys, &ConfigOptions::default())
    });
    let error = match made {
        Ok(repository) => {
            let master = repository.key();
            let parse = |id: rustic_core::HexId| id.as_str().parse().unwrap_or_default();
            let made = Made {
                sealer: master_sealer(&FileName::CONFIG, &master)?,
                id: parse(repository.config().id.to_hex()),
                key_file: parse(repository.key_id().unwrap_or_default().to_hex()),
            };
            return match password.is_random() {
                true => replace_key(&*store, &master, password, made),
                false => Ok(made),
            };
        }
        Err(error) => error,
    };
    // The store's own answer says more than the wrapped one.
    let first = failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    Err(first.unwrap_or_else(|| Error::store("make", "repository", io::Error::other(error))))
}

/// Puts a key file with light costs in the place of the one just made.
fn replace_key(
    store: &dyn Store,
    master: &MasterKey,
    password: &Password,
    made: Made,
) -> Result<Made> {
    let old = FileName::new(Kind::Key, made.key_file);
    let failed = |source| Error::System {
        what: "the making of a key",
        source,
    };
    let cannot = |e: &dyn fmt::Display| failed(io::Error::other(e.to_string()));
    let text = store.read_full(&old, MAX_READ_BYTES);
    let text = text.map_err(|e| Error::store("read", old, e))?;
    let mut key: KeyFile = serde_json::from_slice(&text).map_err(|e| Error::damaged(old, e))?;
    aws_lc_rs::rand::fill(&mut key.salt).map_err(|e| cannot(&e))?;
    (key.n, key.r, key.p) = LIGHT_SCRYPT;
    let derived = key.kdf_key(&password.reveal()).map_err(|e| cannot(&e))?;
    let (encrypt, k, r) = derived.to_keys();
    let plain = Zeroizing::new(serde_json::to_vec(master).map_err(|e| cannot(&e))?);
    key.data = sealer(&FileName::CONFIG, &encrypt, &k, &r)?
        .seal(&plain)
        .map_err(|e| cannot(&e))?;
    let text = serde_json::to_vec(&key).map_err(|e| cannot(&e))?;
    let name = FileName::new(Kind::Key, Id::of(&text));
    let written = store.write(&name, &text);
    written.map_err(|e| Error::store("write", name, e))?;
    let removed = store.remove(&old);
    removed.map_err(|e| Error::store("remove", old, e))?;
    Ok(Made {
        key_file: name.id,
        ..made
    })
}

/// What one key file gives for a password.
pub(crate) enum Opened {
    /// The password fits; these are the keys of the repository.
    Key(Box<Sealer>),
    /// The password does not fit this key.
    WrongPassword,
}

/// Tries a password on the text of one key file.
pub(crate) fn open_key(file: &FileName, data: &[u8], password: &Password) -> Result<Opened> {
    let key: KeyFile = serde_json::from_slice(data).map_err(|e| Error::damaged(file, e))?;
    check_scrypt(file, &key)?;
    let derived = key
        .kdf_key(&password.reveal())
        .map_err(|_| Error::damaged(file, "its scrypt parameters are invalid"))?;
    let (encrypt, k, r) = derived.to_keys();
    let mut sealed = key.data;
    let Ok(plain) = sealer(file, &encrypt, &k, &r)?
        .open_in_place(&mut sealed)
        .map(<[u8]>::to_vec)
    else {
        return Ok(Opened::WrongPassword);
    };
    let master: MasterKey = serde_json::from_slice(&plain).map_err(|e| Error::damaged(file, e))?;
    Ok(Opened::Key(Box::new(master_sealer(file, &master)?)))
}

fn check_scrypt(file: &FileName, key: &KeyFile) -> Result<()> {
    if key.kdf != "scrypt" {
        return Err(Error::Unsupported {
            what: format!("{file} derives its key by {:?}", key.kdf),
        });
    }
    let memory = u64::from(key.n)
        .saturating_mul(u64::from(key.r))
        .saturating_mul(128);
    let bounded = key.n.is_power_of_two()
        && key.n > 1
        && key.r > 0
        && memory <= MAX_SCRYPT_BYTES
        && (1..=MAX_SCRYPT_LANES).contains(&key.p);
    if bounded {
        Ok(())
    } else {
        Err(Error::damaged(
            file,
            "its scrypt parameters are out of bounds",
        ))
    }
}

fn master_sealer(file: &FileName, key: &MasterKey) -> Result<Sealer> {
    sealer(file, &key.encrypt, &key.mac.k, &key.mac.r)
}

fn sealer(file: &FileName, encrypt: &[u8], k: &[u8], r: &[u8]) -> Result<Sealer> {
    let wrong = |_| Error::damaged(file, "a key has the wrong length");
    let encrypt = encrypt.try_into().map_err(wrong)?;
    let (k, r) = (k.try_into().map_err(wrong)?, r.try_into().map_err(wrong)?);
    Sealer::new(encrypt, k, r).map_err(|e| Error::damaged(file, e))
}

/// Our store as `rustic_core` wants to see it.
struct Backend {
    store: Arc<dyn Store>,
    failure: Arc<Mutex<Option<Error>>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.store.location())
    }
}

/// Longest file that making a repository reads back.
const MAX_READ_BYTES: u64 = 1 << 20;

impl Backend {
    fn fail(&self, action: &'static str, what: String, source: io::Error) -> Box<RusticError> {
        let text = format!("cannot {action} {what}: {source}");
        let error = match source.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists {
                location: self.store.location(),
            },
            _ => Error::store(action, what, source),
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        RusticError::new(ErrorKind::Backend, text)
    }
}

fn name(tpe: FileType, id: &RusticId) -> FileName {
    let kind = match tpe {
        FileType::Config => return FileName::CONFIG,
        FileType::Index => Kind::Index,
        FileType::Key => Kind::Key,
        FileType::Snapshot => Kind::Snapshot,
        FileType::Pack => Kind::Pack,
    };
    let id = id.to_hex().as_str().parse().unwrap_or_default();
    FileName::new(kind, id)
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.store.location()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(RusticId, u32)>> {
        let kind = name(tpe, &RusticId::default()).kind;
        let files = self
            .store
            .list(kind)
            .map_err(|e| self.fail("list", kind.folder().to_owned(), e))?;
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let id = |id: Id| RusticId::new(*id.as_bytes());
        Ok(files
            .into_iter()
            .map(|f| (id(f.id), size(f.size_bytes)))
            .collect())
    }

    fn read_full(&self, tpe: FileType, id: &RusticId) -> RusticResult<Bytes> {
        let file = name(tpe, id);
        self.store
            .read_full(&file, MAX_READ_BYTES)
            .map(Into::into)
            .map_err(|e| self.fail("read", file.to_string(), e))
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &RusticId,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let file = name(tpe, id);
        let mut buf = vec![0; length as usize];
        self.store
            .read_range(&file, u64::from(offset), &mut buf)
            .map_err(|e| self.fail("read", file.to_string(), e))?;
        Ok(buf.into())
    }

    fn warmup_path(&self, tpe: FileType, id: &RusticId) -> String {
        name(tpe, id).path()
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        let location = self.store.location();
        self.store
            .create()
            .map_err(|e| self.fail("make", location, e))
    }

    fn write_bytes(
        &self,
        tpe: FileType,
        id: &RusticId,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let file = name(tpe, id);
        let data = content.into_vec().concat();
        self.store
            .write(&file, &data)
            .map_err(|e| self.fail("write", file.to_string(), e))
    }

    fn remove(&self, tpe: FileType, id: &RusticId, _cacheable: bool) -> RusticResult<()> {
        let file = name(tpe, id);
        self.store
            .remove(&file)
            .map_err(|e| self.fail("remove", file.to_string(), e))
    }
}
