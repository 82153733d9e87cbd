//! Registry credentials: containers-auth.json(5), Docker's `config.json` and `.dockercfg`.
//!
//! The search is that of containers/image `pkg/docker/config`:
//!
//! ```text
//! --creds ─▶ --authfile, else $REGISTRY_AUTH_FILE   (only this file, when named)
//!         ─▶ $XDG_RUNTIME_DIR/containers/auth.json, else /run/containers/UID/auth.json
//!         ─▶ $XDG_CONFIG_HOME/containers/auth.json, else ~/.config/containers/auth.json
//!         ─▶ $DOCKER_CONFIG/config.json, else ~/.docker/config.json
//!         ─▶ ~/.dockercfg
//! ```
//!
//! In a file: `credHelpers` for the registry, then `auths` from the most specific key (`quay.io/org/repo`) to the host,
//! then keys that are URLs, then `credsStore` (Docker's; containers/image does not know it).
//!
//! Four differences on purpose: an entry with `username` and `password` in place of `auth` counts, as for Docker and the kubelet; `credsStore` is asked last and its failure is a warning, not an error (Docker Desktop
//! leaves a `credsStore` behind whose helper is gone); a file of the default search that may not be read is skipped with
//! a warning, so that public images can be had by a user whose `$HOME` is another's; an entry with an identity token and no
//! `auth` counts.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{Environment, helper};

/// The largest credentials file that is read, in bytes. Real ones have a few kilobytes.
pub const AUTH_FILE_MAX: u64 = 4 << 20;

/// Base64 of `auth`: with padding as docker and podman write it, or without, as the kubelet also accepts it
/// (`decodeDockerConfigFieldAuth`).
const AUTH_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The name under which Docker Hub's credentials are compared (containers/image `normalizeRegistry`).
const DOCKER_HUB_INDEX: &str = "index.docker.io";

/// The server name under which `docker login` stores Docker Hub's credentials in a helper.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// A password or token. It never shows in `Debug` output and has no `Display`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Guards `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for a request's header or body, never for a message.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to guard.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// What a user proves himself with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Credentials {
    /// The user; empty when there is only an identity token.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// An OAuth2 refresh token, which a token server takes in place of user and password.
    pub identity_token: Option<Secret>,
}

impl Credentials {
    /// A user and a password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: Secret::new(password), identity_token: None }
    }

    /// An identity token.
    pub fn identity(token: impl Into<String>) -> Self {
        Self { identity_token: Some(Secret::new(token)), ..Self::default() }
    }

    /// From `USER[:PASSWORD]`, as `--creds` takes it: the password may hold colons, and is empty when not given.
    ///
    /// # Errors
    /// [`Error::Creds`] when the user is empty.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (username, password) = text.split_once(':').unwrap_or((text, ""));
        if username.is_empty() {
            return Err(Error::Creds);
        }
        Ok(Self::basic(username, password))
    }

    /// Whether there is nothing in it: containers/image goes on searching then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.username.is_empty() && self.password.is_empty() && self.identity_token.is_none()
    }
}

/// Why credentials cannot be had. No variant ever holds a secret or a piece of a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--creds` without a user.
    #[error("--creds must be USER[:PASSWORD], with a user")]
    Creds,
    /// The file cannot be read.
    #[error("reading credentials file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is larger than [`AUTH_FILE_MAX`].
    #[error("credentials file {} has more than {AUTH_FILE_MAX} bytes", path.display())]
    TooBig {
        /// Which file.
        path: PathBuf,
    },
    /// Not the JSON that it should be.
    #[error("credentials file {}: {error}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong where.
        error: ParseError,
    },
    /// A credential helper failed.
    #[error(transparent)]
    Helper(#[from] helper::Error),
}

/// What is wrong with a credentials file's text. The offending text is left out, as it may be a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// JSON syntax, or a member of the wrong type.
    #[error("not valid JSON for this file at line {line}, column {column}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// `auth` is not base64 of UTF-8.
    #[error("the \"auth\" member of {key:?} is not base64 of USER:PASSWORD")]
    Auth {
        /// The entry's key.
        key: String,
    },
}

/// A credentials file, parsed.
#[derive(Debug, Default)]
pub struct AuthFile {
    /// `.dockercfg`: keys are URLs of registries, and namespaces are not looked up.
    legacy: bool,
    auths: HashMap<String, Entry>,
    helpers: HashMap<String, String>,
    store: Option<String>,
}

/// One entry of `auths`.
#[derive(Debug, Default)]
struct Entry {
    /// Base64 of `USER:PASSWORD`.
    auth: Secret,
    username: String,
    password: Secret,
    identity_token: Secret,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

/// Reads the members of an entry as Go's `encoding/json` does: names in any letter case, `null` like a missing member, and
/// the last of equal names counts.
struct EntryVisitor;

impl<'de> serde::de::Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut entry = Entry::default();
        while let Some(mut name) = map.next_key::<String>()? {
            name.make_ascii_lowercase();
            match name.as_str() {
                "auth" => entry.auth = map.next_value::<Option<Secret>>()?.unwrap_or_default(),
                "username" => entry.username = map.next_value::<Option<String>>()?.unwrap_or_default(),
                "password" => entry.password = map.next_value::<Option<Secret>>()?.unwrap_or_default(),
                "identitytoken" => entry.identity_token = map.next_value::<Option<Secret>>()?.unwrap_or_default(),
                _ => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        Ok(entry)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

/// A whole `auth.json` or `config.json`.
#[derive(Default)]
struct Document {
    auths: HashMap<String, Option<Entry>>,
    helpers: HashMap<String, String>,
    store: Option<String>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

/// Reads the members of a file as [`EntryVisitor`] reads those of an entry. Objects under one name are joined.
struct DocumentVisitor;

impl<'de> serde::de::Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        while let Some(mut name) = map.next_key::<String>()? {
            name.make_ascii_lowercase();
            match name.as_str() {
                "auths" => document.auths.extend(map.next_value::<Option<HashMap<_, _>>>()?.unwrap_or_default()),
                "credhelpers" => {
                    document.helpers.extend(map.next_value::<Option<HashMap<_, _>>>()?.unwrap_or_default())
                }
                "credsstore" => document.store = map.next_value()?,
                _ => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        Ok(document)
    }
}

/// What a file says about a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The credentials.
    Credentials(Credentials),
    /// Ask `docker-credential-NAME` for one of `servers`, in this order.
    Helper {
        /// The helper's name without `docker-credential-`.
        name: String,
        /// The names to ask for.
        servers: Vec<String>,
        /// From `credsStore`, whose failure is only worth a warning.
        is_store: bool,
    },
    /// Nothing.
    Nothing,
}

impl AuthFile {
    /// Parses `auth.json` or `config.json`, or with `legacy` the older `.dockercfg`.
    ///
    /// # Errors
    /// [`ParseError::Json`].
    pub fn parse(text: &str, legacy: bool) -> Result<Self, ParseError> {
        let json = |error: serde_json::Error| ParseError::Json { line: error.line(), column: error.column() };
        let flat = |auths: HashMap<String, Option<Entry>>| {
            auths.into_iter().map(|(key, entry)| (key, entry.unwrap_or_default())).collect()
        };
        if legacy {
            let auths: HashMap<String, Option<Entry>> = serde_json::from_str(text).map_err(json)?;
            return Ok(Self { legacy, auths: flat(auths), ..Self::default() });
        }
        let document: Document = serde_json::from_str(text).map_err(json)?;
        Ok(Self {
            legacy,
            auths: flat(document.auths),
            helpers: document.helpers,
            store: document.store.filter(|store| !store.is_empty()),
        })
    }

    /// What the file says about `key`: a host with or without a repository (`quay.io/org/repo`), no tag or digest.
    ///
    /// # Errors
    /// [`ParseError::Auth`] when the entry that counts cannot be decoded.
    pub fn lookup(&self, key: &str) -> Result<Answer, ParseError> {
        let registry = key.split('/').next().unwrap_or(key);
        let aliases: &[&str] = match normalize_registry(registry) {
            DOCKER_HUB_INDEX => &["docker.io", DOCKER_HUB_INDEX, DOCKER_HUB_SERVER, "registry-1.docker.io"],
            _ => &[],
        };
        let names = || std::iter::once(registry).chain(aliases.iter().copied());
        let helper = names().find_map(|name| Some((name, self.helpers.get(name)?)));
        if let Some((name, helper)) = helper.filter(|(_, helper)| !helper.is_empty()) {
            return Ok(Answer::Helper { name: helper.clone(), servers: vec![name.to_owned()], is_store: false });
        }
        if let Some((key, entry)) = self.entry(key, registry) {
            let credentials = entry.decode(key)?;
            if !credentials.is_empty() {
                return Ok(Answer::Credentials(credentials));
            }
        }
        Ok(match &self.store {
            Some(store) => {
                let hub = (!aliases.is_empty()).then(|| DOCKER_HUB_SERVER.to_owned());
                let servers = hub.into_iter().chain(std::iter::once(registry.to_owned())).collect();
                Answer::Helper { name: store.clone(), servers, is_store: true }
            }
            None => Answer::Nothing,
        })
    }

    fn entry(&self, key: &str, registry: &str) -> Option<(&str, &Entry)> {
        let mut exact = Some(if self.legacy { registry } else { key });
        while let Some(key) = exact {
            if let Some((key, entry)) = self.auths.get_key_value(key) {
                return Some((key, entry));
            }
            exact = key.rsplit_once('/').map(|(parent, _)| parent);
        }
        let registry = normalize_registry(registry);
        // Go takes any of several matches; the smallest key makes it the same one each time.
        self.auths
            .iter()
            .filter(|(key, _)| normalize_key(key, self.legacy) == registry)
            .min_by_key(|(key, _)| *key)
            .map(|(key, entry)| (key.as_str(), entry))
    }
}

impl Entry {
    /// Returns the entry's credentials.
    ///
    /// `auth` counts before `username` and `password`, which are used without it (docker/cli
    /// `configfile.LoadFromReader`, kubelet `DockerConfigEntry.UnmarshalJSON`; containers/image reads `auth` only). An `auth`
    /// without a colon is an entry without credentials (containers/image `decodeDockerAuth`).
    fn decode(&self, key: &str) -> Result<Credentials, ParseError> {
        let bad = || ParseError::Auth { key: key.to_owned() };
        let identity_token = Some(self.identity_token.clone()).filter(|token| !token.is_empty());
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Credentials { username, password, identity_token });
        }
        let text: String = self.auth.expose().split(['\r', '\n']).collect();
        let decoded = AUTH_BASE64.decode(text).map_err(|_| bad())?;
        let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
        let (username, password) = decoded.split_once(':').unwrap_or_default();
        let password = Secret::new(password.trim_matches('\0'));
        Ok(Credentials { username: username.to_owned(), password, identity_token })
    }
}

fn normalize_registry(registry: &str) -> &str {
    match registry {
        "registry-1.docker.io" | "docker.io" => DOCKER_HUB_INDEX,
        other => other,
    }
}

fn normalize_key(key: &str, legacy: bool) -> &str {
    let stripped = key.strip_prefix("http://").unwrap_or(key);
    let stripped = stripped.strip_prefix("https://").unwrap_or(stripped);
    let is_url = stripped.len() != key.len();
    let host = if legacy || is_url { stripped.split('/').next().unwrap_or(stripped) } else { stripped };
    normalize_registry(host)
}

/// Searches the credentials for `key` (`host[:port]/repository`), with `named` for `--authfile`.
///
/// # Errors
/// When a named file does not exist, a file cannot be read or parsed, or a helper of `credHelpers` fails.
/// Having no credentials is not an error.
pub fn find(key: &str, named: Option<&Path>, environment: &Environment) -> Result<Option<Credentials>, Error> {
    for place in places(named, environment) {
        let Some(file) = place.load()? else { continue };
        let answer = file.lookup(key).map_err(|error| Error::Parse { path: place.path.clone(), error })?;
        let found = match answer {
            Answer::Nothing => None,
            Answer::Credentials(credentials) => Some(credentials),
            Answer::Helper { name, servers, is_store } => ask(&name, &servers, is_store, environment)?,
        };
        if let Some(credentials) = found.filter(|credentials| !credentials.is_empty()) {
            tracing::debug!("credentials for {key} from {}", place.path.display());
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

fn ask(
    name: &str,
    servers: &[String],
    is_store: bool,
    environment: &Environment,
) -> Result<Option<Credentials>, Error> {
    for server in servers {
        match helper::get(name, server, environment) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if is_store => {
                tracing::warn!("ignoring credsStore: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Returns the files in which credentials are searched, the first that counts first.
#[must_use]
pub fn files(named: Option<&Path>, environment: &Environment) -> Vec<PathBuf> {
    places(named, environment).into_iter().map(|place| place.path).collect()
}

/// Returns whether one of these files names a credential helper. A file that cannot be read or parsed names none.
#[must_use]
pub fn asks_helpers(named: Option<&Path>, environment: &Environment) -> bool {
    let names = |file: AuthFile| file.store.is_some() || !file.helpers.is_empty();
    places(named, environment).iter().any(|place| place.load().ok().flatten().is_some_and(names))
}

/// One file of the search.
struct Place {
    path: PathBuf,
    legacy: bool,
    /// Named with `--authfile`: must be there.
    must_exist: bool,
    /// Named by the user in any way: must be readable when it is there.
    is_named: bool,
}

fn places(named: Option<&Path>, environment: &Environment) -> Vec<Place> {
    let only =
        |path: &Path, must_exist| vec![Place { path: path.to_owned(), legacy: false, must_exist, is_named: true }];
    if let Some(path) = named {
        return only(path, true);
    }
    if let Some(path) = &environment.registry_auth_file {
        return only(path, false);
    }
    let default = |path, legacy| Place { path, legacy, must_exist: false, is_named: false };
    let mut places = Vec::new();
    match &environment.xdg_runtime_dir {
        Some(directory) if !directory.exists() => {
            tracing::warn!(
                "$XDG_RUNTIME_DIR: {} does not exist: not looking there for credentials",
                directory.display()
            );
        }
        Some(directory) => places.push(default(directory.join("containers/auth.json"), false)),
        None => places.push(default(format!("/run/containers/{}/auth.json", environment.uid).into(), false)),
    }
    places.push(default(environment.config_home().join("containers/auth.json"), false));
    let docker = environment.docker_config.clone().unwrap_or_else(|| environment.home.join(".docker"));
    places.push(default(docker.join("config.json"), false));
    places.push(default(environment.home.join(".dockercfg"), true));
    places
}

impl Place {
    /// The file, or `None` when there is none.
    fn load(&self) -> Result<Option<AuthFile>, Error> {
        let path = || self.path.clone();
        let file = match fs_err::File::open(&self.path) {
            Ok(file) => file.into_parts().0,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound if !self.must_exist => return Ok(None),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory if !self.is_named => {
                    tracing::warn!("skipping credentials file {}: {}", self.path.display(), error.kind());
                    return Ok(None);
                }
                kind => return Err(Error::Read { path: path(), error: super::without_path(kind) }),
            },
        };
        let mut text = String::new();
        file.take(AUTH_FILE_MAX + 1).read_to_string(&mut text).map_err(|error| Error::Read { path: path(), error })?;
        if text.len() as u64 > AUTH_FILE_MAX {
            return Err(Error::TooBig { path: path() });
        }
        AuthFile::parse(&text, self.legacy).map(Some).map_err(|error| Error::Parse { path: path(), error })
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
