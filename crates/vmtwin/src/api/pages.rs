//! The web pages: files of the binary, told anew only where a browser's copy is an old one.

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::not_found;

/// A page or a file of one; anybody may have them, as they tell nothing.
pub(super) async fn page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    answer(&method, uri.path(), &headers)
}

fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = vmtwin_web::asset(path) else {
        return not_found("there is no such page").into_response();
    };
    if *method != Method::GET && *method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let fields = [
        (header::ETAG, asset.etag),
        (header::CACHE_CONTROL, asset.cache_control),
    ];
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut known = known.filter_map(|tags| tags.to_str().ok());
    if known.any(|tags| tags.split(',').any(|tag| is_tag(tag, asset.etag))) {
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    let kind = [(header::CONTENT_TYPE, asset.content_type)];
    (fields, kind, asset.bytes).into_response()
}

/// Compared weakly, as RFC 9110 (13.1.2) has it: a proxy may have weakened it.
fn is_tag(given: &str, etag: &str) -> bool {
    let given = given.trim();
    given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn ask(method: Method, path: &str, known: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(known) = known {
            headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
        }
        answer(&method, path, &headers)
    }

    #[test]
    fn a_page_is_told_once() {
        let first = ask(Method::GET, "/vms/web01", None);
        assert_eq!(first.status(), StatusCode::OK);
        let etag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}")] {
            let again = ask(Method::GET, "/", Some(&known));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        let other = ask(Method::GET, "/", Some("\"x\""));
        assert_eq!(other.status(), StatusCode::OK);
        let none = ask(Method::GET, "/nothing", None);
        assert_eq!(none.status(), StatusCode::NOT_FOUND);
        let wrong = ask(Method::POST, "/", None);
        assert_eq!(wrong.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
