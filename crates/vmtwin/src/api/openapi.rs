//! The document that describes the API, made of the handlers and of the command line.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::commands::{self, Asked};
use super::{access, download, jobs, views};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmtwin",
        description = "Live backup of QEMU/KVM guests. What changes something is a command of the \
                       command line, run as a job. Tokens have scopes: view, backup, restore, admin; \
                       each holds those before it."
    ),
    paths(
        views::ready,
        views::metrics,
        views::overview,
        views::vm,
        views::snapshots,
        views::snapshot,
        views::schedules,
        views::cluster,
        views::growth,
        views::deletions,
        views::audit,
        download::file,
        jobs::command_line,
        jobs::list,
        jobs::one,
        jobs::cancel,
        jobs::events_of_one,
        jobs::events,
        access::log_in,
        access::who,
        access::log_out,
        access::tokens,
        access::add_token,
        access::remove_token,
    )
)]
struct Described;

/// The document.
pub(crate) fn document() -> Value {
    let mut document = serde_json::to_value(Described::openapi()).unwrap_or_default();
    document["components"]["securitySchemes"] = json!({
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "vmtwin_session"},
    });
    document["security"] = json!([{"token": []}, {"session": []}]);
    if let Some(paths) = document["paths"].as_object_mut() {
        paths["/readyz"]["get"]["security"] = json!([]);
        paths["/api/v1/session"]["post"]["security"] = json!([]);
        paths.values_mut().for_each(problems);
        paths.extend(commands::all().iter().map(path));
    }
    document
}

/// Errors are documents of their own kind.
fn problems(path: &mut Value) {
    let operations = path.as_object_mut().into_iter().flat_map(Map::values_mut);
    for operation in operations {
        let answers = operation["responses"].as_object_mut().into_iter().flatten();
        for (_, answer) in answers.filter(|(status, _)| status.starts_with(['4', '5'])) {
            if let Some(schema) = answer["content"].as_object_mut()
                && let Some(json) = schema.remove("application/json")
            {
                schema.insert("application/problem+json".to_owned(), json);
            }
        }
    }
}

/// A command as a path.
fn path(asked: &Asked) -> (String, Value) {
    let words = asked.words.replace(' ', "/");
    let problem = json!({"description": "why not", "content": {"application/problem+json":
        {"schema": {"$ref": "#/components/schemas/Problem"}}}});
    let job = |description: &str| {
        json!({"description": description, "content": {"application/json":
            {"schema": {"$ref": "#/components/schemas/Job"}}}})
    };
    let mut responses = Map::new();
    responses.insert("200".into(), job("it has ended, or only looked"));
    responses.insert("201".into(), job("it was begun"));
    responses.insert("4XX".into(), problem);
    let operation = json!({
        "tags": ["commands"],
        "summary": asked.summary(),
        "operationId": format!("command_{}", asked.words.replace([' ', '-'], "_")),
        "parameters": [
            {"name": "wait", "in": "query", "required": false,
             "description": "Seconds to wait for the end of the job, up to 120.",
             "schema": {"type": "integer", "minimum": 0, "maximum": 120}},
            {"name": "Idempotency-Key", "in": "header", "required": false,
             "schema": {"type": "string", "maxLength": 200}},
        ],
        "requestBody": {"required": true,
            "content": {"application/json": {"schema": asked.schema()}}},
        "responses": responses,
    });
    (
        format!("/api/v1/commands/{words}"),
        json!({"post": operation}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document that is checked in, for those who write programs against it.
    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

    #[test]
    fn the_document_is_the_one_that_is_checked_in() {
        let made = serde_json::to_string_pretty(&document()).unwrap_or_default() + "\n";
        if std::env::var_os("VMTWIN_WRITE_OPENAPI").is_some() {
            std::fs::write(KEPT, &made).unwrap_or_else(|error| panic!("{error}"));
        }
        let kept = std::fs::read_to_string(KEPT).unwrap_or_default();
        assert!(
            kept == made,
            "docs/openapi.json is behind the code: look at what changed, then run \
             VMTWIN_WRITE_OPENAPI=1 cargo test -p vmtwin openapi"
        );
    }
}
