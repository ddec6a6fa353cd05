//! Says what a file with a migration stream holds, and how fast it is taken apart.
//!
//! `cargo run --release -p vmtwin-migration --example inspect -- FILE`

use std::{
    env,
    error::Error,
    fs::File,
    io::{Write, sink},
    time::Instant,
};

use vmtwin_migration::{Bytes, FileBytes, Limits, RamImage, RamSource, StreamIndex, rebuild};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: inspect FILE")?;
    let stream = FileBytes::new(File::open(path)?)?;
    let begun = Instant::now();
    let index = StreamIndex::parse(&stream, &Limits::default())?;
    report("parsed", stream.len_bytes(), begun);
    println!("{:#?}", index.layout());
    println!("head {:?} tail {:?}", index.head(), index.tail());
    println!(
        "{} pages with content, {} zero pages",
        index.data_pages(),
        index.zero_pages()
    );

    let images: Vec<RamImage<'_>> = (0..index.blocks().len())
        .filter_map(|block| index.image(&stream, block))
        .collect();
    let begun = Instant::now();
    let ram_bytes = images.iter().map(read_whole).sum::<Result<u64, _>>()?;
    report("read as images", ram_bytes, begun);

    let sources: Vec<&dyn RamSource> = images.iter().map(|image| image as _).collect();
    let head = piece(&stream, index.head())?;
    let tail = piece(&stream, index.tail())?;
    let begun = Instant::now();
    let out: &mut dyn Write = &mut sink();
    let done = rebuild(&head, index.layout(), &sources, &tail, out)?;
    report("made again", done.stream_bytes, begun);
    Ok(())
}

fn piece(stream: &dyn Bytes, range: std::ops::Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    stream.read_at(range.start, &mut bytes)?;
    Ok(bytes)
}

/// Reads what has content; returns how many bytes that was.
fn read_whole(image: &RamImage<'_>) -> std::io::Result<u64> {
    let mut buf = vec![0; PIECE];
    let (mut offset, mut read) = (0, 0);
    while offset < image.size_bytes() {
        let extent = image.extent_at(offset);
        let mut len = extent.len_bytes;
        if extent.kind == vmtwin_migration::ExtentKind::Data {
            len = len.min(PIECE as u64);
            image.read_at(offset, &mut buf[..len as usize])?;
            read += len;
        }
        offset += len;
    }
    Ok(read)
}

fn report(what: &str, bytes: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{what}: {bytes} bytes in {seconds:.3} s, {:.2} GB/s",
        bytes as f64 / seconds / 1e9
    );
}
