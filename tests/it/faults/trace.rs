//! Which calls a command makes, by strace: no tests of its own.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The calls of one run.
pub(super) struct Calls {
    /// Of each call: how many come before the program's own beginning, and the most of any thread.
    pub counts: BTreeMap<String, (usize, usize)>,
    /// Of each call on a file that has a name: the most of any thread.
    pub on: BTreeMap<(String, PathBuf), usize>,
}

impl Calls {
    /// Reads what `strace -f -y` wrote of a command that ran in `directory`.
    ///
    /// strace's `when=N` counts the calls of each thread on its own, so the Nth call of every thread that makes so many fails; N
    /// goes up to the most that any thread makes. The first calls of the main thread are the dynamic loader's, who would say
    /// something of his own: they are left out, and reached by the name of the file instead (`-P`).
    pub(super) fn read(log: &str, directory: &Path) -> Self {
        let mut main = None;
        let mut has_begun = false;
        let mut before: HashMap<String, usize> = HashMap::new();
        let mut of_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut on_of_thread: BTreeMap<(String, PathBuf, String), usize> = BTreeMap::new();
        for line in log.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                continue;
            }
            *of_thread.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
            if main.is_none_or(|main| main == thread) && !has_begun {
                main = Some(thread);
                *before.entry(name.to_owned()).or_default() += 1;
                // The first that Rust does.
                has_begun = name == "rt_sigaction" && arguments.starts_with("SIGPIPE");
            } else if let Some(path) = path(arguments, directory) {
                *on_of_thread.entry((name.to_owned(), path, thread.to_owned())).or_default() += 1;
            }
        }
        assert!(has_begun, "strace shows no beginning:\n{log}");
        let mut calls = Self { counts: BTreeMap::new(), on: BTreeMap::new() };
        for ((name, _), count) in of_thread {
            let before = before.get(&name).copied().unwrap_or(0);
            let entry = calls.counts.entry(name).or_insert((before, 0));
            entry.1 = entry.1.max(count);
        }
        for ((name, path, _), count) in on_of_thread {
            let entry = calls.on.entry((name, path)).or_default();
            *entry = (*entry).max(count);
        }
        calls
    }
}

/// The file that a call is about, if it is there under this name: `read(3</a/b>, …` or `openat(AT_FDCWD</a>, "b", …`.
fn path(arguments: &str, directory: &Path) -> Option<PathBuf> {
    let quoted = |text: &str| text.split('"').nth(1).map(str::to_owned);
    let text = match arguments.as_bytes().first()? {
        b'0'..=b'9' => arguments.split_once('<')?.1.split_once('>')?.0.to_owned(),
        _ => quoted(arguments)?,
    };
    let path = directory.join(text);
    (!path.starts_with("/proc") && path.exists()).then_some(path)
}
