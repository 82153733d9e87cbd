//! What the helper can still do once it has confined itself. `tests/helper/confined.rs` is the process that tries.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use crate::command::{needs_root, stderr, succeeds};

/// CAP_CHOWN, CAP_FOWNER, CAP_FSETID and CAP_SETFCAP (linux/capability.h).
const FOUR: u64 = 1 | 1 << 3 | 1 << 4 | 1 << 31;
const MKNOD: u64 = 1 << 27;
const CHOWN: u64 = 1;
const SIGSYS: i32 = 31;
const SIGABRT: i32 = 6;

/// Somebody who is not root.
const USER: &str = "65534";

/// `tests/helper/confined.rs`, which cargo builds with the tests.
fn driver() -> PathBuf {
    let path = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("confined");
    assert!(path.exists(), "{} is not there: cargo build --example confined", path.display());
    path
}

/// The driver with nothing in its environment, in `directory`.
fn confined(directory: &Path, mode: &str) -> Command {
    let mut command = Command::new(driver());
    command.arg(mode).env_clear().current_dir(directory).stdin(Stdio::null());
    command
}

#[track_caller]
fn done(command: &mut Command) {
    assert_eq!(succeeds(command), "entered\ndone\n", "{command:?}");
}

/// What it says when it refuses.
#[track_caller]
fn refuses(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains(why), "{command:?}: {said} {}", stderr(&output));
}

#[track_caller]
fn dies(output: &Output, signal: i32, what: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.signal(), &*said), (Some(signal), "entered\n"), "{what}: {}", stderr(output));
}

/// The driver, stopped at one phase after the other.
struct Phases {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Phases {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output }
    }

    /// Waits until it is at `phase`, and tells what /proc knows of it.
    #[track_caller]
    fn at(&mut self, phase: &str) -> BTreeMap<String, String> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), phase);
        let status = self.proc("status");
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    fn proc(&self, name: &str) -> String {
        fs_err::read_to_string(format!("/proc/{}/{name}", self.process.id())).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let list = fs_err::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap();
        let mut names: Vec<_> = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_by_key(|name| name.parse::<u32>().unwrap());
        names
    }

    /// Lets it go on to `phase`.
    #[track_caller]
    fn at_after(&mut self, phase: &str) -> BTreeMap<String, String> {
        self.go_on();
        self.at(phase)
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn capabilities(status: &BTreeMap<String, String>) -> [u64; 5] {
    ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"].map(|name| u64::from_str_radix(&status[name], 16).unwrap())
}

/// A directory like those that the policy names: root's, and others may go into it.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs_err::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Bounding set of the unit, as setpriv wants it.
const FIVE: &str = "-all,+chown,+fowner,+fsetid,+setfcap,+sys_chroot";

/// Runs what follows as [`USER`].
fn as_user(directory: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).current_dir(directory).stdin(Stdio::null());
    command
}

#[test]
fn each_phase_has_less() {
    if !needs_root("confine::each_phase_has_less") {
        return;
    }
    let target = directory();
    let mut phases = Phases::start(&mut confined(target.path(), "all phases"));
    let started = phases.at("started");
    let [permitted, effective, ..] = capabilities(&started);
    assert_eq!((permitted & FOUR, effective), (FOUR, permitted), "all that root has");

    let begun = phases.at_after("begun");
    assert_eq!(capabilities(&begun), capabilities(&started));
    assert_eq!((&*begun["NoNewPrivs"], &*begun["Seccomp"], &*begun["Umask"]), ("1", "0", "0077"));
    // SIGHUP is 1, SIGINT 2, SIGQUIT 3, SIGTSTP 20, SIGTTIN 21, SIGTTOU 22, SIGXCPU 24, SIGXFSZ 25.
    assert_eq!(begun["SigBlk"], format!("{:016x}", 3 << 23 | 7 << 19 | 7));
    assert_eq!(phases.files(), ["0", "1", "2"]);
    let limits = phases.proc("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max open files"), "4096 4096");
    for name in ["Max file size", "Max cpu time", "Max address space", "Max data size"] {
        assert_eq!(limit(name), "unlimited unlimited", "{name}");
    }

    let entered = phases.at_after("entered");
    assert_eq!(capabilities(&entered), [FOUR, 0, 0, 0, 0]);
    assert_eq!((&*entered["NoNewPrivs"], &*entered["Seccomp"], &*entered["Threads"]), ("1", "2", "1"));
    let root = fs_err::read_link(format!("/proc/{}/root", phases.process.id())).unwrap();
    assert_eq!(root, target.path().canonicalize().unwrap());
    assert_eq!(phases.files(), ["0", "1", "2"]);
    assert_eq!(capabilities(&phases.at_after("raised")), [FOUR, CHOWN, 0, 0, 0]);
    assert_eq!(capabilities(&phases.at_after("lowered")), [FOUR, 0, 0, 0, 0]);
    phases.go_on();
    assert!(phases.process.wait().unwrap().success());
}

#[test]
fn the_same_in_a_service() {
    if !needs_root("confine::the_same_in_a_service") {
        return;
    }
    // As the unit has it: no CAP_SETPCAP, nothing to be gained by starting programs.
    let service = |mode: &str, set: &str| {
        let target = directory();
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", "--bounding-set", set, "--inh-caps", "-all"]).arg(driver()).arg(mode);
        command.current_dir(target.path()).stdin(Stdio::null());
        (target, command)
    };
    let (_target, mut command) = service("phases", FIVE);
    let mut phases = Phases::start(&mut command);
    phases.at("begun");
    assert_eq!(capabilities(&phases.at_after("entered")), [FOUR, 0, 0, 0, FOUR | 1 << 18]);
    drop(phases);
    let (_target, mut command) = service("work", FIVE);
    done(&mut command);
    let (_target, mut command) = service("devices", FIVE);
    refuses(&mut command, "not permitted: CAP_MKNOD (");
    let (_target, mut command) = service("work", "-all,+chown,+fowner,+fsetid");
    refuses(&mut command, "not permitted: CAP_SYS_CHROOT, CAP_SETFCAP (");
}

#[test]
fn forbidden_calls_kill() {
    if !needs_root("confine::forbidden_calls_kill") {
        return;
    }
    let target = directory();
    let list = succeeds(&mut confined(target.path(), "list"));
    assert!(list.lines().count() > 30);
    for name in list.lines() {
        dies(&confined(target.path(), name).output().unwrap(), SIGSYS, name);
        // For this call, and not for one on the way to it.
        let trace = target.path().join("trace");
        let mut command = Command::new("strace");
        command.arg("-o").arg(&trace).arg(driver()).arg(name).env_clear();
        let output = command.current_dir(target.path()).stdin(Stdio::null()).output().unwrap();
        dies(&output, SIGSYS, name);
        let trace = fs_err::read_to_string(trace).unwrap();
        let last = trace.lines().rev().find(|line| !line.starts_with(['+', '-'])).unwrap();
        assert_eq!(last.split('(').next(), name.split(' ').next(), "{last}");
    }
    assert!(!target.path().join("node").exists());
}

#[test]
fn the_order_is_the_one_that_is_written_down() {
    if !needs_root("confine::the_order_is_the_one_that_is_written_down") {
        return;
    }
    let target = directory();
    let trace = target.path().join("trace");
    let calls = "fchdir,chroot,chdir,capset,prctl,landlock_restrict_self,seccomp,umask";
    let mut command = Command::new("strace");
    command.arg("-o").arg(&trace).args(["-e", &format!("trace={calls}")]).arg(driver()).arg("work").env_clear();
    done(command.current_dir(target.path()).stdin(Stdio::null()));
    let trace = fs_err::read_to_string(trace).unwrap();
    let lines: Vec<_> = trace.lines().filter(|line| line.ends_with("= 0")).collect();
    let mut rest = lines.iter();
    for start in [
        "umask(077)",
        "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE)",
        "prctl(PR_SET_NO_NEW_PRIVS",
        "capset({",
        "fchdir(",
        "chroot(\".\")",
        "chdir(\"/\")",
        "prctl(PR_CAPBSET_DROP",
        "prctl(PR_SET_SECUREBITS",
        "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL",
        "capset({",
        "landlock_restrict_self(",
        "seccomp(SECCOMP_SET_MODE_FILTER",
    ] {
        // The first umask answers with the old mask.
        let found = start.starts_with("umask") || rest.any(|line| line.starts_with(start));
        assert!(found && trace.contains(start), "{start} is not where it should be:\n{trace}");
    }
}

#[test]
fn what_it_is_for_works() {
    if !needs_root("confine::what_it_is_for_works") {
        return;
    }
    for mode in ["work", "outside", "devices", "no power"] {
        let target = directory();
        done(&mut confined(target.path(), mode));
    }
    let target = directory();
    for mode in ["abort", "panic"] {
        let output = confined(target.path(), mode).output().unwrap();
        if mode == "abort" {
            dies(&output, SIGABRT, mode);
        } else {
            assert_eq!(output.status.code(), Some(101), "{mode}");
            assert!(stderr(&output).contains("as it should"));
        }
    }
    let device = directory();
    let mut phases = Phases::start(&mut confined(device.path(), "all phases"));
    phases.at("started");
    assert_eq!(capabilities(&phases.at_after("begun"))[0] & MKNOD, MKNOD);
    assert_eq!(capabilities(&phases.at_after("entered"))[0] & MKNOD, 0, "not without devices");
}

#[test]
fn the_real_filter_can_be_tested_with_strace() {
    if !needs_root("confine::the_real_filter_can_be_tested_with_strace") {
        return;
    }
    let target = directory();
    for (call, error) in [("mkdirat", "ENOSPC"), ("renameat", "EIO"), ("fchownat", "EDQUOT"), ("fsetxattr", "ENOSPC")] {
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null", "-e", &format!("inject={call}:error={error}")]).arg(driver()).arg("work");
        let output = command.env_clear().current_dir(target.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.signal().is_none(), "{call}: {:?}", output.status);
        assert!(!output.status.success(), "{call}");
        let _ = fs_err::remove_dir_all(target.path().join("directory"));
        let _ = fs_err::remove_file(target.path().join("fifo"));
    }
}

#[test]
fn nothing_of_the_caller_stays() {
    if !needs_root("confine::nothing_of_the_caller_stays") {
        return;
    }
    let target = directory();
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec 3</ 7</etc/passwd 9>>/dev/null; exec \"$0\" phases").arg(driver());
    command.env_clear().env("SUDO_UID", "1000").env("LD_LIBRARY_PATH", "/x").env("RUST_BACKTRACE", "full");
    command.envs((0..500).map(|number| (format!("VARIABLE{number}"), "x".repeat(2000))));
    let mut phases = Phases::start(command.current_dir(target.path()));
    phases.at("begun");
    assert_eq!(phases.proc("environ"), "SUDO_UID=1000\0");
    assert_eq!(phases.proc("cmdline"), "prepull-helper\0phases\0");
    assert_eq!(phases.files(), ["0", "1", "2"]);
    drop(phases);

    let directories: [fn(&mut Command, std::fs::File) -> &mut Command; 3] =
        [Command::stdin, Command::stdout, Command::stderr];
    for (number, give) in directories.into_iter().enumerate() {
        let root = fs_err::File::open("/").unwrap().into_file();
        let output = give(&mut confined(target.path(), "work"), root).output().unwrap();
        // It can only say so if that is not standard output.
        assert!(!output.status.success(), "{number}");
        assert!(!target.path().join("directory").exists(), "{number}");
    }
    for name in ["DOAS_USER", "PKEXEC_UID"] {
        refuses(confined(target.path(), "work").env(name, "0"), name);
    }
    // Closed at the start, Rust opens /dev/null.
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec \"$0\" work <&- >&- 2>&-").arg(driver()).env_clear().current_dir(target.path());
    assert_eq!(succeeds(&mut command), "");
    assert!(target.path().join("directory/file").exists());
}

#[test]
fn limits_of_the_caller_are_errors_at_the_most() {
    if !needs_root("confine::limits_of_the_caller_are_errors_at_the_most") {
        return;
    }
    let limits = ["--fsize=1000", "--nofile=20", "--cpu=1", "--data=100000000"];
    let target = directory();
    let mut command = Command::new("prlimit");
    done(command.args(limits).arg(driver()).arg("work").current_dir(target.path()).stdin(Stdio::null()));
    // Without CAP_SYS_RESOURCE there are no higher ones: then a limit is an error.
    let target = directory();
    let mut command = Command::new("prlimit");
    command.args(limits).args(["setpriv", "--no-new-privs", "--bounding-set", FIVE, "--inh-caps", "-all"]);
    command.arg(driver()).arg("work").current_dir(target.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    // The second write of 2000 bytes would be the first that fails: it wrote 1000.
    assert!(output.status.signal().is_none(), "{:?}", output.status);
    assert_eq!(fs_err::metadata(target.path().join("directory/file")).unwrap().len(), 1000);
}

#[test]
fn the_root_is_where_the_caller_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["store", "tree", "other"] {
        fs_err::create_dir(at(name)).unwrap();
    }
    std::os::unix::fs::symlink("store", at("link")).unwrap();
    let entry = |name: &str, kind: &str, more: &str| {
        format!("[[allow]]\nuser = 0\nroot = '{}'\nkind = '{kind}'\n{more}\n", at(name).display())
    };
    let policy = [
        entry("missing", "storage", ""),
        entry("link", "storage", ""),
        entry("store", "storage", ""),
        entry("store", "storage", "devices = true"),
        entry("tree", "rootfs", ""),
    ];
    let open = |name: &str, policy: &[String]| {
        let mut command = confined(&at(name), "open");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(policy.concat().as_bytes()).unwrap();
        String::from_utf8(process.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(open("store", &policy), "2\n", "the first that fits");
    // The directory counts, not how the caller came to it.
    assert_eq!(open("link", &policy), "2\n");
    assert!(open("other", &policy).contains("does not allow the caller"));
    assert!(open("store", &policy[..2]).contains("does not allow the caller"), "a link in the policy");
    assert!(open("store", &[]).contains("does not allow the caller"));
    assert_eq!(open("tree", &policy), "4\n");
}

/// The policy, and the users whom it names.
const POLICY: &str = "[[allow]]\nuser = 'alice'\nroot = '/a'\nkind = 'storage'\n\
    [[allow]]\ngroup = 'prepull'\nroot = '/p'\nkind = 'storage'\n";
const USERS: &str = "umask 022; mount -t tmpfs -o mode=755 none /etc && mkdir /etc/prepull && cat >/etc/prepull/helper.toml <<E\n\
    $POLICY\nE\n\
    printf 'root:x:0:0::/:\\nalice:x:1000:1000::/:\\nnobody:x:65534:65534::/:\\n' >/etc/passwd\n\
    printf 'prepull:x:500:nobody\\n' >/etc/group\n";

/// The driver in a mount namespace with an /etc of its own, of which `change` makes something else.
fn who(change: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{USERS}\n{change}\nexec \"$0\" who")).arg(driver());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("POLICY", POLICY).stdin(Stdio::null());
    command
}

#[test]
fn who_asks_is_known() {
    if !needs_root("confine::who_asks_is_known") {
        return;
    }
    assert_eq!(succeeds(&mut who("")), "0 \n", "root, whom the policy does not name");
    assert_eq!(succeeds(&mut who("export SUDO_UID=65534")), "65534 /p\n");
    refuses(&mut who("export SUDO_UID=x"), "SUDO_UID is not a number");

    let directory = directory();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    fs_err::set_permissions(directory.path().join("socket"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = directory.path().join("confined");
    fs_err::copy(driver(), &copy).unwrap();
    let mut client = Phases::start(as_user(directory.path()).arg(&copy).arg("connect"));
    let connection = || listener.accept().unwrap().0;
    let first = connection();
    client.at("connected");
    let give = |socket: OwnedFd, change: &str| {
        let mut command = who(change);
        command.stdin(Stdio::from(socket));
        command
    };
    // A user's connection, and what a user could make of it with sudo and the connection of another.
    assert_eq!(succeeds(&mut give(first.try_clone().unwrap().into(), "")), "65534 /p\n");
    assert_eq!(succeeds(&mut give(first.into(), "export SUDO_UID=1000")), "1000 /a\n");
    let (mine, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(succeeds(&mut give(mine.try_clone().unwrap().into(), "")), "0 \n");
    assert_eq!(succeeds(&mut give(mine.into(), "export SUDO_UID=1000")), "1000 /a\n");
    // What has no user, though root started the program.
    refuses(&mut give(listener.try_clone().unwrap().into(), ""), "not a connected unix stream socket");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let network = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    refuses(&mut give(network.into(), ""), "not a connected unix stream socket");
    let (family, datagram) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM);
    let pair = rustix::net::socketpair(family, datagram, rustix::net::SocketFlags::CLOEXEC, None).unwrap();
    refuses(&mut give(pair.0, ""), "not a connected unix stream socket");
    let alone = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    refuses(&mut give(alone, ""), "not a connected unix stream socket");
}
