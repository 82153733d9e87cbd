//! What registries and token servers send: header fields, addresses, answers, certificates.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use prepull::config::SHOWN_MAX;
use prepull::registry::challenge::{self, CHALLENGES_MAX, Challenge, FIELD_MAX, PARAMETERS_MAX};
use prepull::registry::foreign::{Certificate, absolute, message, resolve, shown, token_answer};
use prepull::registry::header::{ContentRange, retry_after};
use prepull_fuzz::{choice, parts};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 6 {
        0 => challenges(rest),
        1 => headers(rest),
        2 => addresses(rest),
        3 => token(rest),
        4 => {
            let said = message(rest);
            assert!(said.chars().count() <= SHOWN_MAX + 5 && !said.chars().any(char::is_control));
        }
        _ => {
            let _ = Certificate::parse(rest);
        }
    }
});

fn challenges(rest: &[u8]) {
    let fields: [&[u8]; 3] = parts(rest);
    let Ok(fields): Result<Vec<&str>, _> = fields.into_iter().map(std::str::from_utf8).collect() else { return };
    let parsed = challenge::parse(fields.iter().copied());
    assert!(parsed.len() <= CHALLENGES_MAX);
    for challenge in &parsed {
        assert!(challenge.parameters.len() <= PARAMETERS_MAX && !challenge.scheme.is_empty());
        assert!(!challenge.scheme.bytes().any(|byte| byte.is_ascii_uppercase()));
    }
    let written: Vec<String> = parsed.iter().map(write).collect();
    let written = written.join(", ");
    if written.len() <= FIELD_MAX {
        assert_eq!(challenge::parse([written.as_str()]), parsed, "{written}");
    }
}

fn write(challenge: &Challenge) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let parameters: Vec<_> =
        challenge.parameters.iter().map(|(name, value)| format!("{name}={}", quote(value))).collect();
    format!("{} {}", challenge.scheme, parameters.join(", "))
}

fn headers(rest: &[u8]) {
    let Ok(field) = std::str::from_utf8(rest) else { return };
    if let Some(range) = ContentRange::parse(field) {
        assert!(range.first <= range.last && range.complete.is_none_or(|complete| range.last < complete));
        let complete = range.complete.map_or("*".to_owned(), |complete| complete.to_string());
        let written = format!("bytes {}-{}/{complete}", range.first, range.last);
        assert_eq!(ContentRange::parse(&written), Some(range));
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    if let Some(wait) = retry_after(field, now) {
        assert!(retry_after(&wait.as_secs().to_string(), now).is_some_and(|again| again.as_secs() == wait.as_secs()));
    }
}

fn addresses(rest: &[u8]) {
    let [base, location] = parts(rest);
    let Ok(base) = std::str::from_utf8(base) else { return };
    let Some(base) = absolute(base) else { return };
    let is_sound = |uri: &str| {
        let again = absolute(uri).expect("an address stays one");
        assert_eq!(again.to_string(), uri);
        let authority = again.authority().map_or("", |authority| authority.as_str());
        assert!(!authority.contains('@') && again.host().is_some_and(|host| !host.is_empty()), "{uri}");
        assert!(uri.starts_with("http://") || uri.starts_with("https://"), "{uri}");
        let shown = shown(&again);
        assert!(!shown.contains('?') && uri.starts_with(&shown), "{shown}");
    };
    is_sound(&base.to_string());
    if let Some(next) = resolve(&base, location) {
        let text = next.uri.to_string();
        is_sound(&text);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
        assert!(next.authorization.is_none_or(|value| value.expose().starts_with("Basic ")));
        let again = resolve(&base, text.as_bytes()).expect("an absolute address is its own target");
        assert_eq!((again.uri, again.authorization), (next.uri, None));
    }
}

fn token(rest: &[u8]) {
    let Some((authorization, lifetime)) = token_answer(rest) else { return };
    let token = authorization.expose().strip_prefix("Bearer ").expect("a bearer token");
    assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(lifetime <= Duration::from_secs(24 * 3600));
}
