//! The cluster's own authority: a key and a self-signed certificate (X.509), which signs one
//! certificate for each node.
//!
//! What a node asks for is a key and nothing else: names, uses and life of its certificate are the
//! authority's words, so that no request can name another node or make an authority.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::tls::node_host;
use crate::{TokenSecret, sha256_hex};

/// Life of the authority.
const AUTHORITY_LIFE: Duration = Duration::days(365 * 20);
/// Life of a node's certificate. It ends sooner when the node is removed.
const NODE_LIFE: Duration = Duration::days(365 * 5);
/// Clocks of hosts may differ by this much.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// The key and the certificate of an authority.
pub struct Authority {
    key: KeyPair,
    pem: String,
}

/// A certificate that the authority signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate as PEM.
    pub pem: String,
    /// SHA-256 of its DER, hexadecimal: what is noted of it, and asked for.
    pub fingerprint: String,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// A node's private key.
pub struct NodeKey(KeyPair);

/// A request that was read and whose signature holds: the asker has the key.
pub struct CertificateRequest(CertificateSigningRequestParams);

impl Authority {
    /// Makes a new authority.
    pub fn make(cluster: &str) -> Result<Self> {
        let key = KeyPair::generate().map_err(Error::Certificate)?;
        let mut params = params(&format!("vmtwin cluster {cluster}"), AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).map_err(Error::Certificate)?.pem();
        Ok(Self { key, pem })
    }

    /// An authority of its certificate and its private key, both PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).map_err(Error::Certificate)?;
        Issuer::from_ca_cert_pem(certificate, &key).map_err(Error::Certificate)?;
        let pem = certificate.to_owned();
        Ok(Self { key, pem })
    }

    /// Its certificate as PEM; it is no secret.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Its private key as PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// Signs a certificate for a node, of these ids (UUIDs).
    pub fn sign(
        &self,
        request: &CertificateRequest,
        node: &str,
        cluster: &str,
    ) -> Result<Certificate> {
        let mut params = params(&format!("vmtwin node {node}"), NODE_LIFE)?;
        let host = node_host(node, cluster);
        let host = host.try_into().map_err(Error::Certificate)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(host)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.pem, &self.key).map_err(Error::Certificate)?;
        let expires_at = params.not_after;
        let signed = params
            .signed_by(&request.0.public_key, &issuer)
            .map_err(Error::Certificate)?;
        Ok(Certificate {
            pem: signed.pem(),
            fingerprint: sha256_hex(signed.der()),
            expires_at,
        })
    }
}

/// What every certificate has: a name, a life, a random serial number.
fn params(name: &str, life: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(Error::Random)?;
    serial[0] &= 0x7f; // a positive number
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

impl NodeKey {
    /// A new key.
    pub fn make() -> Result<Self> {
        KeyPair::generate().map(Self).map_err(Error::Certificate)
    }

    /// A key as PEM.
    pub fn from_pem(pem: &str) -> Result<Self> {
        KeyPair::from_pem(pem).map(Self).map_err(Error::Certificate)
    }

    /// The key as PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// A request for a certificate (PKCS #10, PEM), signed by the key.
    pub fn request_pem(&self) -> Result<String> {
        let request = CertificateParams::default().serialize_request(&self.0);
        let request = request.map_err(Error::Certificate)?;
        request.pem().map_err(Error::Certificate)
    }
}

impl CertificateRequest {
    /// Reads a request that may come from anywhere.
    pub fn from_pem(pem: &str) -> Result<Self> {
        CertificateSigningRequestParams::from_pem(pem)
            .map(Self)
            .map_err(Error::Certificate)
    }

    /// SHA-256 of the public key that it is for.
    pub fn key_hash(&self) -> String {
        sha256_hex(&self.0.public_key.subject_public_key_info())
    }
}

/// SHA-256 of the DER of a certificate that is given as PEM.
pub(crate) fn fingerprint_of_pem(pem: &str) -> Result<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|_| Error::Pem {
        what: "the certificate",
    })?;
    Ok(sha256_hex(&der))
}

impl Certificate {
    /// The fingerprint of a certificate that is given as PEM.
    pub fn fingerprint_of(pem: &str) -> Result<String> {
        fingerprint_of_pem(pem)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

/// A token's secret, hashed as it is stored.
pub(crate) fn hash_of_secret(secret: &TokenSecret) -> String {
    sha256_hex(secret.text().as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails panics")]

    use super::*;

    #[test]
    fn an_authority_survives_its_files_and_signs_only_its_own_words() {
        let authority = Authority::make("lab").unwrap();
        let kept = Authority::from_pem(authority.certificate_pem(), &authority.key_pem()).unwrap();
        let key = NodeKey::from_pem(&NodeKey::make().unwrap().to_pem()).unwrap();
        let request = CertificateRequest::from_pem(&key.request_pem().unwrap()).unwrap();
        let signed = kept.sign(&request, "n-1", "c-1").unwrap();
        let again = kept.sign(&request, "n-1", "c-1").unwrap();
        assert_ne!(signed.fingerprint, again.fingerprint, "serials are random");
        assert_eq!(
            signed.fingerprint,
            Certificate::fingerprint_of(&signed.pem).unwrap()
        );
        // A request that names another host and wants to be an authority gets neither.
        let mut greedy = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let greedy = greedy.serialize_request(&key.0).unwrap().pem().unwrap();
        if let Ok(request) = CertificateRequest::from_pem(&greedy) {
            let signed = kept.sign(&request, "n-1", "c-1").unwrap();
            let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
            let text = String::from_utf8_lossy(&der);
            assert!(text.contains("n-1.c-1.") && !text.contains("other.example"));
        }
    }

    #[test]
    fn a_request_whose_signature_does_not_hold_is_refused() {
        let pem = NodeKey::make().unwrap().request_pem().unwrap();
        assert!(CertificateRequest::from_pem(&pem).is_ok());
        let other = NodeKey::make().unwrap().request_pem().unwrap();
        // The head of one request with the tail, and so the signature, of another.
        let half = pem.len() / 2;
        let mixed = format!("{}{}", &pem[..half], &other[half..]);
        assert!(CertificateRequest::from_pem(&mixed).is_err());
        assert!(CertificateRequest::from_pem("").is_err());
    }
}
