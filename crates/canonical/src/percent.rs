//! Percent-encoding (RFC 3986, section 2.1).

/// A `%` without two hexadecimal digits after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Each byte of `text`, decoded once, and whether it was encoded.
pub(crate) fn decoded(text: &str) -> impl Iterator<Item = Result<(u8, bool), Malformed>> {
    let mut bytes = text.bytes();
    std::iter::from_fn(move || {
        let byte = bytes.next()?;
        if byte != b'%' {
            return Some(Ok((byte, false)));
        }
        let (high, low) = (bytes.next().and_then(digit), bytes.next().and_then(digit));
        Some(match (high, low) {
            (Some(high), Some(low)) => Ok((high << 4 | low, true)),
            _ => Err(Malformed),
        })
    })
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Adds `byte` in the form that RFC 3986, section 6.2.2, calls normal: what need not be encoded is
/// not, and digits are capitals.
pub(crate) fn push(text: &mut String, byte: u8, was_encoded: bool) {
    let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if unreserved || !was_encoded {
        text.push(char::from(byte));
        return;
    }
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}
