//! The privileged side: applies entries to a file system that its caller may not write to, and trusts nothing that it is sent.
//!
//! ```text
//!  prepull (the user)                       prepull-helper (root, four capabilities, inside the target)
//!  images ─▶ segments ─▶ canonical tar ─────▶ wire::read ─▶ apply ─▶ staging ─▶ store ─▶ published by rename
//!          one line of JSON ◀───────────────────────────────────────────────────┘
//! ```

pub mod caller;
pub mod confine;
pub mod policy;
pub mod restore;

use std::process::ExitCode;

/// Runs `prepull-helper`.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
