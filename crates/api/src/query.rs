//! Query strings: one parser for the server, one writer for the client.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Problem, Validate};

/// Reads the part after `?` (empty where there is none). A list is a repeated key. Refused are
/// unknown keys, repeated ones that are no list, empty values, and what is not UTF-8.
///
/// # Errors
/// `invalid_request` with the parameter, where it can be told.
pub fn parse_query<T: DeserializeOwned + Validate>(query: &str) -> Result<T, Problem> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key).ok_or_else(|| Problem::invalid("query", "is not UTF-8"))?;
        match decode(value) {
            Some(value) if !value.is_empty() => {}
            Some(_) => return Err(Problem::invalid(key, "must have a value, or be absent")),
            None => return Err(Problem::invalid(key, "is not UTF-8, percent-encoded")),
        }
    }
    let parsed: T = serde_html_form::from_str(query)
        .map_err(|error| Problem::invalid("query", error.to_string()))?;
    parsed.validate()?;
    Ok(parsed)
}

/// Writes the part after `?`.
pub fn render_query<T: Serialize>(query: &T) -> String {
    // Queries are flat structs of strings, numbers and lists of them, which have a form.
    serde_html_form::to_string(query).unwrap_or_default()
}

/// The text of a key or a value. The parser would replace what is not UTF-8, and leave a
/// percent sign that stands alone: a path must not become another one that way.
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Any {
        text: Vec<String>,
    }

    impl Validate for Any {
        fn validate(&self) -> Result<(), Problem> {
            Ok(())
        }
    }

    #[test]
    fn what_would_be_replaced_is_refused() {
        for query in ["text=%ff", "text=%", "text=%4", "text=%zz", "%ff=a", "text=", "text"] {
            assert!(parse_query::<Any>(query).is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn every_text_survives_the_round_trip(text in prop::collection::vec(".+", 1..4)) {
            let query = Any { text };
            prop_assert_eq!(parse_query::<Any>(&render_query(&query)), Ok(query));
        }

        #[test]
        fn no_text_makes_the_parser_fail_otherwise_than_by_a_problem(text in ".{0,60}") {
            let _ = parse_query::<Any>(&text);
        }
    }
}
