//! `prepull mount`: the store that `make` would write, live over FUSE.
//!
//! ```text
//!  prepull mount (front)                keeper                          worker
//!  images ▶ plan ▶ segments ▶ Scene ──▶ holds /dev/fuse and all files ─▶ Scene ▶ View ◀─▶ kernel
//!   `mount add`, `rm` ─▶ [`relay`] ───▶ and looks into none of them  ◀── errors
//! ```
//!
//! Where root mounts, the front starts the keeper, or the relay, while it still has root's privileges, and tells it what was
//! typed: the mount point, the options, and where layers may come from. Then the front gives up these privileges (`confine`),
//! and only then does it fetch and parse. All that it hands over afterwards is a scene and open files, which only a worker
//! parses. A front that an image has taken over reaches neither the privileges of the keeper nor those of the relay, and can
//! add no source that the user has not typed.
//!
//! The worker does all that can go wrong with strangers' bytes, and may die at any time: the keeper, which has the descriptor of
//! the mount, starts another one, and the kernel sends it again what had not been answered.
//!
//! [`wire`] parses the kernel's requests without the crate fuser, which cannot take over a mount: docs/decisions/0002-fuse-without-fuser.md.

pub mod attach;
pub mod control;
pub mod keeper;
pub mod kept;
pub mod layer;
pub mod relay;
pub mod scene;
pub mod serve;
pub mod storage_conf;
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
