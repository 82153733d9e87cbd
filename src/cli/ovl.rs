//! `prepull ovl`.

use super::Failure;
use super::args::OvlArgs;
use super::output::Printer;
use crate::xcluster::write_overlay;

/// Runs it.
pub fn run(args: &OvlArgs, printer: &Printer) -> Result<(), Failure> {
    for path in write_overlay(&args.directory, args.force)? {
        printer.say(&format!("wrote {}", path.display()));
    }
    Ok(())
}
