//! Bodies in chunks, in any pieces.

mod sdk;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use sdk::{now, placeholder};
use sigv4::{Body, Chunked, ChunkedError, Error, Framer, Inbound, Payload, Request, Trailers};

const SCOPE: &str = "20261121/eu-central-1/s3";
const CHECKSUM: (&str, &str) = ("x-amz-checksum-crc32", "AAAAAA==");
const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
const UNSIGNED: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

fn request(headers: &HeaderMap) -> Request<'_> {
    Request {
        method: "PUT",
        host: "bucket.s3.eu-central-1.amazonaws.com",
        path: "/key",
        query: "",
        headers,
    }
}

/// Headers of a body in chunks, and the signature that the chunks begin with.
fn announced(payload: &str, more: &[(&str, &str)]) -> (HeaderMap, String) {
    let mut headers = sdk::headers(more);
    headers.insert("x-amz-date", sdk::STAMP.parse().unwrap());
    headers.insert("x-amz-content-sha256", payload.parse().unwrap());
    let (authorization, signature) = sdk::authorization(SCOPE, &request(&headers), payload);
    headers.insert("authorization", authorization.parse().unwrap());
    (headers, signature)
}

fn decoder(headers: &HeaderMap) -> Result<Chunked, Error> {
    match Inbound::parse(request(headers))?.unwrap().verify(&placeholder(), None, now())? {
        Body::Chunked(chunked) => Ok(*chunked),
        other => panic!("{other:?}"),
    }
}

/// A decoder of a body of this length, with a checksum after it where there is a trailer.
fn decoder_for(payload: &str, length: usize) -> (Chunked, String) {
    let length = length.to_string();
    let mut more = vec![("x-amz-decoded-content-length", length.as_str())];
    if payload.ends_with("TRAILER") {
        more.push(("x-amz-trailer", CHECKSUM.0));
    }
    let (headers, seed) = announced(payload, &more);
    (decoder(&headers).unwrap(), seed)
}

/// What came out, and how it ended.
fn decode(mut decoder: Chunked, pieces: &[&[u8]]) -> (Vec<u8>, Result<Trailers, ChunkedError>) {
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = decoder.push(piece, &mut out) {
            assert_eq!(decoder.push(b"more", &mut out), Err(error));
            return (out, Err(error));
        }
    }
    let end = decoder.finish(&mut out);
    (out, end)
}

fn checksum() -> Trailers {
    vec![(HeaderName::from_static(CHECKSUM.0), HeaderValue::from_static(CHECKSUM.1))]
}

/// An unsigned body of `hello`, with something changed.
fn unsigned(from: &str, to: &str) -> Result<Trailers, ChunkedError> {
    let body = "3\r\nhel\r\n2\r\nlo\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    assert!(body.contains(from));
    let body = body.replacen(from, to, 1);
    let (out, end) = decode(decoder_for(UNSIGNED, 5).0, &[body.as_bytes()]);
    assert_eq!(end.is_ok(), out == b"hello", "a body that is refused is never complete");
    end
}

#[test]
fn unsigned_chunks_are_read_strictly() {
    assert_eq!(unsigned("hel", "hel"), Ok(checksum()));
    assert_eq!(unsigned("crc32:", "crc32: "), Ok(checksum()));
    for (from, to, error) in [
        ("3\r\n", "3\n", ChunkedError::Line),
        ("3\r\n", "+3\r\n", ChunkedError::Line),
        ("3\r\n", "0x3\r\n", ChunkedError::Line),
        ("3\r\n", "03\r\n", ChunkedError::Line),
        ("3\r\n", " 3\r\n", ChunkedError::Line),
        ("3\r\n", "3 \r\n", ChunkedError::Line),
        ("3\r\n", "3;a=b\r\n", ChunkedError::Line),
        ("3\r\n", "\r\n3\r\n", ChunkedError::Line),
        ("3\r\n", "ffffffffffffffff\r\n", ChunkedError::Length),
        ("3\r\n", "10000000000000000\r\n", ChunkedError::Line),
        ("hel\r\n", "hel\n", ChunkedError::Line),
        ("hel\r\n", "helx\r\n", ChunkedError::Line),
        ("3\r\nhel\r\n", "", ChunkedError::Length),
        ("2\r\nlo", "3\r\nloo", ChunkedError::Length),
        ("0\r\n", "", ChunkedError::Line),
        ("x-amz-checksum-crc32:AAAAAA==\r\n", "", ChunkedError::Trailer),
        ("crc32:", "sha1:", ChunkedError::Trailer),
        ("x-amz-checksum-crc32:", "authorization:", ChunkedError::Trailer),
        ("crc32:", "crc32 :", ChunkedError::Line),
        ("==\r\n", "==\n", ChunkedError::Line),
        ("==\r\n", "==\r\nx-amz-checksum-crc32:BAAAAA==\r\n", ChunkedError::Trailer),
        ("==\r\n", "==\r\nx-amz-trailer-signature:00\r\n", ChunkedError::Trailer),
        ("==\r\n\r\n", "==\r\n", ChunkedError::Truncated),
        ("==\r\n\r\n", "==\r\n\r\nx", ChunkedError::Surplus),
    ] {
        assert_eq!(unsigned(from, to), Err(error), "{from:?} -> {to:?}");
    }
    assert_eq!(unsigned("3\r\n", &format!("{}\r\n", "0".repeat(300))), Err(ChunkedError::LongLine));
    assert_eq!(unsigned("AA", &"A".repeat(300)), Err(ChunkedError::LongLine));
}

#[test]
fn what_announces_chunks_is_read_strictly() {
    let length = ("x-amz-decoded-content-length", "5");
    let new = |payload: &str, more: &[(&str, &str)]| match decoder(&announced(payload, more).0) {
        Ok(_) => Ok(()),
        Err(Error::Chunked(error)) => Err(error),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(new(SIGNED, &[length]), Ok(()));
    assert_eq!(new(SIGNED, &[]), Err(ChunkedError::DecodedLength));
    assert_eq!(new(SIGNED, &[length, length]), Err(ChunkedError::DecodedLength));
    for wrong in ["", "-1", "+5", "05", "5 5", "0x5", "99999999999999999999"] {
        let wrong = ("x-amz-decoded-content-length", wrong);
        assert_eq!(new(SIGNED, &[wrong]), Err(ChunkedError::DecodedLength), "{wrong:?}");
    }
    assert_eq!(
        new(SIGNED, &[length, ("x-amz-trailer", CHECKSUM.0)]),
        Err(ChunkedError::TrailerNames)
    );
    for wrong in ["", "authorization", "x-amz-acl", "x-amz-checksum-a,x-amz-checksum-a"] {
        let wrong = ("x-amz-trailer", wrong);
        assert_eq!(new(UNSIGNED, &[length, wrong]), Err(ChunkedError::TrailerNames), "{wrong:?}");
    }
}

#[test]
fn chunks_are_a_chain() {
    let (decoder, seed) = decoder_for(SIGNED, 9);
    let body = sdk::signed_chunks(SCOPE, &seed, &[b"one", b"two", b"six"], None);
    let lines: Vec<&[u8]> = body.split_inclusive(|&byte| byte == b'\n').collect();
    assert_eq!(decode(decoder, &lines), (b"onetwosix".to_vec(), Ok(vec![])));
    // Two chunks in each other's place, with their own signatures.
    let swapped = [lines[2], lines[3], lines[0], lines[1], lines[4], lines[5], lines[6], lines[7]];
    let (decoder, _) = decoder_for(SIGNED, 9);
    assert_eq!(decode(decoder, &swapped).1, Err(ChunkedError::Signature));
    // The chunks of another request.
    let (decoder, _) = decoder_for(SIGNED, 9);
    let other = sdk::signed_chunks(SCOPE, &"0".repeat(64), &[b"one", b"two", b"six"], None);
    assert_eq!(decode(decoder, &[&other]).1, Err(ChunkedError::Signature));
}

#[test]
fn signed_chunks_and_trailers_cannot_do_without_their_signatures() {
    let (decoder, _) = decoder_for(SIGNED, 3);
    assert_eq!(decode(decoder, &[b"3\r\none\r\n0\r\n\r\n"]).1, Err(ChunkedError::Line));
    let (decoder, seed) = decoder_for(SIGNED_TRAILER, 3);
    let body = sdk::signed_chunks(SCOPE, &seed, &[b"one"], Some(CHECKSUM));
    let text = String::from_utf8(body).unwrap();
    let without = &text[..text.find("x-amz-trailer-signature").unwrap()];
    let without = format!("{without}\r\n");
    let (out, end) = decode(decoder, &[without.as_bytes()]);
    assert_eq!((&out[..], end), (&b"on"[..], Err(ChunkedError::Trailer)));
}

#[test]
fn an_empty_body_is_one() {
    for (payload, trailer) in [(SIGNED, None), (SIGNED_TRAILER, Some(CHECKSUM))] {
        let (decoder, seed) = decoder_for(payload, 0);
        let body = sdk::signed_chunks(SCOPE, &seed, &[], trailer);
        let expected = trailer.map_or_else(Vec::new, |_| checksum());
        assert_eq!(decode(decoder, &[&body]), (vec![], Ok(expected)));
    }
}

#[test]
fn headers_are_made_those_of_what_is_sent_on() {
    let common = [
        ("x-amz-decoded-content-length", "5"),
        ("content-length", "99"),
        ("content-encoding", "aws-chunked, gzip"),
        ("x-amz-meta-a", "b"),
    ];
    let (headers, _) = announced(SIGNED, &common);
    let mut sent = sdk::headers(&common);
    let decoder = decoder(&headers).unwrap();
    assert_eq!((decoder.forward(&mut sent), decoder.decoded_length()), (Payload::Unsigned, 5));
    let expected = [("content-length", "5"), ("content-encoding", "gzip"), ("x-amz-meta-a", "b")];
    assert_eq!(sent, sdk::headers(&expected));

    let with_trailer: Vec<_> = common.into_iter().chain([("x-amz-trailer", CHECKSUM.0)]).collect();
    let (headers, _) = announced(UNSIGNED, &with_trailer);
    let mut sent = sdk::headers(&with_trailer);
    let decoder = self::decoder(&headers).unwrap();
    assert_eq!(decoder.forward(&mut sent), Payload::StreamingUnsignedTrailer);
    let mut expected = sdk::headers(&with_trailer);
    expected.remove("content-length");
    assert_eq!(sent, expected);
}

#[test]
fn frames_are_large_enough_for_s3() {
    let mut framer = Framer::new();
    let mut out = Vec::new();
    for piece in vec![7; 200_000].chunks(777) {
        framer.push(piece, &mut out);
    }
    framer.finish(&checksum(), &mut out);
    assert!(out.starts_with(b"10000\r\n\x07"));
    assert!(out.ends_with(b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"));
    let (decoder, _) = decoder_for(UNSIGNED, 200_000);
    assert_eq!(decode(decoder, &[&out]), (vec![7; 200_000], Ok(checksum())));
}

/// Cuts `bytes` wherever these say.
fn cut<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = at.iter().map(|index| index.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn body() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let chunk = prop::collection::vec(any::<u8>(), 1..40);
    prop::collection::vec(chunk, 0..5)
}

proptest! {
    #[test]
    fn however_it_is_cut_it_is_the_same(
        chunks in body(),
        has_trailer: bool,
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        change in prop::option::of((any::<prop::sample::Index>(), 1..=255_u8)),
    ) {
        let whole = chunks.concat();
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let payload = if has_trailer { SIGNED_TRAILER } else { SIGNED };
        let trailer = has_trailer.then_some(CHECKSUM);
        let (decoder, seed) = decoder_for(payload, whole.len());
        let mut body = sdk::signed_chunks(SCOPE, &seed, &chunks, trailer);
        if let Some((index, bits)) = change {
            let at = index.index(body.len());
            body[at] ^= bits;
        }
        let at_once = decode(decoder, &[&body]);
        let in_pieces = decode(decoder_for(payload, whole.len()).0, &cut(&body, &at));
        prop_assert_eq!(&in_pieces, &at_once);
        if change.is_none() {
            prop_assert_eq!(at_once, (whole, Ok(trailer.map_or_else(Vec::new, |_| checksum()))));
        }
    }

    #[test]
    fn no_byte_of_signed_chunks_can_be_changed(
        chunks in body(),
        has_trailer: bool,
        index in any::<prop::sample::Index>(),
        bits in 1..=255_u8,
    ) {
        let whole = chunks.concat();
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let payload = if has_trailer { SIGNED_TRAILER } else { SIGNED };
        let (decoder, seed) = decoder_for(payload, whole.len());
        let mut body = sdk::signed_chunks(SCOPE, &seed, &chunks, has_trailer.then_some(CHECKSUM));
        let at = index.index(body.len());
        let before = body[at];
        body[at] ^= bits;
        let (out, end) = decode(decoder, &[&body]);
        // A size or a name may be written in capitals; it is the same one.
        if end.is_ok() {
            prop_assert!(before.eq_ignore_ascii_case(&body[at]));
            prop_assert_eq!(out, whole);
        } else {
            prop_assert!(out.len() < whole.len() || whole.is_empty());
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_framed_is_read_again(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..4),
    ) {
        let (mut framer, mut out) = (Framer::new(), Vec::new());
        for piece in &pieces {
            framer.push(piece, &mut out);
        }
        framer.finish(&checksum(), &mut out);
        let whole = pieces.concat();
        let (decoder, _) = decoder_for(UNSIGNED, whole.len());
        prop_assert_eq!(decode(decoder, &[&out]), (whole, Ok(checksum())));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_grow(body: Vec<u8>, is_signed: bool) {
        let (mut decoder, _) = decoder_for(if is_signed { SIGNED } else { UNSIGNED }, 10);
        let mut out = Vec::new();
        let _ = decoder.push(&body, &mut out);
        prop_assert!(out.len() <= 10);
    }
}
