//! Runs the `prepull` that is tested, with nothing of the caller's settings: no tests of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;

/// The repository.
pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The image in the repository.
pub fn hello() -> String {
    format!("oci:{REPOSITORY}/tests/images/hello:v1")
}

/// Has children begin with the usual actions of signals. A shell that runs the tests in the background has them ignore SIGINT, and
/// their children would inherit that. They do not inherit a handler.
fn heed_signals() {
    static HEEDED: OnceLock<()> = OnceLock::new();
    HEEDED.get_or_init(|| {
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            register_conditional_shutdown(signal, 130, Arc::new(AtomicBool::new(true))).unwrap();
        }
    });
}

/// `prepull` with its home in `home`.
pub fn prepull(home: &Path) -> Command {
    heed_signals();
    let mut command = Command::new(env!("CARGO_BIN_EXE_prepull"));
    for name in ["XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "XCLUSTER", "XCLUSTER_TMP", "TMPDIR"] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("SOURCE_DATE_EPOCH", "1234567890");
    command
}

/// `prepull-helper` as it goes into machines. PREPULL_STATIC_HELPER names one that is there; else cargo makes it, once.
pub fn static_helper() -> PathBuf {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let target = Path::new(env!("CARGO_BIN_EXE_prepull")).ancestors().nth(2).unwrap();
        let mut command = Command::new(Path::new(REPOSITORY).join("policy/build-helper"));
        let output = command.arg("--target-dir").arg(target).output().unwrap();
        assert!(output.status.success(), "building prepull-helper: {}", stderr(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    };
    let named = || std::env::var_os("PREPULL_STATIC_HELPER").filter(|path| !path.is_empty()).map(PathBuf::from);
    HELPER.get_or_init(|| named().unwrap_or_else(build)).clone()
}

/// Runs it; gives what it said on standard output.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it; it must end with `code`, and say in one line why, and nothing else.
#[track_caller]
pub fn fails(command: &mut Command, code: i32, part: &str) {
    let output = command.output().unwrap();
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    assert!(stderr.contains(part), "{command:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{command:?}");
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether this runs as root. If not, says so where nobody can overlook it: `tests/run` lists it.
pub fn needs_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    not_run(test, "root");
    false
}

/// Says that a test is not run for want of something.
pub fn not_run(test: &str, want: &str) {
    let line = format!("NOT RUN (needs {want}): {test}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os("PREPULL_NOT_RUN") {
        let mut file = fs_err::OpenOptions::new().append(true).create(true).open(PathBuf::from(path)).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// Makes a `sudo` in `directory` that starts the program without any change: root's prepull then runs a helper of the test's own.
pub fn direct_sudo(directory: &std::path::Path) {
    fs_err::create_dir_all(directory).unwrap();
    let sudo = directory.join("sudo");
    fs_err::write(&sudo, "#!/bin/sh\ntest \"$1\" = -n && shift\nexec \"$@\"\n").unwrap();
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs_err::set_permissions(&sudo, mode).unwrap();
}
