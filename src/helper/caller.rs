//! Who asks.
/// E.
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
/// C.
#[derive(Debug)]
pub struct Caller {
    /// u
    pub uid: u32,
}
/// i
pub fn identify(_: Option<&std::ffi::OsStr>) -> Result<Caller, Error> {
    Err(Error)
}
