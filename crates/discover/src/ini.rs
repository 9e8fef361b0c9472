//! Lines of `key = value` below `[sections]`, as several tools have them.

/// A key with a value, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) section: String,
    pub(crate) key: String,
    /// Lines that go on are joined by newlines.
    pub(crate) value: String,
    /// From 1.
    pub(crate) line: usize,
}

/// Reads all entries. `goes_on` is whether an indented line belongs to the value before it.
pub(crate) fn entries(text: &str, separators: &[char], goes_on: bool) -> Vec<Entry> {
    let mut section = String::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut is_open = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if goes_on && is_open && line.starts_with([' ', '\t']) {
            if let Some(last) = entries.last_mut() {
                last.value.push('\n');
                last.value.push_str(trimmed);
            }
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.trim().clone_into(&mut section);
            is_open = false;
            continue;
        }
        is_open = true;
        let (key, value) = trimmed.split_once(separators).unwrap_or((trimmed, ""));
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| {
            value.strip_prefix(*quote).and_then(|rest| rest.strip_suffix(*quote))
        });
        entries.push(Entry {
            section: section.clone(),
            key: key.trim().to_owned(),
            value: quoted.unwrap_or(value).to_owned(),
            line: index + 1,
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_comments_quotes_and_lines_that_go_on() {
        let text =
            "a = 1\n# a = 2\n[one]\n b: \"two\" \nc =\n  x\n  # no\n  y\n[two]\n  d = z\nflag\n";
        let shown: Vec<(String, String, String, usize)> = entries(text, &['=', ':'], true)
            .into_iter()
            .map(|entry| (entry.section, entry.key, entry.value, entry.line))
            .collect();
        let entry = |section: &str, key: &str, value: &str, line| {
            (section.to_owned(), key.to_owned(), value.to_owned(), line)
        };
        assert_eq!(
            shown,
            [
                entry("", "a", "1", 1),
                entry("one", "b", "two", 4),
                entry("one", "c", "\nx\ny", 5),
                entry("two", "d", "z", 10),
                entry("two", "flag", "", 11),
            ]
        );
    }
}
