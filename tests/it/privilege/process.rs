//! What is done to the process instead of the stream: descriptors, environment, limits, policy, identity.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use super::stream::{Stream, diff, good, id};
use super::{By, Jail, Outcome, USER, figure, finish};
use crate::command::needs_root;

/// A jail in which a good stream has been taken, and that stream.
fn jail() -> (Jail, Vec<u8>) {
    let jail = Jail::new("");
    let stream = good(&jail, 1, None).end();
    jail.run(By::Sudo).feed(&stream).succeeded("a good stream by sudo");
    jail.run(By::Root).feed(&stream).succeeded("a good stream by root");
    jail.outside_is_unchanged("good streams");
    (jail, stream)
}

#[test]
fn arguments() {
    if !needs_root("privilege::process::arguments") {
        return;
    }
    let (jail, stream) = jail();
    let words = [
        "",
        "''",
        "stdio x",
        "stdio ''",
        "--help",
        "-h",
        "STDIO",
        "'stdio\n'",
        "'stdio '",
        "\"$(printf '\\377')\"",
        "--version",
        "install",
        "query",
        "stdio stdio",
        "stdio --root=/etc",
        "restore x",
    ];
    for word in words {
        let outcome = jail.run(By::ForUser).words(word).feed(&stream);
        assert_eq!((outcome.code, outcome.answer.is_none()), (2, true), "{word}: {outcome:?}");
        assert!(outcome.stderr.contains("usage"), "{word}: {outcome:?}");
        // sudo knows one line only.
        let outcome = jail.run(By::Sudo).words(word).feed(&stream);
        assert!(outcome.answer.is_none() && outcome.code != 0, "{word}: {outcome:?}");
    }
    // No arguments at all: the kernel makes it one, and empty.
    let none =
        "import os,ctypes;libc=ctypes.CDLL(None);n=ctypes.c_char_p;libc.execve(b'HELPER',(n*1)(None),(n*1)(None))";
    let none = none.replace("HELPER", &jail.at("bin/prepull-helper").display().to_string());
    let outcome = jail.run(By::ForUser).setup(&format!("exec python3 -c \"{none}\";")).feed(&stream);
    assert_eq!((outcome.code, outcome.answer.is_none()), (2, true), "{outcome:?}");
    // The other word that there is, is not in sudoers.
    let outcome = jail.run(By::Sudo).words("restore").feed(&stream);
    assert_eq!((outcome.code, outcome.answer.is_none()), (1, true), "{outcome:?}");
    jail.outside_is_unchanged("arguments");
    figure("wrong words to start the helper with", 2 * words.len() + 2);
}

#[test]
fn environment() {
    if !needs_root("privilege::process::environment") {
        return;
    }
    let (jail, stream) = jail();
    let canary = jail.at("loaded").display().to_string();
    let library = jail.at("evil.so").display().to_string();
    fs_err::write(&library, "no library").unwrap();
    let large = "x".repeat(100_000);
    let mut tried = 0;
    let variables = [
        ("LD_PRELOAD", &library[..]),
        ("LD_LIBRARY_PATH", "/var/tmp"),
        ("LD_AUDIT", &library),
        ("LD_DEBUG_OUTPUT", &canary),
        ("GLIBC_TUNABLES", "glibc.malloc.check=3"),
        ("GLIBC_TUNABLES", "glibc.malloc.mxfast=glibc.malloc.mxfast=x"),
        ("LD_PRELOAD", "/nonexistent.so"),
        ("MALLOC_CHECK_", "3"),
        ("GCONV_PATH", "/var/tmp"),
        ("RUST_BACKTRACE", "full"),
        ("RUST_LOG", "trace"),
        ("RUST_MIN_STACK", "1"),
        ("TMPDIR", "/outside"),
        ("HOME", "/"),
        ("PATH", "."),
        ("SUDO_USER", "root"),
        ("SUDO_GID", "0"),
        ("SUDO_COMMAND", "x"),
        ("LISTEN_FDS", "1"),
        ("NOTIFY_SOCKET", "/run/x"),
        ("A", &large),
    ];
    for (name, value) in variables {
        for by in [By::ForUser, By::Sudo] {
            // For what looks for the programs before it.
            let run = if name == "PATH" || name.starts_with("LD_") {
                jail.run(by).setup(&format!("PATH=$PATH; export {name}='{value}';"))
            } else {
                jail.run(by).env(name, value)
            };
            let outcome = run.feed(&stream);
            if name == "PATH" && outcome.answer.is_none() {
                // Then it is not the helper that is started.
                assert!(outcome.code != 0, "{outcome:?}");
            } else {
                outcome.succeeded(&format!("{name}={value:.100}"));
            }
            jail.outside_is_unchanged(name);
            tried += 1;
        }
    }
    assert!(!std::path::Path::new(&canary).exists());
    // Two megabytes, as many as the kernel takes at once.
    let mut run = jail.run(By::ForUser);
    for number in 0..20 {
        run = run.env(&format!("V{number}"), &large);
    }
    run.feed(&stream).succeeded("2 MB of environment");
    // Who says it is root is believed only where it takes nothing to be root.
    for value in [
        "",
        "-1",
        "root",
        "4321 ",
        " 4321",
        "4294967296",
        "4294967295",
        "0x10e1",
        "0x0",
        "x",
        "4321,0",
        "4321\n0",
        "99999999999999999999",
        "\u{661}",
    ] {
        let outcome = jail.run(By::Root).env("SUDO_UID", value).feed(&stream);
        let error = outcome.refused(&format!("SUDO_UID={value:?}"));
        assert!(error.contains("SUDO_UID is not a number"), "{value:?}: {error}");
        tried += 1;
    }
    let outcome = jail.run(By::Sudo).env("SUDO_UID", "0").feed(&stream);
    outcome.succeeded("sudo says who it is");
    // The environment is gone by the time the first byte is waited for.
    let (mut child, pid) = waiting(&jail, By::ForUser, "export SECRET=environment;");
    let environment = fs_err::read(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(String::from_utf8_lossy(&environment), format!("SUDO_UID={USER}\0"));
    end(&mut child);
    figure("environments to start the helper in", tried + 2);
}

/// A helper that waits for its first byte, and its number.
#[expect(clippy::zombie_processes, reason = "it ends with the test that fails")]
pub fn waiting(jail: &Jail, by: By, setup: &str) -> (std::process::Child, u32) {
    let mut command = jail.run(by).setup(setup).command();
    let child = command.spawn().unwrap();
    // sudo and strace stand before it; the one that waits has gone into the root.
    let helper = || {
        let mut pids = vec![child.id()];
        let mut at = 0;
        while at < pids.len() {
            let children = format!("/proc/{0}/task/{0}/children", pids[at]);
            let list = fs_err::read_to_string(children).unwrap_or_default();
            pids.extend(list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
            at += 1;
        }
        pids.into_iter().find(|pid| {
            let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2")
        })
    };
    for _ in 0..1000 {
        if let Some(pid) = helper() {
            std::thread::sleep(Duration::from_millis(20));
            return (child, pid);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no helper waits");
}

/// Closes its input, and waits for it.
pub fn end(child: &mut std::process::Child) -> Outcome {
    drop(child.stdin.take());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    Outcome {
        code: status.code().unwrap_or(-1),
        answer: serde_json::from_str(&text).ok(),
        stderr: String::new(),
        took: Duration::ZERO,
    }
}

#[test]
fn descriptors() {
    if !needs_root("privilege::process::descriptors") {
        return;
    }
    let (jail, stream) = jail();
    let mut tried = 0;
    for closed in 0..8_u32 {
        for by in [By::ForUser, By::Sudo] {
            let names = ["<&-", ">&-", "2>&-"];
            let which: Vec<&str> = (0..3).filter(|bit| closed >> bit & 1 == 1).map(|bit| names[bit]).collect();
            let setup = if which.is_empty() { String::new() } else { format!("exec {};", which.join(" ")) };
            let outcome = jail.run(by).setup(&setup).feed(&stream);
            // Without an input there is no stream, without an output nobody hears.
            assert!(closed & 1 == 0 || outcome.code == 1, "{setup}: {outcome:?}");
            assert!(closed & 2 == 0 || outcome.answer.is_none(), "{setup}: {outcome:?}");
            assert!(closed & 3 != 0 || outcome.code == 0, "{setup}: {outcome:?}");
            jail.outside_is_unchanged(&setup);
            tried += 1;
        }
    }
    for setup in [
        "exec </dev/null;",
        "exec </dev/zero;",
        "exec </;",
        "exec </etc/passwd;",
        "exec </dev/full;",
        "exec >/dev/full;",
        "exec 0>/dev/null;",
    ] {
        let outcome = jail.run(By::ForUser).setup(setup).feed(&stream);
        assert!(outcome.code == 1, "{setup}: {outcome:?}");
        jail.outside_is_unchanged(setup);
        tried += 1;
    }
    for (by, setup) in [
        (By::Sudo, "exec 7</etc/shadow 8>>/etc/passwd;"),
        (By::ForUser, "exec 7</etc/shadow 8>>/etc/passwd;"),
        (By::ForUser, "exec 2>/dev/full;"),
    ] {
        jail.run(by).setup(setup).feed(&stream).succeeded(setup);
        jail.outside_is_unchanged(setup);
        tried += 1;
    }
    // Whatever number they have, and whatever limit is set after they were opened.
    for setup in [
        "exec 3</etc;",
        "exec 9</etc/shadow;",
        "exec 3</etc 4</ 5</proc 6</dev;",
        "exec 9</etc; ulimit -n 9;",
        "exec 9</etc; ulimit -S -n 7;",
        "exec 9</etc; ulimit -n 20;",
    ] {
        let (mut child, pid) = waiting(&jail, By::ForUser, setup);
        let open = descriptors_of(pid);
        end(&mut child);
        let strange: Vec<&String> =
            open.iter().filter(|target| !target.starts_with("pipe:") && !is_the_store(target)).collect();
        assert!(strange.is_empty(), "{setup}: {open:?}");
        tried += 1;
    }
    figure("descriptors to start the helper with", tried);
}

/// In the helper's own root, everything is below it.
fn is_the_store(target: &str) -> bool {
    target == "/" || target.contains("/var/lib/containers/storage") || target == "/run/prepull/callers"
}

fn descriptors_of(pid: u32) -> Vec<String> {
    let entries = fs_err::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| fs_err::read_link(entry.unwrap().path()).unwrap().display().to_string()).collect()
}

#[test]
fn limits_and_signals() {
    if !needs_root("privilege::process::limits_and_signals") {
        return;
    }
    let (jail, stream) = jail();
    let mut tried = 0;
    // Those that the loader or sudo cannot do with. What the others make is no difference.
    let hard =
        ["-n 3", "-n 4", "-n 6", "-S -n 8", "-v 1000", "-S -v 50000", "-v 100000", "-s 64", "-p 1", "-d 0", "-S -d 0"];
    let soft = ["-f 0", "-f 1", "-S -f 0", "-n 24", "-t 1", "-t 10", "-c 0", "-c unlimited", "-l 0"];
    let query = Stream::new("query", &jail).end();
    // CAP_SYS_RESOURCE, which root in a container may not have.
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let may_lift = u64::from_str_radix(effective, 16).unwrap() >> 24 & 1 == 1;
    for limit in soft.iter().chain(&hard) {
        for by in [By::ForUser, By::Sudo] {
            let setup = format!("ulimit {limit} 2>/dev/null || :;");
            let outcome = jail.run(by).setup(&setup).feed(&stream);
            jail.outside_is_unchanged(&setup);
            // Done, or refused; killed by the kernel or the linker at the worst, before it has begun.
            assert!(outcome.answer.is_some() || outcome.code != 0, "{setup}: {outcome:?}");
            assert!(!outcome.stderr.contains("panicked"), "{setup}: {outcome:?}");
            if soft.contains(limit) {
                let is_error = !may_lift && limit.contains("-f") && outcome.code != 0;
                let why = if is_error { outcome.refused(&setup) } else { String::new() };
                assert!(outcome.code == 0 || why.contains("File too large"), "{setup}: {by:?} {outcome:?}");
                // What writes nothing does not mind.
                jail.run(by).setup(&setup).feed(&query).succeeded(&setup);
            }
            tried += 1;
        }
    }
    // Nobody reads the answer.
    for by in [By::ForUser, By::Sudo] {
        let mut command = jail.run(by).command();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let outcome = finish(command, |input| {
            let _ = input.write_all(&stream);
        });
        assert!(outcome.code != 0, "nobody reads: {outcome:?}");
        tried += 1;
    }
    for by in [By::ForUser, By::Sudo] {
        for signals in ["'' PIPE", "'' PIPE XFSZ TERM INT", "'' TERM INT HUP XFSZ CHLD PIPE"] {
            jail.run(by).setup(&format!("trap {signals};")).feed(&stream).succeeded(signals);
            tried += 1;
        }
    }
    // Killed in the middle, it leaves a directory that the next run removes.
    for _ in 0..5 {
        let (mut child, pid) = waiting(&jail, By::ForUser, "");
        let half = Stream::new("install", &jail).dir(diff(2)).file(format!("{}/x", diff(2)), vec![b'x'; 1 << 20]).0;
        child.stdin.as_mut().unwrap().write_all(&half).unwrap();
        let content = || fs_err::metadata(jail.store().join(format!(".prepull-staging-0/{}/diff/x", id(2))));
        while content().map_or(0, |file| file.len()) < 1 << 20 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(jail.staging(), 1);
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        assert!(end(&mut child).answer.is_none());
        jail.run(By::ForUser).feed(&stream).succeeded("after a kill");
        assert_eq!(jail.staging(), 0);
        tried += 1;
    }
    assert!(jail.podman().contains("localhost/good:1 "));
    figure("limits and signals to start the helper with", tried);
}

#[test]
fn the_user_who_started_it_cannot_look_into_it() {
    if !needs_root("privilege::process::the_user_who_started_it_cannot_look_into_it") {
        return;
    }
    let (jail, _) = jail();
    let (mut child, pid) = waiting(&jail, By::Sudo, "");
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    let attempts = [
        format!("timeout 5 strace -o /dev/null -p {pid}"),
        format!("cat /proc/{pid}/environ"),
        format!("ls /proc/{pid}/fd/"),
        format!("readlink /proc/{pid}/cwd"),
        format!("cat /proc/{pid}/mem"),
        format!("cat /proc/{pid}/maps"),
        format!("ls /proc/{pid}/root/"),
        format!("kill -STOP {pid}"),
        format!("kill -KILL {pid}"),
        format!("prlimit --pid {pid} --nofile=1"),
        format!("nsenter -t {pid} -m true"),
        format!("cat /proc/{pid}/stack"),
        format!("cat /proc/{pid}/auxv"),
        format!("sh -c 'echo 1000 >/proc/{pid}/oom_score_adj'"),
        format!("sh -c 'echo 0xff >/proc/{pid}/coredump_filter'"),
    ];
    for attempt in &attempts {
        jail.ok(&format!("! {user} {attempt} >/dev/null 2>&1"));
    }
    let outcome = end(&mut child);
    outcome.refused("an empty stream");
    figure("attempts to get into the running helper", attempts.len());
}

#[test]
fn policies_and_callers() {
    if !needs_root("privilege::process::policies_and_callers") {
        return;
    }
    let (jail, stream) = jail();
    let policy = "/etc/prepull/helper.toml";
    let good_policy = jail.ok(&format!("cat {policy}"));
    let accounts = jail.at("accounts").display().to_string();
    jail.ok(&format!("mkdir {accounts}; cp -a /etc/passwd /etc/group {accounts}"));
    let restore = format!(
        "set -e; chown 0 /etc; chmod 755 /etc; rm -rf /etc/prepull /etc/real /etc/real-passwd; mkdir -m 755 /etc/prepull
        cp -a --remove-destination {accounts}/passwd {accounts}/group /etc; rm -f \"$at/link\"
        cat >{policy} <<'X'\n{good_policy}X\nchmod 644 {policy}"
    );
    let mut tried = 0;
    let nobody_else = "it must belong to root, and no other user may write to it";
    let (link, file, nobody) = ("not be a symbolic link", "not a regular file", "does not allow the caller");
    // (what is done, what is said)
    for (change, why) in [
        ("rm POLICY", "No such file or directory"),
        ("mv POLICY /etc/prepull/real; ln -s real POLICY", link),
        ("mv POLICY /etc/prepull/real; ln -s /etc/prepull/real POLICY", link),
        ("chmod 664 POLICY", nobody_else),
        ("chmod 646 POLICY", nobody_else),
        ("chmod 666 POLICY", nobody_else),
        ("chown 4321 POLICY", nobody_else),
        ("chown 1 POLICY", nobody_else),
        ("chmod 775 /etc/prepull", nobody_else),
        ("chmod 757 /etc/prepull", nobody_else),
        ("chmod 777 /etc/prepull", nobody_else),
        ("chmod 1777 /etc/prepull", nobody_else),
        ("chown 4321 /etc/prepull", nobody_else),
        ("mv /etc/prepull /etc/real; ln -s real /etc/prepull", link),
        ("chmod 777 /etc; chmod -t /etc", "/etc: it must belong to root"),
        ("chmod o+w /etc", "/etc: it must belong to root"),
        ("chown 1 /etc", "/etc: it must belong to root"),
        ("chown 1 /etc/passwd", "/etc/passwd: it must belong to root"),
        ("chmod g+w /etc/group", "/etc/group: it must belong to root"),
        ("rm /etc/group", "/etc/group: No such file"),
        ("mv /etc/passwd /etc/real-passwd; ln -s real-passwd /etc/passwd", "/etc/passwd: Too many levels"),
        ("echo 'x = 1' >>POLICY", "unknown field `x`"),
        ("echo 'deny = 1' >>POLICY", "unknown field `deny`"),
        ("echo 'opaque = \"xattr\"' >>POLICY", "unknown field `opaque`"),
        ("printf '#\\377' >>POLICY", "not contain valid UTF-8"),
        ("printf '\\0' >>POLICY", "helper.toml: "),
        ("head -c 300000 /dev/zero >POLICY", "more than 262144 bytes"),
        ("head -c 1100000 /dev/zero | tr '\\0' '#' >>POLICY", "more than 262144 bytes"),
        ("head -c 250000 /dev/zero | tr '\\0' '[' >>POLICY", "helper.toml: "),
        ("echo '[[allow' >>POLICY", "helper.toml: "),
        ("echo >POLICY", nobody),
        ("rm POLICY; mkdir POLICY", file),
        ("rm POLICY; mkfifo -m 644 POLICY", file),
        ("rm POLICY; mknod -m 644 POLICY c 1 5", file),
        ("rm POLICY; mknod -m 644 POLICY c 1 3", file),
        ("rm -r /etc/prepull", "No such file or directory"),
        ("sed -i 's/tester/somebody/' POLICY", nobody),
        ("sed -i 's/tester/nobody/' POLICY", nobody),
        ("sed -i 's,^root = .*,root = \"/nowhere\",' POLICY", nobody),
        ("sed -i 's,^root = .*,root = \"/etc\",' POLICY", nobody),
        ("sed -i 's,^root = .*,root = \"/\",' POLICY", nobody),
        ("sed -i 's,^root = .*,root = \"vm\",' POLICY", "must be absolute"),
        ("sed -i 's,/vm\",/../vm\",' POLICY", "must be absolute"),
        ("ln -s vm \"$at/link\"; sed -i 's,/vm\",/link\",' POLICY", nobody),
        ("sed -i 's/^user = .*/group = \"tester2\"/' POLICY", nobody),
        ("sed -i 's/\"tester\"/\"\"/' POLICY", nobody),
        ("sed -i 's/^kind = .*/kind = \"rootfs\"/' POLICY", "users can reach it"),
        ("sed -i 's/^kind = .*/kind = \"rootfs\"\\nsuid = false\\nfilecaps = false/' POLICY", "another `kind`"),
        ("sed -i 's/^kind = .*/kind = \"storage\"\\nmax_seconds = 0/' POLICY", "max_seconds"),
        ("sed -i 's/^kind = .*/kind = \"storage\"\\nmax_bytes = 0/' POLICY", "max_bytes"),
        ("sed -i 's/^kind = .*/kind = \"storage\"\\nmax_inodes = 0/' POLICY", "max_inodes"),
        ("sed -i 's,^kind = .*,kind = \"storage\"\\ngraphroot = \"/var/lib/other\",' POLICY", "another graphroot"),
    ] {
        jail.ok(&format!("set -e; {}", change.replace("POLICY", policy)));
        // A new layer: what is there already needs no room.
        let stream = good(&jail, 2, Some(1)).end();
        let before = jail.published();
        for by in [By::ForUser, By::Sudo] {
            let outcome = jail.run(by).feed(&stream);
            tried += 1;
            if by == By::Sudo && change.contains("/etc/passwd") && outcome.answer.is_none() {
                // sudo does not trust it either.
                assert!(outcome.code != 0, "{change}: {outcome:?}");
                continue;
            }
            let error = outcome.refused(change);
            assert!(error.contains(why), "{change}: {why:?} is not in {error:?}");
        }
        // Where root has said that there is a store, its directory is made before the first byte is read.
        jail.ok("rmdir \"$at/vm/var/lib/other\" 2>/dev/null || :");
        jail.ok(&restore);
        jail.outside_is_unchanged(change);
        assert_eq!(jail.published(), before, "{change}");
    }
    jail.ok(&format!("sed -i 's/^kind = .*/kind = \"storage\"\\nmax_seconds = 9223372036854775807/' {policy}"));
    jail.run(By::ForUser).feed(&stream).succeeded("no limit in this world");
    // Callers that no entry names, and directories that none names.
    for uid in [1_u32, 1000, USER + 1, USER - 1, 65534, u32::MAX - 1] {
        let outcome = jail.run(By::Root).env("SUDO_UID", &uid.to_string()).feed(&stream);
        let error = outcome.refused(&format!("user {uid}"));
        assert!(error.contains("does not allow the caller"), "{uid}: {error}");
        tried += 1;
    }
    for directory in ["/", "/etc", "/proc/self", "/dev/shm", "/var/tmp"]
        .map(std::path::PathBuf::from)
        .into_iter()
        .chain([jail.at("outside"), jail.root().join("etc"), jail.root().join("var"), jail.store(), jail.at("")])
    {
        for by in [By::ForUser, By::Sudo] {
            let outcome = jail.run(by).directory(&directory).feed(&stream);
            let error = outcome.refused(&directory.display().to_string());
            assert!(error.contains(nobody), "{}: {error}", directory.display());
            tried += 1;
        }
    }
    jail.outside_is_unchanged("callers and directories");
    jail.run(By::Sudo).feed(&stream).succeeded("the good policy again");
    figure("policies and callers that let nobody in", tried);
}

#[test]
fn a_socket_of_root_makes_nobody_root() {
    if !needs_root("privilege::process::a_socket_of_root_makes_nobody_root") {
        return;
    }
    let (jail, stream) = jail();
    // Only root may: the user is in no entry.
    jail.ok("sed -i 's/tester/somebody/' /etc/prepull/helper.toml");
    let run = |by, with_socket: &dyn Fn() -> (Stdio, Box<dyn std::io::Write + Send>)| {
        let mut command = jail.run(by).command();
        let (stdin, mut writer) = with_socket();
        command.stdin(stdin);
        let child = command.spawn().unwrap();
        drop(command);
        let _ = writer.write_all(&stream);
        drop(writer);
        let output = child.wait_with_output().unwrap();
        let answer: prepull::helper::Answer = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), answer.error)
    };
    let unix = || {
        // Made by this process, which is root's.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let boxed: Box<dyn std::io::Write + Send> = Box::new(ours);
        (Stdio::from(std::os::fd::OwnedFd::from(theirs)), boxed)
    };
    let tcp = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        let boxed: Box<dyn std::io::Write + Send> = Box::new(ours);
        (Stdio::from(std::os::fd::OwnedFd::from(theirs)), boxed)
    };
    let (done, error) = run(By::Root, &unix);
    assert!(done, "root's own socket: {error}");
    for by in [By::Sudo, By::ForUser] {
        let (done, error) = run(by, &unix);
        assert!(!done && error.contains("does not allow the caller"), "{by:?}: {error}");
        let (done, error) = run(by, &tcp);
        assert!(!done && error.contains("does not allow the caller"), "{by:?}: {error}");
    }
    // Nobody knows who is at the other end of it.
    let (done, error) = run(By::Root, &tcp);
    assert!(!done && error.contains("socket"), "a network socket: {error}");
    jail.outside_is_unchanged("sockets");
    figure("sockets to start the helper with", 6);
}
