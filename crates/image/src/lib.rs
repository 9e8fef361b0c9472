//! Root images and boot assets: build, convert to EROFS, verify, cache.
#![forbid(unsafe_code)]

pub mod erofs;
pub mod tar;
