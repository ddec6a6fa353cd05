//! The handshake: from a fresh connection to an export that takes requests.

use std::io::{Read, Write};

use crate::{Error, wire};

/// Longest reply to an option, in bytes.
const MAX_OPTION_REPLY: u32 = 16 << 10;

/// Most replies to one option.
const MAX_OPTION_REPLIES: usize = 256;

/// Most contexts that may be asked for.
const MAX_CONTEXTS: usize = 64;

/// What the server said of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) size_bytes: u64,
    pub(crate) flags: u16,
    pub(crate) structured: bool,
    pub(crate) max_payload_bytes: u32,
    /// Contexts granted: id, name.
    pub(crate) contexts: Vec<(u32, String)>,
}

/// Both directions of a connection under negotiation.
pub(crate) struct Negotiation<R, W> {
    pub(crate) input: R,
    pub(crate) output: W,
}

/// One reply to an option.
struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

impl<R: Read, W: Write> Negotiation<R, W> {
    /// Asks for the export `name` with metadata `contexts`.
    pub(crate) fn run(&mut self, name: &str, contexts: &[String]) -> Result<Export, Error> {
        check_strings(name, contexts)?;
        self.greet()?;
        let structured = self.structured_replies()?;
        let contexts = match contexts {
            [] => Vec::new(),
            _ if structured => self.meta_contexts(name, contexts)?,
            _ => Vec::new(),
        };
        let export = Export {
            size_bytes: 0,
            flags: 0,
            structured,
            max_payload_bytes: wire::MAX_PAYLOAD,
            contexts,
        };
        self.go(name, export)
    }

    fn greet(&mut self) -> Result<(), Error> {
        if self.u64()? != wire::INIT_MAGIC {
            return Err(Error::protocol("this is not an NBD server"));
        }
        if self.u64()? != wire::OPTION_MAGIC {
            return Err(Error::protocol("old-style handshake"));
        }
        let flags = self.u16()?;
        if flags & wire::HANDSHAKE_FIXED_NEWSTYLE == 0 {
            return Err(Error::protocol("handshake is not the fixed new style"));
        }
        let answer = flags & (wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES);
        self.output
            .write_all(&u32::from(answer).to_be_bytes())
            .map_err(Error::Io)
    }

    fn structured_replies(&mut self) -> Result<bool, Error> {
        self.send_option(wire::OPTION_STRUCTURED_REPLY, &[])?;
        let reply = self.option_reply(wire::OPTION_STRUCTURED_REPLY)?;
        match reply.kind {
            wire::REPLY_ACK => Ok(true),
            kind if kind & wire::REPLY_ERROR_BIT != 0 => Ok(false),
            _ => Err(Error::protocol("unexpected reply to an option")),
        }
    }

    fn meta_contexts(
        &mut self,
        export: &str,
        names: &[String],
    ) -> Result<Vec<(u32, String)>, Error> {
        let mut data = Vec::new();
        put_string(&mut data, export);
        data.extend((names.len() as u32).to_be_bytes());
        for name in names {
            put_string(&mut data, name);
        }
        self.send_option(wire::OPTION_SET_META_CONTEXT, &data)?;
        let mut granted: Vec<(u32, String)> = Vec::new();
        for _ in 0..MAX_OPTION_REPLIES {
            let reply = self.option_reply(wire::OPTION_SET_META_CONTEXT)?;
            match reply.kind {
                wire::REPLY_ACK => return Ok(granted),
                wire::REPLY_META_CONTEXT => {
                    let context = meta_context(&reply.data, names)?;
                    if granted
                        .iter()
                        .any(|(id, name)| *id == context.0 || *name == context.1)
                    {
                        return Err(Error::protocol("the same metadata context twice"));
                    }
                    granted.push(context);
                }
                _ => return Err(reply.refusal("metadata contexts")),
            }
        }
        Err(Error::protocol("endless replies to an option"))
    }

    fn go(&mut self, name: &str, mut export: Export) -> Result<Export, Error> {
        let mut data = Vec::new();
        put_string(&mut data, name);
        data.extend(1u16.to_be_bytes());
        data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
        self.send_option(wire::OPTION_GO, &data)?;
        let mut described = false;
        for _ in 0..MAX_OPTION_REPLIES {
            let reply = self.option_reply(wire::OPTION_GO)?;
            match reply.kind {
                wire::REPLY_ACK if described => return Ok(export),
                wire::REPLY_ACK => return Err(Error::protocol("an export without a size")),
                wire::REPLY_INFO => described |= read_info(&reply.data, &mut export)?,
                _ => return Err(reply.refusal("the export")),
            }
        }
        Err(Error::protocol("endless replies to an option"))
    }

    fn send_option(&mut self, option: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.output.write_all(&message).map_err(Error::Io)
    }

    fn option_reply(&mut self, option: u32) -> Result<OptionReply, Error> {
        if self.u64()? != wire::OPTION_REPLY_MAGIC {
            return Err(Error::protocol("wrong magic in the reply to an option"));
        }
        if self.u32()? != option {
            return Err(Error::protocol("reply to an option that was not sent"));
        }
        let kind = self.u32()?;
        let len = self.u32()?;
        if len > MAX_OPTION_REPLY {
            return Err(Error::protocol("overlong reply to an option"));
        }
        let mut data = vec![0; len as usize];
        self.input.read_exact(&mut data).map_err(Error::Io)?;
        Ok(OptionReply { kind, data })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(Error::Io)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.take()?))
    }
}

impl OptionReply {
    fn refusal(self, what: &'static str) -> Error {
        if self.kind & wire::REPLY_ERROR_BIT == 0 {
            return Error::protocol("unexpected reply to an option");
        }
        let text = &self.data[..self.data.len().min(wire::MAX_STRING as usize)];
        let message = String::from_utf8_lossy(text).into_owned();
        Error::Refused {
            what,
            reason: wire::refusal_name(self.kind),
            message,
        }
    }
}

fn check_strings(name: &str, contexts: &[String]) -> Result<(), Error> {
    let fits = |text: &str| text.len() <= wire::MAX_STRING as usize;
    if contexts.len() <= MAX_CONTEXTS && fits(name) && contexts.iter().all(|name| fits(name)) {
        return Ok(());
    }
    Err(Error::NotOffered {
        what: "names longer than 4096 bytes, or so many contexts".into(),
    })
}

fn put_string(data: &mut Vec<u8>, text: &str) {
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text.as_bytes());
}

/// `id, name`; only what was asked for may be granted.
fn meta_context(data: &[u8], asked: &[String]) -> Result<(u32, String), Error> {
    let (id, name) = data
        .split_first_chunk()
        .ok_or(Error::protocol("short metadata context"))?;
    let name = asked.iter().find(|asked| asked.as_bytes() == name);
    let name = name.ok_or(Error::protocol("a metadata context that was not asked for"))?;
    Ok((u32::from_be_bytes(*id), name.clone()))
}

/// Reads one piece of information; says whether it was the size of the export.
fn read_info(data: &[u8], export: &mut Export) -> Result<bool, Error> {
    let short = || Error::protocol("short information on the export");
    let (kind, rest) = data.split_first_chunk().ok_or_else(short)?;
    match u16::from_be_bytes(*kind) {
        wire::INFO_EXPORT => {
            let [size @ .., flag_high, flag_low]: [u8; 10] =
                rest.try_into().map_err(|_| short())?;
            export.size_bytes = u64::from_be_bytes(size);
            export.flags = u16::from_be_bytes([flag_high, flag_low]);
            if export.size_bytes > i64::MAX as u64 {
                return Err(Error::protocol("an export of impossible size"));
            }
            Ok(true)
        }
        wire::INFO_BLOCK_SIZE => {
            let [_, _, _, _, rest @ ..]: [u8; 12] = rest.try_into().map_err(|_| short())?;
            let [a, b, c, d, max @ ..] = rest;
            export.max_payload_bytes = max_payload(u32::from_be_bytes([a, b, c, d]), max)?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// The largest payload: a server's maximum is at least its preferred size, which is at least
/// 512 bytes.
fn max_payload(preferred: u32, max: [u8; 4]) -> Result<u32, Error> {
    let max = u32::from_be_bytes(max);
    if preferred < 512 || max < preferred {
        return Err(Error::protocol("impossible block sizes"));
    }
    // Splitting at a power of two keeps every piece as aligned as the request was.
    Ok(1 << max.min(wire::MAX_PAYLOAD).ilog2())
}
