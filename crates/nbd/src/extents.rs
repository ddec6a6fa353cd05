//! A walk over the block status of a range, request by request.

use crate::{Client, Error};

/// A stretch of an export with the same status. Extents follow one another without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length, in bytes; never 0.
    pub len_bytes: u64,
    /// Status; what it means depends on the context, see [`crate::context`].
    pub flags: u32,
}

/// Extents of a range in order, without a gap; neighbours differ in their flags. Made by
/// [`Client::extents`]; holds one reply at a time. Ends after the first error.
#[derive(Debug)]
pub struct Extents<'a> {
    client: &'a Client,
    context: &'a str,
    offset: u64,
    end: u64,
    reply: std::vec::IntoIter<StatusExtent>,
    /// The extent that may still grow.
    open: Option<StatusExtent>,
}

impl<'a> Extents<'a> {
    pub(crate) fn new(client: &'a Client, context: &'a str, offset: u64, len_bytes: u64) -> Self {
        let end = offset.saturating_add(len_bytes);
        Self {
            client,
            context,
            offset,
            end,
            reply: Vec::new().into_iter(),
            open: None,
        }
    }

    /// The next extent as the server cut it.
    fn next_piece(&mut self) -> Result<Option<StatusExtent>, Error> {
        if let Some(piece) = self.reply.next() {
            return Ok(Some(piece));
        }
        if self.offset >= self.end {
            return Ok(None);
        }
        let left = self.end - self.offset;
        let extents = self.client.block_status(self.context, self.offset, left)?;
        self.offset += extents.iter().map(|extent| extent.len_bytes).sum::<u64>();
        self.reply = extents.into_iter();
        Ok(self.reply.next())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<StatusExtent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match (self.next_piece(), &mut self.open) {
                (Err(error), _) => {
                    self.offset = self.end;
                    self.open = None;
                    return Some(Err(error));
                }
                (Ok(None), _) => return self.open.take().map(Ok),
                (Ok(Some(piece)), Some(open)) if piece.flags == open.flags => {
                    open.len_bytes += piece.len_bytes;
                }
                (Ok(Some(piece)), _) => {
                    if let Some(whole) = self.open.replace(piece) {
                        return Some(Ok(whole));
                    }
                }
            }
        }
    }
}
