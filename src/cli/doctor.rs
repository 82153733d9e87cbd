//! `prepull doctor`.

use super::args::DoctorArgs;
use super::{Exit, Failure};

/// Runs it.
pub fn run(_args: &DoctorArgs) -> Result<Exit, Failure> {
    Ok(Exit::Success)
}
