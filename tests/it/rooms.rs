//! Which module may use which: arrows point one way. The table is the one in `src/lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::command::REPOSITORY;

type Table = BTreeMap<String, BTreeSet<String>>;

/// All `.rs` files below `directory`, by their path within it.
fn files(root: &Path, within: &str, out: &mut Vec<(String, String)>) {
    for entry in fs_err::read_dir(root.join(within)).unwrap() {
        let entry = entry.unwrap();
        let path = Path::new(within).join(entry.file_name()).display().to_string();
        if entry.path().is_dir() {
            files(root, &path, out);
        } else if path.ends_with(".rs") {
            out.push((path, fs_err::read_to_string(entry.path()).unwrap()));
        }
    }
}

fn table(lib: &str) -> Table {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.strip_suffix(" |")?.split_once(" | "));
    let words = |text: &str| text.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    rows.skip(2).map(|(module, uses)| (module.to_owned(), words(uses))).collect()
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let source = Path::new(REPOSITORY).join("src");
    let table = table(&fs_err::read_to_string(source.join("lib.rs")).unwrap());
    let mut all = Vec::new();
    files(&source, "", &mut all);
    let mut used = Table::new();
    for (path, text) in &all {
        let module = path.split(['/', '.']).next().unwrap();
        if matches!(module, "lib" | "main" | "bin") || path.ends_with("tests.rs") {
            continue;
        }
        let uses = used.entry(module.to_owned()).or_default();
        // Unit tests come last in a file, and may use what they like.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let end = |rest: &str| rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
            let names = line.match_indices("crate::").map(|(at, crate_)| &line[at + crate_.len()..]);
            uses.extend(names.map(|rest| rest[..end(rest)].to_owned()).filter(|name| *name != module));
        }
    }
    // Exactly: an arrow that is no longer there is no longer allowed.
    for (module, uses) in &used {
        assert_eq!(Some(uses), table.get(module), "what {module} uses, and what the table in src/lib.rs allows");
    }
    assert_eq!(used.len(), table.len(), "modules, and rows of the table in src/lib.rs");
    let mut left = table;
    while !left.is_empty() {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, uses| !uses.is_disjoint(&names));
        assert!(left.len() < names.len(), "a circle of modules among {names:?}");
    }
}

/// The dependencies that a manifest names in `section`, as the names by which code uses them.
fn dependencies(manifest: &Path, section: &str) -> BTreeSet<String> {
    let text = fs_err::read_to_string(manifest).unwrap();
    let lines = text.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_"))).collect()
}

/// Whether code names the crate: in a path, in a macro's path, or in an attribute.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        let rest = &code[at + name.len()..];
        !code[..at].ends_with(is_word) && (rest.starts_with("::") || rest.starts_with(" as ") || rest.starts_with(';'))
    })
}

#[test]
fn every_dependency_is_used() {
    assert!(names_crate("use tar::Header;", "tar") && !names_crate("use my_tar::Header; let tar = 1;", "tar"));
    for (manifest, section, code, least) in [
        ("Cargo.toml", "dependencies", &["src"][..], 30),
        ("Cargo.toml", "dev-dependencies", &["tests"], 3),
        ("fuzz/Cargo.toml", "dependencies", &["fuzz/src", "fuzz/fuzz_targets", "fuzz/examples"], 10),
    ] {
        let mut all = Vec::new();
        code.iter().for_each(|within| files(Path::new(REPOSITORY), within, &mut all));
        let code: String = all.into_iter().map(|(_, text)| text).collect();
        let dependencies = dependencies(&Path::new(REPOSITORY).join(manifest), section);
        assert!(dependencies.len() >= least, "{manifest}: {dependencies:?}");
        let unused: Vec<_> = dependencies.iter().filter(|name| !names_crate(&code, name)).collect();
        assert!(unused.is_empty(), "{manifest}: [{section}] has crates that no code names: {unused:?}");
    }
}
