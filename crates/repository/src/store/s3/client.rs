//! Requests to one bucket: signed, timed, and tried again.
//!
//! A request that fails in a way that may pass is made again, after a pause that doubles and is
//! drawn at random below its limit, so that many uploaders do not come back at once. It is given
//! up once it has failed for [`Patience::give_up`]. A service that was never reached is given up
//! soon: its name is probably wrong.
//!
//! URLs are signed and must never be shown.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rusty_s3::{Bucket, Credentials, S3Action};
use ureq::http::{Request, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::failure::{Failure, is_error_document};
use super::settings::Settings;

/// How long the store waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest wait for a connection. Default 10 s.
    pub connect: Duration,
    /// Longest silence in either direction. Default 60 s.
    pub silence: Duration,
    /// Longest request, beside the time its bytes take at 32 KiB/s. Default 120 s.
    pub request: Duration,
    /// How long one request may go on failing. Default 5 minutes.
    pub give_up: Duration,
    /// The same for a service that was never reached. Default 5 s.
    pub give_up_unreached: Duration,
    /// Limit of the first pause between attempts; it doubles, up to 20 s. Default 250 ms.
    pub first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            request: Duration::from_secs(120),
            give_up: Duration::from_secs(300),
            give_up_unreached: Duration::from_secs(5),
            first_pause: Duration::from_millis(250),
        }
    }
}

/// Slowest transfer that is waited for, bytes per second.
const SLOWEST_BYTES_PER_S: u64 = 32 << 10;
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(20);
/// How long a signature holds: it must only outlast the way to the service.
const SIGNED_FOR: Duration = Duration::from_secs(600);
/// Connections that are kept for the next request.
const IDLE_CONNECTIONS: usize = 16;
/// How often waits look at the cancel flag.
const POLL: Duration = Duration::from_millis(50);
/// After a cancel, requests that run get this long.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// After a cancel, new requests (such as the removal of a lock) get this long.
const CANCELLED_REQUEST: Duration = Duration::from_secs(10);
/// Attempts before a user is told of them.
const QUIET_ATTEMPTS: u32 = 3;
/// Longest answer to a request that has none, bytes.
const MAX_REPLY_BYTES: u64 = 64 << 10;

/// Sends requests to one bucket. Shared by all threads.
pub(super) struct Client {
    pub(super) bucket: Bucket,
    pub(super) credentials: Credentials,
    pub(super) endpoint: String,
    roots: RootCerts,
    patience: Patience,
    agent: Mutex<Agent>,
    /// Whether the service ever answered.
    reached: AtomicBool,
    cancel: Option<Arc<AtomicBool>>,
}

impl Client {
    pub(super) fn new(
        settings: Settings,
        patience: Patience,
        cancel: Option<Arc<AtomicBool>>,
    ) -> Arc<Self> {
        let agent = Mutex::new(new_agent(&settings.roots, &patience));
        let client = Arc::new(Self {
            bucket: settings.bucket,
            credentials: settings.credentials,
            endpoint: settings.endpoint,
            roots: settings.roots,
            patience,
            agent,
            reached: AtomicBool::new(false),
            cancel,
        });
        if let Some(cancel) = client.cancel.clone() {
            let watched = Arc::downgrade(&client);
            let name = "s3-cancel".to_owned();
            let watch = move || interrupt_on_cancel(&watched, &cancel);
            // Without the thread a cancel waits for the timeouts.
            let _ = std::thread::Builder::new().name(name).spawn(watch);
        }
        client
    }

    fn agent(&self) -> Agent {
        let agent = self.agent.lock();
        agent.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the requests that run; new ones work.
    fn interrupt(&self) {
        let fresh = new_agent(&self.roots, &self.patience);
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *agent, fresh).shutdown();
    }

    fn cancelled(&self) -> bool {
        let cancel = self.cancel.as_ref();
        cancel.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Makes attempts until one works, fails for good, or has failed for too long. `what` is
    /// for messages, such as "read data/…".
    pub(super) fn persist<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut failing_since: Option<Instant> = None;
        let mut attempts = 0;
        loop {
            let failure = match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            attempts += 1;
            let failing = failing_since.get_or_insert_with(Instant::now).elapsed();
            let pause = failure.pause.unwrap_or_else(|| self.pause(attempts));
            let reached = failure.answered || self.reached.load(Ordering::Relaxed);
            let give_up = if reached {
                self.patience.give_up
            } else {
                self.patience.give_up_unreached
            };
            if !failure.transient || self.cancelled() || failing + pause > give_up {
                return Err(self.final_failure(failure, attempts, failing));
            }
            if attempts >= QUIET_ATTEMPTS {
                let reason = failure.text();
                tracing::warn!("S3 does not {what}: {reason}; trying again (attempt {attempts})");
            }
            self.sleep(pause);
        }
    }

    fn final_failure(&self, failure: Failure, attempts: u32, failing: Duration) -> Failure {
        let mut text = failure.text().to_owned();
        if !failure.answered {
            let endpoint = &self.endpoint;
            text = format!("cannot reach {endpoint}: {text}; check the address and the network");
        }
        if failure.transient && !self.cancelled() && attempts > 1 {
            let seconds = failing.as_secs();
            text = format!("{text}; given up after {attempts} attempts in {seconds} s");
        }
        failure.told_as(text)
    }

    /// A random pause below a limit that doubles.
    fn pause(&self, attempts: u32) -> Duration {
        let doubled = 1u32.checked_shl(attempts - 1).unwrap_or(u32::MAX);
        let limit = self.patience.first_pause.saturating_mul(doubled);
        let mut random = [0; 2];
        // Without randomness the pause is the longest.
        let share = match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => 0.5 + f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0,
            Err(_) => 1.0,
        };
        limit.min(MAX_PAUSE).mul_f64(share)
    }

    fn sleep(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.cancelled() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    /// Sends one request. `expected_bytes` is how much goes over the wire in all. An answer
    /// below 300 is given back with its body unread.
    pub(super) fn send<'a, A: S3Action<'a>>(
        &self,
        mut action: A,
        plain_headers: &[(&str, &str)],
        body: &[u8],
        expected_bytes: u64,
    ) -> Result<Response<Body>, Failure> {
        let url = action.sign(SIGNED_FOR);
        let mut request = Request::builder()
            .method(A::METHOD.to_str())
            .uri(url.as_str());
        for (name, value) in action.headers_mut().iter() {
            request = request.header(name, value);
        }
        for (name, value) in plain_headers {
            request = request.header(*name, *value);
        }
        let agent = self.agent();
        let limit = self.time_for(expected_bytes);
        let invalid = |_| Failure::lasting(io::ErrorKind::InvalidInput, "the URL is not valid");
        let answer = if matches!(A::METHOD, rusty_s3::Method::Put) {
            let request = request.body(body).map_err(invalid)?;
            let request = agent.configure_request(request);
            agent.run(request.timeout_global(Some(limit)).build())
        } else {
            let request = request.body(()).map_err(invalid)?;
            let request = agent.configure_request(request);
            agent.run(request.timeout_global(Some(limit)).build())
        };
        let answer = answer.map_err(Failure::no_answer)?;
        self.reached.store(true, Ordering::Relaxed);
        if answer.status().as_u16() < 300 {
            Ok(answer)
        } else {
            Err(Failure::of_answer(answer))
        }
    }

    /// Sends a request whose answer has no content; an error in it is one.
    pub(super) fn send_only<'a, A: S3Action<'a>>(
        &self,
        action: A,
        body: &[u8],
    ) -> Result<(), Failure> {
        let answer = self.send(action, &[], body, body.len() as u64)?;
        let reply = self.read_body(answer, MAX_REPLY_BYTES)?;
        let reply = String::from_utf8_lossy(&reply);
        if is_error_document(&reply) {
            return Err(Failure::of_document(&reply));
        }
        Ok(())
    }

    /// Reads a whole body of at most `max_bytes`, and as long as its head says.
    pub(super) fn read_body(
        &self,
        answer: Response<Body>,
        max_bytes: u64,
    ) -> Result<Vec<u8>, Failure> {
        let too_long = || Failure::lasting(io::ErrorKind::FileTooLarge, "the object is too long");
        let promised = answer.body().content_length();
        if promised.is_some_and(|length| length > max_bytes) {
            return Err(too_long());
        }
        let mut data = Vec::new();
        let timed = Timed {
            inner: answer.into_body().into_reader(),
            end: Instant::now() + self.time_for(promised.unwrap_or(max_bytes)),
        };
        timed
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut data)
            .map_err(|e| Failure::broken(&e))?;
        let length = data.len() as u64;
        if length > max_bytes {
            return Err(too_long());
        }
        match promised {
            Some(promised) if promised != length => Err(Failure::wrong_answer(format!(
                "the answer ended after {length} of {promised} bytes"
            ))),
            _ => Ok(data),
        }
    }

    fn time_for(&self, bytes: u64) -> Duration {
        if self.cancelled() {
            return CANCELLED_REQUEST.min(self.patience.request);
        }
        self.patience.request + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S)
    }
}

/// A body that must be over in time: each byte may come soon enough, and still the last never.
struct Timed<R> {
    inner: R,
    end: Instant,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Instant::now() > self.end {
            let text = "it takes too long for its length";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.inner.read(buf)
    }
}

fn new_agent(roots: &RootCerts, patience: &Patience) -> Agent {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(roots.clone())
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        // A signature holds for one host; a redirect means another region.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("vmtwin/", env!("CARGO_PKG_VERSION")))
        .max_idle_connections(IDLE_CONNECTIONS)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .timeout_connect(Some(patience.connect))
        .timeout_resolve(Some(patience.connect))
        .timeout_per_read(Some(patience.silence))
        .timeout_per_write(Some(patience.silence))
        .build()
        .new_agent()
}

/// Waits for the flag, then gives what runs a little time.
fn interrupt_on_cancel(client: &Weak<Client>, cancel: &AtomicBool) {
    while client.strong_count() > 0 {
        if cancel.load(Ordering::Relaxed) {
            std::thread::sleep(CANCEL_GRACE);
            if let Some(client) = client.upgrade() {
                client.interrupt();
            }
            return;
        }
        std::thread::sleep(POLL);
    }
}
