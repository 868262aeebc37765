//! `/openapi.json`: the HTTP interface as an OpenAPI 3.1 document.
//!
//! # Add an endpoint
//!
//! Add a row to `OPERATIONS`, and the type of its body to `bodies`. `tests/it/published_schemas` compares the rows with
//! the routes of a running bridge.

use std::sync::LazyLock;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{
    bodies::{
        Connection, ErrorBody, Health, InstanceWithActivity, Session, Stats, TelemetryAccepted, TelemetryPost,
        TelemetrySnapshot, Tenant, Ticket,
    },
    generate, messages, parameters,
    streams::{self, STREAMS, Transport},
};
use crate::event::PoolDepth;

/// What a request needs, as a list of security requirements.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing, and no limit applies.
    Probe,
    /// Nothing.
    Nothing,
    /// A credential, if the bridge has any configured.
    Credential,
    /// An API key or a Kubernetes token.
    Bearer,
    /// An API key with the permission `ingest`, if the bridge has any credential configured.
    Ingest,
}

/// The body of a successful answer.
enum Body {
    /// One JSON value.
    Json(fn(&mut SchemaGenerator) -> Value),
    /// A JSON document that is described elsewhere.
    Document,
    /// Text of this media type.
    Text(&'static str),
    /// None: status 204.
    None,
}

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    /// `operationId`, from which code generators make the name of a function.
    id: &'static str,
    summary: &'static str,
    needs: Needs,
    /// The JSON body of the request.
    request: Option<fn(&mut SchemaGenerator) -> Value>,
    /// Statuses of errors beside those of [`Needs`] and of the path.
    errors: &'static [&'static str],
    /// Names of parameters: [`parameters::query`].
    parameters: &'static [&'static str],
    body: Body,
    /// The answer has an `ETag`, so that a request can be answered with 304.
    has_etag: bool,
    /// The answer has an `Event-Cursor`.
    has_cursor: bool,
}

/// A GET that needs no credential.
const fn public(path: &'static str, id: &'static str, summary: &'static str, body: Body) -> Operation {
    Operation {
        method: "get",
        path,
        id,
        summary,
        needs: Needs::Nothing,
        request: None,
        errors: &[],
        parameters: &[],
        body,
        has_etag: true,
        has_cursor: false,
    }
}

/// A GET that reads the state.
const fn state(path: &'static str, id: &'static str, summary: &'static str, body: Body) -> Operation {
    Operation {
        needs: Needs::Credential,
        parameters: &["connectionId", "params"],
        has_cursor: true,
        ..public(path, id, summary, body)
    }
}

const fn probe(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        needs: Needs::Probe,
        parameters: &["verbose"],
        has_etag: false,
        ..public(path, id, summary, Body::Text("text/plain"))
    }
}

const fn post(path: &'static str, id: &'static str, summary: &'static str, body: Body) -> Operation {
    Operation { method: "post", needs: Needs::Bearer, has_etag: false, ..public(path, id, summary, body) }
}

/// Every operation except the streams, in the order of `docs/protocol.md`.
static OPERATIONS: &[Operation] = &[
    state("/api/v1/instances", "listInstances", "All instances, by name", Body::Json(many::<InstanceWithActivity>)),
    state("/api/v1/instances/{name}", "getInstance", "One instance", Body::Json(one::<InstanceWithActivity>)),
    state("/api/v1/tenants", "listTenants", "All tenants with their claims, by tenantId", Body::Json(many::<Tenant>)),
    state("/api/v1/tenants/{tenantId}", "getTenant", "One tenant with its claims", Body::Json(one::<Tenant>)),
    state("/api/v1/pools", "listPools", "All pools, by workloadRef", Body::Json(many::<PoolDepth>)),
    state("/api/v1/stats", "getStats", "Counts by phase", Body::Json(one::<Stats>)),
    Operation {
        parameters: &[],
        has_etag: false,
        has_cursor: false,
        ..state("/api/v1/connections", "listConnections", "What the bridge watches", Body::Json(many::<Connection>))
    },
    Operation {
        errors: &["406"],
        ..state(
            "/v1/tunnels/telemetry",
            "listTunnelTelemetry",
            "The newest telemetry of each tunnel, by tunnelId",
            Body::Json(many::<TelemetrySnapshot>),
        )
    },
    Operation {
        errors: &["406"],
        ..state(
            "/api/v1/telemetry",
            "listTelemetry",
            "The newest telemetry of each tunnel, by tunnelId",
            Body::Json(many::<TelemetrySnapshot>),
        )
    },
    Operation {
        needs: Needs::Ingest,
        request: Some(one::<TelemetryPost>),
        errors: &["406", "408", "413", "415", "422"],
        ..post(
            "/v1/tunnels/{tunnelId}/telemetry",
            "postTelemetry",
            "Stores the values of a tunnel, and sends them as an event",
            Body::Json(one::<TelemetryAccepted>),
        )
    },
    Operation {
        parameters: &[],
        body: Body::Json(one::<Health>),
        ..probe("/api/v1/health", "getHealth", "Whether the process runs")
    },
    probe("/livez", "getLiveness", "Whether the process runs"),
    probe("/readyz", "getReadiness", "Whether the bridge has the first lists and does not drain"),
    Operation {
        needs: Needs::Credential,
        has_etag: false,
        ..public("/metrics", "getMetrics", "Metrics for Prometheus", Body::Text("application/openmetrics-text"))
    },
    Operation {
        has_etag: false,
        ..public("/", "getIndex", "The dashboard for browsers, else the list of endpoints", Body::Text("text/html"))
    },
    public("/client.js", "getClient", "The JavaScript client", Body::Text("text/javascript")),
    public("/assets/{file}", "getAsset", "A file of the dashboard", Body::Text("*/*")),
    public("/openapi.json", "getOpenApi", "This document", Body::Document),
    public("/asyncapi.json", "getAsyncApi", "The streams as an AsyncAPI 3 document", Body::Document),
    public("/schemas/{file}", "getSchema", "The JSON Schema of one type of message", Body::Document),
    post("/api/v1/session", "createSession", "Sets a session cookie", Body::Json(one::<Session>)),
    Operation {
        method: "delete",
        needs: Needs::Nothing,
        ..post("/api/v1/session", "deleteSession", "Removes the session cookie of this browser", Body::None)
    },
    post("/api/v1/tickets", "createTicket", "Issues a stream ticket", Body::Json(one::<Ticket>)),
];

static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));

/// Returns the text of `/openapi.json`.
#[must_use]
pub fn text() -> &'static str {
    &DOCUMENT
}

fn one<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn many<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    json!({ "type": "array", "items": one::<T>(generator) })
}

fn document() -> Value {
    let mut generator = generate::for_document();
    let error = one::<ErrorBody>(&mut generator);
    let mut paths = Map::new();
    let mut add = |path: &str, method: &str, operation: Value| {
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = operation;
    };
    for operation in OPERATIONS {
        add(operation.path, operation.method, operation.to_json(&mut generator));
    }
    for stream in STREAMS {
        add(stream.path, "get", stream_operation(stream));
    }
    let parameters = parameters::components(&mut generator);
    let error_content = json!({ "application/json": { "schema": error } });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "boilerhouse-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The changes of a Boilerhouse platform's instances and claims, and their current state",
            "description": "The document belongs to the release in `version`. HEAD works wherever GET does. \
                            Query parameters whose names begin with `_` are ignored. /asyncapi.json describes the streams.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": ".", "description": "The bridge that serves this document" }],
        "paths": paths,
        "components": {
            "schemas": generate::definitions(&mut generator),
            "parameters": parameters,
            "headers": {
                "Event-Cursor": {
                    "description": "The cursor at which the state is true",
                    "schema": { "type": "string" },
                },
                "ETag": { "description": "Identifies the body", "schema": { "type": "string" } },
                "Retry-After": {
                    "description": "Seconds after which the client can try again",
                    "schema": { "type": "string", "pattern": "^[0-9]+$" },
                },
            },
            "responses": {
                "Error": { "description": "`code` and `message` say what is wrong", "content": error_content },
                "Unavailable": {
                    "description": "The obstacle passes without action of the client",
                    "headers": { "Retry-After": { "$ref": "#/components/headers/Retry-After" } },
                    "content": error_content,
                },
                "NotModified": { "description": "The client has this body" },
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key or a Kubernetes token. Needed only if a credential is configured",
                },
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-boilerhouse_bridge",
                    "description": "The cookie of `POST /api/v1/session`. It is `boilerhouse_bridge` over plain http",
                },
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "token",
                    "description": "The ticket of `POST /api/v1/tickets`",
                },
            },
        },
    })
}

impl Needs {
    fn to_json(self) -> Value {
        match self {
            Needs::Probe | Needs::Nothing => json!([]),
            Needs::Credential => json!([{ "bearer": [] }, { "cookie": [] }, {}]),
            Needs::Bearer => json!([{ "bearer": [] }]),
            Needs::Ingest => json!([{ "bearer": [] }, {}]),
        }
    }

    /// Returns the statuses of errors. 400 and 403 come from the rules for browsers, too.
    fn errors(self) -> &'static [&'static str] {
        match self {
            Needs::Probe => &["400", "403"],
            Needs::Nothing => &["400", "403", "429"],
            Needs::Credential | Needs::Bearer | Needs::Ingest => &["400", "401", "403", "429", "503"],
        }
    }
}

impl Operation {
    fn to_json(&self, generator: &mut SchemaGenerator) -> Value {
        let mut parameters = parameters::references(self.parameters);
        let segment = self.path.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        if let Some((name, _)) = segment {
            let mut schema = json!({ "type": "string" });
            if self.path.starts_with("/schemas/") {
                schema["enum"] = messages::names().map(|name| format!("{name}.json")).collect();
            }
            if name == "tunnelId" {
                schema["format"] = json!("uuid");
            }
            parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "security": self.needs.to_json(),
            "parameters": parameters,
            "responses": self.responses(generator),
        });
        if let Some(schema) = self.request {
            let content = json!({ "application/json": { "schema": schema(generator) } });
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        operation
    }

    fn responses(&self, generator: &mut SchemaGenerator) -> Value {
        let content = match self.body {
            Body::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
            Body::Document => json!({ "application/json": { "schema": { "type": "object" } } }),
            Body::Text(media_type) => json!({ media_type: { "schema": { "type": "string" } } }),
            Body::None => Value::Null,
        };
        let mut success = json!({ "description": self.summary });
        if !content.is_null() {
            success["content"] = content;
        }
        for (name, is_present) in [("ETag", self.has_etag), ("Event-Cursor", self.has_cursor)] {
            if is_present {
                success["headers"][name] = json!({ "$ref": format!("#/components/headers/{name}") });
            }
        }
        let mut responses = errors(self.needs.errors());
        responses.extend(errors(self.errors));
        responses.insert(if matches!(self.body, Body::None) { "204" } else { "200" }.into(), success);
        if self.has_etag {
            responses.insert("304".into(), json!({ "$ref": "#/components/responses/NotModified" }));
        }
        if self.path.contains('{') || self.parameters.contains(&"connectionId") {
            responses.extend(errors(&["404"]));
        }
        if self.path == "/readyz" {
            let text = json!({ "text/plain": { "schema": { "type": "string" } } });
            responses.insert("503".into(), json!({ "description": "Not ready, with the reason", "content": text }));
        }
        responses.into()
    }
}

/// Returns the answers with these statuses.
fn errors(statuses: &[&str]) -> Map<String, Value> {
    let response = |status: &str| if matches!(status, "429" | "503") { "Unavailable" } else { "Error" };
    let reference = |status| json!({ "$ref": format!("#/components/responses/{}", response(status)) });
    statuses.iter().map(|status| ((*status).to_owned(), reference(status))).collect()
}

/// Returns the operation that opens a stream.
fn stream_operation(stream: &streams::Stream) -> Value {
    let (status, success, wrong_transport) = match stream.transport {
        Transport::WebSocket => ("101", json!({ "description": "The WebSocket is open" }), &["426"][..]),
        Transport::Sse => {
            let content = json!({ "text/event-stream": { "schema": { "type": "string" } } });
            ("200", json!({ "description": "Server-sent events", "content": content }), &[][..])
        }
    };
    let mut responses = errors(Needs::Credential.errors());
    responses.extend(errors(&["404"]));
    responses.extend(errors(wrong_transport));
    responses.insert(status.into(), success);
    let mut security = Needs::Credential.to_json();
    if let (Value::Array(alternatives), true) = (&mut security, stream.path != "/ws") {
        alternatives.insert(0, json!({ "ticket": [] }));
    }
    let mut parameters = parameters::references(stream.parameters());
    if stream.path != "/ws" {
        parameters.push(parameters::last_event_id());
    }
    json!({
        "operationId": format!("stream_{}", stream.channel()),
        "summary": stream.summary,
        "description": "The messages are in /asyncapi.json.",
        "security": security,
        "parameters": parameters,
        "responses": responses,
    })
}
