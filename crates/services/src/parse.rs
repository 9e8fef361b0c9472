//! TOML into a definition. Every key is known, and every mistake has a place.

use std::collections::BTreeMap;
use std::ops::Range;

use canonical::Leniency;
use mistake::{Lines, nearest};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::definition::{
    At, Aws, Definition, Failure, GitDefinition, MAX_ENTRIES, MAX_STRING, Pair, Parameter,
    ParameterKind, pattern,
};
use crate::error::{Error, Fault};
use crate::{Charset, Shape, Slot};

/// Longest file, in bytes.
const MAX_TEXT: usize = 64 << 10;

const KEYS: &[&str] = &[
    "name",
    "env",
    "extra_env",
    "base_url_env",
    "placeholder",
    "inject_hosts",
    "plain_hosts",
    "slots",
    "aws",
    "paths",
    "git",
    "docker",
    "foreign_credentials",
    "read_only",
    "full",
    "deny",
    "parameters",
];

type Table<'a> = DeTable<'a>;
type Node<'a> = Spanned<DeValue<'a>>;

/// A definition and what places it in its file.
pub(crate) struct File<'a> {
    source: &'a str,
    text: &'a str,
}

impl<'a> File<'a> {
    pub(crate) fn new(source: &'a str, text: &'a str) -> Self {
        Self { source, text }
    }

    /// The service of the file.
    pub(crate) fn definition(&self) -> Result<Definition, Error> {
        if self.text.len() > MAX_TEXT {
            return Err(self.error((0..0, Fault::TooLong { limit: MAX_TEXT })));
        }
        let document = mistake::toml(self.text)
            .map_err(|(at, message)| self.error((at..at, Fault::Syntax(message))))?;
        definition(&document).map_err(|failure| self.error(failure))
    }

    /// With the place in words.
    pub(crate) fn error(&self, (span, fault): Failure) -> Error {
        let (line, column) = Lines::of(self.text).place(span.start);
        Error { file: self.source.to_owned(), line, column, fault }
    }
}

fn definition(document: &Table<'_>) -> Result<Definition, Failure> {
    known(document, KEYS)?;
    let keys: BTreeMap<&'static str, Range<usize>> =
        KEYS.iter().filter_map(|key| document.get(*key).map(|node| (*key, node.span()))).collect();
    let missing = |key, wanted| (0..0, Fault::Missing { key, wanted });
    let name = document.get("name").ok_or_else(|| missing("name", "a name such as \"github\""))?;
    let slots = document.get("slots").ok_or_else(|| {
        missing("slots", "where the credential stands, such as [{ header = \"x-api-key\" }]")
    })?;
    let placeholder = document.get("placeholder").ok_or_else(|| {
        missing(
            "placeholder",
            "what it looks like, such as { prefix = \"sk-\", charset = \"hex\" }",
        )
    })?;
    let hosts = document
        .get("inject_hosts")
        .ok_or_else(|| missing("inject_hosts", "whom it is for, such as [\"api.example.com\"]"))?;
    Ok(Definition {
        name: string("name", name)?,
        parameters: document.get("parameters").map(parameters).transpose()?.unwrap_or_default(),
        env: optional(document, "env", strings)?,
        extra_env: optional(document, "extra_env", pairs)?,
        base_url_env: optional(document, "base_url_env", pairs)?,
        placeholder: shape(placeholder)?,
        inject_hosts: strings("inject_hosts", hosts)?,
        plain_hosts: optional(document, "plain_hosts", strings)?,
        slots: items("slots", slots)?.iter().map(slot).collect::<Result<_, _>>()?,
        aws: document.get("aws").map(aws).transpose()?,
        leniency: optional(document, "paths", |_, node| leniency(node))?,
        git: document.get("git").map(git).transpose()?,
        docker: optional(document, "docker", strings)?,
        foreign_credentials: optional(document, "foreign_credentials", |key, node| {
            let one = string(key, node)?;
            match one.value.as_str() {
                "deny" => Ok(false),
                "allow" => Ok(true),
                other => {
                    Err(value(node, key, format!("{other:?} is neither \"deny\" nor \"allow\"")))
                }
            }
        })?,
        read_only: optional(document, "read_only", strings)?,
        full: optional(document, "full", strings)?,
        deny: optional(document, "deny", strings)?,
        keys,
    })
}

fn parameters(node: &Node<'_>) -> Result<Vec<Parameter>, Failure> {
    let mut parameters = Vec::new();
    for (name, node) in table("parameters", node)? {
        let text = name.get_ref();
        let is_name = (1..=32).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && !["placeholder", "basic"].contains(&text.as_ref());
        if !is_name {
            let problem = format!(
                "{text:?} is not of lower-case letters and `_`, or stands for something else"
            );
            let fault = Fault::Value { key: "parameters".to_owned(), problem };
            return Err((name.span(), fault));
        }
        let fields = table(text, node)?;
        known(fields, &["about", "kind", "below", "except", "many", "default"])?;
        let about = fields.get("about").ok_or_else(|| {
            (name.span(), Fault::Missing { key: "about", wanted: "what it is, in a few words" })
        })?;
        let below = optional(fields, "below", strings)?;
        let except = optional(fields, "except", strings)?;
        let kind = match fields.get("kind") {
            None => "word".to_owned(),
            Some(node) => string("kind", node)?.value,
        };
        let kind = match kind.as_str() {
            "label" => ParameterKind::Label,
            "host" => ParameterKind::Host {
                below: below.iter().map(|one| one.value.clone()).collect(),
                except: except
                    .iter()
                    .map(|one| pattern("except", one))
                    .collect::<Result<_, _>>()?,
            },
            "word" => ParameterKind::Word,
            other => {
                let problem = format!("{other:?} is none of \"label\", \"host\" and \"word\"");
                return Err(value(fields.get("kind").unwrap_or(node), "kind", problem));
            }
        };
        if let (Some(first), false) =
            (below.first().or_else(|| except.first()), matches!(kind, ParameterKind::Host { .. }))
        {
            let fault = Fault::Value {
                key: "below".to_owned(),
                problem: "only a host is below another, or not one of others".to_owned(),
            };
            return Err((first.span.clone(), fault));
        }
        for one in &below {
            crate::definition::host("below", &one.value)
                .map_err(|fault| (one.span.clone(), fault))?;
        }
        let many = optional(fields, "many", |key, node| {
            node.get_ref().as_bool().ok_or_else(|| mistyped(node, key, "true or false"))
        })?;
        let mut parameter = Parameter {
            name: text.to_string(),
            about: string("about", about)?.value,
            kind,
            many,
            default: None,
        };
        if let Some(node) = fields.get("default") {
            let default = match many {
                true => strings("default", node)?,
                false => vec![string("default", node)?],
            };
            for one in &default {
                parameter.check(&one.value).map_err(|fault| (one.span.clone(), fault))?;
            }
            parameter.default = Some(default.into_iter().map(|one| one.value).collect());
        }
        parameters.push(parameter);
    }
    Ok(parameters)
}

fn shape(node: &Node<'_>) -> Result<Shape, Failure> {
    let fields = table("placeholder", node)?;
    known(fields, &["prefix", "charset", "length"])?;
    let charset = match fields.get("charset") {
        None => Charset::Alphanumeric,
        Some(node) => match string("charset", node)?.value.as_str() {
            "hex" => Charset::Hex,
            "alphanumeric" => Charset::Alphanumeric,
            "base64url" => Charset::Base64Url,
            "base32" => Charset::Base32,
            other => {
                let problem = format!(
                    "{other:?} is none of \"alphanumeric\", \"base32\", \"base64url\" and \"hex\""
                );
                return Err(value(node, "charset", problem));
            }
        },
    };
    let length = match fields.get("length") {
        None => None,
        Some(node) => {
            let wanted = "a whole number, such as 40, or leave it out for the length of the secret";
            let number =
                node.get_ref().as_integer().ok_or_else(|| mistyped(node, "length", wanted))?;
            let number = usize::from_str_radix(number.as_str(), number.radix());
            Some(number.map_err(|_| value(node, "length", format!("it is not {wanted}")))?)
        }
    };
    let prefix = optional(fields, "prefix", |key, node| string(key, node).map(|one| one.value))?;
    Ok(Shape { prefix, charset, length })
}

fn slot(node: &Node<'_>) -> Result<At<Slot>, Failure> {
    let fields = table("slots", node)?;
    let text =
        |key: &str| fields.get(key).map(|node| string(key, node).map(|one| one.value)).transpose();
    let kinds = ["header", "basic", "basic_user", "query", "websocket_protocol"];
    let kind = match ["query", "header", "basic", "basic_user", "websocket_protocol"]
        .into_iter()
        .find(|key| fields.contains_key(*key))
    {
        Some(kind) => kind,
        None => {
            known(fields, &kinds)?;
            return Err(value(node, "slots", format!("an entry has one of: {}", kinds.join(", "))));
        }
    };
    let slot = match kind {
        "header" => {
            known(fields, &["header", "scheme"])?;
            Slot::Header { name: text("header")?.unwrap_or_default(), scheme: text("scheme")? }
        }
        "basic" => {
            known(fields, &["basic"])?;
            Slot::Basic { username: text("basic")?.filter(|user| user != "*") }
        }
        "basic_user" => {
            known(fields, &["basic_user"])?;
            let is_true =
                fields.get("basic_user").is_some_and(|it| it.get_ref().as_bool() == Some(true));
            if !is_true {
                return Err(mistyped(node, "basic_user", "basic_user = true, or leave it out"));
            }
            Slot::BasicUser
        }
        "query" => {
            known(fields, &["query", "header"])?;
            Slot::Query { key: text("query")?.unwrap_or_default(), header: text("header")? }
        }
        _ => {
            known(fields, &["websocket_protocol"])?;
            Slot::WebSocketProtocol { prefix: text("websocket_protocol")?.unwrap_or_default() }
        }
    };
    Ok(At { value: slot, span: node.span() })
}

fn aws(node: &Node<'_>) -> Result<Aws, Failure> {
    let fields = table("aws", node)?;
    known(fields, &["services", "regions"])?;
    Ok(Aws {
        services: optional(fields, "services", strings)?,
        regions: optional(fields, "regions", strings)?,
    })
}

fn leniency(node: &Node<'_>) -> Result<Leniency, Failure> {
    let mut leniency = Leniency::default();
    for one in strings("paths", node)? {
        match one.value.as_str() {
            "encoded_separators" => leniency.encoded_separators = true,
            "parameters" => leniency.parameters = true,
            "empty_segments" => leniency.empty_segments = true,
            other => {
                let hint = nearest(other, ["encoded_separators", "parameters", "empty_segments"]);
                let fault = Fault::UnknownKey { key: other.to_owned(), hint };
                return Err((one.span, fault));
            }
        }
    }
    Ok(leniency)
}

fn git(node: &Node<'_>) -> Result<GitDefinition, Failure> {
    let fields = table("git", node)?;
    known(fields, &["hosts", "username", "instead_of"])?;
    let missing = |key, wanted| (node.span(), Fault::Missing { key, wanted });
    let hosts = fields
        .get("hosts")
        .ok_or_else(|| missing("hosts", "who serves repositories, such as [\"github.com\"]"))?;
    let username = fields
        .get("username")
        .ok_or_else(|| missing("username", "who logs in, such as \"x-access-token\""))?;
    Ok(GitDefinition {
        hosts: strings("hosts", hosts)?,
        username: string("username", username)?,
        instead_of: optional(fields, "instead_of", strings)?,
    })
}

fn optional<T: Default>(
    fields: &Table<'_>,
    key: &str,
    read: impl Fn(&str, &Node<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    fields.get(key).map_or_else(|| Ok(T::default()), |node| read(key, node))
}

fn known(fields: &Table<'_>, known: &[&str]) -> Result<(), Failure> {
    match fields.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
        None => Ok(()),
        Some(key) => {
            let hint = nearest(key.get_ref(), known);
            Err((key.span(), Fault::UnknownKey { key: key.get_ref().to_string(), hint }))
        }
    }
}

fn table<'a, 'b>(key: &str, node: &'a Node<'b>) -> Result<&'a Table<'b>, Failure> {
    let wanted = "a section, or its keys in braces";
    node.get_ref().as_table().ok_or_else(|| mistyped(node, key, wanted))
}

fn items<'a, 'b>(key: &str, node: &'a Node<'b>) -> Result<&'a [Node<'b>], Failure> {
    let wanted = "a list, in brackets";
    let list = node.get_ref().as_array().ok_or_else(|| mistyped(node, key, wanted))?;
    match list.len() > MAX_ENTRIES {
        true => Err((node.span(), Fault::TooMany { key: key.to_owned(), limit: MAX_ENTRIES })),
        false => Ok(list),
    }
}

fn strings(key: &str, node: &Node<'_>) -> Result<Vec<At<String>>, Failure> {
    items(key, node)?.iter().map(|node| string(key, node)).collect()
}

/// Names and texts.
fn pairs(key: &str, node: &Node<'_>) -> Result<Vec<Pair>, Failure> {
    let fields = table(key, node)?;
    if fields.len() > MAX_ENTRIES {
        return Err((node.span(), Fault::TooMany { key: key.to_owned(), limit: MAX_ENTRIES }));
    }
    let pair = |(name, node): (&Spanned<_>, &Node<'_>)| {
        let name: &std::borrow::Cow<'_, str> = name.get_ref();
        let at = At { value: name.to_string(), span: node.span() };
        Ok((at, string(name, node)?))
    };
    fields.iter().map(pair).collect()
}

fn string(key: &str, node: &Node<'_>) -> Result<At<String>, Failure> {
    let text = node.get_ref().as_str().ok_or_else(|| mistyped(node, key, "a text, in quotes"))?;
    if text.len() > MAX_STRING || text.chars().any(char::is_control) {
        let problem = format!("it is one line of {MAX_STRING} bytes at most");
        return Err(value(node, key, problem));
    }
    Ok(At { value: text.to_owned(), span: node.span() })
}

fn value(node: &Node<'_>, key: &str, problem: String) -> Failure {
    (node.span(), Fault::Value { key: key.to_owned(), problem })
}

fn mistyped(node: &Node<'_>, key: &str, wanted: &'static str) -> Failure {
    let found = mistake::kind(node.get_ref());
    (node.span(), Fault::Type { key: key.to_owned(), found, wanted })
}
