//! The containers/storage model.
pub mod go_json;
