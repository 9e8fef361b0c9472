//! Bodies in chunks within the body, as S3's clients send them (`aws-chunked`).
//!
//! Each chunk is its size in hexadecimal, `;chunk-signature=` and a signature where chunks are signed,
//! CR LF, its bytes, CR LF. The last has the size 0, and headers may follow it. A signature is of the one
//! before and the chunk's bytes, so that they are a chain, which begins with that of the request.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::key::SigningKey;
use crate::signer::Payload;
use crate::{EMPTY, X_AMZ_DECODED_CONTENT_LENGTH, X_AMZ_TRAILER, hex};

/// Longest line, in bytes: 16 digits, `;chunk-signature=` and a signature are less; a checksum too.
const MAX_LINE: usize = 256;
/// Most headers after the last chunk.
const MAX_TRAILERS: usize = 8;
const SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// Why a body in chunks is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkedError {
    /// It has to be there, once, as a plain number.
    #[error("a body in chunks needs one header x-amz-decoded-content-length, a number")]
    DecodedLength,
    /// It says what follows the last chunk.
    #[error(
        "the header x-amz-trailer does not name up to {MAX_TRAILERS} headers that may follow a body"
    )]
    TrailerNames,
    /// A line that is neither a size nor a header, or does not end as it should.
    #[error("a line of the body's chunks is not of the form that AWS documents")]
    Line,
    /// Bounded, since it is held.
    #[error("a line of the body's chunks is longer than {MAX_LINE} bytes")]
    LongLine,
    /// The chunks have another length than was said, or than was signed.
    #[error("the body's chunks do not have the length that x-amz-decoded-content-length says")]
    Length,
    /// A chunk was changed, left out or moved.
    #[error("the signature of a chunk does not verify")]
    Signature,
    /// What follows the last chunk is not what was announced.
    #[error("what follows the body's last chunk is not what x-amz-trailer says")]
    Trailer,
    /// The body ends before its last chunk.
    #[error("the body ends before its last chunk")]
    Truncated,
    /// The body goes on after its end.
    #[error("the body goes on after its last chunk")]
    Surplus,
}

/// The headers after the last chunk, in their order, without the signature of them.
pub type Trailers = Vec<(HeaderName, HeaderValue)>;

/// Signatures of which each covers the one before.
pub(crate) struct Chain {
    key: SigningKey,
    stamp: String,
    scope: String,
    last: [u8; 64],
}

impl Chain {
    pub(crate) fn new(key: SigningKey, stamp: &str, scope: String, seed: [u8; 64]) -> Self {
        Self { key, stamp: stamp.into(), scope, last: seed }
    }

    fn chunk(&mut self, data: &[u8; 32], signature: [u8; 64]) -> Result<(), ChunkedError> {
        let data = [hex::text(&EMPTY), hex::text(data)].join("\n");
        self.verify("AWS4-HMAC-SHA256-PAYLOAD", &data, signature)
    }

    fn trailer(&mut self, lines: &[u8; 32], signature: [u8; 64]) -> Result<(), ChunkedError> {
        self.verify("AWS4-HMAC-SHA256-TRAILER", &hex::text(lines), signature)
    }

    fn verify(&mut self, kind: &str, what: &str, given: [u8; 64]) -> Result<(), ChunkedError> {
        let last: String = self.last.map(char::from).iter().collect();
        let (stamp, scope) = (&self.stamp, &self.scope);
        let signature = self.key.sign(&[kind, "\n", stamp, "\n", scope, "\n", &last, "\n", what]);
        if !bool::from(signature.ct_eq(&given)) {
            return Err(ChunkedError::Signature);
        }
        self.last = given;
        Ok(())
    }
}

/// Takes the chunks off a body, in whatever pieces it comes, and verifies them.
///
/// The body's last byte is held back until its end has come and everything is verified: whoever sends on
/// what comes out cannot have sent a complete body that turns out to be another one.
pub struct Chunked {
    state: State,
    /// `None` where chunks are not signed.
    chain: Option<Chain>,
    /// What may follow the last chunk.
    expected: Vec<HeaderName>,
    has_trailer: bool,
    trailers: Trailers,
    trailer_hash: Sha256,
    trailer_signature: Option<[u8; 64]>,
    /// The chunk that is being read.
    chunk_hash: Sha256,
    chunk_signature: Option<[u8; 64]>,
    line: Vec<u8>,
    decoded: u64,
    /// Of the body, not yet announced by a chunk.
    left: u64,
    held: Option<u8>,
}

impl std::fmt::Debug for Chunked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunked").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    AfterData,
    Trailer,
    End,
    Failed(ChunkedError),
}

impl Chunked {
    pub(crate) fn new(
        chain: Option<Chain>,
        has_trailer: bool,
        headers: &HeaderMap,
    ) -> Result<Self, ChunkedError> {
        let decoded = decoded_length(headers)?;
        let expected = trailer_names(headers)?;
        if !has_trailer && !expected.is_empty() {
            return Err(ChunkedError::TrailerNames);
        }
        Ok(Self {
            state: State::Size,
            chain,
            expected,
            has_trailer,
            trailers: Vec::new(),
            trailer_hash: Sha256::new(),
            trailer_signature: None,
            chunk_hash: Sha256::new(),
            chunk_signature: None,
            line: Vec::new(),
            decoded,
            left: decoded,
            held: None,
        })
    }

    /// The length of the body without its chunks.
    pub fn decoded_length(&self) -> u64 {
        self.decoded
    }

    /// Makes the headers those of what is sent on, and tells how it is signed. Where nothing follows
    /// the last chunk that is the body alone, with its length. Otherwise the body is sent in chunks
    /// again, unsigned ones (see [`Framer`](crate::Framer)), and has no `content-length`.
    pub fn forward(&self, headers: &mut HeaderMap) -> Payload {
        headers.remove(header::CONTENT_LENGTH);
        if !self.expected.is_empty() {
            return Payload::StreamingUnsignedTrailer;
        }
        headers.insert(header::CONTENT_LENGTH, self.decoded.into());
        headers.remove(X_AMZ_DECODED_CONTENT_LENGTH);
        headers.remove(X_AMZ_TRAILER);
        let encodings: Vec<HeaderValue> =
            headers.get_all(header::CONTENT_ENCODING).iter().filter_map(without_chunked).collect();
        headers.remove(header::CONTENT_ENCODING);
        for encoding in encodings {
            headers.append(header::CONTENT_ENCODING, encoding);
        }
        Payload::Unsigned
    }

    /// Takes the next piece, and adds the bytes of the body in it to `out`. After an error nothing of
    /// the body may be sent any more, and every call gives the same error.
    ///
    /// # Errors
    /// `ChunkedError`.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ChunkedError> {
        self.take(piece, out).inspect_err(|error| self.state = State::Failed(*error))
    }

    fn take(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), ChunkedError> {
        while !piece.is_empty() {
            match self.state {
                State::Failed(error) => return Err(error),
                State::End => return Err(ChunkedError::Surplus),
                State::Data(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                    let (data, rest) = piece.split_at(here);
                    piece = rest;
                    self.data(data, out);
                    self.state = match left - data.len() as u64 {
                        0 => State::AfterData,
                        left => State::Data(left),
                    };
                }
                State::Size | State::AfterData | State::Trailer => {
                    let end = piece.iter().position(|&byte| byte == b'\n');
                    let (part, rest) = piece.split_at(end.map_or(piece.len(), |end| end + 1));
                    piece = rest;
                    if self.line.len() + part.len() > MAX_LINE {
                        return Err(ChunkedError::LongLine);
                    }
                    self.line.extend_from_slice(part);
                    if end.is_some() {
                        let line = std::mem::take(&mut self.line);
                        let text = line.strip_suffix(b"\r\n").ok_or(ChunkedError::Line)?;
                        let text = str::from_utf8(text).map_err(|_| ChunkedError::Line)?;
                        self.state = self.line(text)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The body's end. Adds what was held back to `out`, and gives what followed the last chunk.
    ///
    /// # Errors
    /// `ChunkedError::Truncated`, or what [`push`](Self::push) gave.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<Trailers, ChunkedError> {
        match self.state {
            State::End => {
                out.extend(self.held);
                Ok(self.trailers)
            }
            State::Failed(error) => Err(error),
            _ => Err(ChunkedError::Truncated),
        }
    }

    fn data(&mut self, data: &[u8], out: &mut Vec<u8>) {
        if self.chain.is_some() {
            self.chunk_hash.update(data);
        }
        let Some((&last, before)) = data.split_last() else { return };
        out.extend(self.held.replace(last));
        out.extend_from_slice(before);
    }

    /// Takes a line, and tells what follows it.
    fn line(&mut self, line: &str) -> Result<State, ChunkedError> {
        match self.state {
            State::Size => self.size(line),
            State::AfterData if line.is_empty() => self.end_chunk().map(|()| State::Size),
            State::Trailer if line.is_empty() => {
                self.end_trailer()?;
                Ok(State::End)
            }
            State::Trailer if self.has_trailer => self.trailer(line).map(|()| State::Trailer),
            _ => Err(ChunkedError::Line),
        }
    }

    fn size(&mut self, line: &str) -> Result<State, ChunkedError> {
        let digits = match (line.split_once(SIGNATURE), &self.chain) {
            (Some((digits, signature)), Some(_)) => {
                let signature = hex::checked(signature.as_bytes()).ok_or(ChunkedError::Line)?;
                self.chunk_signature = Some(signature);
                digits
            }
            (None, None) => line,
            _ => return Err(ChunkedError::Line),
        };
        let size = size(digits).ok_or(ChunkedError::Line)?;
        self.left = self.left.checked_sub(size).ok_or(ChunkedError::Length)?;
        if size > 0 {
            return Ok(State::Data(size));
        }
        if self.left > 0 {
            return Err(ChunkedError::Length);
        }
        self.end_chunk()?;
        Ok(State::Trailer)
    }

    fn end_chunk(&mut self) -> Result<(), ChunkedError> {
        let Some(chain) = &mut self.chain else { return Ok(()) };
        let signature = self.chunk_signature.take().ok_or(ChunkedError::Signature)?;
        let hash = std::mem::take(&mut self.chunk_hash).finalize().into();
        chain.chunk(&hash, signature)
    }

    fn trailer(&mut self, line: &str) -> Result<(), ChunkedError> {
        let (name, value) = line.split_once(':').ok_or(ChunkedError::Line)?;
        let value = value.trim_matches(' ');
        if self.trailer_signature.is_some() {
            // It is the last.
            return Err(ChunkedError::Trailer);
        }
        if name.eq_ignore_ascii_case(TRAILER_SIGNATURE) && self.chain.is_some() {
            let signature = hex::checked(value.as_bytes()).ok_or(ChunkedError::Line)?;
            self.trailer_signature = Some(signature);
            return Ok(());
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ChunkedError::Line)?;
        let value = HeaderValue::from_str(value).map_err(|_| ChunkedError::Line)?;
        let is_new = self.trailers.iter().all(|(earlier, _)| *earlier != name);
        if !is_new || !self.expected.contains(&name) {
            return Err(ChunkedError::Trailer);
        }
        for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"] {
            self.trailer_hash.update(part);
        }
        self.trailers.push((name, value));
        Ok(())
    }

    fn end_trailer(&mut self) -> Result<(), ChunkedError> {
        if self.trailers.len() != self.expected.len() {
            return Err(ChunkedError::Trailer);
        }
        if let Some(chain) = self.chain.as_mut().filter(|_| self.has_trailer) {
            let signature = self.trailer_signature.ok_or(ChunkedError::Trailer)?;
            let hash = std::mem::take(&mut self.trailer_hash).finalize().into();
            chain.trailer(&hash, signature)?;
        }
        Ok(())
    }
}

/// Hexadecimal, without a sign, a prefix or zeros in front.
fn size(digits: &str) -> Option<u64> {
    let is_plain = (1..=16).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (digits == "0" || !digits.starts_with('0'));
    is_plain.then(|| u64::from_str_radix(digits, 16).ok())?
}

fn decoded_length(headers: &HeaderMap) -> Result<u64, ChunkedError> {
    let mut values = headers.get_all(X_AMZ_DECODED_CONTENT_LENGTH).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ChunkedError::DecodedLength);
    };
    let digits = value.to_str().map_err(|_| ChunkedError::DecodedLength)?;
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    match digits.parse() {
        Ok(length) if is_plain => Ok(length),
        _ => Err(ChunkedError::DecodedLength),
    }
}

/// Checksums: nothing that would change what a request means.
fn trailer_names(headers: &HeaderMap) -> Result<Vec<HeaderName>, ChunkedError> {
    let mut names = Vec::new();
    for value in headers.get_all(X_AMZ_TRAILER) {
        for name in value.to_str().map_err(|_| ChunkedError::TrailerNames)?.split(',') {
            let name = HeaderName::from_bytes(name.trim_matches(' ').as_bytes())
                .map_err(|_| ChunkedError::TrailerNames)?;
            let is_checksum = name.as_str().starts_with("x-amz-checksum-");
            if !is_checksum || names.contains(&name) || names.len() >= MAX_TRAILERS {
                return Err(ChunkedError::TrailerNames);
            }
            names.push(name);
        }
    }
    Ok(names)
}

/// `aws-chunked, gzip` is `gzip` when the chunks are off.
fn without_chunked(value: &HeaderValue) -> Option<HeaderValue> {
    let Ok(text) = value.to_str() else { return Some(value.clone()) };
    let is_other = |word: &&str| !word.eq_ignore_ascii_case("aws-chunked") && !word.is_empty();
    let rest: Vec<&str> = text.split(',').map(str::trim).filter(is_other).collect();
    if rest.is_empty() { None } else { HeaderValue::from_str(&rest.join(",")).ok() }
}
