//! What the helper takes from itself before it reads the first byte of its input.

/// How what needs a capability is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Powers {
    /// As the process may: root without the helper.
    Own,
    /// Capabilities are permitted but not effective, and raised around one call.
    Raised,
}

impl Powers {
    /// Makes `call` with `capability`.
    pub fn with<T>(self, capability: caps::Capability, call: impl FnOnce() -> T) -> T {
        if self == Self::Own {
            return call();
        }
        let _ = caps::raise(None, caps::CapSet::Effective, capability);
        let result = call();
        let _ = caps::drop(None, caps::CapSet::Effective, capability);
        result
    }
}
/// E.
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
#[allow(missing_docs)]
pub fn begin(_: &str) -> Result<Option<std::ffi::OsString>, Error> {
    Err(Error)
}
#[allow(missing_docs)]
pub fn open_target(_: &[&super::policy::Allow]) -> Result<(usize, std::os::fd::OwnedFd), Error> {
    Err(Error)
}
#[allow(missing_docs)]
pub fn enter(_: &std::os::fd::OwnedFd, _: bool) -> Result<Powers, Error> {
    Err(Error)
}
