//! A1, as skopeo and podman judge it: each field of each document with a value of each JSON type.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use prepull::digest::Digest;
use prepull::go_types::{self, Kind};
use serde_json::{Value, json};

use super::go_types::{Case, bases, said, stored, write_store};
use crate::command::needs_root;

/// Stands in a document for the value that a case is about.
const HERE: &str = "@value@";

/// A value of each JSON type.
const VALUES: [&str; 8] = [r#""x""#, "5", "-5", "1.5", "true", "null", "[1]", r#"{"a":1}"#];
/// More values of the types of which Go takes only some.
const MORE: [(&str, &[&str]); 3] = [
    (
        "created",
        &[
            r#""2024-01-02T03:04:05Z""#,
            r#""""#,
            r#""yesterday""#,
            r#""0000-01-01T00:00:00Z""#,
            r#""2023-02-29T00:00:00Z""#,
        ],
    ),
    ("size", &["1e3", "1.0", "-0", "9223372036854775807", "9223372036854775808"]),
    ("StopTimeout", &["1e3", "-0", r#""10s""#]),
];

impl Case {
    fn is_refused(&self) -> bool {
        let bytes = self.text.as_bytes();
        let result = match self.kind {
            None => go_types::check_config(bytes).map_err(|error| error.to_string()),
            Some(kind) if kind.is_index() => go_types::check_index(bytes).map(drop).map_err(|error| error.to_string()),
            Some(_) => go_types::check_manifest(bytes).map(drop).map_err(|error| error.to_string()),
        };
        // Other rules than those of types are other tests.
        result.is_err_and(|error| error.starts_with('`') && error.contains(" is "))
    }

    /// Returns whether the Go types of skopeo 1.9 and podman 4.3 lack the field, so that these take anything there: `StartInterval`
    /// came with containers/image 5.31, `artifactType` of manifests with image-spec 1.1.0-rc3, of indexes and their `subject`
    /// with 1.1.0-rc4.
    fn is_newer(&self) -> bool {
        let is_subject = self.field.split('.').next() == Some("subject");
        self.field.ends_with(".StartInterval")
            || self.field == "artifactType"
            || (self.kind == Some(Kind::OciIndex) && is_subject)
    }
}

/// Puts [`HERE`] at `path` of a document.
fn put(document: &mut Value, path: &str) {
    let mut at = document;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[]") {
            if at.get(0).is_none() {
                *at = json!([null]);
            }
            (at, rest) = (&mut at[0], after);
        } else if let Some(after) = rest.strip_prefix("{}") {
            *at = json!({"k": null});
            (at, rest) = (&mut at["k"], after);
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            // `os.version` and `os.features` are names with a point.
            let dotted = ["os.version", "os.features"].into_iter().find(|name| rest.starts_with(name));
            let end = dotted.map_or_else(|| rest.find(['.', '[', '{']).unwrap_or(rest.len()), str::len);
            let (name, after) = rest.split_at(end);
            if !at.is_object() {
                *at = json!({});
            }
            (at, rest) = (&mut at[name], after);
        }
    }
    *at = json!(HERE);
}

/// Returns cases for each field of a document: each type of value, wrong values under the key in another case, and each
/// value followed by `null` under the same key.
fn cases(kind: Option<Kind>, base: &Value, out: &mut Vec<Case>) {
    for field in go_types::fields(kind) {
        let mut document = base.clone();
        put(&mut document, &field);
        let document = serde_json::to_string(&document).unwrap();
        let here = format!("\"{HERE}\"");
        let name = field.rsplit(['.', '[', '{']).next().unwrap();
        let name = if field.ends_with("os.version") {
            "os.version"
        } else if field.ends_with("os.features") {
            "os.features"
        } else {
            name
        };
        let more = MORE.iter().filter(|(of, _)| *of == name).flat_map(|(_, values)| *values);
        // `config` and `container_config` are of one type, as are all descriptors.
        let values = if field.starts_with("container_config.") || field.starts_with("subject.") {
            &VALUES[..4]
        } else {
            &VALUES[..]
        };
        for value in values.iter().chain(more) {
            out.push(Case { kind, field: field.clone(), text: document.replace(&here, value) });
        }
        let member = format!("\"{name}\":{here}");
        if document.contains(&member) {
            let other: String = name
                .chars()
                .map(
                    |char| {
                        if char.is_ascii_lowercase() { char.to_ascii_uppercase() } else { char.to_ascii_lowercase() }
                    },
                )
                .collect();
            for (value, key) in [("5", &other[..]), (r#""x""#, &other), ("[[]]", &other.replace('K', "\u{212a}"))] {
                let text = document.replace(&member, &format!("\"{key}\":{value}"));
                out.push(Case { kind, field: field.clone(), text });
            }
            for value in ["5", r#""x""#] {
                let text = document.replace(&member, &format!("\"{name}\":{value},\"{name}\":null"));
                out.push(Case { kind, field: field.clone(), text });
            }
        }
    }
}

fn all_cases() -> Vec<Case> {
    let (config, manifests) = bases();
    let mut all = Vec::new();
    cases(None, &config, &mut all);
    for (kind, base) in &manifests {
        cases(Some(*kind), base, &mut all);
    }
    all
}

/// Runs `judge` for each case, on all processors, and returns the cases that it says something about.
fn judged(cases: &[Case], judge: impl Fn(usize, &Case) -> Option<String> + Sync) -> Vec<String> {
    let (next, judge) = (AtomicUsize::new(0), &judge);
    let work = || {
        let mut found = Vec::new();
        while let Some((number, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, cases.get(at)?)))
        {
            found.extend(
                judge(number, case).map(|said| format!("{:?} {}: {}\n  {said}", case.kind, case.field, case.text)),
            );
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Writes the image of a case for `dir:`, which keeps no media type, as a store does not.
fn write_dir(at: &Path, case: &Case) {
    let (config, manifests) = bases();
    let of = |kind| manifests.iter().find(|(of, _)| *of == kind).unwrap().1.clone();
    let config_bytes =
        if case.kind.is_none() { case.text.clone().into_bytes() } else { serde_json::to_vec(&config).unwrap() };
    let manifest = match case.kind {
        None => {
            let mut oci = of(Kind::OciManifest);
            oci["config"]["digest"] = json!(Digest::of(&config_bytes));
            oci["config"]["size"] = json!(config_bytes.len());
            oci.to_string()
        }
        Some(_) => case.text.clone(),
    };
    fs_err::create_dir_all(at).unwrap();
    fs_err::write(at.join("manifest.json"), manifest).unwrap();
    fs_err::write(at.join(Digest::of(&config_bytes).hex()), &config_bytes).unwrap();
    if case.kind.is_some_and(Kind::is_index) {
        for (_, manifest) in &manifests[..2] {
            let bytes = serde_json::to_vec(manifest).unwrap();
            fs_err::write(at.join(format!("{}.manifest.json", Digest::of(&bytes).hex())), bytes).unwrap();
        }
    }
}

/// Returns whether a tool written in Go failed since a document did not fit its types.
fn is_type_error(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    !output.status.success()
        && [
            "unmarshal",
            "parsing time",
            "illegal base64",
            "unsupported schema version",
            "unsupported docker v2s2 media type",
        ]
        .iter()
        .any(|part| said.contains(part))
}

#[test]
fn a01_every_field_is_judged_as_skopeo_judges_it() {
    let scratch = tempfile::tempdir().unwrap();
    // A config that is taken is judged by podman.
    let all: Vec<Case> = all_cases().into_iter().filter(|case| case.kind.is_some() || case.is_refused()).collect();
    assert!(all.len() > 1000, "{}", all.len());
    let wrong = judged(&all, |number, case| {
        let at = scratch.path().join(number.to_string());
        write_dir(&at, case);
        let output = Command::new("skopeo").arg("inspect").arg(format!("dir:{}", at.display())).output().unwrap();
        fs_err::remove_dir_all(&at).unwrap();
        let (ours, theirs) = (case.is_refused(), is_type_error(&output));
        // Newer types refuse what older ones take, and never the other way round.
        let agree = ours == theirs || (ours && case.is_newer());
        (!agree).then(|| format!("refused here: {ours}; skopeo: {}", said(&output)))
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

fn podman_images(at: &Path, run: &Path) -> Output {
    let mut podman = Command::new("podman");
    podman.arg("--root").arg(at).arg("--runroot").arg(run).args(["--storage-driver", "vfs", "images", "--format"]);
    podman.arg("{{.Repository}}").output().unwrap()
}

#[test]
fn a01_podman_lists_images_exactly_if_all_documents_are_taken() {
    if !needs_root("findings::go_types::a01_podman_lists_images_exactly_if_all_documents_are_taken") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let all = all_cases();
    // All configs that are taken, in a few stores.
    let taken: BTreeSet<&str> =
        all.iter().filter(|case| case.kind.is_none() && !case.is_refused()).map(|case| &case.text[..]).collect();
    let images: Vec<_> = taken
        .iter()
        .enumerate()
        .map(|(number, text)| {
            let case = Case { kind: None, field: String::new(), text: (*text).to_owned() };
            let (name, _, config, manifest) = stored(&format!("localhost/i{number}:1"), Some(&case));
            // A13: these years are written and read by Go, too.
            let created = ["0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00+23:59"][number % 3];
            (name, created.to_owned(), config, manifest)
        })
        .collect();
    // podman compares every image with every other one.
    for (number, images) in images.chunks(40).enumerate() {
        let store = scratch.path().join(format!("taken{number}"));
        write_store(&store, "vfs", images);
        let output = podman_images(&store, &scratch.path().join(format!("taken-run{number}")));
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), images.len());
    }

    // The first value of each field that is refused, each in a store of its own.
    let mut fields = BTreeSet::new();
    let refused: Vec<Case> = all
        .into_iter()
        .filter(|case| case.is_refused() && !case.is_newer() && !case.kind.is_some_and(Kind::is_index))
        // One of the descriptors stands for all of them, as `config` does for `container_config`.
        .filter(|case| !case.field.starts_with("subject.") && !case.field.starts_with("container_config."))
        .filter(|case| fields.insert((case.kind.map(|kind| kind as u8), case.field.clone())))
        .collect();
    assert!(refused.len() > 60, "{}", refused.len());
    let wrong = judged(&refused, |number, case| {
        let store = scratch.path().join(number.to_string());
        write_store(&store, "vfs", &[stored("localhost/good:1", None), stored("localhost/bad:1", Some(case))]);
        let output = podman_images(&store, &scratch.path().join(format!("run{number}")));
        (!is_type_error(&output)).then(|| format!("podman lists it: {}", said(&output)))
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), refused.len(), wrong.join("\n"));
}
