//! The server: HTTP/1.1 with limits on everything a stranger can use up, and an end that lets what
//! was begun come to its end. Over TLS with certificates on both sides for nodes; for people over TLS
//! with the server's alone, or over none.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::{Error, Result};
use crate::sha256_hex;
use crate::tls::{Credentials, PeerCertificate, PeerName, ServerCertificate};

/// What clients may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at one time; more wait.
    pub connections: usize,
    /// Time for the TLS handshake, and again for the head of a request.
    pub head: Duration,
    /// Life of a connection.
    pub connection: Duration,
    /// Longest body of a request, bytes.
    pub body_bytes: usize,
    /// Time for what was begun, once the end was asked for.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(10),
            connection: Duration::from_secs(600),
            body_bytes: 64 << 10,
            grace: Duration::from_secs(10),
        }
    }
}

/// The address that a request comes from, of a port for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub std::net::IpAddr);

/// A port that is listened at.
pub struct Listener {
    listener: TcpListener,
    /// None: plain HTTP.
    tls: Option<TlsAcceptor>,
    limits: Limits,
}

impl Listener {
    /// Listens for nodes; port 0 takes a free one.
    pub async fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        limits: Limits,
    ) -> Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(credentials.server()?));
        Self::bind_with(address, Some(tls), limits).await
    }

    /// Listens for people, over plain HTTP where there is no certificate.
    pub async fn bind_for_people(
        address: SocketAddr,
        certificate: Option<&ServerCertificate>,
        limits: Limits,
    ) -> Result<Self> {
        let config = certificate.map(ServerCertificate::server).transpose()?;
        let tls = config.map(|config| TlsAcceptor::from(Arc::new(config)));
        Self::bind_with(address, tls, limits).await
    }

    async fn bind_with(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        limits: Limits,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| Error::Listen { address, source })?;
        Ok(Self {
            listener,
            tls,
            limits,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `end` is over, then lets the requests end that were begun. Requests carry a
    /// [`PeerAddress`] as an extension, and over TLS a [`PeerCertificate`] and a [`PeerName`].
    pub async fn serve(self, router: Router, end: impl Future<Output = ()>) {
        let router = router.layer(DefaultBodyLimit::max(self.limits.body_bytes));
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let (ending, ended) = watch::channel(false);
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                accepted = self.accept(&room) => accepted,
            };
            let Some((stream, permit)) = accepted else {
                // Out of files, for one: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let connection = Connection {
                tls: self.tls.clone(),
                limits: self.limits.clone(),
                router: router.clone(),
                ended: ended.clone(),
            };
            tokio::spawn(async move {
                let life = connection.limits.connection;
                let _ = timeout(life, connection.serve(stream)).await;
                drop(permit);
            });
        }
        drop(self.listener);
        let _ = ending.send(true);
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let _ = timeout(self.limits.grace, room.acquire_many(all)).await;
    }

    async fn accept(&self, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let permit = Arc::clone(room).acquire_owned().await.ok()?;
        match self.listener.accept().await {
            Ok((stream, _)) => Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                None
            }
        }
    }
}

struct Connection {
    tls: Option<TlsAcceptor>,
    limits: Limits,
    router: Router,
    ended: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let Ok(address) = stream.peer_addr() else {
            return;
        };
        let router = self.router.clone();
        let router = router.layer(axum::Extension(PeerAddress(address.ip())));
        let Some(tls) = &self.tls else {
            return self.converse(stream, router).await;
        };
        let Ok(Ok(stream)) = timeout(self.limits.head, tls.accept(stream)).await else {
            tracing::debug!("a handshake failed");
            return;
        };
        let (certificate, name) = peer(&stream);
        let router = router.layer(axum::Extension(certificate));
        let router = router.layer(axum::Extension(name));
        self.converse(stream, router).await;
    }

    async fn converse(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        router: Router,
    ) {
        let mut server = hyper::server::conn::http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(64 << 10);
        let service = TowerToHyperService::new(router);
        let served = server.serve_connection(TokioIo::new(stream), service);
        let mut served = std::pin::pin!(served);
        tokio::select! {
            _ = served.as_mut() => return,
            _ = self.ended.wait_for(|ended| *ended) => {}
        }
        served.as_mut().graceful_shutdown();
        let _ = served.await;
    }
}

fn peer(stream: &TlsStream<TcpStream>) -> (PeerCertificate, PeerName) {
    let (_, connection) = stream.get_ref();
    let shown = connection.peer_certificates();
    let shown = shown.and_then(|chain| chain.first());
    let fingerprint = shown.map(|certificate| sha256_hex(certificate));
    let name = shown.map(|certificate| certificate.clone().into_owned());
    (PeerCertificate(fingerprint), PeerName(name))
}
