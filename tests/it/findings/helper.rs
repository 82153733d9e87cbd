//! The helper and the stores that it writes: who may start it, what a caller gets out of it, what a store has afterwards.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Stdio;

use prepull::entry::{Device, Entry, Kind};

use super::install::{Machine, chmod};
use crate::command::needs_root;
use crate::privilege::stream::{Stream, config_of, diff, good, image_record, manifest_of, meta, stack};
use crate::privilege::{By, Jail, USER};

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
    assert_eq!(modes, ["mem 6640", "null 600", "p 6664", "w 0", "zero 666"]);
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

#[test]
fn c02_prepull_that_holds_the_locks_itself_stops_when_they_are_free() {
    if !needs_root("findings::helper::c02_prepull_that_holds_the_locks_itself_stops_when_they_are_free") {
        return;
    }
    let machine = Machine::new();
    machine.installs(&[&crate::command::hello()]);
    let lock = machine.at("root").join(crate::stores::GRAPHROOT).join("overlay-containers/containers.lock");
    let file = fs_err::File::options().read(true).write(true).open(lock).unwrap();
    let whole = nix::libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    let mut command = machine.prepull("gc");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let state = || {
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
    };
    let wait = |milliseconds| std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    // It has the first three.
    let held = |name: &str| {
        let path = machine.at("root").join(crate::stores::GRAPHROOT).join(name);
        let file = fs_err::File::options().read(true).write(true).open(path).unwrap();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).is_err()
    };
    (0..1000).take_while(|_| !held("overlay-images/images.lock")).for_each(|_| wait(10));
    rustix::process::kill_process(pid, rustix::process::Signal::TSTP).unwrap();
    wait(300);
    assert_ne!(state(), 'T', "stopped with the locks");
    drop(file);
    (0..1000).take_while(|_| state() != 'T').for_each(|_| wait(10));
    assert_eq!(state(), 'T', "not stopped when the locks were free");
    assert!(!held("overlay-images/images.lock") && !held("storage.lock"));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(child.wait().unwrap().success());
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

#[test]
fn c02_helper_does_not_keep_its_callers_timer_slack() {
    if !needs_root("findings::helper::c02_helper_does_not_keep_its_callers_timer_slack") {
        return;
    }
    let jail = Jail::new("");
    // With an hour of it, the helper would sleep for an hour with the first lock of a store when the second one is taken.
    let hour = "python3 -c 'import ctypes, os, sys; ctypes.CDLL(None).prctl(29, ctypes.c_ulong(3600 * 10**9), 0, 0, 0); \
        os.execvp(sys.argv[1], sys.argv[1:])'";
    let mut child = jail.run(By::ForUser).wrapper(hour).command().spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &Stream::new("query", &jail).0).unwrap();
    let read = |name: &str| fs_err::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    let is_waiting = || read("status").contains("Seccomp:\t2");
    (0..500).take_while(|_| !is_waiting()).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
    assert_eq!(read("timerslack_ns").trim(), "50000");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn c03_content_of_images_is_not_read_under_the_locks() {
    if !needs_root("findings::helper::c03_content_of_images_is_not_read_under_the_locks") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a store");
    let config = config_of(1);
    let install = |name: &str| {
        let stream = Stream::new("install", &jail).image(config.as_bytes(), Some(1), name).end();
        let wrapper = format!("strace -f -o {} -e trace=fcntl,openat2", jail.at("trace").display());
        jail.run(By::ForUser).wrapper(&wrapper).feed(&stream).succeeded(name);
        let trace = fs_err::read_to_string(jail.at("trace")).unwrap();
        let is_lock = |line: &&str| line.contains("F_OFD_SETLK, {l_type=F_WRLCK") && line.contains("l_len=0");
        let lines: Vec<&str> = trace.lines().collect();
        let locks: Vec<usize> = (0..lines.len()).filter(|at| is_lock(&lines[*at])).collect();
        assert_eq!(locks.len(), 4, "{trace}");
        let (before, after) = lines.split_at(locks[3]);
        let opened = |lines: &[&str]| lines.iter().filter(|line| line.contains("\"manifest\"")).count();
        (opened(before), opened(after))
    };
    install("localhost/x:1");
    // The image is in the store, and its files are compared with those that come.
    let (before, after) = install("localhost/x:2");
    assert!(before > 0 && after == 0, "opened {before} times before it had all locks, {after} times afterwards");
    assert!(jail.podman().contains("localhost/x:2"));
}

/// The calls that reach the disk in a trace of `fcntl`, `close` and those calls, while all four locks of a store are held, and how
/// long that was.
fn under_the_locks(trace: &str) -> (Vec<String>, f64) {
    let time = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    let is_lock = |line: &&&str| line.contains("F_OFD_SETLK, {l_type=F_WRLCK") && line.ends_with("= 0");
    let locks: Vec<&str> = lines.iter().filter(is_lock).filter(|line| line.contains("l_len=0")).copied().collect();
    assert_eq!(locks.len(), 4, "{trace}");
    let descriptor = locks[0].split("fcntl(").nth(1).unwrap().split(',').next().unwrap();
    let first = lines.iter().position(|line| *line == locks[0]).unwrap();
    let closed = lines[first..].iter().position(|line| line.contains(&format!("close({descriptor})"))).unwrap() + first;
    let held = &lines[first..closed];
    let calls = held.iter().filter(|line| line.contains("sync"));
    (calls.map(|line| (*line).to_owned()).collect(), time(lines[closed]) - time(lines[first]))
}

#[test]
fn c03_locks_are_held_for_one_sync_however_many_layers() {
    if !needs_root("findings::helper::c03_locks_are_held_for_one_sync_however_many_layers") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a store");
    let wrapper = format!(
        "strace -f -ttt -o {} -e trace=fcntl,close,fsync,fdatasync,syncfs,sync_file_range",
        jail.at("trace").display()
    );
    let request_of = |word: &str, lines: &str| {
        let text = format!("{}{lines}", crate::privilege::stream::request(word, &jail));
        Stream::default().file("prepull-request", text).end()
    };
    let image =
        |number| Stream::new("install", &jail).image(config_of(number).as_bytes(), Some(number), "localhost/x:1").end();
    for (what, stream) in [
        ("500 layers", stack(&jail, 500)),
        ("a layer and an image", good(&jail, 2, Some(1)).end()),
        ("an image", image(1)),
        ("a name", image(2)),
        ("rm", request_of("remove", "name localhost/good:2\n")),
        ("gc", request_of("collect", "")),
    ] {
        jail.run(By::ForUser).wrapper(&wrapper).feed(&stream).succeeded(what);
        let (calls, seconds) = under_the_locks(&fs_err::read_to_string(jail.at("trace")).unwrap());
        assert!(calls.len() <= 1, "{what}: {calls:?}");
        // Generous: strace stops each of these calls, and the machine has other things to do.
        assert!(seconds < 3.0, "{what}: {seconds} s");
        eprintln!("{what}: the locks were held for {seconds:.3} s, {} sync(s)", calls.len());
    }
    jail.ok(r#""$at/bin/prepull" verify --quiet "$at/vm" >/dev/null || test $? = 1"#);
    assert!(jail.podman().contains("localhost/good:1 "));
}

#[test]
fn c05_helper_refuses_records_that_their_content_does_not_bear_out() {
    if !needs_root("findings::helper::c05_helper_refuses_records_that_their_content_does_not_bear_out") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a store");
    let before = jail.podman();
    let config = config_of(1);
    let manifest = manifest_of(config.as_bytes());
    let name = "localhost/bad:1";
    let record = image_record(config.as_bytes(), &manifest, Some(1), name);
    let key = format!("sha256:{}", record.id);
    let with = |files: &[(&str, &[u8])], lines: String| {
        Stream::new("install", &jail).data(&record.id, files).file("prepull-image", lines).end()
    };
    let good_files = [("manifest", &manifest[..]), (&key[..], config.as_bytes())];
    let other_config = config.replace("amd64", "arm64");
    let other_manifest = manifest_of(other_config.as_bytes());
    let of_other = image_record(config.as_bytes(), &other_manifest, Some(1), name).to_lines();
    let image = |config: &[u8], layer| Stream::new("install", &jail).image(config, layer, name).end();
    let digested = |digest: &str| record.to_lines().replace(name, &format!("localhost/bad@{digest}"));
    let attacks = [
        ("a config of the same length", with(&[good_files[0], (&key, other_config.as_bytes())], record.to_lines())),
        ("a manifest of the same length", with(&[("manifest", &other_manifest), good_files[1]], record.to_lines())),
        ("a manifest of another config", with(&[("manifest", &other_manifest), good_files[1]], of_other)),
        ("a name with another digest", with(&good_files, digested(&crate::privilege::stream::digest(1)))),
        ("a name with the config's digest", with(&good_files, digested(&key))),
        ("a config that is no JSON", image(b"not JSON, though it mentions sha256:", Some(1))),
        ("a config that is a list", image(b"[]", Some(1))),
        ("a config without layers", image(br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#, Some(1))),
        ("a config of another layer", image(config_of(2).as_bytes(), Some(1))),
        ("an image without the layers of its config", image(config.as_bytes(), None)),
        ("a diffID that is no digest", image(config.replace("sha256:", "sha512:").as_bytes(), Some(1))),
        ("a layer with another id", Stream::new("install", &jail).layer(3, None).end()),
        ("a layer with another parent", Stream::new("install", &jail).layer(3, Some(2)).end()),
    ];
    for (what, stream) in attacks {
        jail.refuses(By::ForUser, what, "image |layer ", &stream);
        assert_eq!(jail.podman(), before, "{what}");
    }
    let of_manifest = prepull::digest::Digest::of(&manifest).to_string();
    jail.run(By::ForUser)
        .feed(&with(&good_files, digested(&of_manifest)))
        .succeeded("a name with its manifest's digest");
    assert!(jail.published().contains(&format!("localhost/bad@{of_manifest}")));
}

#[test]
fn c06_root_is_locked_by_what_only_root_can_open() {
    if !needs_root("findings::helper::c06_root_is_locked_by_what_only_root_can_open") {
        return;
    }
    let jail = Jail::rootfs("suid = false\nfilecaps = false");
    fs_err::remove_dir_all(jail.root().join("etc")).unwrap();
    chmod(jail.root(), 0o755);
    // What mkfs makes stays as it is.
    fs_err::create_dir(jail.root().join("lost+found")).unwrap();
    chmod(jail.root().join("lost+found"), 0o700);
    let tree = Stream::new("unpack", &jail).dir("usr").file("usr/x", b"x").dir("usr");
    let error = jail.run(By::ForUser).feed(&tree.clone().dir("lost+found").end()).refused("lost+found");
    assert!(error.contains("belongs to the file system"), "{error}");
    let inner = tree.clone().file("lost+found/x", b"").end();
    assert!(jail.run(By::ForUser).feed(&inner).refused("lost+found").contains("belongs to the file system"));
    // A user's flock(2) on the directory, as it can be had by anyone who may read it.
    let said = jail.ok(&format!(
        r#"as flock --exclusive "$at/vm" sleep 30 & user=$!
        for n in $(seq 200); do grep -q FLOCK /proc/locks && break; sleep 0.02; done
        cd "$at/vm"; echo {} | base64 -d >"$at/stream"; SUDO_UID={USER} "$at/bin/prepull-helper" stdio <"$at/stream"; echo "status $?"
        kill $user; ls -a "$at/vm""#,
        base64(&tree.clone().end())
    ));
    assert!(said.contains("status 0\n") && said.contains("lost+found\nusr\n"), "{said}");
    assert!(!said.contains(".prepull"), "{said}");
    // Two at a time are one too many.
    for name in ["usr/x", "usr"] {
        let at = jail.root().join(name);
        let _ = fs_err::remove_file(&at).or_else(|_| fs_err::remove_dir(&at));
    }
    let mut first = jail.run(By::ForUser).command().spawn().unwrap();
    let mut input = first.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &tree.0).unwrap();
    let begun = || jail.root().join(".prepull-staging-0/tree/usr").exists();
    (0..500).take_while(|_| !begun()).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
    let error = jail.run(By::ForUser).feed(&tree.end()).refused("two at a time");
    assert!(error.contains("another install into this directory"), "{error}");
    std::io::Write::write_all(&mut input, &prepull::wire::END).unwrap();
    drop(input);
    assert!(first.wait().unwrap().success());
    assert_eq!(fs_err::read(jail.root().join("usr/x")).unwrap(), b"x");
}

#[test]
fn c09_policy_limits_the_store_and_the_free_space() {
    if !needs_root("findings::helper::c09_policy_limits_the_store_and_the_free_space") {
        return;
    }
    let jail = Jail::new("max_store_bytes = \"10K\"");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("the first");
    // Each run is small; all together are not.
    let mut refused = String::new();
    for number in 2..30 {
        let outcome = jail.run(By::ForUser).feed(&good(&jail, number, Some(1)).end());
        if outcome.code != 0 {
            refused = outcome.refused("too many bytes");
            break;
        }
    }
    assert!(refused.contains("max_store_bytes"), "{refused:?}");
    assert_eq!(jail.staging(), 0);
    // A record that counts fewer bytes than its layer has does not help.
    let at = diff(40);
    let lie =
        Stream::new("install", &jail).dir(&at).file(format!("{at}/f"), vec![b'x'; 3000]).end_layer(40, Some(1)).end();
    assert!(jail.run(By::ForUser).feed(&lie).refused("a lie").contains("more bytes than its record counts"));

    let jail = Jail::new("keep_free = \"1T\"");
    let error = jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).refused("a full disk");
    assert!(error.contains("keep_free"), "{error}");
    let jail = Jail::new("keep_free = \"24M\"");
    jail.ok(&format!(
        "mkdir -p $at/vm/{0}; mount -t tmpfs -o size=64M,mode=700 none $at/vm/{0}",
        crate::stores::GRAPHROOT
    ));
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("room enough");
    let at = diff(2);
    let big = (0..12).fold(Stream::new("install", &jail).dir(&at), |stream, number| {
        stream.file(format!("{at}/{number}"), vec![b'x'; 5 << 20])
    });
    let error = jail.run(By::ForUser).feed(&big.end_layer(2, Some(1)).end()).refused("more than there is");
    assert!(error.contains("keep_free"), "{error}");
}

#[test]
fn c09_one_user_does_not_keep_others_from_the_helper() {
    if !needs_root("findings::helper::c09_one_user_does_not_keep_others_from_the_helper") {
        return;
    }
    let jail = Jail::new("");
    let query = Stream::new("query", &jail).end();
    let begun = std::time::Instant::now();
    let idle: Vec<_> = (0..prepull::helper::caller::RUNS_MAX)
        .map(|_| crate::privilege::process::waiting(&jail, By::ForUser, "").0)
        .collect();
    let error = jail.run(By::ForUser).feed(&query).refused("one too many");
    assert!(error.contains("helpers run for this user already"), "{error}");
    jail.run(By::Root).feed(&query).succeeded("another user");
    // Nothing is said on these connections, so they end by themselves.
    for mut child in idle {
        let input = child.stdin.take();
        let mut said = String::new();
        std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        drop(input);
        child.wait().unwrap();
        let answer: prepull::helper::Answer = serde_json::from_str(&said).unwrap();
        assert!(answer.error.contains("no request has come"), "{answer:?}");
    }
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
    jail.run(By::ForUser).feed(&query).succeeded("when they are gone");
}

#[test]
fn c09_files_after_the_tar_split_do_not_evade_the_limit_of_the_store() {
    if !needs_root("findings::helper::c09_files_after_the_tar_split_do_not_evade_the_limit_of_the_store") {
        return;
    }
    let jail = Jail::new("max_store_bytes = \"10K\"");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a store");
    let at = diff(2);
    let record = crate::privilege::stream::layer_record(2, Some(1)).to_lines();
    let late = Stream::new("install", &jail)
        .dir(&at)
        .split(2)
        .file(format!("{at}/f"), vec![b'x'; 1 << 20])
        .file("prepull-layer", record)
        .end();
    jail.refuses(By::ForUser, "a file after the tar-split", "another layer or image is not complete yet", &late);
}

#[test]
fn c09_removing_what_a_run_has_left_takes_little_memory() {
    if !needs_root("findings::helper::c09_removing_what_a_run_has_left_takes_little_memory") {
        return;
    }
    let jail = Jail::new("");
    fs_err::write(jail.at("stream"), Stream::new("sweep", &jail).end()).unwrap();
    let sweep = |files: u32, directories: u32| {
        let said = jail.ok(&format!(
            r#"mkdir -p "$at/vm/{store}"; chmod 700 "$at/vm/{store}"; cd "$at/vm"; export SUDO_UID={USER} AT="$at"; python3 -c '
import os, resource, subprocess
at = "{store}/.prepull-staging-0"
os.makedirs(at + "/x", 0o700, exist_ok=True); os.chmod(at, 0o700)
for n in range({files}): os.mknod(at + "/x/%0250d" % n)
for n in range({directories}): os.makedirs(at + "/%d/inner/%d" % (n, n)); os.chmod(at + "/%d/inner" % n, 0)
subprocess.run([os.environ["AT"] + "/bin/prepull-helper", "stdio"], stdin=open(os.environ["AT"] + "/stream"), check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'"#,
            store = crate::stores::GRAPHROOT,
        ));
        assert_eq!(jail.staging(), 0);
        said.trim().parse::<u64>().unwrap()
    };
    // 300 bytes a file would be 18,000 KiB, and more than the service may have for the files of one run.
    let (few, many) = (sweep(10, 10), sweep(60_000, 2_000));
    assert!(many < few + 6_000, "{few} KiB, then {many} KiB");
}

#[test]
fn c09_directory_of_the_socket_can_be_entered_whoever_makes_it() {
    if !needs_root("findings::helper::c09_directory_of_the_socket_can_be_entered_whoever_makes_it") {
        return;
    }
    let jail = Jail::new("");
    jail.ok("mount -t tmpfs -o mode=755 none /run");
    jail.run(By::ForUser).setup("umask 077;").feed(&Stream::new("query", &jail).end()).succeeded("a query");
    assert_eq!(jail.ok("stat -c '%a %u' /run/prepull; stat -c %a /run/prepull/callers").trim(), "755 0\n600");
}
