//! The web pages of `vmtwin serve`, as bytes in the binary.
//!
//! There is no build step: `assets/` holds what browsers get, as it is. `index.html` is the shell;
//! its modules draw every page from the HTTP API, so each path of a page answers with the shell.
//!
//! | folder | holds |
//! |---|---|
//! | `assets/` | the shell, the style sheet, icon and manifest |
//! | `assets/js/` | what pages share: the API, the router, elements, formats, plots |
//! | `assets/js/pages/` | a module for each page |
//!
//! It knows nothing of HTTP servers, and imports none of our crates: who serves it adds
//! [`SECURITY_HEADERS`] to each answer. All that pages show from outside (names of guests, log lines)
//! they show as text nodes, and the policy lets no inline script or style run in case one slips.

use std::sync::LazyLock;

/// Headers of every page: name in lower case, and value.
///
/// Nothing of another host is ever loaded, no page can be framed, and no script or style runs that is
/// not one of the files here.
pub const SECURITY_HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
         manifest-src 'self'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Browsers keep a copy, and ask each time whether it is still the one: an update of the binary shows
/// at once, and no modules of two versions ever meet.
const CACHE_CONTROL: &str = "no-cache";

/// First parts of paths that are pages.
const PAGES: &[&str] = &[
    "vms",
    "jobs",
    "snapshots",
    "restore",
    "schedules",
    "cluster",
    "storage",
    "audit",
    "settings",
    "login",
];

/// A file for browsers.
#[derive(Debug, Clone, Copy)]
pub struct Asset {
    /// What it holds.
    pub bytes: &'static [u8],
    /// Its media type.
    pub content_type: &'static str,
    /// Strong entity tag, with its quotes (RFC 9110, 8.8.3).
    pub etag: &'static str,
    /// The header Cache-Control.
    pub cache_control: &'static str,
}

/// A file as it is compiled in.
struct File {
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(File {
            path: concat!("/", $path),
            bytes: include_bytes!(concat!("../assets/", $path)),
        }),*]
    };
}

const SHELL: &str = "/index.html";
const FILES: &[File] = files![
    "index.html",
    "style.css",
    "icon.svg",
    "manifest.webmanifest",
    "js/api.js",
    "js/app.js",
    "js/dom.js",
    "js/format.js",
    "js/plot.js",
    "js/ui.js",
    "js/pages/audit.js",
    "js/pages/cluster.js",
    "js/pages/files.js",
    "js/pages/jobs.js",
    "js/pages/login.js",
    "js/pages/overview.js",
    "js/pages/restore.js",
    "js/pages/schedules.js",
    "js/pages/settings.js",
    "js/pages/snapshot.js",
    "js/pages/storage.js",
    "js/pages/vm.js",
];

static ASSETS: LazyLock<Vec<(&str, Asset)>> = LazyLock::new(|| {
    let asset = |file: &File| {
        let asset = Asset {
            bytes: file.bytes,
            content_type: content_type(file.path),
            etag: Box::leak(etag(file.bytes).into_boxed_str()),
            cache_control: CACHE_CONTROL,
        };
        (file.path, asset)
    };
    FILES.iter().map(asset).collect()
});

/// What browsers get at `path`, which begins with `/` and has no query: a file, the shell where it is
/// the path of a page, else nothing.
#[must_use]
pub fn asset(path: &str) -> Option<Asset> {
    let find = |path: &str| ASSETS.iter().find(|(at, _)| *at == path);
    let found = find(path).or_else(|| is_page(path).then(|| find(SHELL))?);
    found.map(|(_, asset)| *asset)
}

fn is_page(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let first = rest.split('/').next();
    rest.is_empty() || first.is_some_and(|first| PAGES.contains(&first))
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

/// FNV-1a of 64 bits: it tells versions of our own files apart, and guards against nobody.
fn etag(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    format!("\"{hash:016x}\"")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// All files together: pages must come fast over a thin line.
    const MOST_BYTES: usize = 120 << 10;

    fn text(file: &File) -> &str {
        std::str::from_utf8(file.bytes).unwrap()
    }

    #[test]
    fn paths_of_pages_answer_with_the_shell() {
        let shell = asset("/").unwrap();
        assert!(shell.content_type.starts_with("text/html"));
        for page in [
            "/vms/web01",
            "/jobs",
            "/snapshots/1a2b3c4d/files",
            "/settings",
        ] {
            assert_eq!(asset(page).unwrap().etag, shell.etag, "{page}");
        }
        for none in [
            "",
            "/x",
            "/api/v1/nothing",
            "/js/none.js",
            "/../Cargo.toml",
            "//vms",
            "vms",
        ] {
            assert!(asset(none).is_none(), "{none}");
        }
    }

    #[test]
    fn tags_tell_files_apart() {
        let mut tags: Vec<&str> = ASSETS.iter().map(|(_, asset)| asset.etag).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), FILES.len());
        assert_eq!(etag(b"a"), "\"af63dc4c8601ec8c\"");
    }

    #[test]
    fn the_folder_holds_these_files_and_no_others() {
        fn walk(dir: &std::path::Path, found: &mut Vec<String>, below: &str) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found, &path),
                    false => found.push(path),
                }
            }
        }
        let (mut found, mut listed) = (Vec::new(), Vec::new());
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
        walk(std::path::Path::new(folder), &mut found, "");
        listed.extend(FILES.iter().map(|file| file.path.to_owned()));
        found.sort();
        listed.sort();
        assert_eq!(found, listed);
    }

    #[test]
    fn modules_import_what_is_there() {
        for file in FILES.iter().filter(|file| file.path.ends_with(".js")) {
            for line in text(file)
                .lines()
                .filter(|line| line.starts_with("import "))
            {
                let from = line.split('"').nth(1).unwrap();
                assert!(
                    FILES.iter().any(|other| other.path == from),
                    "{}: {from}",
                    file.path
                );
            }
        }
    }

    #[test]
    fn nothing_is_drawn_from_markup_and_nothing_comes_from_elsewhere() {
        for file in FILES {
            let path = file.path;
            // SVG's own name is no address that anybody asks.
            let text = text(file).replace("http://www.w3.org/2000/svg", "");
            for bad in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "http://",
                "https://",
                "style=",
                "onclick=",
                "javascript:",
            ] {
                assert!(!text.contains(bad), "{path} holds {bad}");
            }
        }
    }

    #[test]
    fn all_of_it_is_small() {
        let bytes: usize = FILES.iter().map(|file| file.bytes.len()).sum();
        assert!(bytes <= MOST_BYTES, "{bytes} bytes");
    }
}
