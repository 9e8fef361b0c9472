//! What went wrong, as RFC 9457 has it.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::bound::Schemas;
use crate::policy::RuleRef;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $status:literal, $title:literal, $meaning:literal;)*) => {
        /// What kind of problem it is. Names and statuses never change; new ones are added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] #[serde(rename = $name)] $variant,)*
        }

        impl Code {
            /// All of them, by status.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in `code` and at the end of `type`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// The kind in a few words, the same for every problem of the code.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// What it means and what to do, in a sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid_request", 400, "The request is not valid",
        "The body, a query parameter or a header is not what the operation takes; `field` names it.";
    Unauthenticated = "unauthenticated", 401, "No valid credentials",
        "There is no token, or one that is unknown, expired or revoked. Send `Authorization: Bearer …`.";
    BadSignature = "bad_signature", 401, "The request's signature does not verify",
        "The signature, its digest or its key does not fit the request, it is out of date, or its nonce was used. Sign again.";
    SignatureRequired = "signature_required", 401, "The request must be signed",
        "The operator takes this operation only with a signature. Register a key with `sandforge key` and sign.";
    Forbidden = "forbidden", 403, "The caller may not do this",
        "The role or the token's list of operations does not include it; `detail` names the missing right.";
    PolicyDenied = "policy_denied", 403, "Policy does not allow this",
        "`rule` is the deciding rule with file and line; `remedy` says what would allow it.";
    OriginRefused = "origin_refused", 403, "Requests of web pages are not taken",
        "The Origin header names a site that is not allowed. Call from a program.";
    PermissionDenied = "permission_denied", 403, "The guest's user may not do this",
        "The guest's kernel refused. Choose another `user` or path.";
    NotFound = "not_found", 404, "There is no such thing",
        "No such path of the API, or no thing of this id that the caller may see.";
    FileNotFound = "file_not_found", 404, "There is no such file in the sandbox",
        "The guest has no file or directory at this path.";
    ProcessNotFound = "process_not_found", 404, "There is no such process in the sandbox",
        "The sandbox has no process of this name, or has forgotten it.";
    MethodNotAllowed = "method_not_allowed", 405, "The path does not take this method",
        "The Allow header lists the methods.";
    NotAcceptable = "not_acceptable", 406, "None of the accepted types can be given",
        "The Accept header leaves out every type that the operation has.";
    RequestTimeout = "request_timeout", 408, "The request did not arrive in time",
        "Its headers or body came too slowly. Send it again.";
    WrongState = "wrong_state", 409, "The sandbox's state does not allow this",
        "`detail` names the state. Wait for another, or start or resume the sandbox first.";
    NameTaken = "name_taken", 409, "The name is in use",
        "A sandbox or process of this name is there. Take another name, or remove it.";
    AlreadyExists = "already_exists", 409, "It is there already",
        "A file, key, volume or webhook of this name exists. Replace it explicitly or take another name.";
    IdempotencyInProgress = "idempotency_in_progress", 409, "The same request is being done",
        "A request with this Idempotency-Key has not ended. Ask again later.";
    PreconditionFailed = "precondition_failed", 412, "The thing has changed",
        "If-Match does not name the present version. Get it again and decide anew.";
    TooLarge = "too_large", 413, "The body is too large",
        "Send less, or in parts; `detail` names the limit.";
    UriTooLong = "uri_too_long", 414, "The path or the query is too long",
        "Shorten it; `detail` names the limit.";
    UnsupportedMediaType = "unsupported_media_type", 415, "The body's type is not taken",
        "Set Content-Type to what the operation takes.";
    RangeNotSatisfiable = "range_not_satisfiable", 416, "The file has no such range",
        "The Content-Range header has the file's size.";
    HostRefused = "host_refused", 421, "The Host header does not name this server",
        "Call the server by a name or address that it is configured for.";
    Unsupported = "unsupported", 422, "This cannot be done here",
        "The engine or this version does not have it; `remedy` says what does.";
    IdempotencyMismatch = "idempotency_mismatch", 422, "The Idempotency-Key was used for another request",
        "The earlier request with this key was different. Take a new key.";
    UpgradeRequired = "upgrade_required", 426, "This path speaks WebSocket",
        "Open it with `Upgrade: websocket` and the sub-protocol `sandforge.exec.v1`.";
    RateLimited = "rate_limited", 429, "Too many requests",
        "Wait for as long as Retry-After says.";
    HeadersTooLarge = "headers_too_large", 431, "The headers are too large",
        "Send fewer or shorter ones.";
    Internal = "internal", 500, "The server failed",
        "A defect or a broken host; the log of the server says more under the request's id.";
    BootFailed = "boot_failed", 500, "The sandbox could not be made",
        "The image, the engine or the machine failed; `detail` says where.";
    GuestFailed = "guest_failed", 502, "The guest did not do its part",
        "The sandbox's agent went away or answered with something unusable.";
    Busy = "busy", 503, "The host is full",
        "All places and the queue are taken. Try again after Retry-After, or remove sandboxes.";
    ShuttingDown = "shutting_down", 503, "The server is stopping",
        "Try again when it is back.";
    EngineUnavailable = "engine_unavailable", 503, "No engine here can run this",
        "No engine isolates as strongly as asked for, or the named one does not work; see `sandforge doctor`.";
    GuestTimeout = "guest_timeout", 504, "The guest did not answer in time",
        "The sandbox may be overloaded or stuck. Try again, or delete it.";
    StorageFull = "storage_full", 507, "The server's disk is full",
        "No new work is taken until there is space, so that no record is lost.";
    GuestFull = "guest_full", 507, "The guest has no room",
        "The sandbox is out of disk, memory or process slots.";
}

/// By hand: the derive does not see a name that a macro was given.
impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(Self::ALL.iter().map(|one| one.as_str())))
            .description(Some("What kind of problem it is."))
            .into()
    }
}

impl ToSchema for Code {
    fn name() -> Cow<'static, str> {
        "Code".into()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a request failed, and what to do. In JSON it is `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Document", from = "Document")]
pub struct Problem {
    /// What kind it is.
    pub code: Code,
    /// What happened this time, for a person.
    pub detail: String,
    /// Boxed: a `Result` that carries a problem stays small.
    more: Box<More>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct More {
    field: Option<String>,
    rule: Option<RuleRef>,
    remedy: Option<String>,
    retry_after_sec: Option<u64>,
    instance: Option<String>,
}

impl Problem {
    /// The media type of the JSON.
    pub const MEDIA_TYPE: &'static str = "application/problem+json";

    /// A problem of this kind; `detail` says what happened.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), more: Box::default() }
    }

    /// A field, parameter or header that is not what it should be.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail).with_field(field)
    }

    /// Names the field, parameter or header, with dots and indices: `mounts[0].host_path`.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.more.field = Some(field.into());
        self
    }

    /// Puts `outer` and a dot before the field's name.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.more.field = Some(match self.more.field.take() {
            Some(field) => format!("{outer}.{field}"),
            None => outer.to_owned(),
        });
        self
    }

    /// Names the deciding rule of policy.
    #[must_use]
    pub fn with_rule(mut self, rule: RuleRef) -> Self {
        self.more.rule = Some(rule);
        self
    }

    /// Says what would help.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.more.remedy = Some(remedy.into());
        self
    }

    /// Says when to try again; also the Retry-After header.
    #[must_use]
    pub fn with_retry_after_sec(mut self, seconds: u64) -> Self {
        self.more.retry_after_sec = Some(seconds);
        self
    }

    /// Names this occurrence: the request's id, as `urn:sandforge:request:<id>`.
    #[must_use]
    pub fn with_instance(mut self, instance: impl Into<String>) -> Self {
        self.more.instance = Some(instance.into());
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.code.status()
    }

    /// The field at fault.
    pub fn field(&self) -> Option<&str> {
        self.more.field.as_deref()
    }

    /// The deciding rule.
    pub fn rule(&self) -> Option<&RuleRef> {
        self.more.rule.as_ref()
    }

    /// What would help.
    pub fn remedy(&self) -> Option<&str> {
        self.more.remedy.as_deref()
    }

    /// Seconds to wait.
    pub fn retry_after_sec(&self) -> Option<u64> {
        self.more.retry_after_sec
    }

    /// This occurrence.
    pub fn instance(&self) -> Option<&str> {
        self.more.instance.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.more.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.detail)?;
        if let Some(rule) = &self.more.rule {
            write!(f, " ({rule})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Why a request failed, and what to do (RFC 9457).
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document {
    /// `urn:sandforge:problem:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in a few words.
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened this time, for a person.
    detail: String,
    /// What kind it is, for programs.
    #[schema(value_type = Code)]
    code: String,
    /// The field, parameter or header at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// The deciding rule of policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<RuleRef>,
    /// What would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// Seconds to wait before trying again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_sec: Option<u64>,
    /// This occurrence: `urn:sandforge:request:<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
}

impl From<Problem> for Document {
    fn from(problem: Problem) -> Self {
        let Problem { code, detail, more } = problem;
        let More { field, rule, remedy, retry_after_sec, instance } = *more;
        Self {
            kind: format!("urn:sandforge:problem:{code}"),
            title: code.title().into(),
            status: code.status(),
            detail,
            code: code.as_str().into(),
            field,
            rule,
            remedy,
            retry_after_sec,
            instance,
        }
    }
}

impl From<Document> for Problem {
    /// A code that this version does not know becomes the nearest one, and is told in the detail.
    fn from(document: Document) -> Self {
        let Document {
            status, detail, code, field, rule, remedy, retry_after_sec, instance, ..
        } = document;
        let more = Box::new(More { field, rule, remedy, retry_after_sec, instance });
        match Code::ALL.iter().find(|known| known.as_str() == code) {
            Some(&code) => Self { code, detail, more },
            None => {
                let nearest = Code::ALL.iter().find(|known| known.status() == status);
                let nearest = nearest.copied().unwrap_or(Code::Internal);
                Self { code: nearest, detail: format!("{detail} (code `{code}`)"), more }
            }
        }
    }
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Document::schema()
    }
}

impl ToSchema for Problem {
    fn name() -> Cow<'static, str> {
        "Problem".into()
    }

    fn schemas(schemas: &mut Schemas) {
        Document::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn codes_are_unique_and_ordered_by_status() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.is_sorted_by_key(|code| code.status()));
        for code in Code::ALL {
            assert!((400..600).contains(&code.status()), "{code}");
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
        }
    }

    /// Clients match on these: a line may be added, none may change.
    #[test]
    fn codes_and_statuses_are_stable() {
        let table: Vec<String> =
            Code::ALL.iter().map(|code| format!("{} {code}", code.status())).collect();
        assert_eq!(
            table,
            [
                "400 invalid_request",
                "401 unauthenticated",
                "401 bad_signature",
                "401 signature_required",
                "403 forbidden",
                "403 policy_denied",
                "403 origin_refused",
                "403 permission_denied",
                "404 not_found",
                "404 file_not_found",
                "404 process_not_found",
                "405 method_not_allowed",
                "406 not_acceptable",
                "408 request_timeout",
                "409 wrong_state",
                "409 name_taken",
                "409 already_exists",
                "409 idempotency_in_progress",
                "412 precondition_failed",
                "413 too_large",
                "414 uri_too_long",
                "415 unsupported_media_type",
                "416 range_not_satisfiable",
                "421 host_refused",
                "422 unsupported",
                "422 idempotency_mismatch",
                "426 upgrade_required",
                "429 rate_limited",
                "431 headers_too_large",
                "500 internal",
                "500 boot_failed",
                "502 guest_failed",
                "503 busy",
                "503 shutting_down",
                "503 engine_unavailable",
                "504 guest_timeout",
                "507 storage_full",
                "507 guest_full",
            ]
        );
    }

    #[test]
    fn a_problem_is_rfc_9457_json() {
        let problem = Problem::new(Code::PolicyDenied, "host path ~/.ssh is denied")
            .with_rule(RuleRef { file: "policy.toml".into(), line: 7, text: "deny".into() })
            .with_remedy("mount another directory");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            json!({
                "type": "urn:sandforge:problem:policy_denied",
                "title": "Policy does not allow this",
                "status": 403,
                "detail": "host path ~/.ssh is denied",
                "code": "policy_denied",
                "rule": {"file": "policy.toml", "line": 7, "text": "deny"},
                "remedy": "mount another directory",
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn a_code_of_a_newer_server_is_still_understood() {
        let json = json!({
            "type": "urn:sandforge:problem:moon_phase", "title": "t", "status": 409,
            "detail": "not tonight", "code": "moon_phase", "more": true,
        });
        let problem: Problem = serde_json::from_value(json).unwrap();
        assert_eq!(problem.code, Code::WrongState);
        assert_eq!(problem.detail, "not tonight (code `moon_phase`)");
    }

    #[test]
    fn it_names_the_field_from_the_outside_in() {
        let problem = Problem::invalid("host_path", "too long").within("mounts[0]");
        assert_eq!(problem.to_string(), "mounts[0].host_path: too long");
    }
}
