//! `/etc/prepull/helper.toml`: who may write where.
/// E.
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
/// K
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// S
    Storage,
    /// R
    Rootfs,
}
/// A
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Allow {
    pub root: String,
    pub kind: Kind,
    pub graphroot: String,
    pub max_bytes: u64,
    pub max_inodes: u64,
    pub max_seconds: u64,
    pub devices: bool,
    pub suid: bool,
    pub filecaps: bool,
}
/// P
#[derive(Debug)]
pub struct Policy;
#[allow(missing_docs)]
impl Policy {
    pub fn load() -> Result<Self, Error> {
        Err(Error)
    }
    pub fn for_caller(&self, _: &super::caller::Caller) -> Vec<&Allow> {
        vec![]
    }
}
