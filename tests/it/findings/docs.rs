//! D3, D9: the documentation says what an installation needs, the README is one page, links lead somewhere, and commands parse.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::command::REPOSITORY;

/// Maximum number of words of the README.
const WORDS_MAX: usize = 1000;

/// Pages outside of docs/.
const PAGES: [&str; 6] = [
    "README.md",
    "CHANGELOG.md",
    "fuzz/README.md",
    "policy/ovl/README.md",
    "tests/hostile/README.md",
    "vm-tests/README.md",
];

/// A page, in parts.
#[derive(Default)]
struct Page {
    /// Text without code blocks.
    text: String,
    /// Lines of code blocks in `sh` or `console`.
    code: Vec<String>,
    /// Names by which links lead to headings, as GitHub makes them.
    anchors: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs_err::read_to_string(path).unwrap();
        let (mut page, mut fence) = (Self::default(), None);
        let mut seen = BTreeMap::<String, usize>::new();
        for line in text.lines() {
            match (line.trim_start().strip_prefix("```"), &fence) {
                (Some(language), None) => fence = Some(language.to_owned()),
                (Some(_), Some(_)) => fence = None,
                (None, Some(language)) if ["sh", "console"].contains(&language.as_str()) => {
                    page.code.push(if language == "sh" { line.to_owned() } else { typed(line) });
                }
                (None, Some(_)) => {}
                (None, None) => {
                    if let Some(heading) = line.strip_prefix('#') {
                        let slug = slug(heading.trim_start_matches('#').trim());
                        let count = seen.entry(slug.clone()).or_default();
                        page.anchors.push(if *count == 0 { slug } else { format!("{slug}-{count}") });
                        *count += 1;
                    }
                    page.text += line;
                    page.text += "\n";
                }
            }
        }
        assert!(fence.is_none(), "{}: a code block without an end", path.display());
        page
    }

    /// Returns the targets of links.
    fn links(&self) -> Vec<&str> {
        let targets = self.text.split("](").skip(1);
        targets.map(|rest| rest.split([')', ' ']).next().unwrap()).collect()
    }
}

/// Returns what a user types in a line of a terminal: nothing if the line is a program's output.
fn typed(line: &str) -> String {
    line.strip_prefix("$ ").unwrap_or_default().to_owned()
}

/// Returns GitHub's name of a heading: lower case, without punctuation, spaces as hyphens.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns all pages, with their paths in the repository.
fn pages() -> Vec<(PathBuf, Page)> {
    fn add(directory: &Path, paths: &mut Vec<PathBuf>) {
        for entry in fs_err::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, paths);
            } else if path.extension() == Some(OsStr::new("md")) {
                paths.push(path);
            }
        }
    }
    let mut paths: Vec<_> = PAGES.iter().map(|page| Path::new(REPOSITORY).join(page)).collect();
    add(&Path::new(REPOSITORY).join("docs"), &mut paths);
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), Page::read(&path))).collect()
}

/// Returns the words of a command line, as a shell splits it. A word of operators and redirections stands by itself.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            ('|' | '&' | ';' | '<' | '>' | '(' | ')', None) => {
                words.extend(word.take());
                words.push(c.to_string());
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns the command lines of `prepull` in a line: from its name to the next operator.
fn commands(line: &str) -> Vec<Vec<String>> {
    // What this repository's README runs without installing it.
    let line = line.replace("cargo run --release -- ", "prepull ");
    let words = words(&line);
    let parts = words.split(|word| matches!(word.as_str(), "|" | "&" | ";" | "<" | ">" | "(" | ")"));
    parts
        .filter_map(|part| {
            // It may be started by these, with variables in front.
            let is_before =
                |word: &&String| ["sudo", "podman", "unshare"].contains(&word.as_str()) || word.contains('=');
            let begin = part.iter().take_while(is_before).count();
            (part.get(begin)? == "prepull").then(|| part[begin..].to_vec())
        })
        .collect()
}

#[test]
fn d03_documentation_says_what_an_installation_needs() {
    let read = |page: &str| fs_err::read_to_string(Path::new(REPOSITORY).join(page)).unwrap();
    let manifest = read("Cargo.toml");
    let oldest = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    for page in ["README.md", "docs/setup.md"] {
        let text = read(page);
        let (before, _) = text.split_once("cargo install").unwrap();
        assert!(before.contains(&format!("Rust {oldest} or newer")) && before.contains("libc6-dev"), "{page}");
        assert!(!before.contains("tests/run"), "{page}: a user's start is no test run");
    }
    // One block sets up the helper: it is built, and five commands follow.
    let page = Page::read(&Path::new(REPOSITORY).join("docs/setup.md"));
    let first = page.code.iter().position(|line| line == "helper=$(policy/build-helper)").unwrap();
    let block = &page.code[first..first + 6];
    for (line, part) in block.iter().zip(["build-helper", "groupadd", "$helper", "helper.toml", "units", "enable"]) {
        let part = if part == "units" { "prepull-helper.socket policy/prepull-helper@.service" } else { part };
        assert!(line.contains(part), "{line}");
    }
    assert!(block[1..].iter().all(|line| line.contains("sudo ")), "{block:?}");
}

#[test]
fn d09_readme_is_one_page() {
    let text = fs_err::read_to_string(Path::new(REPOSITORY).join("README.md")).unwrap();
    let count = text.split_whitespace().count();
    assert!(count <= WORDS_MAX, "README.md has {count} words, more than {WORDS_MAX}: move some of it to docs/");
}

#[test]
fn d09_links_of_the_documentation_resolve() {
    let pages = pages();
    let by_path: BTreeMap<_, _> = pages.iter().map(|(path, page)| (path.canonicalize().unwrap(), page)).collect();
    let (mut count, mut broken) = (0, Vec::new());
    for (path, page) in &pages {
        let relative = page.links().into_iter().filter(|link| !link.contains("://"));
        for link in relative {
            count += 1;
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_good = target.canonicalize().is_ok_and(|target| {
                anchor.is_none_or(|anchor| {
                    by_path.get(&target).is_some_and(|page| page.anchors.iter().any(|a| a == anchor))
                })
            });
            if !is_good {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    assert!(count > 50, "only {count} links were found");
}

#[test]
fn d09_commands_in_the_documentation_parse() {
    let (mut count, mut wrong) = (0, Vec::new());
    for (path, page) in pages() {
        for words in page.code.iter().flat_map(|line| commands(line)) {
            count += 1;
            if let Err(error) = prepull::cli::args::command().try_get_matches_from(&words)
                && error.use_stderr()
            {
                wrong.push(format!("{}: {}: {error}", path.display(), words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "commands that prepull does not understand:\n{}", wrong.join("\n"));
    assert!(count > 30, "only {count} commands were found");
}

#[test]
fn d09_lines_are_split_into_commands() {
    let of = |line| commands(line).iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(of("sudo prepull rm --root / 'a b' && crictl images # prepull ls"), ["prepull rm --root / a b"]);
    assert_eq!(
        of("X=1 prepull make -o - a:1 | tee b.tar | prepull verify -"),
        ["prepull make -o - a:1", "prepull verify -"]
    );
    assert_eq!(of("podman unshare prepull umount ~/m"), ["prepull umount ~/m"]);
    assert_eq!(of("cargo run --release -- make a:1 >log"), ["prepull make a:1"]);
    assert!(of("podman run prepull").is_empty());
    assert_eq!(
        slug("`gzip: images.tar has 1 other link -- file ignored`"),
        "gzip-imagestar-has-1-other-link----file-ignored"
    );
}
