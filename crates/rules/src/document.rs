//! Documents of GraphQL (specification of October 2021), as far as they say which operations there
//! are and what stands at their roots.
//!
//! What is below the roots is read word by word and only has to be balanced: no text within it can
//! be taken for something outside. What readers are known to end lines or words at in different
//! places is refused.

use std::collections::HashMap;

use crate::line::Operation;

/// Deepest nesting.
const MAX_DEPTH: usize = 200;

/// What a document defines.
#[derive(Debug, Default)]
pub(crate) struct Document<'a> {
    pub(crate) operations: Vec<(Operation, Root<'a>)>,
    pub(crate) fragments: HashMap<&'a str, Root<'a>>,
}

/// What stands at a root, that of inline fragments included.
#[derive(Debug, Default)]
pub(crate) struct Root<'a> {
    /// Names of fields, not their aliases.
    pub(crate) fields: Vec<&'a str>,
    /// Names of fragments.
    pub(crate) spreads: Vec<&'a str>,
}

/// It is none.
#[derive(Debug)]
struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    /// One of `!$&():=@[]{|}`.
    Sign(u8),
    /// `...`
    Spread,
    /// A number or a string.
    Value,
}

impl<'a> Document<'a> {
    /// Reads a document that has operations and fragments and nothing else.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        Self::read(text)
            .map_err(|Malformed| "it is not a document of GraphQL operations".to_owned())
    }

    fn read(text: &'a str) -> Result<Self, Malformed> {
        if text.chars().any(is_ambiguous) {
            return Err(Malformed);
        }
        let mut words = Words { rest: text.as_bytes(), text, next: None };
        let mut document = Self::default();
        while let Some(token) = words.next()? {
            match token {
                Token::Sign(b'{') => {
                    let root = words.root()?;
                    document.operations.push((Operation::Query, root));
                }
                Token::Name("fragment") => {
                    let name = words.name()?;
                    if name == "on" || words.name()? != "on" {
                        return Err(Malformed);
                    }
                    words.name()?;
                    words.directives()?;
                    words.sign(b'{')?;
                    let root = words.root()?;
                    if document.fragments.insert(name, root).is_some() {
                        return Err(Malformed);
                    }
                }
                Token::Name(word) => {
                    let kind = Operation::parse(word).ok_or(Malformed)?;
                    if let Some(Token::Name(_)) = words.peek()? {
                        words.next()?;
                    }
                    if words.peek()? == Some(Token::Sign(b'(')) {
                        words.next()?;
                        words.balanced(b')')?;
                    }
                    words.directives()?;
                    words.sign(b'{')?;
                    let root = words.root()?;
                    document.operations.push((kind, root));
                }
                _ => return Err(Malformed),
            }
        }
        match document.operations.is_empty() {
            true => Err(Malformed),
            false => Ok(document),
        }
    }
}

/// Line ends to some readers and not to others, and what none should meet.
fn is_ambiguous(char: char) -> bool {
    (char.is_control() && !matches!(char, '\t' | '\n' | '\r'))
        || matches!(char, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

struct Words<'a> {
    text: &'a str,
    rest: &'a [u8],
    /// What was looked at already.
    next: Option<Token<'a>>,
}

impl<'a> Words<'a> {
    fn peek(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        if self.next.is_none() {
            self.next = self.read()?;
        }
        Ok(self.next)
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        match self.next.take() {
            Some(token) => Ok(Some(token)),
            None => self.read(),
        }
    }

    fn name(&mut self) -> Result<&'a str, Malformed> {
        match self.next()? {
            Some(Token::Name(name)) => Ok(name),
            _ => Err(Malformed),
        }
    }

    fn sign(&mut self, sign: u8) -> Result<(), Malformed> {
        (self.next()? == Some(Token::Sign(sign))).then_some(()).ok_or(Malformed)
    }

    fn is_next(&mut self, sign: u8) -> Result<bool, Malformed> {
        Ok(self.peek()? == Some(Token::Sign(sign)))
    }

    /// `@name(…)`, any number.
    fn directives(&mut self) -> Result<(), Malformed> {
        while self.is_next(b'@')? {
            self.next()?;
            self.name()?;
            self.arguments()?;
        }
        Ok(())
    }

    fn arguments(&mut self) -> Result<(), Malformed> {
        if self.is_next(b'(')? {
            self.next()?;
            self.balanced(b')')?;
        }
        Ok(())
    }

    /// All up to where what was opened last is closed.
    fn balanced(&mut self, close: u8) -> Result<(), Malformed> {
        let mut open = vec![close];
        while let Some(expected) = open.last() {
            match self.next()?.ok_or(Malformed)? {
                Token::Sign(sign) if sign == *expected => {
                    open.pop();
                }
                Token::Sign(b'(') => open.push(b')'),
                Token::Sign(b'[') => open.push(b']'),
                Token::Sign(b'{') => open.push(b'}'),
                Token::Sign(b')' | b']' | b'}') => return Err(Malformed),
                _ => {}
            }
            if open.len() > MAX_DEPTH {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    /// What is selected at a root, after its `{`.
    fn root(&mut self) -> Result<Root<'a>, Malformed> {
        let mut root = Root::default();
        // Whether something is selected, for each inline fragment that is open.
        let mut open = vec![false];
        while let Some(is_filled) = open.last_mut() {
            match self.next()?.ok_or(Malformed)? {
                Token::Sign(b'}') if *is_filled => {
                    open.pop();
                    continue;
                }
                Token::Name(name) => {
                    *is_filled = true;
                    let name = match self.is_next(b':')? {
                        true => {
                            self.next()?;
                            self.name()?
                        }
                        false => name,
                    };
                    root.fields.push(name);
                    self.arguments()?;
                    self.directives()?;
                    if self.is_next(b'{')? {
                        self.next()?;
                        self.balanced(b'}')?;
                    }
                }
                Token::Spread => {
                    *is_filled = true;
                    let name = match self.peek()? {
                        Some(Token::Name(name)) => {
                            self.next()?;
                            Some(name)
                        }
                        _ => None,
                    };
                    if name == Some("on") {
                        self.name()?;
                    }
                    self.directives()?;
                    match name.filter(|name| *name != "on") {
                        Some(name) => root.spreads.push(name),
                        None => {
                            self.sign(b'{')?;
                            open.push(false);
                        }
                    }
                }
                _ => return Err(Malformed),
            }
            if open.len() > MAX_DEPTH {
                return Err(Malformed);
            }
        }
        Ok(root)
    }

    fn read(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        loop {
            let Some((first, after)) = self.rest.split_first() else { return Ok(None) };
            match first {
                b' ' | b'\t' | b'\n' | b'\r' | b',' => self.rest = after,
                b'#' => {
                    let end = after.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                    self.rest = &after[end.unwrap_or(after.len())..];
                }
                b'!' | b'$' | b'&' | b'(' | b')' | b':' | b'=' | b'@' | b'[' | b']' | b'{'
                | b'|' | b'}' => {
                    self.rest = after;
                    return Ok(Some(Token::Sign(*first)));
                }
                b'.' => {
                    self.rest = self.rest.strip_prefix(b"...").ok_or(Malformed)?;
                    return Ok(Some(Token::Spread));
                }
                b'"' => {
                    self.string()?;
                    return Ok(Some(Token::Value));
                }
                b'-' | b'0'..=b'9' => {
                    self.number()?;
                    return Ok(Some(Token::Value));
                }
                b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                    let is_end = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'_');
                    let length = self.rest.iter().position(is_end).unwrap_or(self.rest.len());
                    let at = self.text.len() - self.rest.len();
                    self.rest = &self.rest[length..];
                    return Ok(Some(Token::Name(&self.text[at..at + length])));
                }
                _ => return Err(Malformed),
            }
        }
    }

    fn string(&mut self) -> Result<(), Malformed> {
        if let Some(mut rest) = self.rest.strip_prefix(b"\"\"\"") {
            loop {
                if let Some(after) = rest.strip_prefix(b"\\\"\"\"") {
                    rest = after;
                } else if let Some(after) = rest.strip_prefix(b"\"\"\"") {
                    self.rest = after;
                    return Ok(());
                } else {
                    rest = rest.get(1..).ok_or(Malformed)?;
                }
            }
        }
        let mut rest = &self.rest[1..];
        loop {
            let (first, after) = rest.split_first().ok_or(Malformed)?;
            rest = match first {
                b'"' => {
                    self.rest = after;
                    return Ok(());
                }
                b'\n' | b'\r' => return Err(Malformed),
                b'\\' => match after.split_first().ok_or(Malformed)? {
                    (b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after) => after,
                    (b'u', after) => {
                        let (digits, after) = after.split_at_checked(4).ok_or(Malformed)?;
                        match digits.iter().all(u8::is_ascii_hexdigit) {
                            true => after,
                            false => return Err(Malformed),
                        }
                    }
                    _ => return Err(Malformed),
                },
                _ => after,
            };
        }
    }

    fn number(&mut self) -> Result<(), Malformed> {
        let rest = self.rest.strip_prefix(b"-").unwrap_or(self.rest);
        let mut rest = match rest.split_first() {
            Some((b'0', after)) => after,
            _ => digits(rest)?,
        };
        if let Some(after) = rest.strip_prefix(b".") {
            rest = digits(after)?;
        }
        if let Some((b'e' | b'E', after)) = rest.split_first() {
            let signed = after.strip_prefix(b"+").or_else(|| after.strip_prefix(b"-"));
            rest = digits(signed.unwrap_or(after))?;
        }
        match rest.first() {
            Some(b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => Err(Malformed),
            _ => {
                self.rest = rest;
                Ok(())
            }
        }
    }
}

/// What follows one digit or more.
fn digits(text: &[u8]) -> Result<&[u8], Malformed> {
    let length = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if length == 0 { Err(Malformed) } else { Ok(&text[length..]) }
}

#[cfg(test)]
mod tests {
    use apollo_parser::Parser;
    use apollo_parser::cst::{Definition, Selection, SelectionSet};
    use proptest::prelude::*;

    use super::*;

    type Shown = Vec<(Option<Operation>, Vec<String>, Vec<String>)>;

    fn ours(text: &str) -> Option<Shown> {
        let document = Document::parse(text).ok()?;
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let mut shown: Shown = document
            .operations
            .iter()
            .map(|(kind, root)| (Some(*kind), owned(&root.fields), owned(&root.spreads)))
            .collect();
        shown.extend(
            document
                .fragments
                .values()
                .map(|root| (None, owned(&root.fields), owned(&root.spreads))),
        );
        shown.sort();
        Some(shown)
    }

    /// The same by another reader, where it finds no fault.
    fn theirs(text: &str) -> Option<Shown> {
        let tree = Parser::new(text).recursion_limit(MAX_DEPTH).parse();
        if tree.errors().len() > 0 {
            return None;
        }
        fn collect(set: &SelectionSet, fields: &mut Vec<String>, spreads: &mut Vec<String>) {
            for selection in set.selections() {
                match selection {
                    Selection::Field(field) => {
                        fields.push(field.name().unwrap().text().to_string())
                    }
                    Selection::FragmentSpread(spread) => {
                        let name = spread.fragment_name().unwrap().name().unwrap();
                        spreads.push(name.text().to_string());
                    }
                    Selection::InlineFragment(fragment) => {
                        collect(&fragment.selection_set().unwrap(), fields, spreads);
                    }
                }
            }
        }
        let mut shown = Shown::new();
        for definition in tree.document().definitions() {
            let (kind, set) = match definition {
                Definition::OperationDefinition(operation) => {
                    let kind = match operation.operation_type() {
                        Some(kind) if kind.mutation_token().is_some() => Operation::Mutation,
                        Some(kind) if kind.subscription_token().is_some() => {
                            Operation::Subscription
                        }
                        _ => Operation::Query,
                    };
                    (Some(kind), operation.selection_set()?)
                }
                Definition::FragmentDefinition(fragment) => (None, fragment.selection_set()?),
                _ => return None,
            };
            let (mut fields, mut spreads) = (Vec::new(), Vec::new());
            collect(&set, &mut fields, &mut spreads);
            shown.push((kind, fields, spreads));
        }
        shown.sort();
        Some(shown)
    }

    fn names(text: &str) -> Option<Vec<String>> {
        ours(text).map(|shown| shown.into_iter().flat_map(|(_, fields, _)| fields).collect())
    }

    #[test]
    fn a_comment_ends_with_its_line_however_that_ends() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("{{ a # b }}{end} c }}");
            assert_eq!(names(&text), Some(vec!["a".into(), "c".into()]), "{end:?}");
        }
    }

    #[test]
    fn a_string_hides_what_is_in_it_and_no_more() {
        for (argument, is_read) in [
            (r#""}""#, true),
            (r#""\"}""#, true),
            (r#""\\""#, true),
            (r#""\\"}""#, false),
            (r#""""""#, false),
            (r#""""}"""#, false),
            (r#""""}""""#, true),
            (r#""""}""" "#, true),
            (r#""""\"""}""" "#, true),
            (r#""""\\"""}""" "#, true),
            (r#""" "#, true),
            ("\"\n\"", false),
            ("\"a\rb\"", false),
            ("\"\"\"\n\r\"\"\"", true),
            (r#""\x""#, false),
            (r#""\u{41}""#, false),
            (r#""\u0041""#, true),
            ("-0.5e+10", true),
            ("00", false),
            ("1a", false),
            ("1.", false),
            ("[{a: 1}]", true),
            ("[{a: 1]}", false),
        ] {
            let text = format!("{{ a(x: {argument}) b }}");
            let expected = is_read.then(|| vec!["a".into(), "b".into()]);
            assert_eq!(names(&text), expected, "{text}");
        }
    }

    const WORD: &str = "[{}(){} ]|query|mutation|fragment|on|\\.\\.\\.|F|a|b: |@d|#|\n|\r|\"|\"\"\"|\\\\|\\$x|1|:|,";

    proptest! {
        #[test]
        fn what_another_reader_reads_is_read_the_same(words in prop::collection::vec(WORD, 0..25)) {
            for text in [words.concat(), words.join(" "), format!("{{ a {} }}", words.concat())] {
                if let (Some(ours), Some(theirs)) = (ours(&text), theirs(&text)) {
                    prop_assert_eq!(ours, theirs, "{:?}", text);
                }
            }
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,60}") {
            let _ = Document::parse(&text);
        }
    }
}
