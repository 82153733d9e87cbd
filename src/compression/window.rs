//! Memory for the windows of decoders: a budget that all of the process share.
//!
//! A decoder that needs a large window waits until there is room for it. Nothing that holds a share may wait for a decoder that
//! has none yet, so all other places where a conversion waits ([`crate::segment::place`]) let it pass while
//! [`is_contended`] is true. One thread that asks again while it holds a share (a compressed stream within a compressed stream)
//! never waits: it gets an error if there is no room.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::unsupported;

/// Maximum size of a window, in bytes: 512 MiB (klauspost/compress `zstd/decoder_options.go`, `MaxWindowSize`, which is
/// containers/image's limit). Also the sum of all large windows.
pub const WINDOW_MAX: u64 = 1 << 29;

/// Maximum size of a window that needs no share, in bytes (RFC 8878, section 3.1.1.1.2: every decoder should support it).
const SMALL: u64 = 8 << 20;

/// Bytes for windows, and the threads that hold shares of them.
#[derive(Debug)]
struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    taken: u64,
    holders: Vec<ThreadId>,
    waiting: usize,
}

static BUDGET: Budget = Budget::new();

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: &'static Budget,
    bytes: u64,
    holder: ThreadId,
}

impl Budget {
    const fn new() -> Self {
        let state = State { taken: 0, holders: Vec::new(), waiting: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, bytes: u64) -> io::Result<Option<Share>> {
        if bytes <= SMALL {
            return Ok(None);
        }
        if bytes > WINDOW_MAX {
            let (needed, max) = (bytes.div_ceil(1 << 20), WINDOW_MAX >> 20);
            return Err(unsupported(format!("a window of {needed} MiB, the limit is {max} MiB")));
        }
        let holder = thread::current().id();
        let mut state = self.state();
        let is_full = |state: &mut State| state.taken + bytes > WINDOW_MAX;
        if is_full(&mut state) && state.holders.contains(&holder) {
            let max = WINDOW_MAX >> 20;
            return Err(unsupported(format!("windows within windows of more than {max} MiB together")));
        }
        state.waiting += 1;
        let mut state = self.changed.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.taken += bytes;
        state.holders.push(holder);
        tracing::debug!("a window of {} MiB, {} MiB together", bytes >> 20, state.taken >> 20);
        Ok(Some(Share { budget: self, bytes, holder }))
    }
}

impl Share {
    /// The size of the share, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.taken -= self.bytes;
        if let Some(at) = state.holders.iter().position(|holder| *holder == self.holder) {
            state.holders.swap_remove(at);
        }
        self.budget.changed.notify_all();
    }
}

/// Reserves memory for a window; waits until other decoders have given back enough. `None`: it is too small to count.
///
/// # Errors
/// Of kind `Unsupported` if the window is larger than [`WINDOW_MAX`], or if this thread already holds what it would wait for.
pub fn take(bytes: u64) -> io::Result<Option<Share>> {
    BUDGET.take(bytes)
}

/// Returns whether a decoder is waiting for memory that another one holds.
#[must_use]
pub fn is_contended() -> bool {
    BUDGET.state().waiting > 0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_never_exceed_the_budget_and_nested_ones_never_wait() {
        static BUDGET: Budget = Budget::new();
        assert!(BUDGET.take(SMALL).unwrap().is_none());
        assert!(BUDGET.take(WINDOW_MAX + 1).unwrap_err().to_string().contains("513 MiB, the limit is 512 MiB"));
        let first = BUDGET.take(WINDOW_MAX - SMALL).unwrap().unwrap();
        let second = BUDGET.take(SMALL + 1).unwrap_err();
        assert!(second.to_string().contains("within"), "{second}");
        let (sender, taken) = channel();
        let other = thread::spawn(move || {
            let share = BUDGET.take(SMALL + 1).unwrap().unwrap();
            sender.send(share.bytes()).unwrap();
        });
        while BUDGET.state().waiting == 0 {
            thread::yield_now();
        }
        assert!(taken.recv_timeout(Duration::from_millis(20)).is_err());
        drop(first);
        assert_eq!(taken.recv().unwrap(), SMALL + 1);
        other.join().unwrap();
        let state = BUDGET.state();
        assert_eq!((state.taken, state.holders.len()), (0, 0));
    }
}
