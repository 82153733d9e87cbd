//! Answers requests: several threads, each with one request at a time, all from one view.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::io::{Errno, retry_on_intr};

use super::view::{Failed, View};
use super::wire::{Dirent, Operation, READ_MAX, REPLY, REQUEST_MAX, Reply, Request};

/// What threads share.
#[derive(Debug)]
pub struct Server {
    fuse: OwnedFd,
    view: RwLock<Arc<View>>,
    /// Told what users should know: files that cannot be read.
    report: fn(&str),
}

impl Server {
    /// Serves `view` on `fuse`, an open `/dev/fuse` that is mounted, and whose INIT has been answered.
    #[must_use]
    pub fn new(fuse: OwnedFd, view: View, report: fn(&str)) -> Self {
        Self { fuse, view: RwLock::new(Arc::new(view)), report }
    }

    /// What is shown.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        // It is changed in one step: right, whoever panicked.
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows something else from now on, and tells the kernel what has changed.
    pub fn show(&self, view: View) {
        let view = Arc::new(view);
        let before = {
            let mut shown = self.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *shown, Arc::clone(&view))
        };
        for (directory, names) in view.changes(&before) {
            for name in names {
                self.send(&super::wire::invalidate_entry(directory, &name));
            }
            self.send(&super::wire::invalidate(directory));
        }
    }

    /// A message or a reply. The kernel does not take one for what it has not asked or does not have: that is no matter.
    fn send(&self, message: &[u8]) {
        let _ = retry_on_intr(|| rustix::io::write(&self.fuse, message));
    }

    /// Has the kernel send again what another server has not answered.
    pub fn resend(&self) {
        self.send(&super::wire::resend());
    }

    /// Answers requests until the file system is mounted nowhere any more.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(&self) -> io::Result<()> {
        let mut request = vec![0; REQUEST_MAX];
        let mut buffer = Vec::with_capacity(REPLY + READ_MAX);
        loop {
            let count = match rustix::io::read(self.fuse.as_fd(), &mut request[..]) {
                Ok(count) => count,
                // Interrupted, or the request was taken back before it was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let Ok(request) = Request::parse(&request[..count]) else { continue };
            match request.operation {
                Operation::Forget | Operation::Interrupt => continue,
                Operation::Destroy => {
                    self.send(&Reply::new(request.unique).finish());
                    continue;
                }
                _ => {}
            }
            let view = self.view();
            match answer(&view, &request, std::mem::take(&mut buffer)) {
                Ok(reply) => {
                    self.send(&reply);
                    buffer = reply;
                }
                Err(Failed::Asked(error)) => self.send(&Reply::error(request.unique, error)),
                Err(Failed::Damaged(error)) => {
                    (self.report)(&format!("reading inode {}: {error}", request.node));
                    self.send(&Reply::error(request.unique, Errno::IO));
                }
            }
        }
    }
}

/// The longest name, as on a disk.
const NAME_MAX: usize = 255;

/// Whether there may be an extended attribute of this name, as far as the kernel has not looked.
fn is_attribute(name: &[u8]) -> Result<(), Errno> {
    let starts = |space: &&[u8]| name.starts_with(space);
    match [&b"user."[..], b"trusted.", b"security."].iter().find(|space| starts(space)) {
        Some(space) if space.len() == name.len() => Err(Errno::INVAL),
        Some(_) => Ok(()),
        None if name == b"system.posix_acl_access" || name == b"system.posix_acl_default" => Ok(()),
        None => Err(Errno::OPNOTSUPP),
    }
}

/// The reply to a request, in `buffer` if that is of use.
///
/// # Errors
/// What the caller gets: `EIO` where content is damaged.
pub fn answer(view: &View, request: &Request<'_>, buffer: Vec<u8>) -> Result<Vec<u8>, Failed> {
    let Request { unique, node, uid, operation } = *request;
    let mut reply = Reply::reuse(buffer, unique);
    match operation {
        // The kernel passes on up to 1,024 bytes.
        Operation::Lookup(name) if name.len() > NAME_MAX => return Err(Errno::NAMETOOLONG.into()),
        Operation::Lookup(name) => reply.entry(view.lookup(node, name)?.as_ref()),
        Operation::Getattr => reply.attributes(&view.attributes(node)?),
        Operation::Readlink => reply.bytes(view.target(node)?),
        Operation::Read { offset, size } => {
            reply.fill((size as usize).min(READ_MAX), |buffer| view.read(node, offset, buffer))?;
        }
        Operation::Readdir { offset, size, plus } => {
            let mut failed = None;
            let most = (size as usize).min(READ_MAX);
            view.list(node, offset, |id, next, name| match view.attributes(id) {
                Ok(attributes) => {
                    let entry = Dirent { node: id, offset: next, mode: attributes.mode, name };
                    let is_other = name != b"." && name != b"..";
                    reply.dirent(&entry, plus.then(|| is_other.then_some(&attributes)), most)
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Operation::Getxattr { name, size } => {
            is_attribute(name)?;
            let xattrs = view.xattrs(node)?;
            let found = xattrs.binary_search_by(|(other, _)| (**other).cmp(name)).map_err(|_| Errno::NODATA)?;
            return Ok(Reply::sized(unique, size, &xattrs[found].1));
        }
        Operation::Listxattr { size } => {
            // As on a disk, only root sees these; and whoever the kernel does not tell apart since the mount may map ids. Their
            // values it gives to root alone.
            let is_shown = |name: &[u8]| matches!(uid, 0 | u32::MAX) || !name.starts_with(b"trusted.");
            let xattrs = view.xattrs(node)?.iter().filter(|(name, _)| is_shown(name));
            let names: Vec<u8> = xattrs.flat_map(|(name, _)| name.iter().copied().chain([0])).collect();
            return Ok(Reply::sized(unique, size, &names));
        }
        Operation::Statfs => {
            let (blocks, inodes) = view.size();
            reply.statfs(blocks, inodes);
        }
        // The kernel then opens files and directories without asking, and keeps what it has read of them.
        Operation::Open | Operation::Init(_) | Operation::Other(_) => return Err(Errno::NOSYS.into()),
        Operation::Forget | Operation::Interrupt | Operation::Destroy => {}
    }
    Ok(reply.finish())
}
