//! Signals that ask a process to end: which of them it may handle.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Signals on which a process ends in order.
const ENDING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

/// Returns the signals on which this process is to end in order: not those that its parent has had ignored, as `nohup` does with
/// SIGHUP and a shell with SIGINT for a command in the background. These must stay ignored.
#[must_use]
pub fn ending() -> Vec<i32> {
    let ignored = ignored();
    ENDING.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// Returns the signals that this process ignores, as bits; 0 if /proc cannot be read.
fn ignored() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
