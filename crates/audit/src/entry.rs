use std::borrow::Cow;

use api::{AuditDecision, RuleRef, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{AuditError, Digest};

/// Most bytes of a name, a rule or an outcome.
const MAX_TEXT: usize = 4096;
/// Most bytes of details as JSON.
const MAX_DETAILS: usize = 32 << 10;

/// What is to be recorded: who, what, how it was decided and how it went. No secret belongs in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What, by the name of an operation, or of something that the server did by itself.
    pub operation: String,
    /// In which workspace.
    pub workspace: Option<String>,
    /// On which sandbox.
    pub sandbox: Option<String>,
    /// Of the request.
    pub request_digest: Option<Digest>,
    /// Of the signed operation that the guest got.
    pub task_digest: Option<Digest>,
    /// Whether it was allowed.
    pub decision: AuditDecision,
    /// By which rule of policy.
    pub rule: Option<RuleRef>,
    /// Under which generation of policy.
    pub generation: Option<u64>,
    /// How it went, in a word: `ok`, or the code of a problem.
    pub outcome: String,
    /// More, by operation. Beyond 32 KiB of JSON its size and digest stand for it.
    pub details: Details,
}

/// More about what is recorded: a JSON object.
#[derive(Debug, Clone, PartialEq)]
pub struct Details(Form);

#[derive(Debug, Clone, PartialEq)]
enum Form {
    Map(Map<String, Value>),
    /// The object as it is kept, for what is recorded too often to be taken apart first.
    Text(String),
}

impl Default for Details {
    fn default() -> Self {
        Self(Form::Map(Map::new()))
    }
}

impl From<Map<String, Value>> for Details {
    fn from(map: Map<String, Value>) -> Self {
        Self(Form::Map(map))
    }
}

impl Details {
    /// The fields of `value`, written once.
    ///
    /// # Errors
    /// Where it is no object of JSON.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        let text = serde_json::to_string(value)?;
        match text.starts_with('{') {
            true => Ok(Self(Form::Text(text))),
            false => Err(serde::ser::Error::custom("not an object of JSON")),
        }
    }

    /// Adds these, or puts them in the place of those of the same name.
    pub fn extend(&mut self, more: impl IntoIterator<Item = (String, Value)>) {
        if let Form::Text(text) = &self.0 {
            self.0 = Form::Map(serde_json::from_str(text).expect("written as an object"));
        }
        if let Form::Map(map) = &mut self.0 {
            map.extend(more);
        }
    }

    /// As they are kept.
    fn text(&self) -> Cow<'_, str> {
        let text: Cow<'_, str> = match &self.0 {
            Form::Text(text) => text.into(),
            Form::Map(map) => serde_json::to_string(map).expect("a map of JSON is JSON").into(),
        };
        if text.len() <= MAX_DETAILS {
            return text;
        }
        let digest = Digest::of(text.as_bytes());
        json!({"omitted_bytes": text.len(), "omitted_sha256": digest}).to_string().into()
    }
}

impl Entry {
    /// Something that was allowed and went well, now.
    pub fn allowed(actor: impl Into<String>, operation: impl Into<String>) -> Self {
        Self {
            at: Timestamp::now(),
            actor: actor.into(),
            operation: operation.into(),
            workspace: None,
            sandbox: None,
            request_digest: None,
            task_digest: None,
            decision: AuditDecision::Allowed,
            rule: None,
            generation: None,
            outcome: "ok".to_owned(),
            details: Details::default(),
        }
    }

    /// Something that was refused, now; `outcome` is the code of the problem.
    pub fn denied(
        actor: impl Into<String>,
        operation: impl Into<String>,
        outcome: impl Into<String>,
    ) -> Self {
        Self {
            decision: AuditDecision::Denied,
            outcome: outcome.into(),
            ..Self::allowed(actor, operation)
        }
    }

    /// The same, in this workspace.
    #[must_use]
    pub fn in_workspace(mut self, workspace: impl Into<String>) -> Self {
        self.workspace = Some(workspace.into());
        self
    }

    /// The same, on this sandbox.
    #[must_use]
    pub fn on_sandbox(mut self, sandbox: impl Into<String>) -> Self {
        self.sandbox = Some(sandbox.into());
        self
    }

    /// The same, with this outcome.
    #[must_use]
    pub fn with_outcome(mut self, outcome: impl Into<String>) -> Self {
        self.outcome = outcome.into();
        self
    }

    /// The same, with this detail.
    #[must_use]
    pub fn with_detail(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.details.extend([(name.into(), value.into())]);
        self
    }

    /// The details as they are kept.
    pub(crate) fn details_text(&self) -> Cow<'_, str> {
        self.details.text()
    }

    pub(crate) fn check(&self) -> Result<(), AuditError> {
        let rule = self.rule.as_ref();
        let texts = [
            ("actor", Some(self.actor.as_str())),
            ("operation", Some(self.operation.as_str())),
            ("workspace", self.workspace.as_deref()),
            ("sandbox", self.sandbox.as_deref()),
            ("rule's file", rule.map(|rule| rule.file.as_str())),
            ("rule", rule.map(|rule| rule.text.as_str())),
            ("outcome", Some(self.outcome.as_str())),
        ];
        for (field, text) in texts {
            let length = text.map_or(0, str::len);
            if length > MAX_TEXT {
                return Err(AuditError::TooLong { field, length, most: MAX_TEXT });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_that_are_too_long_leave_their_digest() {
        let short = Entry::allowed("alice", "exec").with_detail("argv", "true");
        assert_eq!(short.details_text(), r#"{"argv":"true"}"#);
        let long = Entry::allowed("alice", "exec").with_detail("argv", "x".repeat(MAX_DETAILS));
        let kept: Map<String, Value> = serde_json::from_str(&long.details_text()).unwrap();
        assert_eq!(kept["omitted_bytes"], MAX_DETAILS + r#"{"argv":""}"#.len());
        assert!(kept["omitted_sha256"].is_string());
    }

    #[test]
    fn details_that_were_written_before_are_kept_as_they_are_and_can_be_added_to() {
        #[derive(Serialize)]
        struct More {
            host: &'static str,
            bytes: u64,
        }
        let written = Details::of(&More { host: "a.example", bytes: 7 }).unwrap();
        let entry = Entry { details: written, ..Entry::allowed("alice", "exec") };
        assert_eq!(entry.details_text(), r#"{"host":"a.example","bytes":7}"#);
        let entry = entry.with_detail("bytes", 8);
        assert_eq!(entry.details_text(), r#"{"bytes":8,"host":"a.example"}"#);
        assert!(Details::of(&"text").is_err());
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_by_its_name() {
        let entry = Entry::allowed("a".repeat(MAX_TEXT + 1), "exec");
        let error = entry.check().unwrap_err();
        assert!(matches!(error, AuditError::TooLong { field: "actor", .. }), "{error}");
    }
}
