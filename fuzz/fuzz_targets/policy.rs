//! What the helper is told by text: the policy file, and records of layers and images. A record that it takes is one that podman
//! and CRI-O load.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prepull::go_types::{is_time, seconds_since_epoch};
use prepull::helper::policy::Policy;
use prepull::helper::publish::record::{ImageRecord, LayerRecord, is_name};
use prepull::reference::Reference;
use prepull_fuzz::choice;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match choice % 4 {
        0 => match Policy::parse(text) {
            Ok(policy) => {
                for allow in policy.allow {
                    assert!(allow.root.starts_with('/') && !allow.root.split('/').any(|name| name == ".."));
                    assert!(allow.graphroot().len() > 1 && !allow.graphroot().split('/').any(|name| name == ".."));
                }
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        },
        1 => {
            if let Ok(record) = LayerRecord::parse(text) {
                let lines = record.to_lines();
                assert_eq!(LayerRecord::parse(&lines).expect("the same").to_lines(), lines);
                assert!(seconds_since_epoch(&record.created).is_some(), "{}", record.created);
                serde_json::to_vec(&record).expect("JSON");
            }
        }
        2 => {
            if let Ok(record) = ImageRecord::parse(text) {
                let lines = record.to_lines();
                assert_eq!(ImageRecord::parse(&lines).expect("the same").to_lines(), lines);
                record.names.iter().for_each(|name| name_is_good(name));
                assert!(seconds_since_epoch(&record.created).is_some(), "{}", record.created);
            }
        }
        _ => {
            if is_name(text) {
                name_is_good(text);
            }
            if is_time(text) {
                assert!(seconds_since_epoch(text).is_some(), "{text}");
            }
        }
    }
});

/// containers/image reads it, and writes the same again.
fn name_is_good(name: &str) {
    let reference = Reference::parse_full(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(reference.to_string(), name);
    assert!(reference.is_storable(), "{name}");
}
