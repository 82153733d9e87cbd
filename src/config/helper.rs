//! Docker credential helpers: `docker-credential-NAME get`, the server's name on standard input, JSON on standard output.
//!
//! The protocol is that of docker/docker-credential-helpers (`client/client.go`, `credentials/error.go`). A helper is a
//! stranger's program that may hang or flood: it gets a time limit and an output limit.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::Environment;
use super::auth::{Credentials, Secret};

/// How long a helper may take. Long enough for a person to unlock a key ring.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes that a helper may write. A token has a few kilobytes.
pub const HELPER_OUTPUT_MAX: u64 = 256 << 10;

/// What a helper prints when it has no credentials (`credentials/error.go`, `errCredentialsNotFoundMessage`).
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Why a helper gave nothing. What it printed is only shown when it cannot be its JSON answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names something that is no name of a program.
    #[error("credential helper {0:?}: not a valid helper name")]
    Name(String),
    /// It could not be started.
    #[error("starting credential helper docker-credential-{name}: {error}")]
    Start {
        /// Name without `docker-credential-`.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// Talking to it failed.
    #[error("reading from credential helper docker-credential-{name}: {error}")]
    Read {
        /// Name without `docker-credential-`.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// It did not end within [`HELPER_TIMEOUT`].
    #[error("credential helper docker-credential-{name} did not answer within {} seconds", limit.as_secs())]
    Timeout {
        /// Name without `docker-credential-`.
        name: String,
        /// The limit.
        limit: Duration,
    },
    /// It wrote more than [`HELPER_OUTPUT_MAX`].
    #[error("credential helper docker-credential-{name} wrote more than {HELPER_OUTPUT_MAX} bytes")]
    TooBig {
        /// Name without `docker-credential-`.
        name: String,
    },
    /// It ended with an error.
    #[error("credential helper docker-credential-{name} failed for {server}{message}")]
    Failed {
        /// Name without `docker-credential-`.
        name: String,
        /// What was asked for.
        server: String,
        /// `: ` and what it printed, cleaned and shortened; or nothing.
        message: String,
    },
    /// Its answer is not the protocol's JSON.
    #[error("credential helper docker-credential-{name} gave no valid answer")]
    Answer {
        /// Name without `docker-credential-`.
        name: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: Secret,
}

/// The credentials that helper `name` has for `server`, or `None` when it has none.
///
/// # Errors
/// When the helper cannot be started, fails, hangs, floods or gives nonsense.
pub fn get(name: &str, server: &str, environment: &Environment) -> Result<Option<Credentials>, Error> {
    get_within(HELPER_TIMEOUT, name, server, environment)
}

pub(crate) fn get_within(
    limit: Duration,
    name: &str,
    server: &str,
    environment: &Environment,
) -> Result<Option<Credentials>, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::Name(name.to_owned()));
    }
    let own = || name.to_owned();
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(path) = &environment.path {
        command.env("PATH", path);
    }
    let mut child = command.spawn().map_err(|error| Error::Start { name: own(), error })?;
    let output = talk(&mut child, server, limit);
    if output.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| Error::Read { name: own(), error })?;
    let output = match output {
        Ok(output) => output,
        Err(Trouble::Timeout) => return Err(Error::Timeout { name: own(), limit }),
        Err(Trouble::Flood) => return Err(Error::TooBig { name: own() }),
        Err(Trouble::Io(error)) => return Err(Error::Read { name: own(), error }),
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        if text.trim() == NOT_FOUND {
            return Ok(None);
        }
        let shown = if text.contains('{') { String::new() } else { super::clean(&text) };
        let message = if shown.is_empty() { shown } else { format!(": {shown}") };
        return Err(Error::Failed { name: own(), server: server.to_owned(), message });
    }
    parse(&output).map(Some).ok_or_else(|| Error::Answer { name: own() })
}

/// What a helper's answer says; `None` when it is not the protocol's JSON.
#[must_use]
pub fn parse(output: &[u8]) -> Option<Credentials> {
    let answer: Answer = serde_json::from_slice(output).ok()?;
    Some(match answer.username.as_str() {
        TOKEN_USER => Credentials { identity_token: Some(answer.secret), ..Credentials::default() },
        _ => Credentials { username: answer.username, password: answer.secret, identity_token: None },
    })
}

enum Trouble {
    Timeout,
    Flood,
    Io(io::Error),
}

/// Writes the server's name, reads the answer to its end, and sees the child off, all within `limit`.
fn talk(child: &mut Child, server: &str, limit: Duration) -> Result<Vec<u8>, Trouble> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Trouble::Io(io::ErrorKind::BrokenPipe.into()));
    };
    // A helper that fails at once closes its standard input: what it printed says more than a broken pipe.
    let _ = stdin.write_all(server.as_bytes());
    drop(stdin);
    let (sender, receiver) = mpsc::channel();
    crate::threads::spawn(move || {
        let mut output = Vec::new();
        let result = stdout.take(HELPER_OUTPUT_MAX + 1).read_to_end(&mut output);
        let _ = sender.send(result.map(|_| output));
    })
    .map_err(Trouble::Io)?;
    let output = receiver.recv_timeout(limit).map_err(|_| Trouble::Timeout)?.map_err(Trouble::Io)?;
    if output.len() as u64 > HELPER_OUTPUT_MAX {
        return Err(Trouble::Flood);
    }
    // It may close its output and live on.
    let steps = limit.as_millis() / WAIT_STEP.as_millis() + 1;
    for _ in 0..steps {
        if child.try_wait().map_err(Trouble::Io)?.is_some() {
            return Ok(output);
        }
        std::thread::sleep(WAIT_STEP);
    }
    Err(Trouble::Timeout)
}

/// How often a helper that has closed its output is looked after.
const WAIT_STEP: Duration = Duration::from_millis(5);
