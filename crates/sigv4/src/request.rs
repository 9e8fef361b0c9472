//! What is signed of a request, in the one form that both sides compute.

use std::fmt;

use http::{HeaderMap, HeaderName, header};
use sha2::{Digest as _, Sha256};

use crate::percent;
use crate::scope::Scope;

/// Why a request has no such form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It does not begin with `/`.
    #[error("the path does not begin with `/`")]
    Path,
    /// In the path or the query.
    #[error("the path or the query has a `%` without two hexadecimal digits")]
    Escape,
    /// A header that is to be signed.
    #[error("the header {0} is signed and is not there")]
    Missing(HeaderName),
    /// The header `host` and the authority.
    #[error("the header host is not the host of the request, or is there twice")]
    Host,
}

/// A request as it came, or as it is about to be sent.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// `GET`.
    pub method: &'a str,
    /// The value of `host`, or `:authority` in HTTP/2, to the letter.
    pub host: &'a str,
    /// The path as it is on the wire.
    pub path: &'a str,
    /// What follows the `?` on the wire; empty without one.
    pub query: &'a str,
    /// The headers. Where `host` is among them, it has to say the same.
    pub headers: &'a HeaderMap,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Queries and headers have tokens.
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Request<'_> {
    /// The hash of the canonical request. `payload` is what stands for the body.
    pub(crate) fn hash(
        &self,
        scope: &Scope,
        signed: &[HeaderName],
        payload: &[u8],
    ) -> Result<[u8; 32], FormError> {
        // Hashed as it is made, so that no copy of a token stays behind.
        let mut hash = Sha256::new();
        self.write(scope, signed, payload, &mut |bytes| hash.update(bytes))?;
        Ok(hash.finalize().into())
    }

    fn write(
        &self,
        scope: &Scope,
        signed: &[HeaderName],
        payload: &[u8],
        out: &mut impl FnMut(&[u8]),
    ) -> Result<(), FormError> {
        out(self.method.as_bytes());
        out(b"\n");
        let path = match scope.is_s3() {
            true => encoded_once(self.path)?,
            false => encoded_twice(self.path)?,
        };
        out(path.as_bytes());
        out(b"\n");
        out(query(self.query)?.as_bytes());
        out(b"\n");
        for name in signed {
            out(name.as_str().as_bytes());
            out(b":");
            self.write_values(name, out)?;
            out(b"\n");
        }
        out(b"\n");
        write_names(signed, out);
        out(b"\n");
        out(payload);
        Ok(())
    }

    fn write_values(
        &self,
        name: &HeaderName,
        out: &mut impl FnMut(&[u8]),
    ) -> Result<(), FormError> {
        let mut values = self.headers.get_all(name).iter();
        if *name == header::HOST {
            let is_other = |value: &http::HeaderValue| value != self.host;
            if values.next().is_some_and(is_other) || values.next().is_some() {
                return Err(FormError::Host);
            }
            write_value(self.host.as_bytes(), out);
            return Ok(());
        }
        let first = values.next().ok_or_else(|| FormError::Missing(name.clone()))?;
        write_value(first.as_bytes(), out);
        for value in values {
            out(b",");
            write_value(value.as_bytes(), out);
        }
        Ok(())
    }
}

/// `a;b;c`.
pub(crate) fn write_names(names: &[HeaderName], out: &mut impl FnMut(&[u8])) {
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out(b";");
        }
        out(name.as_str().as_bytes());
    }
}

/// Without space around it, and with one where there were several.
fn write_value(value: &[u8], out: &mut impl FnMut(&[u8])) {
    let words = value.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            out(b" ");
        }
        out(word);
    }
}

/// As S3 has it: every key is what it says, dots and empty segments too.
fn encoded_once(path: &str) -> Result<String, FormError> {
    let rest = path.strip_prefix('/').ok_or(FormError::Path)?;
    let mut text = String::with_capacity(path.len() + 16);
    text.push('/');
    for step in percent::decoded(rest) {
        match step.ok_or(FormError::Escape)? {
            // To S3 an encoded one is the same.
            (b'/', _) => text.push('/'),
            (byte, _) => percent::push(&mut text, byte),
        }
    }
    Ok(text)
}

/// As all others have it: what is on the wire is encoded once more, and the segments are folded.
fn encoded_twice(path: &str) -> Result<String, FormError> {
    let rest = path.strip_prefix('/').ok_or(FormError::Path)?;
    let mut segments: Vec<&str> = Vec::new();
    for segment in rest.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut text = String::with_capacity(path.len() + 16);
    for segment in &segments {
        text.push('/');
        segment.bytes().for_each(|byte| percent::push(&mut text, byte));
    }
    if segments.is_empty() || rest.ends_with('/') {
        text.push('/');
    }
    Ok(text)
}

/// Sorted, without the signature itself.
fn query(query: &str) -> Result<String, FormError> {
    let mut pairs = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let key = percent::query_word(key).ok_or(FormError::Escape)?;
        if key == b"X-Amz-Signature" {
            continue;
        }
        let value = percent::query_word(value).ok_or(FormError::Escape)?;
        pairs.push((encoded(&key), encoded(&value)));
    }
    pairs.sort_unstable();
    let mut text = String::with_capacity(query.len() + 16);
    for (index, (key, value)) in pairs.iter().enumerate() {
        if index > 0 {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    Ok(text)
}

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    bytes.iter().for_each(|&byte| percent::push(&mut text, byte));
    text
}
