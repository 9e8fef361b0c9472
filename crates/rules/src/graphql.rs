//! GraphQL in bodies and queries: every operation, by its kind and the fields at its root.

use std::collections::HashMap;

use crate::body::Ask;
use crate::document::Document;
use crate::json::{Json, Object};

/// Most fields at the roots of all operations.
const MAX_FIELDS: usize = 1000;

/// Of a request; what else there is could name an operation that the server has stored.
const KEYS: [&str; 4] = ["query", "operationName", "variables", "extensions"];

/// What a body in JSON asks for.
pub(crate) fn of_json(body: &[u8]) -> Result<Vec<Ask>, String> {
    let json = Json::parse(body)?;
    let mut asks = Vec::new();
    for object in json.objects()? {
        object.only(&KEYS)?;
        if let Some(extensions) = object.get("extensions") {
            check_extensions(extensions)?;
        }
        asks.extend(of_document(text_of(object)?)?);
    }
    match asks.is_empty() {
        true => Err("it has no operation".to_owned()),
        false => Ok(asks),
    }
}

fn text_of(object: &Object) -> Result<&str, String> {
    let text = object.get("query").and_then(Json::text);
    text.ok_or_else(|| "it names an operation that is stored elsewhere".to_owned())
}

/// What the query of an address asks for.
pub(crate) fn of_pairs<'a>(
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Ask>, String> {
    let mut found: HashMap<&str, &str> = HashMap::new();
    for (key, value) in pairs {
        if !KEYS.contains(&key) {
            return Err(format!("its query has the key {key:?}, which no rule can judge"));
        }
        if found.insert(key, value).is_some() {
            return Err(format!("its query has the key {key:?} twice"));
        }
    }
    if let Some(extensions) = found.get("extensions") {
        check_extensions(&Json::parse(extensions.as_bytes())?)?;
    }
    let text = found.get("query");
    of_document(text.ok_or("it names an operation that is stored elsewhere")?)
}

/// A hash stands for a document that only the server knows.
fn check_extensions(extensions: &Json) -> Result<(), String> {
    let names_document =
        |key: &str| !key.is_ascii() || key.to_ascii_lowercase().contains("persisted");
    match extensions {
        Json::Null => Ok(()),
        Json::Object(object) if !object.keys().any(names_document) => Ok(()),
        _ => Err("it names an operation that is stored elsewhere".to_owned()),
    }
}

/// What a document asks for. Which of its operations is meant does not matter: all are judged.
pub(crate) fn of_document(text: &str) -> Result<Vec<Ask>, String> {
    let document = Document::parse(text)?;
    let mut asks = Vec::new();
    for (kind, root) in &document.operations {
        let mut seen: Vec<&str> = Vec::new();
        let mut roots = vec![root];
        while let Some(root) = roots.pop() {
            asks.extend(root.fields.iter().map(|name| Ask::Field(*kind, (*name).to_owned())));
            for name in &root.spreads {
                let fragment = document.fragments.get(name);
                let fragment = fragment.ok_or("its document of GraphQL is not complete")?;
                // Once is enough, and there may be a circle.
                if !seen.contains(name) {
                    seen.push(name);
                    roots.push(fragment);
                }
            }
            if asks.len() > MAX_FIELDS {
                return Err(format!("it asks for more than {MAX_FIELDS} things at once"));
            }
        }
    }
    match asks.is_empty() {
        true => Err("it asks for nothing".to_owned()),
        false => Ok(asks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(asks: Result<Vec<Ask>, String>) -> Result<String, String> {
        let one = |ask: &Ask| match ask {
            Ask::Field(kind, name) => format!("{} {name}", kind.as_str()),
            other => other.to_string(),
        };
        asks.map(|asks| asks.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    fn document(text: &str) -> Result<String, String> {
        shown(of_document(text))
    }

    #[test]
    fn fields_at_the_root_are_named_by_what_they_are_and_not_by_aliases() {
        assert_eq!(document("{ viewer { login } }"), Ok("query viewer".into()));
        assert_eq!(
            document("mutation M($x: ID = 1) @d { viewer: deleteRef(input: {a: \"}\"}) { x } }"),
            Ok("mutation deleteRef".into())
        );
        assert_eq!(document("subscription { a }"), Ok("subscription a".into()));
    }

    #[test]
    fn every_operation_of_a_document_counts() {
        assert_eq!(
            document("query A { a } # mutation { x }\nmutation B { b c }"),
            Ok("query a, mutation b, mutation c".into())
        );
    }

    #[test]
    fn fragments_are_looked_into_where_they_are_at_the_root() {
        assert_eq!(
            document(
                "query { ...F ... on Query { b } ... { c } } fragment F on Query { a ...F x { y } }"
            ),
            Ok("query b, query c, query a, query x".into())
        );
        assert!(document("{ ...Nowhere }").is_err());
        assert!(document("{ a ...F } fragment F on Q { x } fragment F on Q { y }").is_err());
    }

    #[test]
    fn what_is_no_document_of_operations_is_refused() {
        for text in [
            "",
            "{",
            "{}",
            "query",
            "{ a } }",
            "type A { a: B }",
            "{ a } type A { a: B }",
            "fragment F on Q { a }",
            "query { a } mutation",
            "{ a(x: \"\n\") }",
            "{ a \u{0} }",
            "{ a } # \u{2028} x",
            "\u{feff}{ a }",
            "\"about\" query { a }",
            "mutatioN { a }",
        ] {
            assert!(document(text).is_err(), "{text:?}");
        }
        assert!(document(&"{ a ".repeat(5000)).is_err());
        assert!(document(&format!("{} a {}", "{ a".repeat(300), "}".repeat(300))).is_err());
    }

    #[test]
    fn bodies_are_one_request_or_a_batch() {
        let json = |text: &str| shown(of_json(text.as_bytes()));
        assert_eq!(json(r#"{"query":"{ a }","variables":{"x":[1]}}"#), Ok("query a".into()));
        assert_eq!(
            json(r#"[{"query":"{ a }"},{"query":"mutation { b }","operationName":null}]"#),
            Ok("query a, mutation b".into())
        );
        for text in [
            r#"{"query":"{ a }","query":"mutation { b }"}"#,
            r#"{"query":"{ a }","Query":"mutation { b }"}"#,
            r#"{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"0"}}}"#,
            r#"{"query":"{ a }","extensions":{"persistedQuery":{"version":1,"sha256Hash":"0"}}}"#,
            r#"{"id":"stored"}"#,
            r#"{"query":"{ a }","documentId":"stored"}"#,
            r#"{"query":["{ a }"]}"#,
            "[]",
            "\"{ a }\"",
        ] {
            assert!(json(text).is_err(), "{text}");
        }
        assert!(json(r#"{"query":"{ a }","extensions":{"trace":{}}}"#).is_ok());
    }

    #[test]
    fn queries_of_addresses_are_judged_too() {
        let pairs = |pairs: &[(&'static str, &'static str)]| shown(of_pairs(pairs.iter().copied()));
        assert_eq!(pairs(&[("query", "{ a }"), ("variables", "{}")]), Ok("query a".into()));
        assert!(pairs(&[("query", "{ a }"), ("query", "mutation { b }")]).is_err());
        assert!(pairs(&[("query", "{ a }"), ("Query", "mutation { b }")]).is_err());
        assert!(pairs(&[("extensions", "{\"persistedQuery\":{}}")]).is_err());
        assert!(pairs(&[("query", "{ a }"), ("extensions", "{\"persistedQuery\":{}}")]).is_err());
        assert!(pairs(&[("variables", "{}")]).is_err());
    }

    #[test]
    fn fragments_in_fragments_do_not_multiply() {
        let mut text = String::from("{ ...F0 }");
        for index in 0..200 {
            text += &format!(" fragment F{index} on Q {{ a{index} ...F{0} ...F{0} }}", index + 1);
        }
        text += " fragment F200 on Q { z }";
        assert!(document(&text).unwrap().ends_with("query z"));
    }
}
