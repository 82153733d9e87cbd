//! What the helper takes from itself before it reads the first byte of its input.
//!
//! [`begin`], then the policy and the caller, [`open_target`], [`keep_users_out`], [`enter`]: each step needs what the next ones
//! take away. All of it is per thread where the kernel knows threads, so there must be one only.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstat, fstatvfs, openat2};
use rustix::io::Errno;
use rustix::process::{self, Resource, Rlimit, getrlimit, setrlimit};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::thread::{self, CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::Error;
use super::policy::{Allow, PATH};

/// What tells the helper who has called sudo.
const SUDO_UID: &str = "SUDO_UID";

/// What programs like sudo set, but not `SUDO_UID`: their caller would be taken for root.
const OTHER_STARTERS: [&str; 2] = ["DOAS_USER", "PKEXEC_UID"];

/// The most open files: a directory for each component of the longest path.
const FILES_MAX: u64 = 4096;

/// What the limits are made, as far as the caller's own allow: whoever starts the helper cannot make it fail half-way. A
/// core dump would have what it read.
#[rustfmt::skip]
const LIMITS: [(Resource, Option<u64>); 6] = [
    (Resource::Core, Some(0)), (Resource::Nofile, Some(FILES_MAX)), (Resource::Fsize, None), (Resource::Cpu, None),
    (Resource::As, None), (Resource::Data, None),
];

/// What stays permitted: give files away, set what only an owner may, keep setgid bits, and set file capabilities.
const KEPT: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::FOWNER).union(CapabilitySet::FSETID).union(CapabilitySet::SETFCAP);

/// Signals that neither end nor stop this process. A user who starts it by sudo shares a terminal with it, so without the last
/// three Ctrl-Z would stop it while it holds the locks of a store.
#[rustfmt::skip]
const BLOCKED: [Signal; 8] = [
    Signal::SIGXFSZ, Signal::SIGXCPU, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP,
    Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU,
];

/// Number of the scheduling policy for which any other process comes first (Linux `include/uapi/linux/sched.h`).
const SCHED_IDLE: &str = "5";

/// Position of the scheduling policy after the program's name in /proc/self/stat (proc(5): field 41, the name is field 2).
const STAT_POLICY: usize = 38;

/// Tolerance of timers, in nanoseconds: that of the first process (Linux `init/init_task.c`, `timer_slack_ns`).
const TIMER_SLACK: u64 = 50_000;

/// For messages: where the helper was started, and what it may do.
const HERE: &str = "the current directory";
const CAPABILITIES: &str = "capabilities";

/// The newest Landlock that is used if the kernel has it.
const LANDLOCK: ABI = ABI::V6;

/// Takes away what the caller could have left to this process, for any caller. Gives `SUDO_UID`. `mode` is the only argument,
/// if it has to start again.
///
/// Standard input, output and error are there: Rust opens /dev/null for those that are closed at the start.
///
/// # Errors
/// When a step fails: then nothing has been read or written.
pub fn begin(mode: &str) -> Result<Option<OsString>, Error> {
    // 1. The environment. Nothing here asks for it, but libraries do. It cannot be cleared in place without `unsafe`; so again,
    // from the same file, which also takes out of memory what was loaded for it.
    if let Some(name) = OTHER_STARTERS.into_iter().find(|name| std::env::var_os(name).is_some()) {
        return Err(Error::said(format!(
            "{name} is set, but only sudo may start this program for a user: use sudo, or unset it"
        )));
    }
    let sudo_uid = std::env::var_os(SUDO_UID);
    if std::env::vars_os().any(|(name, _)| name != SUDO_UID) {
        let keep = sudo_uid.map(|value| CString::new([b"SUDO_UID=", value.as_bytes()].concat()));
        let keep: Vec<CString> = keep.into_iter().flatten().collect();
        let words = [c"prepull-helper".to_owned(), CString::new(mode).unwrap_or_default()];
        let Err(error) = nix::unistd::execve(c"/proc/self/exe", &words, &keep);
        return Err(Error::said(format!("starting again without the environment: {error} (/proc must be mounted)")));
    }
    // 2. Open files: before any of ours is opened.
    close_inherited().map_err(Error::at("closing what the caller left open (/proc must be mounted)"))?;
    // A directory would be a way out of the root, and Landlock does not keep files in it from being given away.
    let standard = [stdin(), stdout(), stderr()];
    if standard.iter().any(|fd| fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())) {
        return Err(Error::said("standard input, output or error is a directory"));
    }
    // 3. What is made has no permissions that were not asked for.
    process::umask(Mode::RWXG | Mode::RWXO);
    // 4. No other process of the caller reads its memory or takes it over by ptrace.
    let not_dumpable = process::DumpableBehavior::NotDumpable;
    process::set_dumpable_behavior(not_dumpable).map_err(Error::at("PR_SET_DUMPABLE"))?;
    // 5. No program gives it more than it has. Landlock and seccomp ask for this, too.
    thread::set_no_new_privs(true).map_err(Error::at("PR_SET_NO_NEW_PRIVS"))?;
    // 6. Limits, and their signals: a write that goes over a limit is an error then, and not the end. Those of the caller's
    // terminal are the caller's: when that ends, so does the stream, and what waits for a lock sees that nobody waits for it.
    for (resource, wanted) in LIMITS {
        lift(resource, wanted);
    }
    let blocked: SigSet = BLOCKED.into_iter().collect();
    blocked.thread_set_mask().map_err(Error::at("blocking signals"))?;
    // 7. The caller's share of the processors: with too little, it would hold the locks of a store for as long as the caller likes.
    reset_scheduling()?;
    Ok(sudo_uid)
}

/// Resets what a caller leaves to the processes that it starts by sudo: the nice value, which processors may be used, and how late
/// timers may fire. The idle policy is refused, because resetting it takes a system call that no safe interface has.
///
/// # Errors
/// If the process was started with the idle policy, or /proc is not mounted.
fn reset_scheduling() -> Result<(), Error> {
    // A service lacks CAP_SYS_NICE, and its manager has set both.
    let _ = process::setpriority_process(None, 0);
    let mut processors = thread::CpuSet::new();
    (0..thread::CpuSet::MAX_CPU).for_each(|number| processors.set(number));
    let _ = thread::sched_setaffinity(None, &processors);
    // A process inherits its timers' tolerance, also through sudo: with an hour of it, waiting five milliseconds for the second lock
    // of a store would keep the first one for an hour.
    thread::set_current_timer_slack(std::num::NonZero::new(TIMER_SLACK)).map_err(Error::at("PR_SET_TIMERSLACK"))?;
    let opened = rustix::fs::open("/proc/self/stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let stat = opened.map_err(io::Error::from).and_then(|file| io::read_to_string(File::from(file)));
    let stat = stat.map_err(Error::at("reading /proc/self/stat"))?;
    let policy = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(STAT_POLICY));
    if policy.is_none_or(|policy| policy == SCHED_IDLE) {
        return Err(Error::said("it was started with the idle scheduling policy (chrt --other 0 ...)"));
    }
    Ok(())
}

/// Closes all above standard error.
///
/// # Errors
/// The kernel's, where /proc is not mounted.
pub fn close_inherited() -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    let listed: Vec<_> = Dir::new(list)?.collect::<Result<_, _>>()?;
    let numbers = listed.iter().filter_map(|entry| entry.file_name().to_str().ok()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2) {
        // It is closed even if that reports an error of a write long ago. What it was listed by is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Sets a limit to `wanted`, or as near as the caller's hard limit allows.
fn lift(resource: Resource, wanted: Option<u64>) {
    if setrlimit(resource, Rlimit { current: wanted, maximum: wanted }).is_err() {
        let maximum = getrlimit(resource).maximum;
        // To set a limit to its maximum is always allowed.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

/// Opens the root of the first entry that is the current directory. Comparing what was opened, and not names, there is nothing
/// to be swapped in between.
///
/// # Errors
/// When there is none.
pub fn open_target<'a>(allow: &[&'a Allow]) -> Result<(&'a Allow, OwnedFd), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let here = openat2(CWD, ".", flags, Mode::empty(), resolve).map_err(Error::at(HERE))?;
    let here = fstat(here).map_err(Error::at(HERE))?;
    for entry in allow {
        // A root that is not there is not where the caller is.
        let Ok(root) = openat2(CWD, &entry.root, flags, Mode::empty(), resolve) else { continue };
        let found = fstat(&root).map_err(Error::at(HERE))?;
        if (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino) {
            return Ok((entry, root));
        }
    }
    Err(Error::said(format!("{PATH} does not allow the caller {HERE} as a root (roots may not be symbolic links)")))
}

/// Refuses a target out of which users could run a setuid program of an image, or open a device of one: whatever a caller who
/// is not root has put there would make that caller root.
///
/// `on_the_way` are owners and modes of directories that lead to the content. Users do not get past one that is root's with mode
/// 0700, wherever its parents are and whoever owns those.
///
/// # Errors
/// If the entry allows such content, and neither the modes nor the mount of `target` make it harmless.
pub fn keep_users_out(entry: &Allow, caller: u32, on_the_way: &[(u32, u32)], target: &OwnedFd) -> Result<(), Error> {
    let mount = fstatvfs(target).map_err(Error::at(HERE))?.f_flag;
    if caller == 0 || !is_reachable(entry, on_the_way, mount) {
        return Ok(());
    }
    let why = "users can reach it, and setuid programs or devices in it would be real";
    let hint = "mount it nosuid,nodev, or make it root's with mode 0700, or forbid suid, filecaps and devices";
    Err(Error::said(format!("{}: {why}: {hint} in {PATH}", entry.root)))
}

/// Returns whether users get to files below these directories that could give them root's rights.
fn is_reachable(entry: &Allow, on_the_way: &[(u32, u32)], mount: StatVfsMountFlags) -> bool {
    let is_closed = on_the_way.iter().any(|(uid, mode)| *uid == 0 && mode & 0o077 == 0);
    let runs = (entry.suid || entry.filecaps) && !mount.contains(StatVfsMountFlags::NOSUID);
    let opens = entry.devices && !mount.contains(StatVfsMountFlags::NODEV);
    !is_closed && (runs || opens)
}

/// Locks this process into `target`, with what it takes to write there and nothing else. After it, the first byte of input.
///
/// # Errors
/// When a step fails: then nothing has been read or written.
pub fn enter(target: &OwnedFd, devices: bool) -> Result<Powers, Error> {
    let permitted = capabilities(None).map_err(Error::at(CAPABILITIES))?.permitted;
    let kept = if devices { KEPT | CapabilitySet::MKNOD } else { KEPT };
    let missing = (kept | CapabilitySet::SYS_CHROOT) - permitted;
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        return Err(Error::said(format!(
            "not permitted: {} (start it by sudo or by its socket, with no narrower bounding set than policy/ has)",
            missing.join(", ")
        )));
    }
    // 0. Groups of whoever started it open nothing. Where they cannot be left they are that user's own.
    let _ = thread::set_thread_groups(&[]);
    // 1. Only what the next two steps need can be used from here on.
    let effective = permitted & (CapabilitySet::SYS_CHROOT | CapabilitySet::SETPCAP);
    set(effective, permitted)?;
    // 2. The root: no path leads out, for any system call. Landlock alone knows nothing of chown, chmod and setxattr.
    let entered = process::fchdir(target).and_then(|()| process::chroot(".")).and_then(|()| process::chdir("/"));
    entered.map_err(Error::at("chroot"))?;
    // 3. What a program would get that this process started: nothing. It cannot start one (7), so where this is not permitted
    // (the systemd unit) it is not missed.
    if effective.contains(CapabilitySet::SETPCAP) {
        for one in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            // What this kernel does not know is an error, and in no set.
            if thread::capability_is_in_bounding_set(one).unwrap_or(false) {
                thread::remove_capability_from_bounding_set(one).map_err(Error::at(CAPABILITIES))?;
            }
        }
        let bits = thread::capabilities_secure_bits().map_err(Error::at(CAPABILITIES))? | SECURE_BITS;
        thread::set_capabilities_secure_bits(bits).map_err(Error::at(CAPABILITIES))?;
    }
    thread::clear_ambient_capability_set().map_err(Error::at(CAPABILITIES))?;
    // 4. The capabilities: with CAP_SYS_CHROOT gone there is no second chroot, the way out of the first.
    set(CapabilitySet::empty(), kept)?;
    // 5. No file outside is opened, even by way of a directory outside that somebody leaves open; nothing in it is executed; no
    // network, no signals to others. It needs no privilege, so it comes after that is gone.
    if confine_files(target, devices).map_err(Error::at("Landlock"))? == RulesetStatus::NotEnforced {
        let line = b"prepull-helper: this kernel has no Landlock: chroot and seccomp have to do\n";
        let _ = io::stderr().write_all(line);
    }
    // 6. Last, since the steps before use what it forbids.
    let filter = filter(devices).map_err(Error::at("seccomp"))?;
    seccompiler::apply_filter(&filter).map_err(Error::at("seccomp (the kernel must have CONFIG_SECCOMP_FILTER)"))?;
    Ok(Powers::Raised)
}

/// What may be used, and what may be raised. Nothing is inherited.
fn set(effective: CapabilitySet, permitted: CapabilitySet) -> Result<(), Error> {
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(Error::at(CAPABILITIES))
}

/// Being uid 0 means nothing, for good.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Landlock, as much of it as the kernel has.
fn confine_files(target: &OwnedFd, devices: bool) -> Result<RulesetStatus, RulesetError> {
    let mut access = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute & !AccessFs::MakeSock & !AccessFs::IoctlDev;
    if !devices {
        access &= !AccessFs::MakeBlock;
    }
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    Ok(rules.add_rule(PathBeneath::new(target, access))?.restrict_self()?.ruleset)
}

/// Whether argument `index` is `value` under `mask`. All that are looked at are `int` or shorter to the kernel, which does not
/// look at their upper half; neither must this.
fn argument(index: u8, mask: u32, value: u32) -> SeccompCondition {
    let compare = SeccompCmpOp::MaskedEq(mask.into());
    SeccompCondition::new(index, Dword, compare, value.into()).expect("no call has more than six arguments")
}

/// The system calls that one thread needs that works with files. Any other kills the process: it never makes one, so whoever
/// makes it is not it.
///
/// There is no `openat`: all files are opened by `openat2`, with what may be resolved said each time, so that whoever reads the
/// code does not have to look for the one place that follows links.
fn filter(devices: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let is = |index, value: i32| argument(index, u32::MAX, value as u32);
    let mut allow_if = |call, alternatives: Vec<Vec<SeccompCondition>>| {
        let alternatives: Result<Vec<_>, _> = alternatives.into_iter().map(SeccompRule::new).collect();
        alternatives.map(|alternatives| rules.insert(call, alternatives))
    };
    // Memory is never code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow_if(call, vec![vec![argument(2, libc::PROT_EXEC as u32, 0)]])?;
    }
    // Pipes and whiteouts, which are the character device 0:0.
    let node = |kind| argument(2, libc::S_IFMT, kind);
    let mut nodes = vec![vec![node(libc::S_IFIFO)], vec![node(libc::S_IFCHR), is(3, 0)]];
    if devices {
        nodes.extend([vec![node(libc::S_IFCHR)], vec![node(libc::S_IFBLK)]]);
    }
    allow_if(libc::SYS_mknodat, nodes)?;
    // Locks and flags. Not F_SETOWN, F_SETSIG or F_NOTIFY: they send signals.
    allow_if(libc::SYS_fcntl, FCNTL.iter().map(|command| vec![is(1, *command)]).collect())?;
    // abort() of glibc and of musl: to itself.
    let own = process::getpid().as_raw_nonzero().get();
    allow_if(libc::SYS_tgkill, vec![vec![is(0, own), is(2, libc::SIGABRT)]])?;
    allow_if(libc::SYS_tkill, vec![vec![is(0, own), is(1, libc::SIGABRT)]])?;
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

/// What `fcntl` may do.
#[rustfmt::skip]
const FCNTL: [i32; 10] = [
    libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_GETLK, libc::F_SETLK, libc::F_SETLKW,
    libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW,
];

/// No system call has this number: the kernel answers ENOSYS. A tracer that makes a call fail (`strace -e inject=`) sets it,
/// and so the filter that is tested is the real one.
const NO_CALL: i64 = 0xffff_ffff;

/// What is allowed whatever the arguments are.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    NO_CALL,
    // Files that are open.
    libc::SYS_read, libc::SYS_write, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_lseek,
    libc::SYS_ftruncate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_flock, libc::SYS_close,
    libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_getdents64, libc::SYS_fchmod, libc::SYS_fsetxattr,
    libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Names in directories.
    libc::SYS_openat2, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_readlinkat, libc::SYS_mkdirat,
    libc::SYS_symlinkat, libc::SYS_linkat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_fchownat,
    libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_lsetxattr,
    // Capabilities around single calls.
    libc::SYS_capget, libc::SYS_capset,
    // What the language and its C library need: memory, time, signals of the process itself, the end.
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_futex, libc::SYS_getrandom,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_sched_yield, libc::SYS_getpid,
    libc::SYS_gettid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getegid, libc::SYS_sigaltstack, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall, libc::SYS_exit, libc::SYS_exit_group,
];

/// How the process comes to its capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Powers {
    /// It does as it may: root that works without the helper.
    Own,
    /// They are permitted, but of no effect: raised around one call.
    Raised,
}

impl Powers {
    /// Does `call` with `needed`. Where that is not permitted, the call itself fails for that.
    pub fn with<T>(self, needed: CapabilitySet, call: impl FnOnce() -> T) -> T {
        let (Self::Raised, Ok(before)) = (self, capabilities(None)) else { return call() };
        let _ = set_capabilities(None, CapabilitySets { effective: before.effective | needed, ..before });
        let done = call();
        // Less than now is always allowed. If it fails nevertheless, nothing here can be relied upon. A panic is the end.
        if set_capabilities(None, before).is_err() {
            std::process::abort();
        }
        done
    }

    /// From here on there are none, not even permitted.
    ///
    /// # Errors
    /// Never, as far as the kernel's rules go.
    pub fn give_up(self) -> Result<(), Error> {
        let none = CapabilitySet::empty();
        if self == Self::Raised { set(none, none) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
