//! A trust store as Java reads it: PKCS #12 (RFC 7292) with certificates alone, without encryption
//! and without a checksum, since all of it is public and its directory is read-only.

use super::certificate::write;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const EXPLICIT: u8 = 0xa0;

/// 1.2.840.113549.1.7.1
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.12.10.1.3
const CERTIFICATE_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
/// 1.2.840.113549.1.9.22.1
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
/// 1.2.840.113549.1.9.20
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
/// 2.16.840.1.113894.746875.1.1, without which Java takes no certificate of a store for trusted.
const TRUSTED_KEY_USAGE: &[u8] =
    &[0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01];
/// 2.5.29.37.0
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// A store of these certificates.
pub(super) fn trust_store(certificates: &[Vec<u8>]) -> Vec<u8> {
    let bags: Vec<u8> = (1..).zip(certificates).flat_map(|(n, der)| bag(n, der)).collect();
    let contents = data(&write(SEQUENCE, &bags));
    let safe = data(&write(SEQUENCE, &contents));
    write(SEQUENCE, &[write(INTEGER, &[3]), safe].concat())
}

fn data(content: &[u8]) -> Vec<u8> {
    let content = write(EXPLICIT, &write(OCTETS, content));
    write(SEQUENCE, &[write(OBJECT_IDENTIFIER, DATA), content].concat())
}

fn bag(number: usize, der: &[u8]) -> Vec<u8> {
    let content = write(EXPLICIT, &write(OCTETS, der));
    let certificate = write(SEQUENCE, &[write(OBJECT_IDENTIFIER, X509), content].concat());
    let name: Vec<u8> = number.to_string().bytes().flat_map(|digit| [0, digit]).collect();
    let attributes = [
        attribute(FRIENDLY_NAME, &write(BMP_STRING, &name)),
        attribute(TRUSTED_KEY_USAGE, &write(OBJECT_IDENTIFIER, ANY_USAGE)),
    ];
    let parts = [
        write(OBJECT_IDENTIFIER, CERTIFICATE_BAG),
        write(EXPLICIT, &certificate),
        write(SET, &attributes.concat()),
    ];
    write(SEQUENCE, &parts.concat())
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    write(SEQUENCE, &[write(OBJECT_IDENTIFIER, kind), write(SET, value)].concat())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::super::certificate::decode;
    use super::*;

    /// Only where there is an OpenSSL to ask.
    #[test]
    fn openssl_reads_the_store() {
        let pem = include_str!("authority.pem");
        let der = decode(pem).remove(0);
        let store = trust_store(&[der.clone(), der.clone()]);
        let openssl = Command::new("openssl")
            .args(["pkcs12", "-nokeys", "-nomacver", "-passin", "pass:changeit"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut openssl) = openssl else { return };
        openssl.stdin.take().unwrap().write_all(&store).unwrap();
        let output = openssl.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(decode(&text), [der.clone(), der]);
        assert!(text.contains("2.16.840.1.113894.746875.1.1"), "{text}");
    }
}
