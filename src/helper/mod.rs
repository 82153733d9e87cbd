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

use std::io::Write as _;
use std::process::ExitCode;

/// Runs `prepull-helper`: its one argument is the mode.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(mode), None) if mode == "restore" => restore::run(),
        _ => {
            let _ = writeln!(std::io::stderr(), "usage: prepull-helper restore <MANIFEST");
            ExitCode::from(2)
        }
    }
}
