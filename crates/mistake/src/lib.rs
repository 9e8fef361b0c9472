//! Mistakes in text that people wrote: where they are, and what was perhaps meant.
#![forbid(unsafe_code)]

use toml::de::{DeTable, DeValue};

/// Longer words are near to nothing: a distance takes the product of the lengths.
const LONG: usize = 64;

/// A text, with the places in it.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    text: &'a str,
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Of this text.
    pub fn of(text: &'a str) -> Self {
        Self { text, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    /// Line and column of an offset in bytes, both from 1, the column in characters.
    pub fn place(&self, at: usize) -> (u32, u32) {
        let line = self.ends.partition_point(|end| *end < at);
        let start = line.checked_sub(1).map_or(0, |above| self.ends[above] + 1);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        let number = |index| u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        (number(line), number(column))
    }
}

/// A text as TOML.
///
/// # Errors
/// Where it is none, with the offset and what is wrong there, in one line.
pub fn toml(text: &str) -> Result<DeTable<'_>, (usize, String)> {
    match DeTable::parse(text) {
        Ok(document) => Ok(document.into_inner()),
        Err(error) => {
            let message = error.message().replace(char::is_control, " ");
            Err((error.span().map_or(0, |span| span.start), message))
        }
    }
}

/// What a value of TOML is, in words.
pub fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// A hint for a word that is not known: the nearest that there is, or all.
pub fn nearest(word: &str, known: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let near = known
        .iter()
        .map(|one| (distance(word, one), *one))
        .filter(|(distance, one)| *distance <= one.len().div_ceil(3))
        .min();
    match near {
        Some((_, one)) => format!("did you mean {one:?}?"),
        None => format!("there are: {}", known.join(", ")),
    }
}

/// How many characters to add, remove, change or swap with the next, whatever their case; of long
/// words, too many.
pub fn distance(one: &str, other: &str) -> usize {
    match one.len().max(other.len()) {
        LONG.. => LONG,
        _ => strsim::osa_distance(&one.to_lowercase(), &other.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_is_one_mistake_and_a_case_is_none() {
        assert_eq!(distance("policy", "polciy"), 1);
        assert_eq!(distance("images", "Image"), 1);
        assert_eq!(distance("env", "dev"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance(&"a".repeat(100), &"a".repeat(100)), LONG);
    }

    #[test]
    fn the_nearest_is_told_and_else_all() {
        assert_eq!(nearest("alow", ["allow", "deny"]), "did you mean \"allow\"?");
        assert_eq!(nearest("unlike", ["allow", "deny"]), "there are: allow, deny");
    }

    #[test]
    fn columns_are_characters() {
        let lines = Lines::of("a\nµß = 1\n");
        let places = [0, 1, 2, 4, 6, 10].map(|at| lines.place(at));
        assert_eq!(places, [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 7)]);
        assert_eq!(lines.place(11), (3, 1));
        assert_eq!(lines.place(5), (2, 1), "within a character");
    }

    #[test]
    fn what_is_no_toml_has_a_place() {
        let (at, message) = toml("a = 1\nb = = 2\n").unwrap_err();
        assert_eq!(at, 10, "{message}");
        assert!(!message.contains('\n'));
        assert_eq!(kind(toml("a = 1").unwrap()["a"].get_ref()), "a number");
    }
}
