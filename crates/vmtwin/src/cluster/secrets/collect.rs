//! The secrets that this node has. What could not be read is told.

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmtwin_cluster::NodeSecrets;
use vmtwin_cluster::plan::passwords;
use vmtwin_libvirt::{Connection, ErrorCode, Kind};
use zeroize::Zeroizing;

use super::super::libvirt;
use super::files;
use crate::home::Home;

/// Reads them all, also what could not be read.
pub(in crate::cluster) fn collect(home: &Home, node: &str) -> Result<(NodeSecrets, Vec<String>)> {
    let mut secrets = NodeSecrets::none_of(node);
    let mut warnings = Vec::new();
    secrets.files = files::read(home)?;
    if libvirt::is_here() {
        match libvirt::connect() {
            Ok(connection) => {
                values(&connection, &mut secrets, &mut warnings);
                definitions(&connection, &mut secrets, &mut warnings);
            }
            Err(error) => warnings.push(format!(
                "libvirt runs on this host, and no secret of it was collected: {error}"
            )),
        }
    }
    Ok((secrets, warnings))
}

fn values(connection: &Connection, secrets: &mut NodeSecrets, warnings: &mut Vec<String>) {
    let all = match connection.objects(Kind::Secret) {
        Ok(all) => all,
        Err(error) if error.code() == Some(ErrorCode::NO_SUPPORT) => return,
        Err(error) => return warnings.push(format!("libvirt did not list any secret: {error}")),
    };
    for secret in all {
        let Ok(Some(uuid)) = secret.uuid() else {
            continue;
        };
        match secret.secret_value() {
            Ok(value) => {
                let value = Zeroizing::new(value);
                let text = Zeroizing::new(BASE64_STANDARD.encode(&*value));
                secrets.values.insert(uuid, text);
            }
            // Removed since, or it was never given one.
            Err(error) if error.is_missing() => {}
            Err(error) => warnings.push(format!(
                "the value of the secret {uuid} is not in the backup: {error}"
            )),
        }
    }
}

fn definitions(connection: &Connection, secrets: &mut NodeSecrets, warnings: &mut Vec<String>) {
    let all = match connection.domains() {
        Ok(all) => all,
        Err(error) => return warnings.push(format!("libvirt did not list any guest: {error}")),
    };
    for guest in all {
        match guest.definition().map(Zeroizing::new) {
            Ok(definition) if passwords(&definition).is_empty() => {}
            Ok(definition) => {
                secrets.definitions.insert(guest.name(), definition);
            }
            Err(error) if error.is_missing() => {}
            Err(error) => warnings.push(format!(
                "the passwords of the guest {} are not in the backup: {error}",
                guest.name()
            )),
        }
    }
}
