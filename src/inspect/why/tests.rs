//! Tests of `why`, on machines made of a few strings.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::files::Kept;
use super::near::is_typo;
use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "abbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A machine: stores by their path, with images.json; and files. Every image gets a config.
struct Machine {
    found: Vec<Found>,
    kept: Vec<(String, String)>,
}

impl Machine {
    fn new(stores: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        use base64::Engine as _;
        let mut kept: Vec<(String, String)> = files.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        let mut found = Vec::new();
        for (path, images) in stores {
            for id in [A, B] {
                let key = base64::engine::general_purpose::STANDARD.encode(format!("sha256:{id}"));
                let config = r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#;
                kept.push((format!("{path}/overlay-images/{id}/={key}"), config.into()));
            }
            found.push(Found {
                graphroot: (*path).into(),
                driver: "overlay".into(),
                images: images.as_bytes().to_vec(),
                ..Found::default()
            });
        }
        Self { found, kept }
    }

    fn why(&self, name: &str) -> Why {
        let mut kept = Kept::default();
        for (path, text) in &self.kept {
            kept.file(path.clone(), text.clone().into_bytes()).unwrap();
        }
        let files = Files::of_tar(kept);
        let config = MachineConfig::read(&files).unwrap();
        why(name, &self.found, &files, &config).unwrap()
    }

    /// The id that is found, and the store.
    fn finds(&self, name: &str) -> Option<(String, String)> {
        self.why(name).image.map(|image| (image.id, image.store))
    }
}

fn image(id: &str, names: &[&str], digest: char) -> String {
    let data = format!("sha256:{id}");
    let digest = format!("sha256:{}", digest.to_string().repeat(64));
    serde_json::json!({"id": id, "names": names, "digest": digest, "big-data-names": [data], "big-data-sizes": {data: 10}})
        .to_string()
}

fn images(images: &[String]) -> String {
    format!("[{}]", images.join(","))
}

const VAR: &str = "var/lib/containers/storage";
const USR: &str = "usr/lib/containers/storage";

#[test]
fn the_primary_store_wins_and_then_the_listed_order() {
    let records = |id| images(&[image(id, &["h.io/a:1"], '1')]);
    let conf = "[storage]\ngraphroot='/p'\n[storage.options]\nadditionalimagestores=['/y','/x']";
    let conf = ("etc/containers/storage.conf", conf);
    let both = Machine::new(&[("p", &records(B)), ("x", &records(A)), ("y", &records(A))], &[conf]);
    assert_eq!(both.finds("h.io/a:1"), Some((B.into(), "p".into())));
    let roles: Vec<_> = both.why("h.io/a:1").stores.into_iter().map(|store| (store.graphroot, store.role)).collect();
    let expected = [("p", Role::Primary), ("y", Role::Additional), ("x", Role::Additional)];
    assert_eq!(roles, expected.map(|(path, role)| (path.to_owned(), role)));
    let without = Machine::new(&[("x", &records(A)), ("y", &records(B))], &[conf]);
    assert_eq!(without.finds("h.io/a:1"), Some((B.into(), "y".into())));
    let unread = Machine::new(&[("p", "[]"), ("z", &records(A))], &[conf]);
    let why = unread.why("h.io/a:1");
    assert_eq!(why.verdict, Verdict::NotFound);
    assert_eq!(why.suggestions[0].reason.to_string(), "in a store that CRI-O does not read");
    assert_eq!(why.notes.iter().filter(|note| note.contains("CRI-O does not start")).count(), 2, "{:?}", why.notes);
    // The primary store has the image under another name: its name was taken away there.
    let renamed = Machine::new(&[("p", &images(&[image(A, &["h.io/b:1"], '1')])), ("x", &records(A))], &[conf]);
    let why = renamed.why("h.io/a:1");
    assert_eq!(why.verdict, Verdict::NotFound);
    assert_eq!(why.suggestions[0].reason.to_string(), "the primary store has this image too, and not under this name");
}

#[test]
fn of_two_images_with_one_name_the_last_has_it() {
    let records = images(&[image(A, &["h.io/a:1", "h.io/b:1"], '1'), image(B, &["h.io/a:1"], '2')]);
    let primary = Machine::new(&[(VAR, &records)], &[]);
    assert_eq!(primary.finds("h.io/a:1").unwrap().0, B);
    let why = primary.why("h.io/b:1");
    let image = why.image.unwrap();
    assert_eq!((image.names, image.lost_names), (vec!["h.io/b:1".to_owned()], vec!["h.io/a:1".to_owned()]));
    assert_eq!(why.verdict, Verdict::Usable);
    let additional = Machine::new(&[(VAR, "[]"), (USR, &records)], &[]).why("h.io/a:1");
    assert_eq!(additional.image.unwrap().id, B);
}

#[test]
fn digests_and_ids_are_found() {
    let records = images(&[image(A, &["h.io/a:1"], '1'), image(B, &[], '2')]);
    let machine = Machine::new(&[(VAR, &records)], &[]);
    let digest = |digit: &str| format!("@sha256:{}", digit.repeat(64));
    for (name, id, by) in [
        (format!("h.io/a{}", digest("1")), Some(A), FoundBy::Digest),
        (format!("h.io/a:other{}", digest("1")), Some(A), FoundBy::Digest),
        (format!("h.io/b{}", digest("1")), None, FoundBy::Digest),
        (format!("h.io/a{}", digest("2")), None, FoundBy::Digest),
        (A.into(), Some(A), FoundBy::Id),
        ("aaa".into(), Some(A), FoundBy::Id),
        ("abb".into(), Some(B), FoundBy::Id),
        ("ab".into(), None, FoundBy::Id),
        ("abc".into(), None, FoundBy::Id),
        ("0".repeat(64), None, FoundBy::Id),
    ] {
        let found = machine.why(&name).image;
        assert_eq!(found.as_ref().map(|image| (image.id.as_str(), image.found_by)), id.map(|id| (id, by)), "{name}");
    }
    for id in [A, "aaa"] {
        let why = machine.why(id);
        assert_eq!((why.verdict, why.pull.is_none()), (Verdict::IdOnly, true), "{id}");
    }
    let one = format!("{}0", &A[..63]);
    let records = images(&[image(A, &[], '1'), image(&one, &[], '2')]);
    let ambiguous = Machine::new(&[(VAR, &records)], &[]);
    assert_eq!((ambiguous.finds("aaa"), ambiguous.finds(A).unwrap().0), (None, A.to_owned()));
}

#[test]
fn short_names_take_the_machines_registries() {
    let records = images(&[image(A, &["docker.io/library/a:1", "q.io/x/y:latest"], '1')]);
    let machine = |conf: &str| Machine::new(&[(VAR, &records)], &[("etc/containers/registries.conf", conf)]);
    let none = Machine::new(&[(VAR, &records)], &[]).why("a:1");
    assert_eq!((none.verdict, none.suggestions[0].reason), (Verdict::Invalid, Nearness::FullName));
    assert_eq!(machine("").finds("a:1"), None);
    assert_eq!(machine("unqualified-search-registries=['docker.io']").why("a:1").verdict, Verdict::Usable);
    let two = machine("unqualified-search-registries=['q.io', 'docker.io']").why("a:1");
    assert_eq!(
        (two.verdict, two.image.unwrap().resolved.unwrap().as_str()),
        (Verdict::Broken, "docker.io/library/a:1")
    );
    assert_eq!(machine("[aliases]\nz='q.io/x/y'").why("z").verdict, Verdict::Pulls);
    assert_eq!(machine("[aliases]\nz='q.io/x/y'").finds("z:2"), None);
    let bad = machine("[aliases]\nz='y'").why("z");
    assert_eq!(bad.lookup.error.unwrap(), "etc/containers/registries.conf:2: \"y\" cannot be the name of an alias");
    assert!(machine("unqualified-search-registries=['Q_']").why("a:1").lookup.error.is_some());
}

#[test]
fn pins_fit_as_in_crio() {
    for (pattern, name, expected) in [
        ("h.io/a:1", "h.io/a:1", Some(Fits::Exactly)),
        ("H.io/A:1", "h.io/a:1", Some(Fits::Exactly)),
        ("h.io/a", "h.io/a:1", None),
        ("h.io/a*", "h.io/a:1", Some(Fits::Anywhere)),
        ("a*", "h.io/a:1", Some(Fits::Anywhere)),
        ("*/a*", "h.io/a:1", Some(Fits::Anywhere)),
        ("*a:1", "h.io/a:1", None),
        ("b*", "h.io/a:1", None),
        ("**", "h.io/a:1", Some(Fits::Anywhere)),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
    let records = images(&[image(A, &["h.io/a:1"], '1')]);
    let conf = "[crio.image]\npause_image='h.io/a:1'\npinned_images=['*']";
    let why = Machine::new(&[(VAR, &records)], &[("etc/crio/crio.conf", conf)]).why("h.io/a:1");
    assert!(why.problems[0].starts_with("etc/crio/crio.conf:3: \"*\""), "{:?}", why.problems);
    assert!(why.pause.is_pause_image && why.pause.wanted[0].present);
}

#[test]
fn the_default_pull_policy_is_that_of_kubernetes() {
    let digest = format!("@sha256:{}", "1".repeat(64));
    for (name, policy) in [
        ("h.io/a", "Always"),
        ("h.io:80/a", "Always"),
        ("h.io/a:latest", "Always"),
        ("h.io/a:1", "IfNotPresent"),
        (&format!("h.io/a{digest}"), "IfNotPresent"),
        (&format!("h.io/a:latest{digest}"), "Always"),
    ] {
        assert_eq!(pull(name, true).policy, policy, "{name}");
    }
}

#[test]
fn near_misses_are_named() {
    let names = ["h.io/app:1", "busybox:1.36", "q.io/x/tool:2"];
    let machine = Machine::new(&[(VAR, &images(&[image(A, &names, '1')]))], &[]);
    for (name, near, reason) in [
        ("h.io/app:2", names[0], "the same repository"),
        ("h.io/App:1", names[0], "as it must be written"),
        ("docker://h.io/app:1", names[0], "as it must be written"),
        ("h.io/ap:1", names[0], "a few letters differ"),
        ("h.io/paap:1", names[0], "a few letters differ"),
        ("docker.io/library/busybox:1.36", names[1], "stored under a short name, by which CRI-O never finds it"),
        ("other.io/x/tool:2", names[2], "another registry"),
        ("other.io/tool:2", names[2], "another repository of this name"),
    ] {
        let why = machine.why(name);
        let first = why.suggestions.first().map(|near| (near.name.as_str(), near.reason.to_string()));
        assert_eq!(first, Some((near, reason.to_owned())), "{name}");
    }
    assert_eq!(machine.why("quite/different:9").suggestions, []);
    // A short name in the store is only never found.
    assert_eq!(machine.why("h.io/app:1").verdict, Verdict::Usable);
}

/// The plain algorithm.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            next.push((row[j] + usize::from(x != y)).min(row[j + 1] + 1).min(next[j] + 1));
        }
        row = next;
    }
    row[b.len()]
}

proptest! {
    #[test]
    fn typos_are_counted(a in "[ab]{0,8}", b in "[ab]{0,8}") {
        prop_assert_eq!(is_typo(&a, &b), distance(a.as_bytes(), b.as_bytes()) <= super::near::TYPOS_MAX, "{} {}", a, b);
    }

    #[test]
    fn no_name_panics(name in "\\PC{0,40}|[a-c.:/@*]{0,20}(@sha256:[0-9a-f]{0,70})?", stored in "\\PC{0,20}|[a-c.:/@]{0,12}", pattern in "\\PC{0,5}|[a-c*]{0,4}") {
        let record = serde_json::json!([{"id": stored, "names": [stored, name], "digest": stored, "big-data-names": [stored, format!("sha256:{A}")],
            "big-data-digests": {"manifest": name}}]).to_string();
        let set = |value: &str| Set { value: value.to_owned(), origin: Origin { file: "f".into(), line: 1 } };
        let config = MachineConfig {
            pinned: Some(vec![set(&pattern)]),
            pause: Some(set(&stored)),
            search: Some(vec![set(&pattern), set("docker.io")]),
            aliases: BTreeMap::from([(stored.clone(), set(&pattern))]),
            additional: vec![set(&pattern)],
            ..MachineConfig::default()
        };
        let store = |path: &str| Found { graphroot: path.into(), driver: "overlay".into(), images: record.clone().into_bytes(), ..Found::default() };
        let files = Files::of_tar(Kept::default());
        for name in [&name, &stored, &pattern] {
            why(name, &[store(VAR), store(USR)], &files, &config).unwrap();
            why(name, &[store("")], &files, &MachineConfig::default()).unwrap();
        }
    }
}
