//! One connection: handshake, then requests in and answers out, many at once.

use std::io::{self, BufReader};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::handshake::Handshake;
use super::request::Request;
use super::stream::{Stream, Timed};
use super::{Answerer, Gate, ServedExport};

/// Longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time in which a client takes nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// Requests that wait for a worker; more wait in the socket.
const QUEUE: usize = 32;
/// Fewest and most workers of a connection.
const WORKERS: (usize, usize) = (2, 4);

/// Serves a client until it goes.
pub(super) fn serve(stream: &Stream, exports: &[ServedExport], gate: &Gate) -> io::Result<()> {
    let timed = Timed {
        stream,
        at: Instant::now() + HANDSHAKE_TIMEOUT,
    };
    let Some(session) = Handshake::new(timed, timed, exports).run()? else {
        return Ok(());
    };
    stream.set_timeouts(None, Some(WRITE_TIMEOUT))?;
    let answerer = Answerer::new(&*exports[session.export].image, session, stream, gate);
    let workers = thread::available_parallelism().map_or(WORKERS.0, usize::from);
    let (queue, requests) = sync_channel(QUEUE);
    let requests = Mutex::new(requests);
    thread::scope(|scope| {
        for _ in 0..workers.clamp(WORKERS.0, WORKERS.1) {
            scope.spawn(|| work(&requests, &answerer, stream));
        }
        let mut input = BufReader::new(stream);
        let result = loop {
            match Request::read(&mut input) {
                Ok(Some(request)) => {
                    if queue.send(request).is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => {
                    // Who is writing to a client that is gone need not wait for the time limit.
                    stream.shut();
                    break Err(error);
                }
            }
        };
        // The workers answer what is left, and end.
        drop(queue);
        result
    })
}

fn work(requests: &Mutex<Receiver<Request>>, answerer: &Answerer<'_, &Stream>, stream: &Stream) {
    let mut buf = Vec::new();
    let mut broken = false;
    loop {
        let next = requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(request) = next else {
            return;
        };
        // After an error requests are only taken out, so that the reader comes to its end.
        if !broken && answerer.answer(&request, &mut buf).is_err() {
            broken = true;
            stream.shut();
        }
    }
}
