//! TOML into layers. Every key is known, and every mistake has a place.

use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

use mistake::{Lines, nearest};
use services::Service;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Fault};
use crate::layer::{Layer, Rule, Wanted, Written, host_rule};
use crate::origin::Origin;

type Table<'a> = DeTable<'a>;
type Node<'a> = Spanned<DeValue<'a>>;

const KEYS: [&str; 3] = ["allow", "deny", "services"];
const OF_SERVICE: [&str; 3] = ["access", "allow", "deny"];

impl Layer {
    /// Reads a file of rules: `allow` and `deny`, lists of lines, and a section `services.NAME` with
    /// `access`, `allow` and `deny` for each service of `services` that it speaks of.
    ///
    /// # Errors
    /// The first mistake, with its line and column.
    pub fn from_toml<S: Borrow<Service>>(
        source: &str,
        text: &str,
        services: &[S],
    ) -> Result<Self, Error> {
        let services: Vec<&Service> = services.iter().map(Borrow::borrow).collect();
        let reader = Reader { source: source.into(), text, lines: Lines::of(text) };
        if text.len() > Self::MAX_TEXT {
            return Err(reader.error(0..0, Fault::TooLong { limit: Self::MAX_TEXT }));
        }
        let document = mistake::toml(text)
            .map_err(|(at, message)| reader.error(at..at, Fault::Syntax(message)))?;
        reader.layer(&document, &services)?.bounded(source)
    }
}

struct Reader<'a> {
    source: Arc<str>,
    text: &'a str,
    lines: Lines<'a>,
}

impl Reader<'_> {
    fn error(&self, span: Range<usize>, fault: Fault) -> Error {
        let (line, column) = self.lines.place(span.start);
        Error { source: Arc::clone(&self.source), line, column, text: None, fault }
    }

    fn mistyped(&self, node: &Node<'_>, key: &str, wanted: &'static str) -> Error {
        let found = mistake::kind(node.get_ref());
        self.error(node.span(), Fault::Type { key: key.to_owned(), found, wanted })
    }

    fn unknown<'k>(
        &self,
        span: Range<usize>,
        what: &'static str,
        key: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Error {
        let hint = nearest(key, known);
        self.error(span, Fault::UnknownKey { what, key: key.to_owned(), hint })
    }

    fn layer(&self, document: &Table<'_>, services: &[&Service]) -> Result<Layer, Error> {
        let mut layer = Layer::default();
        for (key, node) in document {
            match key.get_ref().as_ref() {
                "allow" => layer.allow = Some(self.rules(node, "allow", false)?),
                "deny" => layer.deny.extend(self.rules(node, "deny", true)?),
                "services" => self.services(node, services, &mut layer)?,
                other => return Err(self.unknown(key.span(), "key", other, KEYS)),
            }
        }
        Ok(layer)
    }

    fn services(
        &self,
        node: &Node<'_>,
        services: &[&Service],
        layer: &mut Layer,
    ) -> Result<(), Error> {
        const WANTED: &str = "a section for each service, such as [services.github]";
        let table = node.get_ref().as_table();
        for (name, node) in table.ok_or_else(|| self.mistyped(node, "services", WANTED))? {
            let text = name.get_ref().as_ref();
            let Some(service) = services.iter().find(|service| service.name == text) else {
                let known = services.iter().map(|service| service.name.as_str());
                return Err(self.unknown(name.span(), "service", text, known));
            };
            let table = node.get_ref().as_table();
            let table = table.ok_or_else(|| self.mistyped(node, text, WANTED))?;
            let mut wanted = Wanted::default();
            for (key, node) in table {
                match key.get_ref().as_ref() {
                    "access" => wanted.access = Some(self.access(node)?),
                    "allow" => wanted.allow = self.lines(node, "allow")?,
                    "deny" => wanted.deny = self.lines(node, "deny")?,
                    other => return Err(self.unknown(key.span(), "key", other, OF_SERVICE)),
                }
            }
            layer.add(service, &wanted)?;
        }
        Ok(())
    }

    fn access(&self, node: &Node<'_>) -> Result<(bool, Written), Error> {
        const WANTED: &str = "\"full\" or \"read-only\"";
        let text = node.get_ref().as_str();
        let text = text.ok_or_else(|| self.mistyped(node, "access", WANTED))?;
        let is_full = match text {
            "full" => true,
            "read-only" => false,
            other => {
                return Err(self.unknown(node.span(), "access", other, ["full", "read-only"]));
            }
        };
        Ok((is_full, self.written(node, &format!("access = {text:?}"))))
    }

    fn rules(&self, node: &Node<'_>, key: &str, is_deny: bool) -> Result<Vec<Rule>, Error> {
        self.lines(node, key)?.into_iter().map(|line| host_rule(line, is_deny)).collect()
    }

    fn lines(&self, node: &Node<'_>, key: &str) -> Result<Vec<Written>, Error> {
        const WANTED: &str = "a list of rules, such as [\"READ example.com/docs/**\"]";
        let list = node.get_ref().as_array();
        let list = list.ok_or_else(|| self.mistyped(node, key, WANTED))?;
        let line = |node: &Node<'_>| match node.get_ref().as_str() {
            Some(text) => Ok(self.written(node, text)),
            None => Err(self.mistyped(node, key, "a rule, such as \"READ example.com/docs/**\"")),
        };
        list.iter().map(line).collect()
    }

    fn written(&self, node: &Node<'_>, text: &str) -> Written {
        let span = node.span();
        let (line, column) = self.lines.place(span.start);
        let origin = Origin { source: Arc::clone(&self.source), line, text: text.into() };
        // Between its quotes, and without escapes.
        let inner = self.text.get(span.start.saturating_add(1)..span.end.saturating_sub(1));
        let is_plain = inner == Some(text);
        Written { origin, column: column.saturating_add(u32::from(is_plain)), is_plain }
    }
}
