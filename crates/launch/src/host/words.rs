//! What a process says on stderr: kept, and shown where that was asked for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

/// What is kept.
const KEPT: usize = 16 << 10;
/// Longest line that is told.
const LINE: usize = 300;
/// How long words may take that were said before the end. Only a process that has left its
/// stderr to another makes this wait.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Words {
    kept: Arc<Mutex<Vec<u8>>>,
    listening: Option<JoinHandle<()>>,
}

impl Words {
    pub(super) fn listen(from: impl AsyncRead + Unpin + Send + 'static, shown: bool) -> Self {
        let kept = Arc::default();
        let listening = tokio::spawn(listen(from, Arc::clone(&kept), shown));
        Self { kept, listening: Some(listening) }
    }

    /// Waits until all has been heard that the ended process said.
    pub(super) async fn complete(&mut self) {
        if let Some(listening) = self.listening.take() {
            let _ = tokio::time::timeout(PATIENCE, listening).await;
        }
    }

    pub(super) fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

/// The last line with something on it, without what could steer a terminal.
pub(super) fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LINE).collect())
}

async fn listen(mut from: impl AsyncRead + Unpin, kept: Arc<Mutex<Vec<u8>>>, shown: bool) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if shown {
            let _ = tokio::io::stderr().write_all(&harmless(&bytes[..count])).await;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&bytes[..count]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
}

/// A guest's kernel may have written this: nothing in it may steer the user's terminal.
fn harmless(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .map(|byte| if matches!(byte, b'\n' | b'\t' | 0x20..=0x7e) { *byte } else { b' ' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_with_something_on_it() {
        assert_eq!(last_line("first\nsecond\n\n  \n").as_deref(), Some("second"));
        assert_eq!(last_line("\n\n"), None);
    }

    #[test]
    fn no_control_sequence_is_told_or_shown() {
        assert_eq!(last_line("\x1b]0;title\x07red").as_deref(), Some("]0;titlered"));
        assert_eq!(harmless(b"a\x1b[31mb\tc\n\x9b"), b"a [31mb\tc\n ");
    }

    #[tokio::test]
    async fn of_many_words_the_last_are_kept() {
        let mut said = vec![b'x'; 3 * KEPT];
        said.extend_from_slice(b"\nthe end\n");

        let mut words = Words::listen(std::io::Cursor::new(said), false);
        words.complete().await;

        assert_eq!(words.text().len(), KEPT);
        assert_eq!(last_line(&words.text()).as_deref(), Some("the end"));
    }
}
