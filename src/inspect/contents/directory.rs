//! A directory, entry by entry: the stores in it, and what a machine's container tools read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use super::super::find::Error;
use super::{Contents, Inode, InodeKind, OddityKind, join};
use crate::entry::{Device, Timestamp, Xattr};

/// What is looked at beside the stores, where the directory is a machine's root.
const OTHERS: [&str; 6] =
    ["etc/containers", "etc/crio", "etc/init.d/25prepull.rc", "usr/share/prepull", "var/lib/crio", "run/crio"];

/// Directories of a layer that a running container mounts something on.
const MOUNTED: [&[u8]; 2] = [b"merged", b"work"];

/// Reads the stores below `root`, and [`OTHERS`].
pub(super) fn read(contents: &mut Contents, root: &Path) -> Result<(), Error> {
    let mut walk = Walk { contents, root, links: HashMap::new() };
    let graphroots: Vec<String> = walk.contents.stores.iter().map(|found| found.graphroot.clone()).collect();
    let is_root = graphroots.iter().any(|graphroot| !graphroot.is_empty());
    let others = OTHERS.iter().filter(|_| is_root).map(|path| (*path).to_owned());
    for path in graphroots.into_iter().chain(others) {
        walk.put_if_there(path.as_bytes())?;
    }
    Ok(())
}

struct Walk<'a> {
    contents: &'a mut Contents,
    root: &'a Path,
    /// Inodes with several names: by device and number, the layer or other area they were found in, and there.
    links: HashMap<(u64, u64), (Vec<u8>, u32)>,
}

impl Walk<'_> {
    fn put_if_there(&mut self, path: &[u8]) -> Result<(), Error> {
        match self.put(path.to_vec()) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Takes in `path` and all below it.
    fn put(&mut self, path: Vec<u8>) -> Result<(), Error> {
        let mut left = vec![path];
        while let Some(path) = left.pop() {
            self.contents.count()?;
            let full = self.root.join(OsStr::from_bytes(&path));
            let metadata = fs_err::symlink_metadata(&full)?;
            let Some(kind) = kind(&full, &metadata)? else {
                self.contents.odd(OddityKind::Socket, &path);
                continue;
            };
            let inode = Inode {
                mode: (metadata.mode() & 0o7777) as u16,
                uid: metadata.uid(),
                gid: metadata.gid(),
                mtime: Timestamp { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 },
                stamped: false,
                opaque: false,
                whiteout: false,
                xattrs: xattrs(&full)?,
                kind,
            };
            if inode.kind == InodeKind::Directory && !self.is_mounted(&path) {
                for entry in fs_err::read_dir(&full)? {
                    left.push(join(&path, entry?.file_name().as_bytes()));
                }
            }
            self.insert(path, inode, &metadata);
        }
        Ok(())
    }

    fn insert(&mut self, path: Vec<u8>, inode: Inode, metadata: &std::fs::Metadata) {
        let (files, start) = self.contents.files(&path);
        if metadata.nlink() > 1 && inode.kind != InodeKind::Directory {
            let key = (metadata.dev(), metadata.ino());
            // A name in another layer is another file there, for whoever compares layers.
            if let Some((area, number)) = self.links.get(&key)
                && area[..] == path[..start]
            {
                files.paths.insert(path[start..].to_vec(), *number);
                return;
            }
            self.links.insert(key, (path[..start].to_vec(), files.inodes.len() as u32));
        }
        files.insert(path[start..].to_vec(), inode);
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

fn kind(path: &Path, metadata: &std::fs::Metadata) -> io::Result<Option<InodeKind>> {
    let file_type = metadata.file_type();
    let device = || Device { major: rustix::fs::major(metadata.rdev()), minor: rustix::fs::minor(metadata.rdev()) };
    Ok(Some(if file_type.is_dir() {
        InodeKind::Directory
    } else if file_type.is_file() {
        InodeKind::Regular { size: metadata.len(), data: 0 }
    } else if file_type.is_symlink() {
        InodeKind::Symlink(Arc::from(fs_err::read_link(path)?.as_os_str().as_bytes()))
    } else if file_type.is_char_device() {
        InodeKind::CharDevice(device())
    } else if file_type.is_block_device() {
        InodeKind::BlockDevice(device())
    } else if file_type.is_fifo() {
        InodeKind::Fifo
    } else {
        return Ok(None);
    }))
}

fn xattrs(path: &Path) -> io::Result<Vec<Xattr>> {
    let fail = |error: rustix::io::Errno| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("read extended attributes of {}: {error}", path.display()),
        )
    };
    let mut names = Vec::with_capacity(256);
    loop {
        names.clear();
        match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(rustix::io::Errno::RANGE) => names.reserve(names.capacity() * 2 + 65536),
            // A file system without them.
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        }
    }
    let mut xattrs = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(65536);
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => xattrs.push((name.to_vec(), value)),
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}
