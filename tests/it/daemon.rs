//! A Docker daemon of the tests' own: private socket, private directories, no network. It is stopped at the end.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use prepull::digest::Digest;
use prepull::image::{Image, Platform};
use prepull::reference::Item;
use prepull::source::{self, Options};

use crate::command::needs_root;
use crate::made::{Layout, config, copy, layers};

/// How long the daemon may take to listen.
const START_MAX: Duration = Duration::from_secs(60);

struct Daemon {
    process: Child,
    host: String,
}

impl Daemon {
    fn start(at: &Path) -> Self {
        let path = |name: &str| at.join(name).display().to_string();
        let host = format!("unix://{}", path("socket"));
        let process = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", "vfs"])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid"), "-H", &host])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs_err::File::create(at.join("log")).unwrap().into_file())
            .spawn()
            .unwrap_or_else(|error| panic!("start dockerd (apt-get install docker.io): {error}"));
        let mut daemon = Self { process, host };
        let start = Instant::now();
        while !daemon.docker(&["version"]) {
            let ended = daemon.process.try_wait().unwrap();
            let log = || fs_err::read_to_string(at.join("log")).unwrap();
            assert!(ended.is_none() && start.elapsed() < START_MAX, "dockerd does not listen: {}", log());
            thread::sleep(Duration::from_millis(100));
        }
        daemon
    }

    fn docker(&self, arguments: &[&str]) -> bool {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", &self.host).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        docker
            .status()
            .unwrap_or_else(|error| {
                panic!("run docker (apt-get install docker.io, on Debian 13 and later docker-cli): {error}")
            })
            .success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM, so that it stops its containerd too.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

#[test]
fn images_of_a_real_daemon_are_those_that_skopeo_reads() {
    if !needs_root("daemon: images of a real daemon") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let descriptor = layout.image("amd64", &layers());
    layout.add(None, descriptor);
    copy(at, &["oci:layout", "docker-archive:a.tar:localhost/app:v1"]);
    let daemon = Daemon::start(at);
    assert!(daemon.docker(&["load", "-i", &at.join("a.tar").display().to_string()]));
    copy(at, &["--src-daemon-host", &daemon.host, "docker-daemon:localhost/app:v1", "dir:dir"]);

    let options = Options { docker_host: Some(daemon.host.clone()), ..Options::default() };
    let open = |item: &str| source::open(&Item::parse(item.as_ref()).unwrap().location, &options);
    let id = Digest::of(&config("amd64", &layers()));
    for item in ["docker-daemon:localhost/app:v1", &format!("docker-daemon:{id}")] {
        let source = open(item).unwrap();
        let image = Image::open(&*source, None, &Platform::host()).unwrap();
        assert_eq!(image.manifest().bytes, fs_err::read(at.join("dir/manifest.json")).unwrap(), "{item}");
        assert_eq!(image.id(), id, "{item}");
    }
    match open("docker-daemon:localhost/none:1") {
        Err(source::Error::NotFound(text)) => assert!(text.contains("localhost/none:1"), "{text}"),
        other => panic!("{other:?}"),
    }
}
