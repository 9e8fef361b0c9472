//! The first bytes of a TLS connection: the name in them is the same however they were cut, and is a
//! host or refused.
#![no_main]

use canonical::Host;
use libfuzzer_sys::fuzz_target;

/// The name that is read; `Err` for what is none, or not all.
fn name(bytes: &[u8], size: usize) -> Result<Option<String>, ()> {
    let mut acceptor = rustls::server::Acceptor::default();
    for piece in bytes.chunks(size) {
        let mut rest = piece;
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).map_err(drop)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    return Ok(accepted.client_hello().server_name().map(str::to_owned));
                }
                Ok(None) => {}
                Err(_) => return Err(()),
            }
        }
    }
    Err(())
}

fuzz_target!(|input: &[u8]| {
    let Some((&size, bytes)) = input.split_first() else { return };
    let whole = name(bytes, usize::MAX >> 1);
    assert_eq!(whole, name(bytes, usize::from(size).max(1)));
    let Ok(Some(text)) = whole else { return };
    if let Ok(host) = Host::parse(&text) {
        assert_eq!(host.to_string(), text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase());
    }
});
