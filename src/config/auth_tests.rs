//! Tests of [`super`]: apart, as they are as long as what they test.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

/// `auth` of `user:word`.
fn auth(pair: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(pair)
}

fn user(file: &str, key: &str) -> Option<String> {
    match AuthFile::parse(file, false).unwrap().lookup(key).unwrap() {
        Answer::Credentials(credentials) => Some(credentials.username),
        Answer::Nothing => None,
        Answer::Helper { .. } => panic!("{key} asks a helper"),
    }
}

fn entries(keys: &[&str]) -> String {
    let entries: Vec<_> =
        keys.iter().map(|key| format!(r#""{key}":{{"auth":"{}"}}"#, auth(&format!("{key}:w")))).collect();
    format!(r#"{{"auths":{{{}}}}}"#, entries.join(","))
}

#[test]
fn the_most_specific_key_wins() {
    let file = entries(&["quay.io/org/repo", "quay.io/org", "quay.io", "localhost:5000/a"]);
    for (key, expected) in [
        ("quay.io/org/repo", Some("quay.io/org/repo")),
        ("quay.io/org/repo/sub", Some("quay.io/org/repo")),
        ("quay.io/org/other", Some("quay.io/org")),
        ("quay.io/organisation/x", Some("quay.io")),
        ("quay.io", Some("quay.io")),
        ("sub.quay.io/org/repo", None),
        ("localhost:5000/a/b", Some("localhost")),
        ("localhost:5000/b", None),
        ("localhost/a", None),
    ] {
        assert_eq!(user(&file, key).as_deref(), expected, "{key}");
    }
}

#[test]
fn urls_and_docker_hub_names_are_normalised() {
    for (key, wanted, found) in [
        ("https://index.docker.io/v1/", "docker.io/library/alpine", true),
        ("index.docker.io", "docker.io/library/alpine", true),
        ("docker.io", "docker.io/library/alpine", true),
        ("registry-1.docker.io", "docker.io/library/alpine", true),
        ("https://quay.io/v1/", "quay.io/org/repo", true),
        ("http://localhost:5000", "localhost:5000/app", true),
        ("https://quay.io/v1/", "quay.io.evil/app", false),
        ("quay.io/v1/", "quay.io/app", false),
        ("docker.io/library", "docker.io/library/alpine", true),
    ] {
        let file = format!(r#"{{"auths":{{"{key}":{{"auth":"{}"}}}}}}"#, auth("u:w"));
        assert_eq!(user(&file, wanted).is_some(), found, "{key} for {wanted}");
    }
    // Several that match: always the same one.
    let file = entries(&["https://quay.io/v2/", "https://quay.io/v1/", "http://quay.io"]);
    assert_eq!(user(&file, "quay.io/a").as_deref(), Some("http"));
}

#[test]
fn the_legacy_file_has_no_namespaces() {
    let text = format!(r#"{{"https://quay.io/v1/":{{"auth":"{}"}},"quay.io/org":{{"auth":"eHg6eA=="}}}}"#, auth("u:w"));
    let file = AuthFile::parse(&text, true).unwrap();
    let Answer::Credentials(credentials) = file.lookup("quay.io/org/repo").unwrap() else { panic!() };
    assert_eq!(credentials, Credentials::basic("u", "w"));
}

#[test]
fn entries_are_decoded_as_containers_image_does() {
    let decode = |entry: &str| {
        let file = format!(r#"{{"auths":{{"h":{entry}}},"unknown":[1]}}"#);
        AuthFile::parse(&file, false).unwrap().lookup("h/a")
    };
    let credentials = |text: &str| {
        decode(text).map(|answer| match answer {
            Answer::Credentials(credentials) => Some(credentials),
            _ => None,
        })
    };
    let with = |pair: &str| format!(r#"{{"auth":"{}"}}"#, auth(pair));
    assert_eq!(credentials(&with("u:p:q")), Ok(Some(Credentials::basic("u", "p:q"))));
    assert_eq!(credentials(&with("u:p\0\0")), Ok(Some(Credentials::basic("u", "p"))));
    assert_eq!(credentials(&with("u:")), Ok(Some(Credentials::basic("u", ""))));
    assert_eq!(credentials(&with("no colon")), Ok(None));
    assert_eq!(credentials("{}"), Ok(None));
    assert_eq!(credentials("null"), Ok(None));
    assert_eq!(credentials(r#"{"auth":"","identitytoken":"t"}"#), Ok(Some(Credentials::identity("t"))));
    let both = format!(r#"{{"auth":"{}","identitytoken":"t"}}"#, auth("u:p"));
    let found = credentials(&both).unwrap().unwrap();
    assert_eq!((found.username.as_str(), found.identity_token), ("u", Some(Secret::new("t"))));
    assert_eq!(credentials(r#"{"auth":"***"}"#), Err(ParseError::Auth { key: "h".into() }));
    // A broken entry of another registry does not matter.
    let file = format!(r#"{{"auths":{{"x":{{"auth":"***"}},"h":{}}}}}"#, with("u:p"));
    assert_eq!(user(&file, "h").as_deref(), Some("u"));
}

#[test]
fn username_and_password_without_auth_are_credentials() {
    let decode = |entry: &str| {
        let file = AuthFile::parse(&format!(r#"{{"auths":{{"h":{entry}}}}}"#), false).unwrap();
        file.lookup("h/a").unwrap()
    };
    let both = Answer::Credentials(Credentials::basic("u", "p"));
    for entry in [
        r#"{"username":"u","password":"p"}"#,
        r#"{"username":"u","password":"p","email":"e@x","auth":""}"#,
        r#"{"Username":"u","PASSWORD":"p","auth":null}"#,
        r#"{"auth":"dTpw","username":"other","password":"other"}"#,
        r#"{"auth":"dTp w\n","auth":"dTpw"}"#,
        // kubelet: base64 without padding.
        r#"{"auth":"dTpw"}"#,
    ] {
        assert_eq!(decode(entry), both, "{entry}");
    }
    assert_eq!(decode(r#"{"auth":"dXNlcjpw"}"#), Answer::Credentials(Credentials::basic("user", "p")));
    assert_eq!(decode(r#"{"auth":"dTpwcA=="}"#), decode(r#"{"auth":"dTpwcA"}"#));
    assert_eq!(decode(r#"{"username":"u"}"#), Answer::Credentials(Credentials::basic("u", "")));
    assert_eq!(decode(r#"{"username":null,"password":null}"#), Answer::Nothing);
    // An identity token goes along with either form.
    for entry in [r#"{"username":"u","password":"p","identitytoken":"t"}"#, r#"{"auth":"dTpw","identitytoken":"t"}"#] {
        let Answer::Credentials(found) = decode(entry) else { panic!("{entry}") };
        assert_eq!((found.username.as_str(), found.identity_token), ("u", Some(Secret::new("t"))), "{entry}");
    }
    // An `auth` that is present counts, also when there is nothing usable in it.
    assert_eq!(decode(r#"{"auth":"bm8gY29sb24=","username":"u","password":"p"}"#), Answer::Nothing);
    let wrong = AuthFile::parse(r#"{"auths":{"h":{"username":"u","password":5}}}"#, false).unwrap_err();
    assert!(matches!(wrong, ParseError::Json { .. }), "{wrong:?}");
}

#[test]
fn helpers_come_before_auths_and_the_store_after() {
    let file = format!(
        r#"{{"auths":{{"a":{{"auth":"{0}"}},"b":{{"auth":"{0}"}},"c":{{}}}},"credHelpers":{{"a":"one","d":""}},"credsStore":"all"}}"#,
        auth("u:w")
    );
    let file = AuthFile::parse(&file, false).unwrap();
    let helper = |name: &str, servers: &[&str], is_store| Answer::Helper {
        name: name.into(),
        servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        is_store,
    };
    assert_eq!(file.lookup("a/x").unwrap(), helper("one", &["a"], false));
    assert!(matches!(file.lookup("b/x").unwrap(), Answer::Credentials(_)));
    assert_eq!(file.lookup("c/x").unwrap(), helper("all", &["c"], true), "docker login leaves an empty entry");
    assert_eq!(file.lookup("d/x").unwrap(), helper("all", &["d"], true), "an empty helper is none");
    let hub = file.lookup("docker.io/library/x").unwrap();
    assert_eq!(hub, helper("all", &["https://index.docker.io/v1/", "docker.io"], true));
    let keyed = AuthFile::parse(r#"{"credHelpers":{"https://index.docker.io/v1/":"hub"}}"#, false).unwrap();
    assert_eq!(keyed.lookup("docker.io/x").unwrap(), helper("hub", &["https://index.docker.io/v1/"], false));
}

#[test]
fn errors_show_where_but_not_what() {
    for text in
        [r#"{"auths":{"h":"geheim"}}"#, r#"{"auths":{"h":{"auth":["geheim"]}}}"#, "geheim", r#"{"auths":"geheim"}"#, ""]
    {
        let error = AuthFile::parse(text, false).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
    }
    let credentials = Credentials { identity_token: Some(Secret::new("geheim")), ..Credentials::basic("u", "geheim") };
    assert!(!format!("{credentials:?}").contains("geheim"));
}

#[test]
fn creds_of_the_command_line() {
    assert_eq!(Credentials::parse("u:p:q").unwrap(), Credentials::basic("u", "p:q"));
    assert_eq!(Credentials::parse("u").unwrap(), Credentials::basic("u", ""));
    assert!(Credentials::parse(":p").is_err() && Credentials::parse("").is_err());
}

/// A home directory with an entry for `h` in each file of the search, named after the file.
struct Home(tempfile::TempDir);

impl Home {
    const FILES: [&str; 4] =
        ["run/containers/auth.json", ".config/containers/auth.json", ".docker/config.json", ".dockercfg"];

    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        for file in Self::FILES {
            home.write(file, &Self::entry(file, file == ".dockercfg"));
        }
        home
    }

    fn entry(user: &str, legacy: bool) -> String {
        let entry = format!(r#"{{"h":{{"auth":"{}"}}}}"#, auth(&format!("{user}:w")));
        if legacy { entry } else { format!(r#"{{"auths":{entry}}}"#) }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    fn environment(&self) -> Environment {
        let path = self.0.path();
        Environment { home: path.to_owned(), xdg_runtime_dir: Some(path.join("run")), ..Environment::default() }
    }

    fn find(&self, environment: &Environment) -> Option<String> {
        find("h/a", None, environment).unwrap().map(|credentials| credentials.username)
    }
}

#[test]
fn files_are_searched_in_order() {
    let home = Home::new();
    for file in Home::FILES {
        assert_eq!(home.find(&home.environment()).as_deref(), Some(file));
        // An entry that says nothing does not end the search.
        let empty = if file == ".dockercfg" { r#"{"h":{}}"# } else { r#"{"auths":{"h":{}}}"# };
        home.write(file, empty);
    }
    assert_eq!(home.find(&home.environment()), None);
}

#[test]
fn variables_move_the_search() {
    let home = Home::new();
    home.write("xdg/containers/auth.json", &Home::entry("xdg", false));
    home.write("docker/config.json", &Home::entry("docker", false));
    let path = home.0.path();
    let mut environment = Environment {
        xdg_runtime_dir: Some(path.join("missing")),
        xdg_config_home: Some(path.join("xdg")),
        ..home.environment()
    };
    assert_eq!(home.find(&environment).as_deref(), Some("xdg"));
    environment.xdg_config_home = Some(path.join("missing"));
    environment.docker_config = Some(path.join("docker"));
    assert_eq!(home.find(&environment).as_deref(), Some("docker"));
    environment.docker_config = Some(path.join("missing"));
    assert_eq!(home.find(&environment).as_deref(), Some(".dockercfg"));

    // A named file is the only one; a missing one is only an error on the command line.
    environment.registry_auth_file = Some(path.join("missing"));
    assert_eq!(home.find(&environment), None);
    let named = path.join("docker/config.json");
    assert_eq!(find("h", Some(&named), &environment).unwrap().unwrap().username, "docker");
    let error = find("h", Some(&path.join("missing")), &environment).unwrap_err();
    assert!(matches!(error, Error::Read { .. }) && error.to_string().contains("missing"), "{error}");
}

#[test]
fn files_that_cannot_be_are_said() {
    let home = Home::new();
    home.write("run/containers/auth.json", "{");
    let error = find("h", None, &home.environment()).unwrap_err();
    assert!(matches!(error, Error::Parse { .. }) && error.to_string().contains("run/containers/auth.json"), "{error}");
    let file = fs_err::File::create(home.0.path().join("run/containers/auth.json")).unwrap();
    file.set_len(AUTH_FILE_MAX + 1).unwrap();
    assert!(matches!(find("h", None, &home.environment()), Err(Error::TooBig { .. })));
}

/// A directory with `docker-credential-test`, a shell script.
fn helper(script: &str) -> (tempfile::TempDir, Environment) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("docker-credential-test");
    fs_err::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut search = directory.path().as_os_str().to_owned();
    search.push(":/usr/bin:/bin");
    let home = directory.path().to_owned();
    (directory, Environment { path: Some(search), xdg_runtime_dir: Some(home.clone()), home, ..Environment::default() })
}

#[test]
fn a_helper_is_asked_on_its_standard_input() {
    let (_directory, environment) = helper(
        r#"read server; [ "$1" = get ] && echo "{\"ServerURL\":\"$server\",\"Username\":\"u-$server\",\"Secret\":\"w\"}""#,
    );
    let found = helper::get("test", "quay.io", &environment).unwrap();
    assert_eq!(found, Some(Credentials::basic("u-quay.io", "w")));
}

#[test]
fn a_helper_may_have_a_token_or_nothing() {
    let (_directory, environment) = helper(r#"echo '{"Username":"<token>","Secret":"t"}'"#);
    assert_eq!(helper::get("test", "h", &environment).unwrap(), Some(Credentials::identity("t")));
    let (_directory, environment) = helper("echo credentials not found in native keychain; exit 1");
    assert_eq!(helper::get("test", "h", &environment).unwrap(), None);
}

#[test]
fn a_helper_that_fails_hangs_or_floods_is_an_error_without_secrets() {
    let run = |script: &str| {
        let (_directory, environment) = helper(script);
        let error = helper::get_within(std::time::Duration::from_millis(300), "test", "h", &environment).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
        error
    };
    assert!(run("echo locked; exit 1").to_string().ends_with("failed for h: locked"));
    assert!(
        matches!(run(r#"echo '{"Secret":"geheim"}'; exit 1"#), helper::Error::Failed { message, .. } if message.is_empty())
    );
    assert!(matches!(run("echo geheim"), helper::Error::Answer { .. }));
    assert!(matches!(run("exec sleep 5"), helper::Error::Timeout { .. }));
    assert!(matches!(run("exec >&-; exec sleep 5"), helper::Error::Timeout { .. }));
    assert!(matches!(run("exec head -c 300000 /dev/zero"), helper::Error::TooBig { .. }));
    let (_directory, environment) = helper("");
    assert!(matches!(helper::get("missing", "h", &environment), Err(helper::Error::Start { .. })));
    assert!(matches!(helper::get("../x", "h", &environment), Err(helper::Error::Name(_))));
}

#[test]
fn a_failing_helper_is_an_error_and_a_failing_store_is_not() {
    let (directory, environment) = helper("exit 1");
    let write = |text: &str| {
        fs_err::create_dir_all(directory.path().join(".docker")).unwrap();
        fs_err::write(directory.path().join(".docker/config.json"), text).unwrap();
    };
    write(r#"{"credHelpers":{"h":"test"}}"#);
    assert!(matches!(find("h/a", None, &environment), Err(Error::Helper(_))));
    write(r#"{"credsStore":"test"}"#);
    assert_eq!(find("h/a", None, &environment).unwrap(), None);
    write(r#"{"credsStore":"desktop-that-is-gone"}"#);
    assert_eq!(find("h/a", None, &environment).unwrap(), None);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in any::<String>(), key in any::<String>()) {
        for legacy in [false, true] {
            if let Ok(file) = AuthFile::parse(&text, legacy) {
                let _ = file.lookup(&key);
            }
        }
    }

    #[test]
    fn near_misses_are_survived(text in r#"(\{"auths":)?([\{\}\[\],:]|"auths"|"h"|"auth"|"credHelpers"|"dTp3"|null|1){0,30}"#) {
        if let Ok(file) = AuthFile::parse(&text, false) {
            let _ = file.lookup("h/a");
        }
    }

    #[test]
    fn what_is_written_is_found(name in "[a-z]{1,8}(/[a-z]{1,8}){0,3}", username in "[^:]{1,20}", password in "[^\0]{0,20}") {
        let file = format!(r#"{{"auths":{{"{name}":{{"auth":"{}"}}}}}}"#, auth(&format!("{username}:{password}")));
        let answer = AuthFile::parse(&file, false).unwrap().lookup(&format!("{name}/below")).unwrap();
        prop_assert_eq!(answer, Answer::Credentials(Credentials::basic(username, password)));
    }
}
