//! What several test modules need. Everything listens on 127.0.0.1 and ends when it is dropped.

pub(crate) mod docker_registry;
pub(crate) mod fault_server;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use prepull::config::Environment;
use prepull::registry::{Limits, Options, retry};

/// Options that see nothing of the machine's configuration, and are in a hurry.
pub(crate) fn options(home: &Path) -> Options {
    let environment =
        Environment { home: home.to_owned(), xdg_runtime_dir: Some(home.to_owned()), ..Environment::default() };
    Options {
        tls_verify: false,
        retry: retry::Policy { times: 3, delay: Some(Duration::from_millis(5)), ..Default::default() },
        limits: Limits { silence: Duration::from_millis(400), ..Limits::default() },
        ..Options::new(environment)
    }
}

/// Runs a program and demands success. Says which Debian package to install when it is not there.
pub(crate) fn run(package: &str, command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error} (apt install {package})"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    output
}
