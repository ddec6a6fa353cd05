//! A server in the test's own process that says whatever a test wants.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use vmtwin_nbd::{Client, Error, Options};

pub(crate) const SIZE: u64 = 1 << 20;

/// A request as it arrives: 28 bytes.
pub(crate) type Request = [u8; 28];

/// The cookie of a request, to be repeated in replies.
pub(crate) fn cookie(request: &Request) -> [u8; 8] {
    *request[8..].first_chunk().unwrap()
}

pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for word in [option, kind, data.len() as u32] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

/// A whole honest handshake, with structured replies and `base:allocation` as context 1.
pub(crate) fn handshake() -> Vec<u8> {
    let size = SIZE.to_be_bytes();
    let export = [&[0, 0], size.as_slice(), &[0, 0xed]].concat();
    [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option_reply(8, 1, &[]),
        option_reply(10, 4, b"\0\0\0\x01base:allocation"),
        option_reply(10, 1, &[]),
        option_reply(7, 3, &export),
        option_reply(7, 1, &[]),
    ]
    .concat()
}

/// A chunk of a structured reply.
pub(crate) fn chunk(request: &Request, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie(request));
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn options(timeout: Duration) -> Options {
    let mut options = Options::with_contexts(["base:allocation"]);
    options.connect_timeout = timeout;
    options.request_timeout = timeout;
    options
}

/// Connects to a server that runs `serve` once the client has said all of its handshake.
pub(crate) fn connect(
    timeout: Duration,
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> Result<Client, Error> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        // The client's side of the handshake has a known length.
        let mut said = [0; 4 + 16 + (16 + 8 + 4 + 4 + 15) + (16 + 4 + 4 + 2 + 2)];
        if theirs.write_all(&handshake()).is_ok() && theirs.read_exact(&mut said).is_ok() {
            serve(theirs);
        }
    });
    Client::from_stream(ours, "disk", &options(timeout))
}

/// Connects to a server that answers each request with what `answer` makes of it, until that
/// is empty; then it closes.
pub(crate) fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Client {
    let serve = move |mut stream: UnixStream| {
        let mut request = [0; 28];
        while stream.read_exact(&mut request).is_ok() {
            let bytes = answer(&request);
            if bytes.is_empty() || stream.write_all(&bytes).is_err() {
                return;
            }
        }
    };
    connect(Duration::from_secs(5), serve).unwrap()
}
