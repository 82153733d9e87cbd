//! JSON as Go's `encoding/json` reads and writes it.

#[cfg(feature = "front")]
mod read;
pub mod write;

#[cfg(feature = "front")]
pub use read::{Document, Error, View};
