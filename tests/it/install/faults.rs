//! Killed at every call and at any time, with every call failing, and without room: the store is the old or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use prepull::entry::{Entry, Kind, Meta};
use prepull::helper::{REQUEST, VERSION};
use prepull::wire::{END, small_file};
use serde_json::Value;

use super::{World, full, hex_names, ok};
use crate::command::{needs_root, prepull, stderr};
use crate::faults::{Random, all_right, figures, is_all, noise};
use crate::raw::{archive, dir, file, link, sym};
use crate::stores::GRAPHROOT;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Install,
    Remove,
    Collect,
}

/// Who does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    /// prepull, as root.
    Own,
    /// The helper, confined as it always is.
    Helper,
}

const ALL: [(What, Who); 6] = [
    (What::Install, Who::Own),
    (What::Install, Who::Helper),
    (What::Remove, Who::Own),
    (What::Remove, Who::Helper),
    (What::Collect, Who::Own),
    (What::Collect, Who::Helper),
];

/// A store, something that is done to it, and what it is before and after.
struct Bench {
    world: World,
    what: What,
    who: Who,
    template: PathBuf,
    arguments: Vec<String>,
    /// What the helper reads.
    stream: PathBuf,
    before: Vec<String>,
    after: Vec<String>,
}

impl Bench {
    fn new(what: What, who: Who) -> Self {
        let mut world = World::new();
        world.lets_root_write("");
        let low = vec![
            archive(&[dir("etc/"), file("etc/one").data("1"), file("name").data("old\n")]),
            archive(&[file("etc/two").owner(3, 4).data("2")]),
        ];
        let mut high = low.clone();
        high.push(archive(&[
            dir("./"),
            dir("d/").owner(5, 6).mode(0o2755),
            file("d/f").data(noise(7, 300_000)).xattr("user.x", "1").mode(0o4755),
            link("d/hard", "d/f"),
            sym("d/soft", "f"),
            file("name").data("new\n"),
        ]));
        let old = world.image("old", &low);
        let new = world.image("new", &high);
        let lone = world.image("lone", &[archive(&[file("lone").data("l"), dir("x/y/z/")])]);
        world.skopeo(&old, &full("old"));
        world.podman(&["tag", &full("old"), "localhost/moves:1"]);
        if what != What::Install {
            world.installs(&[&new, &lone]);
        }
        if what == What::Collect {
            let graph = world.graph();
            for (path, id) in [("overlay", "a"), ("overlay-images", "b")] {
                let path = graph.join(path).join(id.repeat(64)).join("diff");
                fs_err::create_dir_all(&path).unwrap();
                fs_err::write(path.join("x"), "x").unwrap();
            }
            std::os::unix::fs::symlink(format!("../{}/diff", "c".repeat(64)), graph.join("overlay/l/DANGLES")).unwrap();
            fs_err::write(graph.join(format!("overlay-layers/{}.tar-split.gz", "d".repeat(64))), "").unwrap();
            fs_err::create_dir_all(graph.join(".prepull-staging-0/a/b")).unwrap();
            let mode = std::fs::Permissions::from_mode(0o700);
            fs_err::set_permissions(graph.join(".prepull-staging-0"), mode).unwrap();
        }
        let template = world.at.join("template");
        ok(Command::new("cp").arg("-a").arg(world.graph()).arg(&template));
        let arguments = match what {
            What::Install => vec![format!("{new}=localhost/moves:1"), lone],
            What::Remove => vec![full("new"), full("lone")],
            What::Collect => Vec::new(),
        };
        let stream = world.at.join("stream");
        let mut bench = Self { world, what, who, template, arguments, stream, before: vec![], after: vec![] };
        bench.before = bench.records();
        if who == Who::Helper {
            bench.record();
        } else {
            let output = bench.run(&[]);
            assert!(output.status.success(), "{what:?} {who:?}: {}", stderr(&output));
        }
        bench.after = bench.records();
        assert_eq!(bench.before == bench.after, what == What::Collect);
        bench
    }

    fn verb(&self) -> &'static str {
        match self.what {
            What::Install => "install",
            What::Remove => "rm",
            What::Collect => "gc",
        }
    }

    fn records(&self) -> Vec<String> {
        let mut all = self.world.records();
        all.sort();
        all
    }

    /// The store as it was. The root directory stays, since the stream names it.
    fn begin(&self) {
        let graph = self.world.graph();
        fs_err::remove_dir_all(&graph).unwrap();
        ok(Command::new("cp").arg("-a").arg(&self.template).arg(&graph));
    }

    /// Keeps what prepull sends to the helper.
    fn record(&self) {
        let wrapper = self.world.at.join("wrapper");
        let script = format!(
            "#!/bin/sh\ntee \"{0}.$$\" | \"{1}\" \"$@\"\ncode=$?\n\
             grep -q '^request sweep' \"{0}.$$\" || mv \"{0}.$$\" \"{0}\"\nexit $code\n",
            self.stream.display(),
            self.world.helper().display()
        );
        fs_err::write(&wrapper, script).unwrap();
        ok(Command::new("chmod").arg("755").arg(&wrapper));
        ok(&mut self.by_helper(&wrapper));
    }

    fn by_helper(&self, helper: &Path) -> Command {
        let inner = self.world.prepull(self.verb());
        let mut command = self.world.as_root();
        command.arg(inner.get_program()).args(inner.get_args()).args(&self.arguments);
        command.args(["--via", "sudo", "--helper"]).arg(helper);
        self.world.directly(&mut command);
        command
    }

    fn command(&self, before: &[&str]) -> Command {
        let mut command;
        match self.who {
            Who::Own => {
                let inner = self.world.prepull(self.verb());
                command = Command::new("timeout");
                command.args(["-s", "KILL", "60"]).args(before);
                command.arg(inner.get_program()).args(inner.get_args()).args(&self.arguments);
                command.env("HOME", self.world.at.join("home")).env("SOURCE_DATE_EPOCH", "1234567890");
                command.stdin(Stdio::null());
            }
            Who::Helper => {
                command = self.world.as_root();
                command.args(["timeout", "-s", "KILL", "60"]).args(before).arg(self.world.helper()).arg("stdio");
                command.current_dir(self.world.root());
                command.stdin(fs_err::File::open(&self.stream).unwrap().into_file());
            }
        }
        command
    }

    fn run(&self, before: &[&str]) -> Output {
        self.command(before).output().unwrap()
    }

    /// Asks the helper to remove what is left in staging.
    fn sweep(&self) {
        let found = rustix::fs::stat(self.world.root()).unwrap();
        let (device, inode) = (found.st_dev, found.st_ino);
        let lines = format!("prepull {VERSION}\nrequest sweep\ngraphroot /{GRAPHROOT}\nroot {device}:{inode}\n");
        let kind = Kind::Regular { size: lines.len() as u64 };
        let mut stream = Vec::new();
        let entry = Entry { path: REQUEST.to_vec(), meta: Meta::default(), kind };
        small_file(&mut stream, &entry, lines.as_bytes());
        stream.extend_from_slice(&END);
        let path = self.world.at.join("stream-sweep");
        fs_err::write(&path, stream).unwrap();
        let mut command = self.command(&[]);
        ok(command.stdin(fs_err::File::open(&path).unwrap().into_file()));
    }

    /// What is wrong with the store, however it ended.
    fn judge(&self, is_thorough: bool) -> Result<(), String> {
        let records = self.records();
        if records != self.before && records != self.after {
            return Err(format!("neither old nor new: {records:?}"));
        }
        self.images_are_whole(&records)?;
        if is_thorough {
            let listed = self.world.try_podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
            let names = String::from_utf8_lossy(&listed.stdout).into_owned();
            if !listed.status.success() || !names.lines().any(|name| name == full("old")) {
                return Err(format!("podman lists {names:?}: {}", stderr(&listed)));
            }
            if self.world.reads(&full("old"), "name") != "old\n" {
                return Err("podman mounts another old image".to_owned());
            }
        }
        // The same again.
        let again = self.run(&[]);
        // prepull does so by itself.
        if self.who == Who::Helper && String::from_utf8_lossy(&again.stdout).contains("\"left\":true") {
            self.sweep();
        }
        let is_gone = self.what == What::Remove;
        let said = stderr(&again) + &String::from_utf8_lossy(&again.stdout);
        if !(again.status.success() || is_gone && said.contains("no such image")) {
            return Err(format!("the next run: {said}"));
        }
        if self.records() != self.after {
            return Err("the next run makes another store".to_owned());
        }
        self.images_are_whole(&self.after)?;
        let graph = self.world.graph();
        let left = fs_err::read_dir(&graph).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = left.filter(|name| name.starts_with(".prepull-")).collect();
        if !left.is_empty() {
            return Err(format!("the next run leaves {left:?}"));
        }
        if is_thorough || self.what == What::Collect {
            ok(&mut self.world.prepull("gc"));
            let layers: BTreeSet<String> = self.layer_records().into_keys().collect();
            let there: BTreeSet<String> = hex_names(&graph.join("overlay")).into_iter().collect();
            if layers != there {
                return Err(format!("gc leaves {:?}", there.symmetric_difference(&layers).collect::<Vec<_>>()));
            }
            let output = prepull(&self.world.at.join("home")).arg("verify").arg(self.world.root()).output().unwrap();
            if !output.status.success() {
                return Err(format!("verify: {}", String::from_utf8_lossy(&output.stdout)));
            }
        }
        Ok(())
    }

    /// The layers that are recorded, and their parents.
    fn layer_records(&self) -> BTreeMap<String, String> {
        let text = fs_err::read(self.world.graph().join("overlay-layers/layers.json")).unwrap();
        let layers: Value = serde_json::from_slice(&text).unwrap();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let layers = layers.as_array().unwrap().iter();
        layers.map(|layer| (text(layer.get("id")), text(layer.get("parent")))).collect()
    }

    /// Every layer of every image is recorded, and there.
    fn images_are_whole(&self, records: &[String]) -> Result<(), String> {
        let graph = self.world.graph();
        let layers = self.layer_records();
        for record in records {
            let record: Value = serde_json::from_str(record).unwrap();
            let mut at = record["layer"].as_str().unwrap_or_default().to_owned();
            while !at.is_empty() {
                let directory = graph.join("overlay").join(&at);
                let link = fs_err::read_to_string(directory.join("link")).map_err(|error| error.to_string())?;
                let target =
                    fs_err::read_link(graph.join("overlay/l").join(link)).map_err(|error| error.to_string())?;
                let split = graph.join(format!("overlay-layers/{at}.tar-split.gz"));
                if target.as_os_str() != format!("../{at}/diff").as_str()
                    || !directory.join("diff").is_dir()
                    || !split.exists()
                {
                    return Err(format!("layer {at} is not whole"));
                }
                at = layers.get(&at).ok_or_else(|| format!("layer {at} has no record"))?.clone();
            }
            let files = graph.join("overlay-images").join(record["id"].as_str().unwrap());
            if fs_err::read_dir(&files).map_or(0, Iterator::count) < 3 {
                return Err(format!("{} lacks files", files.display()));
            }
        }
        Ok(())
    }

    /// The calls that it makes, and how many one thread makes of each.
    fn calls(&self) -> BTreeMap<String, usize> {
        self.begin();
        let log = self.world.at.join("log");
        let output = self.run(&["strace", "-f", "-qq", "-o", log.to_str().unwrap()]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in String::from_utf8_lossy(&fs_err::read(&log).unwrap()).lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
            if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                *counts.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
            }
        }
        let mut most = BTreeMap::new();
        for ((name, _), count) in counts {
            let entry = most.entry(name).or_insert(0);
            *entry = count.max(*entry);
        }
        most
    }

    /// strace that does `inject` to the Nth call of this name.
    fn injected(&self, call: &str, inject: &str, number: usize) -> Output {
        self.begin();
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{inject}:when={number}"));
        self.run(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject])
    }
}

/// Of every call some, or all.
fn chosen<T>(mut all: Vec<T>, most: usize, seed: u64) -> Vec<T> {
    if !is_all() {
        Random(seed).shuffle(&mut all);
        all.truncate(most);
    }
    all
}

/// How much of all is looked at with podman.
const THOROUGH: usize = 10;

/// So many of one call are tried.
const MOST_OF_CALL: usize = 300;

/// Kills `what` by `who` at every call.
fn kills(what: What, who: Who) {
    let mut wrong = Vec::new();
    let bench = Bench::new(what, who);
    let all = bench.calls();
    // The helper closes every descriptor that there may be before it begins: the last of so many say all.
    let last = |count: usize| count.saturating_sub(MOST_OF_CALL) + 1..=count;
    let all = all.into_iter().flat_map(|(name, count)| last(count).map(move |number| (name.clone(), number)));
    let all: Vec<_> = all.collect();
    let planned = all.len();
    let (mut tried, mut killed, mut new) = (0, 0, 0);
    for (call, number) in chosen(all, 20, 5) {
        let output = bench.injected(&call, "signal=SIGKILL", number);
        tried += 1;
        killed += usize::from(!output.status.success());
        new += usize::from(bench.records() == bench.after);
        if let Err(error) = bench.judge(tried % THOROUGH == 0) {
            let text = format!("{what:?} by {who:?}, {call} {number}: {error}");
            eprintln!("{text}");
            wrong.push(text);
        }
    }
    figures(&format!(
        "install: kill -9 at every call, {} by {who:?}: {tried} of {planned} tried, {killed} killed, {new} had the new store",
        bench.verb()
    ));
    all_right(&wrong);
    assert!(killed * 2 > tried, "{killed} of {tried}");
}

#[test]
fn killed_at_every_call_of_install_by_root() {
    if needs_root("install::faults::killed_at_every_call_of_install_by_root") {
        kills(What::Install, Who::Own);
    }
}

#[test]
fn killed_at_every_call_of_install_by_the_helper() {
    if needs_root("install::faults::killed_at_every_call_of_install_by_the_helper") {
        kills(What::Install, Who::Helper);
    }
}

#[test]
fn killed_at_every_call_of_rm_by_root() {
    if needs_root("install::faults::killed_at_every_call_of_rm_by_root") {
        kills(What::Remove, Who::Own);
    }
}

#[test]
fn killed_at_every_call_of_rm_by_the_helper() {
    if needs_root("install::faults::killed_at_every_call_of_rm_by_the_helper") {
        kills(What::Remove, Who::Helper);
    }
}

#[test]
fn killed_at_every_call_of_gc_by_root() {
    if needs_root("install::faults::killed_at_every_call_of_gc_by_root") {
        kills(What::Collect, Who::Own);
    }
}

#[test]
fn killed_at_every_call_of_gc_by_the_helper() {
    if needs_root("install::faults::killed_at_every_call_of_gc_by_the_helper") {
        kills(What::Collect, Who::Helper);
    }
}

#[test]
fn every_call_fails_of_install_by_root() {
    if needs_root("install::faults::every_call_fails_of_install_by_root") {
        failures(What::Install, Who::Own);
    }
}

#[test]
fn every_call_fails_of_install_by_the_helper() {
    if needs_root("install::faults::every_call_fails_of_install_by_the_helper") {
        failures(What::Install, Who::Helper);
    }
}

#[test]
fn every_call_fails_of_rm_by_root() {
    if needs_root("install::faults::every_call_fails_of_rm_by_root") {
        failures(What::Remove, Who::Own);
    }
}

#[test]
fn every_call_fails_of_rm_by_the_helper() {
    if needs_root("install::faults::every_call_fails_of_rm_by_the_helper") {
        failures(What::Remove, Who::Helper);
    }
}

#[test]
fn every_call_fails_of_gc_by_root() {
    if needs_root("install::faults::every_call_fails_of_gc_by_root") {
        failures(What::Collect, Who::Own);
    }
}

#[test]
fn every_call_fails_of_gc_by_the_helper() {
    if needs_root("install::faults::every_call_fails_of_gc_by_the_helper") {
        failures(What::Collect, Who::Helper);
    }
}

#[test]
fn killed_at_any_time() {
    if !needs_root("install::faults::killed_at_any_time") {
        return;
    }
    let mut random = Random(23);
    let mut wrong = Vec::new();
    let (mut tried, mut killed) = (0, 0);
    for (what, who) in ALL {
        let bench = Bench::new(what, who);
        bench.begin();
        let begun = Instant::now();
        assert!(bench.run(&[]).status.success());
        let usual = begun.elapsed();
        for _ in 0..if is_all() { 150 } else { 8 } {
            bench.begin();
            let mut command = bench.command(&["setpriv", "--pdeathsig", "KILL"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(usual.mul_f64(random.below(1000) as f64 / 1000.0));
            // Who was started dies with `timeout`, and that with its parent.
            child.kill().unwrap();
            let status = child.wait().unwrap();
            // All under it have this pipe: it ends when the last of them is dead, and their locks are free a moment later.
            child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            tried += 1;
            killed += usize::from(!status.success());
            if let Err(error) = bench.judge(tried % THOROUGH == 0) {
                wrong.push(format!("{what:?} by {who:?}, after some time: {error}"));
            }
        }
    }
    figures(&format!("install: kill -9 at random times: {tried} runs of install, rm, gc, {killed} killed"));
    all_right(&wrong);
    assert!(killed > tried / 4, "{killed} of {tried}");
}

/// What fails.
const CALLS: &[&str] = &[
    "write",
    "pwrite64",
    "fsync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "fchownat",
    "fchmod",
    "fchmodat",
    "mkdirat",
    "symlinkat",
    "linkat",
    "openat2",
    "fsetxattr",
    "utimensat",
];

/// Has every call of `what` by `who` fail.
fn failures(what: What, who: Who) {
    let mut wrong = Vec::new();
    let bench = Bench::new(what, who);
    let counts = bench.calls();
    let mut all = Vec::new();
    for &call in CALLS {
        for number in 1..=counts.get(call).copied().unwrap_or(0) {
            all.extend(["ENOSPC", "EIO", "EDQUOT"].map(|error| (call, number, error)));
        }
    }
    let planned = all.len();
    let (mut tried, mut refused) = (0, 0);
    for (call, number, error) in chosen(all, 20, 9) {
        let output = bench.injected(call, &format!("error={error}"), number);
        tried += 1;
        let mut say = |text: String| wrong.push(format!("{what:?} by {who:?}, {call} {number} {error}: {text}"));
        let (said, out) = (stderr(&output), String::from_utf8_lossy(&output.stdout).into_owned());
        let is_mute = call == "write";
        if output.status.success() {
            if bench.records() != bench.after {
                say(format!("said it had done it: {said}{out}"));
            }
        } else {
            refused += 1;
            let is_one_line = match who {
                Who::Own => said.lines().count() == 1 && said.starts_with("prepull: "),
                // What could not be written is written once more at the exit: then it is all the answer there is.
                Who::Helper => {
                    let answer: Option<Value> = serde_json::from_str(&out).ok();
                    answer.is_some_and(|answer| {
                        is_mute || answer["error"].as_str().is_some_and(|error| !error.is_empty())
                    })
                }
            };
            if output.status.code() != Some(1) || !(is_one_line || is_mute && said.is_empty() && out.is_empty()) {
                say(format!("{}: {said}{out}", output.status));
            }
        }
        if let Err(error) = bench.judge(tried % THOROUGH == 0) {
            say(error);
        }
    }
    figures(&format!(
        "install: calls that fail, {} by {who:?}: {tried} of {planned} tried, {refused} ended it",
        bench.verb()
    ));
    all_right(&wrong);
}

#[test]
fn no_room() {
    if !needs_root("install::faults::no_room") {
        return;
    }
    let bench = Bench::new(What::Install, Who::Own);
    let sizes: Vec<usize> = (260..=800).step_by(if is_all() { 4 } else { 36 }).collect();
    let (mut full_ones, mut wrong) = (0, Vec::new());
    for &size in &sizes {
        let script = r#"template=$1 graph=$2 out=$3 size=$4; shift 4
            mount -t tmpfs -o "size=${size}k" tmpfs "$(dirname "$graph")" && cp -a "$template" "$graph" || exit 77
            "$@" 2>"$out.said"; code=$?
            cp "$graph/overlay-images/images.json" "$out.images"; ls -A "$graph" >"$out.names"
            mount -o remount,size=64m "$(dirname "$graph")" && "$@" || exit 78
            cp "$graph/overlay-images/images.json" "$out.again"; ls -A "$graph" >>"$out.names"
            exit $code"#;
        let inner = bench.world.prepull("install");
        let out = bench.world.at.join("out");
        let mut command = crate::stores::in_own_mounts("sh");
        command
            .args(["-c", script, "sh"])
            .arg(&bench.template)
            .arg(bench.world.graph())
            .arg(&out)
            .arg(size.to_string());
        command.arg(inner.get_program()).args(inner.get_args()).args(&bench.arguments);
        command.env("HOME", bench.world.at.join("home")).env("SOURCE_DATE_EPOCH", "1234567890");
        let output = command.output().unwrap();
        let code = output.status.code();
        if code == Some(77) {
            continue;
        }
        let read = |name: &str| fs_err::read_to_string(out.with_extension(name)).unwrap_or_default();
        let records = |name: &str| {
            let all: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(&read(name)).unwrap();
            let mut all: Vec<String> = all.iter().map(|record| record.get().to_owned()).collect();
            all.sort();
            all
        };
        let said = read("said");
        let is_right = match code {
            Some(0) => records("images") == bench.after,
            Some(1) => records("images") == bench.before && said.lines().count() == 1 && said.contains("No space left"),
            _ => false,
        };
        full_ones += usize::from(code == Some(1));
        if !is_right || records("again") != bench.after || read("names").contains(".prepull-") {
            wrong.push(format!("{size} KiB: {code:?} {said} {}", stderr(&output)));
        }
    }
    figures(&format!("install: small file systems: {} sizes, {full_ones} too small", sizes.len()));
    all_right(&wrong);
    assert!(full_ones > sizes.len() / 8, "{full_ones}");
}

/// A helper that hears of it first: nobody is told that a helper has died.
#[test]
fn a_helper_that_ctrl_c_has_ended() {
    if !needs_root("install::faults::a_helper_that_ctrl_c_has_ended") {
        return;
    }
    let bench = Bench::new(What::Install, Who::Helper);
    let helper = bench.world.at.join("wrapper");
    fs_err::write(&helper, "#!/bin/sh\nkill -INT $PPID\nkill -INT $$\n").unwrap();
    ok(Command::new("chmod").arg("755").arg(&helper));
    for _ in 0..10 {
        bench.begin();
        let output = bench.by_helper(&helper).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(130), "prepull: interrupted\n".into()));
    }
}

/// Ctrl-C: all processes of the terminal get the signal, and what is not published is gone.
#[test]
fn told_to_stop() {
    if !needs_root("install::faults::told_to_stop") {
        return;
    }
    let mut random = Random(29);
    let (mut stopped, mut tried, mut wrong) = (0, 0, Vec::new());
    for who in [Who::Own, Who::Helper] {
        let bench = Bench::new(What::Install, who);
        let inner = bench.world.prepull("install");
        let command = || {
            if who == Who::Helper {
                return bench.by_helper(&bench.world.helper());
            }
            let mut command = bench.world.as_root();
            command.arg(inner.get_program()).args(inner.get_args()).args(&bench.arguments);
            command
        };
        bench.begin();
        let begun = Instant::now();
        ok(&mut command());
        let usual = begun.elapsed();
        for _ in 0..if is_all() { 100 } else { 12 } {
            bench.begin();
            let mut child = command().process_group(0).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(usual.mul_f64(random.below(1000) as f64 / 1000.0));
            let group = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::INT);
            let status = child.wait().unwrap();
            tried += 1;
            stopped += usize::from(status.code() == Some(130));
            let left = || {
                let names = fs_err::read_dir(bench.world.graph()).unwrap().map(|entry| entry.unwrap().file_name());
                names.filter(|name| name.as_bytes().starts_with(b".prepull-")).collect::<Vec<_>>()
            };
            // The helper hears of it by the end of its stream.
            let begun = Instant::now();
            while who == Who::Helper && !left().is_empty() && begun.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let left = left();
            // The shell before it has no way to go on.
            let is_right = matches!(status.code(), Some(0 | 130)) || status.signal() == Some(2);
            // Once it has given its capabilities up it leaves what is others' to the next run, which `judge` makes.
            if !is_right || who == Who::Own && !left.is_empty() {
                wrong.push(format!("{who:?}: {status} {left:?}"));
            }
            if let Err(error) = bench.judge(tried % THOROUGH == 0) {
                wrong.push(format!("{who:?}: {error}"));
            }
        }
    }
    figures(&format!("install: told to stop at random times: {tried} runs, {stopped} stopped"));
    all_right(&wrong);
    assert!(stopped > tried / 6, "{stopped} of {tried}");
}

#[test]
fn files_may_not_be_large() {
    if !needs_root("install::faults::files_may_not_be_large") {
        return;
    }
    for who in [Who::Own, Who::Helper] {
        let bench = Bench::new(What::Install, who);
        for kilobytes in ["1", "100"] {
            bench.begin();
            let script = r#"trap '' XFSZ; ulimit -f "$1"; shift; exec "$@""#;
            let output = bench.run(&["bash", "-c", script, "bash", kilobytes]);
            let said = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
            // The helper lifts the limit where it may.
            if who == Who::Own || !output.status.success() {
                assert_eq!(output.status.code(), Some(1), "{who:?} {kilobytes}: {said}");
                assert!(said.lines().count() == 1 && said.contains("File too large"), "{who:?} {kilobytes}: {said}");
                assert_eq!(bench.records(), bench.before);
            }
            bench.judge(true).unwrap();
        }
    }
}
