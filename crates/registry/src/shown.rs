//! What somebody else wrote, for a person to read.

/// What somebody else wrote, in a line that can be shown: bounded, and without what a terminal obeys.
pub(crate) fn shown(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let is_plain = |c: &char| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    line.chars().filter(is_plain).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_obeys_no_terminal() {
        assert_eq!(shown("a\x1b[31m\nb\r\u{202e}c"), "a [31m b c");
        assert_eq!(shown(&"x".repeat(1000)).len(), 300);
    }
}
