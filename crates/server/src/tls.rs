//! What each side proves to the other. Between nodes TLS 1.3 and nothing older.
//!
//! - A node shows a certificate of the cluster's authority, whose one name is made of its id and
//!   the cluster's. Who asks it expects that name: an address does not say who is there. Whether the
//!   certificate still counts is asked before the request is sent (`client.rs`).
//! - Who asks a node shows a certificate too, or none: what is served to whom is decided for each
//!   request, where also the list of revoked certificates is looked at.
//! - A host that joins has no certificate. It trusts an authority of which it knows the SHA-256.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::sha256_hex;

/// The certificate that a client showed, as its fingerprint; none if it showed none. It is of the
/// cluster's authority; whether it still counts is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate(pub Option<String>);

/// The same certificate, to be asked whose it is: the authority's own word, not that of a list which
/// others can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName(pub(crate) Option<CertificateDer<'static>>);

impl PeerName {
    /// Whether the authority made the certificate for this node (its id) of this cluster.
    pub fn is_node(&self, node: &str, cluster: &str) -> bool {
        let Some(der) = &self.0 else {
            return false;
        };
        let certificate = ParsedCertificate::try_from(der);
        let name = ServerName::try_from(node_host(node, cluster));
        match (certificate, name) {
            (Ok(certificate), Ok(name)) => verify_server_name(&certificate, &name).is_ok(),
            _ => false,
        }
    }
}

/// A node's certificate, its key, and the authority's certificate, all PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The node's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: Zeroizing<String>,
    /// The authority's certificate.
    pub authority: String,
}

/// The certificate of a server for people and its key, PEM. Who asks shows none.
#[derive(Clone)]
pub struct ServerCertificate {
    /// The certificate, and those between it and an authority.
    pub chain: String,
    /// Its private key.
    pub key: Zeroizing<String>,
}

impl ServerCertificate {
    /// One that signs itself, for these names and addresses: browsers ask before they trust it.
    pub fn self_signed(names: Vec<String>) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(names).map_err(Error::Certificate)?;
        Ok(Self {
            chain: made.cert.pem(),
            key: Zeroizing::new(made.signing_key.serialize_pem()),
        })
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Result<String> {
        crate::authority::fingerprint_of_pem(&self.chain)
    }

    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let what = "the certificate of this server";
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| Error::Pem { what })?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|_| Error::Pem {
            what: "the key of this server",
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(tls)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The one name of a node's certificate.
pub fn node_host(node: &str, cluster: &str) -> String {
    format!("{node}.{cluster}.vmtwin.internal")
}

impl Credentials {
    /// SHA-256 of the node's certificate.
    pub fn fingerprint(&self) -> Result<String> {
        crate::authority::fingerprint_of_pem(&self.certificate)
    }

    /// Fails unless the authority made the certificate for this node (its id) of this cluster, it is valid
    /// now, and the key is its own: what another node gave may be anything.
    pub fn check(&self, node: &str, cluster: &str) -> Result<()> {
        let root = certificate(&self.authority, "the authority's certificate")?;
        let shown = certificate(&self.certificate, "the node's certificate")?;
        let name = ServerName::try_from(node_host(node, cluster));
        let name = name.map_err(|error| Error::Tls(error.to_string()))?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(root)?), provider())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?
            .verify_server_cert(&shown, &[], &name, &[], UnixTime::now())
            .map_err(Error::Forged)?;
        self.client().map(|_| ())
    }

    /// The certificate and the authority's: who joins knows the latter by its hash alone.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(vec![
            certificate(&self.certificate, "the node's certificate")?,
            certificate(&self.authority, "the authority's certificate")?,
        ])
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        key.map_err(|_| Error::Pem {
            what: "the node's key",
        })
    }

    /// What a server of this node needs.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let roots = Arc::new(roots(certificate(
            &self.authority,
            "the authority's certificate",
        )?)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What a client of this node needs.
    pub(crate) fn client(&self) -> Result<ClientConfig> {
        let root = certificate(&self.authority, "the authority's certificate")?;
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(roots(root)?)
            .with_client_auth_cert(
                vec![certificate(&self.certificate, "the node's certificate")?],
                self.private_key()?,
            )
            .map_err(tls)
    }
}

/// What a client without a certificate needs, which trusts the authority of this SHA-256.
pub(crate) fn pinned(authority: &str) -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            authority: authority.to_owned(),
        }))
        .with_no_client_auth();
    Ok(config)
}

/// Trusts the one authority whose certificate has this SHA-256 and comes along in the chain; all
/// else is checked as ever.
#[derive(Debug)]
struct Pinned {
    authority: String,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let root = intermediates
            .iter()
            .find(|one| sha256_hex(one) == self.authority)
            .ok_or_else(unknown)?;
        let roots = Arc::new(roots(root.clone().into_owned()).map_err(|_| unknown())?);
        WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem { what })
}

fn roots(root: CertificateDer<'static>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(tls)?;
    Ok(roots)
}

fn tls(error: rustls::Error) -> Error {
    Error::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails panics")]

    use super::*;
    use crate::{Authority, CertificateRequest, NodeKey};

    #[test]
    fn a_nodes_certificate_is_its_own_by_name_key_and_authority() {
        let (ours, theirs) = (
            Authority::make("c-1").unwrap(),
            Authority::make("c-1").unwrap(),
        );
        let (key, other) = (NodeKey::make().unwrap(), NodeKey::make().unwrap());
        let check = |by: &Authority, of: &NodeKey, node: &str| {
            let request = CertificateRequest::from_pem(&of.request_pem().unwrap()).unwrap();
            let credentials = Credentials {
                certificate: by.sign(&request, node, "c-1").unwrap().pem,
                key: key.to_pem(),
                authority: ours.certificate_pem().to_owned(),
            };
            credentials.check("n-1", "c-1")
        };
        check(&ours, &key, "n-1").unwrap();
        for (by, of, node) in [
            (&theirs, &key, "n-1"),
            (&ours, &other, "n-1"),
            (&ours, &key, "n-2"),
        ] {
            check(by, of, node).unwrap_err();
        }
    }
}
