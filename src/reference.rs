//! What the user typed, and what it means: references as Docker and containers/image write them.

/// A named image reference, normalised as containers/image does (`docker.io/library/…`), with at least a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {}
