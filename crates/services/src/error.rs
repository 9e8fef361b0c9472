//! Why a service's file cannot be loaded, or a service not be used.

/// A mistake in a service's file: where it is, what it is and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {fault}")]
pub struct Error {
    /// The file's name.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong with a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is more text than a service needs.
    #[error("the file is longer than {limit} bytes; a service takes a page")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// A list or a product of parameters that no service has.
    #[error("{key} has more than {limit} entries; name fewer")]
    TooMany {
        /// The key.
        key: String,
        /// Most entries.
        limit: usize,
    },
    /// It is not TOML.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// A key that no service has.
    #[error("there is no key {key:?} here; {hint}")]
    UnknownKey {
        /// As it is written.
        key: String,
        /// The nearest that there is, or all.
        hint: String,
    },
    /// A key that has to be there.
    #[error("{key} is missing; write {wanted}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write, with an example.
        wanted: &'static str,
    },
    /// A value of another type than the key has.
    #[error("{key} is {found}; write {wanted}")]
    Type {
        /// The key.
        key: String,
        /// What is there.
        found: &'static str,
        /// What is to be there, with an example.
        wanted: &'static str,
    },
    /// A value that the key cannot have.
    #[error("{key}: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// Two services would put a credential into the same place.
    #[error(
        "{host} has two services with one place for the credential, {service} and {other}; \
         give one of them another host, slot or beginning of its placeholder"
    )]
    SameSlot {
        /// The host.
        host: String,
        /// The one that is loaded.
        service: String,
        /// The one that is there.
        other: String,
    },
    /// Two services would read one variable.
    #[error("the variable {variable} belongs to {other} already; take it out of one of them")]
    SameVariable {
        /// The variable.
        variable: String,
        /// Whose it is.
        other: String,
    },
}

/// Why a service cannot be had from the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// There is none of the name.
    #[error("there is no service {name:?}; {hint}")]
    Unknown {
        /// As it was asked for.
        name: String,
        /// The nearest that there is, or all.
        hint: String,
    },
    /// It is not the same for everyone.
    #[error("{service} needs {parameter}: {about}; give it as {parameter}=VALUE")]
    Needs {
        /// The service.
        service: String,
        /// The parameter.
        parameter: String,
        /// What it is.
        about: String,
    },
    /// The service takes no such parameter.
    #[error("{service} takes no parameter {parameter:?}; {hint}")]
    UnknownParameter {
        /// The service.
        service: String,
        /// As it was given.
        parameter: String,
        /// Those that it takes.
        hint: String,
    },
    /// What was given makes no service.
    #[error("{service}: {fault}")]
    Wrong {
        /// The service.
        service: String,
        /// What is wrong.
        fault: Fault,
    },
}
