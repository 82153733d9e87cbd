//! The cache and the tars that it shares its space with.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use prepull::digest::Digest;
use serde_json::Value;

use crate::command::{hello, prepull, stderr};
use crate::made::{Layout, gzip, tar};

struct Work {
    scratch: tempfile::TempDir,
    at: PathBuf,
}

/// Bytes of the two layers that make a tar worth sharing; the third one is small.
const LARGE: usize = 17 << 20;

impl Work {
    /// With an image of three layers in it that do not compress.
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().canonicalize().unwrap();
        let content = |mut seed: u64, size: usize| {
            let mut next = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            };
            (0..size).map(|_| next()).collect::<Vec<u8>>()
        };
        let mut layout = Layout::new(at.join("oci"));
        let layers = [
            tar(&[("a", &content(3, LARGE))]),
            tar(&[("b", &content(5, LARGE)), ("c", b"small")]),
            tar(&[("d", b"d")]),
        ];
        let image = layout.image("amd64", &layers);
        layout.add(Some("localhost/large:1"), image);
        Self { scratch, at }
    }

    fn item(&self) -> String {
        format!("oci:{}", self.at.join("oci").display())
    }

    fn command(&self, tar: &str, more: &[&str]) -> Command {
        let mut command = prepull(&self.at);
        command.current_dir(&self.at).args(["make", "--json", "--quiet", "--platform", "linux/amd64", "-o", tar]);
        command.args(more).arg(self.item());
        command
    }

    /// Makes a tar; gives how many layers came from the cache.
    #[track_caller]
    fn make(&self, tar: &str, more: &[&str]) -> u64 {
        let output = self.command(tar, more).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        summary["cachedLayers"].as_u64().unwrap()
    }

    fn digest(&self, tar: &str) -> Digest {
        Digest::of(&fs_err::read(self.at.join(tar)).unwrap())
    }

    fn inode(&self, tar: &str) -> (u64, u64) {
        let metadata = fs_err::metadata(self.at.join(tar)).unwrap();
        (metadata.ino(), metadata.nlink())
    }

    fn files(&self, of: &str) -> Vec<PathBuf> {
        let entries = fs_err::read_dir(self.at.join(".cache/prepull").join(of)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The shared tars, without what is noted of them.
    fn tars(&self) -> Vec<PathBuf> {
        self.files("tars").into_iter().filter(|path| path.extension().is_none_or(|end| end != "seen")).collect()
    }

    fn cache(&self, arguments: &[&str]) -> Value {
        let output = prepull(&self.at).args(["cache", "--json"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn the_cache_and_the_tar_share_their_space() {
    let work = Work::new();
    assert_eq!(work.make("a.tar", &[]), 0);
    let expected = work.digest("a.tar");
    let (inode, names) = work.inode("a.tar");
    assert_eq!((names, work.tars().len()), (2, 1), "one for the user, one for the cache");
    let large = fs_err::metadata(work.at.join("a.tar")).unwrap().len();
    let own: u64 = work.files("segments").iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(own < large / 2, "{own} bytes beside the tar's {large}");
    assert_eq!(work.cache(&[])["sharedSize"], large);

    // The same again: it is the tar already, and newer.
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    fs_err::File::options().append(true).open(work.at.join("a.tar")).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(work.make("a.tar", &[]), 3);
    assert_eq!((work.inode("a.tar"), work.digest("a.tar")), ((inode, 2), expected));
    assert!(fs_err::metadata(work.at.join("a.tar")).unwrap().modified().unwrap() > long_ago);

    // Two files of the user's never share theirs.
    assert_eq!(work.make("b.tar", &[]), 3);
    assert_ne!(work.inode("b.tar").0, inode);
    assert_eq!((work.inode("b.tar").1, work.digest("b.tar")), (1, expected));

    // What was deleted is still in the cache.
    fs_err::remove_file(work.at.join("a.tar")).unwrap();
    assert_eq!(work.cache(&[])["sharedSize"], 0);
    assert_eq!(work.make("c.tar", &[]), 3);
    assert_eq!((work.inode("c.tar"), work.digest("c.tar")), ((inode, 2), expected));

    // Another tar of the same layers is another file.
    assert_eq!(work.make("d.tar", &["--unpacker", "gnu"]), 3);
    assert_eq!(work.inode("d.tar").1, 1);
    let plain = |at: &str, gnu: bool| {
        let mut command = prepull(&work.at);
        command
            .current_dir(&work.at)
            .args(["make", "--no-cache", "--platform", "linux/amd64", "--quiet", "-o", at])
            .arg(work.item());
        assert!(command.args(gnu.then_some(["--unpacker", "gnu"]).into_iter().flatten()).status().unwrap().success());
        work.digest(at)
    };
    assert_eq!(work.digest("d.tar"), plain("e.tar", true));
    assert_eq!(expected, plain("e.tar", false));

    // The tar goes with all that needs it, and the user's stays.
    let removed = work.cache(&["prune", "--all"]);
    assert_eq!((&removed["removedLayers"], &removed["layers"]), (&3.into(), &0.into()));
    assert!(removed["freedSize"].as_u64().unwrap() < large, "{removed}");
    assert_eq!((work.files("tars").len(), work.inode("c.tar"), work.digest("c.tar")), (0, (inode, 1), expected));
}

#[test]
fn a_tar_that_its_owner_has_changed_is_not_believed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("a flipped bit", |tar| {
            let file = fs_err::File::options().read(true).write(true).open(tar).unwrap().into_file();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 9000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 9000).unwrap();
        }),
        ("emptied", |tar| fs_err::write(tar, "").unwrap()),
        ("overwritten", |tar| {
            let length = fs_err::metadata(tar).unwrap().len();
            fs_err::write(tar, vec![b'x'; length as usize]).unwrap();
        }),
        ("longer", |tar| {
            let file = fs_err::File::options().append(true).open(tar).unwrap().into_file();
            file.set_len(file.metadata().unwrap().len() + 1024).unwrap();
        }),
        ("shorter by its end", |tar| {
            let file = fs_err::File::options().append(true).open(tar).unwrap().into_file();
            file.set_len(file.metadata().unwrap().len() - 512).unwrap();
        }),
        ("writable for others", |tar| {
            fs_err::set_permissions(tar, std::fs::Permissions::from_mode(0o666)).unwrap();
        }),
    ];
    for (what, change) in changes {
        let work = Work::new();
        work.make("a.tar", &[]);
        let expected = work.digest("a.tar");
        for at in ["a.tar", "b.tar"] {
            change(&work.at.join("a.tar"));
            work.make(at, &[]);
            assert_eq!(work.digest(at), expected, "{what}");
            // Its group may, where the umask is 002.
            assert_eq!(fs_err::metadata(work.at.join(at)).unwrap().mode() & 0o002, 0, "{what}");
        }
        fs_err::remove_file(work.at.join("a.tar")).unwrap();
        work.make("c.tar", &[]);
        assert_eq!(work.digest("c.tar"), expected, "{what}");
        assert_eq!(work.make("d.tar", &[]), 3, "{what}: healed");
        assert!(work.tars().len() <= 1, "{what}: {:?}", work.files("tars"));
    }
}

#[test]
fn nothing_is_shared_that_need_not_be() {
    let work = Work::new();
    work.make("a.tar", &["--no-link"]);
    assert_eq!((work.inode("a.tar").1, work.cache(&[])["layers"].as_u64()), (1, Some(3)));
    // Nothing of it is new.
    work.make("b.tar", &[]);
    assert_eq!(work.inode("b.tar").1, 1);
    assert!(!work.at.join(".cache/prepull/tars").exists());
    let (expected, plain) = (work.digest("a.tar"), Work::new());
    plain.make("c.tar", &["--no-cache"]);
    assert_eq!((plain.inode("c.tar").1, plain.digest("c.tar"), work.digest("b.tar")), (1, expected, expected));
    // Small: as any other file.
    let output =
        prepull(&plain.at).current_dir(&plain.at).args(["make", "-q", "-o", "d.tar", &hello()]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(plain.inode("d.tar").1, 1);
}

#[test]
fn layers_of_a_run_that_failed_are_not_converted_again() {
    let work = Work::new();
    // The last layer is missing: those before it are finished, or as good as.
    let blobs = work.at.join("oci/blobs/sha256");
    let last = blobs.join(Digest::of(&gzip(&tar(&[("d", b"d")]))).hex());
    let spare = work.at.join("spare");
    fs_err::rename(&last, &spare).unwrap();
    let output = work.command("a.tar", &[]).output().unwrap();
    assert!(!output.status.success() && !work.at.join("a.tar").exists(), "{}", stderr(&output));
    fs_err::rename(&spare, &last).unwrap();
    work.make("a.tar", &[]);
    assert_eq!(work.make("a.tar", &[]), 3);
    assert_eq!(work.files("segments").len(), 3);
    let plain = Work::new();
    plain.make("a.tar", &["--no-cache"]);
    assert_eq!(work.digest("a.tar"), plain.digest("a.tar"));
}

#[test]
fn a_damaged_layer_below_large_ones_is_made_again() {
    let work = Work::new();
    let mut layout = Layout::new(work.at.join("deep"));
    let mut layers = vec![tar(&[("first", &vec![1; 4 << 20])])];
    let first = layout.image("amd64", &layers);
    layout.add(Some("localhost/first:1"), first);
    // More of them than are converted at once, each larger than what is written ahead.
    layers.extend((2..8).map(|fill| tar(&[("f", &vec![fill; 66 << 20])])));
    let deep = layout.image("amd64", &layers);
    layout.add(Some("localhost/deep:1"), deep);
    let make = |name: &str, at: &str, more: &[&str]| {
        let mut command = prepull(&work.at);
        command.current_dir(&work.at).args(["make", "--quiet", "--platform", "linux/amd64", "-o", at]).args(more);
        let output = command.arg(format!("oci:{}:localhost/{name}:1", layout.path.display())).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    };
    make("first", "first.tar", &[]);
    for path in work.files("segments") {
        let file = fs_err::File::options().write(true).open(path).unwrap().into_file();
        file.write_all_at(b"x", 3 << 20).unwrap();
    }
    make("deep", "deep.tar", &[]);
    make("deep", "plain.tar", &["--no-cache"]);
    assert!(work.digest("deep.tar") == work.digest("plain.tar"));
}

#[test]
fn a_run_that_was_killed_leaves_a_cache_that_is_right_or_nothing() {
    let work = Work::new();
    let plain = Work::new();
    plain.make("a.tar", &["--no-cache"]);
    let expected = plain.digest("a.tar");
    let mut killed = 0;
    for step in 0..25 {
        let mut child = work.command("a.tar", &[]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 * step));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().code().is_none());
        if work.at.join("a.tar").exists() {
            assert_eq!(work.digest("a.tar"), expected);
            fs_err::remove_file(work.at.join("a.tar")).unwrap();
        }
        if step % 5 == 4 {
            work.make("b.tar", &[]);
            assert_eq!(work.digest("b.tar"), expected, "step {step}");
            work.cache(&["prune", "--all"]);
        }
    }
    assert!(killed > 3, "{killed}");
    work.cache(&["prune", "--all"]);
    let odd = |path: &PathBuf| !path.file_name().unwrap().to_str().unwrap().contains(".prepull-");
    let left: Vec<_> = work.files("tars").into_iter().filter(odd).collect();
    assert!(left.is_empty(), "{left:?}");
    drop(work.scratch);
}
