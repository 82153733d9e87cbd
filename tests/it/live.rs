//! `install`, `rm` and `gc` on a store that has images, while podman uses it, while the system fails, and when they are killed.
//!
//! A sample in an ordinary run; everything, and five minutes beside podman, with PREPULL_FAULTS=all.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command::{hello, needs_root, prepull, stderr, succeeds};
use crate::made::{Layout, tar};
use crate::privilege::figure;
use crate::stores::{GRAPHROOT, in_own_mounts, json, scratch};

fn is_all() -> bool {
    std::env::var_os("PREPULL_FAULTS").is_some_and(|what| what == "all")
}

/// A directory `old` with one image, an item with two new layers, and a second name for the old image's layers.
struct Scene {
    directory: tempfile::TempDir,
    items: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let directory = scratch();
        let mut layout = Layout::new(directory.path().join("oci"));
        let layers = [tar(&[("a", b"first"), ("b", &[b'x'; 70_000])]), tar(&[("c", b"second"), ("a", b"changed")])];
        let image = layout.image("amd64", &layers);
        layout.add(Some("localhost/new:1"), image);
        let third = layout.image("amd64", &[layers[0].clone(), tar(&[("d", b"third")])]);
        layout.add(Some("localhost/third:1"), third);
        let item = format!("oci:{}:localhost/new:1", layout.path.display());
        let scene = Self { directory, items: vec![item, format!("{}=localhost/more:1", hello())] };
        fs_err::create_dir(scene.at("old")).unwrap();
        succeeds(scene.install("old", &[&format!("{}=localhost/old:1", hello())]).arg("--quiet"));
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn install(&self, root: &str, items: &[&str]) -> Command {
        let mut command = prepull(self.directory.path());
        command.args(["install", "--no-cache", "--root"]).arg(self.at(root)).args(items);
        command
    }

    fn items(&self) -> Vec<&str> {
        self.items.iter().map(String::as_str).collect()
    }

    /// A copy of the directory with the old image.
    fn fresh(&self, name: &str) {
        let script = r#"rm -rf "$2" && cp -a "$1" "$2""#;
        let status = Command::new("sh").args(["-c", script, "sh"]).arg(self.at("old")).arg(self.at(name)).status();
        assert!(status.unwrap().success());
    }

    /// The old image must be there, whole, and for the real tool too; and the same command must then succeed and leave nothing.
    fn judge(&self, root: &str, what: &str, asks_podman: bool, again: &mut Command) {
        let store = self.at(root).join(GRAPHROOT);
        let verify = |when: &str| {
            let output = prepull(self.directory.path()).arg("verify").arg(self.at(root)).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{what}, {when}: {said} {}", stderr(&output));
        };
        verify("after it");
        let names: Vec<String> = json(&store, "overlay-images/images.json")
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|image| image["names"].as_array().cloned().unwrap_or_default())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert!(names.contains(&"localhost/old:1".to_owned()), "{what}: {names:?}");
        if asks_podman {
            let script = r#"exec containers-storage --graph "$1" --run "$2" -s overlay images --quiet"#;
            let run = self.at("run");
            let output = in_own_mounts("sh").args(["-c", script, "sh"]).arg(&store).arg(run).output().unwrap();
            assert!(output.status.success() && !output.stdout.is_empty(), "{what}: {}", stderr(&output));
        }
        let output = again.output().unwrap();
        assert!(output.status.success(), "{what}: again: {}", stderr(&output));
        verify("again");
        let left: Vec<_> = fs_err::read_dir(&store)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".prepull"))
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

/// The calls by which a store is changed.
const CALLS: &[&str] = &[
    "openat2",
    "mkdirat",
    "write",
    "pwrite64",
    "fchown",
    "fchmod",
    "utimensat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "renameat",
    "fsync",
    "syncfs",
    "getdents64",
    "newfstatat",
    "fcntl",
    "flock",
    "mknodat",
    "fchownat",
    "fchmodat",
];

/// How often a command makes each call, in the thread that makes it most often.
fn counts(command: &mut Command, log: &Path) -> Vec<(&'static str, usize)> {
    let traced = traced(command, &["-f", "-o", log.to_str().unwrap()]).output().unwrap();
    assert!(traced.status.success(), "{}", stderr(&traced));
    let text = fs_err::read_to_string(log).unwrap();
    let of = |call: &str| {
        let mut threads = std::collections::BTreeMap::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            if rest.trim_start().strip_prefix(call).is_some_and(|rest| rest.starts_with('(')) {
                *threads.entry(thread.to_owned()).or_insert(0) += 1;
            }
        }
        threads.into_values().max().unwrap_or(0)
    };
    CALLS.iter().map(|call| (*call, of(call))).collect()
}

/// The command under strace.
fn traced(command: &Command, options: &[&str]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(options).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced
}

#[test]
fn whenever_it_is_killed_the_old_images_are_there() {
    if !needs_root("live::whenever_it_is_killed_the_old_images_are_there") {
        return;
    }
    let scene = Scene::new();
    let install = || scene.install("root", &scene.items());
    let other = |words: &[&str]| {
        let mut command = prepull(scene.directory.path());
        command.args(words).arg("--root").arg(scene.at("root"));
        command
    };
    let (mut kills, mut survived) = (0, 0);
    type Make<'a> = Box<dyn Fn() -> Command + 'a>;
    let commands: [(&str, Make<'_>, bool); 3] = [
        ("install", Box::new(install), false),
        ("rm", Box::new(|| other(&["rm", "localhost/new:1"])), true),
        ("gc", Box::new(|| other(&["gc"])), true),
    ];
    for (name, make, needs_new) in &commands {
        let prepare = || {
            scene.fresh("root");
            if *needs_new {
                succeeds(&mut install());
                if *name == "gc" {
                    // What it has to collect.
                    fs_err::create_dir_all(
                        scene.at("root").join(GRAPHROOT).join("overlay").join("e".repeat(64)).join("diff/x"),
                    )
                    .unwrap();
                }
            }
        };
        prepare();
        for (call, most) in counts(&mut make(), &scene.at("log")) {
            let step = if is_all() { 1 } else { (most / 3).max(1) };
            for number in (1..=most).step_by(step) {
                prepare();
                let inject = format!("inject={call}:signal=SIGKILL:when={number}");
                let output = traced(&make(), &["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject])
                    .output()
                    .unwrap();
                let what = format!("{name}, killed at {call} {number}");
                if output.status.success() {
                    survived += 1;
                } else {
                    kills += 1;
                }
                // After it was removed there is nothing to remove: installed again, it must be there.
                let mut again = if *name == "rm" { install() } else { make() };
                scene.judge("root", &what, kills % 5 == 0, &mut again);
            }
        }
    }
    // At random times.
    for number in 0..if is_all() { 300 } else { 20 } {
        scene.fresh("root");
        let mut child = install().stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(number * 7919 % 60_000));
        let _ = child.kill();
        child.wait().unwrap();
        kills += 1;
        scene.judge("root", &format!("killed after a while ({number})"), number % 5 == 0, &mut install());
    }
    assert!(kills > 50, "{kills}");
    figure("kills of install, rm and gc, nothing lost", kills);
    eprintln!("{survived} had ended before");
}

#[test]
fn whatever_fails_is_one_line_and_the_old_images_are_there() {
    if !needs_root("live::whatever_fails_is_one_line_and_the_old_images_are_there") {
        return;
    }
    let scene = Scene::new();
    let install = || scene.install("root", &scene.items());
    scene.fresh("root");
    let calls = [
        "openat2",
        "mkdirat",
        "write",
        "pwrite64",
        "fchown",
        "fchmod",
        "utimensat",
        "symlinkat",
        "renameat",
        "fsync",
        "syncfs",
        "mknodat",
        "fchownat",
    ];
    let mut injected = 0;
    for (call, most) in counts(&mut install(), &scene.at("log")).into_iter().filter(|(call, _)| calls.contains(call)) {
        let step = if is_all() { 1 } else { (most / 2).max(1) };
        for number in (1..=most).step_by(step) {
            for error in if is_all() { &["ENOSPC", "EIO", "EDQUOT", "EINTR"][..] } else { &["ENOSPC", "EIO"][..] } {
                scene.fresh("root");
                let inject = format!("inject={call}:error={error}:when={number}");
                let output =
                    traced(&install(), &["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject])
                        .output()
                        .unwrap();
                let what = format!("{call} {number} fails with {error}: {}", stderr(&output));
                // Some failures are of no consequence: the last words, what is left for the next run.
                if !output.status.success() {
                    assert_eq!(output.status.code(), Some(1), "{what}");
                    // The line itself is written, too.
                    let lines = stderr(&output).trim_end().lines().count();
                    assert!(lines == 1 || lines == 0 && call == "write", "{what}");
                }
                injected += 1;
                scene.judge("root", &what, injected % 7 == 0, &mut install());
            }
        }
    }
    assert!(injected > 40, "{injected}");
    figure("injected errors of install, nothing lost", injected);
}

#[test]
fn a_full_disk_keeps_the_old_images() {
    if !needs_root("live::a_full_disk_keeps_the_old_images") {
        return;
    }
    let scene = Scene::new();
    let mut full = 0;
    for size in
        (if is_all() { (200..420).step_by(4) } else { (200..420).step_by(40) }).map(|kilobytes| format!("{kilobytes}k"))
    {
        let script = format!(
            r#"mkdir -p "$1/disk" && mount -t tmpfs -o size={size} tmpfs "$1/disk" && cp -a "$1/old/." "$1/disk/" || exit 9
            "$2" install --no-cache --root "$1/disk" {items} 2>"$1/said"; echo $?
            "$2" ls "$1/disk" | grep -q '^localhost/old ' || exit 8
            "$2" verify "$1/disk" >/dev/null || exit 7
            mount -o remount,size=10m "$1/disk" && "$2" install --quiet --no-cache --root "$1/disk" {items} || exit 6
            "$2" verify "$1/disk" >/dev/null || exit 5"#,
            items = scene.items().join(" "),
        );
        let mut command = in_own_mounts("sh");
        let output = command
            .args(["-c", &script, "sh"])
            .arg(scene.directory.path())
            .arg(env!("CARGO_BIN_EXE_prepull"))
            .env("HOME", scene.directory.path())
            .output()
            .unwrap();
        // The copy of the old store does not fit.
        if output.status.code() == Some(9) {
            continue;
        }
        assert!(output.status.success(), "{size}: {} {}", output.status, stderr(&output));
        if String::from_utf8_lossy(&output.stdout).trim() == "1" {
            full += 1;
            let said = fs_err::read_to_string(scene.at("said")).unwrap();
            assert!(said.contains("make room") && said.lines().count() == 1, "{size}: {said}");
        }
    }
    assert!(full > 0);
    figure("full disks, the old images kept", full);
}

/// podman and prepull on one store: what each has put there stays, whatever the other does. Each names an image of its own:
/// podman 4.3 loses names when two podmans name one image at once.
#[test]
fn beside_podman_nothing_is_lost() {
    if !needs_root("live::beside_podman_nothing_is_lost") {
        return;
    }
    let scene = Scene::new();
    scene.fresh("root");
    let seconds = if is_all() { 300 } else { 15 };
    let script = format!(
        r#"store="$1/root/{GRAPHROOT}"; prepull=$2; images=$3; set -- "$1"
        p() {{ podman --root "$store" --runroot "$1/run" --storage-driver overlay "${{@:2}}"; }}
        end=$((SECONDS + {seconds}))
        podman_loop() {{ n=0; while test $SECONDS -lt $end; do
            p "$1" pull -q "oci:$images/hello:v1" >/dev/null || echo "pull failed"
            p "$1" tag 22abcec99df2 "localhost/podman:$n" || echo "tag failed"
            p "$1" images -q >/dev/null || echo "images failed"
            test $n = 0 || p "$1" rmi "localhost/podman:$((n - 1))" >/dev/null || echo "rmi failed"
            n=$((n + 1)); done; echo "podman: $n rounds" >&2; }}
        prepull_loop() {{ n=0; while test $SECONDS -lt $end; do
            "$prepull" install --quiet --no-cache --root "$1/root" "$4$5=localhost/$3:$n" || echo "install failed"
            test $n = 0 || "$prepull" rm --quiet --root "$1/root" "localhost/$3:$((n - 1))" || echo "rm failed"
            test $((n % 5)) != 0 || "$prepull" gc --quiet --root "$1/root" || echo "gc failed"
            "$prepull" ls "$1/root" | grep -q '^localhost/old ' || echo "old image lost"
            n=$((n + 1)); done; echo "prepull: $n rounds" >&2; }}
        podman_loop "$1" >"$1/podman.out" 2>"$1/podman.err" & a=$!
        prepull_loop "$1" x first "{new}" "" >"$1/first.out" 2>"$1/first.err" & b=$!
        prepull_loop "$1" x second "{third}" "" >"$1/second.out" 2>"$1/second.err" & c=$!
        wait $a $b $c
        cat "$1"/*.out
        grep -h rounds "$1"/*.err >&2
        for name in podman first second; do p "$1" images --format '{{{{.Repository}}}}' | grep -qx "localhost/$name" || echo "$name's last image lost"; done
        p "$1" images -q | sort -u | while read -r id; do m=$(p "$1" image mount "$id") && find "$m" >/dev/null && p "$1" image umount "$id" >/dev/null || echo "image $id cannot be mounted"; done"#,
        new = scene.items[0],
        third = scene.items[0].replace("new:1", "third:1"),
    );
    let begun = Instant::now();
    let output = in_own_mounts("bash")
        .args(["-c", &script, "bash"])
        .arg(scene.directory.path())
        .arg(env!("CARGO_BIN_EXE_prepull"))
        .arg(Path::new(crate::command::REPOSITORY).join("tests/images"))
        .env("HOME", scene.directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = |name: &str| fs_err::read_to_string(scene.at(&format!("{name}.err"))).unwrap_or_default();
    let all = ["podman", "first", "second"].map(errors).join("\n");
    assert!(said.is_empty(), "{said}\n{:.3000}", all);
    assert!(begun.elapsed() < Duration::from_secs(seconds + 60), "somebody waited too long");
    let rounds: usize =
        all.lines().filter_map(|line| line.split_once(": ")?.1.strip_suffix(" rounds")?.parse::<usize>().ok()).sum();
    assert!(rounds > 5, "{all}");
    let output = prepull(scene.directory.path()).arg("verify").arg(scene.at("root")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    figure("rounds of podman and two of prepull on one store, nothing lost", rounds);
}

#[test]
fn it_fits_into_a_store_of_podmans() {
    if !needs_root("live::it_fits_into_a_store_of_podmans") {
        return;
    }
    let scene = Scene::new();
    let script = format!(
        r#"set -e; cd "$1"; prepull=$2; images=$3; store="$1/root/{GRAPHROOT}"
        p() {{ podman --root "$store" --runroot /tmp/run --storage-driver overlay "$@"; }}
        mount -t tmpfs tmpfs /tmp
        mkdir -p root; p pull -q "oci:$images/hello:v1" >/dev/null; p tag 22abcec99df2 localhost/mine:1
        # podman's layers are taken as they are, with podman's short names.
        before=$(cat "$store"/overlay/*/link | sort)
        "$prepull" install --json --no-cache --root root "oci:$images/hello:v1=localhost/theirs:1" >json
        grep -q '"layers_written":0' json; test "$before" = "$(cat "$store"/overlay/*/link | sort)"
        test "$(p images -q | sort -u | wc -l)" = 1; p images --format '{{{{.Repository}}}}' | grep -qx localhost/theirs
        p untag 22abcec99df2 "localhost$images/hello:latest"
        # A name moves, as podman moves it: the old image stays, without it.
        "$prepull" install --quiet --no-cache --root root "{new}=localhost/mine:1"
        test "$(p images -q | sort -u | wc -l)" = 2
        test "$(p images -q localhost/mine:1)" != "$(p images -q localhost/theirs:1)"
        # The layers of podman's image below one of ours: a layer is written again when it is gone.
        p rmi -f localhost/theirs:1 >/dev/null
        "$prepull" install --quiet --no-cache --root root "oci:$images/hello:v1=localhost/theirs:1"
        m=$(p image mount localhost/theirs:1); test -e "$m/etc/passwd"; test ! -e "$m/etc/deleted"; p image umount localhost/theirs:1 >/dev/null
        # Nothing to do: nothing is touched.
        find "$store" -newer json -type f | sort >/dev/null; find "$store" -type f -printf '%p %T@ %i\n' | sort >a
        "$prepull" install --no-cache --root root "oci:$images/hello:v1=localhost/theirs:1" 2>said; grep -q 'everything is there already' said
        find "$store" -type f -printf '%p %T@ %i\n' | sort >b; cmp a b
        # rm: by the beginning of an id, of a name that is not there, of one of two names.
        status=0; "$prepull" rm --root root localhost/nothing:1 2>said || status=$?; test $status = 2; grep -q 'no such image' said
        "$prepull" install --quiet --no-cache --root root "oci:$images/hello:v1=localhost/again:1"
        "$prepull" rm --quiet --root root localhost/theirs:1; p images --format '{{{{.Repository}}}}' | grep -qx localhost/again
        "$prepull" rm --quiet --root root 22abcec99df2; test "$(p images -q | sort -u | wc -l)" = 1
        test "$(ls "$store/overlay" | grep -c '^[0-9a-f]*$')" = 2
        # gc: what nobody knows goes, what is containers/storage's own stays, and so does what is young.
        mkdir -p "$store/overlay/$(printf 'a%.0s' $(seq 64))/diff/d" "$store/overlay/staging/x" "$store/overlay/tempdirs/y" "$store/overlay-images/$(printf 'b%.0s' $(seq 64))" "$store/.prepull-staging-7/z"
        chmod 700 "$store/.prepull-staging-7"; touch "$store/overlay-layers/$(printf 'c%.0s' $(seq 64)).tar-split.gz"; ln -s ../nowhere/diff "$store/overlay/l/ODD"; ln -s "../$(printf 'd%.0s' $(seq 64))/diff" "$store/overlay/l/GONE"
        "$prepull" gc --json --root root >json; grep -q '"orphans":5' json || {{ cat json >&2; exit 1; }}
        test -d "$store/overlay/staging/x"; test -d "$store/overlay/tempdirs/y"; test -L "$store/overlay/l/ODD"; test ! -e "$store/.prepull-staging-7"
        rm -r "$store/overlay/staging" "$store/overlay/tempdirs" "$store/overlay/l/ODD"
        "$prepull" verify root >/dev/null
        # A store that cannot be read is left alone.
        cp "$store/overlay-images/images.json" good; echo '[{{"id":' >"$store/overlay-images/images.json"; status=0
        "$prepull" install --no-cache --root root "oci:$images/hello:v1" 2>said || status=$?; test $status = 1; grep -q 'images.json of the store is damaged' said
        test "$(cat "$store/overlay-images/images.json")" = '[{{"id":'; cp good "$store/overlay-images/images.json"
        # A whole tree, into an empty directory and no other.
        mkdir whole; "$prepull" install --quiet --no-cache --rootfs --root whole "oci:$images/hello:v1"
        "$prepull" verify whole >/dev/null; test -e whole/etc/containers/storage.conf; test "$(stat -c %a whole/etc)" = 755
        status=0; "$prepull" install --no-cache --rootfs --root whole "oci:$images/hello:v1" 2>said || status=$?; test $status = 1; grep -q 'not empty' said
        status=0; "$prepull" install --root nowhere "oci:$images/hello:v1" 2>said || status=$?; test $status = 2"#,
        new = scene.items[0],
    );
    let output = in_own_mounts("bash")
        .args(["-xc", &script, "bash"])
        .arg(scene.directory.path())
        .arg(env!("CARGO_BIN_EXE_prepull"))
        .arg(Path::new(crate::command::REPOSITORY).join("tests/images"))
        .env("HOME", scene.directory.path())
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{}: {}", output.status, &said[said.len().saturating_sub(3000)..]);
}

#[test]
fn who_has_the_lock_is_waited_for() {
    if !needs_root("live::who_has_the_lock_is_waited_for") {
        return;
    }
    let scene = Scene::new();
    scene.fresh("root");
    let lock = scene.at("root").join(GRAPHROOT).join("overlay-layers/layers.lock");
    // As containers/storage locks.
    let holder = r#"import fcntl, sys, time
file = open(sys.argv[1], "r+b"); fcntl.lockf(file, fcntl.LOCK_EX); print("held", flush=True); time.sleep(2)"#;
    let mut child =
        Command::new("python3").args(["-c", holder]).arg(&lock).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let begun = Instant::now();
    succeeds(&mut scene.install("root", &scene.items()));
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    child.wait().unwrap();
}
