//! Disks without room, and a limit on the size of files.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Case, From, May, Reference, TABLE, Work, all_right, figures, is_all};
use crate::command::needs_root;

/// A small file system; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, kilobytes: u64) -> Self {
        fs_err::create_dir_all(at).unwrap();
        let options = format!("size={kilobytes}k,mode=700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status().unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sizes in kB from next to nothing to enough.
fn sizes(enough: u64) -> impl Iterator<Item = u64> {
    let steps = if is_all() { 48 } else { 8 };
    (0..=steps).map(move |step| (enough * step / steps).max(4))
}

/// Runs a case with `place` on a file system of each size; gives how many runs there were and how many ended well.
fn sweep(work: &Work, case: &Case, place: &str, enough: u64, may: May, wrong: &mut Vec<String>) -> (usize, usize) {
    let reference: Reference = work.reference(case);
    let (mut runs, mut well) = (0, 0);
    for size in sizes(enough) {
        work.begin(case.from);
        let at = work.world().join(place);
        let result = {
            let small = Small::mount(&at, size);
            if place == "out" {
                reference.before.iter().for_each(|(path, bytes)| fs_err::write(at.join(path), bytes).unwrap());
            }
            let ran = work.run(&mut work.command(&[], case.line));
            (runs, well) = (runs + 1, well + usize::from(ran.status.success()));
            let outcome = work.looks_right(&reference, may, &ran);
            // Room is made, and it goes on as it is.
            let grown = format!("remount,size={}k", 100_000);
            assert!(Command::new("mount").args(["-o", &grown]).arg(&at).status().unwrap().success());
            let outcome = outcome.and_then(|()| work.next(case, &reference, May::Fail));
            drop(small);
            outcome.map_err(|error| format!("{} ({})", error, ran.stderr.trim()))
        };
        if let Err(error) = result {
            wrong.push(format!("{}: {place} of {size} kB: {error}", case.name));
        }
    }
    (runs, well)
}

fn named(name: &str) -> &'static Case {
    TABLE.iter().find(|case| case.name == name).unwrap()
}

#[test]
fn small_file_systems() {
    if !needs_root("faults::full::small_file_systems") {
        return;
    }
    let work = Work::new();
    let mut wrong = Vec::new();
    let (mut runs, mut well) = (0, 0);
    let plan = [
        // A cache that is full keeps nobody from the tar.
        ("make, empty cache", "cache", 900, May::Succeed),
        ("make to a stream", "cache", 900, May::Succeed),
        ("make from a registry", "cache", 900, May::Succeed),
        ("make, shared tar", "cache", 36_000, May::Succeed),
        ("make, empty cache", "out", 900, May::Fail),
        ("make, no cache", "out", 900, May::Fail),
        ("make, no cache", "tmp", 900, May::Fail),
        ("make to a stream, no cache", "tmp", 900, May::Fail),
        ("make from a compressed archive", "tmp", 900, May::Fail),
        ("make, shared tar", "out", 40_000, May::Fail),
        ("man", "out", 120, May::Fail),
        ("ovl", "out", 16, May::Fail),
    ];
    for (name, place, enough, may) in plan {
        let (more, good) = sweep(&work, named(name), place, enough, may, &mut wrong);
        (runs, well) = (runs + more, well + good);
        if !(1..=more).contains(&good) || may == May::Fail && good == more {
            wrong.push(format!("{name}: {place}: {good} of {more} ended well"));
        }
    }
    figures(&format!("small file systems: {runs} runs, {well} of them ended well"));
    all_right(&wrong);
}

#[test]
fn a_limit_on_the_size_of_files() {
    let work = Work::new();
    let mut wrong = Vec::new();
    let (mut runs, mut well) = (0, 0);
    let names = [
        "make, empty cache",
        "make, no cache",
        "make to a stream",
        "make from a registry",
        "ovl",
        "man",
        "ls of a tar",
    ];
    for case in names.map(named) {
        let reference = work.reference(case);
        for size in sizes(800) {
            // What it prints goes to a file, too.
            let limit = format!("--fsize={}", size * 1024);
            work.begin(case.from);
            let before = ["env", "--ignore-signal=XFSZ", "prlimit", &limit];
            let ran = work.run(&mut work.command(&before, case.line));
            (runs, well) = (runs + 1, well + usize::from(ran.status.success()));
            if let Err(error) = work.judge(case, &reference, May::Fail, &ran) {
                wrong.push(format!("{}: files of at most {size} kB: {error} ({})", case.name, ran.stderr.trim()));
            }
        }
    }
    figures(&format!("a limit on the size of files: {runs} runs, {well} of them ended well"));
    all_right(&wrong);
}

#[test]
fn standard_output_that_is_full() {
    let work = Work::new();
    let mut count = 0;
    for case in TABLE {
        let reference = work.reference(case);
        if reference.stdout.is_empty() {
            continue;
        }
        work.begin(case.from);
        let full = fs_err::File::options().write(true).open("/dev/full").unwrap().into_file();
        let output = work.command(&[], case.line).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let trouble = if case.line.starts_with("diff") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(trouble), "{}: {said}", case.name);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("prepull: writing standard output: No space left"), "{}: {said}", case.name);
        count += 1;
    }
    figures(&format!("standard output that is full: {count} commands"));
}

#[test]
fn a_full_cache_is_said_once_and_used_as_it_is() {
    if !needs_root("faults::full::a_full_cache_is_said_once_and_used_as_it_is") {
        return;
    }
    let work = Work::new();
    work.begin(From::Nothing);
    let _small = Small::mount(&work.world().join("cache"), 400);
    work.succeeds("make -q --cache-dir cache -o out/hello.tar {hello}");
    // The large layer has no room, those of the other image are there.
    for _ in 0..2 {
        let ran = work.run(&mut work.command(&[], "make -q --json --cache-dir cache -o out/images.tar {oci} {hello}"));
        assert!(ran.status.success(), "{}", ran.stderr);
        let full = ran.stderr.lines().filter(|line| line.contains("nothing more is kept in the cache")).count();
        assert_eq!(full, 1, "{}", ran.stderr);
        let summary: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert!(summary["cachedLayers"].as_u64() >= Some(3), "{summary}");
        assert!(
            fs_err::read(work.world().join("out/images.tar")).unwrap()
                == fs_err::read(work.at.join("store.tar")).unwrap()
        );
        work.no_rubbish().unwrap();
    }
}
