//! `prepull verify` finds whatever is done to a store, and has nothing against stores that are good, whoever made them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use prepull::entry::Entry;
use prepull::verify::report::Report;
use prepull::verify::rule::Severity;
use prepull::verify::{Options, verify};
use serde_json::Value;

use crate::command::{fails, needs_root, prepull, stderr, succeeds};
use crate::corpus;
use crate::made::{Layout, copy, layers};
use crate::mutations::{Archive, Base, FLAVOURS, Row, base_with_helper, bases, findings, helper_rows, rows};
use crate::stores::{GRAPHROOT, each, in_own_mounts, scratch, skopeo_into, unpack_gnu};

/// How many single bits are changed in each tar, each by itself.
const FLIPS: usize = 700;

/// Verifies bytes as a file.
fn verify_bytes(file: &Path, bytes: &[u8]) -> Report {
    fs_err::write(file, bytes).unwrap();
    verify(file, &Options::default()).unwrap()
}

fn known(at: &Path, base: &Base) -> BTreeSet<(Severity, &'static str)> {
    let report = verify_bytes(at, &base.tar);
    assert!(report.is_good(), "{:?}: {report:?}", base.flavour);
    findings(&report)
}

#[test]
fn every_change_is_found_and_harmless_ones_are_no_errors() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let (bases, rows) = (bases(at), rows());
    let mut names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "two rows have one name");
    assert!(count >= 120, "only {count} rows");
    let files: Vec<PathBuf> = (0..4).map(|number| at.join(format!("known-{number}"))).collect();
    let known: Vec<_> = bases.iter().zip(&files).map(|(base, file)| known(file, base)).collect();
    // What is read and written again is the same.
    for base in &bases {
        assert!(Archive::of(base).encode() == base.tar);
    }
    let work: Vec<(usize, &Row)> = (0..bases.len()).flat_map(|base| rows.iter().map(move |row| (base, row))).collect();
    let work: Vec<_> = work.into_iter().filter(|(base, row)| row.is_for(bases[*base].flavour)).enumerate().collect();
    let failures = each(&work, 2, |(number, (base, row))| {
        let mut archive = Archive::of(&bases[*base]);
        (row.change)(&mut archive);
        let file = at.join(format!("{number}.tar"));
        let report = verify_bytes(&file, &archive.encode());
        fs_err::remove_file(&file).unwrap();
        row.judge(bases[*base].flavour, &report, &known[*base])
            .map_err(|error| format!("{error}\n{:?}", report.groups().collect::<Vec<_>>()))
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), work.len(), failures.join("\n"));
}

#[test]
fn changes_of_the_helper_and_its_manifest_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let base = base_with_helper(at);
    let file = at.join("changed.tar");
    let known = known(&file, &base);
    assert!(known.iter().all(|(_, rule)| !rule.starts_with("xattr-")), "{known:?}");
    for row in helper_rows() {
        let mut archive = Archive::of(&base);
        (row.change)(&mut archive);
        let report = verify_bytes(&file, &archive.encode());
        let judged = row.judge(base.flavour, &report, &known);
        assert!(judged.is_ok(), "{judged:?}\n{:?}", report.groups().collect::<Vec<_>>());
    }
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What a bit of a tar belongs to, of which a change was not noticed.
fn class(base: &Base, changed: &[u8], position: usize) -> String {
    let archive = Archive::of(base);
    let mut start = 0;
    for (number, item) in archive.items.iter().enumerate() {
        // Of a directory, the last header counts.
        let comes_again = archive.items[number + 1..].iter().any(|other| other.entry.path == item.entry.path);
        let mut one = Archive::of(base);
        one.items = vec![item.clone()];
        one.end.clear();
        let length = one.encode().len();
        if position >= start + length {
            start += length;
            continue;
        }
        let path = String::from_utf8_lossy(&item.entry.path).into_owned();
        let name = path.rsplit('/').next().unwrap_or_default();
        let content = length - item.content.len().next_multiple_of(512);
        let at = position - start;
        if at >= content + item.content.len() {
            return "padding".to_owned();
        }
        if at >= content {
            let after = &changed[start + content..][..item.content.len()];
            return match name {
                "images.json" | "layers.json" => format!("{name}: {}", fields(&item.content, after)),
                _ if name.ends_with(".gz") && gunzip(after) == gunzip(&item.content) => "gzip of the same".to_owned(),
                _ => format!("content of {path}"),
            };
        }
        return match at % 512 {
            _ if at < content - 512 && at >= 512 => {
                let size = std::str::from_utf8(&base.tar[start + 124..start + 135]).unwrap();
                let size = usize::from_str_radix(size, 8).unwrap();
                match at - 512 < size {
                    true if comes_again => "first records",
                    true if is_idle_opaque(&archive, &item.entry) => "marker that hides nothing",
                    true => "records",
                    false => "padding",
                }
            }
            0..100 => "name",
            100..108 => "mode",
            108..124 => "owner",
            124..136 => "size",
            136..148 => "time",
            148..156 => "checksum",
            156 => "type",
            157..257 => "link",
            257..265 => "magic",
            265..329 => "user and group name",
            329..345 => "device",
            _ => "prefix",
        }
        .to_owned()
            + if at < content - 512 { " of a PAX header" } else { "" };
    }
    "end".to_owned()
}

/// Returns whether `entry` is marked opaque, and no other layer has anything that it could hide.
fn is_idle_opaque(archive: &Archive, entry: &Entry) -> bool {
    let split = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        path.split_once("/diff/").map(|(layer, below)| (layer.to_owned(), below.to_owned()))
    };
    let Some((layer, below)) = split(&entry.path) else { return false };
    let prefix = format!("{below}/");
    let is_hidden = |path: &[u8]| split(path).is_some_and(|(of, path)| of != layer && path.starts_with(&prefix));
    entry.meta.xattrs.iter().any(|(name, _)| name == b"trusted.overlay.opaque")
        && !archive.items.iter().any(|other| is_hidden(&other.entry.path))
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// The keys of records that differ.
fn fields(before: &[u8], after: &[u8]) -> String {
    let (before, after): (Value, Value) =
        (serde_json::from_slice(before).unwrap(), serde_json::from_slice(after).unwrap());
    let mut keys = BTreeSet::new();
    for (before, after) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        let (before, after) = (before.as_object().unwrap(), after.as_object().unwrap());
        keys.extend(before.iter().filter(|(key, value)| after.get(*key) != Some(*value)).map(|(key, _)| key.as_str()));
    }
    keys.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn changed_bits_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let bases = bases(at);
    let missed = Mutex::new(BTreeMap::<String, usize>::new());
    let failures = each(&bases, 2, |base| {
        let file = at.join(format!("{:?}.tar", base.flavour).replace(' ', ""));
        let known = verify_bytes(&file, &base.tar);
        let groups = |report: &Report| format!("{:?}", report.groups().collect::<Vec<_>>());
        let known = groups(&known);
        let mut numbers =
            Numbers(0x9e37_79b9_7f4a_7c15 ^ u64::from(base.flavour.busybox) << 8 ^ u64::from(base.flavour.additional));
        for _ in 0..FLIPS {
            let mut bytes = base.tar.clone();
            // Most of a small tar is padding, where nothing is to be found.
            let position = loop {
                let position = numbers.next() as usize % bytes.len();
                if bytes[position] != 0 || numbers.next().is_multiple_of(8) {
                    break position;
                }
            };
            bytes[position] ^= 1 << (numbers.next() % 8);
            fs_err::write(&file, &bytes).unwrap();
            // Damage in front of the store leaves nothing to judge.
            if verify(&file, &Options::default()).is_ok_and(|report| groups(&report) == known) {
                *missed.lock().unwrap().entry(class(base, &bytes, position)).or_default() += 1;
            }
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{failures:?}");
    let missed = missed.into_inner().unwrap();
    let all: usize = missed.values().sum();
    let found = bases.len() * FLIPS - all;
    eprintln!("bits: {found} of {} found; not found: {missed:?}", bases.len() * FLIPS);
    let harmless = |class: &str| HARMLESS.contains(&class);
    let harmful: Vec<_> = missed.keys().filter(|class| !harmless(class)).collect();
    assert!(harmful.is_empty(), "{harmful:?}");
}

/// Where a changed bit may mean nothing, or nothing that anything in a store says otherwise.
const HARMLESS: &[&str] = &[
    // Nobody reads what fills a block, or what follows a checksum's digits.
    "padding",
    "padding of a PAX header",
    "first records of a PAX header",
    "marker that hides nothing of a PAX header",
    "checksum",
    "checksum of a PAX header",
    // The time and the system of the compressor, and another distance to the same bytes.
    "gzip of the same",
    // What is judged by other rules: those of the machine's configuration.
    "content of etc/containers/policy.json",
    "content of etc/containers/storage.conf",
    "content of etc/crio/crio.conf.d/10-prepull.conf",
    "content of etc/crio/crio.conf.d/10-prepull-usr-lib-containers-storage.conf",
    // What a store says of its own making.
    "images.json: created",
    "images.json: metadata",
    "images.json: names-history",
    "layers.json: created",
    // What a later pull might save, and no file in the store has.
    "layers.json: compressed-diff-digest",
    "layers.json: compressed-size",
    "layers.json: compression",
    // A name may be any, as long as it is one; and what need not be there may have another name.
    "images.json: names",
    "images.json: digest",
    "images.json: big-data-digests",
    "layers.json: uidset",
    "layers.json: gidset",
];

#[test]
fn the_command_line_says_what_is_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let bases = bases(at);
    let good = at.join("good.tar");
    fs_err::write(&good, &bases[1].tar).unwrap();
    let text = succeeds(prepull(at).arg("verify").arg(&good));
    assert!(text.contains(": store /var/lib/containers/storage: 3 images, 3 layers (3 verified), "), "{text}");
    assert!(text.ends_with(": good: every file is as its image says, and CRI-O keeps the images\n"), "{text}");
    succeeds(prepull(at).args(["verify", "--strict"]).arg(&good));

    // From a pipe, compressed, and as standard input that is a file.
    let piped = |program: &str| {
        let mut child = Command::new(program).args(["-c"]).arg(&good).stdout(Stdio::piped()).spawn().unwrap();
        let output = prepull(at).args(["verify", "-"]).stdin(child.stdout.take().unwrap()).output().unwrap();
        child.wait().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let from_pipe = text.replace(&good.display().to_string(), "standard input");
    assert_eq!(piped("gzip"), from_pipe);
    assert_eq!(piped("zstd"), from_pipe);
    let mut cat = Command::new("cat").arg(&good).stdout(Stdio::piped()).spawn().unwrap();
    let output = prepull(at).args(["verify", "-"]).stdin(cat.stdout.take().unwrap()).output().unwrap();
    cat.wait().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), from_pipe);
    let file = fs_err::File::open(&good).unwrap().into_file();
    assert_eq!(succeeds(prepull(at).args(["verify", "-"]).stdin(file)), from_pipe);
    succeeds(Command::new("gzip").arg("-k").arg(&good));
    succeeds(prepull(at).arg("verify").arg(at.join("good.tar.gz")));

    let changed = |name: &str, change: &dyn Fn(&mut Archive<'_>)| {
        let path = at.join(name);
        let mut archive = Archive::of(&bases[1]);
        change(&mut archive);
        fs_err::write(&path, archive.encode()).unwrap();
        path
    };
    let run = |arguments: &[&str], path: &Path| {
        let output = prepull(at).arg("verify").args(arguments).arg(path).output().unwrap();
        assert_eq!(stderr(&output), "");
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let bad = changed("bad.tar", &|tar| tar.remove("overlay/{0}/empty"));
    let (code, text) = run(&[], &bad);
    assert_eq!(code, Some(1));
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[1].starts_with("error: var/lib/containers/storage/overlay/")
            && lines[1].ends_with("/empty: is missing, or is not a directory [layer-empty]"),
        "{text}"
    );
    assert!(lines[2].starts_with("    then: after a power cut CRI-O deletes all images"), "{text}");
    assert!(lines[3].starts_with("    do:   "), "{text}");
    assert!(lines[4].ends_with(": 1 error: CRI-O keeps the images; after a power cut, CRI-O deletes images"), "{text}");
    let (code, text) = run(&["--json"], &bad);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["good"], &json["errors"]), (Some(1), &Value::Bool(false), &Value::from(1)));
    assert_eq!((&json["start"], &json["afterPowerCut"]), (&Value::from("kept"), &Value::from("image-deleted")));
    assert_eq!(json["findings"][0]["rule"], "layer-empty");
    assert_eq!(json["stores"][0]["verifiedLayers"], 3);

    // Warnings fail only where they are asked to.
    let warned = changed("warned.tar", &|tar| tar.add_directory("overlay/xyzdir"));
    let (code, text) = run(&[], &warned);
    assert!(code == Some(0) && text.contains(": good, with 1 warning: CRI-O keeps the images"), "{text}");
    assert_eq!(run(&["--strict"], &warned).0, Some(1));
    assert_eq!(run(&["--json", "--strict"], &warned).0, Some(1));

    // Names reach no terminal as they are.
    let hostile = changed("hostile.tar", &|tar| tar.add_file("overlay/{0}/diff/\u{1b}]0;x\u{7}\n", ""));
    let (_, text) = run(&[], &hostile);
    assert!(text.contains(r"\u{1b}]0;x\u{7}\n") && !text.contains('\u{1b}'), "{text:?}");

    // It may be another use than it was made for.
    assert_eq!(run(&["--store", "additional"], &good).0, Some(0));
    let (code, text) = run(&["--unpacker", "busybox"], &good);
    assert!(code == Some(1) && text.contains("[opaque-dropped]") && text.contains("[owners-lost]"), "{text}");

    fails(prepull(at).args(["verify", "none"]), 2, "none");
    fails(prepull(at).args(["verify", "-"]).stdin(Stdio::null()), 2, "standard input: no store in it");
    fails(prepull(at).arg("verify"), 2, "usage: prepull verify");
    fs_err::create_dir(at.join("empty")).unwrap();
    fails(prepull(at).arg("verify").arg(at.join("empty")), 2, "no store in it");
    let rules = succeeds(prepull(at).args(["verify", "--rules"]));
    assert!(rules.lines().count() > 80 && rules.contains("\nlayer-empty "), "{rules}");
}

#[test]
fn what_cannot_be_read_is_named() {
    if !needs_root("verify::what_cannot_be_read_is_named") {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = scratch();
    let at = scratch.path();
    fs_err::set_permissions(at, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tar = at.join("gnu.tar");
    fs_err::write(&tar, &bases(at)[1].tar).unwrap();
    unpack_gnu(&tar, &at.join("root")).unwrap();
    // The binary may lie where nobody else may look.
    let binary = at.join("prepull");
    fs_err::copy(env!("CARGO_BIN_EXE_prepull"), &binary).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary).arg("verify");
    fails(command.arg(at.join("root")), 2, "(run this as root)");
}

/// Errors found in an input, a line each; what else was found is counted.
fn errors(path: &Path, others: &Mutex<BTreeMap<String, usize>>) -> String {
    let report = verify(path, &Options::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    for (rule, severity, group) in report.groups() {
        if severity == Severity::Error {
            let _ = writeln!(text, "  {}: {} {:?}", rule.info().name, group.count, group.first);
        } else {
            *others.lock().unwrap().entry(format!("{severity:?} {}", rule.info().name)).or_default() += 1;
        }
    }
    let layers: usize = report.stores.iter().map(|store| store.layers).sum();
    assert!(!report.stores.is_empty() && (layers > 0 || !text.is_empty() || report.stores[0].images > 0));
    text
}

/// All edge images that `make` takes, as items.
fn accepted(at: &Path) -> Vec<String> {
    let accepted = Mutex::new(BTreeSet::new());
    let failures = each(&corpus::all(), 4, |case| {
        let place = at.join(&case.name);
        fs_err::create_dir_all(&place).unwrap();
        let mut layout = Layout::new(place.join("oci"));
        case.write(&mut layout);
        let item = format!("oci:{}:{}", layout.path.display(), case.image());
        let mut command = prepull(at);
        command.args(["make", "--quiet", "--no-config", "--unpacker", "gnu", "--cache-dir"]).arg(at.join("cache"));
        let output = command.args(["--tar", "-"]).arg(&item).stdout(Stdio::null()).output().unwrap();
        if output.status.success() {
            accepted.lock().unwrap().insert(item);
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{failures:?}");
    accepted.into_inner().unwrap().into_iter().collect()
}

#[test]
fn edge_images_are_no_false_alarms() {
    let scratch = scratch();
    let at = scratch.path();
    let accepted = accepted(at);
    assert!(accepted.len() > 400, "only {}", accepted.len());
    let others = Mutex::new(BTreeMap::new());
    let mut text = String::new();
    for flavour in FLAVOURS {
        let tar = at.join("images.tar");
        let mut command = prepull(at);
        command.args(["make", "--quiet", "--cache-dir"]).arg(at.join("cache")).arg("-o").arg(&tar);
        command.args(["--unpacker", if flavour.busybox { "busybox" } else { "gnu" }]);
        command.args(["--store", if flavour.additional { "additional" } else { "primary" }]);
        let output = command.args(&accepted).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        text += &errors(&tar, &others);
    }
    eprintln!("{} edge images: {:?}", accepted.len(), others.into_inner().unwrap());
    assert!(text.is_empty(), "{text}");
}

/// A command of podman or buildah on the store `root`, in a mount namespace of its own.
fn on_store(program: &str, root: &Path, arguments: &[&str]) -> String {
    let mut command = in_own_mounts(program);
    command.arg("--root").arg(root).arg("--runroot").arg(root.with_extension("run"));
    succeeds(command.args(["--storage-driver", "overlay"]).args(arguments))
}

#[test]
fn stores_of_the_real_tools_are_no_false_alarms() {
    if !needs_root("verify::stores_of_the_real_tools_are_no_false_alarms") {
        return;
    }
    let scratch = scratch();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    let descriptor = layout.image("amd64", &crate::mutations::layers());
    layout.add(Some("localhost/app:1"), descriptor);
    let descriptor = layout.image("amd64", &layers());
    layout.add(Some("localhost/other:1"), descriptor);
    let item = |name: &str| format!("oci:{}:localhost/{name}:1", layout.path.display());
    let mut text = String::new();
    let others = Mutex::new(BTreeMap::new());
    let mut judge = |root: &Path, what: &str| {
        let before = others.lock().unwrap().clone();
        let found = errors(root, &others);
        if !found.is_empty() {
            let _ = writeln!(text, "{what}:\n{found}");
        }
        let after = others.lock().unwrap();
        let new: Vec<String> = after
            .iter()
            .filter(|(name, count)| before.get(*name) != Some(*count))
            .map(|(name, _)| name.clone())
            .collect();
        eprintln!("{what}: {new:?}");
    };

    let skopeo = at.join("skopeo");
    for name in ["app", "other"] {
        let output = skopeo_into(&skopeo, &item(name), &format!("localhost/{name}:1"));
        assert!(output.status.success(), "{}", stderr(&output));
    }
    judge(&skopeo, "skopeo");
    let tar = at.join("skopeo.tar");
    let pack = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix", "-cf"];
    succeeds(Command::new("tar").args(pack).arg(&tar).arg("-C").arg(&skopeo).arg("."));
    judge(&tar, "skopeo, as a tar");

    let archive = |name: &str| {
        let path = at.join(format!("{name}.tar")).display().to_string();
        if !Path::new(&path).exists() {
            copy(at, &[&item(name), &format!("docker-archive:{path}:localhost/{name}:1")]);
        }
        path
    };
    let podman = at.join("podman");
    for name in ["app", "other"] {
        on_store("podman", &podman, &["load", "--quiet", "--input", &archive(name)]);
        on_store("podman", &podman, &["tag", &format!("localhost/{name}:1"), &format!("localhost/{name}:2")]);
    }
    judge(&podman, "podman");
    // A container that is there, with something in its own layer, and one that nobody started.
    on_store("podman", &podman, &["create", "--name", "idle", "localhost/other:2"]);
    on_store("podman", &podman, &["create", "--name", "used", "localhost/app:2"]);
    let file = at.join("file");
    fs_err::write(&file, "x").unwrap();
    on_store("podman", &podman, &["cp", file.to_str().unwrap(), "used:/file"]);
    judge(&podman, "podman, with containers");

    let buildah = at.join("buildah");
    let container =
        on_store("buildah", &buildah, &["from", "--name", "work", &format!("docker-archive:{}", archive("app"))]);
    on_store("buildah", &buildah, &["copy", container.trim(), file.to_str().unwrap(), "/etc/file"]);
    judge(&buildah, "buildah, at work");
    on_store("buildah", &buildah, &["commit", "--quiet", container.trim(), "localhost/built:1"]);
    judge(&buildah, "buildah");
    assert!(text.is_empty(), "{text}");
}

#[test]
fn what_busybox_unpacks_is_good_after_the_script() {
    if !needs_root("verify::what_busybox_unpacks_is_good_after_the_script") {
        return;
    }
    let scratch = scratch();
    let at = scratch.path();
    let tar = at.join("images.tar");
    fs_err::write(&tar, &bases(at)[0].tar).unwrap();
    let root = at.join("root");
    fs_err::create_dir(&root).unwrap();
    let unpack = ["tar", "-C", root.to_str().unwrap(), "-o", "-xf", tar.to_str().unwrap()];
    succeeds(Command::new("busybox").args(unpack).env("EXTRACT_UNSAFE_SYMLINKS", "1"));
    let found = findings(&verify(&root, &Options::default()).unwrap());
    let errors: Vec<_> = found.iter().filter(|(severity, _)| *severity == Severity::Error).collect();
    assert_eq!(errors, [&(Severity::Error, "entry-owner")]);
    succeeds(Command::new("busybox").arg("sh").arg(root.join("etc/init.d/25prepull.rc")));
    let found = findings(&verify(&root, &Options::default()).unwrap());
    // busybox sets no times of links, and drops attributes.
    assert_eq!(found, BTreeSet::from([(Severity::Note, "entry-time"), (Severity::Warning, "entry-xattr")]));
    assert!(root.join(GRAPHROOT).is_dir());
}

/// What `verify` has against the store of an edge image as skopeo made it, unless it is known to be right.
pub fn false_alarms(case: &str, root: &Path) -> String {
    let errors = errors(root, &Mutex::new(BTreeMap::new()));
    match (errors.is_empty(), SKOPEO.iter().any(|(name, _)| *name == case)) {
        (true, true) => "  verify: there is nothing to say any more\n".to_owned(),
        (false, false) => format!("  verify:\n{errors}"),
        _ => String::new(),
    }
}

/// Edge images of whose stores, as skopeo makes them, there is something to say, and rightly so.
const SKOPEO: &[(&str, &str)] = &[
    ("xattr-opaque-file", STEERS),
    ("xattr-opaque-symlink", STEERS),
    ("xattr-opaque-fifo", STEERS),
    ("xattr-opaque-char", STEERS),
    ("xattr-opaque-block", STEERS),
    ("xattr-opaque-x", STEERS),
    ("xattr-opaque-dir-x", STEERS),
    ("xattr-redirect", STEERS),
    ("xattr-origin", STEERS),
    ("wh-then-opaque-below", STEERS),
    ("opq-on-file", STEERS),
    ("cut-in-padding", "skopeo's tar-split lacks bytes, so that it cannot export the layer"),
];

const STEERS: &str = "overlayfs's own attributes steer the mount";
