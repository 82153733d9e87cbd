//! A cache that is damaged.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{From, Random, Work, all_right, figures, files, is_all, tree};

/// What can happen to a file.
const KINDS: [&str; 8] = [
    "a flipped bit",
    "a flipped bit near the end",
    "cut off",
    "empty",
    "longer",
    "zeros",
    "noise",
    "another one's place",
];

/// Does it; gives what it did.
fn damage(path: &Path, others: &[PathBuf], kind: &'static str, random: &mut Random) -> String {
    let file = fs_err::File::options().read(true).write(true).open(path).unwrap().into_file();
    let length = file.metadata().unwrap().len();
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (at % 8))], at).unwrap();
        at
    };
    let at = match kind {
        "a flipped bit" => flip(random.below(length)),
        "a flipped bit near the end" => flip(length - 1 - random.below(length.min(600))),
        "cut off" => {
            let at = random.below(length);
            file.set_len(at).unwrap();
            at
        }
        "empty" => {
            file.set_len(0).unwrap();
            0
        }
        "longer" => {
            let more = vec![0xa5; 1 + random.below(2000) as usize];
            file.write_all_at(&more, length).unwrap();
            length
        }
        "zeros" | "noise" => {
            let at = random.below(length);
            let count = (1 + random.below(5000)).min(length - at) as usize;
            let bytes = (0..count).map(|_| if kind == "zeros" { 0 } else { random.below(256) as u8 });
            file.write_all_at(&bytes.collect::<Vec<u8>>(), at).unwrap();
            at
        }
        _ => {
            let other = &others[random.below(others.len() as u64) as usize];
            let spare = path.with_extension("spare");
            fs_err::rename(path, &spare).unwrap();
            if fs_err::rename(other, path).is_ok() {
                fs_err::rename(&spare, other).unwrap();
            } else {
                // It was itself.
                fs_err::rename(&spare, path).unwrap();
            }
            0
        }
    };
    format!("{}: {kind} at {at} of {length}", path.file_name().unwrap().to_string_lossy())
}

/// Damages `rounds` times one file, or all; `line` must give what it gave, and again; and then have a cache that is whole.
fn heals(work: &Work, from: From, line: &str, rounds: usize, seed: u64) {
    let mut random = Random(seed);
    work.begin(from);
    work.succeeds(line);
    let out = work.world().join("out");
    let expected = tree(&out);
    let (mut mutations, mut wrong) = (0, Vec::new());
    for round in 0..rounds {
        let mut all = files(&work.world().join("cache"));
        random.shuffle(&mut all);
        let count = if random.below(4) == 0 { all.len() } else { 1 };
        let mut done = Vec::new();
        for path in &all[..count] {
            done.push(damage(path, &all, KINDS[(round + done.len()) % KINDS.len()], &mut random));
        }
        mutations += count;
        // Sometimes the tar is another one, and the cache's is its own.
        if random.below(3) == 0 {
            let _ = fs_err::remove_file(out.join("images.tar"));
        }
        for again in ["", ", again"] {
            let ran = work.run(&mut work.command(&[], line));
            if !ran.status.success() || tree(&out) != expected {
                wrong.push(format!("{done:?}{again}: {:?}: {}", ran.status, ran.stderr));
            }
        }
        let healed = work.run(&mut work.command(&[], &format!("{line} --json")));
        let summary: serde_json::Value = serde_json::from_slice(&healed.stdout).unwrap_or_default();
        if summary["layers"] != summary["cachedLayers"] || summary["layers"].is_null() {
            wrong.push(format!("{done:?}: not healed: {summary}"));
        }
        if let Err(error) = work.no_rubbish() {
            wrong.push(format!("{done:?}: {error}"));
        }
        // What is not healed now would be blamed on the next.
        if !wrong.is_empty() {
            break;
        }
    }
    figures(&format!("a damaged cache: {mutations} mutations in {rounds} rounds of `{line}`"));
    all_right(&wrong);
}

#[test]
fn segments_of_their_own() {
    let rounds = if is_all() { 1500 } else { 150 };
    heals(&Work::new(), From::Warm, "make -q --cache-dir cache -o out/images.tar {oci} {hello}", rounds, 19);
}

#[test]
fn segments_in_a_tar() {
    let rounds = if is_all() { 300 } else { 16 };
    heals(&Work::new(), From::Shared, "make -q --cache-dir cache -o out/images.tar {large}", rounds, 23);
}

#[test]
fn names_that_do_not_belong_there() {
    let work = Work::new();
    work.begin(From::Warm);
    let line = "make -q --cache-dir cache -o out/images.tar {oci} {hello}";
    work.succeeds(line);
    let expected = tree(&work.world().join("out"));
    let segments = work.world().join("cache/segments");
    let all = files(&segments);
    for (at, path) in all.iter().enumerate() {
        fs_err::remove_file(path).unwrap();
        match at % 3 {
            0 => fs_err::create_dir(path).unwrap(),
            1 => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
            _ => rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap(),
        }
    }
    for _ in 0..2 {
        let ran = work.run(&mut work.command(&[], line));
        assert!(ran.status.success(), "{}", ran.stderr);
        assert!(tree(&work.world().join("out")) == expected);
    }
    // A directory is nobody's leftover: it is named, and left.
    for path in all.iter().filter(|path| path.is_dir()) {
        let ran = work.run(&mut work.command(&[], "cache prune --all -q --cache-dir cache"));
        assert!(ran.status.code() == Some(1) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        fs_err::remove_dir(path).unwrap();
    }
    let ran = work.run(&mut work.command(&[], "cache prune --all -q --cache-dir cache"));
    assert!(ran.status.success(), "{}", ran.stderr);
}
