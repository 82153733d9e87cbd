//! JSON as Go's `encoding/json` reads and writes it.

mod read;
pub mod write;

pub(crate) use read::shown;
pub use read::{DEPTH_MAX, Document, Error, Kind, Raw, View, is_key};
