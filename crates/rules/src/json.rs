//! JSON that has one meaning: readers differ about a key that is there twice, so none may be.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Most elements of a batch.
const MAX_BATCH: usize = 100;
/// Most keys of an object that is looked into.
const MAX_KEYS: usize = 256;
/// What is below is checked and not kept.
const KEPT: usize = 3;

/// A value, as far as it is looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Text(String),
    /// Only at the top.
    List(Vec<Json>),
    Object(Object),
    /// Something that nobody asks about.
    Other,
}

/// The members of an object that is looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object(Vec<(String, Json)>);

impl Json {
    /// Reads a whole text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = Seed { depth: 0 }.deserialize(&mut reader);
        let value = value.and_then(|value| reader.end().map(|()| value));
        // What the reader says may quote the text.
        value.map_err(|error| match error.is_data() {
            true => "its JSON has a key twice, or is larger than any that is judged".to_owned(),
            false => "it is not JSON".to_owned(),
        })
    }

    /// The one object, or each of a batch.
    pub(crate) fn objects(&self) -> Result<Vec<&Object>, String> {
        let list = match self {
            Self::List(list) => list.iter().collect(),
            one => vec![one],
        };
        let object = |value: &'_ Json| match value {
            Self::Object(_) => Ok(()),
            _ => Err("it is not a JSON object, or a list of objects".to_owned()),
        };
        list.iter().try_for_each(|value| object(value))?;
        Ok(list.into_iter().filter_map(|value| value.object()).collect())
    }

    pub(crate) fn object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Object {
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// Checks that some readers do not find another key where we look for one of these: there are
    /// readers that know no case.
    pub(crate) fn check(&self, known: &[&str]) -> Result<(), String> {
        let is_plain = |key: &str| {
            known.contains(&key)
                || (key.is_ascii() && !known.iter().any(|one| one.eq_ignore_ascii_case(key)))
        };
        match self.keys().find(|key| !is_plain(key)) {
            None => Ok(()),
            Some(_) => Err("its JSON has a key that could be read as another".to_owned()),
        }
    }

    /// Checks that there are no other keys.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.keys().find(|key| !known.contains(key)) {
            None => Ok(()),
            Some(key) => Err(format!("its JSON has the key {key:?}, which no rule can judge")),
        }
    }
}

struct Seed {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(if self.depth > KEPT { Json::Other } else { Json::Text(text.to_owned()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let depth = self.depth + 1;
        let mut kept = Vec::new();
        while let Some(value) = list.next_element_seed(Seed { depth })? {
            if self.depth > 0 {
                continue;
            }
            if kept.len() >= MAX_BATCH {
                return Err(de::Error::custom("too long"));
            }
            kept.push(value);
        }
        Ok(if self.depth > 0 { Json::Other } else { Json::List(kept) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let depth = self.depth + 1;
        let is_kept = self.depth < KEPT;
        let mut seen: HashSet<String> = HashSet::new();
        let mut kept = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(de::Error::custom("twice"));
            }
            let value = map.next_value_seed(Seed { depth })?;
            if is_kept {
                if kept.len() >= MAX_KEYS {
                    return Err(de::Error::custom("too many"));
                }
                kept.push((key.clone(), value));
            }
            seen.insert(key);
        }
        Ok(if is_kept { Json::Object(Object(kept)) } else { Json::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_refused_at_any_depth() {
        assert!(Json::parse(br#"{"a":1,"b":{"a":1}}"#).is_ok());
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"y":{"z":{"w":{"a":1,"a":2}}}}}"#,
            r#"{"x":[[[{"a":1,"a":2}]]]}"#,
        ] {
            assert!(Json::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_json_in_utf_8_is_refused() {
        for text in [
            &b""[..],
            b"{",
            b"{}x",
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\0}\0",
            b"{\"a\":\"\xff\"}",
            b"{'a':1}",
            b"{\"a\":1,}",
            b"{\"a\":\"\\ud800\"}",
            b"// x\n{}",
        ] {
            assert!(Json::parse(text).is_err(), "{text:?}");
        }
        assert!(Json::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_batch_and_an_object_have_bounds() {
        let batch = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        assert_eq!(Json::parse(batch(100).as_bytes()).unwrap().objects().unwrap().len(), 100);
        assert!(Json::parse(batch(101).as_bytes()).is_err());
        let keys: Vec<String> = (0..257).map(|index| format!("\"{index}\":0")).collect();
        assert!(Json::parse(format!("{{{}}}", keys.join(",")).as_bytes()).is_err());
        assert!(Json::parse(format!("{{\"a\":[{}0]}}", "0,".repeat(200_000)).as_bytes()).is_ok());
    }

    #[test]
    fn a_key_in_another_case_is_not_overlooked() {
        let check = |text: &str| {
            let json = Json::parse(text.as_bytes()).unwrap();
            json.object().unwrap().check(&["name", "task"])
        };
        assert!(check(r#"{"name":"a","arguments":{}}"#).is_ok());
        assert!(check(r#"{"name":"a","Name":"b"}"#).is_err());
        // U+017F, which some readers take for an s.
        assert!(check(r#"{"name":"a","tas\u212a":"b"}"#).is_err());
    }
}
