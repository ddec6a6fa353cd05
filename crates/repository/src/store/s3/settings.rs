//! Endpoint, region, keys and certificates, from where other S3 programs take them.
//!
//! Keys come from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, else from
//! the profile `AWS_PROFILE` (or `default`) in `~/.aws/credentials` and `~/.aws/config`
//! (`AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE`). Roles of machines, SSO and credential
//! programs are not asked: `aws configure export-credentials --format env` turns them into the
//! variables.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rusty_s3::{Bucket, Credentials, UrlStyle};
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use super::place::S3Place;

/// Longest settings or certificate file, bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Region of services that have none, and of AWS where nothing says otherwise.
const DEFAULT_REGION: &str = "us-east-1";

/// All that a client needs to know.
pub(super) struct Settings {
    pub(super) bucket: Bucket,
    pub(super) credentials: Credentials,
    pub(super) roots: RootCerts,
    /// For messages.
    pub(super) endpoint: String,
}

/// Gives the value of an environment variable, if it has one.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of this process; an empty one is as good as none.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.trim().is_empty())
}

impl Settings {
    /// Looks everything up.
    pub(super) fn find(place: &S3Place, variable: Variables<'_>) -> io::Result<Self> {
        let profile = Profile::read(variable)?;
        let endpoint = place
            .endpoint
            .clone()
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .or_else(|| profile.get("endpoint_url"));
        let region = variable("AWS_REGION")
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| profile.get("region"))
            .unwrap_or_else(|| DEFAULT_REGION.to_owned());
        // It becomes part of a host's name.
        let in_names = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if !region.bytes().all(in_names) {
            return Err(wrong());
        }
        // AWS's certificates do not cover a bucket with dots as part of the host's name.
        let style = if endpoint.is_some() || place.bucket.contains('.') {
            UrlStyle::Path
        } else {
            UrlStyle::VirtualHost
        };
        let endpoint = endpoint.unwrap_or_else(|| aws_endpoint(&region));
        let url = endpoint.parse().map_err(|_| wrong())?;
        let bucket = Bucket::new(url, style, place.bucket.clone(), region).map_err(|_| wrong())?;
        let endpoint = bucket.base_url().origin().ascii_serialization();
        Ok(Self {
            bucket,
            credentials: credentials(variable, &profile)?,
            roots: roots(variable)?,
            endpoint,
        })
    }
}

fn aws_endpoint(region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{china}")
}

/// Says nothing of the text: somebody may have put keys into it.
fn wrong() -> io::Error {
    let text = "the endpoint or the region of S3 is no URL; look at AWS_ENDPOINT_URL_S3, \
                AWS_ENDPOINT_URL, AWS_REGION and the profile in ~/.aws/config";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn credentials(variable: Variables<'_>, profile: &Profile) -> io::Result<Credentials> {
    let from_environment = [
        variable("AWS_ACCESS_KEY_ID"),
        variable("AWS_SECRET_ACCESS_KEY"),
        variable("AWS_SESSION_TOKEN"),
    ];
    let from_profile = || {
        [
            profile.get("aws_access_key_id"),
            profile.get("aws_secret_access_key"),
            profile.get("aws_session_token"),
        ]
    };
    let found = match from_environment {
        [Some(_), Some(_), _] => from_environment,
        _ => from_profile(),
    };
    match found {
        [Some(key), Some(secret), None] => Ok(Credentials::new(key, secret)),
        [Some(key), Some(secret), Some(token)] => {
            Ok(Credentials::new_with_token(key, secret, token))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "no keys for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or put them \
                 into the profile {:?} of {}",
                profile.name,
                profile.credentials_file.display()
            ),
        )),
    }
}

/// `AWS_CA_BUNDLE` in place of the system's certificates.
fn roots(variable: Variables<'_>) -> io::Result<RootCerts> {
    let Some(path) = variable("AWS_CA_BUNDLE") else {
        return Ok(RootCerts::PlatformVerifier);
    };
    let refuse = |reason: &str| {
        let text = format!("AWS_CA_BUNDLE, {path}: {reason}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let pem = read_file(Path::new(&path)).map_err(|e| refuse(&e.to_string()))?;
    let mut found: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(_) => return Err(refuse("it is no file of certificates in PEM")),
        }
    }
    if found.is_empty() {
        return Err(refuse("it holds no certificate"));
    }
    Ok(RootCerts::from(found))
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// One profile of the shared files.
struct Profile {
    name: String,
    credentials_file: PathBuf,
    values: HashMap<String, String>,
}

impl Profile {
    fn read(variable: Variables<'_>) -> io::Result<Self> {
        let folder = PathBuf::from(variable("HOME").unwrap_or_default()).join(".aws");
        let file = |name: &str, usual: &str| match variable(name) {
            Some(path) => PathBuf::from(path),
            None => folder.join(usual),
        };
        let asked = variable("AWS_PROFILE");
        let name = asked.clone().unwrap_or_else(|| "default".to_owned());
        let credentials_file = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config_file = file("AWS_CONFIG_FILE", "config");
        let mut values = HashMap::new();
        let mut found = false;
        // What the credentials file says goes before.
        for path in [&config_file, &credentials_file] {
            let text = match read_file(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Of no use to us, like a home folder that we may not look into.
                Err(_) if asked.is_none() => continue,
                Err(error) => {
                    let text = format!("cannot read {}: {error}", path.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            };
            found |= section(&text, &name, &mut values);
        }
        if asked.is_some() && !found {
            let text = format!(
                "no profile {name:?} (AWS_PROFILE) in {} or {}",
                config_file.display(),
                credentials_file.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(Self {
            name,
            credentials_file,
            values,
        })
    }

    fn get(&self, key: &str) -> Option<String> {
        self.values.get(key).cloned()
    }
}

/// Adds the values of `[name]` or `[profile name]`; says whether there is such a section.
fn section(text: &str, name: &str, values: &mut HashMap<String, String>) -> bool {
    let mut inside = false;
    let mut found = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = trimmed.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default().trim();
            let header = header.strip_prefix("profile ").unwrap_or(header).trim();
            inside = header == name;
            found |= inside;
        } else if inside
            // Indented lines are values of a value.
            && !line.starts_with([' ', '\t'])
            && let Some((key, value)) = trimmed.split_once('=')
            && !value.trim().is_empty()
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, variables: &[(&str, &str)]) -> io::Result<Settings> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::find(&S3Place::parse(text).unwrap(), &variable)
    }

    const KEYS: [(&str, &str); 2] = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];

    #[test]
    fn urls() {
        for (text, more, url) in [
            (
                "s3://vms/x",
                &[][..],
                "https://vms.s3.us-east-1.amazonaws.com/",
            ),
            ("s3://v.ms", &[], "https://s3.us-east-1.amazonaws.com/v.ms/"),
            (
                "s3://vms",
                &[("AWS_REGION", "cn-north-1")],
                "https://vms.s3.cn-north-1.amazonaws.com.cn/",
            ),
            (
                "s3://vms",
                &[("AWS_ENDPOINT_URL", "http://localhost:9000")],
                "http://localhost:9000/vms/",
            ),
            (
                "s3:https://h:1/vms",
                &[("AWS_ENDPOINT_URL_S3", "http://localhost:9000")],
                "https://h:1/vms/",
            ),
        ] {
            let settings = find(text, &[&KEYS, more].concat()).unwrap();
            assert_eq!(settings.bucket.base_url().as_str(), url);
            assert_eq!(settings.credentials.key(), "key");
        }
        for (name, value) in [("AWS_ENDPOINT_URL", "u:pw@x"), ("AWS_REGION", "/ /")] {
            let error = find("s3://vms", &[&KEYS[..], &[(name, value)]].concat());
            let error = error.err().expect(value).to_string();
            assert!(error.contains(name) && !error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn profiles() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let keys = file(
            "credentials",
            "# keys\n[default]\naws_access_key_id=one\naws_secret_access_key = a=b\n\n\
             [other]\naws_access_key_id = two\naws_secret_access_key = c\naws_session_token = t\n",
        );
        let config = file(
            "config",
            "[default]\nregion = eu-west-1\ns3 =\n  region = wrong\n\
             [profile other]\nendpoint_url = http://h:2\n[profile keyless]\nregion = x\n",
        );
        let files = [
            ("AWS_SHARED_CREDENTIALS_FILE", keys.as_str()),
            ("AWS_CONFIG_FILE", config.as_str()),
        ];
        let settings = find("s3://vms", &files).unwrap();
        assert_eq!(settings.credentials.secret(), "a=b");
        assert_eq!(settings.bucket.region(), "eu-west-1");
        let with = |profile| {
            find(
                "s3://vms",
                &[&files[..], &[("AWS_PROFILE", profile)]].concat(),
            )
        };
        let settings = with("other").unwrap();
        assert_eq!(settings.credentials.token(), Some("t"));
        assert_eq!(settings.bucket.base_url().as_str(), "http://h:2/vms/");
        let error = with("keyless").err().unwrap().to_string();
        assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
        let error = with("none").err().unwrap().to_string();
        assert!(error.contains("no profile \"none\""), "{error}");
    }

    #[test]
    fn certificates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let bundle = ("AWS_CA_BUNDLE", path.to_str().unwrap());
        let error = find("s3://vms", &[&KEYS[..], &[bundle]].concat());
        let error = error.err().unwrap().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
