//! Methods of requests, as sets.

use std::fmt;

/// Every method that a rule can name. One that is not here is never allowed.
const KNOWN: [&str; 19] = [
    "GET",
    "HEAD",
    "OPTIONS",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "QUERY",
    "LIST",
    "PURGE",
];

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Methods(u32);

impl Methods {
    pub(crate) const GET: Self = Self(1);
    pub(crate) const POST: Self = Self(1 << 3);
    pub(crate) const PUT: Self = Self(1 << 4);
    pub(crate) const DELETE: Self = Self(1 << 6);
    /// GET and HEAD. OPTIONS is not among them.
    pub(crate) const READ: Self = Self(0b11);
    /// POST, PUT, PATCH and DELETE.
    pub(crate) const WRITE: Self = Self(0b111_1000);
    pub(crate) const ANY: Self = Self((1 << KNOWN.len()) - 1);

    /// Words that stand for more than one method.
    const SETS: [(&'static str, Self); 3] =
        [("READ", Self::READ), ("WRITE", Self::WRITE), ("ANY", Self::ANY)];

    /// The set of one method of a request. Compared exactly, as methods are.
    pub(crate) fn of(method: &str) -> Option<Self> {
        KNOWN.iter().position(|known| *known == method).map(|index| Self(1 << index))
    }

    /// What a word of a rule stands for.
    pub(crate) fn word(word: &str) -> Option<Self> {
        let set = Self::SETS.iter().find(|(name, _)| *name == word).map(|(_, set)| *set);
        set.or_else(|| Self::of(word))
    }

    /// All words that a rule can have for methods.
    pub(crate) fn words() -> impl Iterator<Item = &'static str> {
        Self::SETS.iter().map(|(name, _)| *name).chain(KNOWN)
    }

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = Self::SETS.iter().find(|(_, set)| set == self) {
            return f.write_str(name);
        }
        let mut separator = "";
        for (index, name) in KNOWN.iter().enumerate() {
            if self.meets(Self(1 << index)) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_is_get_and_head_and_not_options() {
        for (method, is_read) in [("GET", true), ("HEAD", true), ("OPTIONS", false)] {
            assert_eq!(Methods::READ.meets(Methods::of(method).unwrap()), is_read, "{method}");
        }
        assert_eq!(Methods::word("POST").unwrap(), Methods::POST);
        assert_eq!(Methods::of("PUT").unwrap(), Methods::PUT);
        assert_eq!(Methods::of("DELETE").unwrap(), Methods::DELETE);
        assert_eq!(Methods::WRITE.to_string(), "WRITE");
        assert_eq!(Methods::POST.with(Methods::PUT).to_string(), "POST,PUT");
    }

    #[test]
    fn a_method_is_compared_exactly() {
        for method in ["get", "Get", "FOO", "", "CONNECT", "TRACE", "TRACK", "PRI", "READ"] {
            assert_eq!(Methods::of(method), None, "{method}");
        }
    }
}
