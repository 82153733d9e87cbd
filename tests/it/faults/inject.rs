//! Calls of the system that fail, one by one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::trace::Calls;
use super::{Case, From, May, Random, TABLE, Work, all_right, figures, is_all};
use crate::command::needs_root;

/// What is done to a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// It fails so, once.
    Once(&'static str),
    /// It fails so from then on, as on a disk that is full.
    On(&'static str),
    /// It is to be made again.
    Again,
    /// The process is killed, or told to stop.
    Signal(&'static str),
    /// It says that there is no memory.
    NoMemory,
}
use Act::{Again, NoMemory, On, Once, Signal};

/// What happens to which calls.
const FAULTS: &[(&[&str], &[Act])] = &[
    (
        &["write", "pwrite64", "writev"],
        &[
            Once("ENOSPC"),
            On("ENOSPC"),
            Once("EIO"),
            On("EDQUOT"),
            Again,
            Signal("KILL"),
            Signal("INT"),
            Signal("TERM"),
            Signal("HUP"),
        ],
    ),
    (&["read", "pread64"], &[Once("EIO"), Again, Signal("KILL"), Signal("TERM")]),
    (&["recvfrom"], &[Once("ECONNRESET"), Again, Signal("KILL"), Signal("TERM")]),
    (&["copy_file_range", "sendfile", "splice"], &[Once("EIO"), On("ENOSPC"), Signal("KILL")]),
    (&["openat"], &[Once("EACCES"), Once("EIO"), Once("EMFILE"), On("ENOSPC"), Again, Signal("KILL"), Signal("INT")]),
    (&["linkat", "link"], &[Once("ENOSPC"), Once("EIO"), On("EPERM"), Signal("KILL"), Signal("INT")]),
    (
        &["rename", "renameat", "renameat2"],
        &[Once("ENOSPC"), Once("EIO"), On("EACCES"), Signal("KILL"), Signal("INT"), Signal("HUP")],
    ),
    (&["ftruncate", "fallocate"], &[Once("ENOSPC"), Once("EIO"), Again, Signal("KILL")]),
    (&["mkdir"], &[Once("ENOSPC"), On("EACCES"), Signal("KILL"), Signal("INT")]),
    (&["unlink", "unlinkat"], &[Once("EIO"), On("EACCES"), Signal("KILL"), Signal("TERM")]),
    (
        &["statx", "newfstatat", "fstat", "fstatfs", "getdents64", "lseek"],
        &[Once("EIO"), Once("EACCES"), Signal("KILL")],
    ),
    (&["readlink", "getcwd"], &[Once("EACCES")]),
    (&["flock"], &[Once("EAGAIN"), Once("ENOLCK"), Signal("KILL")]),
    (&["fchmod", "utimensat"], &[Once("EPERM"), Signal("KILL")]),
    (&["fcntl", "socketpair", "socket"], &[Once("EMFILE")]),
    (&["connect"], &[Once("ECONNREFUSED"), On("ECONNREFUSED"), Once("ETIMEDOUT"), On("ENETUNREACH"), Signal("INT")]),
    (&["sendto"], &[Once("EPIPE"), Once("ECONNRESET"), Again, Signal("KILL")]),
    (&["clone3"], &[Once("EAGAIN"), On("EAGAIN"), Signal("KILL"), Signal("INT")]),
    (&["mmap", "brk"], &[NoMemory]),
];

/// One thing that goes wrong.
struct Fault {
    call: String,
    act: Act,
    number: usize,
    /// Only calls on this file count.
    on: Option<PathBuf>,
}

impl Fault {
    /// strace's words.
    fn inject(&self) -> String {
        let (number, call) = (self.number, &self.call);
        match self.act {
            Once(error) => format!("inject={call}:error={error}:when={number}"),
            On(error) => format!("inject={call}:error={error}:when={number}+"),
            Again => format!("inject={call}:error=EINTR:when={number}"),
            Signal(signal) => format!("inject={call}:signal=SIG{signal}:when={number}"),
            NoMemory => format!("inject={call}:error=ENOMEM:when={number}+"),
        }
    }

    /// Whether it came to it: threads do not always do the same.
    fn was_met(&self, log: &str) -> bool {
        match self.act {
            Signal("KILL") => log.contains("killed by SIGKILL"),
            Signal(signal) => log.contains(&format!("SIG{signal} {{")),
            _ => log.contains("(INJECTED"),
        }
    }

    fn may(&self, log: &str) -> May {
        match self.act {
            // The standard library's opendir is not called again.
            Again if log.lines().any(|line| line.contains("O_DIRECTORY") && line.contains("INJECTED")) => May::Fail,
            Again => May::Succeed,
            Signal("KILL") => May::Die,
            Signal(_) => May::Stop,
            NoMemory => May::Crash,
            _ if self.call.starts_with("unlink") => May::Litter,
            _ if log.lines().any(|line| line.contains(" write(2") && line.contains("INJECTED")) => May::FailSilently,
            _ => May::Fail,
        }
    }
}

/// All that can go wrong in a run with these calls.
fn faults(calls: &Calls) -> BTreeMap<String, Vec<Fault>> {
    let mut all: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
    for (names, acts) in FAULTS {
        for &name in *names {
            let list = all.entry(name.to_owned()).or_default();
            let (before, most) = calls.counts.get(name).copied().unwrap_or_default();
            // The first two are those of the thread that waits for signals, on a pipe of its own: that does not break.
            let before = if name == "recvfrom" { 2 } else { before };
            let mut add = |number, on: Option<&PathBuf>| {
                list.extend(acts.iter().map(|&act| Fault { call: name.to_owned(), act, number, on: on.cloned() }));
            };
            (before + 1..=most).for_each(|number| add(number, None));
            if before > 0 && most > 0 {
                let on = calls.on.iter().filter(|((call, _), _)| call == name);
                on.for_each(|((_, path), &most)| (1..=most).for_each(|number| add(number, Some(path))));
            }
        }
    }
    all.retain(|_, faults| !faults.is_empty());
    all
}

/// So many of one call in one command say all, also where a large file is written in hundreds of pieces.
const MOST_OF_CALL: usize = 300;

/// At most `most` of them, of every call some, always the same.
fn sample(all: BTreeMap<String, Vec<Fault>>, most: usize, seed: u64) -> Vec<Fault> {
    let mut random = Random(seed);
    let mut lists: Vec<Vec<Fault>> = all.into_values().collect();
    lists.iter_mut().for_each(|list| random.shuffle(list));
    if is_all() {
        lists.iter_mut().for_each(|list| list.truncate(MOST_OF_CALL));
        return lists.into_iter().flatten().collect();
    }
    random.shuffle(&mut lists);
    let mut chosen = Vec::new();
    while chosen.len() < most && lists.iter().any(|list| !list.is_empty()) {
        chosen.extend(lists.iter_mut().filter_map(Vec::pop));
    }
    chosen.truncate(most);
    chosen
}

/// What was tried.
#[derive(Default)]
struct Tally {
    commands: usize,
    met: usize,
    not_met: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn end(self, what: &str) {
        let Self { commands, met, not_met, .. } = self;
        figures(&format!("{what}: {commands} commands, {met} injections, {not_met} more that did not come to it"));
        all_right(&self.wrong);
        assert!(met > not_met, "most of what was planned is to happen");
    }
}

/// `strace` with these words; what it sees goes to `log`.
fn strace<'a>(log: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    let mut before = vec!["strace", "-f", "-qq", "-o", log];
    before.extend(words);
    before
}

/// The wall for the commands that are chosen; `most` injections each, unless all are wanted. `before` comes before strace.
fn wall(work: &Work, before: &[&str], most: usize, tally: &mut Tally, chosen: impl Fn(&Case) -> bool) {
    let log_path = work.at.join("log").display().to_string();
    for case in TABLE.iter().filter(|case| chosen(case)) {
        let reference = work.reference(case);
        work.begin(case.from);
        let ran = work.run(&mut work.command(&[before, &strace(&log_path, &["-y"])].concat(), case.line));
        assert!(ran.status.success(), "{}: {}", case.name, ran.stderr);
        // Files that it has replaced have their names still.
        let calls = Calls::read(&String::from_utf8_lossy(&fs_err::read(&log_path).unwrap()), &work.world());
        tally.commands += 1;
        let mut all = faults(&calls);
        if case.line.contains("prune") {
            // Then a tar is in use, and is rightly left.
            all.remove("flock");
        }
        for fault in sample(all, most, 0x9e37_79b9 + case.name.len() as u64) {
            let (inject, trace) = (fault.inject(), format!("trace={}", fault.call));
            let on = fault.on.as_ref().map(|path| path.display().to_string());
            // With it strace is faster, and sends no signals.
            let filter = (!matches!(fault.act, Signal(_))).then_some("--seccomp-bpf");
            let mut words = Vec::from_iter(filter);
            words.extend(["-e", &trace, "-e", &inject]);
            words.extend(on.iter().flat_map(|path| ["-P", path]));
            trial(work, case, &reference, &log_path, before, &words, tally, |log| {
                fault.was_met(log).then(|| fault.may(log))
            });
        }
    }
}

/// One run; `met` says how it may end, if it came to what was planned.
#[allow(clippy::too_many_arguments, reason = "each is another thing, and there is one kind of caller")]
fn trial(
    work: &Work,
    case: &Case,
    reference: &super::Reference,
    log_path: &str,
    before: &[&str],
    words: &[&str],
    tally: &mut Tally,
    met: impl Fn(&str) -> Option<May>,
) {
    work.begin(case.from);
    let ran = work.run(&mut work.command(&[before, &strace(log_path, words)].concat(), case.line));
    let log = String::from_utf8_lossy(&fs_err::read(log_path).unwrap_or_default()).into_owned();
    let may = met(&log);
    // Of its words only those of the command count.
    let stderr = ran.stderr.lines().filter(|line| !line.starts_with("strace: ")).map(|line| format!("{line}\n"));
    let ran = super::Ran { stderr: stderr.collect(), ..ran };
    *(if may.is_some() { &mut tally.met } else { &mut tally.not_met }) += 1;
    if let Err(error) = work.judge(case, reference, may.unwrap_or(May::Succeed), &ran) {
        let text = format!("{}: {}: {error}", case.name, words.join(" "));
        eprintln!("{text}");
        tally.wrong.push(text);
    }
}

/// How many injections a command gets in the sample.
const MOST: usize = 16;

fn is_large(case: &Case) -> bool {
    case.from == From::Shared || case.line.contains("{large}")
}

fn is_local(case: &Case) -> bool {
    case.line.starts_with("make -q") && ["{oci}", "{list}"].iter().any(|input| case.line.contains(input))
}

#[test]
fn make_from_a_layout() {
    let mut tally = Tally::default();
    wall(&Work::new(), &[], MOST, &mut tally, is_local);
    tally.end("make from a layout");
}

#[test]
fn make_from_elsewhere() {
    let mut tally = Tally::default();
    let chosen = |case: &Case| case.line.starts_with("make -q") && !is_local(case) && !is_large(case);
    wall(&Work::new(), &[], MOST, &mut tally, chosen);
    tally.end("make from elsewhere");
}

#[test]
fn shared_tars() {
    let mut tally = Tally::default();
    wall(&Work::new(), &[], MOST, &mut tally, is_large);
    tally.end("shared tars");
}

#[test]
fn all_but_make() {
    let mut tally = Tally::default();
    wall(&Work::new(), &[], MOST, &mut tally, |case| !case.line.starts_with("make -q") && case.from != From::Shared);
    tally.end("all but make");
}

/// Every second read is interrupted, and then every other second one: which of them a sample takes is chance.
#[test]
fn reads_that_are_made_again() {
    let work = Work::new();
    let log_path = work.at.join("log").display().to_string();
    let mut tally = Tally::default();
    let reads = |case: &&Case| ["ls", "verify", "diff", "why"].iter().any(|word| case.line.starts_with(word));
    for case in TABLE.iter().filter(reads) {
        let reference = work.reference(case);
        work.begin(case.from);
        let ran = work.run(&mut work.command(&strace(&log_path, &["-y"]), case.line));
        assert!(ran.status.success(), "{}: {}", case.name, ran.stderr);
        let calls = Calls::read(&String::from_utf8_lossy(&fs_err::read(&log_path).unwrap()), &work.world());
        tally.commands += 1;
        for call in ["read", "pread64"] {
            let (before, most) = calls.counts.get(call).copied().unwrap_or_default();
            for first in (before + 1..=most).take(2) {
                let (inject, trace) = (format!("inject={call}:error=EINTR:when={first}+2"), format!("trace={call}"));
                let words = ["--seccomp-bpf", "-e", &trace, "-e", &inject];
                trial(&work, case, &reference, &log_path, &[], &words, &mut tally, |log| {
                    log.contains("(INJECTED").then_some(May::Succeed)
                });
            }
        }
    }
    tally.end("reads that are made again");
}

#[test]
fn files_that_have_hidden_names() {
    if !needs_root("faults::inject::files_that_have_hidden_names") {
        return;
    }
    let work = Work::new();
    let empty = work.at.join("oci/blobs").display().to_string();
    // Without /proc no file without a name can get one.
    let before = ["unshare", "-m", "sh", "-c", r#"mount --bind "$0" /proc && exec "$@""#, &empty];
    let mut tally = Tally::default();
    let names =
        ["make, empty cache", "make, warm cache", "make over a file", "make, no cache", "make to a stream, no cache"];
    wall(&work, &before, MOST, &mut tally, |case| names.contains(&case.name));
    tally.end("files that have hidden names");
}

#[test]
fn a_server_that_says_it_last() {
    let work = Work::new();
    let log_path = work.at.join("log").display().to_string();
    let mut tally = Tally::default();
    // The number of NFS, which statfs(2) then gives for every file: what is written has to be asked for.
    let nfs = "inject=fstatfs:poke_exit=@arg2=6969000000000000";
    let names = ["make, empty cache", "make, no cache", "make, shared tar", "make, shared tar again"];
    for case in TABLE.iter().filter(|case| names.contains(&case.name)) {
        let reference = work.reference(case);
        tally.commands += 1;
        for act in [Once("EIO"), On("ENOSPC"), On("EDQUOT"), Again, Signal("KILL")] {
            for number in 1..=if is_all() { 2 } else { 1 } {
                let fault = Fault { call: "fdatasync".to_owned(), act, number, on: None };
                let inject = fault.inject();
                let words = ["-e", "trace=fstatfs,fdatasync", "-e", nfs, "-e", &inject];
                trial(&work, case, &reference, &log_path, &[], &words, &mut tally, |log| {
                    let synced: Vec<&str> = log.lines().filter(|line| line.contains("fdatasync")).collect();
                    let log = synced.join("\n") + if log.contains("killed by") { "killed by SIGKILL" } else { "" };
                    fault.was_met(&log).then(|| fault.may(&log))
                });
            }
        }
    }
    tally.end("a server that says it last");
}

/// Looks the files up that the sample is to reach whatever the loader does.
#[test]
fn calls_are_counted_by_thread_and_by_file() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let log = "\
1 openat(AT_FDCWD</x>, \"/etc/ld.so.cache\", O_RDONLY) = 3</etc/ld.so.cache>
1 rt_sigaction(SIGPIPE, {sa_handler=SIG_IGN}, 8) = 0
1 openat(AT_FDCWD</x>, \"Cargo.toml\", O_RDONLY) = 3
2 openat(AT_FDCWD</x>, \"Cargo.toml\", O_RDONLY <unfinished ...>
2 <... openat resumed>) = 4
2 openat(AT_FDCWD</x>, \"Cargo.toml\", O_RDONLY) = 4
2 openat(AT_FDCWD</x>, \"none\", O_RDONLY) = 4
2 --- SIGINT {si_signo=SIGINT} ---
2 +++ exited with 0 +++
";
    let calls = Calls::read(log, here);
    assert_eq!(calls.counts["openat"], (1, 3));
    assert_eq!(calls.on[&("openat".to_owned(), here.join("Cargo.toml"))], 2);
    assert_eq!(calls.on.len(), 1);
    let faults = faults(&calls);
    let of_file = faults["openat"].iter().filter(|fault| fault.on.is_some()).count();
    assert_eq!(faults["openat"].len() - of_file, of_file, "numbers 2 and 3, and 1 and 2 of the file");
}
