//! The hash-chained record of what was decided and done.
#![forbid(unsafe_code)]
