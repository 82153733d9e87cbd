//! What is shown is damaged, taken away, or asked for what it cannot do.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{ADDITIONAL, Mount, World, full, kill, noise, number, ok, on_base, wait_for};
use crate::command::{needs_root, succeeds};
use crate::raw::{archive, char, dir, fifo, file, link, sym};
use crate::stores::{chain, in_own_mounts, unpack_gnu};

const SIZE: usize = 1_000_000;

/// An image with three files, and where they are.
fn three(world: &mut World) -> String {
    let files = ["a", "b", "c"].map(|name| file(name).data(noise(name, SIZE)));
    world.image("three", &[archive(&files)])
}

fn layer(mount: &Mount, image: &str) -> PathBuf {
    mount.at.join("overlay").join(chain(&mount.at, image).last().unwrap()).join("diff")
}

/// Which of the three files can be read whole; what can be read is right.
#[track_caller]
fn readable(at: &Path) -> Vec<&'static str> {
    let is_readable = |name: &&str| match fs_err::read(at.join(name)) {
        Ok(content) => {
            assert!(content == noise(name, SIZE), "{name}: wrong bytes");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::Error::from_raw_os_error(5).kind(), "{name}: {error}");
            false
        }
    };
    ["a", "b", "c"].into_iter().filter(is_readable).collect()
}

/// The segment that has `content`, and where.
fn segment(world: &World, content: &[u8]) -> (PathBuf, u64) {
    let files = fs_err::read_dir(world.cache().join("segments")).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.is_file()) {
        let bytes = fs_err::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == &content[..64]) {
            return (path, at as u64);
        }
    }
    panic!("no segment has it");
}

fn write_at(path: &Path, byte: u8, at: u64) {
    fs_err::OpenOptions::new().write(true).open(path).unwrap().file().write_all_at(&[byte], at).unwrap();
}

#[test]
fn a_flipped_byte_is_an_error_where_it_is() {
    if !needs_root("mount::broken::a_flipped_byte_is_an_error_where_it_is") {
        return;
    }
    let mut world = World::new();
    let items = [three(&mut world), world.image("other", &on_base("other"))];
    let mount = world.mount("mnt", &items);
    let content = noise("b", SIZE);
    let (path, at) = segment(&world, &content);
    let middle = SIZE / 2;
    write_at(&path, content[middle] ^ 1, at + middle as u64);
    let root = layer(&mount, &full("three"));
    assert_eq!(readable(&root), ["a", "c"]);
    // The rest of the file is there.
    let open = fs_err::File::open(root.join("b")).unwrap();
    let mut some = vec![0; 100_000];
    open.file().read_exact_at(&mut some, 0).unwrap();
    assert!(some == content[..100_000]);
    let status = mount.status();
    let troubles = status["troubles"].as_array().unwrap();
    assert!(troubles.iter().any(|text| text.as_str().unwrap().contains("damaged")), "{troubles:?}");
    let said = succeeds(&mut mount.prepull(&["mount", "status"]));
    assert!(said.contains("\ntrouble: reading inode "), "{said}");
    assert_eq!(status["restarts"], 0);
    mount.kill_worker();
    assert_eq!(readable(&root), ["a", "c"]);
    // Nothing remembers it when it is right again.
    write_at(&path, content[middle], at + middle as u64);
    assert_eq!(readable(&root), ["a", "b", "c"]);
}

#[test]
fn a_segment_that_is_cut_off_takes_nothing_with_it() {
    if !needs_root("mount::broken::a_segment_that_is_cut_off_takes_nothing_with_it") {
        return;
    }
    let mut world = World::new();
    let items = [three(&mut world), world.image("other", &on_base("other"))];
    let mount = world.mount("mnt", &items);
    let (path, at) = segment(&world, &noise("c", SIZE));
    fs_err::OpenOptions::new().write(true).open(&path).unwrap().file().set_len(at + 300_000).unwrap();
    let root = layer(&mount, &full("three"));
    assert_eq!(readable(&root), ["a", "b"]);
    assert_eq!(mount.status()["restarts"], 0);
    // The layer's list of files was behind it.
    mount.kill_worker();
    let other = layer(&mount, &full("other"));
    assert!(fs_err::read(mount.at.join("overlay-images/images.json")).is_ok());
    let id = chain(&mount.at, &full("other"))[0].clone();
    assert_eq!(fs_err::read(mount.at.join("overlay").join(id).join("diff/name")).unwrap(), b"other\n");
    assert!(other.join("bin/busybox").metadata().unwrap().len() > 0);
    // What the kernel has of the layer it still gives; what it has to ask for fails.
    readable(&root);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 100];
    for name in ["a", "b", "c"] {
        let asked = rustix::fs::lgetxattr(root.join(name), "user.some", &mut buffer).map(|_| ());
        assert_eq!(asked, Err(rustix::io::Errno::IO), "{name}");
    }
    let troubles = mount.status()["troubles"].to_string();
    assert!(troubles.contains("damaged"), "{troubles}");
    // It is made again for who asks for it again.
    mount.removes(&[&full("three")]);
    mount.adds(&[&items[0]]);
    assert_eq!(readable(&layer(&mount, &full("three"))), ["a", "b", "c"]);
    mount.kill_worker();
    assert_eq!(readable(&layer(&mount, &full("three"))), ["a", "b", "c"]);
}

#[test]
fn the_cache_may_go() {
    if !needs_root("mount::broken::the_cache_may_go") {
        return;
    }
    let mut world = World::new();
    let items = [three(&mut world), world.image("other", &on_base("other")), world.image("new", &on_base("new"))];
    let mount = world.mount("mnt", &items[..2]);
    let root = layer(&mount, &full("three"));
    succeeds(world.prepull().args(["cache", "prune", "--all", "--quiet", "--cache-dir"]).arg(world.cache()));
    assert_eq!(fs_err::read_dir(world.cache().join("segments")).unwrap().count(), 0);
    assert_eq!(readable(&root), ["a", "b", "c"]);
    mount.adds(&[&items[2]]);
    fs_err::remove_dir_all(world.cache()).unwrap();
    mount.kill_worker();
    assert_eq!(readable(&root), ["a", "b", "c"]);
    // What is mounted is not made again: the images may have gone as well.
    fs_err::remove_dir_all(&world.layout.path).unwrap();
    mount.removes(&[&full("other")]);
    assert_eq!(mount.names(), [full("new"), full("three")]);
    assert_eq!(readable(&root), ["a", "b", "c"]);
}

#[test]
fn a_tar_that_is_cut_off_or_replaced() {
    if !needs_root("mount::broken::a_tar_that_is_cut_off_or_replaced") {
        return;
    }
    let mut world = World::new();
    let item = three(&mut world);
    let tar = world.make("images.tar", &["--unpacker", "gnu"], &[&item]);
    let mount = world.mount("mnt", &[&tar]);
    let root = layer(&mount, &full("three"));
    // Another one in its place is not the one that is mounted.
    fs_err::rename(&tar, world.at.join("moved.tar")).unwrap();
    fs_err::write(&tar, "another").unwrap();
    assert_eq!(readable(&root), ["a", "b", "c"]);
    mount.kill_worker();
    let at = {
        let bytes = fs_err::read(world.at.join("moved.tar")).unwrap();
        bytes.windows(64).position(|window| window == &noise("b", 64)[..]).unwrap()
    };
    // The kernel has what has been read: what it is asked for now it has not.
    drop(mount);
    let mount = world.mount("mnt", &[&world.at.join("moved.tar")]);
    let tar = fs_err::OpenOptions::new().write(true).open(world.at.join("moved.tar")).unwrap();
    tar.set_len(at as u64 + 10_000).unwrap();
    assert_eq!(readable(&root), ["a"]);
    assert_eq!(mount.status()["restarts"], 0);
    mount.kill_worker();
    assert_eq!(readable(&root), ["a"]);
    assert_eq!(mount.names(), [full("three")]);
    assert!(mount.status()["troubles"].to_string().contains("reading inode"));
    // A new mount of it says what is wrong.
    let output = world.mounting(&world.at.join("home")).arg(world.at.join("moved.tar")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// Calls that are made, as Python writes them: with `P` as a path. Those that make something are made with a new name, too.
const CALLS: &str = r#"
import ctypes, errno, fcntl, os, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
PATHS = ["f", "empty", "large", "private", "of-user", "of-group", "acl", "acl-mask", "noperm", "x-only", "d", "d/in", "d/", "d/.", "d/..",
    "f/", "f/below", "f/.", "s", "s/", "s-dir", "s-dir/", "s-dir/in", "dangling", "loop", "loop/x", "chain", "absolute", "fifo", "null", "hard1",
    "hard2", "closed", "closed/in", "passing", "passing/in", "reading", "reading/in", "sticky", "sticky/in", "missing", "missing/x",
    "n" * 255, "n" * 256, "d/" + "n" * 256, "d/" * 2040 + "in", "d/" * 2048 + "in", "", ".", "..", "d/../f", "s-dir/../f", "deep/a/b/c",
    "suid", "attributes", "b\udcff", "group-dir/in"]
FLAGS = dict(RDONLY=os.O_RDONLY, WRONLY=os.O_WRONLY, RDWR=os.O_RDWR, CREAT=os.O_CREAT, CREAT_W=os.O_CREAT | os.O_WRONLY,
    EXCL=os.O_CREAT | os.O_EXCL, TRUNC=os.O_TRUNC, TRUNC_W=os.O_TRUNC | os.O_RDWR, APPEND=os.O_APPEND | os.O_WRONLY,
    DIRECTORY=os.O_DIRECTORY, NOFOLLOW=os.O_NOFOLLOW, PATH=os.O_PATH, PATH_NOFOLLOW=os.O_PATH | os.O_NOFOLLOW,
    TMPFILE=os.O_TMPFILE | os.O_RDWR, NOATIME=os.O_NOATIME, DIRECT=os.O_DIRECT, SYNC=os.O_SYNC, DIRECTORY_CREAT=os.O_DIRECTORY | os.O_CREAT)
def opened(flags):
    def call(path):
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
        os.close(fd)
    return call
def content(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try: return len(os.read(fd, 1 << 20)), os.lseek(fd, 0, 2)
    finally: os.close(fd)
def described(found):
    return (oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, 0 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns, found.st_rdev)
def sized(name, size):
    def call(path):
        buffer = ctypes.create_string_buffer(4096)
        got = libc.lgetxattr(os.fsencode(path), name, buffer, size)
        if got < 0: raise OSError(ctypes.get_errno(), "")
        return got
    return call
def listed(size):
    def call(path):
        buffer = ctypes.create_string_buffer(4096)
        got = libc.llistxattr(os.fsencode(path), buffer, size)
        if got < 0: raise OSError(ctypes.get_errno(), "")
        return got
    return call
def with_fd(work):
    def call(path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try: return work(fd)
        finally: os.close(fd)
    return call
def locked(kind):
    return with_fd(lambda fd: fcntl.flock(fd, kind | fcntl.LOCK_NB))
def bound(path):
    socket.socket(socket.AF_UNIX).bind(path)
# Of directories ext4 tells where the index of their names ends.
def is_file(fd):
    return stat.S_ISREG(os.fstat(fd).st_mode)
# Where the mount may be mapped to other ids, FUSE does not say who asks for names: all get those of trusted.*, and not their values.
def names(found):
    return sorted(name for name in found if not name.startswith("trusted."))
def posix_lock(fd):
    fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
def entered(path):
    here = os.open(".", os.O_RDONLY)
    try: os.chdir(path)
    finally: os.fchdir(here); os.close(here)
C = {f"open {name}": opened(flags) for name, flags in FLAGS.items()}
C.update({
    "stat": lambda p: described(os.stat(p)), "lstat": lambda p: described(os.lstat(p)), "readlink": os.readlink,
    "read": content, "list": lambda p: sorted(os.listdir(p)), "chdir": entered, "statvfs": lambda p: os.statvfs(p).f_namemax,
    "access F": lambda p: os.access(p, os.F_OK), "access R": lambda p: os.access(p, os.R_OK), "access W": lambda p: os.access(p, os.W_OK),
    "access X": lambda p: os.access(p, os.X_OK), "mkdir": os.mkdir, "rmdir": os.rmdir, "unlink": os.unlink,
    "mkfifo": os.mkfifo, "mknod": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)), "mknod file": lambda p: os.mknod(p, 0o600),
    "symlink": lambda p: os.symlink("x", p), "rename to": lambda p: os.rename("f", p), "rename from": lambda p: os.rename(p, "new"),
    "rename dir to": lambda p: os.rename("d", p), "link to": lambda p: os.link("f", p), "link from": lambda p: os.link(p, "new"),
    "truncate": lambda p: os.truncate(p, 0), "truncate minus": lambda p: os.truncate(p, -1),
    "chmod": lambda p: os.chmod(p, 0o600), "chown": lambda p: os.chown(p, 1, 1), "lchown": lambda p: os.lchown(p, 1, 1),
    "chown nothing": lambda p: os.chown(p, -1, -1), "utime": lambda p: os.utime(p, (1, 1)), "utime now": os.utime, "utime l": lambda p: os.utime(p, (1, 1), follow_symlinks=False),
    "setxattr": lambda p: os.setxattr(p, "user.new", b"1"), "setxattr create": lambda p: os.setxattr(p, "user.a", b"1", os.XATTR_CREATE),
    "setxattr trusted": lambda p: os.setxattr(p, "trusted.new", b"1"), "setxattr cap": lambda p: os.setxattr(p, "security.capability", b"\0" * 20),
    "setxattr l": lambda p: os.setxattr(p, "user.new", b"1", follow_symlinks=False), "removexattr": lambda p: os.removexattr(p, "user.a"),
    "removexattr none": lambda p: os.removexattr(p, "user.none"), "getxattr": lambda p: os.getxattr(p, "user.a"),
    "getxattr none": lambda p: os.getxattr(p, "user.none"), "getxattr trusted": lambda p: os.getxattr(p, "trusted.t"),
    "getxattr cap": lambda p: os.getxattr(p, "security.capability"), "getxattr acl": lambda p: os.getxattr(p, "system.posix_acl_access"),
    "getxattr default": lambda p: os.getxattr(p, "system.posix_acl_default"), "getxattr unknown": lambda p: os.getxattr(p, "what.ever"),
    "getxattr no name": lambda p: os.getxattr(p, "user."), "getxattr size 1": sized(b"user.a", 1), "getxattr size 0": sized(b"user.a", 0),
    "listxattr": lambda p: names(os.listxattr(p)), "llistxattr": lambda p: names(os.listxattr(p, follow_symlinks=False)),
    "listxattr size 3": listed(3), "bind": bound,
    "pread beyond": with_fd(lambda fd: os.pread(fd, 10, 1 << 40)), "seek minus": with_fd(lambda fd: os.lseek(fd, -1, 0)),
    "seek data": with_fd(lambda fd: is_file(fd) and os.lseek(fd, 0, os.SEEK_DATA)), "seek hole": with_fd(lambda fd: is_file(fd) and os.lseek(fd, 0, os.SEEK_HOLE)),
    "write": with_fd(lambda fd: os.write(fd, b"x")), "ftruncate": with_fd(lambda fd: os.ftruncate(fd, 0)), "fchmod": with_fd(lambda fd: os.fchmod(fd, 0o600)),
    "fchown": with_fd(lambda fd: os.fchown(fd, 1, 1)), "fsync": with_fd(os.fsync), "fallocate": with_fd(lambda fd: os.posix_fallocate(fd, 0, 10)),
    "fsetxattr": with_fd(lambda fd: os.setxattr(fd, "user.new", b"1")), "fgetxattr": with_fd(lambda fd: os.getxattr(fd, "user.a")),
    "flock sh": locked(fcntl.LOCK_SH), "flock ex": locked(fcntl.LOCK_EX), "lockf": with_fd(posix_lock),
})
# What leads up or begins with a slash stays in the tree: it is all that these calls, many of them root's, can reach. And nothing in
# it can be changed, whatever they do.
os.chroot(sys.argv[1])
os.chdir("/")
assert os.statvfs("/").f_flag & os.ST_RDONLY and not os.path.exists("/proc")
user = int(sys.argv[2])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
for what, call in C.items():
    for path in PATHS:
        try: result = repr(call(path))
        except OSError as error: result = errno.errorcode.get(error.errno, str(error))
        except ValueError as error: result = str(error)
        print(f"{what}\t{path[:20]!r}{len(path)}\t{result}")
"#;

/// A tree for [`CALLS`], of users 0, 1000 and 1234.
fn tree() -> Vec<u8> {
    let acl = |mask: u8| {
        // `u::rw-,u:1000:rw-,g::---,m::MASK,o::---`
        let entry = |tag: u8, bits: u8, id: [u8; 4]| [&[tag, 0, bits, 0][..], &id].concat();
        let (none, user) = ([255; 4], 1000_u32.to_le_bytes());
        [
            &[2, 0, 0, 0][..],
            &entry(1, 6, none),
            &entry(2, 6, user),
            &entry(4, 0, none),
            &entry(16, mask, none),
            &entry(32, 0, none),
        ]
        .concat()
    };
    archive(&[
        dir("./").mode(0o755),
        file("f"),
        file("empty").data(""),
        file("large").data(noise("large", 300_000)),
        file("private").mode(0o600),
        file("of-user").mode(0o600).owner(1000, 1000),
        file("of-group").mode(0o640).owner(0, 1000),
        file("acl").mode(0o660).xattr("system.posix_acl_access", acl(6)),
        file("acl-mask").mode(0o600).xattr("system.posix_acl_access", acl(0)),
        file("noperm").mode(0).owner(1000, 1000),
        file("x-only").mode(0o711).owner(1000, 1000),
        file("suid").mode(0o6755),
        dir("d/"),
        file("d/in"),
        sym("s", "f"),
        sym("s-dir", "d"),
        sym("dangling", "nowhere"),
        sym("loop", "loop"),
        sym("chain", "s"),
        sym("absolute", "/d/in"),
        fifo("fifo").mode(0o666),
        char("null", 1, 3).mode(0o666),
        file("hard1"),
        link("hard2", "hard1"),
        dir("closed/").mode(0o700),
        file("closed/in"),
        dir("passing/").mode(0o711),
        file("passing/in"),
        dir("reading/").mode(0o744),
        file("reading/in"),
        dir("sticky/").mode(0o1777),
        file("sticky/in").owner(1000, 1000),
        dir("group-dir/").mode(0o2750).owner(0, 1000).xattr("system.posix_acl_default", acl(4)),
        file("group-dir/in"),
        dir("deep/a/b/"),
        file("deep/a/b/c"),
        file("attributes").xattr("user.a", "value").xattr("user.long", [b'v'; 900]).xattr("trusted.t", "t").xattr(
            "security.capability",
            b"\x01\x00\x00\x02\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        ),
        file(b"b\xff"),
    ])
}

#[test]
fn every_call_ends_as_on_a_disk() {
    if !needs_root("mount::broken::every_call_ends_as_on_a_disk") {
        return;
    }
    let mut world = World::new();
    let item = world.image("tree", &[tree()]);
    // A disk that is mounted read-only, since what is writable beside this place is refused by other rules and in another order.
    let tar = world.make("images.tar", &["--unpacker", "gnu"], &[&item]);
    let disk = world.at.join("disk");
    fs_err::create_dir(&disk).unwrap();
    let script = r#"truncate -s 64M "$1.img" && mkfs.ext4 -q "$1.img" && mount -o loop "$1.img" "$1""#;
    ok(Command::new("sh").args(["-c", script, "sh"]).arg(&disk));
    unpack_gnu(&tar, &disk).unwrap();
    ok(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk));
    let unpacked = disk.join(ADDITIONAL);
    let mount = world.mount("mnt", &["--allow-other", &item]);
    let calls = world.at.join("calls.py");
    fs_err::write(&calls, CALLS).unwrap();
    let script = r#"mount --bind "$1" /mnt && mount -o remount,bind,ro,nosuid,nodev,noatime /mnt || exit 99
        exec python3 "$2" /mnt "$3""#;
    let done = |store: &Path, user: u32| -> BTreeMap<String, String> {
        let at = store.join("overlay").join(chain(store, &full("tree"))[0].as_str()).join("diff");
        let mut command = in_own_mounts("sh");
        let said = ok(command.args(["-c", script, "sh"]).arg(at).arg(&calls).arg(user.to_string()));
        said.lines()
            .map(|line| line.rsplit_once('\t').unwrap())
            .map(|(call, result)| (call.to_owned(), result.to_owned()))
            .collect()
    };
    let (mut total, mut wrong, mut results) = (0, Vec::new(), BTreeMap::<String, usize>::new());
    for user in [0, 1000, 1001] {
        let (shown, unpacked) = (done(&mount.at, user), done(&unpacked, user));
        assert_eq!(shown.len(), unpacked.len());
        total += shown.len();
        for (call, expected) in unpacked {
            let kind = if expected.starts_with('E') { expected.clone() } else { "done".to_owned() };
            *results.entry(kind).or_default() += 1;
            if shown[&call] != expected {
                wrong.push(format!("{user}: {call}: {} and not {expected}", shown[&call]));
            }
        }
    }
    eprintln!("{total} calls: {results:?}");
    for error in
        ["EROFS", "ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EISDIR", "EINVAL", "ENODATA", "ERANGE", "EACCES"]
    {
        assert!(results.contains_key(error), "{error} is tried");
    }
    ok(Command::new("umount").arg("-l").arg(&disk));
    assert!(wrong.is_empty(), "{} of {total}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Somebody who is no keeper, and messages that are none.
#[test]
fn rubbish_on_the_socket_does_no_harm() {
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::UnixStream;
    if !needs_root("mount::broken::rubbish_on_the_socket_does_no_harm") {
        return;
    }
    let mut world = World::new();
    let item = three(&mut world);
    let mount = world.mount("mnt", &[item]);
    let device = fs_err::metadata(&mount.at).unwrap().dev();
    let socket = format!("/run/prepull/mounts/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let message =
        |text: &[u8], files: u32| [&(text.len() as u32).to_le_bytes()[..], &files.to_le_bytes(), text].concat();
    for bytes in [
        vec![],
        vec![0; 3],
        vec![0xff; 8],
        message(b"{}", 0),
        message(b"\"Status\"", 0)[..10].to_vec(),
        message(b"{\"Put\":{\"scene\":{},\"generation\":1}}", 0),
        message(b"{\"Put\":{\"scene\":{\"generation\":2},\"generation\":1}}", 0),
        message(b"{\"Put\":{\"scene\":{\"generation\":2},\"generation\":7}}", 0),
        message(&b"[".repeat(100_000), 0),
        message(b"\"Nothing\"", 5),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(&bytes);
        drop(stream);
    }
    assert_eq!(mount.names(), [full("three")]);
    let status = mount.status();
    assert_eq!(number(&status["keeper"]), mount.keeper);
    kill(number(&status["worker"]), Signal::KILL);
    wait_for("another worker", || mount.status()["restarts"].as_u64() > status["restarts"].as_u64());
    assert_eq!(readable(&layer(&mount, &full("three"))), ["a", "b", "c"]);
}
