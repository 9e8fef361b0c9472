//! REST types, problem codes and the OpenAPI document.
#![forbid(unsafe_code)]
