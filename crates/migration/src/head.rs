//! The head of a stream: header, configuration, and the setup section of RAM with the list of
//! its blocks.

use crate::{
    Error, Layout, Limits, RamBlock,
    cursor::Cursor,
    layout::LAYOUT_FORMAT,
    limits::{MAX_BLOCK_BYTES, MAX_BLOCKS, MAX_CAPABILITIES, MAX_MACHINE_NAME},
    wire,
};

/// Reads everything up to and including the setup of RAM. `switchover_start` and `end_section`
/// are not known yet, and false.
pub(crate) fn read_head(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<Layout, Error> {
    let mut layout = Layout {
        format: LAYOUT_FORMAT,
        page_size_bytes: limits.page_size_bytes,
        section_id: 0,
        instance_id: 0,
        section_version: 0,
        footers: false,
        switchover_start: false,
        end_section: false,
        blocks: Vec::new(),
    };
    read_header(cursor)?;
    if cursor.peek()? == Some(wire::SECTION_CONFIGURATION) {
        read_configuration(cursor, &mut layout)?;
    }
    check_page_size(layout.page_size_bytes, cursor.offset())?;
    read_ram_start(cursor, &mut layout)?;
    read_blocks(cursor, &mut layout, limits)?;
    read_end_of_setup(cursor)?;
    layout.footers = read_first_footer(cursor, layout.section_id)?;
    let head_bytes = cursor.offset();
    if head_bytes > limits.max_head_bytes {
        let limit = limits.max_head_bytes;
        return Err(Error::TooLarge {
            what: "head of the stream in bytes",
            actual: head_bytes,
            limit,
        });
    }
    Ok(layout)
}

fn read_header(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    if cursor.u32("the magic")? != wire::MAGIC {
        return Err(Error::NotAStream);
    }
    if cursor.u32("the version")? != wire::VERSION {
        return Err(Error::NotAStream);
    }
    Ok(())
}

fn read_configuration(cursor: &mut Cursor<'_>, layout: &mut Layout) -> Result<(), Error> {
    cursor.u8("the configuration")?;
    let offset = cursor.offset();
    let len = cursor.u32("the machine type")?;
    if len > MAX_MACHINE_NAME {
        return Err(Error::Malformed {
            what: "overlong name of the machine type",
            offset,
        });
    }
    cursor.skip(u64::from(len), "the machine type")?;
    while cursor.peek()? == Some(wire::SUBSECTION) {
        read_subsection(cursor, layout)?;
    }
    Ok(())
}

/// A part of the configuration that is only sent when it differs from the default.
fn read_subsection(cursor: &mut Cursor<'_>, layout: &mut Layout) -> Result<(), Error> {
    const WHAT: &str = "the configuration";
    let offset = cursor.offset();
    cursor.u8(WHAT)?;
    let name = cursor.short_string(WHAT)?.to_vec();
    cursor.u32(WHAT)?;
    match name.as_slice() {
        b"configuration/target-page-bits" => {
            let bits = cursor.u32(WHAT)?;
            layout.page_size_bytes = 1u32.checked_shl(bits).unwrap_or(0);
        }
        b"configuration/capabilities" => read_capabilities(cursor)?,
        b"configuration/uuid" => cursor.skip(16, WHAT)?,
        other => {
            let what = format!("the subsection {}", String::from_utf8_lossy(other));
            return Err(Error::Unsupported { what, offset });
        }
    }
    Ok(())
}

/// The capabilities named here change the format, so none of them is supported.
fn read_capabilities(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    const WHAT: &str = "the capabilities";
    let offset = cursor.offset();
    let count = cursor.u32(WHAT)?;
    if count > MAX_CAPABILITIES {
        return Err(Error::Malformed {
            what: "too many capabilities",
            offset,
        });
    }
    if count == 0 {
        return Ok(());
    }
    let offset = cursor.offset();
    let name = cursor.short_string(WHAT)?;
    let what = format!("the capability {}", String::from_utf8_lossy(name));
    Err(Error::Unsupported { what, offset })
}

fn check_page_size(page_size_bytes: u32, offset: u64) -> Result<(), Error> {
    // 1 KiB is the smallest of all targets, 64 KiB the largest. Flags need the low ten bits.
    let known = 1 << 10..=1 << 16;
    if page_size_bytes.is_power_of_two() && known.contains(&page_size_bytes) {
        return Ok(());
    }
    Err(Error::Malformed {
        what: "impossible size of a page",
        offset,
    })
}

fn read_ram_start(cursor: &mut Cursor<'_>, layout: &mut Layout) -> Result<(), Error> {
    const WHAT: &str = "the setup of RAM";
    let offset = cursor.offset();
    let kind = cursor.u8(WHAT)?;
    match kind {
        wire::SECTION_START | wire::SECTION_FULL => {}
        wire::SECTION_COMMAND => {
            let what = format!("the command {} before RAM", cursor.u16(WHAT)?);
            return Err(Error::Unsupported { what, offset });
        }
        _ => {
            return Err(Error::Malformed {
                what: "no section where RAM should begin",
                offset,
            });
        }
    }
    layout.section_id = cursor.u32(WHAT)?;
    let name = cursor.short_string(WHAT)?;
    if kind != wire::SECTION_START || name != wire::RAM_NAME {
        let what = format!("the section {} before RAM", String::from_utf8_lossy(name));
        return Err(Error::Unsupported { what, offset });
    }
    layout.instance_id = cursor.u32(WHAT)?;
    layout.section_version = cursor.u32(WHAT)?;
    if layout.section_version != wire::RAM_VERSION {
        let what = format!("version {} of RAM", layout.section_version);
        return Err(Error::Unsupported { what, offset });
    }
    Ok(())
}

fn read_blocks(cursor: &mut Cursor<'_>, layout: &mut Layout, limits: &Limits) -> Result<(), Error> {
    let offset = cursor.offset();
    let word = cursor.u64("the sizes of RAM")?;
    let page_mask = u64::from(layout.page_size_bytes) - 1;
    if word & page_mask != wire::RAM_MEM_SIZE {
        return Err(Error::Malformed {
            what: "no sizes of RAM",
            offset,
        });
    }
    let total = word & !page_mask;
    if total > limits.max_ram_bytes {
        let limit = limits.max_ram_bytes;
        return Err(Error::TooLarge {
            what: "RAM in bytes",
            actual: total,
            limit,
        });
    }
    let mut left = total;
    while left > 0 {
        let offset = cursor.offset();
        let block = read_block(cursor, page_mask)?;
        left = left.checked_sub(block.size_bytes).ok_or(Error::Malformed {
            what: "RAM blocks larger than their sum",
            offset,
        })?;
        if layout.blocks.iter().any(|known| known.id == block.id) {
            return Err(Error::Malformed {
                what: "two RAM blocks of one name",
                offset,
            });
        }
        if layout.blocks.len() == MAX_BLOCKS {
            return Err(Error::Malformed {
                what: "too many RAM blocks",
                offset,
            });
        }
        layout.blocks.push(block);
    }
    Ok(())
}

fn read_block(cursor: &mut Cursor<'_>, page_mask: u64) -> Result<RamBlock, Error> {
    const WHAT: &str = "a RAM block";
    let offset = cursor.offset();
    let id =
        String::from_utf8(cursor.short_string(WHAT)?.to_vec()).map_err(|_| Error::Malformed {
            what: "unreadable name of a RAM block",
            offset,
        })?;
    if id.is_empty() {
        return Err(Error::Malformed {
            what: "RAM block without a name",
            offset,
        });
    }
    let size_bytes = cursor.u64(WHAT)?;
    if size_bytes > MAX_BLOCK_BYTES || size_bytes & page_mask != 0 {
        return Err(Error::Malformed {
            what: "impossible size of a RAM block",
            offset,
        });
    }
    Ok(RamBlock { id, size_bytes })
}

fn read_end_of_setup(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    let offset = cursor.offset();
    match cursor.u64("the end of the setup of RAM")? {
        wire::RAM_EOS => Ok(()),
        wire::RAM_MULTIFD_FLUSH => Err(Error::Unsupported {
            what: "multifd".into(),
            offset,
        }),
        _ => Err(Error::Malformed {
            what: "no end of the setup of RAM",
            offset,
        }),
    }
}

/// Whether this stream has footers; a footer is never optional within one stream.
fn read_first_footer(cursor: &mut Cursor<'_>, section_id: u32) -> Result<bool, Error> {
    let found = cursor.peek()? == Some(wire::SECTION_FOOTER);
    if found {
        read_footer(cursor, section_id)?;
    }
    Ok(found)
}

/// Reads the footer of the section `section_id`.
pub(crate) fn read_footer(cursor: &mut Cursor<'_>, section_id: u32) -> Result<(), Error> {
    let offset = cursor.offset();
    let right =
        cursor.u8("a footer")? == wire::SECTION_FOOTER && cursor.u32("a footer")? == section_id;
    if right {
        return Ok(());
    }
    Err(Error::Malformed {
        what: "wrong footer of a section",
        offset,
    })
}
