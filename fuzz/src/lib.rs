//! What the fuzz targets have in common: how bytes become choices, archives and places.
#![forbid(unsafe_code)]

pub mod choices;
pub mod place;
pub mod tar;
