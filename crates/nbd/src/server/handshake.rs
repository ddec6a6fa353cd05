//! The server's side of the handshake: options until an export is chosen.

use std::io::{self, Read, Write};

use super::ServedExport;
use crate::{context, wire};

/// Longest option taken, bytes: a name and some contexts of the greatest length.
const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Most options before an export is chosen.
const MAX_OPTIONS: usize = 128;
/// Best size of a read, bytes: smaller ones unfold the same chunk again when it left the cache.
const PREFERRED_BYTES: u32 = 64 << 10;
/// Id of `base:allocation` on every connection.
pub(crate) const CONTEXT_ID: u32 = 1;

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    /// Number of the export.
    pub(crate) export: usize,
    pub(crate) structured: bool,
    /// Whether `base:allocation` was asked for.
    pub(crate) allocation: bool,
}

/// Whether the handshake goes on.
enum Next {
    Option,
    Serve(usize),
    End,
}

pub(crate) struct Handshake<'a, R, W> {
    input: R,
    output: W,
    exports: &'a [ServedExport],
    no_zeroes: bool,
    structured: bool,
    /// The export that `base:allocation` was asked for.
    context_of: Option<usize>,
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<'a, R: Read, W: Write> Handshake<'a, R, W> {
    pub(crate) fn new(input: R, output: W, exports: &'a [ServedExport]) -> Self {
        Handshake {
            input,
            output,
            exports,
            no_zeroes: false,
            structured: false,
            context_of: None,
        }
    }

    /// Negotiates; `None` if the client had enough.
    pub(crate) fn run(mut self) -> io::Result<Option<Session>> {
        self.greet()?;
        for _ in 0..MAX_OPTIONS {
            match self.option()? {
                Next::Option => {}
                Next::End => return Ok(None),
                Next::Serve(export) => {
                    return Ok(Some(Session {
                        export,
                        structured: self.structured,
                        allocation: self.context_of == Some(export),
                    }));
                }
            }
        }
        Err(bad("endless options"))
    }

    fn greet(&mut self) -> io::Result<()> {
        let ours = wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES;
        let mut hello = wire::INIT_MAGIC.to_be_bytes().to_vec();
        hello.extend(wire::OPTION_MAGIC.to_be_bytes());
        hello.extend(ours.to_be_bytes());
        self.output.write_all(&hello)?;
        let flags = self.u32()?;
        if flags & !u32::from(ours) != 0 || flags & u32::from(wire::HANDSHAKE_FIXED_NEWSTYLE) == 0 {
            return Err(bad("unknown flags of a client"));
        }
        self.no_zeroes = flags & u32::from(wire::HANDSHAKE_NO_ZEROES) != 0;
        Ok(())
    }

    fn option(&mut self) -> io::Result<Next> {
        let mut magic = [0; 8];
        self.input.read_exact(&mut magic)?;
        if u64::from_be_bytes(magic) != wire::OPTION_MAGIC {
            return Err(bad("wrong magic of an option"));
        }
        let (option, len) = (self.u32()?, self.u32()?);
        if len > MAX_OPTION_BYTES {
            return Err(bad("overlong option"));
        }
        let mut data = vec![0; len as usize];
        self.input.read_exact(&mut data)?;
        match option {
            wire::OPTION_EXPORT_NAME => self.export_name(&data),
            wire::OPTION_ABORT => self.reply(option, wire::REPLY_ACK, &[]).map(|()| Next::End),
            wire::OPTION_LIST if data.is_empty() => self.list(),
            wire::OPTION_INFO | wire::OPTION_GO => self.info(option, &data),
            wire::OPTION_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.go_on(option, wire::REPLY_ACK, "")
            }
            wire::OPTION_LIST_META_CONTEXT | wire::OPTION_SET_META_CONTEXT => {
                self.contexts(option, &data)
            }
            wire::OPTION_LIST | wire::OPTION_STRUCTURED_REPLY => {
                self.go_on(option, wire::REPLY_INVALID, "this option has no data")
            }
            _ => self.go_on(option, wire::REPLY_UNSUPPORTED, ""),
        }
    }

    /// The oldest way to choose an export: there is no way to refuse but to hang up.
    fn export_name(&mut self, name: &[u8]) -> io::Result<Next> {
        let export = self.find(name).ok_or_else(|| bad("no such export"))?;
        let mut reply = self.describe(export);
        if !self.no_zeroes {
            reply.resize(reply.len() + 124, 0);
        }
        self.output.write_all(&reply)?;
        Ok(Next::Serve(export))
    }

    fn list(&mut self) -> io::Result<Next> {
        for export in self.exports {
            let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
            data.extend(export.name.as_bytes());
            data.extend(export.description.as_bytes());
            self.reply(wire::OPTION_LIST, wire::REPLY_SERVER, &data)?;
        }
        self.go_on(wire::OPTION_LIST, wire::REPLY_ACK, "")
    }

    fn info(&mut self, option: u32, data: &[u8]) -> io::Result<Next> {
        let Some((name, asked)) = parse_info(data) else {
            return self.go_on(option, wire::REPLY_INVALID, "malformed option");
        };
        let Some(number) = self.find(name) else {
            return self.go_on(option, wire::REPLY_UNKNOWN, "no such export");
        };
        let export = &self.exports[number];
        let mut replies = vec![(wire::INFO_EXPORT, self.describe(number))];
        if asked.contains(&wire::INFO_NAME) {
            replies.push((wire::INFO_NAME, export.name.clone().into_bytes()));
        }
        if asked.contains(&wire::INFO_DESCRIPTION) {
            let text = export.description.clone().into_bytes();
            replies.push((wire::INFO_DESCRIPTION, text));
        }
        let sizes = [1, PREFERRED_BYTES, wire::MAX_PAYLOAD].map(u32::to_be_bytes);
        replies.push((wire::INFO_BLOCK_SIZE, sizes.concat()));
        for (kind, value) in replies {
            let data = [kind.to_be_bytes().as_slice(), &value].concat();
            self.reply(option, wire::REPLY_INFO, &data)?;
        }
        self.reply(option, wire::REPLY_ACK, &[])?;
        Ok(match option {
            wire::OPTION_GO => Next::Serve(number),
            _ => Next::Option,
        })
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<Next> {
        let setting = option == wire::OPTION_SET_META_CONTEXT;
        if setting {
            // Also where this one fails: the last word counts.
            self.context_of = None;
            if !self.structured {
                let why = "structured replies have to be negotiated first";
                return self.go_on(option, wire::REPLY_INVALID, why);
            }
        }
        let Some((name, queries)) = parse_contexts(data) else {
            return self.go_on(option, wire::REPLY_INVALID, "malformed option");
        };
        let Some(export) = self.find(name) else {
            return self.go_on(option, wire::REPLY_UNKNOWN, "no such export");
        };
        let base = context::BASE_ALLOCATION.as_bytes();
        let all = !setting && (queries.is_empty() || queries.contains(&b"base:".as_slice()));
        if all || queries.contains(&base) {
            let id = if setting { CONTEXT_ID } else { 0 };
            let data = [id.to_be_bytes().as_slice(), base].concat();
            self.reply(option, wire::REPLY_META_CONTEXT, &data)?;
            if setting {
                self.context_of = Some(export);
            }
        }
        self.go_on(option, wire::REPLY_ACK, "")
    }

    /// Number of the export of this name; an empty name is the only export.
    fn find(&self, name: &[u8]) -> Option<usize> {
        let named = self.exports.iter().position(|e| e.name.as_bytes() == name);
        named.or_else(|| (name.is_empty() && self.exports.len() == 1).then_some(0))
    }

    /// Size and flags.
    fn describe(&self, export: usize) -> Vec<u8> {
        let flags = wire::FLAG_HAS_FLAGS | wire::FLAG_READ_ONLY | wire::FLAG_CAN_MULTI_CONN;
        let size_bytes = self.exports[export].image.size_bytes();
        [size_bytes.to_be_bytes().as_slice(), &flags.to_be_bytes()].concat()
    }

    fn go_on(&mut self, option: u32, kind: u32, text: &str) -> io::Result<Next> {
        self.reply(option, kind, text.as_bytes())
            .map(|()| Next::Option)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut message = wire::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        for word in [option, kind, data.len() as u32] {
            message.extend(word.to_be_bytes());
        }
        message.extend(data);
        self.output.write_all(&message)
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }
}

/// `length, text` and what follows.
fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

/// The name, and what is asked for.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let (name, rest) = string(data)?;
    let (count, rest) = rest.split_first_chunk()?;
    let (asked, odd) = rest.as_chunks();
    let fits = odd.is_empty() && asked.len() == usize::from(u16::from_be_bytes(*count));
    fits.then(|| {
        (
            name,
            asked.iter().copied().map(u16::from_be_bytes).collect(),
        )
    })
}

/// The name, and the queries.
fn parse_contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = string(data)?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, after) = string(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}
