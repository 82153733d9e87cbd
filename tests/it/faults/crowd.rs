//! Several at once on one cache.

use std::collections::HashMap;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{From, Random, Work, content, figures, files, is_all};

/// One of many.
struct Running {
    child: Child,
    /// The tar that it makes, and which image's; `None` for other commands.
    tar: Option<(PathBuf, &'static str)>,
    is_hit: bool,
    said: std::fs::File,
}

/// What is tried at once.
struct Crowd {
    count: usize,
    /// Whether all make the same file.
    is_one_file: bool,
    /// Whether others prune meanwhile.
    prunes: bool,
    /// Whether some are killed or stopped.
    signals: bool,
}

const ITEMS: [&str; 4] = ["{oci}", "{large}", "{oci} {hello}", "{dir}"];

/// The right tar of each image.
fn references(work: &Work) -> HashMap<&'static str, Vec<u8>> {
    let make = |item: &'static str| {
        work.begin(From::Nothing);
        work.succeeds(&format!("make -q --no-cache -o out/images.tar {item}"));
        (item, fs_err::read(work.world().join("out/images.tar")).unwrap())
    };
    ITEMS.into_iter().map(make).collect()
}

impl Crowd {
    /// Lets them run; gives how many ran, and how many were killed or stopped.
    fn run(&self, work: &Work, good: &HashMap<&'static str, Vec<u8>>, random: &mut Random) -> (usize, usize) {
        let world = work.world();
        let mut running = Vec::new();
        let (mut commands, mut hit) = (0, 0);
        for number in 0..self.count {
            let item = ITEMS[if self.is_one_file { 0 } else { random.below(ITEMS.len() as u64) as usize }];
            let tar = if self.is_one_file { "out/images.tar".to_owned() } else { format!("out/{number}.tar") };
            let line = format!("make -q --cache-dir cache -o {tar} {item}");
            running.push(self.start(work, &line, Some((world.join(&tar), item)), random));
            commands += 1;
            if self.prunes {
                let all = ["--all", "--max-size 1k", "--max-size 1G"][number % 3];
                running.push(self.start(work, &format!("cache prune -q --cache-dir cache {all}"), None, random));
                commands += 1;
            }
        }
        let begun = Instant::now();
        let hits = running.iter().filter(|running| running.is_hit);
        let mut hits: Vec<_> = hits.map(|running| (random.below(40_000), Pid::from_child(&running.child))).collect();
        hits.sort_by_key(|(at, _)| *at);
        for (at, pid) in hits {
            std::thread::sleep(Duration::from_micros(at).saturating_sub(begun.elapsed()));
            // Not waited for yet: the number is its own.
            let _ = kill_process(pid, [Signal::KILL, Signal::INT, Signal::TERM][random.below(3) as usize]);
        }
        for Running { mut child, tar, is_hit, said } in running {
            let status = child.wait().unwrap();
            let said = String::from_utf8(content(said)).unwrap();
            let is_stopped = is_hit && (status.code() == Some(130) || status.signal().is_some());
            assert!(status.success() || is_stopped, "{tar:?}: {status:?}: {said}");
            assert!(!said.contains("panicked"), "{said}");
            hit += usize::from(is_stopped);
            match tar {
                Some((tar, item)) if !is_stopped || tar.exists() => {
                    assert!(fs_err::read(&tar).unwrap() == good[item], "{}", tar.display());
                }
                _ => {}
            }
        }
        (commands, hit)
    }

    fn start(&self, work: &Work, line: &str, tar: Option<(PathBuf, &'static str)>, random: &mut Random) -> Running {
        let mut command = work.command(&[], line);
        let said = tempfile::tempfile_in(&work.at).unwrap();
        command.stdout(Stdio::null()).stderr(said.try_clone().unwrap()).process_group(0);
        let child = command.spawn().unwrap();
        Running { child, tar, is_hit: self.signals && random.below(2) == 0, said }
    }
}

fn crowds(what: &str, crowd: &Crowd, rounds: usize, seed: u64) {
    let work = Work::new();
    let good = references(&work);
    let mut random = Random(seed);
    let (mut commands, mut hit) = (0, 0);
    work.begin(From::Nothing);
    for round in 0..rounds {
        if round % 3 == 0 {
            work.begin(From::Nothing);
        }
        for path in files(&work.world().join("out")) {
            fs_err::remove_file(path).unwrap();
        }
        let (more, hits) = crowd.run(&work, &good, &mut random);
        (commands, hit) = (commands + more, hit + hits);
        // Whoever comes next finds nothing wrong.
        for (item, good) in &good {
            work.succeeds(&format!("make -q --cache-dir cache -o out/next.tar {item}"));
            assert!(fs_err::read(work.world().join("out/next.tar")).unwrap() == *good, "{what}: round {round}: {item}");
        }
        if !crowd.signals {
            work.no_rubbish().unwrap();
        }
    }
    work.succeeds("cache prune -q --cache-dir cache --all");
    let left = files(&work.world().join("cache"));
    assert!(left.iter().all(|path| path.to_str().unwrap().contains(".prepull-")), "{left:?}");
    figures(&format!("{what}: {commands} commands in {rounds} rounds, {hit} killed or stopped"));
}

fn rounds(few: usize) -> usize {
    if is_all() { few * 6 } else { few }
}

#[test]
fn two_at_once() {
    let crowd = Crowd { count: 2, is_one_file: false, prunes: false, signals: false };
    crowds("two at once", &crowd, rounds(6), 29);
    let crowd = Crowd { is_one_file: true, ..crowd };
    crowds("two at once to one file", &crowd, rounds(6), 31);
}

#[test]
fn ten_at_once() {
    let crowd = Crowd { count: 10, is_one_file: false, prunes: false, signals: false };
    crowds("ten at once", &crowd, rounds(3), 37);
    let crowd = Crowd { is_one_file: true, ..crowd };
    crowds("ten at once to one file", &crowd, rounds(3), 41);
}

#[test]
fn ten_at_once_and_prune() {
    let crowd = Crowd { count: 10, is_one_file: false, prunes: true, signals: false };
    crowds("ten at once, and prune", &crowd, rounds(3), 43);
}

#[test]
fn ten_at_once_and_some_are_killed() {
    let crowd = Crowd { count: 10, is_one_file: false, prunes: true, signals: true };
    crowds("ten at once, and prune, and some are killed", &crowd, rounds(4), 47);
}
