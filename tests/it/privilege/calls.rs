//! What the helper may still do when it reads its first byte, and what it does whatever happens: capabilities phase by phase, paths, and system calls.

use std::io::Write as _;
use std::process::Stdio;

use crate::command::needs_root;
use crate::privilege::stream::{Stream, good, id};
use crate::privilege::{By, Jail, USER, figure};

/// CAP_CHOWN, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP (linux/capability.h: 0, 3, 4, 31).
const FOUR: &str = "0000000080000019";
const NONE: &str = "0000000000000000";

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
}

#[test]
fn four_capabilities_and_none_of_them_effective() {
    if !needs_root("privilege::calls::four_capabilities_and_none_of_them_effective") {
        return;
    }
    for (more, permitted) in [("", FOUR), ("devices = true", "0000000088000019")] {
        let jail = Jail::new(more);
        let mut command = jail.command(
            r#"cd "$at/vm" && exec 7</etc/shadow && exec env SUDO_UID=4321 SECRET=1 "$at/bin/prepull-helper" stdio"#,
        );
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // `unshare` and bash have become the helper: its number is the child's.
        let path = format!("/proc/{}", child.id());
        let mut status = String::new();
        for _ in 0..200 {
            status = fs_err::read_to_string(format!("{path}/status")).unwrap();
            if field(&status, "Seccomp") == "2" {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        for (name, value) in [
            ("CapPrm", permitted),
            ("CapEff", NONE),
            ("CapInh", NONE),
            ("CapBnd", NONE),
            ("CapAmb", NONE),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Threads", "1"),
            ("Umask", "0077"),
            ("Groups", ""),
        ] {
            assert_eq!(field(&status, name), value, "{name}\n{status}");
        }
        let root = fs_err::read_link(format!("{path}/root")).unwrap();
        assert!(
            root.ends_with("var/lib/containers/storage") || root == std::path::Path::new("/"),
            "{}",
            root.display()
        );
        let files: Vec<_> =
            fs_err::read_dir(format!("{path}/fd")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let shown: Vec<_> = files.iter().map(|file| fs_err::read_link(file).unwrap()).collect();
        assert!(!shown.iter().any(|file| file.starts_with("/etc")), "{shown:?}");
        let environment = fs_err::read(format!("{path}/environ")).unwrap();
        assert_eq!(environment, b"SUDO_UID=4321\0");
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn what_publishes_has_no_capability_at_all() {
    if !needs_root("privilege::calls::what_publishes_has_no_capability_at_all") {
        return;
    }
    let jail = Jail::new("");
    let install = |name: &str| {
        format!(
            r#"cat >"$at/bin/for-user" <<'END'
#! /bin/sh
exec env SUDO_UID={USER} "$(dirname "$0")/prepull-helper" "$@"
END
            chmod 755 "$at/bin/for-user"
            direct install --quiet --no-cache --helper "$at/bin/for-user" --root "$at/vm" '{}=localhost/{name}:1'"#,
            crate::command::hello(),
        )
    };
    jail.ok(&install("first"));
    // It waits for the lock, and has received everything.
    let path = jail.at("vm").join(crate::stores::GRAPHROOT).join("overlay-images/images.lock");
    let lock = fs_err::File::options().write(true).open(path).unwrap();
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    let mut child = jail.command(&install("second")).spawn().unwrap();
    has_none(&at_call(&jail, "clock_nanosleep"));
    drop(lock);
    assert!(child.wait().unwrap().success());
}

/// `/proc/PID/status` of the jail's helper, when it is in a call that takes its time.
fn at_call(jail: &Jail, call: &str) -> String {
    let (helper, number) = (jail.at("bin/prepull-helper"), format!("{} ", call_number(call)));
    let is_there = |process: &std::path::Path| {
        let is_helper = fs_err::read_link(process.join("exe")).is_ok_and(|exe| exe == helper);
        is_helper && fs_err::read_to_string(process.join("syscall")).unwrap_or_default().starts_with(&number)
    };
    let begun = std::time::Instant::now();
    loop {
        assert!(begun.elapsed().as_secs() < 30, "it does not come to {call}");
        let mut processes = fs_err::read_dir("/proc").unwrap().map(|process| process.unwrap().path());
        let found = processes.find(|process| is_there(process));
        if let Some(status) = found.and_then(|at| fs_err::read_to_string(at.join("status")).ok()) {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[track_caller]
fn has_none(status: &str) {
    for set in ["CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(field(status, set), NONE, "{set}\n{status}");
    }
}

#[test]
fn images_are_received_without_a_capability() {
    if !needs_root("privilege::calls::images_are_received_without_a_capability") {
        return;
    }
    let jail = Jail::new("");
    let mut child = jail.run(By::ForUser).command().spawn().unwrap();
    let stream = Stream::new("install", &jail).layer(1, None).data(&id(4), &[("manifest", b"{}")]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(&stream.0).unwrap();
    let begun = std::time::Instant::now();
    while !jail.store().join(format!(".prepull-staging-0/image-{}/manifest", id(4))).exists() {
        assert!(begun.elapsed().as_secs() < 30, "the image does not arrive");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    has_none(&at_call(&jail, "ppoll"));
    drop(input);
    let said = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("ends before its end"), "{said:?}");
    assert_eq!(jail.staging(), 0);
}

/// Stopping would leave it half done, and the rest takes no time.
#[test]
fn what_has_begun_to_be_published_is_finished_whoever_has_gone() {
    if !needs_root("privilege::calls::what_has_begun_to_be_published_is_finished_whoever_has_gone") {
        return;
    }
    // The layer's tar-split, the layer, layers.json, the image, images.json.
    for number in 1..=5 {
        let strace =
            format!("strace -f -o /dev/null -e trace=renameat -e inject=renameat:delay_enter=500000:when={number}");
        let finished = |jail: &Jail, name: &str| {
            let begun = std::time::Instant::now();
            while jail.staging() > 0 {
                assert!(begun.elapsed().as_secs() < 30, "{name} {number}: it is not finished");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            assert!(jail.podman().contains(&format!("localhost/{name} ")), "{name} {number}: {}", jail.podman());
            jail.ok(r#""$at/bin/prepull" verify --strict "$at/vm""#);
        };
        // Nobody reads the answer any more.
        let jail = Jail::new("");
        let mut child = jail.run(By::ForUser).wrapper(&strace).command().spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&good(&jail, 1, None).end()).unwrap();
        at_call(&jail, "renameat");
        drop((input, child.stdout.take()));
        assert_eq!(child.wait().unwrap().code(), Some(1), "it cannot say that it is done");
        let podman = jail.podman();
        assert!(podman.contains("localhost/good:1 ") && jail.staging() == 0, "{number}: {podman}");
        // Who asked is killed.
        let jail = Jail::new("");
        let script = format!(
            r#"cat >"$at/bin/traced" <<'END'
#! /bin/sh
exec {strace} env SUDO_UID={USER} "$(dirname "$0")/prepull-helper" "$@"
END
            chmod 755 "$at/bin/traced"
            export PATH="$at/direct:$PATH"; exec "$at/bin/prepull" install --quiet --no-cache --via sudo --helper "$at/bin/traced" --root "$at/vm" {hello}"#,
            hello = crate::command::hello(),
        );
        let mut child = jail.command(&script).spawn().unwrap();
        at_call(&jail, "renameat");
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        finished(&jail, "hello:v1");
    }
}

#[test]
fn each_capability_is_there_for_its_call_only() {
    if !needs_root("privilege::calls::each_capability_is_there_for_its_call_only") {
        return;
    }
    // (call, what it needs): the process is stopped at the call, and looked at.
    for (call, effective) in [
        ("fchownat", "0000000000000001"),
        ("fchmod", "0000000000000018"),
        ("write", NONE),
        ("linkat", "0000000000000008"),
        ("renameat", NONE),
        ("mkdirat", NONE),
    ] {
        let jail = Jail::new("");
        let at = jail.at("home/oci");
        let mut layout = crate::made::Layout::new(at.clone());
        let case = crate::corpus::all().into_iter().find(|case| case.name == "link").unwrap();
        case.write(&mut layout);
        let script = format!(
            r#"chown -R {user} "$at/home"; cat >"$at/bin/traced" <<'END'
#! /bin/sh
at=$(dirname "$0")
exec strace -f -o "$at/trace" -e trace={call} -e inject={call}:delay_enter=400000:when=1+1 env SUDO_UID={user} "$at/prepull-helper" "$@"
END
            chmod 755 "$at/bin/traced"; cd /
            direct install --quiet --no-cache --helper "$at/bin/traced" --root "$at/vm" 'oci:{oci}:{image}' 2>"$at/said" & job=$!
            while :; do
                for pid in $(pidof prepull-helper); do
                    test "$(readlink /proc/$pid/exe)" = "$at/bin/prepull-helper" || continue
                    grep -q '^Seccomp:.2' /proc/$pid/status 2>/dev/null || continue
                    # It goes on while it is looked at: what is seen must be of one call.
                    before=$(cut -d ' ' -f 1 /proc/$pid/syscall); effective=$(sed -n 's/^CapEff:.//p' /proc/$pid/status)
                    test "$before" = "$(cut -d ' ' -f 1 /proc/$pid/syscall)" && echo "$effective $before"
                done
                kill -0 $job 2>/dev/null || break
                sleep 0.01
            done >"$at/seen"; wait $job || {{ cat "$at/said" >&2; exit 1; }}"#,
            user = super::USER,
            oci = at.display(),
            image = case.image(),
        );
        jail.ok(&script);
        let seen = fs_err::read_to_string(jail.at("seen")).unwrap();
        let number = call_number(call);
        // Each call takes long enough to be seen several times; a line that stands alone may be of two calls.
        let lines: Vec<&str> = seen.lines().collect();
        let at_call: Vec<&str> = lines
            .windows(2)
            .filter(|two| two[0] == two[1])
            .filter_map(|two| two[0].split_once(' '))
            .filter(|(_, at)| *at == number)
            .map(|(effective, _)| effective)
            .collect();
        assert!(!at_call.is_empty(), "{call} was not seen: {seen}");
        // The store's own files are root's: they take none.
        assert!(at_call.contains(&effective), "{call}: {at_call:?}");
        assert!(at_call.iter().all(|found| [NONE, effective].contains(found)), "{call}: {at_call:?}");
    }
}

/// x86_64's numbers, as /proc/PID/syscall shows them.
fn call_number(name: &str) -> &'static str {
    match name {
        "write" => "1",
        "fchmod" => "91",
        "clock_nanosleep" => "230",
        "mkdirat" => "258",
        "renameat" => "264",
        "fchownat" => "260",
        "linkat" => "265",
        "ppoll" => "271",
        _ => panic!("{name}"),
    }
}

#[test]
fn no_path_leads_out_of_the_target() {
    if !needs_root("privilege::calls::no_path_leads_out_of_the_target") {
        return;
    }
    let jail = Jail::new("");
    let script = format!(
        r#"cat >"$at/bin/traced" <<'END'
#! /bin/sh
at=$(dirname "$0")
exec strace -f -o "$at/trace.$$" env SUDO_UID={user} "$at/prepull-helper" "$@"
END
        chmod 755 "$at/bin/traced"; cd /
        direct install --quiet --no-cache --helper "$at/bin/traced" --root "$at/vm" {hello} || exit 1
        direct rm --quiet --helper "$at/bin/traced" --root "$at/vm" localhost/hello:v1 || exit 2
        cat "$at"/bin/trace.*"#,
        user = super::USER,
        hello = crate::command::hello(),
    );
    let trace = jail.ok(&script);
    let (mut paths, mut confined, mut filtered) = (0, false, false);
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("chroot(\".\")") {
            confined = true;
        } else if call.starts_with("seccomp(") {
            filtered = true;
        } else if call.starts_with("execve(") {
            (confined, filtered) = (false, false);
        } else if confined
            // Content: a lock's token has any bytes.
            && !["write(", "pwrite64(", "read(", "symlinkat("].iter().any(|name| call.starts_with(name))
        {
            // The names in a call; a symbolic link's target is content.
            for path in call.split('"').skip(1).step_by(2).filter(|_| !call.starts_with("chdir(")) {
                paths += 1;
                assert!(!path.starts_with('/') && !path.split('/').any(|name| name == ".."), "{line}");
            }
            assert!(!filtered || !call.starts_with("open(") && !call.starts_with("openat("), "{line}");
            if call.starts_with("openat2(") {
                let rules = ["RESOLVE_NO_XDEV", "RESOLVE_NO_MAGICLINKS", "RESOLVE_NO_SYMLINKS", "RESOLVE_BENEATH"];
                assert!(rules.iter().all(|rule| call.contains(rule)), "{line}");
            }
        }
    }
    assert!(paths > 100, "{paths}\n{trace:.2000}");
    figure("paths that the helper used, all below its target", paths);
}
