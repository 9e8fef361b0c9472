//! What went wrong, for the person or program that called: built where it happens, printed once.

use std::error::Error;
use std::fmt::{self, Write as _};

use client::api::{Code, Problem};
use serde::Serialize;

use crate::{exit, filter};

/// What kind of failure it was: decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The command line, or a file that it names, makes no sense.
    Usage,
    /// What it names is not there.
    NotFound,
    /// This machine lacks something.
    Unavailable,
    /// A policy forbids it.
    Denied,
    /// It was tried and failed.
    Failed,
    /// The user ended it.
    Interrupted,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    /// For programs.
    pub(crate) kind: Kind,
    /// What failed, with its cause where that is one thing.
    pub(crate) message: String,
    /// Why, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<String>,
    /// What to do about it.
    #[serde(rename = "hint", skip_serializing_if = "Option::is_none")]
    pub(crate) help: Option<String>,
    /// The exit status, where the kind does not decide it.
    #[serde(skip)]
    pub(crate) status: Option<u8>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), help: None, status: None }
    }

    /// A signal came before there was a command to pass it to, or the second one did.
    pub(crate) fn interrupted(signal: i32) -> Self {
        let status = Some(exit::of_signal(signal));
        Self { status, ..Self::new(Kind::Interrupted, "interrupted") }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// An error and all that is behind it.
    pub(crate) fn from_error(kind: Kind, error: &dyn Error) -> Self {
        Self::new(kind, error.to_string()).because_source(error)
    }

    /// Adds `cause` and all that is behind it.
    pub(crate) fn because(mut self, cause: &dyn Error) -> Self {
        self.causes.push(cause.to_string());
        self.because_source(cause)
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What a server said, or that there is none.
    pub(crate) fn from_client(error: &client::Error) -> Self {
        match error {
            client::Error::Problem(problem) => Self::from_problem(problem),
            client::Error::Connect { .. } => Self::from_error(Kind::Unavailable, error),
            client::Error::Configuration(_) => Self::from_error(Kind::Usage, error),
            other => Self::from_error(Kind::Failed, other),
        }
    }

    /// A problem, with the rule that decided and what would help.
    pub(crate) fn from_problem(problem: &Problem) -> Self {
        let message = match problem.field() {
            Some(field) => format!("{field}: {}", problem.detail),
            None => problem.detail.clone(),
        };
        let mut failure = Self::new(kind_of(problem.code), message);
        if let Some(rule) = problem.rule() {
            failure.causes.push(format!("rule {rule}"));
        }
        failure.help = problem.remedy().map(str::to_owned).or_else(|| {
            let seconds = problem.retry_after_sec()?;
            Some(format!("try again in {seconds} s"))
        });
        failure
    }

    /// Many errors tell their source in their own words: those are not said twice.
    fn because_source(mut self, error: &dyn Error) -> Self {
        let mut next = error.source();
        while let Some(source) = next {
            let text = source.to_string();
            let said = self.causes.last().unwrap_or(&self.message);
            if !said.contains(&text) {
                self.causes.push(text);
            }
            next = source.source();
        }
        self
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        Self::from_client(&error)
    }
}

fn kind_of(code: Code) -> Kind {
    match code {
        Code::InvalidRequest
        | Code::Unsupported
        | Code::TooLarge
        | Code::UriTooLong
        | Code::HeadersTooLarge => Kind::Usage,
        Code::NotFound | Code::FileNotFound | Code::ProcessNotFound => Kind::NotFound,
        Code::Unauthenticated
        | Code::BadSignature
        | Code::SignatureRequired
        | Code::Forbidden
        | Code::PolicyDenied
        | Code::PermissionDenied => Kind::Denied,
        Code::Busy | Code::ShuttingDown | Code::EngineUnavailable | Code::RateLimited => {
            Kind::Unavailable
        }
        _ => Kind::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("sandforge: {}", self.message);
        for cause in &self.causes {
            write!(text, "\n  cause: {cause}")?;
        }
        if let Some(help) = &self.help {
            write!(text, "\n  help: {help}")?;
        }
        f.write_str(&filter::plain(&without_numbers(&text)))
    }
}

/// Rust adds the number to every message of the system; the words are enough for people.
pub(crate) fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::api::RuleRef;
    use std::io;

    #[test]
    fn it_says_what_why_and_what_next() {
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::failed("cannot read \"x\"").because(&cause).help("chmod +r x");
        assert_eq!(
            failure.to_string(),
            "sandforge: cannot read \"x\"\n  cause: permission denied\n  help: chmod +r x"
        );
    }

    #[test]
    fn a_cause_that_the_message_tells_is_not_repeated() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "cannot open it: {}", self.0)
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let failure = Failure::from_error(Kind::Failed, &Outer(io::Error::other("no")));
        assert_eq!(failure.to_string(), "sandforge: cannot open it: no");
    }

    #[test]
    fn errors_of_the_system_are_words() {
        let cause = io::Error::from_raw_os_error(2);
        let failure = Failure::failed(format!("{cause}; x")).because(&cause);
        assert_eq!(
            failure.to_string(),
            "sandforge: No such file or directory; x\n  cause: No such file or directory"
        );
    }

    #[test]
    fn a_denial_names_its_rule_and_its_remedy() {
        let rule = RuleRef { file: "policy.toml".into(), line: 3, text: "deny".into() };
        let problem = Problem::new(Code::PolicyDenied, "git push is denied")
            .with_rule(rule)
            .with_remedy("ask the administrator");
        let failure = Failure::from_problem(&problem);
        assert_eq!(failure.kind, Kind::Denied);
        assert_eq!(
            failure.to_string(),
            "sandforge: git push is denied\n  cause: rule policy.toml:3: deny\n  help: ask the \
             administrator"
        );
    }

    #[test]
    fn controls_in_a_message_are_shown() {
        assert_eq!(Failure::failed("\x1b]0;x\x07").to_string(), "sandforge: ^[]0;x^G");
    }
}
