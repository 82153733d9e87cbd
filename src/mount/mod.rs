//! `prepull mount`: the store that `make` would write, live over FUSE.
//!
//! ```text
//!  prepull mount (front)                keeper                          worker
//!  images ▶ plan ▶ segments ▶ Scene ──▶ holds /dev/fuse and all files ─▶ Scene ▶ View ◀─▶ kernel
//!              `mount add`, `rm` ─────▶ and looks into none of them  ◀── errors
//! ```
//!
//! The worker does all that can go wrong with strangers' bytes, and may die at any time: the keeper, which has the descriptor of
//! the mount, starts another one, and the kernel sends it again what had not been answered.

pub mod attach;
pub mod channel;
pub mod keeper;
pub mod layer;
pub mod scene;
pub mod serve;
pub mod view;
pub mod wire;
pub mod worker;

use std::fmt::Display;
use std::io;

/// Why something cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer cannot be had.
    #[error(transparent)]
    Make(#[from] crate::make::Error),
    /// The tar is no good.
    #[error("{0}: {1}")]
    Tar(String, crate::inspect::find::Error),
    /// The files are not those of the scene: they have been changed since.
    #[error("what is to be shown has been damaged meanwhile")]
    Scene,
    /// A layer's list of files is not what it was.
    #[error("layer {0} has been damaged meanwhile: its files cannot be read")]
    Layer(String),
    /// Whatever else.
    #[error("{0}")]
    Other(String),
}

impl Error {
    fn system(doing: impl Display, error: impl Into<io::Error>) -> Self {
        Self::Other(format!("{doing}: {}", error.into()))
    }
}
