//! The bounds of what a request may hold: each is stated once, checked by [`Validate`] and
//! published in the OpenAPI document.
//!
//! The types here have no values. A field is an ordinary string or number; the type names its
//! bound, as `Name::check("name", &self.name)` and as `#[schema(value_type = Name)]`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex_lite::Regex;
use serde_json::json;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use wire::op::Command;
use wire::text::{Secret, Text};

use crate::Problem;

/// A request that can tell whether it is within its bounds.
pub trait Validate {
    /// Looks at every field.
    ///
    /// # Errors
    /// A problem that names the first field that is out of bounds, and the bound.
    fn validate(&self) -> Result<(), Problem>;
}

/// A named schema beside the types: what [`ToSchema::schemas`] collects.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;

macro_rules! text {
    ($($(#[$doc:meta])* $name:ident, $least:literal..=$most:literal, $pattern:literal, $is:literal, $example:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl $name {
            /// Least and most characters.
            pub const LENGTH: std::ops::RangeInclusive<usize> = $least..=$most;
            /// What it matches, as a regular expression of ECMA-262 and of Rust.
            pub const PATTERN: &'static str = $pattern;

            /// Whether the text is one.
            pub fn is(text: &str) -> bool {
                static REGEX: LazyLock<Regex> =
                    LazyLock::new(|| Regex::new($pattern).expect("the pattern is ours"));
                // The longest encoding of a character has four bytes: no need to count further.
                text.len() <= $most * 4
                    && $name::LENGTH.contains(&text.chars().count())
                    && REGEX.is_match(text)
            }

            /// Looks at the field's text.
            ///
            /// # Errors
            /// `invalid_request` with the field and what it takes.
            pub fn check(field: &str, text: &str) -> Result<(), Problem> {
                match Self::is(text) {
                    true => Ok(()),
                    false => Err(Problem::invalid(field, concat!("must be ", $is))),
                }
            }

            /// Looks at the field's text, where there is one.
            ///
            /// # Errors
            /// As [`Self::check`].
            pub fn check_some(field: &str, text: Option<&str>) -> Result<(), Problem> {
                text.map_or(Ok(()), |text| Self::check(field, text))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .min_length(Some($least))
                    .max_length(Some($most))
                    .pattern(Some($pattern))
                    .description(Some(concat!("Must be ", $is, ".")))
                    .examples([$example])
                    .into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }

        #[cfg(test)]
        impl Example for $name {
            fn assert_example_is_in_bounds() {
                assert!($name::is($example), "{} {:?}", stringify!($name), $example);
            }
        }
    )*

        /// The bounds of text, by name: parameters refer to them.
        pub(crate) fn collect_texts(schemas: &mut Schemas) {
            $(schemas.push((stringify!($name).into(), $name::schema()));)*
        }

        #[cfg(test)]
        fn assert_examples_are_in_bounds() {
            $($name::assert_example_is_in_bounds();)*
        }
    };
}

#[cfg(test)]
trait Example {
    fn assert_example_is_in_bounds();
}

text! {
    /// A sandbox's name, or a process's.
    Name, 1..=40, "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "1 to 40 of letters, digits, `_`, `.` and `-`, beginning with a letter, a digit or `_`", "build-1";
    /// The id or the name of a sandbox, in a path.
    SandboxId, 1..=40, "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "the id or the name of a sandbox", "sb-mzxw6ytboi4dqmrq";
    /// A process's name in its sandbox.
    ProcessId, 1..=64, "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "1 to 64 of letters, digits, `_`, `.` and `-`, beginning with a letter, a digit or `_`", "p-7";
    /// The id of a token, key, webhook or delivery.
    Id, 1..=64, "^[A-Za-z0-9_-]+$", "an id", "tok-mzxw6ytboi4dqmrq";
    /// The id or the name of a snapshot, in a path.
    SnapshotId, 1..=40, "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "the id or the name of a snapshot", "sn-mzxw6ytboi4dqmrq";
    /// A volume's name.
    VolumeName, 1..=63, "^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$",
        "1 to 63 of small letters, digits, `.`, `_` and `-`, beginning and ending with a letter or a digit", "data";
    /// A workspace's name.
    Workspace, 1..=63, "^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$",
        "1 to 63 of small letters, digits, `.`, `_` and `-`, beginning and ending with a letter or a digit", "default";
    /// The name of a service that takes a credential.
    ServiceName, 1..=63, "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        "1 to 63 of small letters, digits and `-`, beginning and ending with a letter or a digit", "github";
    /// What a user says of a service, by name.
    ParameterName, 1..=32, "^[a-z_]+$", "1 to 32 of small letters and `_`", "resource";
    /// What it is; several with commas between them.
    ParameterValue, 1..=4096, "^[^\\x00-\\x1f\\x7f]+$",
        "1 to 4096 characters without control characters", "acme";
    /// Who a token or key stands for.
    Subject, 1..=128, "^[!-~]+$", "1 to 128 visible ASCII characters", "alice@example.org";
    /// A label's key.
    LabelKey, 1..=63, "^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
        "1 to 63 of letters, digits, `.`, `_`, `/` and `-`, beginning and ending with a letter or a digit", "team";
    /// A label's value.
    LabelValue, 0..=255, "^[^\\x00-\\x1f\\x7f]*$",
        "at most 255 characters without control characters", "red";
    /// What a person wrote to remember something by.
    Title, 1..=100, "^[^\\x00-\\x1f\\x7f]+$",
        "1 to 100 characters without control characters", "continuous integration";
    /// A rule about the network.
    RuleLine, 1..=1024, "^[^\\x00-\\x1f\\x7f]+$",
        "a rule of 1 to 1024 characters, none of which are control characters", "READ api.github.com/repos/acme/**";
    /// An address on the web.
    Url, 1..=4096, "^https?://[^\\x00-\\x20\\x7f]+$",
        "an address that begins with http:// or https://, at most 4096 characters", "https://api.github.com/user";
    /// A method of HTTP.
    Method, 1..=16, "^[A-Z]+$", "a method in capitals", "GET";
    /// The name of a profile.
    ProfileName, 1..=64, "^[a-z0-9][a-z0-9._-]*$",
        "1 to 64 of [a-z0-9._-], the first a letter or a digit", "claude-code";
    /// A service whose credential is used, all of it or to read only.
    CredentialUse, 1..=80, "^[a-z0-9][a-z0-9._-]*(=(full|read-only))?$",
        "the name of a service, with `=read-only` where it is not to be used in full", "github=read-only";
    /// An image: a name of the store, or a path of the host.
    ImageName, 1..=1024, "^[^\\x00-\\x1f\\x7f]+$",
        "the name of an image or a path, at most 1024 characters", "base";
    /// An engine's name.
    EngineName, 1..=32, "^[a-z][a-z0-9-]*$", "the name of an engine", "kvm";
    /// An absolute path of the host.
    HostPath, 1..=4096, "^/[^\\x00]*$",
        "an absolute path of the host without NUL, at most 4096 characters", "/home/alice/project";
    /// An absolute path of the guest.
    GuestPath, 1..=4096, "^/[^\\x00]*$",
        "an absolute path without NUL, at most 4096 characters", "/workspace/main.rs";
    /// A path below a directory, or a glob of such.
    RelativePath, 1..=4096, "^[^/\\x00][^\\x00]*$",
        "a path that does not begin with a slash, without NUL, at most 4096 characters", "src/*.rs";
    /// An environment variable's name.
    EnvName, 1..=255, "^[A-Za-z_][A-Za-z0-9_]*$",
        "1 to 255 of letters, digits and `_`, not beginning with a digit", "LANG";
    /// A user of the guest, as `name`, `uid`, or either with `:group`.
    GuestUser, 1..=65, "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$",
        "a user's name or number, or either with `:group`", "root";
    /// Where written bytes go.
    WritePlace, 1..=16, "^(replace|append|[0-9]{1,15})$", "`replace`, `append`, or the first byte to write", "replace";
    /// Permission bits in octal.
    Mode, 3..=4, "^[0-7]{3,4}$", "three or four octal digits", "0644";
    /// An Idempotency-Key.
    IdempotencyKey, 1..=128, "^[!-~]+$", "1 to 128 visible ASCII characters", "5f1c9a52";
    /// An ETag of a sandbox, or `*` for any.
    EntityTag, 1..=22, "^(\"[0-9]{1,20}\"|\\*)$", "a version in quotes, or `*`", "\"7\"";
    /// Where a listing goes on; opaque.
    Cursor, 1..=18, "^[0-9]{1,18}$", "a cursor that this listing gave", "170000";
    /// An Ed25519 public key.
    PublicKey, 64..=64, "^[0-9a-f]{64}$", "32 bytes in 64 small hexadecimal digits",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    /// Where a webhook's events go. Whether they may go there is for the courier to say: a host
    /// that it refuses is a denial, not a mistake.
    WebhookUrl, 10..=2048, "^https?://[!-~]+$",
        "an http or https URL of at most 2048 characters", "https://example.org/hook";
    /// `key` or `key=value`.
    LabelFilter, 1..=319, "^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?(=[^\\x00-\\x1f\\x7f]{0,255})?$",
        "`key` or `key=value` of a label", "team=red";
    /// A name of the audit log's, such as an actor or an outcome.
    Plain, 1..=128, "^[!-~]+$", "1 to 128 visible ASCII characters", "token:tok-mzxw6ytboi4dqmrq";
}

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $least:literal..=$most:literal, $unit:literal;)*) => {
        /// The bounds of numbers, by name: parameters refer to them.
        pub(crate) fn collect_numbers(schemas: &mut Schemas) {
            $(schemas.push((stringify!($name).into(), $name::schema()));)*
        }
    $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl $name {
            /// Least and most.
            pub const RANGE: std::ops::RangeInclusive<$type> = $least..=$most;

            /// Looks at the field's number.
            ///
            /// # Errors
            /// `invalid_request` with the field and its range.
            pub fn check(field: &str, number: $type) -> Result<(), Problem> {
                match Self::RANGE.contains(&number) {
                    true => Ok(()),
                    false => Err(Problem::invalid(
                        field,
                        concat!("must be ", $least, " to ", $most, $unit),
                    )),
                }
            }

            /// Looks at the field's number, where there is one.
            ///
            /// # Errors
            /// As [`Self::check`].
            pub fn check_some(field: &str, number: Option<$type>) -> Result<(), Problem> {
                number.map_or(Ok(()), |number| Self::check(field, number))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                #[allow(clippy::cast_possible_truncation)]
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some($least as isize))
                    .maximum(Some($most as isize))
                    .description(Some(concat!("Must be ", $least, " to ", $most, $unit, ".")))
                    .into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )*
    };
}

number! {
    /// Virtual CPUs.
    Cpus: u32, 1..=256, " CPUs";
    /// Guest memory.
    MemoryMb: u32, 128..=1048576, " MiB";
    /// Scratch disk.
    DiskGb: u32, 1..=16384, " GiB";
    /// What may be added to a live directory.
    QuotaMb: u32, 1..=16777216, " MiB";
    /// Forks that are made at once.
    Forks: u32, 1..=64, " forks";
    /// What a volume holds.
    VolumeBytes: u64, 67108864..=17592186044416, " bytes";
    /// A time to live, an idle time or a task's time; a year at most.
    Seconds: u64, 1..=31536000, " seconds";
    /// Between TERM and KILL.
    GraceMs: u64, 0..=600000, " milliseconds";
    /// Lines or columns of a terminal.
    Cells: u16, 1..=1000, " character cells";
    /// A signal's number on Linux.
    SignalNumber: i32, 1..=64, ", a signal of Linux";
    /// Output that a buffered exec gives back, for each stream.
    OutputBytes: u64, 0..=16777216, " bytes";
    /// Items of a page.
    PageLimit: u32, 1..=1000, " items";
    /// Levels of a listing.
    Depth: u32, 1..=64, " levels";
    /// A count or a position that a program of any language can hold.
    Position: u64, 0..=9007199254740991, "";
    /// `memory.max` of a task.
    TaskMemory: u64, 1048576..=1099511627776, " bytes";
    /// `pids.max` of a task.
    TaskPids: u32, 1..=4194304, " processes";
    /// `cpu.max` of a task.
    TaskCpu: u32, 10..=256000, " thousandths of a CPU";
    /// Kept output of a detached task, for each stream.
    TaskLog: u64, 0..=1073741824, " bytes";
}

/// Most entries of an environment.
pub const MAX_ENV: usize = 256;
/// Most bytes of an environment's value.
pub const MAX_ENV_VALUE: usize = 65_536;
/// Most parameters of a service.
pub const MAX_PARAMETERS: usize = 16;
/// Most labels of a sandbox.
pub const MAX_LABELS: usize = 64;
/// Most mounts of a sandbox.
pub const MAX_MOUNTS: usize = 32;
/// Most words of a command.
pub const MAX_ARGV: usize = 4096;
/// Most bytes of one word of a command, or of a shell's line.
pub const MAX_ARGUMENT: usize = 131_071;

/// A map of what a user says of a service.
#[derive(Debug, Clone, Copy)]
pub enum Parameters {}

impl Parameters {
    /// Looks at every name and value.
    ///
    /// # Errors
    /// `invalid_request` with the parameter at fault.
    pub fn check(field: &str, parameters: &BTreeMap<String, String>) -> Result<(), Problem> {
        at_most(field, parameters.len(), MAX_PARAMETERS, "parameters")?;
        for (name, value) in parameters {
            ParameterName::check(field, name)?;
            ParameterValue::check(&format!("{field}.{name}"), value)?;
        }
        Ok(())
    }
}

impl PartialSchema for Parameters {
    fn schema() -> RefOr<Schema> {
        let value = Ref::from_schema_name("ParameterValue").into();
        map(ParameterName::schema(), value, MAX_PARAMETERS)
            .description(Some("At most 16."))
            .examples([json!({"resource": "acme"})])
            .into()
    }
}

impl ToSchema for Parameters {
    fn name() -> Cow<'static, str> {
        "Parameters".into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.push(("ParameterValue".into(), ParameterValue::schema()));
    }
}

/// A map of labels.
#[derive(Debug, Clone, Copy)]
pub enum Labels {}

impl Labels {
    /// Looks at every key and value.
    ///
    /// # Errors
    /// `invalid_request` with the label at fault.
    pub fn check(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Problem> {
        at_most(field, labels.len(), MAX_LABELS, "labels")?;
        for (key, value) in labels {
            LabelKey::check(field, key)?;
            LabelValue::check(&format!("{field}.{key}"), value)?;
        }
        Ok(())
    }
}

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        map(LabelKey::schema(), Ref::from_schema_name("LabelValue").into(), MAX_LABELS)
            .description(Some("At most 64 labels."))
            .examples([json!({"team": "red"})])
            .into()
    }
}

impl ToSchema for Labels {
    fn name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.push(("LabelValue".into(), LabelValue::schema()));
    }
}

/// An environment: names and secret values.
#[derive(Debug, Clone, Copy)]
pub enum Env {}

impl Env {
    /// Looks at every name and value. No value is ever in the problem.
    ///
    /// # Errors
    /// `invalid_request` with the variable at fault.
    pub fn check(field: &str, env: &BTreeMap<String, Secret>) -> Result<(), Problem> {
        at_most(field, env.len(), MAX_ENV, "variables")?;
        for (name, value) in env {
            EnvName::check(field, name)?;
            if value.expose().len() > MAX_ENV_VALUE {
                return Err(too_long(&format!("{field}.{name}"), MAX_ENV_VALUE));
            }
        }
        Ok(())
    }
}

impl PartialSchema for Env {
    fn schema() -> RefOr<Schema> {
        map(EnvName::schema(), bytes(MAX_ENV_VALUE).into(), MAX_ENV)
            .description(Some(
                "Environment variables. The values are secret: they are never shown.",
            ))
            .examples([json!({"LANG": "C.UTF-8"})])
            .into()
    }
}

impl ToSchema for Env {
    fn name() -> Cow<'static, str> {
        "Env".into()
    }
}

/// What to run: a program and its arguments, or a line for `/bin/sh -c`.
#[derive(Debug, Clone, Copy)]
pub enum AnyCommand {}

impl AnyCommand {
    /// Looks at every word.
    ///
    /// # Errors
    /// `invalid_request` with the word at fault.
    pub fn check(field: &str, command: &Command) -> Result<(), Problem> {
        match command {
            Command::Argv(words) => {
                at_most(field, words.len(), MAX_ARGV, "words")?;
                if words.is_empty() {
                    return Err(Problem::invalid(field, "must begin with a program's name"));
                }
                words.iter().enumerate().try_for_each(|(index, word)| {
                    match word.as_bytes().len() <= MAX_ARGUMENT {
                        true => Ok(()),
                        false => Err(too_long(&format!("{field}[{index}]"), MAX_ARGUMENT)),
                    }
                })
            }
            Command::Shell(line) => match line.as_bytes().len() {
                0 => Err(Problem::invalid(field, "must not be empty")),
                length if length <= MAX_ARGUMENT => Ok(()),
                _ => Err(too_long(field, MAX_ARGUMENT)),
            },
        }
    }
}

impl PartialSchema for AnyCommand {
    fn schema() -> RefOr<Schema> {
        let argv = ArrayBuilder::new()
            .items(RefOr::T(bytes(MAX_ARGUMENT)))
            .min_items(Some(1))
            .max_items(Some(MAX_ARGV))
            .description(Some("A program found by PATH, and its arguments."));
        OneOfBuilder::new()
            .item(argv)
            .item(text_of(1, MAX_ARGUMENT).description(Some("A line for `/bin/sh -c`.")))
            .description(Some("What to run."))
            .examples([json!(["python3", "-c", "print(1)"])])
            .into()
    }
}

impl ToSchema for AnyCommand {
    fn name() -> Cow<'static, str> {
        "Command".into()
    }
}

/// A byte string: JSON text where it is UTF-8, else `{"base64": "…"}`.
#[derive(Debug, Clone, Copy)]
pub enum Bytes {}

impl PartialSchema for Bytes {
    fn schema() -> RefOr<Schema> {
        bytes(usize::MAX).into()
    }
}

impl ToSchema for Bytes {
    fn name() -> Cow<'static, str> {
        "Bytes".into()
    }
}

/// An absolute path of the guest in a body, whose bytes need not be UTF-8.
#[derive(Debug, Clone, Copy)]
pub enum GuestPathBytes {}

impl GuestPathBytes {
    /// Looks at the path.
    ///
    /// # Errors
    /// `invalid_request` with the field and what it takes.
    pub fn check(field: &str, path: &Text) -> Result<(), Problem> {
        let bytes = path.as_bytes();
        match bytes.starts_with(b"/") && bytes.len() <= *GuestPath::LENGTH.end() {
            true => Ok(()),
            false => Err(Problem::invalid(
                field,
                "must be an absolute path without NUL, at most 4096 bytes",
            )),
        }
    }
}

impl PartialSchema for GuestPathBytes {
    fn schema() -> RefOr<Schema> {
        let encoded = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(Base64::new().path()))
            .max_length(Some(base64_length(*GuestPath::LENGTH.end())));
        OneOfBuilder::new()
            .item(GuestPath::schema())
            .item(in_base64(encoded))
            .description(Some("An absolute path of the guest."))
            .into()
    }
}

impl ToSchema for GuestPathBytes {
    fn name() -> Cow<'static, str> {
        "GuestPathBytes".into()
    }
}

/// Looks at how many there are.
///
/// # Errors
/// `invalid_request` with the field and the bound.
pub fn at_most(field: &str, count: usize, most: usize, what: &str) -> Result<(), Problem> {
    match count <= most {
        true => Ok(()),
        false => Err(Problem::invalid(field, format!("must have at most {most} {what}"))),
    }
}

/// An object that has this property and no other.
pub(crate) fn only(property: &str, schema: Cow<'static, str>) -> ObjectBuilder {
    ObjectBuilder::new()
        .property(property, Ref::from_schema_name(schema))
        .required(property)
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
}

fn too_long(field: &str, most: usize) -> Problem {
    Problem::invalid(field, format!("must have at most {most} bytes"))
}

fn map(keys: RefOr<Schema>, values: RefOr<Schema>, most: usize) -> ObjectBuilder {
    let keys = match keys {
        RefOr::T(schema) => schema,
        RefOr::Ref(_) => unreachable!("bounds of keys are inline"),
    };
    ObjectBuilder::new()
        .property_names(Some(keys))
        .additional_properties(Some(AdditionalProperties::RefOr(values)))
        .max_properties(Some(most))
}

fn text_of(least: usize, most: usize) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length((least > 0).then_some(least))
        .max_length((most < usize::MAX).then_some(most))
        .pattern(Some("^[^\\x00]*$"))
}

fn in_base64(encoded: ObjectBuilder) -> ObjectBuilder {
    ObjectBuilder::new()
        .property("base64", encoded)
        .required("base64")
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
        .description(Some("Bytes that are not UTF-8, in standard base64; none of them NUL."))
}

fn bytes(most: usize) -> Schema {
    let mut encoded =
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(Base64::new().bytes()));
    if most < usize::MAX {
        encoded = encoded.max_length(Some(base64_length(most)));
    }
    OneOfBuilder::new().item(text_of(0, most)).item(in_base64(encoded)).into()
}

fn base64_length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// What standard base64 of bytes without NUL looks like. A group of four digits holds three
/// bytes; which digits may follow which is what keeps each of them from being zero.
struct Base64 {
    group: String,
    two_bytes: String,
    one_byte: String,
    /// The last two digits of a group, after a digit whose low four bits are not zero.
    end: String,
    /// The same after one whose low four bits are zero.
    end_after_zero: String,
}

/// Any digit.
const ANY: &str = "[A-Za-z0-9+/]";
/// Any digit but that of zero.
const NOT_ZERO: &str = "[B-Za-z0-9+/]";
/// Digits whose low two bits are zero.
const LOW_ZERO: &str = "[AEIMQUYcgkosw048]";
/// The same without those whose high four bits are zero.
const LOW_ZERO_ONLY: &str = "[EIMQUYcgkosw048]";

impl Base64 {
    fn new() -> Self {
        let low = "F-HJ-LN-PR-TV-XZabd-fh-jl-np-rt-vx-z1-35-79+/";
        let end = format!("({LOW_ZERO}{NOT_ZERO}|[B-D{low}]{ANY})");
        let end_after_zero = format!("({LOW_ZERO_ONLY}{NOT_ZERO}|[{low}]{ANY})");
        // A second digit of A to P adds nothing to the first byte; A, Q, g and w nothing to the
        // second.
        let digits = |after_zero: &str, after: &str| {
            format!(
                "({NOT_ZERO}A{after_zero}|{NOT_ZERO}[B-P]{after}|{ANY}[Qgw]{after_zero}\
                 |{ANY}[R-Za-fh-vx-z0-9+/]{after})"
            )
        };
        Self {
            group: digits(&end_after_zero, &end),
            two_bytes: digits(LOW_ZERO_ONLY, LOW_ZERO) + "=",
            one_byte: format!("({NOT_ZERO}A|{ANY}[Qgw])=="),
            end,
            end_after_zero,
        }
    }

    /// Any bytes but NUL.
    fn bytes(&self) -> String {
        format!("^{}$", self.rest())
    }

    /// The same, of which the first is `/`.
    fn path(&self) -> String {
        let Self { end, end_after_zero, .. } = self;
        let second = "[x-z0-9+/]";
        format!(
            "^(Lw==|L(w{LOW_ZERO_ONLY}|{second}{LOW_ZERO})=|L(w{end_after_zero}|{second}{end}){})$",
            self.rest()
        )
    }

    fn rest(&self) -> String {
        let Self { group, two_bytes, one_byte, .. } = self;
        format!("{group}*({two_bytes}|{one_byte})?")
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_example_is_within_its_bound() {
        assert_examples_are_in_bounds();
    }

    #[test]
    fn a_name_is_plain() {
        for name in ["a", "my-box_1.2", "_x", "0"] {
            assert!(Name::is(name), "{name}");
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "é", "a\n", "a\0", &"x".repeat(41)] {
            assert!(!Name::is(name), "{name:?}");
        }
    }

    #[test]
    fn a_guest_path_is_absolute_and_has_no_nul() {
        assert!(GuestPath::is("/"));
        assert!(GuestPath::is("/a/../b\n"));
        for path in ["", "a", "./a", "/a\0b"] {
            assert!(!GuestPath::is(path), "{path:?}");
        }
    }

    #[test]
    fn the_problem_names_the_field_and_the_bound() {
        let problem = MemoryMb::check("memory_mb", 1).unwrap_err();
        assert_eq!(problem.to_string(), "memory_mb: must be 128 to 1048576 MiB");
    }

    #[test]
    fn a_secret_value_is_not_in_the_problem() {
        let value = Secret::new(vec![b'x'; MAX_ENV_VALUE + 1]).unwrap();
        let problem = Env::check("env", &[("KEY".to_owned(), value)].into()).unwrap_err();
        assert_eq!(problem.to_string(), "env.KEY: must have at most 65536 bytes");
    }

    #[test]
    fn a_command_has_a_program() {
        assert!(AnyCommand::check("command", &Command::Argv(vec![])).is_err());
        assert!(AnyCommand::check("command", &Command::Shell("".into())).is_err());
        assert!(AnyCommand::check("command", &Command::Argv(vec!["true".into()])).is_ok());
    }

    proptest! {
        #[test]
        fn base64_matches_the_published_pattern_where_no_byte_is_nul(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..12),
        ) {
            let pattern = Regex::new(&Base64::new().bytes()).unwrap();
            prop_assert_eq!(pattern.is_match(&BASE64.encode(&bytes)), !bytes.contains(&0));
        }

        #[test]
        fn what_matches_the_published_pattern_is_base64(
            text in "[ABCDEQRgwx048+/]{0,9}={0,2}",
        ) {
            let bytes = BASE64.decode(&text).ok().filter(|bytes| !bytes.contains(&0));
            let pattern = Regex::new(&Base64::new().bytes()).unwrap();
            prop_assert_eq!(pattern.is_match(&text), bytes.is_some());
            let pattern = Regex::new(&Base64::new().path()).unwrap();
            let is_path = bytes.is_some_and(|bytes| bytes.starts_with(b"/"));
            prop_assert_eq!(pattern.is_match(&text), is_path);
        }

        #[test]
        fn base64_of_a_path_matches_the_published_pattern(
            bytes in prop::collection::vec(1_u8.., 0..12),
        ) {
            let path = [b"/".as_slice(), &bytes].concat();
            let pattern = Regex::new(&Base64::new().path()).unwrap();
            prop_assert!(pattern.is_match(&BASE64.encode(path)));
        }

        #[test]
        fn lengths_are_counted_in_characters(text in "[é-ü]{1,300}") {
            prop_assert_eq!(LabelValue::is(&text), text.chars().count() <= 255);
        }
    }
}
