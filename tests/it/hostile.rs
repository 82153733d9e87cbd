//! Every file of `tests/hostile` gets the verdict that `index.tsv` gives it, from prepull and from skopeo; and what prepull
//! makes of those that it takes, GNU tar and busybox unpack without touching anything around.
//!
//! `PREPULL_HOSTILE=write` writes the verdicts that prepull gives into the index, to be read before they are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use prepull::digest::{Digest, Hasher};
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::command::{REPOSITORY, needs_root, prepull, stderr};
use crate::corpus::{Case, plain};
use crate::edge::{Asked, Difference, ask};
use crate::made::{Layout, config, tar};
use crate::raw::{MTIME, Raw, archive, file};
use crate::stores::{Clock, GRAPHROOT, Tree, differences, each, scratch, skopeo_into, walk};

/// The most memory (heap, stacks and the like, `RLIMIT_DATA`) that any of these files may cost.
const MEMORY: u64 = 160 << 20;

/// The longest that one may take, on a machine that does other things as well.
const LONGEST: Duration = Duration::from_secs(60);

/// Time of processors that a program without optimisation may need for a million entries. What takes the square of their number
/// takes days.
const MILLION_LONGEST: Duration = Duration::from_secs(180);

/// A line of `index.tsv`.
#[derive(Debug, Clone)]
struct Line {
    file: String,
    /// `take: …` or `refuse: …`.
    verdict: String,
    /// What skopeo does: `same`, or what differs.
    skopeo: String,
    why: String,
    advisory: String,
}

fn directory() -> PathBuf {
    Path::new(REPOSITORY).join("tests/hostile")
}

fn index() -> Vec<Line> {
    let text = fs_err::read_to_string(directory().join("index.tsv")).unwrap();
    let line = |line: &str| {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [file, verdict, skopeo, why, advisory] =
            fields.try_into().unwrap_or_else(|bad| panic!("index.tsv: {bad:?}"));
        Line { file, verdict, skopeo, why, advisory }
    };
    text.lines().skip(1).map(line).collect()
}

/// One image, of one file or of several whose names differ in the number before the suffix.
struct Image {
    name: String,
    lines: Vec<Line>,
}

/// The images whose files are in `what`, a directory.
fn images(what: &str) -> Vec<Image> {
    let mut images: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in index() {
        if let Some(file) = line.file.strip_prefix(&format!("{what}/")) {
            let (stem, suffixes) = file.split_once(".tar").or_else(|| file.split_once(".json")).unwrap();
            let stem = stem.trim_end_matches(|char: char| char.is_ascii_digit()).strip_suffix('.').unwrap_or(stem);
            images.entry(format!("{stem}{}", suffixes.replace('.', "-"))).or_default().push(line);
        }
    }
    images.into_iter().map(|(name, lines)| Image { name, lines }).collect()
}

fn bytes_of(line: &Line) -> Vec<u8> {
    fs_err::read(directory().join(&line.file)).unwrap()
}

#[test]
fn every_file_has_a_line_and_every_line_a_file() {
    let lines = index();
    let listed: BTreeSet<String> = lines.iter().map(|line| line.file.clone()).collect();
    assert_eq!(listed.len(), lines.len(), "a file is listed twice");
    let mut found = BTreeSet::new();
    for what in ["layers", "documents"] {
        for entry in fs_err::read_dir(directory().join(what)).unwrap() {
            found.insert(format!("{what}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    assert_eq!(listed, found);
    for line in &lines {
        assert!(line.verdict.starts_with("take: ") || line.verdict.starts_with("refuse: "), "{line:?}");
        assert!(!line.why.is_empty(), "{line:?}");
        let known = |advisory: &str| ["CVE-", "GHSA-", "RUSTSEC-"].iter().any(|kind| advisory.starts_with(kind));
        assert!(line.advisory == "-" || line.advisory.split(' ').all(known), "{line:?}");
    }
    let size: u64 = lines.iter().map(|line| fs_err::metadata(directory().join(&line.file)).unwrap().len()).sum();
    assert!(size < 550_000, "{size} bytes");
}

/// `prepull make` with bounded memory and time; what it said, and how long it took.
fn make(at: &Path, unpacker: &str, item: &str, tar: &Path) -> Output {
    let begun = Instant::now();
    let mut command = prepull(at);
    command.args(["make", "--platform", "linux/amd64", "--no-cache", "--no-config", "--quiet", "--unpacker", unpacker]);
    command.arg("-o").arg(tar).arg(item);
    let output = bounded(&command).output().unwrap();
    let took = begun.elapsed();
    assert!(took < LONGEST, "{item}: {took:?}");
    output
}

/// The same command with less memory.
fn bounded(command: &Command) -> Command {
    let mut bounded = Command::new("prlimit");
    bounded.arg(format!("--data={MEMORY}")).arg("--").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(key, value),
            None => bounded.env_remove(key),
        };
    }
    bounded
}

/// The entries of each layer of an image in a tar that `make` wrote, the lowest first: a line each, in order.
fn entries(tar: &Path, layers: usize) -> Vec<String> {
    let mut archive = tar::Archive::new(std::io::BufReader::new(fs_err::File::open(tar).unwrap()));
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut order = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let text = String::from_utf8_lossy(&path).into_owned();
        if text.ends_with("overlay-layers/layers.json") {
            let records: Vec<Value> = serde_json::from_reader(&mut entry).unwrap();
            for record in &records {
                order.insert(record["id"].as_str().unwrap().to_owned(), record["parent"].as_str().map(str::to_owned));
            }
        }
        let Some(rest) = text.strip_prefix(&format!("{GRAPHROOT}/overlay/")) else { continue };
        let Some((id, _)) = rest.split_once("/diff") else { continue };
        let root = format!("{GRAPHROOT}/overlay/{id}/diff").len();
        if found.last().is_none_or(|(last, _)| last != id) {
            found.push((id.to_owned(), Vec::new()));
        }
        let shown = described(&mut entry, &path[root..], root);
        let lines = &mut found.last_mut().unwrap().1;
        // A directory may be named again for GNU tar's sake.
        if !lines.contains(&shown) {
            lines.push(shown);
        }
    }
    assert_eq!(found.len(), layers, "{found:?}");
    let depth = |id: &str| std::iter::successors(Some(id.to_owned()), |id| order[id].clone()).count();
    found.sort_by_key(|(id, _)| depth(id));
    found.into_iter().map(|(_, lines)| lines.join("; ")).collect()
}

/// Type, mode, owner, path, and what else there is to say.
fn described(entry: &mut tar::Entry<'_, impl std::io::Read>, path: &[u8], root: usize) -> String {
    let escaped = |bytes: &[u8]| match bytes.len() {
        0..100 => bytes.escape_ascii().to_string(),
        long => format!("{}... ({long} bytes)", bytes[..20].escape_ascii()),
    };
    let strip = |path: &[u8]| {
        escaped(
            path.strip_prefix(b"/")
                .unwrap_or(path)
                .strip_suffix(b"/")
                .unwrap_or(path.strip_prefix(b"/").unwrap_or(path)),
        )
    };
    let path = if path.is_empty() || path == b"/" { ".".to_owned() } else { strip(path) };
    let mut number: BTreeMap<String, String> = BTreeMap::new();
    let mut attributes = Vec::new();
    for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
        let extension = extension.unwrap();
        let (key, value) = (extension.key().unwrap(), escaped(extension.value_bytes()));
        match key.strip_prefix("SCHILY.xattr.") {
            Some(name) => attributes.push(format!(" {name}={value}")),
            None => drop(number.insert(key.to_owned(), value)),
        }
    }
    let header = entry.header().clone();
    let or = |key: &str, value: u64| number.get(key).cloned().unwrap_or_else(|| value.to_string());
    let (uid, gid) = (or("uid", header.uid().unwrap()), or("gid", header.gid().unwrap()));
    let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
    let device = || format!(" {}:{}", header.device_major().unwrap().unwrap(), header.device_minor().unwrap().unwrap());
    let (kind, more) = match header.entry_type() {
        tar::EntryType::Regular => ("file", format!(" {} bytes", entry.size())),
        tar::EntryType::Directory => ("dir", String::new()),
        tar::EntryType::Symlink => ("symlink", format!(" -> {}", escaped(&link))),
        tar::EntryType::Link => return format!("link {path} = {}", strip(&link[root..])),
        tar::EntryType::Char => ("char", device()),
        tar::EntryType::Block => ("block", device()),
        tar::EntryType::Fifo => ("fifo", String::new()),
        other => panic!("{path}: {other:?}"),
    };
    let time = or("mtime", header.mtime().unwrap());
    let made = [MTIME.to_string(), "1234567890".to_owned()].contains(&time) || path == ".";
    let time = if made { String::new() } else { format!(" @{time}") };
    format!("{kind} {:04o} {uid}:{gid} {path}{more}{time}{}", header.mode().unwrap(), attributes.concat())
}

/// What prepull says of a file, in the words of the index: `what` is what it made, or what it says without the file's names.
fn verdict(output: &Output, made: impl FnOnce() -> String) -> String {
    if output.status.success() {
        return format!("take: {}", made());
    }
    let said = stderr(output);
    assert!(matches!(output.status.code(), Some(1 | 2)) && said.lines().count() == 1, "{}: {said}", output.status);
    // The names of the item and of the layer come first; bad_input.rs has that they do.
    let said = said.trim_end().strip_prefix("prepull: ").unwrap();
    let said = said.split_once(": layer sha256:").map_or(said, |(_, rest)| rest.split_once(": ").unwrap().1);
    format!("refuse: {said}")
}

/// Whether `given` is what the index has: of an error, a part is enough.
fn agrees(line: &Line, given: &str) -> bool {
    match (line.verdict.strip_prefix("refuse: "), given.strip_prefix("refuse: ")) {
        (Some(part), Some(said)) => !part.is_empty() && said.contains(part),
        _ => line.verdict == given,
    }
}

/// Compares, or has the index say what was found.
fn judge(found: &BTreeMap<String, (String, String)>) {
    if std::env::var("PREPULL_HOSTILE").is_ok_and(|what| what == "write") {
        let mut text = "file\tverdict\tskopeo\twhy\tadvisory\n".to_owned();
        for Line { file, verdict, skopeo, why, advisory } in index() {
            let (verdict, skopeo) = found.get(&file).cloned().unwrap_or((verdict, skopeo));
            let _ = writeln!(text, "{file}\t{verdict}\t{skopeo}\t{why}\t{advisory}");
        }
        fs_err::write(directory().join("index.tsv"), text).unwrap();
        return;
    }
    let mut report = String::new();
    for line in index() {
        let Some((given, skopeo)) = found.get(&line.file) else { continue };
        if !agrees(&line, given) || line.skopeo != *skopeo {
            let _ = writeln!(
                report,
                "{}\n  index {} [{}]\n  found {given} [{skopeo}]",
                line.file, line.verdict, line.skopeo
            );
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// The layers of an image as skopeo gets them: only for files that are small when they are uncompressed.
fn case(image: &Image) -> Case {
    Case { name: image.name.clone(), layers: image.lines.iter().map(|line| plain(bytes_of(line))).collect() }
}

/// Writes a layout with an image of one compressed layer.
fn bomb(image: &Image, at: &Path) -> String {
    let blob = bytes_of(&image.lines[0]);
    let mut inflated: Box<dyn std::io::Read> = match blob[0] {
        0x1f => Box::new(flate2::read::MultiGzDecoder::new(&blob[..])),
        _ => Box::new(zstd::Decoder::new(&blob[..]).unwrap()),
    };
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 1 << 20]);
    loop {
        match inflated.read(&mut buffer).unwrap() {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    layout_of(&image.name, at, &blob, if blob[0] == 0x1f { "gzip" } else { "zstd" }, hasher.finish())
}

fn layout_of(name: &str, at: &Path, blob: &[u8], compression: &str, diff_id: Digest) -> String {
    let mut layout = Layout::new(at.join("oci"));
    let layer = layout.blob(&format!("application/vnd.oci.image.layer.v1.tar+{compression}"), blob);
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = layout.blob(OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let manifest = layout.manifest(&manifest);
    layout.add(Some(&format!("localhost/{name}:1")), manifest);
    format!("oci:{}:localhost/{name}:1", layout.path.display())
}

/// Without what busybox cannot unpack, and what stands for it.
fn for_busybox(lines: &str) -> Vec<String> {
    let plain = |line: &str| {
        let end = [" security.", " user.", " trusted.", " system."].iter().filter_map(|name| line.find(name)).min();
        line[..end.unwrap_or(line.len())].to_owned()
    };
    lines.split("; ").map(plain).filter(|line| !(line.starts_with("char ") && line.ends_with(" 0:0"))).collect()
}

#[test]
fn layers_get_the_verdict_of_the_index() {
    let scratch = scratch();
    let root = rustix::process::geteuid().is_root();
    let found = std::sync::Mutex::new(BTreeMap::new());
    let failures = each(&images("layers"), 6, |image| {
        let at = scratch.path().join(&image.name);
        fs_err::create_dir_all(&at).unwrap();
        let is_bomb = image.name.starts_with("bomb-");
        let item = if is_bomb {
            bomb(image, &at)
        } else {
            let (mut layout, case) = (Layout::new(at.join("oci")), case(image));
            case.write(&mut layout);
            format!("oci:{}:{}", layout.path.display(), case.image())
        };
        let (gnu, busybox) = (at.join("gnu.tar"), at.join("busybox.tar"));
        let output = make(&at, "gnu", &item, &gnu);
        let other = make(&at, "busybox", &item, &busybox);
        let layers = image.lines.len();
        let mut verdicts = vec![String::new(); layers];
        if output.status.success() {
            verdicts = entries(&gnu, layers).iter().map(|lines| format!("take: {lines}")).collect();
            for (gnu, busybox) in verdicts.iter().zip(entries(&busybox, layers)) {
                let gnu = for_busybox(gnu.strip_prefix("take: ").unwrap());
                assert_eq!(gnu, for_busybox(&busybox), "{}: for GNU tar, and for busybox", image.name);
            }
        } else {
            // It is the last layer that is refused: the ones below prepare it.
            verdicts.fill("take: -".to_owned());
            let said = verdict(&output, String::new);
            assert_eq!(said, verdict(&other, String::new), "{}", image.name);
            *verdicts.last_mut().unwrap() = said;
        }
        // What a bomb would do to skopeo it would do to this machine: of some sparse maps it writes out every zero.
        let skopeo = match () {
            () if is_bomb || image.lines[0].skopeo == "not asked" => "not asked".to_owned(),
            () if root => skopeos(&ask_about(image, &at.join("ask"))),
            () => image.lines.last().unwrap().skopeo.clone(),
        };
        fs_err::remove_dir_all(&at).unwrap();
        let mut found = found.lock().unwrap();
        for (line, verdict) in image.lines.iter().zip(verdicts) {
            found.insert(line.file.clone(), (verdict, skopeo.clone()));
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    judge(&found.into_inner().unwrap());
    if !root {
        needs_root("hostile::layers_get_the_verdict_of_the_index, the part about skopeo");
    }
}

fn ask_about(image: &Image, at: &Path) -> Asked {
    let may = match &image.lines[0].skopeo[..] {
        "overlay's attributes" => vec![Difference::NoOverlayAttributes],
        "the root's owner" => vec![Difference::RootOwner],
        "tar-split" => vec![Difference::TarSplit],
        _ => Vec::new(),
    };
    let mut asked = ask(&case(image), at, &may);
    if let ([difference], true) = (&may[..], asked.report.is_empty()) {
        // It has to be there, if it is listed.
        let strict = ask(&case(image), at, &[]);
        let shown = if strict.report.is_empty() { "same" } else { &image.lines[0].skopeo };
        asked.report = format!("{difference:?}={shown}");
    }
    asked
}

/// In the words of the index.
fn skopeos(asked: &Asked) -> String {
    match (asked.skopeo, asked.prepull) {
        (true, false) => "takes it".to_owned(),
        (false, true) => "refuses it".to_owned(),
        _ if asked.report.is_empty() => "same".to_owned(),
        _ => match asked.report.split_once('=') {
            Some((_, shown)) if !shown.contains('\n') => shown.to_owned(),
            _ => asked.report.replace(['\n', '\t'], " "),
        },
    }
}

#[test]
fn documents_get_the_verdict_of_the_index() {
    let scratch = scratch();
    let root = rustix::process::geteuid().is_root();
    let layer = fs_err::read(directory().join("layers/good.tar")).unwrap();
    let found = std::sync::Mutex::new(BTreeMap::new());
    let failures = each(&images("documents"), 6, |image| {
        let [line] = &image.lines[..] else { panic!("{}", image.name) };
        let at = scratch.path().join(&image.name);
        fs_err::create_dir_all(&at).unwrap();
        let document = bytes_of(line);
        let (kind, _) = image.name.split_once('-').unwrap();
        if matches!(kind, "images" | "layers") {
            let output = list(&at, kind, &document);
            let verdict = verdict(&output, || listed(&output.stdout));
            // No other tool is asked to list what it would then have to repair.
            found.lock().unwrap().insert(line.file.clone(), (shorter(&verdict, &at), "not asked".to_owned()));
            return Ok(());
        }
        let item = place(&at, kind, &document, &layer);
        let tar = at.join("images.tar");
        let output = make(&at, "gnu", &item, &tar);
        let verdict = verdict(&output, || {
            let output = prepull(&at).args(["ls", "--json"]).arg(&tar).output().unwrap();
            assert_eq!(entries(&tar, 1), ["dir 0555 0:0 .; file 0644 0:0 good 4 bytes"], "{}", image.name);
            listed(&output.stdout)
        });
        let skopeo = if root {
            let theirs = skopeo_into(&at.join("skopeo"), &item, "localhost/asked:1");
            match (theirs.status.success(), output.status.success()) {
                (true, false) => "takes it",
                (false, true) => "refuses it",
                _ => "same",
            }
        } else {
            &line.skopeo
        };
        found.lock().unwrap().insert(line.file.clone(), (shorter(&verdict, &at), skopeo.to_owned()));
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    judge(&found.into_inner().unwrap());
}

/// Without where the files happened to be.
fn shorter(verdict: &str, at: &Path) -> String {
    verdict.replace(at.to_str().unwrap(), "DIR")
}

/// What `prepull ls --json` has: the names, the id and the size.
fn listed(json: &[u8]) -> String {
    let json: Value = serde_json::from_slice(json).unwrap();
    let image = |image: &Value| format!("{} {} {}", image["repoTags"], image["id"], image["size"]);
    json["images"].as_array().unwrap().iter().map(image).collect::<Vec<_>>().join("; ")
}

/// Puts a document where it is read; gives the item.
fn place(at: &Path, kind: &str, document: &[u8], layer: &[u8]) -> String {
    let mut layout = Layout::new(at.join("oci"));
    let item = format!("oci:{}", layout.path.display());
    let layer = layer.to_vec();
    let described = layout.blob("application/vnd.oci.image.layer.v1.tar", &layer);
    // As tests/hostile/make has them: documents refer to them by their digests.
    let read = |name: &str| fs_err::read(directory().join(format!("documents/{name}-good.json"))).unwrap();
    let (config_good, manifest_good) = (read("config"), read("manifest"));
    layout.blob(OCI_CONFIG, &config_good);
    layout.blob(OCI_CONFIG, b"{}");
    let manifest = layout.blob(OCI_MANIFEST, &manifest_good);
    match kind {
        "index" => fs_err::write(layout.path.join("index.json"), document).unwrap(),
        "manifest" => {
            let manifest = layout.blob(OCI_MANIFEST, document);
            layout.add(Some("localhost/good:1"), manifest);
        }
        "config" => {
            let config = layout.blob(OCI_CONFIG, document);
            let manifest =
                json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [described]});
            let manifest = layout.manifest(&manifest);
            layout.add(Some("localhost/good:1"), manifest);
        }
        "docker" => {
            let config = config("amd64", std::slice::from_ref(&layer));
            let mut archive = tar(&[("config.json", &config), ("manifest.json", document), ("layer.tar", &layer)]);
            archive.truncate(archive.len() - 1024);
            archive.extend(self::archive(&[
                crate::raw::sym("sym.tar", "../../../../../../../../etc/passwd"),
                crate::raw::sym("loop.tar", "loop.tar"),
            ]));
            fs_err::write(at.join("docker.tar"), archive).unwrap();
            return format!("docker-archive:{}", at.join("docker.tar").display());
        }
        other => panic!("{other}"),
    }
    drop(manifest);
    item
}

/// `prepull ls` of a store that has this document.
fn list(at: &Path, kind: &str, document: &[u8]) -> Output {
    let store = at.join("store");
    for (name, other) in [("images", "images-good"), ("layers", "layers-good")] {
        let good = fs_err::read(directory().join(format!("documents/{other}.json"))).unwrap();
        let bytes = if kind == name { document } else { &good };
        fs_err::create_dir_all(store.join(format!("overlay-{name}"))).unwrap();
        fs_err::write(store.join(format!("overlay-{name}/{name}.json")), bytes).unwrap();
    }
    fs_err::create_dir_all(store.join("overlay")).unwrap();
    bounded(prepull(at).args(["ls", "--json"]).arg(&store)).output().unwrap()
}

/// What is around where tars are unpacked, in a root of its own.
fn canaries(root: &Path) {
    for directory in
        ["etc/cron.d", "tmp", "proc/self/root/tmp", "run/secrets", "root", "dev", "inner/gnu", "inner/busybox", "usr"]
    {
        fs_err::create_dir_all(root.join(directory)).unwrap();
    }
    for file in [
        "canary",
        "evil",
        "etc/passwd",
        "etc/shadow",
        "etc/group",
        "tmp/file",
        "tmp/passwd",
        "proc/mounts",
        "proc/self/environ",
        "inner/evil",
        "inner/gnu/evil",
        "inner/busybox/evil",
        "run/secrets/canary",
    ] {
        fs_err::write(root.join(file), "not to be touched").unwrap();
    }
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
}

#[test]
fn what_is_taken_unpacks_without_touching_anything_around() {
    if !needs_root("hostile::what_is_taken_unpacks_without_touching_anything_around") {
        return;
    }
    let scratch = scratch();
    let (at, root) = (scratch.path(), scratch.path().join("root"));
    canaries(&root);
    let taken: Vec<Image> = images("layers")
        .into_iter()
        .filter(|image| {
            image.lines.last().unwrap().verdict.starts_with("take: ") && !image.name.starts_with("bomb-file")
        })
        .collect();
    assert!(taken.len() > 80, "{}", taken.len());
    let tars = root.join("tars");
    let failures = each(&taken, 4, |image| {
        let place = at.join(&image.name);
        let item = if image.name.starts_with("bomb-") {
            fs_err::create_dir_all(&place).unwrap();
            bomb(image, &place)
        } else {
            let (mut layout, case) = (Layout::new(place.join("oci")), case(image));
            case.write(&mut layout);
            format!("oci:{}:{}", layout.path.display(), case.image())
        };
        for unpacker in ["gnu", "busybox"] {
            fs_err::create_dir_all(tars.join(unpacker)).unwrap();
            fs_err::create_dir_all(root.join("inner").join(unpacker).join(&image.name)).unwrap();
            let output = make(&place, unpacker, &item, &tars.join(unpacker).join(&image.name));
            assert!(output.status.success(), "{}", stderr(&output));
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // In the state in which it must stay; where tars are unpacked is nobody's business.
    let around = || -> Tree {
        let mut tree = walk(&root, &Clock::stamp());
        let depth = |name: &str| name.split('/').count();
        let inside = |name: &String| {
            name.starts_with("inner/") && (depth(name) > 3 || depth(name) == 3 && !name.ends_with("/evil"))
        };
        tree.retain(|name, _| !inside(name) && !name.starts_with("tars/"));
        tree
    };
    let before = around();
    let script = r#"
        mount --bind /usr "$1/usr" && mount -o remount,bind,ro "$1/usr" && exec chroot "$1" /bin/sh -c '
        for name in $(ls /tars/gnu); do
            tar --xattrs --xattrs-include="*" --numeric-owner --warning=no-timestamp -xpf "/tars/gnu/$name" -C "/inner/gnu/$name" ||
                echo "GNU tar: $name" >&2
            EXTRACT_UNSAFE_SYMLINKS=1 busybox tar -xf "/tars/busybox/$name" -C "/inner/busybox/$name" ||
                echo "busybox: $name" >&2
        done'"#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(&root)
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    // Times that no file system has, and attributes of a machine with a security module, are no matter here.
    let matters = |line: &&str| line.starts_with("GNU tar: ") || line.starts_with("busybox: ");
    let failed: Vec<&str> = said.lines().filter(matters).collect();
    assert!(failed.is_empty(), "{said}");
    let mut report = String::new();
    differences("around", &around(), &before, &mut report);
    assert!(report.is_empty(), "{report}");
    for unpacker in ["gnu", "busybox"] {
        for image in &taken {
            let store = root.join("inner").join(unpacker).join(&image.name).join(GRAPHROOT);
            assert!(store.join("overlay-images/images.json").exists(), "{unpacker}: {}", image.name);
        }
    }
}

/// A tar of `count` entries as a stream.
fn many(name: &str, at: &Path, count: u32, entry: impl Fn(u32) -> Raw) -> String {
    use std::io::Write as _;
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut hasher = Hasher::new();
    for number in 0..count {
        let bytes = entry(number).encode();
        hasher.update(&bytes);
        zstd.write_all(&bytes).unwrap();
    }
    layout_of(name, at, &zstd.finish().unwrap(), "zstd", hasher.finish())
}

/// These would be megabytes even when they are compressed.
#[test]
fn a_million_entries_are_taken_and_more_than_that_are_not() {
    let scratch = scratch();
    let at = scratch.path();
    let name = |number: u32| format!("{:02x}/{number:x}", number % 256);
    let item = many("million", at, 1_000_000, |number| file(name(number)).data(""));
    let tar = at.join("images.tar");
    let mut command = prepull(at);
    command.args(["make", "--no-cache", "--quiet", "--unpacker", "gnu", "-o"]).arg(&tar).arg(&item);
    let memory = 512u64 << 20;
    let mut limited = Command::new("prlimit");
    // Time of processors, which other tests do not change; both threads count. SIGXCPU ends a program that takes more.
    limited.args([format!("--data={memory}"), format!("--cpu={}", MILLION_LONGEST.as_secs())]);
    limited.arg("--").arg(command.get_program()).args(command.get_args());
    let output = limited.env("HOME", at).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
    fs_err::remove_dir_all(at.join("oci")).unwrap();

    // Link targets of 4 KiB: 64 MiB of them are enough.
    let target = "t".repeat(4000);
    let item = many("targets", at, 20_000, |number| crate::raw::sym(number.to_string(), &target));
    let output = make(at, "gnu", &item, &tar);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("more than 64 MiB of names, link targets"), "{}", stderr(&output));
}
