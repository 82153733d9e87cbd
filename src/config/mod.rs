//! Files of containers(5): each module parses text and loads from the paths that containers/image uses.
//!
//! What a lookup depends on besides its arguments (environment variables, home directory, user id) is one value,
//! [`Environment`], so that no code below `main` reads the process environment and every test can bring its own.

pub mod auth;
pub mod certs;
pub mod helper;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// Returns an error of `kind` without the path, which the message has already. For a missing file it has the system's words.
fn without_path(kind: io::ErrorKind) -> io::Error {
    match kind {
        io::ErrorKind::NotFound => io::Error::new(kind, "no such file or directory"),
        kind => kind.into(),
    }
}

/// The part of the process environment that decides where configuration lies and how the network is reached.
///
/// An empty variable counts as unset, as in containers/image and Go's `net/http`.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `$HOME`, else `/`, as containers/storage `pkg/homedir` falls back.
    pub home: PathBuf,
    /// The real user id: part of `/run/containers/UID/auth.json`.
    pub uid: u32,
    /// `$REGISTRY_AUTH_FILE`: replaces the whole search for credentials.
    pub registry_auth_file: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `$DOCKER_CONFIG`: the directory with Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `$PATH` for credential helpers; `None` inherits the process's.
    pub path: Option<OsString>,
    /// Proxies, from `$HTTPS_PROXY`, `$HTTP_PROXY` and `$NO_PROXY`.
    pub proxy: ProxyVariables,
}

/// The proxy variables as set, upper case before lower case (Go's `httpproxy.FromEnvironment`).
#[derive(Clone, Default)]
pub struct ProxyVariables {
    /// Proxy for `https://` requests.
    pub https: Option<String>,
    /// Proxy for `http://` requests.
    pub http: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub none: Option<String>,
}

/// A proxy's URL may hold a password: only whether there is one is shown.
impl std::fmt::Debug for ProxyVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyVariables")
            .field("https", &self.https.is_some())
            .field("http", &self.http.is_some())
            .field("none", &self.none)
            .finish()
    }
}

impl Environment {
    /// This process's environment.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let text = |names: [&str; 2]| names.iter().find_map(|name| variable(name)?.into_string().ok());
        Self {
            home: path("HOME").unwrap_or_else(|| PathBuf::from("/")),
            uid: rustix::process::getuid().as_raw(),
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            path: None,
            proxy: ProxyVariables {
                https: text(["HTTPS_PROXY", "https_proxy"]),
                http: text(["HTTP_PROXY", "http_proxy"]),
                none: text(["NO_PROXY", "no_proxy"]),
            },
        }
    }

    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    #[must_use]
    pub fn config_home(&self) -> PathBuf {
        self.xdg_config_home.clone().unwrap_or_else(|| self.home.join(".config"))
    }
}

/// The most characters of a stranger's text that are shown in a message.
pub const SHOWN_MAX: usize = 200;

/// A stranger's text made fit for a one-line message: control and direction-changing characters become single spaces,
/// and what is longer than [`SHOWN_MAX`] characters is cut.
#[must_use]
pub fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let words = text.split(|c: char| hidden(c) || c.is_whitespace()).filter(|word| !word.is_empty());
    let line = words.take(SHOWN_MAX).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
