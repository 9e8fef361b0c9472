//! The file that a key which signs requests is kept in: its id, a space, and the secret half in
//! base64, in one line.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use client::RequestKey;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Longer than any.
const MAX_FILE: u64 = 1024;

/// The text of the file.
pub(crate) fn render(id: &str, secret: &Zeroizing<[u8; 32]>) -> Zeroizing<String> {
    let encoded = Zeroizing::new(BASE64.encode(secret.as_slice()));
    Zeroizing::new(format!("{id} {}\n", encoded.as_str()))
}

/// The key in the file, which nobody else may read.
pub(crate) fn read(path: &Path) -> Result<RequestKey, Failure> {
    let failed = |error: std::io::Error| {
        Failure::usage(format!("cannot read the key {path:?}, which SANDFORGE_KEY names"))
            .because(&error)
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(Failure::usage(format!("others may read the key {path:?}"))
            .help(format!("chmod 600 {path:?}, or make another: sandforge key create")));
    }
    let mut text = Zeroizing::new(String::with_capacity(1024));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    parse(&text)
        .ok_or_else(|| Failure::usage(format!("{path:?} is not a key of `sandforge key create`")))
}

fn parse(text: &str) -> Option<RequestKey> {
    let (id, encoded) = text.trim_end().split_once(' ')?;
    let decoded = Zeroizing::new(BASE64.decode(encoded).ok()?);
    let secret = Zeroizing::new(<[u8; 32]>::try_from(decoded.as_slice()).ok()?);
    Some(RequestKey::new(id, &secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_written_is_read() {
        let secret = Zeroizing::new([7; 32]);
        let key = parse(&render("key-1", &secret)).unwrap();
        assert_eq!(key.public_hex(), RequestKey::new("key-1", &secret).public_hex());
        for text in ["", "key-1", "key-1 AAAA", "key-1 !"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, render("key-1", &Zeroizing::new([7; 32])).as_bytes()).unwrap();
        assert!(read(file.path()).is_ok());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let failure = read(file.path()).unwrap_err();
        assert!(failure.message.contains("others may read"), "{failure}");
    }
}
