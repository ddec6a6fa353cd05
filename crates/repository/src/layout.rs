//! How an image is laid out in a snapshot: a folder of segments.
//!
//! A segment is [`SEGMENT_GRAINS`] grains long (128 MiB of 128 KiB grains, 64 MiB of 64 KiB grains),
//! and a file named by its number, `00000000`, `00000001`, …; the last may be shorter. Up to
//! [`FLAT_SEGMENTS`] segments lie in the image's folder itself; more are put into sub-folders of
//! [`GROUP_SEGMENTS`], named `000000`, `000001`, …, so that a change of one place rewrites the
//! metadata of few. Joined in the order of their paths the segments are the image:
//! `cat dir/*`, or `find dir -type f | sort | xargs cat`.

/// Grains in a segment.
pub(crate) const SEGMENT_GRAINS: usize = 1024;
/// Most segments that lie in the image's folder itself.
pub(crate) const FLAT_SEGMENTS: usize = 8;
/// Segments in a sub-folder.
pub(crate) const GROUP_SEGMENTS: usize = 4;

/// Name of a segment.
pub(crate) fn segment_name(number: usize) -> String {
    format!("{number:08}")
}

/// Name of a sub-folder of segments.
pub(crate) fn group_name(number: usize) -> String {
    format!("{number:06}")
}

/// Whether all are names of segments, or all of groups, in ascending order.
pub(crate) fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut before: Option<&str> = None;
    for name in names {
        let digits = (6..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_digit());
        if !digits || before.is_some_and(|b| b.len() != name.len() || b >= name) {
            return false;
        }
        before = Some(name);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_names() {
        let ok = |names: &[&str]| in_order(names.iter().copied());
        assert!(ok(&[]));
        assert!(ok(&["00000000", "00000001"]));
        assert!(ok(&["000000", "000001"]));
        for bad in [
            &["00000001", "00000000"][..],
            &["000000", "00000001"],
            &["a"],
            &["1"],
        ] {
            assert!(!ok(bad), "{bad:?}");
        }
        assert!(ok(&[&segment_name(0), &segment_name(12345)]));
        assert!(ok(&[&group_name(0), &group_name(12345)]));
    }
}
