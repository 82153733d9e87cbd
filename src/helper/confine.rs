//! What the helper takes from itself before it reads the first byte of its input.
//!
//! [`begin`], then the policy is read and the target opened, then [`enter`]: each a straight line, in which every step says
//! why it stands where it stands. Nothing here depends on the input, and no thread is started before or after.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{ABI, Access as _, AccessFs, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitiesSecureBits;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule};

use super::policy::{Allow, open_root};

/// What is kept, permitted and never effective but around one call: owners, modes and times of others' files, setgid, and file
/// capabilities. Everything else, reading and writing others' files included, the helper does without.
pub const KEPT: [Capability; 4] =
    [Capability::CAP_CHOWN, Capability::CAP_FOWNER, Capability::CAP_FSETID, Capability::CAP_SETFCAP];

/// Open files at once: three standard ones, the store's directories, locks, and what is being written.
const FILES_MAX: u64 = 64;

/// The only variable that is read: see [`caller`](super::caller::identify).
const SUDO_UID: &str = "SUDO_UID";

/// Why the helper does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot start again without its environment.
    #[error("starting again without an environment: {0} (is /proc mounted?)")]
    Environment(std::io::Error),
    /// A step that must not fail.
    #[error("{step}: {error}")]
    Step {
        /// Which.
        step: &'static str,
        /// What the system said.
        error: rustix::io::Errno,
    },
    /// A capability that it needs.
    #[error(
        "the helper does not have {0} (start it by sudo, by its service, or give it file capabilities: `prepull doctor`)"
    )]
    Lacks(Capability),
    /// Capabilities cannot be dropped.
    #[error("dropping capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Landlock does not take its rules.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// No filter for system calls.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// No entry fits.
    #[error(
        "the policy does not allow this user to write to this directory ({}; the directory is chosen by being the current one)",
        super::policy::PATH
    )]
    NotAllowed,
}

fn step(step: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |error| Error::Step { step, error }
}

/// Takes off what was inherited. Gives `SUDO_UID`.
///
/// # Errors
/// When a step fails.
pub fn begin(mode: &str) -> Result<Option<OsString>, Error> {
    // 1. The environment. Nothing below reads it; a library may. Removing variables from a running process is not safe in
    //    any language, so the program starts once more without them. Before no_new_privs, which would take file capabilities away.
    let sudo_uid = std::env::var_os(SUDO_UID);
    if std::env::vars_os().any(|(name, _)| name != OsStr::new(SUDO_UID)) {
        let keep = sudo_uid.as_ref().map(|uid| CString::new([b"SUDO_UID=", uid.as_bytes()].concat()));
        let keep: Vec<CString> = keep.into_iter().flatten().collect();
        let words = [c"prepull-helper".to_owned(), CString::new(mode).unwrap_or_default()];
        return match nix::unistd::execve(c"/proc/self/exe", &words, &keep) {
            Err(error) => Err(Error::Environment(error.into())),
        };
    }
    // 2. Descriptors of whoever started us, before we have any of our own. (Where 0, 1 or 2 were closed, Rust's start-up has
    //    put /dev/null.)
    for descriptor in 3..rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(1 << 16).min(1 << 16) {
        let _ = nix::unistd::close(descriptor as i32);
    }
    // 3. Nobody but root gets to what is made, unless a mode is set on purpose.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // 4. No core file, no ptrace, no /proc/PID of ours for the user who started us.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("not dumpable"))?;
    // 5. No program that is started gets more than we have. (None is: seccomp below.)
    rustix::thread::set_no_new_privs(true).map_err(step("no_new_privs"))?;
    // 6. Limits: a file size limit is an error (EFBIG), not a death by SIGXFSZ; where we may, it is lifted.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    let _ = blocked.thread_block();
    let unlimited = Rlimit { current: None, maximum: None };
    for resource in [Resource::Fsize, Resource::Cpu, Resource::As, Resource::Data] {
        let _ = rustix::process::setrlimit(resource, unlimited);
    }
    let none = |most| Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(Resource::Core, none(0)).map_err(step("no core files"))?;
    let _ = rustix::process::setrlimit(Resource::Nofile, none(FILES_MAX));
    Ok(sudo_uid)
}

/// Opens the root directory of the entry that is meant: of those that the caller may use, the one whose directory is the current
/// one. Compared is what it is (device and inode), never what it is called.
///
/// # Errors
/// When there is none.
pub fn open_target(allowed: &[&Allow]) -> Result<(usize, OwnedFd), Error> {
    let here = rustix::fs::openat(CWD, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let here = here.and_then(|here| rustix::fs::fstat(&here)).map_err(step("looking at the current directory"))?;
    for (number, allow) in allowed.iter().enumerate() {
        // A directory that is not there, or behind a link, is not the one.
        let Ok(root) = open_root(&allow.root) else { continue };
        let found = rustix::fs::fstat(&root).map_err(step("looking at the root directory"))?;
        if (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino) {
            return Ok((number, root.into()));
        }
    }
    Err(Error::NotAllowed)
}

/// Goes into `target`, for good, and keeps nothing but what is needed there.
///
/// # Errors
/// When a step fails that must not.
pub fn enter(target: &OwnedFd, devices: bool) -> Result<Powers, Error> {
    // 1. What could ever be had again: bounding set, ambient set, and the rules by which root gets capabilities. Only with
    //    CAP_SETPCAP; a helper with file capabilities does not have it, and no_new_privs stands for it.
    for capability in caps::all() {
        let _ = caps::drop(None, CapSet::Bounding, capability);
    }
    let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    let locked = CapabilitiesSecureBits::NO_ROOT_LOCKED | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    let _ = rustix::thread::set_capabilities_secure_bits(bits | locked);
    let _ = rustix::thread::clear_ambient_capability_set();
    // 2. Groups of whoever started us open nothing for us. Before CAP_SETGID goes.
    let _ = rustix::thread::set_thread_groups(&[]);
    // 3. The target is all there is. Not only Landlock: it does not know of chown, chmod and attributes. After /etc and /proc
    //    have been read, before CAP_SYS_CHROOT goes.
    let _ = caps::raise(None, CapSet::Effective, Capability::CAP_SYS_CHROOT);
    rustix::process::fchdir(target).map_err(step("going into the target"))?;
    rustix::process::chroot(c".").map_err(step("staying in the target"))?;
    // 4. Capabilities: four permitted, none effective.
    let permitted = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = KEPT.into_iter().chain(devices.then_some(Capability::CAP_MKNOD)).collect();
    if let Some(lacking) = keep.iter().find(|capability| !permitted.contains(capability)) {
        return Err(Error::Lacks(*lacking));
    }
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    // 5. A second fence, for what Landlock knows of. Where the kernel has none, the first one stands alone.
    let all = AccessFs::from_all(ABI::V5);
    let inside = rustix::fs::openat(CWD, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let inside = inside.map_err(step("looking at the target"))?;
    let rules = Ruleset::default().handle_access(all)?.create()?;
    rules.add_rule(PathBeneath::new(inside.as_fd(), all))?.restrict_self()?;
    // 6. Last, since all of the above are calls that are none of ours from here on.
    seccompiler::apply_filter(&filter(devices)?)?;
    Ok(Powers::Raised)
}

/// System calls that stay. Everything else ends the process.
fn filter(devices: bool) -> Result<BpfProgram, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    SeccompFilter::new(rules(devices)?, SeccompAction::KillProcess, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(seccompiler::Error::Backend)
}

fn rules(devices: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    let condition = |argument, length, operator, value| {
        SeccompCondition::new(argument, length, operator, value).map_err(seccompiler::Error::Backend)
    };
    let rule = |conditions| SeccompRule::new(conditions).map_err(seccompiler::Error::Backend);
    let kind = |kind: u32| condition(2, Dword, MaskedEq(libc::S_IFMT.into()), kind.into());
    // Named pipes, and whiteouts.
    let mut nodes =
        vec![rule(vec![kind(libc::S_IFIFO)?])?, rule(vec![kind(libc::S_IFCHR)?, condition(3, Qword, Eq, 0)?])?];
    if devices {
        nodes.push(rule(vec![kind(libc::S_IFCHR)?])?);
        nodes.push(rule(vec![kind(libc::S_IFBLK)?])?);
    }
    rules.insert(libc::SYS_mknodat, nodes);
    // Memory is never code.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![rule(vec![condition(2, Dword, MaskedEq(libc::PROT_EXEC as u64), 0)?])?]);
    }
    Ok(rules)
}

/// Reading, writing, names and metadata; memory; the clock; and the way out. Opening is `openat2` only, with its rules for
/// every component. There is no socket, no process, no ioctl and no identity to change in it.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat2,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    libc::SYS_fcntl,
    libc::SYS_flock,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getpid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_gettid,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // No call has this number: the kernel's answer is ENOSYS. Who injects faults with a debugger, as the tests do, puts it in
    // place of the call that is to fail, and must meet the same filter as everybody.
    0xffff_ffff,
];

/// How what needs a capability is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Powers {
    /// As the process may: root without the helper.
    Own,
    /// Capabilities are permitted but not effective, and raised around one call.
    Raised,
}

impl Powers {
    /// Makes `call` with `capability`. Where raising fails, so does the call.
    pub fn with<T>(self, capability: Capability, call: impl FnOnce() -> T) -> T {
        if self == Self::Own {
            return call();
        }
        let _ = caps::raise(None, CapSet::Effective, capability);
        let result = call();
        let _ = caps::drop(None, CapSet::Effective, capability);
        result
    }
}
