//! A directory, entry by entry: the stores in it, and what a machine's container tools read.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Stat};

use super::super::find::Error;
use super::super::root::{Opened, Root, names};
use super::{Contents, Inode, InodeKind, OddityKind, join, xattrs_len};
use crate::entry::{Device, Timestamp, Xattr};

/// What is looked at beside the stores, where the directory is a machine's root.
const OTHERS: [&str; 6] =
    ["etc/containers", "etc/crio", "etc/init.d/25prepull.rc", "usr/share/prepull", "var/lib/crio", "run/crio"];

/// Directories of a layer that a running container mounts something on.
const MOUNTED: [&[u8]; 2] = [b"merged", b"work"];

/// How the directories in a graphroot end that have images in them; `overlay` itself has, too.
const OF_IMAGES: [&[u8]; 2] = [b"-images", b"-layers"];

/// Reads the stores below `root`, and [`OTHERS`]. Links that lead there are followed within `root`, as a machine with a store
/// on another disk has them.
pub(super) fn read(contents: &mut Contents, root: &Root) -> Result<(), Error> {
    let mut walk = Walk { contents, root, links: HashMap::new() };
    let mut graphroots: Vec<String> = walk.contents.stores.iter().map(|found| found.graphroot.clone()).collect();
    // One for each driver.
    graphroots.dedup();
    let is_root = graphroots.iter().any(|graphroot| !graphroot.is_empty());
    let others = OTHERS.iter().filter(|_| is_root).map(|path| (*path).to_owned());
    for path in graphroots.into_iter().chain(others) {
        walk.put(path.as_bytes())?;
    }
    Ok(())
}

struct Walk<'a> {
    contents: &'a mut Contents,
    root: &'a Root,
    /// Inodes with several names: by device and number, the layer or other area they were found in, and there.
    links: HashMap<(u64, u64), (Vec<u8>, u32)>,
}

impl Walk<'_> {
    /// Takes in `top` if it exists, and all below it.
    fn put(&mut self, top: &[u8]) -> Result<(), Error> {
        let failed = |path: &[u8], error: io::Error| {
            let text = format!("read {}: {error}", String::from_utf8_lossy(if path.is_empty() { b"." } else { path }));
            Error::Io(io::Error::new(error.kind(), text))
        };
        let Some(stat) = self.root.stat(top).map_err(|error| failed(top, error))? else { return Ok(()) };
        let Some(directory) = self.root.directory(top).map_err(|error| failed(top, error))? else {
            // A file of the machine: whoever reads it opens it by its path.
            let Some(kind) = kind(&stat, |_| Ok(Vec::new())).map_err(|error| failed(top, error))? else {
                return Ok(());
            };
            return self.insert(top.to_vec(), inode(kind, &stat, Vec::new()), &stat);
        };
        let xattrs = xattrs(directory.as_fd(), b".").map_err(|error| failed(top, error))?;
        self.insert(top.to_vec(), inode(InodeKind::Directory, &stat, xattrs), &stat)?;
        drop(directory);
        let mut left = vec![top.to_vec()];
        while let Some(path) = left.pop() {
            if !self.is_of_images(&path) || self.is_mounted(&path) || self.contents.is_left_closed(&path) {
                continue;
            }
            let read = self.root.directory(&path).and_then(|opened| match opened {
                Some(directory) => names(&directory).map(|names| Some((directory, names))),
                None => Ok(None),
            });
            // Users of the store add and remove files meanwhile.
            let Some((directory, names)) = read.map_err(|error| failed(&path, error))? else {
                self.contents.odd(OddityKind::Vanished, &path);
                continue;
            };
            for name in names {
                let path = join(&path, &name);
                match self.one(directory.as_fd(), &name, &path) {
                    Ok(Some((inode, stat))) => {
                        if inode.kind == InodeKind::Directory {
                            left.push(path.clone());
                        }
                        self.insert(path, inode, &stat)?;
                    }
                    Ok(None) => self.contents.odd(OddityKind::Socket, &path),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.contents.odd(OddityKind::Vanished, &path);
                    }
                    Err(error) => return Err(failed(&path, error)),
                }
            }
        }
        Ok(())
    }

    /// Returns what `name` in `directory` is; `None` for a socket.
    fn one(&self, directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> io::Result<Option<(Inode, Stat)>> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = |stat: &Stat| {
            let target = rustix::fs::readlinkat(directory, name, Vec::with_capacity(stat.st_size as usize + 1))?;
            Ok(target.into_bytes())
        };
        let Some(kind) = kind(&stat, target)? else { return Ok(None) };
        if matches!(kind, InodeKind::Symlink(_))
            && self.is_record(path)
            && let Opened::File(file, _) = self.root.file(path)?
        {
            // A record is read where a machine finds it. In a layer, and in `overlay/l`, a link is a link.
            let stat = rustix::fs::fstat(file)?;
            return Ok(Some((
                inode(InodeKind::Regular { size: stat.st_size as u64, data: 0 }, &stat, Vec::new()),
                stat,
            )));
        }
        Ok(Some((inode(kind, &stat, xattrs(directory, name)?), stat)))
    }

    /// Returns whether `path` is outside of the layers' own directories.
    fn is_record(&self, path: &[u8]) -> bool {
        !self.contents.overlays.iter().any(|overlay| path.starts_with(overlay))
    }

    fn insert(&mut self, path: Vec<u8>, inode: Inode, stat: &Stat) -> Result<(), Error> {
        self.contents.count(path.len() + xattrs_len(&inode.xattrs))?;
        let (files, start) = self.contents.files_of(&path);
        if stat.st_nlink > 1 && inode.kind != InodeKind::Directory {
            let key = (stat.st_dev, stat.st_ino);
            // A name in another layer is another file there, since layers are compared one by one.
            if let Some((area, number)) = self.links.get(&key)
                && area[..] == path[..start]
            {
                files.link(&path[start..], *number);
                return Ok(());
            }
            self.links.insert(key, (path[..start].to_vec(), files.inodes.len() as u32));
        }
        files.insert(&path[start..], inode);
        Ok(())
    }

    /// Whether what is in the directory `path` may belong to images. Volumes, databases and the own files of containers do not:
    /// they are large, change all the time, and hold what is mounted.
    fn is_of_images(&self, path: &[u8]) -> bool {
        let within = |graphroot: &[u8]| match graphroot {
            b"" => Some(path),
            graphroot if path == graphroot => Some(&b""[..]),
            graphroot => path.strip_prefix(graphroot)?.strip_prefix(b"/"),
        };
        let Some(path) = self.contents.stores.iter().find_map(|found| within(found.graphroot.as_bytes())) else {
            return true;
        };
        let mut parts = path.split(|&byte| byte == b'/');
        let first = parts.next().unwrap_or_default();
        let names = first == b"overlay" || OF_IMAGES.iter().any(|end| first.ends_with(end));
        // Which containers there are is said by files, not by what is in their directories.
        names || first.is_empty() || first.ends_with(b"-containers") && parts.next().is_none()
    }

    /// Whether `path` is where a layer may be mounted.
    fn is_mounted(&self, path: &[u8]) -> bool {
        self.contents.overlays.iter().any(|overlay| {
            let mut parts = path.strip_prefix(&overlay[..]).unwrap_or_default().split(|&byte| byte == b'/');
            let name = parts.nth(1).unwrap_or_default();
            MOUNTED.contains(&name) && parts.next().is_none()
        })
    }
}

/// Returns the type of an object; `None` for a socket. `target` reads a symbolic link.
fn kind(stat: &Stat, target: impl FnOnce(&Stat) -> io::Result<Vec<u8>>) -> io::Result<Option<InodeKind>> {
    let device = || Device { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => InodeKind::Directory,
        FileType::RegularFile => InodeKind::Regular { size: stat.st_size as u64, data: 0 },
        FileType::Symlink => InodeKind::Symlink(Arc::from(target(stat)?)),
        FileType::CharacterDevice => InodeKind::CharDevice(device()),
        FileType::BlockDevice => InodeKind::BlockDevice(device()),
        FileType::Fifo => InodeKind::Fifo,
        _ => return Ok(None),
    }))
}

fn inode(kind: InodeKind, stat: &Stat, xattrs: Vec<Xattr>) -> Inode {
    Inode {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        stamped: false,
        opaque: false,
        whiteout: false,
        xattrs: xattrs.into(),
        kind,
    }
}

/// Returns the extended attributes of `name` in `directory`, of a symbolic link its own. The system calls take no directory.
fn xattrs(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<Xattr>> {
    let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
    let mut names = Vec::with_capacity(256);
    loop {
        names.clear();
        match rustix::fs::llistxattr(&path[..], rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(rustix::io::Errno::RANGE) => names.reserve(names.capacity() * 2 + 65536),
            // A file system without them.
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut xattrs = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(65536);
        match rustix::fs::lgetxattr(&path[..], name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => {
                value.shrink_to_fit();
                xattrs.push((name.to_vec(), value));
            }
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}
