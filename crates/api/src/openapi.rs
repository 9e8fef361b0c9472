//! The OpenAPI document: [`ROUTES`], and the types that they name.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Components, ContactBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathsBuilder,
    Ref, Required,
};

use crate::bound::{self, Schemas};
use crate::route::{Access, Body, Method, ROUTES, Route, SchemaOf};
use crate::{Code, EventKind, Problem};

const ABOUT: &str = "\
Sandforge runs programs in sandboxes. A sandbox belongs to a workspace; a caller sees those of its \
own, and what is another's is not found. Viewers read, members run, owners configure.

Problems are `application/problem+json` with a stable `code`. Lists come in pages: `next_cursor` \
of one is `cursor` of the next. A POST with an Idempotency-Key can be sent again without being \
done again. Unknown fields and parameters are refused.";

/// Problems that every route may have.
const ALWAYS: &[Code] = &[
    Code::InvalidRequest,
    Code::OriginRefused,
    Code::NotAcceptable,
    Code::RequestTimeout,
    Code::TooLarge,
    Code::UriTooLong,
    Code::HostRefused,
    Code::RateLimited,
    Code::HeadersTooLarge,
    Code::Internal,
    Code::ShuttingDown,
];
/// Those that credentials add: what is another workspace's is not found, and what cannot be
/// recorded is not done.
const WITH_CREDENTIALS: &[Code] = &[
    Code::Unauthenticated,
    Code::BadSignature,
    Code::SignatureRequired,
    Code::Forbidden,
    Code::NotFound,
    Code::StorageFull,
];

/// The document that the server gives at `/openapi.json`.
pub fn openapi() -> OpenApi {
    let mut schemas = Schemas::new();
    bound::collect_texts(&mut schemas);
    bound::collect_numbers(&mut schemas);
    collect::<crate::State>(&mut schemas);
    collect::<EventKind>(&mut schemas);
    collect::<Problem>(&mut schemas);
    // What WebSockets and events carry is named in descriptions only.
    collect::<crate::ExecControl>(&mut schemas);
    collect::<crate::ExecFinal>(&mut schemas);
    // Many routes fail alike: what they have in common is in the document once.
    let mut failures = BTreeMap::new();
    let mut paths: BTreeMap<&str, PathItem> = BTreeMap::new();
    for route in ROUTES {
        let item =
            PathItem::new(http_method(route.method), operation(route, &mut schemas, &mut failures));
        match paths.remove(route.path) {
            Some(mut earlier) => {
                earlier.merge_operations(item);
                paths.insert(route.path, earlier);
            }
            None => {
                paths.insert(route.path, item);
            }
        }
    }
    let paths =
        paths.into_iter().fold(PathsBuilder::new(), |all, (path, item)| all.path(path, item));
    let mut components = Components::new();
    components.schemas.extend(schemas);
    components
        .responses
        .extend(failures.into_iter().map(|(name, response)| (name, response.into())));
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of `sandforge token create`, or of the identity provider."))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Sandforge")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(ABOUT))
                .contact(Some(ContactBuilder::new().name(Some("Sandforge")).build()))
                .license(Some(
                    LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
                ))
                .build(),
        )
        .paths(paths)
        .components(Some(components))
        .tags(Some(TAGS.map(|(name, description)| {
            TagBuilder::new().name(name).description(Some(description)).build()
        })))
        .build()
}

const TAGS: [(&str, &str); 15] = [
    ("sandboxes", "Sandboxes and their lives."),
    ("exec", "Commands."),
    ("processes", "What became of commands."),
    ("files", "Files of a guest. Paths are in the query."),
    ("events", "What happened."),
    ("images", "What sandboxes are made of."),
    ("volumes", "Disks that outlive sandboxes."),
    ("snapshots", "Sandboxes as they were, for others to go on from."),
    ("tokens", "Rights of callers."),
    ("keys", "Keys for signed requests."),
    ("secrets", "Credentials that sandboxes use and never have."),
    ("policy", "What is allowed."),
    ("audit", "What was decided and done."),
    ("webhooks", "Events, sent to receivers."),
    ("server", "The server itself."),
];

fn tag(route: &Route) -> &'static str {
    let mut parts = route.path.split('/').skip(1);
    let first = match parts.next() {
        Some("v1") => parts.next(),
        _ => None,
    };
    let below = parts.find(|part| !part.starts_with('{'));
    let wanted = match (first, below) {
        (Some("sandboxes"), Some("pty")) => "exec",
        (Some("sandboxes"), Some(below)) => below,
        (first, _) => first.unwrap_or("server"),
    };
    let known = TAGS.iter().map(|&(name, _)| name).find(|name| *name == wanted);
    match (known, first) {
        (Some(name), _) => name,
        (None, Some("sandboxes")) => "sandboxes",
        (None, _) => "server",
    }
}

fn http_method(method: Method) -> HttpMethod {
    match method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
        Method::Put => HttpMethod::Put,
        Method::Patch => HttpMethod::Patch,
        Method::Delete => HttpMethod::Delete,
    }
}

fn operation(
    route: &Route,
    schemas: &mut Schemas,
    failures: &mut BTreeMap<String, Response>,
) -> OperationBuilder {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(route.id))
        .tag(tag(route))
        .summary(Some(first_sentence(route.summary)))
        .description(Some(describe(route)))
        .request_body(request(route, schemas));
    for name in route.parameters() {
        operation = operation.parameter(path_parameter(name));
    }
    for parameter in route.query() {
        operation = operation.parameter(parameter);
    }
    for parameter in header_parameters(route) {
        operation = operation.parameter(parameter);
    }
    for &(status, body) in route.answers {
        operation = operation.response(status.to_string(), answer(route, status, body, schemas));
    }
    for (status, codes) in problems(route) {
        // A route may have an answer of its own for a status that is a problem elsewhere.
        if route.answers.iter().all(|&(answered, _)| answered != status) {
            let name = codes.iter().map(|code| format!("{code:?}")).collect::<Vec<_>>().join("Or");
            operation = operation.response(status.to_string(), Ref::from_response_name(&name));
            failures.entry(name).or_insert_with(|| problem(status, &codes));
        }
    }
    operation.security(match route.access {
        Access::Public => SecurityRequirement::default(),
        Access::Needs(_) => SecurityRequirement::new("bearer", [""; 0]),
    })
}

fn first_sentence(text: &str) -> &str {
    let end = text.find([':', '.', ';']).unwrap_or(text.len());
    &text[..end]
}

fn describe(route: &Route) -> String {
    match route.access {
        Access::Public => format!("{} Needs no token.", route.summary),
        Access::Needs(operation) => format!(
            "{} Needs the operation `{operation}`: role {} or above{}.",
            route.summary,
            operation.least_role(),
            match operation.reach() {
                crate::Reach::Host => ", not bound to a workspace",
                crate::Reach::Workspace | crate::Reach::Shared => "",
            }
        ),
    }
}

fn problems(route: &Route) -> BTreeMap<u16, Vec<Code>> {
    let mut codes: Vec<Code> = ALWAYS.to_vec();
    if route.access != Access::Public {
        codes.extend(WITH_CREDENTIALS);
    }
    if !matches!(route.request, Body::Empty) {
        codes.push(Code::UnsupportedMediaType);
    }
    codes.extend(route.problems);
    codes.sort_unstable();
    codes.dedup();
    let mut by_status = BTreeMap::<u16, Vec<Code>>::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(code);
    }
    by_status
}

fn problem(status: u16, codes: &[Code]) -> Response {
    let lines: Vec<String> =
        codes.iter().map(|code| format!("`{code}`: {}", code.meaning())).collect();
    let mut response = ResponseBuilder::new().description(lines.join("\n\n")).content(
        Problem::MEDIA_TYPE,
        ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(Problem::name())))
            .examples_from_iter(codes.iter().map(|code| {
                let example = Problem::new(*code, "What happened this time.");
                let value = serde_json::to_value(example).unwrap_or(Value::Null);
                let example =
                    utoipa::openapi::example::ExampleBuilder::new().value(Some(value)).build();
                (code.as_str(), example)
            }))
            .build(),
    );
    if matches!(status, 429 | 503) {
        response = response.header("Retry-After", header("Seconds to wait.", Type::Integer));
    }
    if status == 401 {
        response = response.header("WWW-Authenticate", header("`Bearer`.", Type::String));
    }
    response.build()
}

fn header(description: &str, schema_type: Type) -> Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(schema_type)))
        .description(Some(description))
        .build()
}

fn collect<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

fn path_parameter(name: &str) -> Parameter {
    let (schema, description) = match name {
        "sandbox" => (bound::SandboxId::name(), "The sandbox's id, or its name."),
        "process" => (bound::ProcessId::name(), "The process's name in its sandbox."),
        "snapshot" => (bound::SnapshotId::name(), "The snapshot's id, or its name."),
        "volume" => (bound::VolumeName::name(), "The volume's name."),
        "service" => (bound::ServiceName::name(), "The service's name."),
        _ => (bound::Id::name(), "The id."),
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(Ref::from_schema_name(schema)))
        .build()
}

fn header_parameters(route: &Route) -> Vec<Parameter> {
    let mut headers = Vec::new();
    let mut add = |name: &str, schema: std::borrow::Cow<'static, str>, description: &str| {
        headers.push(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(description))
                .schema(Some(Ref::from_schema_name(schema)))
                .build(),
        );
    };
    if route.idempotent {
        add(
            "Idempotency-Key",
            bound::IdempotencyKey::name(),
            "A name for this request, chosen by the caller. Sent again within a day, it is \
             answered as the first time and not done again.",
        );
    }
    if route.versioned {
        let (name, description) = match route.method {
            Method::Get => {
                ("If-None-Match", "The ETag that the caller has: 304 where it is still so.")
            }
            _ => ("If-Match", "The ETag that the change is meant for: 412 where it has changed."),
        };
        add(name, bound::EntityTag::name(), description);
    }
    headers
}

fn json_content(schema: SchemaOf, example: Option<Value>, schemas: &mut Schemas) -> Content {
    (schema.collect)(schemas);
    ContentBuilder::new()
        .schema(Some(Ref::from_schema_name((schema.name)())))
        .example(example)
        .build()
}

fn octets() -> Content {
    Content::new(Some(
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary))),
    ))
}

fn text(description: impl Into<String>) -> Content {
    Content::new(Some(
        ObjectBuilder::new().schema_type(Type::String).description(Some(description)),
    ))
}

fn events(schema: SchemaOf, schemas: &mut Schemas) -> Content {
    (schema.collect)(schemas);
    text(format!("Server-sent events; the data of each is JSON of `{}`.", (schema.name)()))
}

fn request(route: &Route, schemas: &mut Schemas) -> Option<RequestBody> {
    let (media, content, required) = match route.request {
        Body::Json(schema) => {
            ("application/json", json_content(schema, example(route), schemas), Required::True)
        }
        Body::OptionalJson(schema) => {
            ("application/json", json_content(schema, example(route), schemas), Required::False)
        }
        Body::Octets => ("application/octet-stream", octets(), Required::True),
        Body::Tar => ("application/x-tar", octets(), Required::True),
        _ => return None,
    };
    Some(RequestBodyBuilder::new().content(media, content).required(Some(required)).build())
}

fn answer(route: &Route, status: u16, body: Body, schemas: &mut Schemas) -> Response {
    let description = match (status, body) {
        (101, _) => {
            "The connection is a WebSocket. The first text message of the client is an \
                     `Exec`, later ones are `ExecControl`; binary ones begin with a byte: 0 stdin, \
                     1 its end. Of the server, binary messages begin with 1 for stdout and 2 for \
                     stderr; text ones are `ExecFinal`."
        }
        (201, _) => "It was made.",
        (202, _) => "It was accepted and goes on.",
        (204, _) => "Done.",
        (206, _) => "The part that the Range header asked for.",
        (304, _) => "It is as it was.",
        (503, _) => "The server does not take work.",
        _ => "Done.",
    };
    let mut response = ResponseBuilder::new().description(description);
    response = match body {
        Body::Empty | Body::WebSocket => response,
        Body::Json(schema) | Body::OptionalJson(schema) => {
            response.content("application/json", json_content(schema, None, schemas))
        }
        Body::JsonOrEvents(schema, event) => response
            .content("application/json", json_content(schema, None, schemas))
            .content("text/event-stream", events(event, schemas)),
        Body::Events(event) => response.content("text/event-stream", events(event, schemas)),
        Body::Octets => response
            .content("application/octet-stream", octets())
            .header("Accept-Ranges", header("`bytes`.", Type::String)),
        Body::Tar => response.content("application/x-tar", octets()),
        Body::JsonLines(schema) => {
            (schema.collect)(schemas);
            let name = (schema.name)();
            response.content("application/jsonl", text(format!("A `{name}` on each line.")))
        }
        Body::Metrics => response.content(
            "application/openmetrics-text",
            text("Metrics in the text form of OpenMetrics."),
        ),
        Body::Document => response.content(
            "application/json",
            Content::new(Some(ObjectBuilder::new().schema_type(Type::Object))),
        ),
    };
    if route.versioned {
        response =
            response.header("ETag", header("The sandbox's version, in quotes.", Type::String));
    }
    if status == 206 {
        response = response.header("Content-Range", header("Which part it is.", Type::String));
    }
    if status == 201 || (status == 202 && route.method == Method::Post) {
        response = response.header("Location", header("Where it is found.", Type::String));
    }
    response.build()
}

/// A request that does something useful.
fn example(route: &Route) -> Option<Value> {
    Some(match route.id {
        "create_sandbox" => json!({
            "name": "build-1", "cpu": 2, "memory_mb": 1024, "timeout_sec": 3600,
            "labels": {"team": "red"},
        }),
        "update_sandbox" => json!({"labels": {"team": "blue"}, "timeout_sec": 7200}),
        "attach_mount" => json!({
            "host_path": "/home/me/data", "guest_path": "/data", "mode": "live",
        }),
        "exec" => json!({"command": ["python3", "-c", "print(1)"], "timeout_sec": 60}),
        "signal_process" => json!({"signal": 15}),
        "resize_process" => json!({"rows": 24, "cols": 80}),
        "make_directory" => json!({"path": "/workspace/build", "parents": true}),
        "move_file" => json!({"from": "/workspace/a", "to": "/workspace/b"}),
        "apply_changes" => json!({"paths": ["src", "*.md"], "allow_protected": [".envrc"]}),
        "discard_changes" => json!({"mount": 0}),
        "create_snapshot" => json!({"name": "built"}),
        "fork_sandbox" => json!({"count": 4, "name": "try"}),
        "restore_snapshot" => json!({"name": "again", "labels": {"team": "red"}}),
        "create_volume" => json!({"name": "data", "size_bytes": 10_737_418_240_u64}),
        "create_token" => json!({"name": "ci", "role": "member", "expires_in_sec": 86_400}),
        "create_key" => json!({
            "name": "laptop",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        }),
        "set_secret" | "set_sandbox_secret" => json!({"value": "ghp_not-a-real-token"}),
        "check_policy" => json!({"request": {"create": {"cpu": 4}}}),
        "create_webhook" => json!({
            "url": "https://example.org/hook",
            "kinds": [EventKind::SandboxCreated, EventKind::PolicyDenied],
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Operation, Validate};

    fn document() -> Value {
        serde_json::to_value(openapi()).unwrap()
    }

    fn each_object<'a>(
        value: &'a Value,
        visit: &mut dyn FnMut(&'a serde_json::Map<String, Value>),
    ) {
        match value {
            Value::Object(map) => {
                visit(map);
                map.values().for_each(|value| each_object(value, visit));
            }
            Value::Array(items) => items.iter().for_each(|item| each_object(item, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let document = document();
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.insert((path.clone(), method.to_uppercase()));
            }
        }
        let routed: BTreeSet<_> = ROUTES
            .iter()
            .map(|route| (route.path.to_owned(), route.method.as_str().to_owned()))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut missing = BTreeSet::new();
        each_object(&document, &mut |map| {
            if let Some(Value::String(target)) = map.get("$ref") {
                let pointer = target.strip_prefix('#').unwrap();
                if document.pointer(pointer).is_none() {
                    missing.insert(target.clone());
                }
            }
        });
        assert_eq!(missing, BTreeSet::new());
    }

    #[test]
    fn names_in_the_document_are_those_of_the_json() {
        fn named<T: serde::Serialize>(document: &Value, schema: &str, all: &[T]) {
            let names: Vec<Value> =
                all.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
            assert_eq!(document["components"]["schemas"][schema]["enum"], json!(names));
        }
        let document = document();
        named(&document, "Code", Code::ALL);
        named(&document, "EventKind", EventKind::ALL);
        named(&document, "Operation", Operation::ALL);
        named(&document, "State", &crate::State::ALL);
        named(&document, "Role", &crate::Role::ALL);
        named(&document, "Isolation", &crate::Isolation::ALL);
    }

    #[test]
    fn descriptions_are_for_readers_of_the_document() {
        let text = openapi().to_json().unwrap();
        assert!(!text.contains("[`"), "a link of rustdoc");
        assert!(!text.contains("crate::") && !text.contains("Self::"));
    }

    #[test]
    fn requests_refuse_unknown_fields_in_the_document_too() {
        let document = document();
        for name in [
            "CreateSandbox",
            "UpdateSandbox",
            "Mount",
            "Exec",
            "WindowSize",
            "Limits",
            "Signal",
            "MakeDirectory",
            "MoveFile",
            "ApplyChanges",
            "DiscardChanges",
            "CreateSnapshot",
            "ForkSandbox",
            "RestoreSnapshot",
            "CreateVolume",
            "VolumeMount",
            "Cache",
            "CreateToken",
            "CreateKey",
            "SetSecret",
            "CustomService",
            "PolicyCheck",
            "PolicySubject",
            "CreateWebhook",
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], false, "{name}: {schema}");
        }
    }

    #[test]
    fn examples_are_valid_requests() {
        fn valid<T: serde::de::DeserializeOwned + Validate>(value: Value) {
            let request: T = serde_json::from_value(value).unwrap();
            assert_eq!(request.validate(), Ok(()));
        }
        for route in ROUTES {
            let Some(value) = example(route) else { continue };
            match route.id {
                "create_sandbox" => valid::<crate::CreateSandbox>(value),
                "update_sandbox" => valid::<crate::UpdateSandbox>(value),
                "attach_mount" => valid::<crate::Mount>(value),
                "exec" => valid::<crate::Exec>(value),
                "signal_process" => valid::<crate::Signal>(value),
                "resize_process" => valid::<crate::WindowSize>(value),
                "make_directory" => valid::<crate::MakeDirectory>(value),
                "move_file" => valid::<crate::MoveFile>(value),
                "apply_changes" => valid::<crate::ApplyChanges>(value),
                "discard_changes" => valid::<crate::DiscardChanges>(value),
                "create_snapshot" => valid::<crate::CreateSnapshot>(value),
                "fork_sandbox" => valid::<crate::ForkSandbox>(value),
                "restore_snapshot" => valid::<crate::RestoreSnapshot>(value),
                "create_volume" => valid::<crate::CreateVolume>(value),
                "create_token" => valid::<crate::CreateToken>(value),
                "create_key" => valid::<crate::CreateKey>(value),
                "set_secret" | "set_sandbox_secret" => valid::<crate::SetSecret>(value),
                "check_policy" => valid::<crate::PolicyCheck>(value),
                "create_webhook" => valid::<crate::CreateWebhook>(value),
                other => panic!("{other} has an example that nothing checks"),
            }
        }
    }

    #[test]
    fn every_json_request_has_an_example() {
        for route in ROUTES {
            if matches!(route.request, Body::Json(_) | Body::OptionalJson(_)) {
                assert!(example(route).is_some(), "{route:?}");
            }
        }
    }

    #[test]
    fn what_needs_a_token_says_so() {
        let document = document();
        for route in ROUTES {
            let method = route.method.as_str().to_lowercase();
            let operation = &document["paths"][route.path][method];
            let public = route.access == Access::Public;
            assert_eq!(
                operation["security"],
                if public { json!([{}]) } else { json!([{"bearer": []}]) }
            );
            assert_eq!(operation["responses"]["401"].is_null(), public, "{route:?}");
        }
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }

    #[test]
    fn every_code_of_a_problem_can_be_met() {
        let met: BTreeSet<Code> =
            ROUTES.iter().flat_map(|route| problems(route).into_values().flatten()).collect();
        let unmet: Vec<_> = Code::ALL.iter().filter(|code| !met.contains(code)).collect();
        // No route has it: it is the answer where no route is.
        assert_eq!(unmet, [&Code::MethodNotAllowed]);
    }

    #[test]
    fn every_operation_is_told_in_the_document() {
        let text = openapi().to_json().unwrap();
        for operation in Operation::ALL {
            assert!(text.contains(&format!("the operation `{operation}`")), "{operation}");
        }
    }
}
