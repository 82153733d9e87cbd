//! What `prepull` says of itself, and to who types something wrong.

use serde_json::Value;

use crate::command::{fails, hello, prepull, stderr, succeeds};

const COMMANDS: [&[&str]; 16] = [
    &[],
    &["install"],
    &["mount"],
    &["mount", "add"],
    &["umount"],
    &["rm"],
    &["gc"],
    &["doctor"],
    &["make"],
    &["ls"],
    &["why"],
    &["ovl"],
    &["cache"],
    &["cache", "prune"],
    &["completions"],
    &["man"],
];

#[test]
fn help_reads_well() {
    let scratch = tempfile::tempdir().unwrap();
    for command in COMMANDS {
        for help in ["-h", "--help"] {
            let text = succeeds(prepull(scratch.path()).env("COLUMNS", "100").args(command).arg(help));
            assert!(text.lines().all(|line| line.chars().count() <= 140), "{text}");
            insta::assert_snapshot!([&["prepull"], command, &[help.trim_start_matches('-')]].concat().join("-"), text);
        }
    }
}

#[test]
fn what_is_typed_wrong_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    for (arguments, part) in [
        (&[][..], "Usage: prepull"),
        (&["--frobnicate"], "no option --frobnicate"),
        (&["make"], "usage: prepull make"),
        (&["make", "--frobnicate", "a:1"], "make: no option --frobnicate"),
        (&["make", "alpine"], "alpine: an image needs its version"),
        (&["frobnicate"], "no command frobnicate"),
        (&["ls", "a", "b"], "b: one argument too many"),
        (&["cache", "prune", "--max-size", "much"], "not a size such as 5G"),
        (&["cache", "prune", "--older-than", "long"], "not a duration such as 30d"),
        (&["cache", "prune", "--all", "--max-size", "1"], "cannot be used with"),
        (&["completions", "cmd"], "bash"),
    ] {
        fails(prepull(at).current_dir(at).args(arguments), 2, part);
    }
    assert!(fs_err::read_dir(at).unwrap().next().is_none(), "nothing was written");
    assert_eq!(succeeds(prepull(at).arg("--version")), format!("prepull {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = succeeds(prepull(at).args(["completions", shell]));
        assert!(text.contains("make") && text.contains("no-cache"), "{shell}");
    }
    succeeds(prepull(at).current_dir(at).args(["man", "man/man1"]));
    for command in COMMANDS {
        let name = [&["prepull"], command].concat().join("-");
        let page = fs_err::read_to_string(at.join(format!("man/man1/{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(&name.replace('-', "\\-")), "{name}: {page}");
    }
}

#[test]
fn the_cache_is_shown_and_pruned() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let cache = |arguments: &[&str]| -> Value {
        let text = succeeds(prepull(at).args(["cache", "--json"]).args(arguments));
        serde_json::from_str(&text).unwrap()
    };
    let empty = cache(&[]);
    assert_eq!((&empty["layers"], &empty["size"]), (&0.into(), &0.into()));
    assert!(fs_err::read_dir(at).unwrap().next().is_none(), "looking makes nothing");
    succeeds(prepull(at).args(["make", "-o", "/dev/null", &hello()]));
    let full = cache(&[]);
    assert_eq!(full["layers"], 3);
    assert_eq!(full["directory"], at.join(".cache/prepull").display().to_string());
    assert!(full["oldestUse"].as_str() <= full["newestUse"].as_str());
    let text = succeeds(prepull(at).arg("cache"));
    assert!(text.contains("Layers       3\n"), "{text}");

    assert_eq!(cache(&["prune"])["removedLayers"], 0);
    assert_eq!(cache(&["prune", "--older-than", "1h"])["removedLayers"], 0);
    let largest = full["size"].as_u64().unwrap() - 1;
    assert_eq!(cache(&["prune", "--max-size", &largest.to_string()])["removedLayers"], 1);
    let output = prepull(at).args(["cache", "prune", "--all"]).output().unwrap();
    assert!(output.stdout.is_empty() && stderr(&output).starts_with("removed 2 layer(s), "));
    assert_eq!(cache(&[])["layers"], 0);
    // It is made again.
    succeeds(prepull(at).args(["make", "-o", "/dev/null", &hello()]));
    assert_eq!(cache(&["prune", "--older-than", "0s"])["removedLayers"], 3);
}
