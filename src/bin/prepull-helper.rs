//! `prepull-helper`: will apply file system entries with privilege. It does nothing yet, and says so.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Standard error may be closed; the exit code says the same.
    let _ = writeln!(
        std::io::stderr(),
        "prepull-helper: this version has no privileged operations (unpack the tar of `prepull make` as root instead)"
    );
    ExitCode::from(2)
}
