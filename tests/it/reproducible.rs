//! The same images give the same bytes, whatever the circumstances; and no circumstance leaves broken bytes behind.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use prepull::digest::Digest;

use crate::command::{hello, needs_root, prepull};
use crate::made::{Layout, copy};
use crate::raw::{Raw, archive, dir, file, link, mark, sym};
use crate::stores::scratch;

/// Some images that share layers, in one layout; and what `make` is to be called with.
struct Images {
    at: PathBuf,
    items: Vec<String>,
}

fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = u64::from(seed) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

impl Images {
    fn new(at: &Path) -> Self {
        let base: Vec<Raw> =
            [dir("etc/"), dir("d/"), file("d/a"), file("d/b"), dir("d/s/"), file("d/s/x"), sym("l", "/d")]
                .into_iter()
                .chain((0..500).map(|n| file(format!("etc/f{n}")).owner(n % 3, n % 5).mtime(n)))
                .chain([file("large").data(noise(1, 1_500_000))])
                .collect();
        let second = [dir("d/"), mark("d/.wh..wh..opq"), file("d/new"), dir("d/s/"), file("d/s/y"), mark(".wh.large")];
        let third = [file("x").mode(0o4755).xattr("security.test", "1"), link("y", "x").owner(7, 7), file("d/z")];
        let other = [file("noise").data(noise(2, 3_000_000)), file("no/parents/here")];
        let [base, second, third, other] = [archive(&base), archive(&second), archive(&third), archive(&other)];
        let mut layout = Layout::new(at.join("oci"));
        let mut items = Vec::new();
        let mut add = |name: &str, layers: &[Vec<u8>], zstd: bool| {
            layout.zstd = zstd;
            let image = layout.image("amd64", layers);
            layout.add(Some(name), image.clone());
            items.push(format!("oci:{}:{name}", layout.path.display()));
            image
        };
        let first = add("localhost/first:1", &[base.clone(), second.clone()], false);
        add("localhost/second:1", &[base.clone(), second, third.clone()], false);
        add("localhost/third:1", &[other.clone(), third], true);
        add("localhost/fourth:1", &[base, other], true);
        let index = layout.index(&[("linux/amd64", first)]);
        layout.add(Some("localhost/index:1"), index);
        items.push(format!("oci:{}:localhost/index:1", layout.path.display()));
        Self { at: at.to_owned(), items }
    }

    fn command(&self, cache: &Path, tar: &Path) -> Command {
        let mut command = prepull(&self.at);
        command.args(["make", "--quiet", "--platform", "linux/amd64", "--cache-dir"]).arg(cache).arg("-o").arg(tar);
        command
    }

    /// The digest of what all items give with this cache.
    #[track_caller]
    fn digest(&self, cache: &Path) -> Digest {
        let tar = self.at.join("again.tar");
        digest_of(self.command(cache, &tar).args(&self.items), &tar)
    }
}

#[track_caller]
fn digest_of(command: &mut Command, tar: &Path) -> Digest {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    let digest = Digest::of(&fs_err::read(tar).unwrap());
    fs_err::remove_file(tar).unwrap();
    digest
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// SHA-256 of the tars of the image in the repository, with these options.
///
/// The same images must give the same tar in every version, because users compare tars by their digests. So these change only
/// together with an entry in CHANGELOG.md that says which bytes change, and why.
const PINNED: [(&[&str], &str); 3] = [
    (&["--restore-helper", "none"], "a69abfb9803e1167dea2842940f421b5ac2d66897accd81a43569c0e1156ed8e"),
    (&["--unpacker", "gnu", "--no-config"], "e9b7c54ea210f582e133b5addd8e457bfb5b7066325476b0dc0f158200d05926"),
    (
        &["--unpacker", "gnu", "--store", "additional", "--pause", "HELLO"],
        "4f451aa197d195cae18a775bc1b2e8656f3a684b7ca5022161ad3a334a208dcf",
    ),
];

#[test]
fn tars_have_the_bytes_of_the_version_before() {
    let directory = scratch();
    let tar = directory.path().join("images.tar");
    for (options, expected) in PINNED {
        let mut command = prepull(directory.path());
        command.args(["make", "--quiet", "--no-cache", "--platform", "linux/amd64", "-o"]).arg(&tar);
        let options = options.iter().map(|option| if *option == "HELLO" { hello() } else { (*option).to_owned() });
        command.args(options).arg(hello());
        let found = digest_of(&mut command, &tar).hex();
        assert_eq!(found, expected, "{command:?}: see PINNED");
    }
}

#[test]
fn nothing_but_the_images_decides() {
    let directory = scratch();
    let at = directory.path();
    let images = Images::new(at);
    let (tar, cold) = (at.join("images.tar"), at.join("cache"));
    let expected = images.digest(&cold);
    assert_eq!(images.digest(&cold), expected, "warm cache");

    let mut shuffled = images.items.clone();
    shuffled.reverse();
    shuffled.rotate_left(2);
    shuffled.push(shuffled[1].clone());
    for (cache, what) in [(&cold, "warm, shuffled, one twice"), (&at.join("cache2"), "cold, shuffled, one twice")] {
        assert_eq!(digest_of(images.command(cache, &tar).args(&shuffled), &tar), expected, "{what}");
    }
    let mut without = prepull(at);
    without.args(["make", "--quiet", "--no-cache", "--platform", "linux/amd64", "-o"]).arg(&tar).args(&images.items);
    assert_eq!(digest_of(&mut without, &tar), expected, "--no-cache");
    assert!(!names(at).iter().any(|name| name.starts_with('.')), "rubbish: {:?}", names(at));

    let elsewhere = at.join("elsewhere");
    fs_err::create_dir(&elsewhere).unwrap();
    let script = r#"umask 077 && cd "$1" && shift && exec "$@""#;
    for cache in [&cold, &at.join("cache3")] {
        let inner = images.command(cache, &tar);
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&elsewhere).arg(inner.get_program()).args(inner.get_args());
        command.args(&images.items).envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TZ", "Asia/Kathmandu").env("LC_ALL", "tr_TR.UTF-8").env("LANG", "C");
        assert_eq!(digest_of(&mut command, &tar), expected, "time zone, locale, umask, directory");
    }
    let inner = images.command(&at.join("cache4"), &tar);
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(inner.get_program()).args(inner.get_args()).args(&images.items);
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(digest_of(&mut command, &tar), expected, "one core");

    for cache in [&cold, &at.join("cache5")] {
        let output = images.command(cache, Path::new("-")).args(&images.items).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(Digest::of(&output.stdout), expected, "standard output");
    }

    // The same manifests from elsewhere.
    let archives: Vec<String> = ["first", "second", "third", "fourth"]
        .iter()
        .map(|name| {
            copy(
                at,
                &[
                    "--preserve-digests",
                    &format!("oci:oci:localhost/{name}:1"),
                    &format!("oci-archive:{name}.tar:localhost/{name}:1"),
                ],
            );
            format!("oci-archive:{}", at.join(format!("{name}.tar")).display())
        })
        .chain([images.items[4].clone()])
        .collect();
    assert_eq!(digest_of(images.command(&at.join("cache6"), &tar).args(&archives), &tar), expected, "archives");
}

#[test]
fn nobody_with_no_namespaces_gives_the_bytes_of_root() {
    if !needs_root("reproducible::nobody_with_no_namespaces_gives_the_bytes_of_root") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    fs_err::set_permissions(at, PermissionsExt::from_mode(0o755)).unwrap();
    let images = Images::new(at);
    let expected = images.digest(&at.join("cache"));
    let home = at.join("home");
    fs_err::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    fs_err::create_dir(at.join("jail")).unwrap();
    // The kernel gives no user namespace to who is in a chroot, whatever the system's settings.
    let script = r#"mount --rbind / "$1" && exec chroot "$1" setpriv --reuid 65534 --regid 65534 --clear-groups \
        --bounding-set=-all --no-new-privs sh -c 'unshare --user true 2>/dev/null && exit 99; exec "$@"' sh "$2" make \
        --quiet --platform linux/amd64 -o "$HOME/images.tar" $3"#;
    // Where tests run from a directory that only root may enter, nobody needs a copy of the program.
    let program = at.join("prepull");
    fs_err::copy(env!("CARGO_BIN_EXE_prepull"), &program).unwrap();
    let output = prepull(&home);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(at.join("jail")).arg(&program).arg(images.items.join(" "));
    command.envs(output.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
    assert_eq!(digest_of(&mut command, &home.join("images.tar")), expected);
}

/// Pseudo-random numbers that a failure can be repeated with.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

fn cache_files(cache: &Path) -> Vec<PathBuf> {
    let segments = cache.join("segments");
    names(&segments).iter().map(|name| segments.join(name)).collect()
}

#[test]
fn a_damaged_cache_heals() {
    let directory = scratch();
    let at = directory.path();
    let images = Images::new(at);
    let cache = at.join("cache");
    let expected = images.digest(&cache);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let flip = |path: &Path, at: u64| {
        let mut bytes = fs_err::read(path).unwrap();
        bytes[at as usize] ^= 1 << (at % 8);
        fs_err::write(path, bytes).unwrap();
    };
    for round in 0..12 {
        for path in cache_files(&cache) {
            let length = fs_err::metadata(&path).unwrap().len();
            match round % 4 {
                // Anywhere, then near the end, where the checksums and lengths are.
                0 => flip(&path, random.below(length)),
                1 => flip(&path, length - 1 - random.below(length.min(400))),
                2 => fs_err::File::options().write(true).open(&path).unwrap().set_len(random.below(length)).unwrap(),
                _ => {}
            }
        }
        if round % 4 == 3 {
            let files = cache_files(&cache);
            let (one, other) = (&files[0], &files[1 + random.below(files.len() as u64 - 1) as usize]);
            let spare = at.join("spare");
            fs_err::rename(one, &spare).unwrap();
            fs_err::rename(other, one).unwrap();
            fs_err::rename(&spare, other).unwrap();
        }
        assert_eq!(images.digest(&cache), expected, "round {round}");
        // Healed: everything comes from the cache.
        let tar = at.join("healed.tar");
        let output = images.command(&cache, &tar).arg("--json").args(&images.items).output().unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(summary["layers"], summary["cachedLayers"], "round {round}: {summary}");
        assert_eq!(Digest::of(&fs_err::read(&tar).unwrap()), expected, "round {round}");
    }
}

#[test]
fn kill_9_leaves_the_old_or_the_new() {
    let directory = scratch();
    let at = directory.path();
    let images = Images::new(at);
    let begun = Instant::now();
    let expected = images.digest(&at.join("first"));
    let usual = begun.elapsed();
    let out = at.join("out");
    fs_err::create_dir(&out).unwrap();
    let (tar, cache) = (out.join("images.tar"), at.join("cache"));
    let mut random = Random(7);
    let (mut killed, mut done) = (0, 0);
    let mut left = 0;
    for round in 0.. {
        if round >= 40 && (killed > 5 || round > 200) {
            break;
        }
        fs_err::write(&tar, "old").unwrap();
        if round % 4 == 0 {
            let _ = fs_err::remove_dir_all(&cache);
        }
        let mut child = images.command(&cache, &tar).args(&images.items).spawn().unwrap();
        std::thread::sleep(usual.mul_f64(random.below(1100) as f64 / 1000.0));
        child.kill().unwrap();
        if child.wait().unwrap().signal() == Some(9) {
            killed += 1
        } else {
            done += 1
        }
        let bytes = fs_err::read(&tar).unwrap();
        assert!(bytes == b"old" || Digest::of(&bytes) == expected, "round {round}: {} bytes", bytes.len());
        // A finished file has a hidden name for the moment between link and rename; the next run removes it.
        left += names(&out).len() - 1;
        assert!(names(&out).iter().all(|name| name == "images.tar" || name.starts_with(".images.tar.prepull-")));
        let odd: Vec<_> = cache_files_if_any(&cache).into_iter().filter(|path| !is_key(path)).collect();
        assert!(odd.is_empty(), "round {round}: {odd:?}");
        if round % 4 == 3 {
            assert_eq!(images.digest(&cache), expected, "round {round}");
        }
    }
    assert!(killed > 5, "killed {killed}, done {done}");
    assert!(left < 3, "{left} hidden files were left");
    let status = images.command(&cache, &tar).args(&images.items).status().unwrap();
    assert!(status.success());
    assert_eq!(names(&out), BTreeSet::from(["images.tar".to_owned()]));
}

fn cache_files_if_any(cache: &Path) -> Vec<PathBuf> {
    if cache.join("segments").exists() { cache_files(cache) } else { Vec::new() }
}

fn is_key(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn an_interrupt_leaves_the_old() {
    let directory = scratch();
    let at = directory.path();
    // A blob that never ends to come: the tar is always being made when the signal arrives.
    let mut layout = Layout::new(at.join("oci"));
    let image = layout.image("amd64", &[archive(&[file("f").data(noise(3, 2_000_000))])]);
    layout.add(Some("localhost/slow:1"), image);
    let out = at.join("out");
    fs_err::create_dir(&out).unwrap();
    let tar = out.join("images.tar");
    let mut interrupted = 0;
    for delay in (0..60).map(|step| Duration::from_millis(5 * step)) {
        fs_err::write(&tar, "old").unwrap();
        let child = prepull(at)
            .args(["make", "--quiet", "--no-cache", "--platform", "linux/amd64", "-o"])
            .arg(&tar)
            .arg(format!("oci:{}", layout.path.display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(status.is_ok());
        let output = child.wait_with_output().unwrap();
        assert_eq!(names(&out), BTreeSet::from(["images.tar".to_owned()]));
        match output.status.code() {
            Some(130) => {
                interrupted += 1;
                assert_eq!(fs_err::read(&tar).unwrap(), b"old");
                assert_eq!(said(&output), "prepull: interrupted\n");
            }
            // Before the handler is there the signal itself ends the process; later it comes too late.
            None => assert_eq!(fs_err::read(&tar).unwrap(), b"old"),
            code => {
                assert_eq!(code, Some(0), "{}", said(&output));
                break;
            }
        }
    }
    assert!(interrupted > 0);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !needs_root("reproducible::a_full_disk_is_said_and_leaves_nothing") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let mut layout = Layout::new(at.join("oci"));
    let image = layout.image("amd64", &[archive(&[file("f").data(noise(3, 3_000_000))])]);
    layout.add(Some("localhost/large:1"), image);
    let (full, free) = (at.join("full"), at.join("free"));
    fs_err::create_dir(&full).unwrap();
    fs_err::create_dir(&free).unwrap();
    let _small = Small::mount(&full);
    let item = format!("oci:{}", layout.path.display());
    for (cache, tar) in [(&free, full.join("images.tar")), (&full, free.join("images.tar"))] {
        let mut command = prepull(at);
        command.args(["make", "--quiet", "--platform", "linux/amd64", "--cache-dir"]).arg(cache).arg("-o").arg(&tar);
        let output = command.arg(&item).output().unwrap();
        // A full cache is a warning.
        let is_cache = *cache == full;
        assert_eq!(output.status.success(), is_cache, "{}", said(&output));
        assert!(said(&output).contains("No space left") && said(&output).lines().count() == 1, "{}", said(&output));
        assert_eq!(tar.exists(), is_cache);
        let left: Vec<String> = names(&full).into_iter().filter(|name| name != "segments").collect();
        assert!(left.is_empty() && cache_files_if_any(&full).is_empty(), "{left:?}");
    }
}

/// A file system of 1 MiB; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).status().unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
