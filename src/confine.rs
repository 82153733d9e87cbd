//! The confinement of a process that fetches, inflates and parses when root has started it.
//!
//! ```text
//!  root runs            this process does                          its confinement
//!  make                 sources ▶ parse, inflate ▶ cache, tar      writes: cache, TMPDIR, the tar's directory
//!  install              sources ▶ parse, inflate ▶ cache           writes: cache, TMPDIR
//!  mount, add, rm       sources ▶ parse, inflate ▶ cache, scene    writes: cache, TMPDIR
//!  mount-fetcher        sources ▶ parse, inflate ▶ cache           writes: cache, TMPDIR
//!  mount-worker         scene ▶ parse, answer the kernel           its own, narrower one: `mount::worker`
//!  ls verify why diff   tar or directory ▶ parse                   writes: TMPDIR if an input is a tar
//! ```
//!
//! What needs privileges afterwards is done by a process that the confined one has started before, and that parses no image:
//!
//! ```text
//!  started by           process                                    with root's privileges it
//!  mount                mount-keeper                               mounts, unmounts, starts workers and fetchers
//!  mount add, rm        mount-relay                                connects to the keeper
//!  install              install-applier                            writes into the store, pins names for CRI-O
//! ```
//!
//! Such a process is told what the user has typed while its parent is still trusted. What it is sent later is data: a scene with
//! open files, which a worker parses, or the stream of `prepull-helper`, which `helper::serve` reads as strictly as in the helper. So
//! a compromised front of `install` can do with the target that was typed what a caller of a helper without limits can do
//! (`kind = "storage"`, or `"rootfs"` with `--rootfs`), and nothing elsewhere: `install::applier`.
//!
//! Root's `rm` and `gc` are not confined: they fetch nothing, and parse only the store's own records and the machine's configuration.
//! Nor is an `install` that root runs with `--via socket` or `--via sudo`.
//!
//! The whole process is confined while it still has a single thread, since capabilities, Landlock and seccomp belong to threads on
//! Linux and later threads inherit them. Memory corruption in one thread therefore finds no thread with more rights.
//!
//! A confined process is uid 0 without a capability, with `no_new_privs`, an empty bounding set and secure bits, so no program that
//! it starts has more. Landlock lets it write only below the directories named in [`Needs`], and read only those, its sources and
//! the system's configuration and libraries. seccomp forbids system calls that reach the kernel or other processes (mount, ptrace,
//! bpf, keyctl, modules, namespaces, handles, …) and those by which uid 0 could harm as the owner of files what Landlock does not
//! govern: owners, attributes, and modes that give rights away.
//!
//! uid 0 without capabilities reads and writes other users' files only as far as their modes let everybody. Where that is not
//! enough for a path that the user has typed, the one capability that is missing is kept, Landlock still limits it to the same
//! directories, and [`confine`] returns a note for the user.
//!
//! Directories of a machine have files of all owners, so `ls` and `why` keep CAP_DAC_READ_SEARCH for them, with read access below
//! these directories only. `verify` and `diff` also compare `trusted.*` attributes, which the kernel shows to CAP_SYS_ADMIN only, and
//! keep that: the system calls for which it is good otherwise (mounts, namespaces, quotas, bpf, …) are forbidden to every confined
//! process, and of ioctl(2), by which it can freeze a file system, only five harmless ones are allowed to these.
//!
//! There is no cost that can be measured. `make --no-cache` of an image with one layer of gzip (1.24 GB of files from `/usr`, in an
//! OCI layout) took root, whose process is confined, 0.999 times the processor time that it took an ordinary user, whose process is
//! not (0.93 to 1.07; 8.5 s and 8.3 s). `install --no-cache` of the image by root took 0.995 times what it took before that command
//! was confined (0.90 to 1.09; 11.0 s and 11.4 s). Both are medians of five pairs in turn, all files in a tmpfs, release builds
//! without link-time optimisation, two processors, Linux 6.18.
//!
//! A process that root has not started has no rights that its user lacks, and is not confined.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, Scope,
};
use nix::libc;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

/// The newest Landlock that is used if the kernel has it.
const LANDLOCK: ABI = ABI::V6;

/// Maximum number of files below a source that are examined for whether uid 0 can read them without capabilities.
const EXAMINED_MAX: usize = 100_000;

/// What programs and libraries read: configuration, certificates, the resolver, libraries, what the kernel says.
const SYSTEM: [&str; 34] = [
    "/bin",
    "/dev/null",
    "/dev/urandom",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/containers",
    "/etc/crypto-policies",
    "/etc/docker",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/run/containers",
    "/run/systemd/resolve",
    "/sbin",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/usr",
];

/// Files that are read and written whatever the process does: standard input or output of programs that it starts.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/tty"];

/// What a process needs beyond what every process reads.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files and directories to read: sources, certificates, credentials. Missing ones count for nothing.
    pub reads: Vec<PathBuf>,
    /// Directories to write below, and files to write. Missing ones count for nothing.
    pub writes: Vec<PathBuf>,
    /// True if it connects to local services: the Docker daemon, or what a credential helper asks.
    pub local_sockets: bool,
    /// Attributes and files in the directories of `reads` that only root can read.
    pub trees: Trees,
}

/// Which parts of directory inputs a process reads, whatever owners and modes their files have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Trees {
    /// Nothing that takes a capability, unless a path cannot be read without one.
    #[default]
    None,
    /// Files that only their owners can read: CAP_DAC_READ_SEARCH.
    Files,
    /// These, and `trusted.*` attributes, which the kernel shows to CAP_SYS_ADMIN only.
    Attributes,
}

impl Trees {
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::None => CapabilitySet::empty(),
            Self::Files => CapabilitySet::DAC_READ_SEARCH,
            Self::Attributes => CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN,
        }
    }
}

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of the kernel's failed.
    #[error("giving up root's privileges: {0}: {1}")]
    System(&'static str, io::Error),
    /// Landlock's rules cannot be made. The text has the whole chain of causes, so there is no source.
    #[error("giving up root's privileges: Landlock: {0}")]
    Landlock(String),
    /// The filter of system calls cannot be made or set.
    #[error("giving up root's privileges: seccomp: {0}")]
    Seccomp(String),
}

impl From<RulesetError> for Error {
    fn from(error: RulesetError) -> Self {
        Self::Landlock(error.to_string())
    }
}

fn at<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::System(what, error.into())
}

/// Returns whether this process is root of the machine, not of a user namespace.
///
/// # Errors
/// When the kernel does not say which capabilities this process has.
pub fn is_privileged() -> Result<bool, Error> {
    let permitted = capabilities(None).map_err(at("capabilities"))?.permitted;
    // user_namespaces(7): in the initial namespace all ids map to themselves.
    let map = fs_err::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_initial = map.is_empty() || map.split_whitespace().eq(["0", "0", "4294967295"]);
    Ok(!permitted.is_empty() && is_initial)
}

/// Confines this process, which must have a single thread, for good. Does nothing for a process without privileges.
///
/// Returns notes for the user: what could not be given up, and why.
///
/// # Errors
/// When a step fails. The process must end then.
pub fn confine(needs: &Needs) -> Result<Vec<String>, Error> {
    if !is_privileged()? {
        return Ok(Vec::new());
    }
    let mut notes = Vec::new();
    // While everything can still be opened.
    let rules = rules(needs)?;
    let permitted = capabilities(None).map_err(at("capabilities"))?.permitted;
    let kept = kept(needs, permitted, &mut notes)?;
    if permitted.contains(CapabilitySet::SETPCAP) {
        set(permitted, permitted)?;
        for one in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            // The kernel knows fewer than there are bits.
            if rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
                rustix::thread::remove_capability_from_bounding_set(one).map_err(at("bounding set"))?;
            }
        }
        let bits = rustix::thread::capabilities_secure_bits().map_err(at("secure bits"))?;
        let bits = bits | CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED;
        rustix::thread::set_capabilities_secure_bits(bits).map_err(at("secure bits"))?;
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    set(kept, kept)?;
    set_no_new_privs(true).map_err(at("PR_SET_NO_NEW_PRIVS"))?;
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(not_dumpable).map_err(at("PR_SET_DUMPABLE"))?;
    if rules.restrict_self()?.ruleset == landlock::RulesetStatus::NotEnforced {
        notes.push("this kernel has no Landlock: root's files are protected by what uid 0 may not do without capabilities only".to_owned());
    }
    let failed = |error: seccompiler::Error| Error::Seccomp(error.to_string());
    let denied = |errno: i32, rules| filter(rules, errno).map_err(|error| Error::Seccomp(error.to_string()));
    let later = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    // The C library falls back to clone, whose flags a filter can see; and openat2 hides its mode in memory.
    let later = if needs.writes.is_empty() {
        later
    } else {
        BTreeMap::from_iter(later.into_iter().chain([(libc::SYS_openat2, Vec::new())]))
    };
    let first = denied(libc::ENOSYS, later)?;
    let second = denied(libc::EPERM, forbidden(needs).map_err(|error| Error::Seccomp(error.to_string()))?)?;
    seccompiler::apply_filter(&first).map_err(failed)?;
    seccompiler::apply_filter(&second).map_err(failed)?;
    Ok(notes)
}

fn set(effective: CapabilitySet, permitted: CapabilitySet) -> Result<(), Error> {
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(at("capabilities"))
}

/// Returns the capabilities without which a path in `needs` cannot be used.
fn kept(needs: &Needs, permitted: CapabilitySet, notes: &mut Vec<String>) -> Result<CapabilitySet, Error> {
    // As the kernel will judge: by the effective user, and with no capability in effect.
    set(CapabilitySet::empty(), permitted)?;
    let reads = needs.reads.iter().filter(|_| needs.trees == Trees::None);
    let unreadable = reads.into_iter().find_map(|path| unreadable(path, &mut EXAMINED_MAX.clone()));
    let unwritable = needs.writes.iter().find(|path| refused(path, Access::WRITE_OK | Access::READ_OK));
    set(permitted, permitted)?;
    let mut kept = permitted & needs.trees.capabilities();
    for (path, capability, name, what) in [
        (unreadable.as_deref(), CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "read"),
        (unwritable.map(PathBuf::as_path), CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "written to"),
    ] {
        if let Some(path) = path
            && permitted.contains(capability)
        {
            kept |= capability;
            notes.push(format!("keeping {name} of root's: {} can be {what} by its owner only", path.display()));
        }
    }
    Ok(kept)
}

/// Returns whether a path exists and `access` to it is refused.
fn refused(path: &Path, access: Access) -> bool {
    let access = if path.is_dir() { access | Access::EXEC_OK } else { access };
    accessat(CWD, path, access, AtFlags::EACCESS) == Err(rustix::io::Errno::ACCESS)
}

/// Returns `path`, or what is below it, if it cannot be read. At most `left` entries are examined.
fn unreadable(path: &Path, left: &mut usize) -> Option<PathBuf> {
    if refused(path, Access::READ_OK) {
        return Some(path.to_owned());
    }
    let found = fs_err::symlink_metadata(path).ok()?;
    if !found.is_dir() {
        return None;
    }
    for entry in fs_err::read_dir(path).ok()?.flatten() {
        *left = left.checked_sub(1)?;
        let kind = entry.file_type().ok()?;
        if (kind.is_dir() || kind.is_file())
            && let Some(found) = unreadable(&entry.path(), left)
        {
            return Some(found);
        }
    }
    None
}

/// Returns the rules of Landlock, not yet in force.
fn rules(needs: &Needs) -> Result<landlock::RulesetCreated, Error> {
    let all = AccessFs::from_all(LANDLOCK);
    let read: BitFlags<AccessFs> = AccessFs::from_read(LANDLOCK);
    let of_file: BitFlags<AccessFs> =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let write = all & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::Execute);
    let mut rules = Ruleset::default().handle_access(all)?;
    // An abstract socket may be the session bus, which a credential helper asks.
    rules = rules.scope(Scope::Signal)?;
    if !needs.local_sockets {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    let system = SYSTEM.iter().map(|path| (PathBuf::from(path), read));
    let devices = DEVICES.iter().map(|path| (PathBuf::from(path), of_file));
    let reads = needs.reads.iter().map(|path| (path.clone(), read));
    let writes = needs.writes.iter().map(|path| (path.clone(), write | read));
    for (path, access) in system.chain(devices).chain(reads).chain(writes) {
        // Following links: what a link of the machine's leads to now is what it is about.
        let Ok(opened) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() { access & !AccessFs::IoctlDev } else { access & (of_file | AccessFs::Execute) };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(rules)
}

fn filter(mut rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    // A kernel with the x32 ABI accepts each call under a second number, for the same architecture.
    #[cfg(target_arch = "x86_64")]
    rules.extend(rules.clone().into_iter().map(|(number, rules)| (number | X32, rules)));
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
}

/// Bit in the numbers of x32's system calls (`__X32_SYSCALL_BIT` in the kernel's `asm/unistd.h`).
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// System calls that are forbidden whatever their arguments are.
#[rustfmt::skip]
const FORBIDDEN: &[i64] = &[
    // File systems and namespaces.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_move_mount, libc::SYS_open_tree,
    libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_unshare,
    libc::SYS_setns, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_acct,
    // Other processes.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise, libc::SYS_pidfd_getfd,
    libc::SYS_kcmp, libc::SYS_migrate_pages, libc::SYS_move_pages, libc::SYS_sched_setaffinity, libc::SYS_sched_setattr,
    libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_setpriority, libc::SYS_ioprio_set,
    libc::SYS_shmctl, libc::SYS_semctl, libc::SYS_msgctl,
    // The kernel.
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load,
    libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key, libc::SYS_reboot, libc::SYS_syslog, libc::SYS_personality,
    libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex, libc::SYS_sethostname,
    libc::SYS_setdomainname, libc::SYS_vhangup, libc::SYS_lookup_dcookie, libc::SYS_nfsservctl, libc::SYS_fanotify_init,
    // Files by other ways than their paths, and what an owner may do to files that Landlock does not govern.
    libc::SYS_open_by_handle_at, libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_setxattr,
    libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
];

/// fchmodat2 (Linux 6.6), the same number for every architecture; the C library's bindings do not have it everywhere.
const SYS_FCHMODAT2: i64 = 452;

/// open_tree_attr (Linux 6.15), the same number for every architecture.
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Flags of clone(2) that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Calls of ioctl(2) that a process with CAP_SYS_ADMIN may make.
const IOCTLS: [u32; 5] =
    [libc::TCGETS as u32, libc::TIOCGWINSZ as u32, libc::FIONREAD as u32, libc::FIONBIO as u32, libc::FIOCLEX as u32];

/// Mode bits that no file is given: setuid, setgid, and write access of others.
const NEVER: [u32; 4] = [0o4000, 0o2000, 0o020, 0o002];

/// Returns the rules of the calls that are forbidden.
fn forbidden(needs: &Needs) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let has = |index, bits: u32| SeccompCondition::new(index, Dword, SeccompCmpOp::MaskedEq(bits.into()), bits.into());
    let is = |index, value: u32| SeccompCondition::new(index, Dword, SeccompCmpOp::Eq, value.into());
    let is_not = |index, value: i32| SeccompCondition::new(index, Dword, SeccompCmpOp::Ne, value as u64);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(SYS_FCHMODAT2, Vec::new());
    rules.insert(SYS_OPEN_TREE_ATTR, Vec::new());
    let mut add = |call: i64, conditions: Vec<SeccompCondition>| {
        SeccompRule::new(conditions).map(|rule| rules.entry(call).or_default().push(rule))
    };
    // Limits of other processes of uid 0's.
    add(libc::SYS_prlimit64, vec![is_not(0, 0)?])?;
    for flag in NAMESPACES {
        add(libc::SYS_clone, vec![has(0, flag as u32)?])?;
    }
    for bits in NEVER {
        add(libc::SYS_fchmod, vec![has(1, bits)?])?;
    }
    // setuid and setgid only: the rest of a new file's mode is the umask's.
    for bits in [0o4000, 0o2000] {
        add(libc::SYS_openat, vec![has(3, bits)?])?;
        add(libc::SYS_mknodat, vec![has(2, bits)?])?;
        #[cfg(target_arch = "x86_64")]
        {
            add(libc::SYS_open, vec![has(2, bits)?])?;
            add(libc::SYS_creat, vec![has(1, bits)?])?;
            add(libc::SYS_mknod, vec![has(1, bits)?])?;
        }
    }
    if needs.trees == Trees::Attributes {
        // CAP_SYS_ADMIN can freeze or rearrange a file system by any file that is open: only terminals are asked for their size.
        let others = IOCTLS.iter().map(|command| is_not(1, *command as i32)).collect::<Result<_, _>>()?;
        add(libc::SYS_ioctl, others)?;
    } else {
        // TIOCSTI would let the process type commands into its user's terminal.
        for command in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32] {
            add(libc::SYS_ioctl, vec![is(1, command)?])?;
        }
    }
    // Services of the machine do for uid 0 whatever they are asked.
    let mut families = vec![is_not(0, libc::AF_INET)?, is_not(0, libc::AF_INET6)?, is_not(0, libc::AF_NETLINK)?];
    if needs.local_sockets {
        families.push(is_not(0, libc::AF_UNIX)?);
    }
    add(libc::SYS_socket, families)?;
    Ok(rules)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn c08_forbidden_calls_are_forbidden_by_their_x32_numbers_too() {
        let program = filter(forbidden(&Needs::default()).unwrap(), libc::EPERM).unwrap();
        for number in FORBIDDEN {
            // A comparison of the number, as linux/bpf_common.h encodes it.
            let compares = |wanted: i64| program.iter().any(|step| step.code == 0x15 && i64::from(step.k) == wanted);
            assert!(compares(*number) && compares(number | X32), "{number}");
        }
    }
}
