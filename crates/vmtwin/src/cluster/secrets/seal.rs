//! Sealing and opening, in the format of age (<https://age-encryption.org/v1>), so that `age` opens what
//! is sealed here without this program. Keys are age's X25519 ones.
//!
//! A passphrase never leaves the host that it was given on: a key is made for each backup, secrets are
//! sealed for it like for any other, and the passphrase seals the key (`secrets.age`).

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor, scrypt};
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use vmtwin_cluster::manifest::{self, Node};
use vmtwin_cluster::{Archive, EntryPath, NodeSecrets, Parts};
use zeroize::Zeroizing;

use super::super::cli::{ClusterBackupArgs, OpenArgs};
use crate::home::{Home, write_new_private};

/// What scrypt costs for a new backup, as `age` itself has it: 2^18 rounds, 256 MiB.
const WORK: u8 = 18;
/// The most that opening may cost: 1 GiB.
const MAX_WORK: u8 = 20;
/// Shortest passphrase, characters.
const MIN_PASSPHRASE: usize = 10;
/// Longest file of a passphrase or of keys, bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Whom secrets are sealed for: public keys, `age1…,age1…`.
#[derive(Debug, Clone)]
pub(crate) struct Recipients(Vec<Recipient>);

impl FromStr for Recipients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |key: &str| {
            key.parse().map_err(|_| {
                format!("{key:?} is no public key of age; it begins with age1, and `vmtwin cluster secrets-key` makes one")
            })
        };
        let keys = text.split(',').map(str::trim);
        keys.map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(","))
    }
}

impl Recipients {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Seals for all of them: each can open it alone.
    pub(crate) fn seal(&self, secrets: &NodeSecrets) -> Result<Vec<u8>> {
        let all = self.0.iter().map(|one| one as &dyn age::Recipient);
        encrypt(all, &secrets.to_json()?)
    }
}

fn encrypt<'a>(
    recipients: impl Iterator<Item = &'a dyn age::Recipient>,
    text: &[u8],
) -> Result<Vec<u8>> {
    let mut sealed = Vec::new();
    let mut to = Encryptor::with_recipients(recipients)?.wrap_output(&mut sealed)?;
    to.write_all(text)?;
    to.finish()?;
    Ok(sealed)
}

/// Whom the secrets of one backup are sealed for.
pub(crate) struct Sealing {
    pub(crate) recipients: Recipients,
    /// The key of this backup, sealed with a passphrase.
    identity: Option<Vec<u8>>,
    /// Recipients that were given.
    named: Vec<String>,
}

impl Sealing {
    /// As a command says it; none if it did not ask for secrets.
    pub(crate) fn of(home: &Home, args: &ClusterBackupArgs) -> Result<Option<Sealing>> {
        if !args.with_secrets {
            return Ok(None);
        }
        let mut recipients = home
            .secrets_recipients()
            .map_or(Vec::new(), |all| all.0.clone());
        let named = recipients.iter().map(ToString::to_string).collect();
        let identity = match &args.secrets_passphrase_file {
            Some(file) => {
                let passphrase = passphrase(file)?;
                if passphrase.expose_secret().chars().count() < MIN_PASSPHRASE {
                    bail!(
                        "the passphrase in {} is too short: give {MIN_PASSPHRASE} characters or more",
                        file.display()
                    );
                }
                let identity = Identity::generate();
                recipients.push(identity.to_public());
                let mut by = scrypt::Recipient::new(passphrase);
                by.set_work_factor(WORK);
                let text = identity.to_string();
                let by = std::iter::once(&by as &dyn age::Recipient);
                Some(encrypt(by, text.expose_secret().as_bytes())?)
            }
            None => None,
        };
        if recipients.is_empty() {
            bail!(
                "for whom are the secrets to be sealed? Give --secrets-recipient age1… (vmtwin cluster \
                 secrets-key makes a key; the config file takes it as secrets_recipient), or \
                 --secrets-passphrase-file FILE"
            );
        }
        Ok(Some(Sealing {
            recipients: Recipients(recipients),
            identity,
            named,
        }))
    }

    /// What the manifest says of it; the key of the backup goes into it.
    pub(crate) fn finish(&self, parts: &mut Parts) -> Result<manifest::Sealed> {
        if let Some(identity) = &self.identity {
            parts.add(EntryPath::SecretsIdentity, &mut identity.as_slice())?;
        }
        Ok(manifest::Sealed {
            recipients: self.named.clone(),
            passphrase: self.identity.is_some(),
        })
    }
}

/// The first line of a file.
fn passphrase(file: &Path) -> Result<SecretString> {
    let text = read(file)?;
    let line = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('\r');
    match line.is_empty() {
        true => bail!("{} holds no passphrase", file.display()),
        false => Ok(SecretString::from(line.to_owned())),
    }
}

fn read(file: &Path) -> Result<Zeroizing<String>> {
    let cannot = || format!("cannot read {}", file.display());
    let mut text = Zeroizing::new(String::new());
    let from = std::fs::File::open(file).with_context(cannot)?;
    from.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    Ok(text)
}

/// Keys that open what is sealed.
pub(crate) struct Opening {
    identities: Vec<Identity>,
}

/// Secrets of a node that were opened, and for whom what they replace is sealed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Opened {
    pub(crate) secrets: NodeSecrets,
    /// Public keys.
    pub(crate) recipients: Vec<String>,
}

impl Opening {
    /// As a command says it; none where it gives no key.
    pub(crate) fn of(args: &OpenArgs, archive: &mut Archive) -> Result<Option<Opening>> {
        if args.secrets_identity.is_none() && args.secrets_passphrase_file.is_none() {
            return Ok(None);
        }
        let Some(sealed) = archive.manifest().sealed.clone() else {
            bail!("the backup holds no secrets: it was made without --with-secrets");
        };
        let mut identities = Vec::new();
        if let Some(file) = &args.secrets_identity {
            identities.extend(identities_of(file)?);
        }
        if let Some(file) = &args.secrets_passphrase_file {
            if !sealed.passphrase {
                bail!(
                    "the backup's secrets are sealed with no passphrase, but for {}: give \
                     --secrets-identity FILE",
                    sealed.recipients.join(", ")
                );
            }
            identities.push(identity_by(passphrase(file)?, archive)?);
        }
        Ok(Some(Opening { identities }))
    }

    /// The secrets of a node; none if the backup holds none of it.
    pub(crate) fn node(&self, archive: &mut Archive, node: &Node) -> Result<Option<Opened>> {
        if node.secrets.is_none() {
            return Ok(None);
        }
        let mut sealed = Vec::new();
        let entry = EntryPath::Secrets(node.name.clone());
        archive.reader(&entry)?.read_to_end(&mut sealed)?;
        let all = self.identities.iter().map(|one| one as &dyn age::Identity);
        let text = decrypt(all, &sealed, entry.max_bytes())
            .with_context(|| format!("cannot open the secrets of {}", node.name))?;
        let secrets = NodeSecrets::from_json(&text)?;
        if secrets.node != node.id {
            bail!("the secrets of {} are those of another node", node.name);
        }
        Ok(Some(Opened {
            secrets,
            recipients: self.recipients(),
        }))
    }

    /// Whoever holds these keys.
    fn recipients(&self) -> Vec<String> {
        let all = self.identities.iter();
        all.map(|one| one.to_public().to_string()).collect()
    }
}

/// The keys in a file as `age-keygen` writes it.
fn identities_of(file: &Path) -> Result<Vec<Identity>> {
    let text = read(file)?;
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut identities = Vec::new();
    for key in keys {
        // What is wrong with it is not told: it may be a key with one wrong letter.
        let identity = key.parse().map_err(|_| {
            anyhow!(
                "{} holds what is no key of age: each line begins with AGE-SECRET-KEY-1",
                file.display()
            )
        })?;
        identities.push(identity);
    }
    match identities.is_empty() {
        true => bail!("{} holds no key", file.display()),
        false => Ok(identities),
    }
}

/// The key of a backup, by its passphrase.
fn identity_by(passphrase: SecretString, archive: &mut Archive) -> Result<Identity> {
    let mut sealed = Vec::new();
    archive
        .reader(&EntryPath::SecretsIdentity)?
        .read_to_end(&mut sealed)?;
    let mut by = scrypt::Identity::new(passphrase);
    by.set_max_work_factor(MAX_WORK);
    let by = std::iter::once(&by as &dyn age::Identity);
    let text = decrypt(by, &sealed, MAX_FILE_BYTES).context("cannot open the backup's key")?;
    let text = std::str::from_utf8(&text).ok();
    let key = text.and_then(|text| text.trim().parse().ok());
    key.context("the backup's key is damaged")
}

fn decrypt<'a>(
    identities: impl Iterator<Item = &'a dyn age::Identity>,
    sealed: &[u8],
    max_bytes: u64,
) -> Result<Zeroizing<Vec<u8>>> {
    let opened = Decryptor::new_buffered(sealed).and_then(|it| it.decrypt(identities));
    let opened = opened.map_err(|error| match error {
        DecryptError::NoMatchingKeys => anyhow!("it is sealed for another key"),
        DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
            anyhow!("the key or the passphrase is another one, or it is damaged")
        }
        DecryptError::ExcessiveWork { .. } => {
            anyhow!("its passphrase would take more than 1 GiB of memory to try")
        }
        other => anyhow!("{other}"),
    })?;
    let mut text = Zeroizing::new(Vec::new());
    opened
        .take(max_bytes)
        .read_to_end(&mut text)
        .context("it is damaged")?;
    Ok(text)
}

/// Writes a new key to a file that is not there, for this user alone; the public one.
pub(crate) fn new_identity(file: &Path) -> Result<String> {
    let identity = Identity::generate();
    let public = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = Zeroizing::new(format!(
        "# public key: {public}\n{}\n",
        secret.expose_secret()
    ));
    write_new_private(file, text.as_bytes())?;
    Ok(public)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn open(identity: &Identity, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let by = std::iter::once(identity as &dyn age::Identity);
        decrypt(by, sealed, 1 << 20)
    }

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let (one, two, other) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let text = format!("{}, {}", one.to_public(), two.to_public());
        let recipients: Recipients = text.parse().unwrap();
        let secrets = NodeSecrets::none_of("n1");
        let sealed = recipients.seal(&secrets).unwrap();
        for key in [&one, &two] {
            let text = open(key, &sealed).unwrap();
            assert_eq!(NodeSecrets::from_json(&text).unwrap(), secrets);
        }
        let error = open(&other, &sealed).unwrap_err().to_string();
        assert_eq!(error, "it is sealed for another key");
        for at in [0, sealed.len() / 2, sealed.len() - 1] {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(open(&one, &damaged).is_err(), "{at}");
        }
        assert!(open(&one, &sealed[..sealed.len() - 1]).is_err());
    }

    #[test]
    fn recipients_are_checked_and_keys_not_shown() {
        let public = Identity::generate().to_public().to_string();
        assert!(format!("{public},{public}").parse::<Recipients>().is_ok());
        for wrong in ["", "age1", "ssh-ed25519 AAAA", &public[..20]] {
            assert!(wrong.parse::<Recipients>().is_err(), "{wrong}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let public = new_identity(&file).unwrap();
        assert!(new_identity(&file).is_err(), "never in place of another");
        let kept = identities_of(&file).unwrap();
        assert_eq!(kept[0].to_public().to_string(), public);
        std::fs::write(&file, "AGE-SECRET-KEY-1WRONG").unwrap();
        let error = identities_of(&file).err().unwrap().to_string();
        assert!(!error.contains("WRONG"), "{error}");
    }
}
