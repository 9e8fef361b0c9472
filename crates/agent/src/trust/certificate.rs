//! As much of a certificate as it takes to have programs find it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const EXPLICIT_VERSION: u8 = 0xa0;

/// The certificates of a text in PEM, as DER. What is none between them is no matter.
pub(super) fn decode(pem: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some((_, tail)) = rest.split_once(BEGIN) {
        let Some((body, tail)) = tail.split_once(END) else { break };
        let body: String = body.split_ascii_whitespace().collect();
        found.extend(BASE64.decode(body));
        rest = tail;
    }
    found
}

/// The number under which OpenSSL looks for a certificate in a directory: `X509_NAME_hash(3)` of
/// its subject. Nothing for a certificate that cannot be read, or whose subject has strings of a
/// kind that no certificate has had for long.
pub(super) fn subject_hash(der: &[u8]) -> Option<u32> {
    let mut certificate = Reader(Reader(der).value(SEQUENCE)?);
    let mut body = Reader(certificate.value(SEQUENCE)?);
    if body.0.first() == Some(&EXPLICIT_VERSION) {
        body.next()?;
    }
    // Serial number, algorithm, issuer, validity; then the subject.
    for _ in 0..4 {
        body.next()?;
    }
    let mut names = Reader(body.value(SEQUENCE)?);
    let mut canonical = Vec::new();
    while !names.0.is_empty() {
        let mut set = Reader(names.value(SET)?);
        let mut pairs = Vec::new();
        while !set.0.is_empty() {
            let mut pair = Reader(set.value(SEQUENCE)?);
            let kind = pair.value(OBJECT_IDENTIFIER)?;
            let (tag, text) = pair.next()?;
            if ![UTF8_STRING, PRINTABLE_STRING, IA5_STRING].contains(&tag) {
                return None;
            }
            let text = write(UTF8_STRING, &canonical_text(text));
            pairs.push(write(SEQUENCE, &[write(OBJECT_IDENTIFIER, kind), text].concat()));
        }
        pairs.sort();
        canonical.extend(write(SET, &pairs.concat()));
    }
    let [a, b, c, d, ..] = super::sha1::digest(&canonical);
    Some(u32::from_le_bytes([a, b, c, d]))
}

/// Without spaces around it, with one for many within, and in small letters where they are ASCII.
fn canonical_text(text: &[u8]) -> Vec<u8> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let words = text.split(is_space).filter(|word| !word.is_empty());
    words.map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b' ')
}

/// One element in DER.
pub(super) fn write(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut bytes = vec![tag];
    match significant {
        [] => bytes.push(0),
        [short @ 0..=0x7f] => bytes.push(*short),
        long => {
            bytes.push(0x80 | u8::try_from(long.len()).expect("at most eight"));
            bytes.extend_from_slice(long);
        }
    }
    bytes.extend_from_slice(value);
    bytes
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and its value.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: &str = include_str!("authority.pem");

    #[test]
    fn the_hash_is_the_one_that_openssl_computes() {
        let der = decode(AUTHORITY).remove(0);
        // `openssl x509 -subject_hash -noout -in authority.pem`
        assert_eq!(subject_hash(&der), Some(0x1e62_0e52));
    }

    #[test]
    fn what_is_no_certificate_has_no_hash() {
        let der = decode(AUTHORITY).remove(0);
        for length in 0..der.len() {
            assert_eq!(subject_hash(&der[..length]), None);
        }
        assert!(decode("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----").is_empty());
        assert!(decode("-----BEGIN CERTIFICATE-----\nAA==").is_empty());
    }

    #[test]
    fn lengths_are_written_as_short_as_they_can_be() {
        assert_eq!(write(4, &[]), [4, 0]);
        assert_eq!(write(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(write(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(write(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
    }
}
