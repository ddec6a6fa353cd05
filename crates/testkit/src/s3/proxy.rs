//! A real TCP proxy for HTTP/1.1 that does one thing wrong to the requests it is told to.
//!
//! It takes one request per connection and has the service close its side after each answer, so
//! that an answer ends where its bytes end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Longest request or answer head, bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A request as the proxy's rule sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Length of the body.
    pub body_bytes: u64,
}

/// What is done to one request or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// The service never sees it; this status and body are answered.
    Answer(u16, &'static str),
    /// The service does it; this status and body are answered.
    AnswerAfter(u16, &'static str),
    /// The connection is reset in the middle of the request's body.
    DropInRequest,
    /// The service does it; the connection ends before the answer.
    DropAnswer,
    /// The connection ends after this part of the answer's body, in percent.
    CutBody(u8),
    /// The body is cut to this part, in percent, and the head says so.
    ShortBody(u8),
    /// A bit of the answer's body is flipped.
    FlipAnswer,
    /// A bit of the request's body is flipped.
    FlipRequest,
    /// The request is taken and nothing is answered until the proxy ends.
    Stall,
    /// The answer's body comes a byte at a time, with this pause.
    Trickle(Duration),
}

type Rule = Box<dyn FnMut(&Request) -> Fault + Send>;

struct Shared {
    upstream: u16,
    tls: Option<Arc<ServerConfig>>,
    rule: Mutex<Rule>,
    stop: AtomicBool,
    requests: AtomicU64,
}

/// The proxy. It ends with this value.
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Starts a proxy in front of a port of the loopback interface; it spoils nothing yet.
    pub fn start(upstream: u16) -> FaultProxy {
        Self::with(upstream, None)
    }

    /// Starts one that speaks TLS; gives its certificate in PEM, which nobody else trusts.
    pub fn start_tls(upstream: u16) -> (FaultProxy, String) {
        let (config, certificate) = tls_config();
        (Self::with(upstream, Some(config)), certificate)
    }

    fn with(upstream: u16, tls: Option<Arc<ServerConfig>>) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binding a loopback port");
        let port = listener.local_addr().expect("the port").port();
        let shared = Arc::new(Shared {
            upstream,
            tls,
            rule: Mutex::new(Box::new(|_| Fault::Pass)),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        });
        let server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if server.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (server, Ok(client)) = (Arc::clone(&server), client) else {
                    continue;
                };
                // A client that goes away is what many tests want.
                std::thread::spawn(move || drop(server.accept(client)));
            }
        });
        FaultProxy { port, shared }
    }

    /// Its address as a URL.
    pub fn endpoint(&self) -> String {
        let scheme = match self.shared.tls {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// What it does to each request from now on.
    pub fn set_rule(&self, rule: impl FnMut(&Request) -> Fault + Send + 'static) {
        *self.rule() = Box::new(rule);
        self.shared.requests.store(0, Ordering::SeqCst);
    }

    /// Does this to the next `times` requests of a method whose target holds `part`.
    pub fn spoil(&self, method: &'static str, part: &'static str, fault: Fault, times: usize) {
        let mut left = times;
        self.set_rule(move |request| {
            if left > 0 && request.method == method && request.target.contains(part) {
                left -= 1;
                return fault.clone();
            }
            Fault::Pass
        });
    }

    /// Requests since the rule was set.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    fn rule(&self) -> std::sync::MutexGuard<'_, Rule> {
        let rule = self.shared.rule.lock();
        rule.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn accept(&self, client: TcpStream) -> io::Result<()> {
        let Some(config) = &self.tls else {
            return self.serve(client);
        };
        let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        self.serve(StreamOwned::new(session, client))
    }

    fn serve(&self, client: impl Read + Write) -> io::Result<()> {
        let mut reader = BufReader::new(client);
        let Some(head) = Head::read(&mut reader)? else {
            return Ok(());
        };
        let request = head.request();
        let fault = {
            let rule = self.rule.lock();
            (rule.unwrap_or_else(PoisonError::into_inner))(&request)
        };
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut body = vec![0; request.body_bytes as usize];
        if fault == Fault::DropInRequest {
            return reader.read_exact(&mut body[..request.body_bytes as usize / 2]);
        }
        reader.read_exact(&mut body)?;
        let client = reader.get_mut();
        match fault {
            Fault::Answer(status, text) => return answer(client, status, text),
            Fault::Stall => return self.stall(),
            Fault::FlipRequest => flip(&mut body),
            _ => {}
        }
        let (mut answered, content) = self.ask(&head, &body)?;
        spoil(client, &mut answered, content, &fault)?;
        client.flush()
    }

    /// Hands the request on; gives the head and the body of the answer.
    fn ask(&self, head: &Head, body: &[u8]) -> io::Result<(Head, Vec<u8>)> {
        let mut server = TcpStream::connect(("127.0.0.1", self.upstream))?;
        server.write_all(&head.with("connection", "close").bytes())?;
        server.write_all(body)?;
        let mut reader = BufReader::new(server);
        let answered = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        Ok((answered, content))
    }

    fn stall(&self) -> io::Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A key of its own, and the certificate that says it is the loopback interface.
fn tls_config() -> (Arc<ServerConfig>, String) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("making a certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the usual versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a certificate of this key");
    (Arc::new(config), made.cert.pem())
}

/// Gives the client an answer, spoilt.
fn spoil(
    client: &mut impl Write,
    head: &mut Head,
    mut body: Vec<u8>,
    fault: &Fault,
) -> io::Result<()> {
    match fault {
        Fault::AnswerAfter(status, text) => return answer(client, *status, text),
        Fault::DropAnswer => return Ok(()),
        Fault::CutBody(percent) => body.truncate(body.len() * usize::from(*percent) / 100),
        Fault::ShortBody(percent) => {
            body.truncate(body.len() * usize::from(*percent) / 100);
            *head = head.with("content-length", &body.len().to_string());
        }
        Fault::FlipAnswer => flip(&mut body),
        Fault::Trickle(pause) => {
            client.write_all(&head.bytes())?;
            return body.iter().try_for_each(|byte| {
                std::thread::sleep(*pause);
                client.write_all(&[*byte])
            });
        }
        _ => {}
    }
    client.write_all(&head.bytes())?;
    client.write_all(&body)
}

fn answer(client: &mut impl Write, status: u16, text: &str) -> io::Result<()> {
    let length = text.len();
    write!(
        client,
        "HTTP/1.1 {status} Test\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
}

fn flip(body: &mut [u8]) {
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 1;
    }
}

/// First line and headers.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head; nothing at the end of a connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut lines = Vec::new();
        let mut limited = reader.take(MAX_HEAD_BYTES as u64);
        loop {
            let mut line = String::new();
            if limited.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            lines.push(line.to_owned());
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let first = lines.remove(0);
        let pair = |line: String| {
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.into_iter().map(pair).collect();
        Ok(Some(Head { first, headers }))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    fn with(&self, name: &str, value: &str) -> Head {
        let mut headers = self.headers.clone();
        headers.retain(|(n, _)| n != name);
        headers.push((name.to_owned(), value.to_owned()));
        Head {
            first: self.first.clone(),
            headers,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn request(&self) -> Request {
        let mut words = self.first.split(' ').map(str::to_owned);
        Request {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            body_bytes: self
                .header("content-length")
                .and_then(|length| length.parse().ok())
                .unwrap_or(0),
        }
    }
}
