//! Files and variables that say who we are and whom we trust: credentials, helpers' answers, certificates, proxies. No error
//! shows a secret.
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use prepull::config::auth::{Answer, AuthFile, Credentials};
use prepull::config::{Environment, ProxyVariables, SHOWN_MAX, auth, certs, clean, helper};
use prepull::registry::{Client, Options};
use prepull_fuzz::{choice, parts, scratch};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 8 {
        0..=2 => credentials(rest, false),
        3 => credentials(rest, true),
        4 => answer(rest),
        5 => certificates(rest, choice & 0x80 != 0),
        6 => client(rest),
        _ => {
            let text = String::from_utf8_lossy(rest);
            let cleaned = clean(&text);
            assert!(!cleaned.chars().any(char::is_control) && cleaned.chars().count() <= SHOWN_MAX + 3);
            if cleaned.chars().count() <= SHOWN_MAX {
                assert_eq!(clean(&cleaned), cleaned);
            }
        }
    }
});

/// What a file of credentials says of a name; the name comes first.
fn credentials(rest: &[u8], legacy: bool) {
    let [key, text] = parts(rest);
    let (Ok(key), Ok(text)) = (std::str::from_utf8(key), std::str::from_utf8(text)) else { return };
    let Ok(file) = AuthFile::parse(text, legacy) else { return };
    for key in [key, "docker.io/library/a", "quay.io/a/b"] {
        match file.lookup(key) {
            Ok(Answer::Credentials(credentials)) => assert!(!credentials.is_empty()),
            Ok(Answer::Helper { name, servers, .. }) => assert!(!name.is_empty() && !servers.is_empty()),
            Ok(Answer::Nothing) => {}
            Err(error) => assert!(error.to_string().len() < text.len() * 10 + 200),
        }
    }
    // The same through the file system.
    let path = scratch().join("auth.json");
    fs_err::write(&path, text).expect("a scratch file");
    let environment = Environment { home: "/nowhere".into(), path: Some("/nowhere".into()), ..Environment::default() };
    // A helper would be a process.
    if !legacy && !matches!(file.lookup(key), Ok(Answer::Helper { .. })) {
        let found = auth::find(key, Some(&path), &environment);
        match file.lookup(key) {
            Ok(Answer::Credentials(credentials)) => assert!(found.is_ok_and(|found| found == Some(credentials))),
            Ok(_) => assert!(found.is_ok_and(|found| found.is_none())),
            Err(_) => assert!(found.is_err()),
        }
    }
}

fn answer(rest: &[u8]) {
    if let Ok(text) = std::str::from_utf8(rest)
        && let Ok(credentials) = Credentials::parse(text)
    {
        assert!(!credentials.username.is_empty() && !credentials.username.contains(':'));
        let password = credentials.password.expose();
        assert!(text == credentials.username || text == format!("{}:{password}", credentials.username));
    }
    if let Some(credentials) = helper::parse(rest) {
        assert!(credentials.identity_token.is_none() || credentials.username.is_empty());
        let secret = credentials.password.expose();
        if secret.len() > 8 {
            assert!(!format!("{credentials:?}").contains(&format!("{secret:?}")), "a secret is shown");
        }
    }
}

/// What stands in for a secret.
const MARK: &str = "Zmk4eHJ0";

/// A directory of certs.d, as a client of a registry reads it.
fn certificates(rest: &[u8], named: bool) {
    let [authority, certificate, key] = parts(rest);
    let directory = scratch().join("certs.d/localhost:1");
    fs_err::create_dir_all(&directory).expect("a scratch directory");
    for (name, bytes) in [("ca.crt", authority), ("client.cert", certificate), ("client.key", key)] {
        let path = directory.join(name);
        if bytes.is_empty() {
            let _ = fs_err::remove_file(path);
        } else {
            fs_err::write(path, [bytes, b"\n", MARK.as_bytes()].concat()).expect("a scratch file");
        }
    }
    let loaded = certs::load(&directory, named);
    let is_complete = certificate.is_empty() == key.is_empty();
    assert_eq!(loaded.is_ok(), is_complete);
    let mut options = options();
    options.cert_dir = Some(directory);
    let client = Client::new("localhost:1", "a", &options);
    assert!(is_complete || client.is_err());
    if let Err(error) = client {
        assert!(!error.to_string().contains(MARK), "an error shows what is in a file");
    }
}

fn options() -> Options {
    // Files that are not there, so that nothing of this machine is looked at.
    let nowhere = |name: &str| Some(PathBuf::from("/nowhere").join(name));
    Options::new(Environment {
        home: "/nowhere".into(),
        registry_auth_file: nowhere("auth.json"),
        xdg_config_home: nowhere("config"),
        path: Some("/nowhere".into()),
        ..Environment::default()
    })
}

/// Host, repository and proxies: nothing is connected to.
fn client(rest: &[u8]) {
    let texts: [&[u8]; 5] = parts(rest);
    let texts = texts.map(|text| std::str::from_utf8(text).unwrap_or(""));
    let [host, repository, https, http, none] = texts;
    let https = &https.replacen("://", &format!("://{MARK}:{MARK}@"), 1);
    let mut options = options();
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    options.environment.proxy = ProxyVariables { https: set(https), http: set(http), none: set(none) };
    options.cert_dir = Some(empty_directory());
    if let Err(error) = Client::new(host, repository, &options) {
        assert!(!error.to_string().contains(MARK), "an error shows a proxy's password");
    }
}

fn empty_directory() -> PathBuf {
    let directory: &Path = scratch();
    let directory = directory.join("empty");
    fs_err::create_dir_all(&directory).expect("a scratch directory");
    directory
}
