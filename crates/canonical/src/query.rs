//! What is asked for in particular: the query of a request.

use std::fmt;

use crate::percent;

/// Longest query, in bytes.
const MAX_QUERY: usize = 64 << 10;
/// Most keys.
const MAX_PAIRS: usize = 1024;

/// Why a query is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Longer, or with more keys, than any service needs.
    #[error("the query is longer than {MAX_QUERY} bytes or has more than {MAX_PAIRS} keys")]
    TooLong,
    /// A character that has to be encoded, or must not be there at all.
    #[error(
        "the query has a character that must not be there: a control character, a space or the like"
    )]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("the query has a `%` without two hexadecimal digits")]
    Escape,
    /// What is encoded is not text.
    #[error("the query does not decode to UTF-8")]
    Text,
}

/// A query in its one form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    text: String,
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads what follows the `?`.
    ///
    /// # Errors
    /// `QueryError`.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if text.len() > MAX_QUERY {
            return Err(QueryError::TooLong);
        }
        let mut query = Self::default();
        for (index, part) in text.split('&').enumerate() {
            if index >= MAX_PAIRS {
                return Err(QueryError::TooLong);
            }
            if index > 0 {
                query.text.push('&');
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let key = word(key, &mut query.text)?;
            if part.contains('=') {
                query.text.push('=');
            }
            let value = word(value, &mut query.text)?;
            if !part.is_empty() {
                query.pairs.push((key, value));
            }
        }
        Ok(query)
    }

    /// As it is sent, without the `?`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Keys and values, decoded, in their order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// All values of a key: a server may take any of them.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs().filter(move |(name, _)| *name == key).map(|(_, value)| value)
    }
}

fn word(part: &str, sent: &mut String) -> Result<String, QueryError> {
    let mut bytes = Vec::with_capacity(part.len());
    for step in percent::decoded(part) {
        let (byte, was_encoded) = step.map_err(|_| QueryError::Escape)?;
        if byte < 0x20 || byte == 0x7f || (!was_encoded && !is_query(byte)) {
            return Err(QueryError::Character);
        }
        // Forms write a space so.
        bytes.push(if byte == b'+' && !was_encoded { b' ' } else { byte });
        percent::push(sent, byte, was_encoded);
    }
    String::from_utf8(bytes).map_err(|_| QueryError::Text)
}

/// RFC 3986, section 3.4, and the brackets and braces that clients leave as they are.
fn is_query(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@/?[]{}|".contains(&byte)
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_has_one_form() {
        let query = Query::parse("a=1&b=%62%20%3d&a=x+y&flag&&e=").unwrap();
        assert_eq!(query.as_str(), "a=1&b=b%20%3D&a=x+y&flag&&e=");
        assert_eq!(query.values("a").collect::<Vec<_>>(), ["1", "x y"]);
        assert_eq!(query.values("b").collect::<Vec<_>>(), ["b ="]);
        assert_eq!(query.values("flag").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn what_no_client_sends_is_refused() {
        for (text, error) in [
            ("a=%0d%0a", QueryError::Character),
            ("a= b", QueryError::Character),
            ("a=#b", QueryError::Character),
            ("a=%", QueryError::Escape),
            ("a=%ff", QueryError::Text),
            ("a=é", QueryError::Character),
        ] {
            assert_eq!(Query::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Query::parse(&"&".repeat(MAX_PAIRS)), Err(QueryError::TooLong));
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_the_same_again(text in "(\\PC|[a-c&=%+0-9]){0,60}") {
            if let Ok(query) = Query::parse(&text) {
                prop_assert_eq!(Query::parse(query.as_str()), Ok(query));
            }
        }
    }
}
