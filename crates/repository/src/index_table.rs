//! Blobs of one kind, sorted by id, 29 bytes each: ten million of them are 290 MB.
//!
//! Of an id the first 15 bytes are kept. Two of ten million blobs share those with a probability of
//! 10⁻²²; whoever reads a blob checks its whole id.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::thread;

use crate::id::Id;

/// What is kept of an id, bytes.
const KEY_BYTES: usize = 15;
/// Key, pack, offset (4 bytes each), sealed and plain length (3 bytes each).
const ROW_BYTES: usize = KEY_BYTES + 14;
/// Stands for a length that does not fit three bytes.
const LONG: u32 = 0xff_ffff;
/// Rows that are read at once.
const READ_ROWS: usize = 4096;
/// Rows that are worth a thread of their own when they are sorted.
const SORT_ALONE: usize = 100_000;

/// Where a blob is, by the number of its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPlace {
    pub(crate) pack: u32,
    pub(crate) offset_bytes: u32,
    pub(crate) sealed_bytes: u32,
    /// Zero: not compressed. (An empty blob is never compressed.)
    pub(crate) compressed_from: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row([u8; ROW_BYTES]);

/// Rows that are not sorted yet.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    /// Sealed and plain lengths of rows that say [`LONG`], by pack and offset.
    long: HashMap<(u32, u32), (u32, u32)>,
}

impl Rows {
    /// Empty, with room for so many.
    pub(crate) fn with_room(rows: u64) -> Rows {
        let mut room = Vec::new();
        // Without the room it grows as it must.
        let _ = room.try_reserve_exact(usize::try_from(rows).unwrap_or(0));
        Rows {
            rows: room,
            long: HashMap::new(),
        }
    }

    pub(crate) fn append(&mut self, other: Rows) {
        self.rows.extend_from_slice(&other.rows);
        self.long.extend(other.long);
    }

    pub(crate) fn push(&mut self, id: &Id, place: RowPlace) {
        let mut row = [0; ROW_BYTES];
        row[..KEY_BYTES].copy_from_slice(&id.as_bytes()[..KEY_BYTES]);
        row[15..19].copy_from_slice(&place.pack.to_le_bytes());
        row[19..23].copy_from_slice(&place.offset_bytes.to_le_bytes());
        let (mut sealed, mut from) = (place.sealed_bytes, place.compressed_from);
        if sealed.max(from) >= LONG {
            let at = (place.pack, place.offset_bytes);
            self.long.insert(at, (sealed, from));
            (sealed, from) = (LONG, LONG);
        }
        row[23..26].copy_from_slice(&sealed.to_le_bytes()[..3]);
        row[26..29].copy_from_slice(&from.to_le_bytes()[..3]);
        self.rows.push(Row(row));
    }
}

/// All rows, sorted.
#[derive(Default)]
pub(crate) struct BlobTable {
    rows: Vec<Row>,
    long: HashMap<(u32, u32), (u32, u32)>,
}

impl BlobTable {
    /// Sorts rows, in place.
    pub(crate) fn of(rows: Rows) -> BlobTable {
        let Rows { mut rows, long } = rows;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        sort(&mut rows, threads);
        BlobTable { rows, long }
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Writes the rows of both as one table, for [`Self::read`].
    pub(crate) fn write_both(&self, other: &BlobTable, out: &mut dyn Write) -> io::Result<()> {
        let count = (self.rows.len() + other.rows.len()) as u64;
        let long = (self.long.len() + other.long.len()) as u64;
        out.write_all(&count.to_le_bytes())?;
        out.write_all(&long.to_le_bytes())?;
        for ((pack, offset), (sealed, from)) in self.long.iter().chain(&other.long) {
            for number in [pack, offset, sealed, from] {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        let (mut left, mut right) = (self.rows.iter().peekable(), other.rows.iter().peekable());
        loop {
            let row = match (left.peek(), right.peek()) {
                (Some(l), Some(r)) if r < l => right.next(),
                (Some(_), _) => left.next(),
                (None, _) => right.next(),
            };
            match row {
                Some(Row(row)) => out.write_all(row)?,
                None => return Ok(()),
            }
        }
    }

    /// Reads what [`Self::write_both`] wrote. The rows may be at most `max_bytes` long.
    pub(crate) fn read(input: &mut dyn Read, max_bytes: u64) -> io::Result<BlobTable> {
        let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let (count, long_count) = (read_u64(input)?, read_u64(input)?);
        if count.max(long_count) > max_bytes / 16 {
            return Err(wrong("more rows than bytes"));
        }
        let mut long = HashMap::new();
        for _ in 0..long_count {
            let mut number = || read_u32(input);
            let (place, lengths) = ((number()?, number()?), (number()?, number()?));
            long.insert(place, lengths);
        }
        let mut rows: Vec<Row> = Vec::new();
        rows.try_reserve_exact(count as usize)?;
        let mut part = vec![0; ROW_BYTES * READ_ROWS];
        while rows.len() < count as usize {
            let wanted = READ_ROWS.min(count as usize - rows.len());
            let part = &mut part[..wanted * ROW_BYTES];
            input.read_exact(part)?;
            rows.extend(part.as_chunks::<ROW_BYTES>().0.iter().map(|row| Row(*row)));
        }
        match rows.is_sorted() {
            true => Ok(BlobTable { rows, long }),
            false => Err(wrong("rows out of order")),
        }
    }

    /// All places of a blob.
    pub(crate) fn places(&self, id: &Id) -> impl Iterator<Item = RowPlace> + use<'_> {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&id.as_bytes()[..KEY_BYTES]);
        let first = self
            .rows
            .partition_point(|row| row.0[..KEY_BYTES] < key[..]);
        let same = self.rows[first..].iter();
        let same = same.take_while(move |row| row.0[..KEY_BYTES] == key);
        same.map(|row| self.place(row))
    }

    fn place(&self, Row(row): &Row) -> RowPlace {
        let number = |from: usize, bytes: usize| {
            let mut four = [0; 4];
            four[..bytes].copy_from_slice(&row[from..from + bytes]);
            u32::from_le_bytes(four)
        };
        let (pack, offset_bytes) = (number(15, 4), number(19, 4));
        let (mut sealed_bytes, mut compressed_from) = (number(23, 3), number(26, 3));
        if sealed_bytes == LONG && compressed_from == LONG {
            let lengths = self.long.get(&(pack, offset_bytes));
            (sealed_bytes, compressed_from) = lengths.copied().unwrap_or((LONG, LONG));
        }
        RowPlace {
            pack,
            offset_bytes,
            sealed_bytes,
            compressed_from,
        }
    }
}

/// Reads a number of eight bytes.
pub(crate) fn read_u64(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_u32(input: &mut dyn Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Sorts in place, halves at the same time.
fn sort(rows: &mut [Row], threads: usize) {
    if threads < 2 || rows.len() < SORT_ALONE {
        rows.sort_unstable();
        return;
    }
    let (low, _, high) = rows.select_nth_unstable(rows.len() / 2);
    thread::scope(|scope| {
        scope.spawn(|| sort(low, threads / 2));
        sort(high, threads - threads / 2);
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(rows: &[(u8, RowPlace)]) -> BlobTable {
        let (left, right) = rows.split_at(rows.len() / 2);
        let part = |rows: &[(u8, RowPlace)]| {
            let mut part = Rows::with_room(3);
            for (id, place) in rows {
                part.push(&Id::from_bytes([*id; 32]), *place);
            }
            part
        };
        let mut all = part(left);
        all.append(part(right));
        BlobTable::of(all)
    }

    proptest! {
        #[test]
        fn every_place_is_found_again(
            rows in prop::collection::vec(
                (0u8..8, any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()), 0..40),
        ) {
            let mut rows: Vec<(u8, RowPlace)> = rows
                .into_iter()
                .map(|(id, pack, offset_bytes, sealed, from)| (id, RowPlace {
                    pack,
                    offset_bytes,
                    // Short and long ones.
                    sealed_bytes: sealed >> (id * 2),
                    compressed_from: from >> (id * 3),
                }))
                .collect();
            // A place in a pack holds one blob.
            rows.sort_by_key(|(_, place)| (place.pack, place.offset_bytes));
            rows.dedup_by_key(|(_, place)| (place.pack, place.offset_bytes));
            let (left, right) = rows.split_at(rows.len() / 3);
            let mut written = Vec::new();
            table(left).write_both(&table(right), &mut written).unwrap();
            let read = BlobTable::read(&mut &written[..], written.len() as u64).unwrap();
            prop_assert_eq!(&read.rows, &table(&rows).rows);
            prop_assert_eq!(&read.long, &table(&rows).long);
            let table = read;
            for id in 0..=8u8 {
                let key = |place: &RowPlace| (place.pack, place.offset_bytes);
                let mut found: Vec<_> = table.places(&Id::from_bytes([id; 32])).collect();
                let mut expected: Vec<_> =
                    rows.iter().filter(|row| row.0 == id).map(|row| row.1).collect();
                found.sort_by_key(key);
                expected.sort_by_key(key);
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn many_rows_are_sorted_by_several_threads() {
        let mut rows: Vec<Row> = (0..300_000u32)
            .map(|n| {
                let mut row = [0; ROW_BYTES];
                row[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
                Row(row)
            })
            .collect();
        sort(&mut rows, 4);
        assert!(rows.is_sorted());
    }
}
