//! Requests to one node. An answer is a stream, so that no node's is ever held in memory. Nothing is sent
//! to who shows a certificate that does not count any more.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::sha256_hex;
use crate::tls::{Credentials, node_host, pinned};

/// Limit of connecting and of the handshake, each.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A stream that gives nothing for this long has ended.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Most of an error's document that is read, bytes.
const MAX_PROBLEM_BYTES: u64 = 16 << 10;

/// Says whether a certificate counts, by its fingerprint. It may wait.
type Counts = dyn Fn(&str) -> Result<bool, Unknown> + Send + Sync;
/// Why that cannot be told.
type Unknown = Box<dyn std::error::Error + Send + Sync>;

/// Asks nodes of one cluster.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    cluster: String,
    /// None for who cannot know yet.
    counts: Option<Arc<Counts>>,
}

/// The beginning of a good answer.
pub struct Answer {
    address: String,
    response: Response<Incoming>,
}

impl Client {
    /// A client that shows a node's certificate. Before each request it asks `counts` for the fingerprint
    /// of the certificate that it is shown, on a thread that may wait: one of the authority's may have been
    /// taken back.
    pub fn new(
        credentials: &Credentials,
        cluster: &str,
        counts: impl Fn(&str) -> Result<bool, Unknown> + Send + Sync + 'static,
    ) -> Result<Self> {
        let counts: Arc<Counts> = Arc::new(counts);
        Ok(Self::with(credentials.client()?, cluster, Some(counts)))
    }

    /// A client that has no certificate yet; `authority` is the SHA-256 of whom it trusts.
    pub fn pinned(authority: &str, cluster: &str) -> Result<Self> {
        Ok(Self::with(pinned(authority)?, cluster, None))
    }

    fn with(config: ClientConfig, cluster: &str, counts: Option<Arc<Counts>>) -> Self {
        Self {
            tls: TlsConnector::from(Arc::new(config)),
            cluster: cluster.to_owned(),
            counts,
        }
    }

    /// Asks a node (its id) that listens at an address for a path.
    pub async fn get(&self, address: &str, node: &str, path: &str) -> Result<Answer> {
        let request = Request::get(path);
        self.send(address, node, request, Bytes::new()).await
    }

    /// Sends a node a JSON document.
    pub async fn post_json(
        &self,
        address: &str,
        node: &str,
        path: &str,
        document: Vec<u8>,
    ) -> Result<Answer> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        self.send(address, node, request, document.into()).await
    }

    async fn send(
        &self,
        address: &str,
        node: &str,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Answer> {
        let host = node_host(node, &self.cluster);
        let broke = |source| Error::Http {
            address: address.to_owned(),
            source,
        };
        let request = request
            .header(header::HOST, &host)
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| failed(address, io::Error::other(error)))?;
        let name = ServerName::try_from(host)
            .map_err(|error| failed(address, io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let connecting = within(address, CONNECT_LIMIT, TcpStream::connect(address));
        let tcp = connecting.await?.map_err(|error| failed(address, error))?;
        let handshake = within(address, CONNECT_LIMIT, self.tls.connect(name, tcp));
        let tls = handshake.await?.map_err(|error| failed(address, error))?;
        self.refuse_revoked(address, &tls).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(broke)?;
        // It ends with the conversation; an error of it shows in the answer.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broke)?;
        let answer = Answer {
            address: address.to_owned(),
            response,
        };
        match answer.response.status().is_success() {
            true => Ok(answer),
            false => Err(answer.into_error().await),
        }
    }

    async fn refuse_revoked(&self, address: &str, tls: &TlsStream<TcpStream>) -> Result<()> {
        let Some(counts) = self.counts.clone() else {
            return Ok(());
        };
        let (_, connection) = tls.get_ref();
        let shown = connection.peer_certificates();
        let shown = shown.and_then(|chain| chain.first());
        let fingerprint = shown.map(|certificate| sha256_hex(certificate));
        let look = move || counts(&fingerprint.unwrap_or_default());
        let looked = tokio::task::spawn_blocking(look).await;
        let address = address.to_owned();
        match looked.unwrap_or_else(|error| Err(error.into())) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Revoked { address }),
            Err(source) => Err(Error::NotLookedUp { address, source }),
        }
    }
}

impl Answer {
    /// The fields of its head.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Writes the body; how many bytes. The writer is local and does not wait for a network.
    pub async fn copy_to(mut self, to: &mut (dyn Write + Send), max_bytes: u64) -> Result<u64> {
        let mut bytes = 0u64;
        loop {
            let next = within(
                &self.address,
                SILENCE_LIMIT,
                self.response.body_mut().frame(),
            );
            let Some(frame) = next.await? else {
                return Ok(bytes);
            };
            let frame = frame.map_err(|source| Error::Http {
                address: self.address.clone(),
                source,
            })?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            bytes += data.len() as u64;
            if bytes > max_bytes {
                return Err(Error::TooLarge {
                    address: self.address,
                    max_bytes,
                });
            }
            to.write_all(data)
                .map_err(|error| failed(&self.address, error))?;
        }
    }

    /// The whole body, of an answer that is small.
    pub async fn bytes(self, max_bytes: u64) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        self.copy_to(&mut all, max_bytes).await?;
        Ok(all)
    }

    async fn into_error(self) -> Error {
        let (address, status) = (self.address.clone(), self.response.status());
        let body = self.bytes(MAX_PROBLEM_BYTES).await.unwrap_or_default();
        let detail = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.detail.chars().filter(|c| !c.is_control()).collect(),
            Err(_) => status.canonical_reason().unwrap_or("error").to_owned(),
        };
        Error::Refused {
            address,
            status: status.as_u16(),
            detail,
        }
    }
}

async fn within<T>(address: &str, limit: Duration, work: impl Future<Output = T>) -> Result<T> {
    timeout(limit, work).await.map_err(|_| Error::TimedOut {
        address: address.to_owned(),
        seconds: limit.as_secs(),
    })
}

fn failed(address: &str, source: io::Error) -> Error {
    Error::Connect {
        address: address.to_owned(),
        source,
    }
}
