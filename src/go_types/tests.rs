//! Documents of every type in every field.

use super::*;

fn config(text: &str) -> Result<(), String> {
    check_config(text.as_bytes()).map_err(|error| error.to_string())
}

fn manifest(text: &str) -> Result<Kind, String> {
    check_manifest(text.as_bytes()).map_err(|error| error.to_string())
}

const OCI: &str = r#""schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}"#;

#[test]
fn configs_that_go_reads_are_taken() {
    for good in [
        "null",
        "{}",
        r#"{"unknown": [1e999, {"deep": [[[]]]}, "\ud800"], "another": -1.5}"#,
        r#"{"created": null, "author": null, "config": null, "rootfs": null, "history": null}"#,
        r#"{"config": {"Cmd": null, "Labels": {"a": null}, "Volumes": {"/v": null, "/w": {"x": 1}}, "StopTimeout": -0}}"#,
        r#"{"history": [null, {"created": null, "empty_layer": false}], "rootfs": {"diff_ids": [null]}}"#,
        r#"{"config": {"Shell": "sh", "OnBuild": ["x"], "Healthcheck": {"Interval": 9223372036854775807}}}"#,
        r#"{"container_config": {"Entrypoint": "sh", "Cmd": ["a", null]}, "Size": -1}"#,
        r#"{"author": "a", "AUTHOR": "b", "author": "c", "created": "0000-01-01T00:00:00Z"}"#,
        r#"{"config": {"Labels": {"a": "1"}, "labels": {"b": "2"}}}"#,
    ] {
        assert_eq!(config(good), Ok(()), "{good}");
    }
}

#[test]
fn configs_that_go_does_not_read_are_refused_by_field_and_type() {
    for (bad, error) in [
        ("[]", "`the document` is a list, not an object"),
        ("", "not JSON"),
        (r#"{"author": 5}"#, "`author` is the number 5, not a string"),
        (r#"{"\u0061uthor": true}"#, "`author` is true, not a string"),
        (r#"{"config": {"cmd": "sh"}}"#, r#"`config.cmd` is the string "sh", not a list of strings"#),
        (r#"{"config": {"Cmd": ["sh"], "CMD": "sh"}}"#, r#"`config.CMD` is the string "sh", not a list of strings"#),
        (r#"{"\u212aonfig": 1, "o\u017f": 5}"#, "`oſ` is the number 5, not a string"),
        (r#"{"author": 1, "author": "a"}"#, "`author` is the number 1, not a string"),
        (
            r#"{"config": {"Entrypoint": "/bin/x"}}"#,
            r#"`config.Entrypoint` is the string "/bin/x", not a list of strings"#,
        ),
        (r#"{"config": {"Env": ["a", 1]}}"#, "`config.Env[1]` is the number 1, not a string"),
        (r#"{"config": {"Shell": ["a", 1]}}"#, "`config.Shell[1]` is the number 1, not a string"),
        (r#"{"config": {"Shell": 1}}"#, "`config.Shell` is the number 1, not a string or a list of strings"),
        (r#"{"config": {"Labels": {"a\n\"": 2}}}"#, r#"`config.Labels["a\n""]` is the number 2, not a string"#),
        (
            r#"{"config": {"ExposedPorts": {"80/tcp": []}}}"#,
            r#"`config.ExposedPorts["80/tcp"]` is a list, not an object"#,
        ),
        (r#"{"config": {"StopTimeout": 1.0}}"#, "`config.StopTimeout` is the number 1.0, not an integer of 64 bits"),
        (r#"{"config": {"StopTimeout": 1e3}}"#, "`config.StopTimeout` is the number 1e3, not an integer of 64 bits"),
        (r#"{"Size": 9223372036854775808}"#, "`Size` is the number 9223372036854775808, not an integer of 64 bits"),
        (r#"{"config": {"Tty": "true"}}"#, r#"`config.Tty` is the string "true", not true or false"#),
        (r#"{"created": ""}"#, r#"`created` is the string "", not a time of RFC 3339, like "2024-01-02T03:04:05Z""#),
        (r#"{"created": 5}"#, "`created` is the number 5, not a time"),
        (
            r#"{"created": "2024-01-02T03:04:05\u005a"}"#,
            r#"`created` is the string "2024-01-02T03:04:05\u005a", not a time"#,
        ),
        (r#"{"history": [{}, {"created": "x"}]}"#, r#"`history[1].created` is the string "x", not a time"#),
        (r#"{"history": [[]]}"#, "`history[0]` is a list, not an object"),
        (r#"{"history": {}}"#, "`history` is an object, not a list of objects"),
        (
            r#"{"rootfs": {"diff_ids": "sha256:1"}}"#,
            r#"`rootfs.diff_ids` is the string "sha256:1", not a list of strings"#,
        ),
        (r#"{"os.features": "a"}"#, "`os.features` is the string"),
        (r#"{"docker_version": 20}"#, "`docker_version` is the number 20, not a string"),
        (r#"{"container_config": {"Image": 20}}"#, "`container_config.Image` is the number 20, not a string"),
        (r#"{"config": {"Healthcheck": {"Retries": "3"}}}"#, r#"`config.Healthcheck.Retries` is the string "3""#),
    ] {
        let found = config(bad).expect_err(bad);
        assert!(found.starts_with(error), "{bad}: {found}");
    }
}

#[test]
fn manifests_are_recognized_as_containers_image_recognizes_them() {
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    for (text, kind) in [
        (format!("{{{OCI}}}"), Kind::OciManifest),
        (format!(r#"{{{OCI},"mediaType":"application/vnd.foo"}}"#), Kind::OciManifest),
        (
            format!(r#"{{"mediaType":"{docker}","layers":[{{"mediaType":"{layer}","annotations":1}}]}}"#),
            Kind::DockerManifest,
        ),
        (r#"{"schemaVersion":1,"fsLayers":[],"history":[],"signatures":[1]}"#.to_owned(), Kind::Schema1),
    ] {
        assert_eq!(manifest(&text), Ok(kind), "{text}");
    }
    for (text, error) in [
        (
            OCI.replace("\"schemaVersion\":2", "\"schemaVersion\":\"2\""),
            "`schemaVersion` is the string \"2\", not an integer",
        ),
        (OCI.replace("\"schemaVersion\":2", "\"x\":2"), "ambiguous, it has the field `config`"),
        (r#""layers":null"#.to_owned(), "`schemaVersion` is 0, not 2, and `mediaType` is missing"),
        (r#""schemaVersion":2"#.to_owned(), "no config"),
        (r#""schemaVersion":2,"config":{"mediaType":"x"}"#.to_owned(), "an artifact with a config of type \"x\""),
        (format!(r#"{OCI},"HISTORY":[]"#), "ambiguous, it has the field `history`"),
        (format!(r#"{OCI},"mani\u0066ests":0"#), "ambiguous, it has the field `manifests`"),
        (r#""schemaVersion":2,"manifests":[{}]"#.to_owned(), "ambiguous, it has the field `manifests`"),
        (
            r#""schemaVersion":2,"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}"#.to_owned(),
            "`mediaType` is \"\", which containers/image refuses",
        ),
        (format!(r#"{OCI},"layers":[{{"size":"7"}}]"#), "`layers[0].size` is the string \"7\", not an integer"),
        (
            format!(r#"{OCI},"layers":[{{"data":"e30"}}]"#),
            "`layers[0].data` is the string \"e30\", not a string in base64",
        ),
        (format!(r#"{OCI},"layers":[{{"data":[255,256]}}]"#), "`layers[0].data[1]` is the number 256, not a byte"),
        (format!(r#"{OCI},"subject":"x""#), "`subject` is the string \"x\", not an object"),
        // Unmarshalled into an `interface{}` whose numbers are `float64`.
        (
            format!(r#"{OCI},"layers":[{{"x":["1e400",-1e999]}}]"#),
            "`layers` is a value with the number -1e999, not one whose numbers fit",
        ),
        (OCI.replace("\"config\":{", "\"config\":{\"x\":1e400,"), "`config` is a value with the number 1e400, not"),
        (format!(r#"{OCI},"SIGNATURES":1e400"#), "`SIGNATURES` is a value with the number 1e400, not"),
        (format!(r#"{OCI},"annotations":{{"a":1}}"#), "`annotations[\"a\"]` is the number 1, not a string"),
        (
            format!(r#""mediaType":"{docker}","config":{{}},"layers":[{{"mediaType":"x"}}]"#),
            "`layers[0].mediaType` is \"x\"",
        ),
    ] {
        let found = manifest(&format!("{{{text}}}")).expect_err(&text);
        assert!(found.starts_with(error), "{text}: {found}");
    }
    assert!(manifest(&format!(r#"{{{OCI},"layers":[{{"data":"e3\n0=","digest":"","size":-1}}]}}"#)).is_ok());
    assert!(manifest(&format!(r#"{{{OCI},"layers":[{{"data":[255,null]}}]}}"#)).is_ok());
    assert!(manifest(&format!(r#"{{{OCI},"x":1e400,"layers":[{{"x":1e308,"y":1e-400}}],"signatures":-0}}"#)).is_ok());
}

#[test]
fn indexes_are_those_that_go_reads() {
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    for (text, kind) in [
        (r#"{"manifests":[{"platform":{"features":1}}]}"#.to_owned(), Kind::OciIndex),
        (r#"{"schemaVersion":2,"manifests":[{"platform":null}],"subject":null}"#.to_owned(), Kind::OciIndex),
        (
            format!(r#"{{"mediaType":"{list}","manifests":[{{"annotations":1,"platform":{{"features":["x"]}}}}]}}"#),
            Kind::DockerList,
        ),
    ] {
        assert_eq!(check_index(text.as_bytes()).unwrap(), kind, "{text}");
    }
    for (text, error) in [
        (
            r#"{"manifests":[{"platform":{"os.features":"x"}}]}"#.to_owned(),
            "`manifests[0].platform.os.features` is the string",
        ),
        (r#"{"manifests":[{"artifactType":1}]}"#.to_owned(), "`manifests[0].artifactType` is the number 1"),
        (
            format!(r#"{{"mediaType":"{list}","manifests":[{{"platform":{{"features":1}}}}]}}"#),
            "`manifests[0].platform.features`",
        ),
        (r#"{"manifests":[],"layers":[]}"#.to_owned(), "ambiguous, it has the field `layers`"),
    ] {
        let found = check_index(text.as_bytes()).expect_err(&text).to_string();
        assert!(found.starts_with(error), "{text}: {found}");
    }
}

#[test]
fn deep_nesting_is_refused_where_go_refuses_it() {
    let nested = |depth: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert_eq!(config(&nested(json::DEPTH_MAX)), Ok(()));
    assert!(config(&nested(json::DEPTH_MAX + 1)).is_err());
}

#[cfg(feature = "front")]
mod agreement {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::check_config;

    /// Some fields of `imgspecv1.ImageConfig`, as serde reads them.
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct ImageConfig {
        #[serde(rename = "User")]
        user: Option<String>,
        #[serde(rename = "Env")]
        env: Option<Vec<Option<String>>>,
        #[serde(rename = "Labels")]
        labels: Option<BTreeMap<String, Option<String>>>,
        #[serde(rename = "ArgsEscaped")]
        args_escaped: Option<bool>,
        #[serde(rename = "StopTimeout")]
        stop_timeout: Option<i64>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct Image {
        author: Option<String>,
        config: Option<ImageConfig>,
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            // Without -0, which Go takes for the integer 0 and serde_json for a float.
            "(0|-?[1-9][0-9]{0,20})(\\.[0-9]{1,2})?",
            "\"[a-zé\u{1f600}]{0,3}(\\\\u00e9|\\\\n)?\"",
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(|all| format!("[{}]", all.join(","))),
                prop::collection::btree_map("(a|b|User|Env)", inner, 0..3).prop_map(|all| {
                    let members: Vec<String> = all.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
                    format!("{{{}}}", members.join(" , "))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn serde_agrees_where_it_reads_as_go_does(
            field in "(author|config|User|Env|Labels|ArgsEscaped|StopTimeout)", value in value(),
        ) {
            // serde also takes a list for a struct.
            prop_assume!(field != "config" || !value.starts_with('['));
            let text = match &field[..] {
                "author" | "config" => format!("{{\"{field}\": {value}}}"),
                _ => format!("{{\"config\": {{\"{field}\": {value}}}}}"),
            };
            let serde = serde_json::from_str::<Image>(&text);
            prop_assert_eq!(check_config(text.as_bytes()).is_ok(), serde.is_ok(), "{}: {:?}", text, serde);
        }

        #[test]
        fn any_bytes_are_checked_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (check_config(&bytes), super::super::check_manifest(&bytes), super::super::check_index(&bytes));
        }
    }
}
