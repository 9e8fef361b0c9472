//! A typed client of the REST API.
#![forbid(unsafe_code)]
