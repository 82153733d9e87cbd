//! `prepull-helper`, started as it is meant to be, and attacked: by sudo, by a socket, with file capabilities.
//!
//! Each run has a mount namespace with an /etc of its own: policy, sudoers, accounts. PREPULL_FIGURES=FILE gets how much was tried.

mod attacks;
mod calls;
mod units;
mod ways;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use prepull::entry::{Entry, Kind, Meta};
use prepull::wire;
use serde_json::Value;

use crate::stores::{GRAPHROOT, scratch};

/// The user who may install.
pub const USER: u32 = 4321;

/// A place with a policy.
pub struct Jail {
    directory: tempfile::TempDir,
    policy: String,
}

/// What the helper answered.
pub struct Answer {
    pub status: Option<i32>,
    pub json: Option<Value>,
    pub stderr: String,
}

impl Answer {
    /// Its error; empty for none.
    pub fn error(&self) -> &str {
        self.json.as_ref().and_then(|json| json["error"].as_str()).unwrap_or_default()
    }
}

impl Jail {
    /// With a directory `vm` that the user may install into, with `more` lines in its entry.
    pub fn new(more: &str) -> Self {
        let directory = scratch();
        for name in ["vm", "home", "etc", "work", "bin"] {
            fs_err::create_dir(directory.path().join(name)).unwrap();
        }
        let root = directory.path().join("vm");
        let policy =
            format!("[[allow]]\nuser = \"tester\"\nroot = \"{}\"\nkind = \"storage\"\n{more}\n", root.display());
        let jail = Self { directory, policy };
        // Where the user can get to it; the build's directory may be root's alone.
        for name in ["prepull", "prepull-helper"] {
            let built = Path::new(env!("CARGO_BIN_EXE_prepull")).with_file_name(name);
            fs_err::copy(built, jail.at("bin").join(name)).unwrap();
        }
        std::os::unix::fs::chown(jail.at("home"), Some(USER), Some(USER)).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(jail.directory.path(), open).unwrap();
        jail
    }

    pub fn with_policy(mut self, policy: &str) -> Self {
        policy.clone_into(&mut self.policy);
        self
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.at("vm")
    }

    /// `script`, by bash as root in the namespace; `"$as"` in it runs a command as the user.
    pub fn command(&self, script: &str) -> Command {
        let prelude = format!(
            r#"set -e; at={at}
            mount -t overlay overlay -o "lowerdir=/etc,upperdir=$at/etc,workdir=$at/work" /etc
            mkdir -p /etc/prepull /etc/sudoers.d; chmod 755 /etc/prepull; cat >/etc/prepull/helper.toml <<'END'
{policy}
END
            chmod 644 /etc/prepull/helper.toml
            grep -q '^tester:' /etc/passwd || echo 'tester:x:{USER}:{USER}::/:/bin/sh' >>/etc/passwd
            grep -q '^tester:' /etc/group || echo 'tester:x:{USER}:' >>/etc/group
            grep -q '^tester:' /etc/shadow || echo 'tester:*:19000:0:99999:7:::' >>/etc/shadow
            echo "tester ALL=(root) NOPASSWD: $at/bin/prepull-helper stdio" >/etc/sudoers.d/prepull
            chmod 440 /etc/sudoers.d/prepull
            as() {{ setpriv --reuid {USER} --regid {USER} --clear-groups env -i "PATH=$PATH" "HOME=$at/home" \
                SOURCE_DATE_EPOCH=1234567890 "$@"; }}
            set +e
            {script}"#,
            at = self.directory.path().display(),
            policy = self.policy,
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", &prelude]).current_dir("/");
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

    /// Has the helper, by sudo as the user, read `stream` in the directory.
    pub fn send(&self, stream: &[u8]) -> Answer {
        self.send_by(r#"cd "$at/vm" && as sudo -n "$at/bin/prepull-helper" stdio"#, stream)
    }

    /// Has `script` read it.
    pub fn send_by(&self, script: &str, stream: &[u8]) -> Answer {
        let mut command = self.command(script);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let stream = stream.to_vec();
        // Who refuses does not read to the end.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&stream)));
        let answer = answer(&child.wait_with_output().unwrap());
        writer.join().unwrap();
        answer
    }

    /// A stream: a request, `entries` as they are, and an end.
    pub fn stream(&self, request: &str, entries: &[Vec<u8>]) -> Vec<u8> {
        [self.request(request, "", ""), entries.concat(), wire::END.to_vec()].concat()
    }

    /// The first entry of a stream.
    pub fn request(&self, request: &str, replace: &str, with: &str) -> Vec<u8> {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs_err::metadata(self.root()).unwrap();
        let text =
            format!("prepull 1\nrequest {request}\ngraphroot /{GRAPHROOT}\nroot {}:{}\n", found.dev(), found.ino());
        file("prepull-request", text.replace(replace, if replace.is_empty() { "" } else { with }).as_bytes())
    }

    /// All that is below the root, as lines; without the store's lock files, which any request may make.
    pub fn tree(&self) -> String {
        let script = r#"cd "$1" && find . ! -name '*.lock' ! -path ./var/lib/containers/storage -printf '%p %y %m %U:%G %s %l\n' | sort"#;
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(self.root()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

pub fn answer(output: &Output) -> Answer {
    let text = String::from_utf8_lossy(&output.stdout);
    let is_line = text.ends_with('\n') && text.matches('\n').count() == 1;
    Answer {
        status: output.status.code(),
        json: if is_line { serde_json::from_str(&text).ok() } else { None },
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A regular file as an entry.
pub fn file(path: &str, content: &[u8]) -> Vec<u8> {
    let kind = Kind::Regular { size: content.len() as u64 };
    let mut tar = Vec::new();
    wire::small_file(&mut tar, &entry(path, kind), content);
    tar
}

/// Any entry that is root's.
pub fn entry(path: &str, kind: Kind) -> Entry {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    Entry { path: path.as_bytes().to_vec(), meta: Meta { mode, ..Meta::default() }, kind }
}

/// Its bytes.
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut tar = Vec::new();
    wire::header(entry, &mut tar);
    tar
}

/// How much was tried, for who wants to know.
pub fn figure(what: &str, count: usize) {
    eprintln!("{what}: {count}");
    if let Some(path) = std::env::var_os("PREPULL_FIGURES") {
        let mut file = fs_err::OpenOptions::new().append(true).create(true).open(PathBuf::from(path)).unwrap();
        writeln!(file, "{what}: {count}").unwrap();
    }
}
