//! D6: every `--json` output has one style, and docs/json.md lists exactly its fields, with types that are true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::command::{REPOSITORY, hello, needs_root, prepull, succeeds};
use crate::made::{Layout, layers, tar};

/// `FATE` of the page.
const FATES: &str = "`kept` \\| `healed` \\| `removed` \\| `wrong-content` \\| `pod-fails` \\| `unseen` \\| `list-fails` \\| `no-start` \\| `image-deleted` \\| `store-wiped`";

/// A command of the page: its fields with their types, and its example.
#[derive(Default)]
struct Section {
    fields: BTreeMap<String, String>,
    example: String,
}

/// Reads docs/json.md: sections by heading.
fn page() -> BTreeMap<String, Section> {
    let text = fs_err::read_to_string(Path::new(REPOSITORY).join("docs/json.md")).unwrap();
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text.to_owned();
        } else if line.starts_with('{') {
            sections.entry(heading.clone()).or_default().example = line.to_owned();
        } else if let Some((field, rest)) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` | ")) {
            let Some((kind, _)) = rest.split_once(" | ") else { continue };
            if let Some(section) = sections.get_mut(&heading) {
                let kind = if kind == "FATE" { FATES } else { kind };
                assert!(section.fields.insert(field.to_owned(), kind.to_owned()).is_none(), "{heading}: {field} twice");
            }
        }
    }
    sections
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether `value` is of the type that the page has.
fn fits(kind: &str, value: &Value) -> bool {
    if let Some(kind) = kind.strip_suffix(" or null") {
        return value.is_null() || fits(kind, value);
    }
    if let Some(kind) = kind.strip_prefix("list of ") {
        return value.as_array().is_some_and(|items| items.iter().all(|item| fits(kind, item)));
    }
    if kind.starts_with('`') {
        return value.as_str().is_some_and(|text| kind.split(" \\| ").any(|one| one.trim_matches('`') == text));
    }
    match kind {
        "count" | "size" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "list" => value.is_array(),
        "value" => true,
        "id" => value.as_str().is_some_and(is_hex),
        "digest" => value.as_str().and_then(|text| text.strip_prefix("sha256:")).is_some_and(is_hex),
        "time" => value.as_str().is_some_and(prepull::go_types::is_time),
        "path" => value.as_str().is_some_and(|text| !text.is_empty()),
        "name" => value.as_str().is_some_and(|text| text.contains(['/', ':'])),
        "text" | "string" => value.is_string(),
        _ => panic!("docs/json.md: the type {kind} is unknown"),
    }
}

/// Checks an output against the page; notes the fields that it has.
struct Walk<'a> {
    section: &'a Section,
    name: &'a str,
    checks_types: bool,
    seen: BTreeSet<String>,
}

impl Walk<'_> {
    fn value(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let style = key.bytes().all(|byte| byte.is_ascii_alphanumeric())
                        && key.starts_with(|c: char| c.is_ascii_lowercase());
                    assert!(style, "{}: {path}: the key {key:?} is not in camelCase", self.name);
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    let kind = self.section.fields.get(&path);
                    let kind = kind.unwrap_or_else(|| panic!("{}: {path} is not in docs/json.md: {value}", self.name));
                    assert!(
                        !self.checks_types || fits(kind, value),
                        "{}: {path} is not of the type {kind}: {value}",
                        self.name
                    );
                    self.seen.insert(path.clone());
                    if kind != "value" {
                        self.value(&path, value);
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.value(&format!("{path}[]"), item)),
            _ => {}
        }
    }
}

/// Outputs by section of the page.
struct Outputs<'a> {
    at: &'a Path,
    all: Vec<(&'static str, Value)>,
}

impl Outputs<'_> {
    fn run(&mut self, section: &'static str, arguments: &[&str]) {
        let output = prepull(self.at).current_dir(self.at).args(arguments).arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        self.all.push((section, serde_json::from_str(&text).unwrap()));
    }
}

#[test]
fn d06_json_outputs_have_exactly_the_documented_fields() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut outputs = Outputs { at, all: Vec::new() };
    let mut layout = Layout::new(at.join("layout"));
    let base = layers();
    let image = layout.image("amd64", &base);
    layout.add(Some("v1"), image);
    let mut changed = base.clone();
    changed.push(tar(&[("c", b"333"), (".wh.b", b"")]));
    let image = layout.image("arm64", &changed);
    layout.add(Some("v2"), image);
    let hello = hello();

    outputs.run("make", &["make", "-q", "-o", "a.tar", "--pause", &format!("{hello}=localhost/pause:1"), &hello]);
    outputs.run("make", &["make", "-q", "-o", "old.tar", "oci:layout:v1=localhost/app:1"]);
    outputs.run(
        "make",
        &["make", "-q", "--platform", "linux/arm64", "-o", "new.tar", "--no-config", "oci:layout:v2=localhost/app:1"],
    );
    outputs.run("make", &["make", "-q", "-o", "gnu.tar", "--unpacker", "gnu", &hello]);
    outputs.run("diff", &["diff", "a.tar", "gnu.tar"]);
    outputs.run("ls", &["ls", "a.tar"]);
    outputs.run("verify", &["verify", "a.tar"]);
    outputs.run("diff", &["diff", "old.tar", "new.tar"]);
    outputs.run("cache, cache prune", &["cache"]);

    // As an ordinary user, who makes no device nodes: records without layers are enough to find, and to find fault with.
    fs_err::create_dir(at.join("root")).unwrap();
    let records = ["--wildcards", "*/overlay-images/*", "*/overlay-layers/*", "etc/*"];
    let unpack = ["-xf", "a.tar", "-C", "root", "--no-same-owner"];
    succeeds(Command::new("tar").current_dir(at).args(unpack).args(records));
    fs_err::write(at.join("root/etc/containers/registries.conf"), "unqualified-search-registries = ['localhost']\n")
        .unwrap();
    outputs.run("verify", &["verify", "root"]);
    outputs.run("diff", &["diff", "a.tar", "root"]);
    for name in
        ["localhost/hello:v1", "localhost/hello:v2", "hello:v1", "localhost/hullo:v1", "22abcec99df2", "Localhost/A:1"]
    {
        outputs.run("why", &["why", "a.tar", name]);
        outputs.run("why", &["why", "root", name]);
    }
    outputs.run("doctor", &["doctor", "--root", "root"]);
    outputs.run("cache, cache prune", &["cache", "prune"]);

    let mut without = BTreeSet::new();
    if needs_root("findings::json::d06_json_outputs_have_exactly_the_documented_fields: install, rm, gc, mount") {
        fs_err::create_dir(at.join("machine")).unwrap();
        fs_err::create_dir(at.join("mount")).unwrap();
        outputs.run("install", &["install", "-q", "--root", "machine", &hello]);
        outputs.run("rm, gc", &["rm", "--root", "machine", "localhost/hello:v1"]);
        outputs.run("rm, gc", &["gc", "--root", "machine"]);
        outputs.run("mount, mount status MOUNTPOINT", &["mount", "-q", "mount", &hello]);
        outputs.run("mount, mount status MOUNTPOINT", &["mount", "status", "mount"]);
        outputs.run("mount status", &["mount", "status"]);
        succeeds(prepull(at).current_dir(at).args(["umount", "mount"]));
    } else {
        without.extend(["install", "rm, gc", "mount, mount status MOUNTPOINT", "mount status"]);
    }

    for (name, section) in page() {
        let mut walk = Walk { section: &section, name: &name, checks_types: false, seen: BTreeSet::new() };
        walk.value("", &serde_json::from_str(&section.example).unwrap());
        walk.checks_types = true;
        walk.seen.clear();
        for (_, value) in outputs.all.iter().filter(|(of, _)| *of == name) {
            walk.value("", value);
        }
        let seen = walk.seen;
        if !without.contains(&*name) {
            let documented: BTreeSet<String> = section.fields.keys().cloned().collect();
            assert_eq!(seen, documented, "{name}: fields that were seen, and those in docs/json.md");
        }
    }
}

#[test]
fn d06_every_command_with_json_is_documented() {
    let command = prepull::cli::args::command();
    let sections = page();
    let mut missing = Vec::new();
    let mut visit = vec![(String::new(), &command)];
    while let Some((name, command)) = visit.pop() {
        if command.get_arguments().any(|argument| argument.get_id() == "json")
            && !sections.keys().any(|heading| heading.split(", ").any(|one| one == name))
        {
            missing.push(name.clone());
        }
        for command in command.get_subcommands() {
            visit.push((format!("{name} {}", command.get_name()).trim_start().to_owned(), command));
        }
    }
    assert!(missing.is_empty(), "without a section in docs/json.md: {missing:?}");
}
