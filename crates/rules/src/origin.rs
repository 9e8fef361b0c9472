//! Where a rule stands.

use std::fmt;
use std::sync::Arc;

/// A rule as it was written, and where. Shown as `policy.toml:12: "READ api.github.com/**"`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file, or what else it came from: `--allow`.
    pub source: Arc<str>,
    /// From 1. 0 where the source has no lines.
    pub line: u32,
    /// The line itself.
    pub text: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        // Most rules have nothing to escape, and looking for it takes as long as a decision.
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        match self.text.bytes().all(is_plain) {
            true => write!(f, ": \"{}\"", self.text),
            false => write!(f, ": {:?}", self.text),
        }
    }
}
