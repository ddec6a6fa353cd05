//! Streams made by hand: what is read is what was put in, a stream made again says the same,
//! and damage is an error, never a panic or a large allocation.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail them"
)]

mod recipe;

use proptest::{collection::vec, prelude::*};
use recipe::{Content, PAGE, Recipe, Sent};
use vmtwin_migration::{
    Bytes, Error, ExtentKind, Layout, Limits, PageAt, RamSource, RebuildError, StreamIndex, rebuild,
};

fn parse(stream: &[u8]) -> Result<StreamIndex, Error> {
    StreamIndex::parse(&stream, &Limits::default())
}

fn memory(index: &StreamIndex, stream: &dyn Bytes) -> Vec<Vec<u8>> {
    let image = |block| {
        let image = index.image(stream, block).unwrap();
        let mut bytes = vec![0xaa; image.size_bytes() as usize];
        image.read_at(0, &mut bytes).unwrap();
        bytes
    };
    (0..index.blocks().len()).map(image).collect()
}

fn piece(stream: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &stream[range.start as usize..range.end as usize]
}

fn remake(index: &StreamIndex, stream: &[u8]) -> Vec<u8> {
    let json = serde_json::to_string(index.layout()).unwrap();
    let layout: Layout = serde_json::from_str(&json).unwrap();
    let images: Vec<_> = (0..index.blocks().len())
        .map(|block| index.image(&stream, block).unwrap())
        .collect();
    let sources: Vec<&dyn RamSource> = images.iter().map(|image| image as _).collect();
    let (head, tail) = (piece(stream, index.head()), piece(stream, index.tail()));
    let mut out = Vec::new();
    let done = rebuild(head, &layout, &sources, tail, &mut out).unwrap();
    assert_eq!(done.stream_bytes, out.len() as u64);
    out
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => Just(Content::Fill(0)),
        1 => any::<u8>().prop_map(Content::Fill),
        3 => (1..=255u8).prop_map(Content::Seed),
    ]
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let sent = (0..3usize, 0..600u64, content(), any::<bool>());
    let shape = (
        any::<[bool; 5]>(),
        vec(1..600u64, 1..4),
        vec(vec(sent, 0..12), 1..4),
    );
    (shape, vec(any::<u8>(), 0..40)).prop_map(|((flags, sizes, sections), device)| {
        let [
            footers,
            configuration,
            end_section,
            switchover_start,
            description,
        ] = flags;
        let blocks: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(at, pages)| (format!("block{at}"), *pages))
            .collect();
        let fit = |(block, page_no, content, name_again): (usize, u64, Content, bool)| {
            let block = block % blocks.len();
            Sent {
                block,
                page_no: page_no % blocks[block].1,
                content,
                name_again,
            }
        };
        let sections = sections
            .into_iter()
            .map(|section| section.into_iter().map(fit).collect())
            .collect();
        let switchover_start = switchover_start && end_section;
        Recipe {
            footers,
            configuration,
            switchover_start,
            end_section,
            description,
            blocks,
            sections,
            device,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_read_and_made_again_is_what_was_put_in(recipe in recipe()) {
        let (stream, ram_start, tail_start) = recipe.stream();
        let index = parse(&stream).unwrap();
        prop_assert_eq!(index.head(), 0..ram_start as u64);
        prop_assert_eq!(index.tail(), tail_start as u64..stream.len() as u64);
        prop_assert!(memory(&index, &stream) == recipe.memory());

        let again = remake(&index, &stream);
        let index_again = parse(&again).unwrap();
        prop_assert_eq!(index_again.layout(), index.layout());
        prop_assert!(memory(&index_again, &again) == recipe.memory());
        prop_assert_eq!(piece(&again, index_again.head()), piece(&stream, index.head()));
        prop_assert_eq!(piece(&again, index_again.tail()), piece(&stream, index.tail()));
        // Made of the same content, it is the same stream.
        prop_assert!(remake(&index_again, &again) == again);
    }

    #[test]
    fn extents_cover_the_image_and_reads_anywhere_agree(
        recipe in recipe(),
        reads in vec((0..600 * PAGE as u64, 0..3 * PAGE), 1..6),
    ) {
        let (stream, ..) = recipe.stream();
        let index = parse(&stream).unwrap();
        for (block, expected) in recipe.memory().iter().enumerate() {
            let image = index.image(&stream, block).unwrap();
            let mut offset = 0;
            let mut before = None;
            while offset < image.size_bytes() {
                let extent = image.extent_at(offset);
                prop_assert!(extent.len_bytes > 0);
                prop_assert_ne!(before, Some(extent.kind));
                before = Some(extent.kind);
                let end = offset + extent.len_bytes;
                if extent.kind == ExtentKind::Zero {
                    let zeros = &expected[offset as usize..end as usize];
                    prop_assert!(zeros.iter().all(|byte| *byte == 0));
                }
                offset = end;
            }
            prop_assert_eq!(offset, image.size_bytes());
            for (offset, len) in &reads {
                let mut buf = vec![1; *len];
                let expected = expected.get(*offset as usize..*offset as usize + len);
                let read = image.read_at(*offset, &mut buf);
                prop_assert_eq!(read.is_ok(), expected.is_some());
                if let Some(expected) = expected {
                    prop_assert!(buf == expected);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"QEVM\0\0\0\x03\x01".as_slice(), &bytes].concat());
    }

    #[test]
    fn flipped_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (mut stream, ..) = Recipe::small().stream();
        let at = at.index(stream.len());
        stream[at] = byte;
        if let Ok(index) = parse(&stream) {
            remake(&index, &stream);
        }
    }
}

#[test]
fn a_stream_cut_off_anywhere_is_refused() {
    let (stream, ..) = Recipe {
        end_section: true,
        switchover_start: true,
        ..Recipe::small()
    }
    .stream();
    // Without its description a stream is whole, too: QEMU loads it.
    let before_description = stream.len() - 34 - 5;
    for len in (0..stream.len()).filter(|len| *len != before_description) {
        assert!(parse(&stream[..len]).is_err(), "{len} of {}", stream.len());
    }
    assert!(parse(&stream).is_ok());
}

#[test]
fn the_same_page_later_wins() {
    let sent = |content| Sent {
        block: 0,
        page_no: 2,
        content,
        name_again: false,
    };
    let sections = vec![vec![sent(Content::Seed(1))], vec![sent(Content::Seed(2))]];
    let recipe = Recipe {
        sections,
        end_section: true,
        ..Recipe::small()
    };
    let (stream, ..) = recipe.stream();
    let index = parse(&stream).unwrap();
    assert_eq!(memory(&index, &stream), recipe.memory());
    assert_eq!(index.page(0, 0), PageAt::Absent);
    assert_eq!(index.page(9, 0), PageAt::Absent);
    assert!(matches!(index.page(0, 2), PageAt::At(_)));
}

/// Replaces the only occurrence of `from`.
fn replaced(stream: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = stream
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    [&stream[..at], to, &stream[at + from.len()..]].concat()
}

#[test]
fn each_kind_of_damage_has_its_error() {
    let (stream, ..) = Recipe::small().stream();
    let total = |pages: u64| ((pages * 4096) | 4).to_be_bytes();
    let huge = ((1u64 << 50) | 4).to_be_bytes();
    let first_page = ((3 * 4096u64) | 8).to_be_bytes();
    let cases: &[(&[u8], &[u8], &str)] = &[
        (b"QEVM", b"QEVN", "not a QEMU"),
        (b"\0\0\0\x03\x07", b"\0\0\0\x02\x07", "not a QEMU"),
        (b"\0\0\0\x04pc-x", b"\xff\0\0\x04pc-x", "overlong name"),
        (
            b"pc-x",
            b"pc-x\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared",
            "x-ignore-shared",
        ),
        (b"pc-x", b"pc-x\x05\x03new\0\0\0\x01", "the subsection new"),
        (
            b"pc-x",
            b"pc-x\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x40",
            "size of a page",
        ),
        (b"\x03ram", b"\x03rom", "the section rom before RAM"),
        (
            b"\x03ram\0\0\0\0\0\0\0\x04",
            b"\x03ram\0\0\0\0\0\0\0\x05",
            "version 5 of RAM",
        ),
        (&total(8), &huge, "more than the limit"),
        (&total(8), &total(7), "larger than their sum"),
        (&total(8), &total(9), "RAM block without a name"),
        (
            b"pc.rom\0\0\0\0\0\0\x20\0",
            b"pc.rom\0\0\0\0\0\0\x20\x01",
            "impossible size",
        ),
        (b"\x06pc.rom\0", b"\x06pc.ram\0", "two RAM blocks"),
        (b"\x06pc.rom\0", b"\x06pc.ro\xff\0", "unreadable name"),
        (
            &first_page,
            &((6 * 4096u64) | 8).to_be_bytes(),
            "outside of its block",
        ),
        (
            &first_page,
            &((3 * 4096u64) | 0x28).to_be_bytes(),
            "page without a block",
        ),
        (&first_page, &((3 * 4096u64) | 0x40).to_be_bytes(), "xbzrle"),
        (&first_page, &0x200u64.to_be_bytes(), "multifd"),
        (
            &first_page,
            &(4096u64 | 0x10).to_be_bytes(),
            "misplaced mark",
        ),
        (b"\x7e\0\0\0\x03\x02", b"\x7e\0\0\0\x04\x02", "wrong footer"),
        (
            b"\x7e\0\0\0\x03\x02",
            b"\x7e\0\0\0\x03\x01",
            "another device",
        ),
        (
            b"\x7e\0\0\0\x03\x02",
            b"\x7e\0\0\0\x03\x09",
            "unknown section",
        ),
        (
            b"\x7e\0\0\0\x03\x02",
            b"\x7e\0\0\0\x03\x08\0\x08\0\0\x02",
            "the command 8",
        ),
        (
            b"\x7e\0\0\0\x03\x02\0\0\0\x03",
            b"\x7e\0\0\0\x03\x02\0\0\0\x07",
            "the section 7",
        ),
    ];
    for (from, to, message) in cases {
        let error = parse(&replaced(&stream, from, to)).unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} should say {message:?}");
    }
}

#[test]
fn limits_hold() {
    let (stream, ram_start, tail_start) = Recipe::small().stream();
    let fits = || {
        let mut limits = Limits::default();
        limits.max_ram_bytes = 8 * 4096;
        limits.max_head_bytes = ram_start as u64;
        limits.max_tail_bytes = (stream.len() - tail_start) as u64;
        limits
    };
    assert!(StreamIndex::parse(&stream, &fits()).is_ok());
    let shrink: [fn(&mut Limits); 3] = [
        |limits| limits.max_ram_bytes -= 4096,
        |limits| limits.max_head_bytes -= 1,
        |limits| limits.max_tail_bytes -= 1,
    ];
    for shrink in shrink {
        let mut limits = fits();
        shrink(&mut limits);
        let error = StreamIndex::parse(&stream, &limits).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}

#[test]
fn pieces_that_do_not_fit_together_are_refused() {
    let (stream, ..) = Recipe::small().stream();
    let index = parse(&stream).unwrap();
    let (head, tail) = (piece(&stream, index.head()), piece(&stream, index.tail()));
    let (ram, rom) = (vec![0; 6 * PAGE], vec![0; 2 * PAGE]);
    let sources: &[&dyn RamSource] = &[&ram, &rom];
    let layout = index.layout();
    let make = |head: &[u8], layout: &Layout, sources: &[&dyn RamSource], tail: &[u8]| {
        rebuild(head, layout, sources, tail, &mut Vec::new())
    };
    assert!(make(head, layout, sources, tail).is_ok());

    let other = Layout {
        section_id: 4,
        ..layout.clone()
    };
    let newer = Layout {
        format: 2,
        ..layout.clone()
    };
    let results = [
        make(&head[1..], layout, sources, tail),
        make(&[head, b"x"].concat(), layout, sources, tail),
        make(head, &other, sources, tail),
        make(head, &newer, sources, tail),
        make(head, layout, &sources[..1], tail),
        make(head, layout, &[&rom, &ram], tail),
        make(head, layout, sources, &tail[..tail.len() - 1]),
    ];
    let expected: [fn(&RebuildError) -> bool; 7] = [
        |e| matches!(e, RebuildError::Head(_)),
        |e| matches!(e, RebuildError::LayoutMismatch { .. }),
        |e| matches!(e, RebuildError::LayoutMismatch { .. }),
        |e| matches!(e, RebuildError::LayoutFormat { .. }),
        |e| matches!(e, RebuildError::SourceSize { actual: 0, .. }),
        |e| matches!(e, RebuildError::SourceSize { .. }),
        |e| matches!(e, RebuildError::Tail(_)),
    ];
    for (at, (result, expected)) in results.into_iter().zip(expected).enumerate() {
        let error = result.unwrap_err();
        assert!(expected(&error), "case {at}: {error}");
    }
}
