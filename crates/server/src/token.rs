//! The text that lets one host join: where to ask, whom to trust there, and a secret that counts
//! once.
//!
//! ```text
//! vmtwin-join-1.BASE64URL({"address":"10.0.0.1:7420","node":UUID,"cluster":UUID,
//!                          "authority":SHA256,"secret":BASE64URL})
//! ```

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::authority::hash_of_secret;
use crate::error::{Error, Result};

const PREFIX: &str = "vmtwin-join-1.";
/// Longest token that is looked at, bytes.
const MAX_LEN: usize = 4096;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// The secret of a token. It is shown nowhere but in the token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenSecret(String);

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// Of the agent that issued it: `HOST:PORT`.
    pub address: String,
    /// The id of that agent's node.
    pub node: String,
    /// The id of the cluster.
    pub cluster: String,
    /// SHA-256 of the DER of the authority's certificate, hexadecimal.
    pub authority: String,
    /// What lets the host in.
    pub secret: TokenSecret,
}

impl TokenSecret {
    /// A new secret of 256 random bits.
    pub fn random() -> Result<Self> {
        let mut bytes = Zeroizing::new([0u8; SECRET_BYTES]);
        getrandom::fill(&mut *bytes).map_err(Error::Random)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(*bytes)))
    }

    /// What is stored of it. The secret is random, so a plain hash gives nothing away.
    pub fn hash(&self) -> String {
        hash_of_secret(self)
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl Drop for TokenSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl JoinToken {
    /// The token as text.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Texts alone: this cannot fail.
        let json = Zeroizing::new(serde_json::to_vec(self).unwrap_or_default());
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*json)))
    }

    /// Reads a token.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() > MAX_LEN {
            return Err(Error::Token);
        }
        let coded = text.strip_prefix(PREFIX).ok_or(Error::Token)?;
        let json = URL_SAFE_NO_PAD.decode(coded).map_err(|_| Error::Token)?;
        serde_json::from_slice(&Zeroizing::new(json)).map_err(|_| Error::Token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails panics")]

    use super::*;

    #[test]
    fn a_token_reads_back_and_hides_its_secret() {
        let token = JoinToken {
            address: "10.0.0.1:7420".to_owned(),
            node: "n".to_owned(),
            cluster: "c".to_owned(),
            authority: "ab".to_owned(),
            secret: TokenSecret::random().unwrap(),
        };
        let text = token.to_text();
        let read = JoinToken::parse(&format!(" {}\n", *text)).unwrap();
        assert_eq!(read.secret.hash(), token.secret.hash());
        assert_eq!(read.address, token.address);
        assert!(!format!("{token:?}").contains(token.secret.text()));
        for wrong in ["", "vmtwin-join-1.", "vmtwin-join-1.e30", "x", &text[..60]] {
            assert!(JoinToken::parse(wrong).is_err(), "{wrong}");
        }
        assert!(JoinToken::parse(&"a".repeat(10_000)).is_err());
    }
}
