//! What users type and write into image lists: what was understood is written so that it is understood the same way.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;
use prepull::digest::Digest;
use prepull::image::Platform;
use prepull::reference::{
    DaemonImage, Item, LIST_ITEMS_MAX, Location, NAME_LENGTH_MAX, Reference, TAG_LENGTH_MAX, parse_list,
};
use prepull_fuzz::choice;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    if choice & 1 == 1 {
        return list(rest);
    }
    if let Ok(item) = Item::parse(OsStr::from_bytes(rest)) {
        check_item(&item);
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(Digest::from_hex(&digest.hex()), Ok(digest));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string(), text);
        assert_eq!(platform.rank(&platform), Some(0));
    }
    let parsed = Reference::parse(text);
    if let Ok(reference) = &parsed {
        check(reference);
        assert_eq!(Reference::parse_or_latest(text).as_ref(), Ok(reference));
    }
    if let Ok(full) = Reference::parse_full(text) {
        assert_eq!(parsed, Ok(full));
    }
    if let Ok(reference) = Reference::parse_or_latest(text) {
        check(&reference);
    }
});

fn check(reference: &Reference) {
    let written = reference.to_string();
    let again = Reference::parse(&written);
    assert_eq!(again.as_ref(), Ok(reference), "{written}");
    assert!(reference.name().len() <= NAME_LENGTH_MAX);
    assert!(reference.tag().is_none_or(|tag| tag.len() <= TAG_LENGTH_MAX));
    assert!(reference.tag().is_some() || reference.digest().is_some());
    let familiar = reference.familiar();
    if !familiar.starts_with("sha256:") || reference.tag().is_none() {
        // A name of 64 hexadecimal digits is an id when it stands alone, so it may be refused; it is never another image.
        assert!(Reference::parse(&familiar).is_ok_and(|again| again == *reference), "{familiar}");
    }
    let digest = Digest::of(b"");
    let pinned = reference.with_digest(digest);
    assert_eq!(Reference::parse(&pinned.to_string()), Ok(pinned));
    let named = reference.without_digest();
    assert_eq!(Reference::parse(&named.to_string()), Ok(named));
}

fn check_item(item: &Item) {
    assert!(!item.typed.chars().any(char::is_control), "{:?}", item.typed);
    if let Some(name) = &item.name {
        check(name);
    }
    match &item.location {
        Location::Registry(reference) => {
            assert!(!reference.domain().is_empty());
            check(reference);
        }
        Location::DockerDaemon(DaemonImage::Name(reference)) => check(reference),
        Location::DockerDaemon(DaemonImage::Id(_)) => {}
        Location::OciLayout { path, .. }
        | Location::OciArchive { path, .. }
        | Location::DockerArchive { path, .. }
        | Location::Dir { path } => assert!(!path.as_os_str().is_empty()),
        Location::Overlay(name) => assert!(!name.contains(':')),
    }
}

fn list(bytes: &[u8]) {
    let Ok(items) = parse_list(bytes) else { return };
    assert!(items.len() <= LIST_ITEMS_MAX);
    items.iter().for_each(check_item);
    // Comments and line ends do not count.
    let noisy: Vec<u8> = bytes.split(|byte| *byte == b'\n').flat_map(|line| [line, b" # x\r\n\r\n"].concat()).collect();
    if let Ok(again) = parse_list(&noisy) {
        assert_eq!(again, items);
    }
}
