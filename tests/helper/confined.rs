//! Confines itself to the current directory as `prepull-helper` does, and then does the one thing that its argument names.
//! `tests/it/confine.rs` runs it, as everybody whom the helper could serve.

#![allow(clippy::print_stdout, reason = "it answers the test")]

use std::io::{self, IoSliceMut, Read as _};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, abort};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use prepull::helper::caller::identify;
use prepull::helper::confine::{Powers, begin, enter, open_target};
use prepull::helper::policy::Policy;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags, chownat, fsetxattr, makedev, mkdirat,
    mknodat, openat2,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::{Resource, getpid};
use rustix::stdio::stdin;
use rustix::thread::CapabilitySet;

/// What kills: the name begins with that of the system call.
#[rustfmt::skip]
const FORBIDDEN: &[(&str, fn())] = &[
    ("execve", || ignore(nix::unistd::execve(c"/x", &[c"/x"], &[c""; 0]))),
    ("clone3", || ignore(std::thread::spawn(|| ()).join())),
    ("pipe2", || ignore(io::pipe())),
    ("socket", || ignore(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None))),
    ("socketpair", || ignore(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None))),
    ("sendto", || ignore(rustix::net::send(stdin(), b"x", SendFlags::empty()))),
    ("ptrace", || ignore(nix::sys::ptrace::traceme())),
    ("process_vm_readv", || ignore(nix::sys::uio::process_vm_readv(Pid::from_raw(1), &mut [IoSliceMut::new(&mut [0])], &[]))),
    ("kill", || ignore(rustix::process::test_kill_process(rustix::process::Pid::INIT))),
    ("pidfd_open", || ignore(rustix::process::pidfd_open(getpid(), rustix::process::PidfdFlags::empty()))),
    ("mount", || ignore(nix::mount::mount(Some("none"), "/", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>))),
    ("umount2", || ignore(nix::mount::umount2("/none", nix::mount::MntFlags::MNT_DETACH))),
    ("pivot_root", || ignore(rustix::process::pivot_root(".", "."))),
    ("chroot", || ignore(rustix::process::chroot("."))),
    ("chdir", || ignore(rustix::process::chdir("/"))),
    ("fchdir", || ignore(rustix::process::fchdir(stdin()))),
    ("unshare", || ignore(nix::sched::unshare(CloneFlags::CLONE_NEWUSER))),
    ("setns", || ignore(nix::sched::setns(stdin(), CloneFlags::CLONE_NEWNS))),
    ("setuid", || ignore(rustix::thread::set_thread_uid(Uid::ROOT))),
    ("setgid", || ignore(rustix::thread::set_thread_gid(Gid::ROOT))),
    ("setgroups", || ignore(rustix::thread::set_thread_groups(&[]))),
    ("personality", || ignore(nix::sys::personality::get())),
    ("prctl", || ignore(rustix::thread::set_name(c"x"))),
    ("prlimit64", || ignore(rustix::process::getrlimit(Resource::Core))),
    ("init_module", || ignore(nix::kmod::init_module(&[], c""))),
    ("ioctl", || ignore(rustix::io::ioctl_fionread(stdin()))),
    ("openat", || ignore(rustix::fs::openat(CWD, "x", OFlags::RDONLY, Mode::empty()))),
    ("memfd_create", || ignore(rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::empty()))),
    ("inotify_init1", || ignore(rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty()))),
    ("epoll_create1", || ignore(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()))),
    ("fcntl F_SETFL", || ignore(rustix::fs::fcntl_setfl(stdin(), OFlags::APPEND))),
    ("mknodat of a character device", || ignore(mknod(FileType::CharacterDevice, 1, 3))),
    ("mknodat of a block device", || ignore(mknod(FileType::BlockDevice, 0, 0))),
    ("mknodat of a socket", || ignore(mknod(FileType::Socket, 0, 0))),
    ("mknodat of a file", || ignore(mknod(FileType::RegularFile, 0, 0))),
];

/// What the call says is of no interest: it must not come back.
fn ignore<T>(_: T) {}

fn mknod(kind: FileType, major: u32, minor: u32) -> Result<(), Errno> {
    mknodat(CWD, "node", kind, Mode::RUSR, makedev(major, minor))
}

fn create(name: &str) -> Result<std::os::fd::OwnedFd, Errno> {
    openat2(CWD, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR, ResolveFlags::BENEATH)
}

fn chown(path: &str, id: u32) -> Result<(), Errno> {
    chownat(CWD, path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)), AtFlags::SYMLINK_NOFOLLOW)
}

/// What the helper does all day.
fn work(powers: Powers) -> Result<(), Errno> {
    mkdirat(CWD, "directory", Mode::RWXU)?;
    let file = create("directory/file")?;
    rustix::io::write(&file, &[b'x'; 2000])?;
    assert_eq!(chown("directory/file", 4242), Err(Errno::PERM));
    powers.with(CapabilitySet::CHOWN, || chown("directory/file", 4242))?;
    assert_eq!(chown("directory/file", 4243), Err(Errno::PERM));
    // VFS_CAP_REVISION_2, cap_net_raw=p (linux/capability.h).
    let capability = [[0, 0, 0, 2], [0, 0x20, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    let set = || fsetxattr(&file, "security.capability", &capability, XattrFlags::CREATE);
    assert_eq!(set(), Err(Errno::PERM));
    powers.with(CapabilitySet::SETFCAP, set)?;
    mknodat(CWD, "fifo", FileType::Fifo, Mode::RUSR, 0)?;
    mknodat(CWD, "whiteout", FileType::CharacterDevice, Mode::RUSR, 0)?;
    rustix::fs::renameat(CWD, "fifo", CWD, "directory/fifo")?;
    rustix::fs::unlinkat(CWD, "whiteout", AtFlags::empty())
}

/// No path leads out.
fn outside(powers: Powers) {
    for path in ["/etc/passwd", "../../../../../../etc/passwd", "/proc/1/root/etc/passwd"] {
        let opened = openat2(CWD, path, OFlags::RDONLY, Mode::empty(), ResolveFlags::empty());
        assert_eq!(opened.map(drop), Err(Errno::NOENT), "{path}");
        // Its owner already: no harm is done should this fail.
        assert_eq!(powers.with(CapabilitySet::CHOWN, || chown(path, 0)), Err(Errno::NOENT), "{path}");
    }
}

/// Says where it is, and goes on when the test says so.
fn stop(at: &str) {
    println!("{at}");
    io::stdin().read_line(&mut String::new()).unwrap();
}

fn confined(mode: &str) -> Result<(), Box<dyn std::error::Error>> {
    let stops = mode.ends_with("phases");
    if mode == "all phases" {
        stop("started");
    }
    let sudo_uid = begin(mode)?;
    if stops {
        stop("begun");
    }
    if mode == "who" {
        let policy = Policy::load()?;
        let caller = identify(sudo_uid.as_deref())?;
        let roots = caller.allowed(&policy).into_iter().map(|entry| &*entry.root);
        println!("{} {}", caller.uid, roots.collect::<Vec<_>>().join(" "));
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = openat2(CWD, ".", flags, Mode::empty(), ResolveFlags::empty())?;
    let powers = enter(&target, mode == "devices")?;
    drop(target);
    if stops {
        stop("entered");
        powers.with(CapabilitySet::CHOWN, || stop("raised"));
        stop("lowered");
        return Ok(());
    }
    println!("entered");
    match mode {
        "work" => work(powers)?,
        "outside" => outside(powers),
        "devices" => {
            assert_eq!(mknod(FileType::CharacterDevice, 1, 3), Err(Errno::PERM));
            powers.with(CapabilitySet::MKNOD, || mknod(FileType::CharacterDevice, 1, 3))?;
        }
        "no power" => {
            // It is not kept.
            let mknod = || mknod(FileType::CharacterDevice, 0, 0);
            powers.with(CapabilitySet::SYS_ADMIN, mknod)?;
            powers.with(CapabilitySet::DAC_OVERRIDE, || chown("node", 1)).unwrap_err();
        }
        "abort" => abort(),
        "panic" => panic!("as it should"),
        _ => FORBIDDEN.iter().find(|(name, _)| *name == mode).unwrap().1(),
    }
    println!("done");
    Ok(())
}

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let result = match &*mode {
        "list" => {
            FORBIDDEN.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        // Connects as whoever runs it.
        "connect" => UnixStream::connect("socket").map_err(Into::into).map(|_socket| stop("connected")),
        // The policy is standard input.
        "open" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).unwrap();
            let policy = Policy::parse(&text).unwrap();
            let opened = open_target(&policy.allow.iter().collect::<Vec<_>>());
            opened
                .map_err(Into::into)
                .map(|(allow, _)| println!("{}", policy.allow.iter().position(|entry| entry == allow).unwrap()))
        }
        _ => confined(&mode),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
