//! Threads that there may be too many of: a limit on processes is an error like others, not a panic.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Starts a thread.
///
/// # Errors
/// When the system has none to give.
pub fn spawn<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().spawn(task).map_err(none)
}

/// Starts a thread that ends with `scope`.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    task: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, task).map_err(none)
}

fn none(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("starting a thread: {error}"))
}
