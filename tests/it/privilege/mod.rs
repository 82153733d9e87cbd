//! `prepull-helper`, started as it is meant to be, and attacked: by sudo, by a socket.
//!
//! A machine's /etc, a root directory, and everything beside it that must stay as it is. The helper runs in a mount namespace of
//! its own, with its own policy, accounts and sudoers. PREPULL_FIGURES=FILE gets how much was tried.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use prepull::digest::Digest;
use prepull::helper::Answer;

use crate::stores::{GRAPHROOT, scratch};

/// What the entries of a stream may say, and what is refused of them.
mod attacks;
/// What the helper may still do when it reads its first byte, and when it publishes.
mod calls;
/// What is done to the process instead of the stream.
pub mod process;
/// Somebody renames the root directory all the time.
mod race;
/// What else a stream may say: records, requests, order, limits.
mod requests;
/// Streams: no tests of its own.
pub mod stream;
/// Streams that end, flip, wait or never end.
mod streams;
/// The units of policy/, as far as they can be read.
mod units;
/// The ways to the helper.
mod ways;

/// The user who may install; not root's neighbour, and in no group.
pub const USER: u32 = 4321;

/// Who starts the helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Root, for root.
    Root,
    /// Root, for the user: as sudo starts it.
    ForUser,
    /// The user, by sudo.
    Sudo,
}

/// The namespace, its files, and what is beside them.
pub struct Jail {
    directory: tempfile::TempDir,
    holder: Child,
    _alive: ChildStdin,
    outside: String,
}

/// What came of one run.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code, or 128 and the signal.
    pub code: i32,
    /// Its one line; `None` when it died before that.
    pub answer: Option<Answer>,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// How the helper is run.
pub struct Run<'a> {
    jail: &'a Jail,
    by: By,
    setup: String,
    words: String,
    env: Vec<(String, String)>,
    wrapper: String,
    directory: PathBuf,
}

impl Drop for Jail {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Jail {
    /// With a directory `vm` that the user and root may install into, with `more` lines in their entries.
    pub fn new(more: &str) -> Self {
        Self::of_kind("storage", more)
    }

    /// The same for trees.
    pub fn rootfs(more: &str) -> Self {
        Self::of_kind("rootfs", more)
    }

    fn of_kind(kind: &str, more: &str) -> Self {
        let directory = scratch();
        let at = directory.path();
        fs_err::set_permissions(at, std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["vm", "vm/etc", "outside/inner", "bin", "etc", "home"] {
            fs_err::create_dir_all(at.join(name)).unwrap();
        }
        for name in ["vm/etc/passwd", "outside/secret", "outside/inner/file", "canary"] {
            fs_err::write(at.join(name), format!("{name}: as it was\n")).unwrap();
        }
        fs_err::set_permissions(at.join("outside/secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(at.join("home"), Some(USER), Some(USER)).unwrap();
        crate::command::direct_sudo(&at.join("direct"));
        // Where the user can get to them: the build's directory may be root's alone.
        for name in ["bin/prepull", "bin/prepull-helper"] {
            fs_err::write(at.join(name), "").unwrap();
        }
        let script = format!(
            r#"set -e; at={at}
            mount -t tmpfs none $at/etc; mkdir $at/etc/u $at/etc/w
            mount -t overlay none -o lowerdir=/etc,upperdir=$at/etc/u,workdir=$at/etc/w /etc
            mount --bind {built}/prepull $at/bin/prepull; mount --bind {built}/prepull-helper $at/bin/prepull-helper
            mkdir -p /run/prepull; mount -t tmpfs -o mode=755 none /run/prepull
            rm -rf /etc/prepull; mkdir -m 755 /etc/prepull; mkdir -p /etc/sudoers.d
            grep -q '^tester:' /etc/passwd || echo 'tester:x:{USER}:{USER}::/:/bin/sh' >>/etc/passwd
            grep -q '^tester:' /etc/group || echo 'tester:x:{USER}:' >>/etc/group
            grep -q '^tester:' /etc/shadow || echo 'tester:*:19000:0:99999:7:::' >>/etc/shadow
            echo 'Defaults:tester !use_pty,!syslog' >/etc/sudoers
            echo "tester ALL=(root) NOPASSWD: $at/bin/prepull-helper stdio" >>/etc/sudoers; chmod 440 /etc/sudoers
            echo ready; read -r end"#,
            at = at.display(),
            built = Path::new(env!("CARGO_BIN_EXE_prepull")).parent().unwrap().display(),
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]).current_dir("/");
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the namespace");
        let alive = holder.stdin.take().unwrap();
        let entry = |user| {
            let root = at.join("vm").display().to_string();
            format!("[[allow]]\nuser = {user}\nroot = \"{root}\"\nkind = \"{kind}\"\n{more}\n")
        };
        let policy = [entry("0"), entry("\"tester\"")].concat();
        let mut jail = Self { directory, holder, _alive: alive, outside: String::new() }.with_policy(&policy);
        jail.keep_outside();
        jail
    }

    pub fn with_policy(self, policy: &str) -> Self {
        fs_err::write(self.at("policy"), policy).unwrap();
        self.ok(r#"rm -f /etc/prepull/helper.toml; install -m 644 "$at/policy" /etc/prepull/helper.toml"#);
        self
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The root directory.
    pub fn root(&self) -> PathBuf {
        self.at("vm")
    }

    /// The store in it.
    pub fn store(&self) -> PathBuf {
        self.root().join(GRAPHROOT)
    }

    /// `device:inode` of the root directory.
    pub fn root_number(&self) -> String {
        let found = fs_err::metadata(self.root()).unwrap();
        format!("{}:{}", found.dev(), found.ino())
    }

    /// Something that is executed in the namespace.
    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-m"]);
        command
    }

    /// `script`, by bash as root in the namespace; in it `as` runs a command as the user, `direct` runs prepull so that it starts the
    /// helper without sudo, and `"$at"` is where it all is.
    pub fn command(&self, script: &str) -> Command {
        let prelude = format!(
            r#"at={at}; direct() {{ env PATH="$at/direct:$PATH" "$at/bin/prepull" "$@" --via sudo; }}; as() {{ setpriv --reuid {USER} --regid {USER} --clear-groups env -i "PATH=$PATH" "HOME=$at/home" \
                SOURCE_DATE_EPOCH=1234567890 "$@"; }}
            {script}"#,
            at = self.directory.path().display(),
        );
        let mut command = self.inside();
        command.args(["bash", "-c", &prelude]).current_dir("/");
        command
    }

    /// Runs it; it must end well. Gives what it said.
    #[track_caller]
    pub fn ok(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn run(&self, by: By) -> Run<'_> {
        let (setup, words, wrapper) = (String::new(), "stdio".to_owned(), String::new());
        Run { jail: self, by, setup, words, env: Vec::new(), wrapper, directory: self.root() }
    }

    /// Everything that is not the store: content, owners, modes, and the times that nobody can set.
    fn digest_outside(&self) -> String {
        let mut text = String::new();
        for name in ["vm", "vm/etc", "outside", "canary"] {
            describe(&self.at(name), name, name == "outside" || name == "vm/etc", &mut text);
        }
        for name in ["passwd", "shadow", "group"] {
            describe(&Path::new("/etc").join(name), name, false, &mut text);
        }
        Digest::of(text.as_bytes()).to_string()
    }

    /// # Panics
    /// When something outside the store was touched.
    #[track_caller]
    pub fn outside_is_unchanged(&self, what: &str) {
        assert_eq!(self.digest_outside(), self.outside, "{what}: outside has changed");
    }

    /// What is outside now is what must stay.
    pub fn keep_outside(&mut self) {
        self.outside = self.digest_outside();
    }

    /// All that is below the root, as lines: kinds, modes, owners, sizes, links, and records to the byte. Without lock files, which
    /// any request may make, and without staging.
    pub fn published(&self) -> String {
        let mut text = String::new();
        list(&self.root(), "", &mut text);
        for name in ["overlay-layers/layers.json", "overlay-images/images.json"] {
            let content = fs_err::read_to_string(self.store().join(name)).unwrap_or_default();
            if !content.is_empty() {
                let _: serde_json::Value = serde_json::from_str(&content).unwrap();
            }
            let _ = writeln!(text, "{name}: {content}");
        }
        text
    }

    /// Staging directories that are there.
    pub fn staging(&self) -> usize {
        let Ok(entries) = fs_err::read_dir(self.store()) else { return 0 };
        entries.filter(|entry| entry.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b".prepull-")).count()
    }

    /// The images that podman lists.
    pub fn podman(&self) -> String {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.store()).arg("--runroot").arg(self.at("run"));
        command.args(["--storage-driver", "overlay", "images", "--no-trunc", "--format"]);
        crate::command::succeeds(command.arg("{{.Repository}}:{{.Tag}} {{.ID}}"))
    }

    /// Refused with one line that has one of the parts of `why` (`a|b`) in it, with nothing published, nothing outside touched, and
    /// nothing left but what the answer says that a `sweep` will find.
    #[track_caller]
    pub fn refuses(&self, by: By, what: &str, why: &str, stream: &[u8]) -> String {
        let before = self.published();
        let outcome = self.run(by).feed(stream);
        let error = outcome.refused(what);
        assert!(why.split('|').any(|part| error.contains(part)), "{what}: none of {why:?} is in {error:?}");
        self.outside_is_unchanged(what);
        assert_eq!(self.published(), before, "{what}: something was published");
        assert_eq!(self.staging() > 0, outcome.answer.unwrap().left, "{what}: staging is left");
        if self.staging() > 0 {
            self.run(by).feed(&stream::Stream::new("sweep", self).end()).succeeded(what);
            assert_eq!(self.staging(), 0, "{what}: staging is left");
        }
        error
    }
}

fn describe(path: &Path, name: &str, is_deep: bool, out: &mut String) {
    let found = fs_err::symlink_metadata(path).unwrap();
    let is_directory = found.is_dir();
    // The root directory itself changes when the store is made in it.
    let times = if name == "vm" { (0, 0, 0) } else { (found.ctime(), found.ctime_nsec(), found.mtime_nsec()) };
    let _ = writeln!(out, "{name} {:o} {} {} {times:?}", found.mode(), found.uid(), found.gid());
    if found.is_file() {
        let _ = writeln!(out, "{}", fs_err::read_to_string(path).unwrap());
    } else if is_directory && is_deep {
        for child in names(path) {
            describe(&path.join(&child), &format!("{name}/{child}"), true, out);
        }
    }
}

fn list(path: &Path, name: &str, out: &mut String) {
    let found = fs_err::symlink_metadata(path).unwrap();
    let size = if found.is_dir() || name.is_empty() { 0 } else { found.size() };
    let _ = write!(out, "{name} {:o} {}:{} {size}", found.mode(), found.uid(), found.gid());
    let target = if found.is_symlink() { fs_err::read_link(path).unwrap() } else { PathBuf::new() };
    let _ = writeln!(out, " {}", target.display());
    if found.is_dir() {
        let is_ours = |child: &String| !child.ends_with(".lock") && !child.starts_with(".prepull-staging-");
        for child in names(path).into_iter().filter(is_ours) {
            list(&path.join(&child), &format!("{name}/{child}"), out);
        }
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Outcome {
    /// Why; it must be one line, and not a panic.
    #[track_caller]
    pub fn refused(&self, what: &str) -> String {
        let answer = self.answer.as_ref().unwrap_or_else(|| panic!("{what}: no answer, {self:?}"));
        assert!(self.code == 1 && !answer.error.is_empty(), "{what}: {self:?}");
        assert!(!answer.error.contains(['\n', '\0']), "{what}: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{what}: {self:?}");
        answer.error.clone()
    }

    #[track_caller]
    pub fn succeeded(&self, what: &str) -> &Answer {
        assert!(self.code == 0 && self.answer.is_some(), "{what}: {self:?}");
        self.answer.as_ref().unwrap()
    }
}

impl<'a> Run<'a> {
    /// Shell commands before it, in its process: `exec 3</etc/passwd`, `ulimit -n 5`.
    pub fn setup(mut self, script: &str) -> Self {
        self.setup = script.to_owned();
        self
    }

    /// Its arguments.
    pub fn words(mut self, words: &str) -> Self {
        words.clone_into(&mut self.words);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program that runs it, like strace.
    pub fn wrapper(mut self, wrapper: &str) -> Self {
        wrapper.clone_into(&mut self.wrapper);
        self
    }

    pub fn directory(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    /// The process, started.
    pub fn command(&self) -> Command {
        let helper = self.jail.at("bin/prepull-helper").display().to_string();
        let (before, start) = match self.by {
            By::Root => (String::new(), format!("{} {helper}", self.wrapper)),
            By::ForUser => (format!("export SUDO_UID={USER};"), format!("{} {helper}", self.wrapper)),
            By::Sudo => (
                String::new(),
                format!("setpriv --reuid {USER} --regid {USER} --clear-groups {} sudo -n {helper}", self.wrapper),
            ),
        };
        let script =
            format!("cd {} || exit 99; {before} {} exec {start} {}", self.directory.display(), self.setup, self.words);
        let mut command = self.jail.inside();
        command.args(["sh", "-c", &script]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it with `stream` on its standard input.
    pub fn feed(&self, stream: &[u8]) -> Outcome {
        self.feed_by(|input| {
            // It may have stopped reading.
            let _ = input.write_all(stream);
        })
    }

    /// Runs it; `write` fills its standard input, which is closed after that.
    pub fn feed_by(&self, write: impl FnOnce(&mut ChildStdin) + Send) -> Outcome {
        finish(self.command(), write)
    }
}

/// Runs `command` to its end.
pub fn finish(mut command: Command, write: impl FnOnce(&mut ChildStdin) + Send) -> Outcome {
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let input = child.stdin.take();
    let (output, took) = std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut input) = input {
                write(&mut input);
            }
        });
        let output = child.wait_with_output().unwrap();
        (output, start.elapsed())
    });
    let stdout = String::from_utf8(output.stdout).unwrap();
    let answer = stdout.strip_suffix('\n').filter(|line| !line.contains('\n'));
    Outcome {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap()),
        answer: answer.and_then(|line| serde_json::from_str(line).ok()),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took,
    }
}

/// How much was tried, for who wants to know.
pub fn figure(what: &str, count: usize) {
    eprintln!("{what}: {count}");
    if let Some(path) = std::env::var_os("PREPULL_FIGURES") {
        let mut file = fs_err::OpenOptions::new().append(true).create(true).open(PathBuf::from(path)).unwrap();
        writeln!(file, "{what}: {count}").unwrap();
    }
}
