//! Distribution API client.
/// placeholder
#[derive(Debug, thiserror::Error)]
#[error("registry")]
pub struct Error;
