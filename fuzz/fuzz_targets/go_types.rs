//! Configs, manifests and indexes as Go's types: what is taken, a typed reader that knows nothing of Go takes, too; and the time for
//! many copies of a value is not that of its square.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use prepull::go_types::{Kind, check_config, check_further_manifest, check_index, check_manifest, is_time};
use prepull_fuzz::choice;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Bytes that a value is repeated to.
const LARGE: usize = 64 << 10;

/// Time for such a document. A reader that compares each copy with each other one needs a hundred times as long.
const PATIENCE: Duration = Duration::from_secs(2);

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 4 {
        0 => config(rest),
        1 => manifest(rest),
        2 => index(rest),
        _ => copies(rest),
    }
});

fn config(bytes: &[u8]) {
    if check_config(bytes).is_ok() {
        typed::<Config>(bytes);
    }
}

fn manifest(bytes: &[u8]) {
    if let Ok(kind) = check_manifest(bytes) {
        assert!(!kind.is_index());
        assert!(check_further_manifest(bytes).is_ok_and(|further| further == kind), "it may be a further one as well");
        match kind {
            Kind::Schema1 => typed::<Schema1>(bytes),
            _ => typed::<Manifest>(bytes),
        }
    }
}

fn index(bytes: &[u8]) {
    if let Ok(kind) = check_index(bytes) {
        assert!(kind.is_index());
        typed::<Manifest>(bytes);
    }
}

/// Reads `bytes` as `T`, or as null, which Go takes for an empty one. Of a key that occurs twice the last value counts; all were checked.
fn typed<T: DeserializeOwned>(bytes: &[u8]) {
    // Go reads half a surrogate pair, numbers that are larger than any float, and values that are nested deeper than 128.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    if let Err(error) = serde_json::from_value::<Option<T>>(value) {
        panic!("a typed reader refuses what Go is said to take: {error}: {}", String::from_utf8_lossy(bytes));
    }
}

/// Repeats a value in lists and maps.
fn copies(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.is_empty() || serde_json::from_str::<Value>(text).is_err() {
        return;
    }
    let count = LARGE / (text.len() + 10);
    let list = vec![text; count].join(",");
    let map: Vec<String> = (0..count).map(|number| format!("\"k{number}\":{text}")).collect();
    let same = vec![format!("\"a\":{text}"); count].join(",");
    let map = map.join(",");
    for document in [
        format!(r#"{{"history":[{list}],"config":{{"Labels":{{{map}}},"Env":[{list}]}}}}"#),
        format!(r#"{{"config":{{"Volumes":{{{map}}},"Cmd":[{list}],"Labels":{{{same}}}}},{same}}}"#),
        format!(
            r#"{{"schemaVersion":2,"config":{{}},"annotations":{{{map}}},"layers":[{list}],"manifests":[{list}]}}"#
        ),
    ] {
        let begun = Instant::now();
        let _ =
            (check_config(document.as_bytes()), check_manifest(document.as_bytes()), check_index(document.as_bytes()));
        assert!(begun.elapsed() < PATIENCE, "{:?} for {count} copies of {text}", begun.elapsed());
    }
}

/// A list whose elements may be null, as Go leaves them empty.
type List<T> = Option<Vec<Option<T>>>;
type Map<T> = Option<BTreeMap<String, Option<T>>>;
type Text = Option<String>;

/// A Go integer: -0 is 0.
struct Int;

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.as_i64().is_some() || value.as_f64() == Some(0.0) { Ok(Self) } else { Err(D::Error::custom(value)) }
    }
}

/// A Go time.
struct Time;

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if is_time(&text) { Ok(Self) } else { Err(D::Error::custom(text)) }
    }
}

#[derive(Deserialize)]
struct Empty {}

/// The fields of configs, of image-spec and of Docker alike.
#[derive(Deserialize)]
#[allow(dead_code, reason = "only the types matter")]
struct Config {
    created: Option<Time>,
    author: Text,
    architecture: Text,
    os: Text,
    #[serde(rename = "os.version")]
    os_version: Text,
    #[serde(rename = "os.features")]
    os_features: List<String>,
    variant: Text,
    config: Option<ImageConfig>,
    container_config: Map<IgnoredAny>,
    rootfs: Option<RootFs>,
    history: List<History>,
    parent: Text,
    docker_version: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(dead_code, reason = "only the types matter")]
struct ImageConfig {
    user: Text,
    exposed_ports: Map<Empty>,
    env: List<String>,
    entrypoint: List<String>,
    cmd: List<String>,
    volumes: Map<Empty>,
    working_dir: Text,
    labels: Map<String>,
    stop_signal: Text,
    args_escaped: Option<bool>,
    stop_timeout: Option<Int>,
    on_build: List<String>,
    tty: Option<bool>,
    healthcheck: Option<Health>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(dead_code, reason = "only the types matter")]
struct Health {
    test: List<String>,
    interval: Option<Int>,
    retries: Option<Int>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "only the types matter")]
struct RootFs {
    r#type: Text,
    diff_ids: List<String>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "only the types matter")]
struct History {
    created: Option<Time>,
    created_by: Text,
    author: Text,
    comment: Text,
    empty_layer: Option<bool>,
}

/// The fields of manifests and indexes that all kinds have with the same type.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "only the types matter")]
struct Manifest {
    schema_version: Option<Int>,
    media_type: Text,
    config: Option<Descriptor>,
    layers: List<Descriptor>,
    manifests: List<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "only the types matter")]
struct Descriptor {
    media_type: Text,
    digest: Text,
    size: Option<Int>,
    urls: List<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "only the types matter")]
struct Schema1 {
    schema_version: Option<Int>,
    name: Text,
    tag: Text,
    architecture: Text,
}
