//! Names from a snapshot, before they become names of files.

/// Longest name, bytes: room for what a partial file adds within a file system's 255.
const MAX_NAME_BYTES: usize = 200;

/// Letters, digits, `.`, `_` and `-`, not beginning with a dot or a dash: the id of a disk.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with(['.', '-'])
        && name.chars().all(plain)
}

/// One name of a file that stays in its folder; more is allowed than for ids.
pub(super) fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME_BYTES
        && !name.chars().any(|c| c == '/' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain() {
        for name in ["disk0", "virtio-disk0", "a.b_c-D", "0"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "", ".", "..", ".a", "-a", "a/b", "../a", "a b", "a\0", "ä", "a\n", &long,
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn file_names_stay_in_their_folder() {
        for name in [".lock", "tpm2-00.permall", "a b", "ä"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "/", "a\0b", "a\nb"] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
