//! A directory, entry by entry: the stores in it, and what a machine's container tools read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use super::super::find::Error;
use super::{Contents, Inode, InodeKind, OddityKind, join, xattrs_len};
use crate::entry::{Device, Timestamp, Xattr};

/// What is looked at beside the stores, where the directory is a machine's root.
const OTHERS: [&str; 6] =
    ["etc/containers", "etc/crio", "etc/init.d/25prepull.rc", "usr/share/prepull", "var/lib/crio", "run/crio"];

/// Directories of a layer that a running container mounts something on.
const MOUNTED: [&[u8]; 2] = [b"merged", b"work"];

/// How the directories in a graphroot end that have images in them; `overlay` itself has, too.
const OF_IMAGES: [&[u8]; 2] = [b"-images", b"-layers"];

/// Reads the stores below `root`, and [`OTHERS`].
pub(super) fn read(contents: &mut Contents, root: &Path) -> Result<(), Error> {
    let mut walk = Walk { contents, root, links: HashMap::new() };
    let mut graphroots: Vec<String> = walk.contents.stores.iter().map(|found| found.graphroot.clone()).collect();
    // One for each driver.
    graphroots.dedup();
    let is_root = graphroots.iter().any(|graphroot| !graphroot.is_empty());
    let others = OTHERS.iter().filter(|_| is_root).map(|path| (*path).to_owned());
    for path in graphroots.into_iter().chain(others) {
        walk.put(path.into_bytes())?;
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
    /// Takes in `path`, which need not be there, and all below it.
    fn put(&mut self, top: Vec<u8>) -> Result<(), Error> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let mut left = vec![top.clone()];
        while let Some(path) = left.pop() {
            match self.put_one(&path, &mut left) {
                // Whoever uses the store adds and removes files meanwhile.
                Err(Error::Io(error)) if matches!(error.kind(), NotFound | NotADirectory) => {
                    if path != top {
                        self.contents.odd(OddityKind::Vanished, &path);
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn put_one(&mut self, path: &[u8], left: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let full = self.root.join(OsStr::from_bytes(path));
        // A store may lie on another disk, behind a link; nothing in it may.
        let is_store = self.contents.stores.iter().any(|found| found.graphroot.as_bytes() == path);
        let metadata = if is_store { fs_err::metadata(&full)? } else { fs_err::symlink_metadata(&full)? };
        let Some(kind) = kind(&full, &metadata)? else {
            self.contents.odd(OddityKind::Socket, path);
            return Ok(());
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
        self.contents.count(path.len() + xattrs_len(&inode.xattrs))?;
        if inode.kind == InodeKind::Directory && self.is_of_images(path) && !self.is_mounted(path) {
            for entry in fs_err::read_dir(&full)? {
                left.push(join(path, entry?.file_name().as_bytes()));
            }
        }
        self.insert(path.to_vec(), inode, &metadata);
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
