//! A wall of faults: every command when calls of the system fail one by one, when it is killed or stopped at any of them,
//! when disks are full, when the cache is damaged, and when others use the cache at the same time.
//!
//! A new command is a line in [`TABLE`]: it is then tried at every call that it makes.

mod crowd;
mod damage;
mod full;
mod inject;
mod kill;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::command::{REPOSITORY, prepull, stderr};
use crate::made::{Layout, copy, gzip};
use crate::raw::{archive, dir, file, link, mark, sym};
use crate::stores::scratch;
use crate::support::fault_server::{FaultServer, Reply};

/// What a command begins with: a directory with `out`, `tmp` (its TMPDIR), `home`, and perhaps `cache`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// Nothing.
    Nothing,
    /// An old file called out/images.tar.
    Old,
    /// A cache with the layers of the small image.
    Warm,
    /// A cache that shares its space with out/images.tar, which has the large image.
    Shared,
}

/// One command of the wall.
struct Case {
    name: &'static str,
    from: From,
    /// Where `{…}` is one of [`Work`]'s inputs, or `<` what comes from standard input.
    line: &'static str,
}

const fn case(name: &'static str, from: From, line: &'static str) -> Case {
    Case { name, from, line }
}

const TABLE: &[Case] = &[
    case("make, empty cache", From::Nothing, "make -q --cache-dir cache -o out/images.tar {oci}"),
    case("make, warm cache", From::Warm, "make -q --cache-dir cache -o out/images.tar {oci}"),
    case("make over a file", From::Old, "make -q --cache-dir cache -o out/images.tar {oci}"),
    case("make, no cache", From::Old, "make -q --no-cache -o out/images.tar {oci}"),
    case("make, two items", From::Warm, "make -q --cache-dir cache -o out/images.tar {oci} {hello}"),
    case("make for GNU tar", From::Warm, "make -q --cache-dir cache --unpacker gnu -o out/images.tar {oci} {hello}"),
    case("make, shared tar", From::Nothing, "make -q --cache-dir cache -o out/images.tar {large}"),
    case("make, shared tar again", From::Shared, "make -q --cache-dir cache -o out/images.tar {large}"),
    case("make, another shared tar", From::Shared, "make -q --cache-dir cache -o out/other.tar {large}"),
    case("make to a stream", From::Nothing, "make -q --cache-dir cache --tar - {oci}"),
    case("make to a stream, warm cache", From::Warm, "make -q --cache-dir cache --tar - {oci}"),
    case("make to a stream, no cache", From::Nothing, "make -q --no-cache --tar - {oci}"),
    case("make from dir:", From::Nothing, "make -q --cache-dir cache -o out/images.tar {dir}"),
    case("make from docker-archive:", From::Nothing, "make -q --cache-dir cache -o out/images.tar {docker}"),
    case("make from a compressed archive", From::Nothing, "make -q --cache-dir cache -o out/images.tar {gzip}"),
    case("make from oci-archive:", From::Nothing, "make -q --cache-dir cache -o out/images.tar {archive}"),
    case(
        "make from a registry",
        From::Nothing,
        "make -q --tls-verify=false --cache-dir cache -o out/images.tar {registry}",
    ),
    case("make of a list", From::Warm, "make -q --cache-dir cache -o out/images.tar --images - <{list}"),
    case("ls of a tar", From::Nothing, "ls --digests {tar}"),
    case("ls of a directory", From::Nothing, "ls --json {root}"),
    case("ls of standard input", From::Nothing, "ls - <{tar}"),
    case("ls of a compressed tar", From::Nothing, "ls {tgz}"),
    case("verify a tar", From::Nothing, "verify --json {tar}"),
    case("diff of directories", From::Nothing, "diff {root} {root}"),
    case("verify a compressed tar", From::Nothing, "verify - <{tgz}"),
    case("diff", From::Nothing, "diff --json {tar} {tar}"),
    case("why", From::Nothing, "why {tar} localhost/hello:v1"),
    case("cache", From::Warm, "cache --cache-dir cache"),
    case("cache, shared tar", From::Shared, "cache --cache-dir cache --json"),
    case("cache prune", From::Warm, "cache prune -q --cache-dir cache --max-size 50k --json"),
    case("cache prune --all", From::Shared, "cache prune -q --cache-dir cache --all --json"),
    case("ovl", From::Nothing, "ovl -q out"),
    case("completions", From::Nothing, "completions bash"),
    case("man", From::Nothing, "man -q out"),
    case("--help", From::Nothing, "make --help"),
    case("--version", From::Nothing, "--version"),
];

/// Whether everything is tried, which takes half an hour; else a sample, always the same.
pub fn is_all() -> bool {
    std::env::var_os("PREPULL_FAULTS").is_some_and(|value| value == "all")
}

/// Pseudo-random numbers that a failure can be repeated with.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit.max(1)
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..count).map(|_| random.below(256) as u8).collect()
}

/// The inputs of all commands, what they begin with, and where they work.
struct Work {
    _scratch: tempfile::TempDir,
    at: PathBuf,
    inputs: HashMap<&'static str, String>,
    _server: FaultServer,
}

/// What a command did.
struct Ran {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
    is_hung: bool,
}

/// The files of a directory, by their paths in it.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// What a command gives when nothing is wrong.
struct Reference {
    stdout: Vec<u8>,
    before: Tree,
    out: Tree,
}

/// How a command may end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum May {
    /// Well, or with one line that says why not.
    Fail,
    /// Well.
    Succeed,
    /// Killed: what it leaves is removed later.
    Die,
    /// Well, or with exit code 130 and one line, or by the signal itself before it handles any.
    Stop,
    /// As [`Self::Fail`], but temporary files may be left, since no file can be removed.
    Litter,
    /// As [`Self::Fail`], but nobody hears why, since standard error fails.
    FailSilently,
    /// In any way: there is no memory to say anything with.
    Crash,
}

impl Work {
    fn new() -> Self {
        let scratch = scratch();
        let at = scratch.path().canonicalize().unwrap();
        let base = archive(&[
            dir("etc/"),
            dir("d/"),
            file("d/a"),
            sym("l", "/d"),
            file("large").data(noise(1, 700_000)),
            file("etc/f").owner(1, 2).mtime(3),
        ]);
        // The root late and a directory after its files: the body is written twice.
        let second = archive(&[file("e/x"), dir("e/").owner(5, 5), mark("d/.wh..wh..opq"), file("d/new"), dir("./")]);
        let third = archive(&[file("x").mode(0o4755).xattr("security.test", "1"), link("y", "x").owner(7, 7)]);
        let mut layout = Layout::new(at.join("oci"));
        let image = layout.image("amd64", &[base.clone(), second, third.clone()]);
        layout.add(Some("localhost/small:1"), image);
        let mut large = Layout::new(at.join("large"));
        // Enough for a tar that is shared.
        let image = large.image("amd64", &[third, archive(&[file("noise").data(noise(2, 33 << 20))]), base]);
        large.add(Some("localhost/large:1"), image);
        let oci = "oci:oci:localhost/small:1";
        copy(&at, &["--preserve-digests", oci, "dir:dir"]);
        copy(&at, &[oci, "docker-archive:docker.tar:localhost/small:1"]);
        copy(&at, &["--preserve-digests", oci, "oci-archive:oci.tar:localhost/small:1"]);
        fs_err::write(at.join("docker.tar.gz"), gzip(&fs_err::read(at.join("docker.tar")).unwrap())).unwrap();
        let server = registry(&at.join("oci"));
        let here = |name: &str| at.join(name).display().to_string();
        let small = format!("oci:{}:localhost/small:1", here("oci"));
        fs_err::write(at.join("list"), format!("# images\n{small}\n")).unwrap();
        let inputs = HashMap::from([
            ("{oci}", small),
            ("{large}", format!("oci:{}:localhost/large:1", here("large"))),
            ("{hello}", format!("oci:{REPOSITORY}/tests/images/hello:v1")),
            ("{dir}", format!("dir:{}=localhost/small:1", here("dir"))),
            ("{docker}", format!("docker-archive:{}", here("docker.tar"))),
            ("{gzip}", format!("docker-archive:{}", here("docker.tar.gz"))),
            ("{archive}", format!("oci-archive:{}", here("oci.tar"))),
            ("{registry}", format!("{}/small:1", server.host())),
            ("{list}", here("list")),
            ("{tar}", here("store.tar")),
            ("{tgz}", here("store.tar.gz")),
            ("{root}", here("root")),
        ]);
        let work = Self { _scratch: scratch, at, inputs, _server: server };
        work.begin(From::Nothing);
        work.succeeds("make -q --cache-dir cache -o out/images.tar {oci} {hello}");
        let store = work.at.join("store.tar");
        fs_err::rename(work.world().join("out/images.tar"), &store).unwrap();
        fs_err::rename(work.world().join("cache"), work.at.join("warm")).unwrap();
        fs_err::write(work.at.join("store.tar.gz"), gzip(&fs_err::read(&store).unwrap())).unwrap();
        fs_err::create_dir(work.at.join("root")).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-xf", "store.tar", "-C", "root", "--wildcards", "*/overlay-images/*", "*/overlay-layers/*"]);
        assert!(tar.current_dir(&work.at).status().unwrap().success());
        work
    }

    fn world(&self) -> PathBuf {
        self.at.join("world")
    }

    /// Makes what commands begin with afresh.
    fn begin(&self, from: From) {
        let world = self.world();
        let _ = fs_err::remove_dir_all(&world);
        for name in ["out", "tmp", "home"] {
            fs_err::create_dir_all(world.join(name)).unwrap();
        }
        match from {
            From::Nothing => {}
            From::Old => fs_err::write(world.join("out/images.tar"), "old").unwrap(),
            From::Warm => copy_tree(&self.at.join("warm"), &world.join("cache"), &mut HashMap::new()),
            From::Shared => {
                let kept = self.at.join("shared");
                // The large layer has less than may be written before its place in the tar is known. If a busy machine is late with
                // the place, its body has a file of its own, and the tar is not shared.
                for attempt in 0.. {
                    if kept.exists() {
                        break;
                    }
                    self.succeeds("make -q --cache-dir cache -o out/images.tar {large}");
                    if fs_err::metadata(world.join("out/images.tar")).unwrap().nlink() == 2 {
                        fs_err::rename(&world, &kept).unwrap();
                        break;
                    }
                    assert!(attempt < 30, "the tar is never shared");
                    self.begin(From::Nothing);
                }
                let _ = fs_err::remove_dir_all(&world);
                copy_tree(&kept, &world, &mut HashMap::new());
            }
        }
    }

    /// `prepull` with these words, in the place of `{…}` the inputs; `before` are the words in front, such as strace's.
    fn command(&self, before: &[&str], line: &str) -> Command {
        let inner = prepull(&self.world().join("home"));
        let mut words: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        words.push(inner.get_program().to_str().unwrap().to_owned());
        let mut stdin = Stdio::null();
        for word in line.split(' ') {
            match word.strip_prefix('<') {
                Some(input) => stdin = fs_err::File::open(&self.inputs[input]).unwrap().into_file().into(),
                None => words.push(self.inputs.get(word).cloned().unwrap_or_else(|| word.to_owned())),
            }
            if word == "make" && !line.contains("--help") {
                words.extend(
                    ["--platform", "linux/amd64", "--retry-times", "1", "--retry-delay", "0"].map(str::to_owned),
                );
            }
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.world()).stdin(stdin);
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // A panic would print it, and nothing else should.
        command.env("TMPDIR", self.world().join("tmp")).env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs a command to its end, or says that it has none. It is a process group of its own.
    fn run(&self, command: &mut Command) -> Ran {
        self.run_and(command, |_, _| {})
    }

    /// The same; calls `meanwhile` with the process and the time that has passed, again and again.
    fn run_and(&self, command: &mut Command, mut meanwhile: impl FnMut(Pid, Duration)) -> Ran {
        let (out, err) = (tempfile::tempfile_in(&self.at).unwrap(), tempfile::tempfile_in(&self.at).unwrap());
        command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let begun = Instant::now();
        let pid = Pid::from_child(&child);
        let mut is_hung = false;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            meanwhile(pid, begun.elapsed());
            if begun.elapsed() > Duration::from_secs(60) {
                is_hung = true;
                let _ = kill_process_group(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        Ran { status, stdout: content(out), stderr: String::from_utf8_lossy(&content(err)).into_owned(), is_hung }
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> Vec<u8> {
        let output = self.command(&[], line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        output.stdout
    }

    /// What a command gives where nothing is wrong.
    fn reference(&self, case: &Case) -> Reference {
        self.begin(case.from);
        let before = tree(&self.world().join("out"));
        let stdout = self.succeeds(case.line);
        Reference { stdout, before, out: tree(&self.world().join("out")) }
    }

    /// Judges what a command did, and what the next one makes of what it left. Gives what is wrong.
    fn judge(&self, case: &Case, reference: &Reference, may: May, ran: &Ran) -> Result<(), String> {
        self.looks_right(reference, may, ran)?;
        self.next(case, reference, may)
    }

    /// Judges what a command did.
    fn looks_right(&self, reference: &Reference, may: May, ran: &Ran) -> Result<(), String> {
        ended(may, ran)?;
        let out = tree(&self.world().join("out"));
        let is_temporary = |path: &&PathBuf| path.to_str().unwrap().contains(".prepull-");
        if ran.status.success() {
            if ran.stdout != reference.stdout {
                return Err(format!(
                    "{} bytes of standard output instead of {}",
                    ran.stdout.len(),
                    reference.stdout.len()
                ));
            }
            let good: Vec<_> = out.iter().filter(|(path, _)| may != May::Litter || !is_temporary(path)).collect();
            if good != reference.out.iter().collect::<Vec<_>>() {
                return Err(format!("wrong output: {:?}", sizes(&out)));
            }
        } else {
            if !reference.stdout.starts_with(&ran.stdout) {
                return Err("standard output is not the beginning of the right one".to_owned());
            }
            let odd = |(path, bytes): &(&PathBuf, &Vec<u8>)| {
                let is_right = [reference.before.get(*path), reference.out.get(*path)].contains(&Some(bytes));
                !(is_right || is_temporary(path) && matches!(may, May::Die | May::Litter | May::Crash))
            };
            if let Some((path, bytes)) = out.iter().find(odd) {
                return Err(format!("neither old nor new: {} has {} bytes", path.display(), bytes.len()));
            }
            if let Some(gone) = reference.before.keys().find(|path| !out.contains_key(*path)) {
                return Err(format!("{} is gone", gone.display()));
            }
        }
        if !matches!(may, May::Die | May::Litter | May::Crash) {
            self.no_rubbish()?;
        }
        Ok(())
    }

    /// Nothing but what belongs there is in the cache, and nothing at all in TMPDIR.
    fn no_rubbish(&self) -> Result<(), String> {
        let world = self.world();
        let mut odd: Vec<PathBuf> = files(&world.join("tmp"));
        odd.extend(files(&world.join("out")).into_iter().filter(|path| path.to_str().unwrap().contains(".prepull-")));
        odd.extend(files(&world.join("cache")).into_iter().filter(|path| {
            // What was seen of a tar is kept beside it.
            if path.extension().is_some_and(|end| end == "seen") && path.with_extension("").exists() {
                return false;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            ![16, 64].contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_hexdigit())
        }));
        if odd.is_empty() { Ok(()) } else { Err(format!("left behind: {odd:?}")) }
    }

    /// The next command on the same cache and output: it believes nothing that is wrong, and leaves nothing.
    fn next(&self, case: &Case, reference: &Reference, may: May) -> Result<(), String> {
        let world = self.world();
        if matches!(may, May::Die | May::Litter | May::Crash) {
            // What has been left lately may be another container's.
            for path in files(&world).into_iter().filter(|path| path.to_str().unwrap().contains(".prepull-")) {
                let file = fs_err::File::options().append(true).open(&path).unwrap().into_file();
                file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
            }
        }
        let is_make = case.line.starts_with("make -q");
        if is_make || !reference.out.is_empty() && case.from != From::Shared {
            let again = self.run(&mut self.command(&[], case.line));
            ended(May::Succeed, &again).map_err(|error| format!("the next run: {error}"))?;
            if again.stdout != reference.stdout {
                return Err(format!("the next run: {} bytes of standard output", again.stdout.len()));
            }
            let out = tree(&world.join("out"));
            let odd = |path: &&PathBuf| !reference.out.contains_key(*path) && may != May::Litter;
            if let Some((path, _)) = reference.out.iter().find(|(path, bytes)| out.get(*path) != Some(bytes)) {
                return Err(format!("the next run gives another {}", path.display()));
            }
            if let Some(path) = out.keys().find(odd) {
                return Err(format!("the next run leaves {}", path.display()));
            }
        } else if case.from != From::Nothing {
            let line = if case.from == From::Shared { "{large}" } else { "{oci}" };
            let line = format!("make -q --cache-dir cache -o tmp/next.tar {line}");
            let again = self.run(&mut self.command(&[], &line));
            let expected = self.at.join(format!("next-{}", case.from == From::Shared));
            let made = world.join("tmp/next.tar");
            if !again.status.success() {
                return Err(format!("the next make: {}", again.stderr));
            }
            if !expected.exists() {
                let plain =
                    format!("make -q --no-cache -o {} {}", expected.display(), line.rsplit(' ').next().unwrap());
                self.succeeds(&plain);
            }
            if fs_err::read(&made).unwrap() != fs_err::read(expected).unwrap() {
                return Err("the next make gives another tar".to_owned());
            }
            fs_err::remove_file(made).unwrap();
        }
        if matches!(may, May::Die | May::Litter | May::Crash) && world.join("cache").exists() {
            self.succeeds("cache prune -q --cache-dir cache");
        }
        match may {
            May::Litter | May::Crash => Ok(()),
            _ => self.no_rubbish().map_err(|error| format!("after the next run: {error}")),
        }
    }
}

/// How it ended, and what it said.
fn ended(may: May, ran: &Ran) -> Result<(), String> {
    let said = &ran.stderr;
    let fail = |text: &str| Err(format!("{text}: {:?}: {said}", ran.status));
    if ran.is_hung {
        return fail("hung");
    }
    if may == May::Crash {
        return Ok(());
    }
    if ["panicked", "unwrap", "backtrace", "stack overflow", "internal error"].iter().any(|word| said.contains(word)) {
        return fail("panic");
    }
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("prepull: warning: ")).collect();
    match (ran.status.code(), ran.status.signal()) {
        (Some(0), _) if lines.is_empty() => Ok(()),
        (Some(0), _) => fail("odd words"),
        (None, Some(9)) if may == May::Die => Ok(()),
        (None, Some(1 | 2 | 15)) if may == May::Stop && said.is_empty() => Ok(()),
        (Some(130), _) if may == May::Stop && lines == ["prepull: interrupted"] => Ok(()),
        (Some(1 | 2), _) if may == May::FailSilently => Ok(()),
        (Some(1 | 2), _) if matches!(may, May::Fail | May::Litter) => {
            // One line for each image that failed, and a total if these are several.
            let lines = match lines.split_last() {
                Some((last, images)) if images.len() > 1 && last.ends_with(" images failed") => images,
                _ if lines.len() == 1 => &lines[..],
                _ => return fail("not one line for each image"),
            };
            // What the system said is no message: what was being done belongs before it.
            let systems =
                ["No space", "Input/output", "Permission", "Disk quota", "Too many", "Interrupted", "Resource"];
            if lines.iter().any(|line| line.matches("(os error ").count() > 1) {
                return fail("said twice");
            }
            let is_message = |line: &&str| {
                let text = line.strip_prefix("prepull: ");
                text.is_some_and(|text| !systems.iter().any(|begin| text.starts_with(begin)))
            };
            if lines.iter().all(is_message) { Ok(()) } else { fail("no message") }
        }
        _ => fail("ended wrongly"),
    }
}

/// All of a file, from its beginning.
fn content(mut file: std::fs::File) -> Vec<u8> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let Ok(entries) = fs_err::read_dir(directory) else { return all };
    for entry in entries {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.push(entry.path());
        }
    }
    all.sort();
    all
}

fn tree(directory: &Path) -> Tree {
    let relative = |path: &Path| path.strip_prefix(directory).unwrap().to_owned();
    files(directory).into_iter().map(|path| (relative(&path), fs_err::read(&path).unwrap())).collect()
}

fn sizes(tree: &Tree) -> Vec<(&PathBuf, usize)> {
    tree.iter().map(|(path, bytes)| (path, bytes.len())).collect()
}

/// Copies with modes and times; what is one file under two names stays so.
fn copy_tree(from: &Path, to: &Path, linked: &mut HashMap<u64, PathBuf>) {
    let metadata = fs_err::metadata(from).unwrap();
    if metadata.is_dir() {
        fs_err::create_dir_all(to).unwrap();
        for entry in fs_err::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy_tree(&entry.path(), &to.join(entry.file_name()), linked);
        }
        fs_err::set_permissions(to, std::fs::Permissions::from_mode(metadata.mode() & 0o7777)).unwrap();
    } else if let Some(other) = linked.get(&metadata.ino()) {
        fs_err::hard_link(other, to).unwrap();
    } else {
        fs_err::copy(from, to).unwrap();
        let file = fs_err::File::options().append(true).open(to).unwrap().into_file();
        file.set_modified(metadata.modified().unwrap()).unwrap();
        linked.insert(metadata.ino(), to.to_owned());
    }
}

/// A registry with the image `small:1` of this layout.
fn registry(layout: &Path) -> FaultServer {
    let read = |digest: &str| fs_err::read(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap()));
    let index: serde_json::Value = serde_json::from_slice(&fs_err::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][0]["digest"].as_str().unwrap()).unwrap();
    let blobs = layout.join("blobs/sha256");
    FaultServer::start(move |seen, _| {
        if seen.path == "/v2/" {
            return Reply::new(200, "");
        }
        if seen.path.starts_with("/v2/small/manifests/") {
            let media_type = prepull::media_type::OCI_MANIFEST;
            return Reply::new(200, manifest.clone()).header("Content-Type", media_type);
        }
        match fs_err::read(blobs.join(seen.path.rsplit(':').next().unwrap())) {
            Ok(blob) => Reply::blob(&blob, seen),
            Err(_) => Reply::new(404, ""),
        }
    })
}

/// Prints how many cases were tried: the figures in docs/figures.md are these.
pub fn figures(text: &str) {
    let line = format!("faults: {text}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os("PREPULL_FIGURES") {
        let mut file = fs_err::OpenOptions::new().append(true).create(true).open(PathBuf::from(path)).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// Fails with the first of what is wrong.
#[track_caller]
pub fn all_right(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
