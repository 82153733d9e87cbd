//! D2: progress in a real terminal of several widths, and in a pipe.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::json;

use crate::command::{prepull, stderr};
use crate::made::{config, tar};
use crate::registry::blob;
use crate::support;
use crate::support::fault_server::{Fault, FaultServer, Reply};

/// Starts a registry with the images `app:v1` of three layers and `tiny:v1` of one.
///
/// The first request for the second layer of `app` fails. With `stalls`, this layer stops after 1 MB, and the third after 0.6 MB.
fn registry(stalls: bool) -> FaultServer {
    let app = [tar(&[("a", &blob(400_000))]), tar(&[("b", &blob(2_000_000))]), tar(&[("c", &blob(3_000_000))])];
    let tiny = [tar(&[("t", b"t")])];
    let describe = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let image = |layers: &[Vec<u8>]| {
        let config = config("amd64", layers);
        let described: Vec<_> =
            layers.iter().map(|layer| describe("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": describe(OCI_CONFIG, &config), "layers": described});
        (config, serde_json::to_vec(&manifest).unwrap())
    };
    let manifests = [("/v2/app/manifests/v1", image(&app)), ("/v2/tiny/manifests/v1", image(&tiny))];
    FaultServer::start(move |seen, before| {
        let name = seen.path.rsplit('/').next().unwrap();
        if seen.path == "/v2/" {
            return Reply::new(200, "");
        }
        if let Some((_, (_, manifest))) = manifests.iter().find(|(path, _)| *path == seen.path) {
            return Reply::new(200, manifest.clone()).header("Content-Type", OCI_MANIFEST);
        }
        if let Some((_, (config, _))) = manifests.iter().find(|(_, (config, _))| Digest::of(config).to_string() == name)
        {
            return Reply::new(200, config.clone());
        }
        let at = app.iter().chain(&tiny).position(|layer| Digest::of(layer).to_string() == name).unwrap();
        let layer = app.iter().chain(&tiny).nth(at).unwrap();
        match at {
            // The retry of the other layer shows above this one, always.
            3 => {
                std::thread::sleep(Duration::from_millis(300));
                Reply::blob(layer, seen)
            }
            1 if before == 0 => Reply::new(503, "").header("Retry-After", "1"),
            1 | 2 if stalls => Reply::new(200, layer.clone()).fault(Fault::StallAfter([0, 1_000_000, 600_000][at])),
            _ => Reply::blob(layer, seen),
        }
    })
}

fn make(home: &Path, server: &FaultServer) -> Command {
    let mut command = prepull(home);
    command.args(["make", "--platform", "linux/amd64", "--tls-verify=false", "--tar", "x.tar"]).current_dir(home);
    command.args(["app", "tiny"].map(|name| format!("{}/{name}:v1", server.host())));
    command
}

/// A terminal of tmux, which ends with this value.
struct Terminal {
    socket: String,
}

impl Terminal {
    /// Runs `command` in a new terminal with so many columns and 12 rows.
    fn start(command: &Command, columns: usize) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let socket = format!("prepull-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let text = |word: &std::ffi::OsStr| word.to_str().unwrap().to_owned();
        let (set, unset): (Vec<_>, Vec<_>) = command.get_envs().partition(|(_, value)| value.is_some());
        let mut words = vec!["env".to_owned()];
        words.extend(unset.iter().flat_map(|(name, _)| ["-u".to_owned(), text(name)]));
        words.extend(set.iter().map(|(name, value)| format!("{}={}", text(name), text(value.unwrap()))));
        words.push(text(command.get_program()));
        words.extend(command.get_args().map(text));
        let line: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        // The terminal stays when the command has ended.
        let line = format!("{}; exec sleep 60", line.join(" "));
        let terminal = Self { socket };
        let (columns, directory) = (columns.to_string(), command.get_current_dir().unwrap().to_str().unwrap());
        let arguments = ["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", "12", "-c", directory, &line];
        support::run("tmux", terminal.tmux().args(arguments));
        terminal
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket]);
        command
    }

    /// Returns the screen when both layers of the registry have stalled. The rate is measured over five seconds: then it is zero,
    /// and the screen stays as it is.
    fn wait_for_stall(&self) -> String {
        let parts = ["0 B/s", "2.00 MB / 5.41 MB"];
        let begin = Instant::now();
        loop {
            let screen = support::run("tmux", self.tmux().args(["capture-pane", "-p"])).stdout;
            let screen = String::from_utf8(screen).unwrap();
            if parts.iter().all(|part| screen.contains(part)) {
                return screen;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "no {parts:?} on the screen:\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The server has ended already if its command could not be started.
        let _ = self.tmux().arg("kill-server").output();
    }
}

#[test]
fn d02_progress_fits_terminals_of_40_80_and_120_columns() {
    std::thread::scope(|scope| {
        for columns in [40, 80, 120] {
            let run = move || {
                let server = registry(true);
                let home = tempfile::tempdir().unwrap();
                let terminal = Terminal::start(&make(home.path(), &server), columns);
                let port = server.host().rsplit_once(':').unwrap().1.to_owned();
                let screen = terminal.wait_for_stall().replace(&port, &"P".repeat(port.len()));
                insta::assert_snapshot!(format!("progress_{columns}"), screen);
            };
            scope.spawn(run);
        }
    });
}

#[test]
fn d02_verbose_messages_stay_above_the_bars() {
    let server = registry(true);
    let home = tempfile::tempdir().unwrap();
    let mut command = make(home.path(), &server);
    command.arg("-v");
    let terminal = Terminal::start(&command, 120);
    let screen = terminal.wait_for_stall();
    let lines: Vec<_> = screen.lines().filter(|line| !line.is_empty()).collect();
    let bars = lines.iter().position(|line| line.ends_with(" of 3 layers")).unwrap();
    assert_eq!(lines.len(), bars + 4, "image, two layers and the total are the last lines:\n{screen}");
    assert!(lines[bars + 3].starts_with("total ["), "{screen}");
    assert!(lines[..bars].iter().any(|line| line.contains(" INFO ")), "{screen}");
    assert!(!lines[..bars].iter().any(|line| line.contains("===") || line.contains(" of 3 layers")), "{screen}");
}

#[test]
fn d02_progress_in_a_pipe_is_plain_lines() {
    let server = registry(false);
    let home = tempfile::tempdir().unwrap();
    let output = make(home.path(), &server).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let (text, host) = (stderr(&output), server.host());
    let count = |line: &str| text.lines().filter(|other| *other == line).count();
    assert_eq!(count(&format!("fetching {host}/app:v1: 3 layers, 5.41 MB")), 1, "{text}");
    assert_eq!(count(&format!("fetched {host}/app:v1: 3 layers, 5.41 MB")), 1, "{text}");
    assert_eq!(count(&format!("fetching {host}/tiny:v1: 1 layer, 2.05 kB")), 1, "{text}");
    assert_eq!(count(&format!("fetched {host}/tiny:v1: 1 layer, 2.05 kB")), 1, "{text}");
    let retries: Vec<_> = text.lines().filter(|line| line.contains("retrying in 1.0 s (1 of 3)")).collect();
    assert!(retries.len() == 1 && retries[0].contains("503"), "{text}");
    assert!(!text.contains(['\r', '\x1b']), "{text}");
    // What is in the cache is not fetched, and a quiet run has nothing to tell.
    let again = make(home.path(), &server).output().unwrap();
    assert!(!stderr(&again).contains("fetch"), "{}", stderr(&again));
    let quiet = make(home.path(), &server).args(["-q", "--no-cache"]).output().unwrap();
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", stderr(&quiet));
}
