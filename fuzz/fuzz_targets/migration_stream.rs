//! Any bytes as a migration stream. What can be parsed must give the same RAM, head and tail
//! when it is made again and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtwin_migration::{Bytes, Limits, RamSource, StreamIndex, rebuild};

/// Small pages and little RAM, so that a short input can say a lot.
fn limits() -> Limits {
    Limits::default()
        .with_page_size_bytes(1024)
        .with_max_ram_bytes(1 << 20)
}

fn memory(index: &StreamIndex, stream: &dyn Bytes) -> Vec<Vec<u8>> {
    let blocks = index.blocks().iter().enumerate();
    blocks
        .map(|(number, block)| {
            let mut content = vec![0xaa; block.size_bytes as usize];
            let image = index.image(stream, number).expect("the block is known");
            image.read_at(0, &mut content).expect("memory can be read");
            content
        })
        .collect()
}

fn piece(stream: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &stream[range.start as usize..range.end as usize]
}

fuzz_target!(|stream: &[u8]| {
    let Ok(index) = StreamIndex::parse(&stream, &limits()) else {
        return;
    };
    let content = memory(&index, &stream);
    let images: Vec<_> = (0..content.len())
        .filter_map(|block| index.image(&stream, block))
        .collect();
    let sources: Vec<&dyn RamSource> = images.iter().map(|image| image as _).collect();
    let (head, tail) = (piece(stream, index.head()), piece(stream, index.tail()));
    let mut again = Vec::new();
    rebuild(head, index.layout(), &sources, tail, &mut again).expect("can be made again");
    let index_again = StreamIndex::parse(&again, &limits()).expect("can be read again");
    assert_eq!(index_again.layout(), index.layout());
    assert_eq!(piece(&again, index_again.head()), head);
    assert_eq!(piece(&again, index_again.tail()), tail);
    assert!(memory(&index_again, &again) == content);
});
