//! `prepull-helper`: applies file system entries with privilege. See [`prepull::helper`].

use std::process::ExitCode;

fn main() -> ExitCode {
    prepull::helper::main()
}
