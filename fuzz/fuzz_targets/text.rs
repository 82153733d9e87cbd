//! Small things: ACLs, JSON as Go reads and writes it, times, and what is typed on the command line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prepull::cli::Args;
use prepull::cli::args::{CacheCommand, Command};
use prepull::go_types::{go_time, seconds_since_epoch, utc};
use prepull::json::{self, Document, View};
use prepull::layer::acl::Acl;
use prepull_fuzz::{choice, parts};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 6 {
        0 | 1 => acl(rest),
        2 => documents(rest),
        3 => time(rest),
        4 => quantities(rest),
        _ => arguments(rest),
    }
});

fn acl(rest: &[u8]) {
    let Some((&[high, low], value)) = rest.split_first_chunk::<2>() else { return };
    let mode = u16::from_be_bytes([high, low]) & 0o7777;
    let Ok(mut acl) = Acl::parse(value) else { return };
    let encoded = acl.encode();
    assert_eq!(Acl::parse(&encoded).expect("what was encoded can be parsed").encode(), encoded);
    assert_eq!(encoded.len(), value.len());
    let (found, _) = acl.mode(mode);
    assert_eq!(found & !0o777, mode & !0o777, "an ACL says nothing of these bits");
    acl.chmod(mode);
    assert!(Acl::parse(&acl.encode()).is_ok());
    if !acl.is_empty() {
        assert_eq!(acl.mode(mode).0, mode, "chmod says the bits");
    }
}

fn documents(rest: &[u8]) {
    let [key, text] = parts(rest);
    let key = String::from_utf8_lossy(key);
    if let Ok(document) = Document::parse(text) {
        assert!(Document::parse_first(text).is_ok());
        look(&document.top(), &key, 0);
    }
    let text = String::from_utf8_lossy(text);
    let mut written = Vec::new();
    json::write::string(&mut written, &text);
    assert_eq!(serde_json::from_slice::<String>(&written).ok().as_deref(), Some(&*text));
    assert!(!written.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&') || byte.is_ascii_control() && *byte != 0x7f));
}

fn look(view: &View<'_>, key: &str, depth: usize) {
    let _ = (view.text(), view.get_text(key), view.get_size(key), view.entry(key), view.get_items(key));
    if depth > 4 {
        return;
    }
    if let Ok(items) = view.items() {
        items.take(9).for_each(|item| look(&item, key, depth + 1));
    }
    for key in [key, "A", "size"] {
        if let Ok(Some(member)) = view.get(key) {
            look(&member, key, depth + 1);
        }
    }
}

fn time(rest: &[u8]) {
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let seconds = seconds_since_epoch(text);
    let written = go_time(text);
    if let Some(written) = &written {
        assert_eq!(seconds_since_epoch(written), seconds, "{text}");
        assert_eq!(go_time(written).as_ref(), Some(written), "{text}");
    }
    if let Some(seconds) = seconds.filter(|seconds| (-62_135_596_800..=253_402_300_799).contains(seconds)) {
        assert_eq!(seconds_since_epoch(&utc(seconds)), Some(seconds), "{text}");
    }
}

fn quantities(rest: &[u8]) {
    let [size, age] = parts(rest);
    let (Ok(size), Ok(age)) = (std::str::from_utf8(size), std::str::from_utf8(age)) else { return };
    let parse = |option: String| {
        let Ok(Args { command: Command::Cache(cache), .. }) = clap_parse(&["cache", "prune", &option]) else {
            return None;
        };
        cache.command.map(|CacheCommand::Prune(prune)| (prune.max_size, prune.older_than))
    };
    if let Some((Some(bytes), None)) = parse(format!("--max-size={size}")) {
        assert_eq!(parse(format!("--max-size={bytes}")), Some((Some(bytes), None)));
    }
    if let Some((None, Some(duration))) = parse(format!("--older-than={age}")) {
        assert_eq!(parse(format!("--older-than={}s", duration.as_secs())), Some((None, Some(duration))));
    }
}

fn arguments(rest: &[u8]) {
    let text = String::from_utf8_lossy(rest);
    let words: Vec<&str> = text.split('\0').take(20).collect();
    let _ = clap_parse(&words);
}

fn clap_parse(words: &[&str]) -> Result<Args, String> {
    use clap::Parser as _;
    Args::try_parse_from(std::iter::once("prepull").chain(words.iter().copied())).map_err(|error| error.to_string())
}
