//! What the fuzz targets have in common: how bytes become choices, archives, places and guests.
#![forbid(unsafe_code)]

pub mod choices;
pub mod guest;
pub mod place;
pub mod tar;
