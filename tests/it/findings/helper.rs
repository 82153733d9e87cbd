//! The helper and the stores that it writes: who may start it, what a caller gets out of it, what a store has afterwards.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Stdio;

use prepull::entry::{Device, Entry, Kind};

use crate::command::needs_root;
use crate::privilege::stream::{Stream, diff, good, meta};
use crate::privilege::{By, Jail, USER};

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs_err::set_permissions(path.as_ref(), std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn c01_helper_with_bits_or_capabilities_does_not_serve_its_caller() {
    if !needs_root("findings::helper::c01_helper_with_bits_or_capabilities_does_not_serve_its_caller") {
        return;
    }
    let jail = Jail::new("");
    // A directory of the user's own, which the policy allows: the attack that gave host root.
    chown(jail.root(), Some(USER), Some(USER)).unwrap();
    let stream = good(&jail, 1, None).end();
    fs_err::write(jail.at("stream"), &stream).unwrap();
    for prepare in [
        "setcap cap_chown,cap_fowner,cap_fsetid,cap_setfcap,cap_sys_chroot=p $at/bin/copy",
        "setcap cap_chown,cap_fowner,cap_fsetid,cap_setfcap,cap_sys_chroot=ep $at/bin/copy",
        "chmod u+s $at/bin/copy",
        "chmod g+s $at/bin/copy",
        ":",
    ] {
        let said = jail.ok(&format!(
            r#"rm -f "$at/bin/copy"; cp "$at/bin/prepull-helper" "$at/bin/copy"; {prepare}
            cd "$at/vm"; as "$at/bin/copy" stdio <"$at/stream" && exit 1
            # Whoever pretends to have been started by sudo is no better.
            as env SUDO_UID=0 "$at/bin/copy" stdio <"$at/stream" && exit 2; exit 0"#
        ));
        assert_eq!(said.matches("must be started by root").count(), 2, "{prepare}: {said}");
        assert!(!jail.root().join("var").exists(), "{prepare}");
    }
    let output = jail.command(r#"as "$at/bin/prepull" install --via helper --root "$at/vm" x"#).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// A layer with what would make its user root, wherever it can be reached.
fn with_root_shell(jail: &Jail) -> Vec<u8> {
    let at = diff(1);
    let shell = fs_err::read("/bin/busybox").unwrap();
    Stream::new("install", jail)
        .dir(&at)
        .file_with(format!("{at}/shell"), meta(0o4755), shell)
        .entry(&Entry { path: format!("{at}/p").into_bytes(), meta: meta(0o4755), kind: Kind::Fifo })
        .end_layer(1, None)
        .end()
}

#[test]
fn c01_programs_of_a_store_are_out_of_its_users_reach() {
    if !needs_root("findings::helper::c01_programs_of_a_store_are_out_of_its_users_reach") {
        return;
    }
    let jail = Jail::new("");
    // The user owns all directories down to the store's, and can rename what is in them.
    fs_err::create_dir_all(jail.root().join("var/lib/containers")).unwrap();
    for at in ["", "var", "var/lib", "var/lib/containers"] {
        chown(jail.root().join(at), Some(USER), Some(USER)).unwrap();
    }
    jail.run(By::Sudo).feed(&with_root_shell(&jail)).succeeded("a layer with a setuid program");
    let said = jail.ok(&format!(
        r#"cd "$at/vm/var/lib/containers"
        try() {{
            as sh -c 'find . -name shell; for f in $(find . -name overlay) */overlay/*/diff/shell; do "$f" id -u; done' 2>/dev/null
            as "$1/overlay/{id}/diff/shell" id -u 2>&1; as ls -a "$1" "$1/overlay" 2>&1
        }}
        try storage; as mv storage moved || exit 1; try moved; as mv moved storage || exit 2
        test -u "storage/overlay/{id}/diff/shell""#,
        id = crate::privilege::stream::id(1),
    ));
    assert!(said.contains("Permission denied"), "{said}");
    assert!(!said.lines().any(|line| line == "0" || line.ends_with("/shell")), "{said}");
}

#[test]
fn c01_store_that_users_can_enter_wants_nosuid_and_nodev() {
    if !needs_root("findings::helper::c01_store_that_users_can_enter_wants_nosuid_and_nodev") {
        return;
    }
    let refusal = "users can reach it";
    // (policy, by, mode of `overlay`, mount options, refused)
    let cases = [
        ("", By::Sudo, 0o755, "", true),
        ("", By::ForUser, 0o711, "", true),
        ("", By::ForUser, 0o750, "", true),
        ("", By::ForUser, 0o701, "nodev", true),
        ("devices = true\nsuid = false\nfilecaps = false", By::ForUser, 0o755, "nosuid", true),
        ("devices = true\nsuid = false\nfilecaps = false", By::ForUser, 0o755, "nodev", false),
        ("suid = false", By::ForUser, 0o755, "", true),
        ("filecaps = false", By::ForUser, 0o755, "", true),
        ("devices = true", By::ForUser, 0o755, "nosuid,nodev", false),
        ("", By::ForUser, 0o755, "nosuid", false),
        ("suid = false\nfilecaps = false", By::ForUser, 0o755, "", false),
        ("", By::Sudo, 0o700, "", false),
        // Root gains nothing.
        ("", By::Root, 0o755, "", false),
    ];
    for (more, by, mode, options, refused) in cases {
        let what = format!("{more:?} {by:?} {mode:o} {options:?}");
        let jail = Jail::new(more);
        fs_err::create_dir_all(jail.store().join("overlay")).unwrap();
        if !options.is_empty() {
            jail.ok(&format!(
                "mount -t tmpfs -o {options},mode=755 none $at/vm/{}; mkdir $at/vm/{0}/overlay",
                crate::stores::GRAPHROOT
            ));
        }
        jail.ok(&format!("chmod {mode:o} $at/vm/{}/overlay", crate::stores::GRAPHROOT));
        let outcome = jail.run(by).feed(&Stream::new("query", &jail).end());
        if refused {
            let error = outcome.refused(&what);
            assert!(error.contains(refusal) && error.contains("nosuid"), "{what}: {error}");
        } else {
            outcome.succeeded(&what);
        }
    }
    // A closed directory above is as good.
    for (owner, mode, refused) in [(0, 0o700, false), (USER, 0o700, true), (0, 0o750, true)] {
        let jail = Jail::new("");
        fs_err::create_dir_all(jail.store().join("overlay")).unwrap();
        chmod(jail.store().join("overlay"), 0o755);
        chmod(jail.root(), mode);
        chown(jail.root(), Some(owner), None).unwrap();
        let outcome = jail.run(By::ForUser).feed(&Stream::new("query", &jail).end());
        assert_eq!(outcome.code != 0, refused, "{owner} {mode:o}: {outcome:?}");
    }
}

#[test]
fn c01_mode_of_a_pipe_or_device_is_not_set_by_its_name() {
    if !needs_root("findings::helper::c01_mode_of_a_pipe_or_device_is_not_set_by_its_name") {
        return;
    }
    let jail = Jail::new("devices = true");
    let at = diff(1);
    let node = |name: &str, mode, kind| Entry { path: format!("{at}/{name}").into_bytes(), meta: meta(mode), kind };
    let device = |minor| Kind::CharDevice(Device { major: 1, minor });
    let stream = Stream::new("install", &jail)
        .dir(&at)
        .entry(&node("p", 0o6664, Kind::Fifo))
        .entry(&node("w", 0, Kind::CharDevice(Device::WHITEOUT)))
        .entry(&node("null", 0o600, device(3)))
        .entry(&node("zero", 0o666, device(5)))
        .entry(&node("mem", 0o6640, device(1)))
        .end_layer(1, None)
        .end();
    let trace = jail.at("trace");
    let wrapper = format!("strace -f -o {} -e trace=fchmodat,fchmod,mknodat", trace.display());
    jail.run(By::ForUser).wrapper(&wrapper).feed(&stream).succeeded("pipes and devices");
    let trace = fs_err::read_to_string(trace).unwrap();
    assert!(trace.contains("mknodat(") && trace.contains("fchmod("), "{trace}");
    // By name only where the umask has taken a part, and in a directory that is root's alone.
    let by_name = trace.lines().filter(|line| line.contains("fchmodat(") && !line.contains(".prepull-staging-"));
    let by_name: Vec<_> = by_name.collect();
    assert!(
        by_name.len() == 2 && by_name.iter().all(|line| line.contains("\"zero\"") || line.contains("\"mem\"")),
        "{by_name:?}"
    );
    let found = jail.ok(&format!("stat -c '%n %a' $at/vm/{at}/*"));
    let modes: Vec<_> = found.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(modes, ["mem 640", "null 600", "p 6664", "w 0", "zero 666"]);
}

#[test]
fn c01_staging_in_a_directory_of_others_is_not_touched() {
    use prepull::helper::apply::remove;
    use prepull::helper::confine::Powers;
    use prepull::helper::root::Dir;
    // What is removed is first given to root and made 0700, by its name: never where another user could swap that.
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    fs_err::write(&victim, "").unwrap();
    chmod(&victim, 0o600);
    for (number, mode) in [0o777, 0o730, 0o1777].into_iter().enumerate() {
        let parent = directory.path().join(number.to_string());
        fs_err::create_dir_all(parent.join("old/inner")).unwrap();
        chmod(&parent, mode);
        let open = Dir::at(parent.as_path()).unwrap();
        assert_eq!(remove(Powers::Own, &open, b"old"), Err(rustix::io::Errno::PERM), "{mode:o}");
        assert!(parent.join("old/inner").exists());
        std::os::unix::fs::symlink(&victim, parent.join("link")).unwrap();
        assert!(remove(Powers::Own, &open, b"link").is_err(), "{mode:o}");
    }
    assert_eq!(fs_err::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn c02_helper_that_holds_the_locks_cannot_be_stopped_from_its_terminal() {
    if !needs_root("findings::helper::c02_helper_that_holds_the_locks_cannot_be_stopped_from_its_terminal") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a store");
    // While it waits for the last lock it holds the others. Stopped there, it would keep podman waiting for good.
    let said = jail.ok(&format!(
        r#"cd "$at/vm"; lock={graphroot}/overlay-containers/containers.lock
        python3 -c 'import fcntl, sys, time; f = open(sys.argv[1], "r+"); fcntl.lockf(f, fcntl.LOCK_EX); print("locked", flush=True); time.sleep(60)' $lock >"$at/holder" &
        holder=$!; while ! test -s "$at/holder"; do sleep 0.02; done
        SUDO_UID={USER} "$at/bin/prepull-helper" stdio <"$at/request" >"$at/answer" 2>&1 & helper=$!
        for n in $(seq 300); do grep -q "FLOCK\|OFDLCK\|POSIX" /proc/locks && test -s /proc/$helper/wchan && \
            test "$(ls /proc/$helper/fd | wc -l)" -gt 8 && break; sleep 0.02; done
        for signal in TSTP TTIN TTOU; do kill -$signal $helper; done; sleep 0.2
        grep State /proc/$helper/status; kill $holder; wait $helper; echo "status $?"; cat "$at/answer""#,
        graphroot = crate::stores::GRAPHROOT,
    ).replacen("cd \"$at/vm\"", &format!("printf %s {} | base64 -d >\"$at/request\"; cd \"$at/vm\"", base64(&good(&jail, 2, Some(1)).end())), 1));
    assert!(!said.contains("stopped"), "{said}");
    assert!(said.contains("status 0") && said.contains("\"layers\":1"), "{said}");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn c02_helper_does_not_keep_its_callers_scheduling() {
    if !needs_root("findings::helper::c02_helper_does_not_keep_its_callers_scheduling") {
        return;
    }
    let jail = Jail::new("");
    let request = Stream::new("query", &jail).0;
    let mut command = jail.run(By::ForUser).wrapper("nice -n 19 taskset -c 0").command();
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &request).unwrap();
    let status = |name: &str| fs_err::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    let is_waiting = || status("status").contains("Seccomp:\t2");
    (0..500).take_while(|_| !is_waiting()).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
    let stat = status("stat");
    // proc(5): nice is field 19, and the name ends with the last bracket.
    assert_eq!(stat.rsplit(')').next().unwrap().split_whitespace().nth(16), Some("0"), "{stat}");
    let allowed = status("status");
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap().to_owned();
    let own = fs_err::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap().to_owned();
    assert_eq!(allowed, own);
    drop(child.stdin.take());
    child.wait().unwrap();
    // The idle policy cannot be reset, so nothing is done with it.
    let outcome = jail.run(By::ForUser).wrapper("chrt --idle 0").feed(&good(&jail, 1, None).end());
    assert!(outcome.refused("idle").contains("idle scheduling policy"), "{outcome:?}");
    jail.run(By::ForUser).wrapper("chrt --batch 0").feed(&good(&jail, 1, None).end()).succeeded("batch");
}
