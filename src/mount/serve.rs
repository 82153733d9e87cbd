//! Answers requests: several threads, each with one request at a time, all from one view.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Error;
use super::layer::{DIRECTORY, is_attribute};
use super::view::{Failed, View};
use super::wire::{self, Dirent, Operation, READ_MAX, REPLY, REQUEST_MAX, Reply, Request};

/// What threads share.
#[derive(Debug)]
pub struct Server {
    fuse: OwnedFd,
    view: RwLock<Arc<View>>,
    /// Where each thread notes which request it has read last, 8 bytes for each, if the kernel does not send them again: see
    /// [`overdue`].
    journal: Option<File>,
    /// Told what users should know: files that cannot be read.
    report: fn(&str),
    /// Told which layers are needed.
    want: fn(&str),
    /// Requests that wait for a layer: its slot, and their bytes.
    waiting: Mutex<Vec<(u32, Vec<u8>)>>,
}

impl Server {
    /// Serves `view` on `fuse`, an open `/dev/fuse` that is mounted, and whose INIT has been answered.
    #[must_use]
    pub fn new(fuse: OwnedFd, view: View, journal: Option<File>, report: fn(&str), want: fn(&str)) -> Self {
        Self { fuse, view: RwLock::new(Arc::new(view)), journal, report, want, waiting: Mutex::default() }
    }

    /// Notes that the thread so-and-so has read this request.
    fn note(&self, thread: u64, unique: u64) {
        if let Some(journal) = &self.journal {
            // Memory has no errors.
            let _ = journal.write_all_at(&unique.to_ne_bytes(), thread * 8);
        }
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
        let mut last = None;
        for (directory, name) in view.changes(&before) {
            if last.replace(directory) != Some(directory) {
                self.send(&wire::invalidate(directory));
            }
            self.send(&wire::invalidate_entry(directory, &name));
        }
        let waiting = {
            let mut waiting = self.waiting();
            let taken = std::mem::take(&mut *waiting);
            self.note_waiting(&waiting);
            taken
        };
        let mut buffer = vec![0; REPLY + READ_MAX];
        for request in waiting.iter().filter_map(|(_, bytes)| Request::parse(bytes).ok()) {
            self.serve(&request, &mut buffer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(u32, Vec<u8>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails all that waits for these layers: they cannot be had.
    pub fn refuse(&self, layers: &[String]) {
        let view = self.view();
        let is_refused = |slot| layers.iter().any(|layer| view.lacks_layer(slot, layer));
        let failed: Vec<_> = {
            let mut waiting = self.waiting();
            let failed = waiting.extract_if(.., |(slot, _)| is_refused(*slot)).collect();
            self.note_waiting(&waiting);
            failed
        };
        for request in failed.iter().filter_map(|(_, bytes)| Request::parse(bytes).ok()) {
            self.send(&Reply::error(request.unique, Errno::IO));
        }
    }

    /// Has a request wait, if it is for a layer that has not been fetched. Gives whether it does.
    fn park(&self, request: &Request<'_>) -> bool {
        let Operation::Lookup(name) = request.operation else { return false };
        let view = self.view();
        let Some((slot, layer)) = view.awaits(request.node, name) else { return false };
        let is_first = {
            let mut waiting = self.waiting();
            // It may have come meanwhile: then nobody would look here again.
            if !self.view().lacks(slot) {
                return false;
            }
            let is_first = waiting.iter().all(|(other, _)| *other != slot);
            waiting.push((slot, request.to_bytes()));
            self.note_waiting(&waiting);
            is_first
        };
        if is_first {
            (self.want)(layer);
        }
        true
    }

    /// Somebody does not want to wait any more. What is not waiting has been answered, or is about to wait: then the kernel says it
    /// again.
    fn interrupt(&self, request: u64, unique: u64) {
        let mut waiting = self.waiting();
        let is_it = |(_, bytes): &(u32, Vec<u8>)| Request::parse(bytes).is_ok_and(|request| request.unique == unique);
        if let Some(at) = waiting.iter().position(is_it) {
            waiting.swap_remove(at);
            self.note_waiting(&waiting);
            self.send(&Reply::error(unique, Errno::INTR));
        } else if self.view().lacks_any() {
            self.send(&Reply::error(request, Errno::AGAIN));
        }
    }

    /// Notes which requests wait, behind what the threads are at.
    fn note_waiting(&self, waiting: &[(u32, Vec<u8>)]) {
        let Some(journal) = &self.journal else { return };
        let uniques = waiting.iter().filter_map(|(_, bytes)| Some(Request::parse(bytes).ok()?.unique));
        let bytes: Vec<u8> = uniques.take(WAITING_MAX as usize).chain([0]).flat_map(u64::to_ne_bytes).collect();
        // Memory has no errors.
        let _ = journal.write_all_at(&bytes, THREADS_MAX * 8);
    }

    /// Answers a request, now or when it can be.
    fn serve(&self, request: &Request<'_>, buffer: &mut [u8]) {
        if let Operation::Interrupt(unique) = request.operation {
            self.interrupt(request.unique, unique);
            return;
        }
        if self.park(request) {
            return;
        }
        match answer(&self.view(), request, buffer) {
            Ok(Answer::Data(length)) => self.send(wire::data(buffer, request.unique, length)),
            Ok(Answer::Reply(reply)) => self.send(&reply),
            Ok(Answer::None) => {}
            Err(Failed::Asked(error)) => self.send(&Reply::error(request.unique, error)),
            Err(Failed::Damaged(error)) => {
                (self.report)(&format!("reading inode {}: {error}", request.node));
                self.send(&Reply::error(request.unique, Errno::IO));
            }
        }
    }

    /// A message or a reply. The kernel does not take one for what it has not asked or does not have: that is no matter.
    fn send(&self, message: &[u8]) {
        let _ = retry_on_intr(|| rustix::io::write(&self.fuse, message));
    }

    /// Has the kernel send again what another server has not answered.
    pub fn resend(&self) {
        self.send(&wire::resend());
    }

    /// Answers requests until the file system is mounted nowhere any more; as the thread so-and-so, from 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(&self, thread: u64) -> io::Result<()> {
        let mut bytes = vec![0; REQUEST_MAX];
        let mut buffer = vec![0; REPLY + READ_MAX];
        loop {
            let count = match rustix::io::read(self.fuse.as_fd(), &mut bytes[..]) {
                Ok(count) => count,
                // Interrupted, or the request was taken back before it was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let request = match Request::parse(&bytes[..count]) {
                Ok(request) => request,
                Err(_) => {
                    // Somebody waits for it, whatever it is.
                    if let Some(unique) = wire::unique_of(&bytes[..count]) {
                        self.send(&Reply::error(unique, Errno::IO));
                    }
                    continue;
                }
            };
            self.note(thread, request.unique);
            let _unanswered = Unanswered { server: self, unique: request.unique };
            self.serve(&request, &mut buffer);
        }
    }
}

/// A request that is being answered. A panic fails it: sent again it would kill the next server, too.
struct Unanswered<'a> {
    server: &'a Server,
    unique: u64,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.server.send(&Reply::error(self.unique, Errno::IO));
        }
    }
}

/// Threads of one server, at most.
pub const THREADS_MAX: u64 = 4;

/// How many requests that wait for layers are noted, at most: more than a system has processes, usually.
const WAITING_MAX: u64 = 100_000;

/// Bytes of a journal: a number for each thread, those of requests that wait, and a zero behind them.
const JOURNAL: u64 = (THREADS_MAX + WAITING_MAX + 1) * 8;

/// How far behind a request that was noted one may be that was lost before it could be noted, and how far ahead: as many as are
/// ever queued at once.
const BEHIND: u64 = 4_000;
const AHEAD: u64 = 40_000;

/// How requests are numbered (Linux `fs/fuse/fuse_i.h`, `FUSE_REQ_ID_STEP`).
const STEP: usize = 2;

/// Makes a journal: a file in memory, whose size cannot change.
///
/// # Errors
/// When the kernel has no room for it.
pub fn journal() -> Result<File, Error> {
    let failed = |error: io::Error| Error::system("making a journal", error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = rustix::fs::memfd_create("journal", flags);
    let file = made.map(File::from).map_err(|error| failed(error.into()))?;
    file.set_len(JOURNAL).map_err(failed)?;
    // All of it is read when a worker has died.
    let sealed = rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL);
    sealed.map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// What a server that has died may have been at, by its journal: requests with numbers near those that it had noted. Of those
/// the kernel waits for the ones that somebody has read and not answered, and knows nothing of the others.
pub fn overdue(journal: &File) -> impl Iterator<Item = u64> {
    let mut bytes = [0; THREADS_MAX as usize * 8];
    let read = journal.read_exact_at(&mut bytes, 0);
    let noted = bytes.as_chunks::<8>().0.iter().map(|unique| u64::from_ne_bytes(*unique));
    let mut noted: Vec<u64> = noted.filter(|unique| *unique != 0 && read.is_ok()).collect();
    noted.sort_unstable();
    let mut done = 0;
    let mut at = THREADS_MAX * 8;
    let waiting = std::iter::from_fn(move || {
        let mut unique = [0; 8];
        let read = journal.read_exact_at(&mut unique, at);
        at += 8;
        read.ok().map(|()| u64::from_ne_bytes(unique)).filter(|unique| *unique != 0)
    });
    let noted = noted.into_iter().flat_map(move |unique| {
        let from = unique.saturating_sub(BEHIND).max(done);
        done = unique.saturating_add(AHEAD);
        (from..done).step_by(STEP)
    });
    waiting.chain(noted)
}

/// What a request is answered with.
#[derive(Debug)]
pub enum Answer {
    /// These bytes.
    Reply(Vec<u8>),
    /// So many bytes of the buffer: see [`wire::data`].
    Data(usize),
    /// Nothing: there are requests that nobody waits for.
    None,
}

/// The answer to a request; `buffer` is for what is read.
///
/// # Errors
/// What the caller gets: `EIO` where content is damaged.
pub fn answer(view: &View, request: &Request<'_>, buffer: &mut [u8]) -> Result<Answer, Failed> {
    let Request { unique, node, uid, operation, .. } = *request;
    let mut reply = Reply::new(unique);
    match operation {
        Operation::Lookup(name) => reply.entry(view.lookup(node, name)?.as_ref()),
        Operation::Getattr => reply.attributes(&view.attributes(node)?),
        Operation::Readlink => reply.bytes(view.target(node)?),
        Operation::Read { offset, size } => {
            let room = &mut buffer[REPLY..];
            let size = room.len().min(size as usize);
            return Ok(Answer::Data(view.read(node, offset, &mut room[..size])?));
        }
        Operation::Readdir { offset, size, plus } => {
            let mut failed = None;
            let most = (size as usize).min(READ_MAX);
            view.list(node, offset, |id, next, name| match view.attributes(id) {
                // What it is like is said when it is looked up.
                Err(_) if view.is_awaited(id) => {
                    let entry = Dirent { node: id, offset: next, mode: DIRECTORY, name };
                    reply.dirent(&entry, plus.then_some(None), most)
                }
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
            match is_attribute(name) {
                None => return Err(Errno::OPNOTSUPP.into()),
                Some(false) => return Err(Errno::INVAL.into()),
                Some(true) => {}
            }
            let xattrs = view.xattrs(node)?;
            let found = xattrs.binary_search_by(|(other, _)| (**other).cmp(name)).map_err(|_| Errno::NODATA)?;
            return Ok(Answer::Reply(Reply::sized(unique, size, &xattrs[found].1)));
        }
        Operation::Listxattr { size } => {
            // As on a disk, only root sees these; and whoever the kernel does not tell apart since the mount may map ids. Their
            // values it gives to root alone.
            let is_shown = |name: &[u8]| matches!(uid, 0 | u32::MAX) || !name.starts_with(b"trusted.");
            let xattrs = view.xattrs(node)?.iter().filter(|(name, _)| is_shown(name));
            let names: Vec<u8> = xattrs.flat_map(|(name, _)| name.iter().copied().chain([0])).collect();
            return Ok(Answer::Reply(Reply::sized(unique, size, &names)));
        }
        Operation::Statfs => {
            let (blocks, inodes) = view.size();
            reply.statfs(blocks, inodes);
        }
        // The kernel then opens files and directories without asking, and keeps what it has read of them.
        Operation::Open | Operation::Init(_) | Operation::Other(_) => return Err(Errno::NOSYS.into()),
        Operation::Destroy => {}
        Operation::Forget | Operation::Interrupt(_) => return Ok(Answer::None),
    }
    Ok(Answer::Reply(reply.finish()))
}
