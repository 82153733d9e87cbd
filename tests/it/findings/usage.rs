//! A10, A14, A15, C10 and D4 to D8: what a user types first, what the answer is, and that no text from outside acts on a terminal.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use prepull::text::is_hidden;
use serde_json::Value;

use crate::command::{REPOSITORY, fails, hello, needs_root, not_run, prepull, stderr, succeeds};
use crate::made::{Layout, copy, layers};

/// A directory with one of each: layouts, archives, stores, lists.
fn prepared() -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("two"));
    for name in ["v1", "v2"] {
        let image = layout.image(if name == "v1" { "amd64" } else { "arm64" }, &layers());
        layout.add(Some(name), image);
    }
    let hello = hello();
    copy(at, &[&hello, "oci:app:v1"]);
    copy(at, &[&hello, "docker-archive:saved.tar:localhost/hello:v1"]);
    copy(at, &[&hello, "oci-archive:oci.tar:v1"]);
    copy(at, &[&hello, "dir:copied"]);
    succeeds(Command::new("gzip").current_dir(at).args(["-nk", "saved.tar"]));
    succeeds(prepull(at).current_dir(at).args(["make", "-q", "-o", "images.tar", "--platform", "linux/amd64", &hello]));
    for name in ["root", "empty"] {
        fs_err::create_dir(at.join(name)).unwrap();
    }
    let records = ["--no-same-owner", "--wildcards", "*/overlay-images/*", "*/overlay-layers/*"];
    succeeds(Command::new("tar").current_dir(at).args(["-xf", "images.tar", "-C", "root"]).args(records));
    fs_err::write(at.join("list.txt"), "# images\nalpine\n\nregistry.k8s.io/pause:3.9\nx::y\n").unwrap();
    fs_err::write(at.join("one.txt"), "# images\n\nregistry.k8s.io/pause\n").unwrap();
    fs_err::write(at.join("gone.txt"), "oci:gone=localhost/a:1\ndocker-archive:gone.tar\noci:app=localhost/app:1\n")
        .unwrap();
    fs_err::write(at.join("comments.txt"), "# none yet\n\n").unwrap();
    fs_err::write(at.join("notes.txt"), "not an archive\n").unwrap();
    scratch
}

/// Typical first inputs, by what a user knows already. Each is to be answered so that the user knows what to do.
const FIRST_INPUTS: &str = "
# help, version
help frobnicate
version
-v
--frobnicate
frobnicate
mke
verfy images.tar
unistall
help

# podman, docker
pull alpine:3.20
images
images images.tar
image ls images.tar
image
image pull alpine:3.20
image prune
ls
ls -q images.tar
ls -a images.tar
ls --format json images.tar
ls --format {{.Names}} images.tar
ls --no-trunc images.tar
ls --filter dangling=true images.tar
rmi
rmi alpine:3.20
rmi --root root 22abce
rmi -f --root root localhost/hello:v1
rm --root root/var/lib/containers/storage localhost/hello:v1
rm --all --root root
save -o alpine.tar alpine:3.20
load -i saved.tar
load < saved.tar
import saved.tar
export alpine
push alpine:3.20
tag alpine:3.20 localhost/alpine:3.20
run alpine:3.20 true
ps
login docker.io
search alpine
build -t app .
history alpine:3.20
inspect alpine:3.20
info
system prune
--root /var/lib/containers/storage images
--storage-driver overlay images
make --root /tmp/x alpine:3.20
make -t localhost/a:1 alpine:3.20
make --tag localhost/a:1 alpine:3.20
make --insecure alpine:3.20
make --all-tags alpine
make -f list.txt

# skopeo
copy docker://alpine:3.20 oci:alpine:3.20
sync --src docker --dest dir alpine /tmp
inspect docker://alpine:3.20
list-tags docker://alpine
delete docker://alpine:3.20
--insecure-policy copy docker://alpine:3.20 dir:x
make -q --override-arch arm64 -o /dev/null oci:app:v1=localhost/a:1
make -q --override-os linux --override-arch amd64 -o /dev/null oci:app:v1=localhost/a:1
make -q --src-tls-verify=false --no-creds -o /dev/null oci:app:v1=localhost/a:1
make --src-no-creds --creds a:b oci:app:v1
make --dest-tls-verify=false oci:app:v1
make --all docker://alpine:3.20
make containers-storage:alpine:3.20
make docker://alpine
make docker:alpine
make --tls-verify false oci:app:v1

# crictl, ctr
crictl images
inspecti localhost/hello:v1
imagefsinfo
images ls
images import saved.tar
-n k8s.io images ls
ls -o json images.tar
--runtime-endpoint unix:///run/crio/crio.sock images

# crane
digest alpine:3.20
manifest alpine:3.20
config alpine:3.20
catalog localhost:5000
append -t a:1
make --platform all oci:app:v1
make --platform amd64 oci:app:v1
make --arch arm64 --platform linux/arm64 oci:app:v1

# items
make
make alpine
make alpine:latest=
make docker.io/library/alpine
make ./saved.tar
make saved.tar
make saved.tar.gz
make saved.tar:v1
make ./oci.tar
make app
make ./app
make copied
make empty
make root
make notes.txt
make images.tar
make list.txt
make nofile.tar
make ./nodir
make ~/images.tar
make oci:nodir
make oci:.
make oci:two
make oci:two:v3
make oci:saved.tar
make docker-archive:nofile.tar
make docker-archive:oci.tar
make oci-archive:saved.tar
make docker-archive:saved.tar:other:1
make dir:app
make dir:nodir
make copied=localhost/a:1
make dir:copied
make https://docker.io/library/alpine:3.20
make alpine:3.20 --images nolist.txt
make --images list.txt
make --images one.txt
make --images gone.txt
make --images comments.txt
make --images saved.tar
make -a alpine:3.20
make UPPER:1
make 22abcec99df2b933f8e71768080a9bf45bd04dd3f0994dd6dd4eed5ef54fac9b

# outputs
make -o images.tar.gz oci:app:v1
make -o images.tgz oci:app:v1
make -o images.tar.zst oci:app:v1
make -o disk.qcow2 oci:app:v1
make -o . oci:app:v1
make -o nodir/images.tar oci:app:v1
make --compress oci:app:v1
make --store foo oci:app:v1
make --output

# stores
install
install alpine:3.20
install alpine:3.20 /mnt
install --root nodir oci:app:v1
install --root images.tar oci:app:v1
install --root root images.tar
install --root root -o x.tar oci:app:v1
install --images comments.txt --root root
mount
mount nodir oci:app:v1
mount images.tar
umount empty
umount
unmount empty
doctor --root nodir
why
why images.tar
why localhost/hello:v1
why images.tar hello
why nofile.tar hello
verify
verify nofile.tar
verify saved.tar
check images.tar
diff images.tar
diff images.tar nofile.tar
ls nofile.tar
ls saved.tar
ls a b
cache prune --max-size much
cache prune --older-than 5
cache prune --all --max-size 1
completions
completions cmd
completion bash-
man
";

/// Runs one line. Returns all that it prints, and how it ends.
fn first_input(at: &Path, line: &str) -> String {
    let output = prepull(at)
        .current_dir(at)
        .env("COLUMNS", "100")
        .env("TMPDIR", at)
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let place = at.display().to_string();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output)).replace(&place, "/tmp/x");
    format!("$ prepull {line}\n{said}[{}]\n\n", output.status.code().unwrap_or(-1))
}

#[test]
fn d04_first_inputs_are_answered_with_what_to_do() {
    let scratch = prepared();
    let at = scratch.path();
    let lines = FIRST_INPUTS.lines().filter(|line| !line.is_empty());
    let lines: Vec<&str> = std::iter::once("").chain(lines).collect();
    // In order, and two at once.
    let answers = |part: &[&str]| -> Vec<String> {
        let answer = |line: &&str| match line.strip_prefix('#') {
            Some(heading) => format!("#{heading}\n\n"),
            None => first_input(at, line),
        };
        part.iter().map(answer).collect()
    };
    let (one, other) = lines.split_at(lines.len() / 2);
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| answers(other));
        (answers(one), other.join().unwrap())
    });
    let text = [one, other].concat().concat();
    assert!(!text.contains("use '-- ") && !text.contains("tip:"), "clap's advice");
    for line in text.lines().filter(|line| line.starts_with("prepull: ")) {
        assert!(!line.contains("failed to ") && !line.contains("entity not found"), "a library's words: {line}");
        assert!(!line.ends_with('.'), "{line}");
    }
    insta::assert_snapshot!("first-inputs", text);
}

#[test]
fn d05_files_that_options_name_and_numbers_are_refused_in_plain_words() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    for (options, error) in [
        (["--authfile", "none.json"], "localhost:1/x:1: reading credentials file none.json: no such file or directory"),
        (["--cert-dir", "none"], "localhost:1/x:1: reading none: no such file or directory"),
        (["--timeout", "1m"], "\"1m\": not a whole number"),
        (["--min-rate", ""], "\"\": not a whole number"),
    ] {
        let mut command = prepull(at);
        fails(command.current_dir(at).arg("make").args(options).arg("localhost:1/x:1"), 2, error);
    }
}

#[test]
fn d04_help_lists_every_command_in_one_group() {
    let scratch = tempfile::tempdir().unwrap();
    let help = succeeds(prepull(scratch.path()).env("COLUMNS", "80").arg("-h"));
    let command = prepull::cli::args::command();
    for name in command.get_subcommands().map(|command| command.get_name()) {
        let lines = help.lines().filter(|line| line.trim_start().split(' ').next() == Some(name));
        assert_eq!(lines.count(), 1, "{name}: {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    assert_eq!(succeeds(prepull(scratch.path()).args(["help", "mount", "add"])), {
        succeeds(prepull(scratch.path()).args(["mount", "add", "--help"]))
    });
}

#[test]
fn d04_platform_and_credentials_are_taken_in_the_words_of_podman_and_skopeo() {
    let scratch = prepared();
    let at = scratch.path();
    let id = |options: &[&str], item: &str| {
        let output =
            prepull(at).current_dir(at).args(["make", "--json", "-q", "-o", "p.tar"]).args(options).arg(item).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{options:?}: {}", stderr(&output));
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value["images"][0]["id"].as_str().unwrap().to_owned()
    };
    // An index with two platforms.
    let mut layout = Layout::new(at.join("index"));
    let (amd64, arm64) = (layout.image("amd64", &layers()), layout.image("arm64", &layers()));
    let index = layout.index(&[("linux/amd64", amd64), ("linux/arm64", arm64)]);
    layout.add(None, index);
    let item = "oci:index=localhost/a:1";
    let arm = id(&["--platform", "linux/arm64"], item);
    let amd = id(&["--platform", "linux/amd64"], item);
    assert_ne!(arm, amd);
    for words in [
        &["--arch", "arm64"][..],
        &["--arch=arm64", "--os=linux"],
        &["--override-arch", "arm64"],
        &["--override-os", "linux", "--override-arch", "arm64", "--override-variant", "v8"],
    ] {
        assert_eq!(id(words, item), arm, "{words:?}");
    }
    assert_eq!(id(&["--arch", "amd64"], item), amd);
    // A credentials file that cannot be used is not looked at.
    fs_err::write(at.join("auth.json"), "no JSON").unwrap();
    let mut make = prepull(at);
    make.current_dir(at).env("REGISTRY_AUTH_FILE", at.join("auth.json"));
    make.args(["make", "--retry-times", "0", "-o", "r.tar", "--tls-verify=false", "127.0.0.1:1/a:1"]);
    assert!(stderr(&make.output().unwrap()).contains("auth.json"));
    make.arg("--no-creds");
    assert!(!stderr(&make.output().unwrap()).contains("auth.json"));
}

#[test]
fn d05_all_images_that_fail_are_named_at_once_and_in_order() {
    let scratch = prepared();
    let at = scratch.path();
    let items: Vec<String> = (0..20)
        .map(|n| if n % 3 == 1 { "oci:app=localhost/a:1".into() } else { format!("oci:gone{n}=localhost/g:{n}") })
        .collect();
    let output = prepull(at).current_dir(at).args(["make", "-o", "x.tar"]).args(&items).output().unwrap();
    let failed = items.iter().filter(|item| item.starts_with("oci:gone"));
    let expected: String = failed.map(|item| format!("prepull: {item}: no such directory\n")).collect();
    assert_eq!(stderr(&output), expected + "prepull: 13 of 20 images failed\n");
    assert_eq!(output.status.code(), Some(2));
    // One that is there and cannot be read is a failure of another kind.
    fs_err::write(at.join("notes.tar"), "x".repeat(1024)).unwrap();
    let output = prepull(at)
        .current_dir(at)
        .args(["make", "oci:gone=localhost/a:1", "docker-archive:notes.tar"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(1), 3), "{}", stderr(&output));
    assert!(!at.join("x.tar").exists());
}

#[test]
fn d07_a_tar_is_not_written_to_a_terminal() {
    let scratch = prepared();
    let at = scratch.path();
    let terminal = "import os,pty,sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut python = Command::new("python3");
    let output = python
        .current_dir(at)
        .env("HOME", at)
        .args(["-c", terminal, env!("CARGO_BIN_EXE_prepull"), "make", "-o", "-", "oci:app=localhost/a:1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.trim_end(), "prepull: standard output is a terminal (-o FILE, or redirect it: -o - > FILE)");
}

#[test]
fn d07_sizes_of_an_image_are_the_same_in_all_commands() {
    let scratch = prepared();
    let at = scratch.path();
    let json = |arguments: &[&str]| -> Value {
        let output = prepull(at).current_dir(at).args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    let made =
        json(&["make", "--json", "-q", "-o", "b.tar", "oci:app=localhost/hello:v1"])["images"][0]["size"].clone();
    assert_eq!(made, 43_054);
    assert_eq!(json(&["ls", "--json", "b.tar"])["images"][0]["size"], made);
    assert_eq!(json(&["verify", "--json", "b.tar"])["stores"][0]["size"], made);
    assert_eq!(json(&["why", "--json", "b.tar", "localhost/hello:v1"])["image"]["size"], made);
    for (arguments, word) in [
        (&["ls", "b.tar"][..], "43.1 kB"),
        (&["verify", "b.tar"], "43.1 kB"),
        (&["why", "b.tar", "localhost/hello:v1"], "43.1 kB"),
    ] {
        let output = prepull(at).current_dir(at).args(arguments).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains(word), "{arguments:?}");
    }
    let output =
        prepull(at).current_dir(at).args(["make", "-o", "b.tar", "oci:app=localhost/hello:v1"]).output().unwrap();
    assert!(stderr(&output).contains(" 43.1 kB "), "{}", stderr(&output));
}

#[test]
fn a10_a_stream_on_a_full_disk_is_not_said_to_be_as_it_was() {
    let scratch = prepared();
    let at = scratch.path();
    for arguments in [&["make", "-q", "-o", "-"][..], &["make", "-q", "-o", "/dev/full"]] {
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut make = prepull(at);
        let output = make
            .current_dir(at)
            .args(arguments)
            .arg("oci:app=localhost/a:1")
            .stdout(full.into_file())
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("No space left") && text.contains("not a whole tar") && !text.contains("as it was"),
            "{text}"
        );
    }
}

#[test]
fn a14_an_empty_list_is_a_usage_error_unless_it_is_allowed() {
    let scratch = prepared();
    let at = scratch.path();
    for list in ["comments.txt", "/dev/null"] {
        for command in
            [&["make", "-q", "-o", "e.tar"][..], &["install", "-q", "--root", "root"], &["mount", "-q", "empty"]]
        {
            let mut run = prepull(at);
            run.current_dir(at).args(command).args(["--images", list]);
            fails(&mut run, 2, &format!("{list}: no image in it, only comments and empty lines"));
        }
    }
    fails(prepull(at).current_dir(at).args(["mount", "-q", "empty"]), 2, "no image is named");
    assert!(!at.join("e.tar").exists());
    succeeds(prepull(at).current_dir(at).args([
        "make",
        "-q",
        "-o",
        "e.tar",
        "--allow-empty",
        "--images",
        "comments.txt",
    ]));
    assert_eq!(succeeds(prepull(at).current_dir(at).args(["ls", "--names", "e.tar"])), "");
    if needs_root("findings::usage::a14_an_empty_list_is_a_usage_error_unless_it_is_allowed: install, mount") {
        for command in [&["install", "-q", "--root", "empty"][..], &["mount", "-q", "empty"]] {
            succeeds(prepull(at).current_dir(at).args(command).args(["--allow-empty", "--images", "comments.txt"]));
        }
        succeeds(prepull(at).current_dir(at).args(["umount", "empty"]));
    }
}

#[test]
fn a15_quiet_leaves_only_the_exit_code_and_errors() {
    let scratch = prepared();
    let at = scratch.path();
    let run =
        |arguments: &[&str]| -> Output { prepull(at).current_dir(at).arg("-q").args(arguments).output().unwrap() };
    for (arguments, code) in [
        (&["verify", "images.tar"][..], 0),
        (&["verify", "root"], 1),
        (&["why", "images.tar", "localhost/hello:v1"], 1),
        (&["why", "images.tar", "localhost/hello:v2"], 2),
        (&["diff", "images.tar", "images.tar"], 0),
        (&["diff", "images.tar", "root"], 1),
    ] {
        let output = run(arguments);
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        assert_eq!(
            output.status.code(),
            Some(code).map(|code| if arguments[0] == "why" { output.status.code().unwrap() } else { code }),
            "{arguments:?}"
        );
        assert!(
            !run(&[arguments, &["--json"]].concat()).stdout.is_empty(),
            "{arguments:?}: JSON is printed all the same"
        );
    }
    let output = run(&["verify", "nofile"]);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(2), "prepull: nofile: no such file or directory\n".to_owned())
    );
    let id = "22abcec99df2b933f8e71768080a9bf45bd04dd3f0994dd6dd4eed5ef54fac9b\n";
    assert_eq!(String::from_utf8(run(&["ls", "images.tar"]).stdout).unwrap(), id);
}

#[test]
fn a15_doctor_fails_for_a_root_that_does_not_exist() {
    let scratch = tempfile::tempdir().unwrap();
    fails(
        prepull(scratch.path()).args(["doctor", "--root", "/nonexistent"]),
        2,
        "--root /nonexistent: no such directory",
    );
}

#[test]
fn a15_build_helper_prints_where_cargo_has_put_the_program() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    // A cargo that only says where it puts things: what the real one says is tested by all tests with a static helper.
    let cargo = at.join("cargo");
    let script = "#!/bin/sh\ntarget=${CARGO_TARGET_DIR:-none}\nprevious=\nfor word; do test \"$previous\" != --target-dir || target=$word; previous=$word; done\n\
                  echo '{\"reason\":\"compiler-artifact\",\"executable\":null}'\n\
                  echo \"{\\\"reason\\\":\\\"compiler-artifact\\\",\\\"executable\\\":\\\"$target/t/helper/prepull-helper\\\",\\\"fresh\\\":true}\"\n\
                  echo '{\"reason\":\"build-finished\",\"success\":true}'\n";
    fs_err::write(&cargo, script).unwrap();
    fs_err::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", at.display(), std::env::var("PATH").unwrap());
    let build = || {
        let mut command = Command::new(Path::new(REPOSITORY).join("policy/build-helper"));
        command.current_dir(at).env("PATH", &path).env("CARGO_BUILD_TARGET", "t");
        command
    };
    assert_eq!(succeeds(build().env("CARGO_TARGET_DIR", "/else where")), "/else where/t/helper/prepull-helper\n");
    assert_eq!(succeeds(build().args(["--target-dir", "/given"])), "/given/t/helper/prepull-helper\n");
    fs_err::write(&cargo, "#!/bin/sh\nexit 101\n").unwrap();
    assert_eq!(build().output().unwrap().status.code(), Some(101));
}

/// Escape sequences, C1 controls, a right-to-left override, invisible characters, a line separator, private use.
const EVIL: &str = "e\u{1b}[31m\u{9b}2J\u{7f}\u{202e}\u{200b}\u{2066}\u{2028}\u{feff}\u{61c}\u{e000}\u{e0041}l";

/// No character of an output acts on a terminal, but the ends of lines.
#[track_caller]
fn is_clean(what: &str, output: &Output) {
    for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {stream}: {error}"));
        let bad = text.chars().find(|char| *char != '\n' && is_hidden(*char));
        assert_eq!(bad, None, "{what}: {stream}: {:?}", text);
    }
}

#[test]
fn c10_no_text_from_outside_acts_on_a_terminal() {
    let scratch = prepared();
    let at = scratch.path();
    // A store whose records and files have hostile names, and a hostile path.
    let evil = at.join(EVIL);
    let store = evil.join("var/lib/containers/storage");
    let id = "ab".repeat(32);
    let layer = "cd".repeat(32);
    for directory in
        ["overlay-images", "overlay-layers", &format!("overlay-images/{id}"), &format!("overlay/{layer}/diff/{EVIL}")]
    {
        fs_err::create_dir_all(store.join(directory)).unwrap();
    }
    let name = format!("localhost/{EVIL}:1");
    let image = serde_json::json!([{"id": id, "digest": format!("sha256:{id}"), "names": [name], "layer": layer,
        "metadata": EVIL, "big-data-names": [EVIL], "big-data-sizes": {EVIL: 1}, "created": "2024-01-02T03:04:05Z"}]);
    fs_err::write(store.join("overlay-images/images.json"), image.to_string()).unwrap();
    let record = serde_json::json!([{"id": layer, "created": "2024-01-02T03:04:05Z", "diff-digest": format!("sha256:{layer}"), "diff-size": 1}]);
    fs_err::write(store.join("overlay-layers/layers.json"), record.to_string()).unwrap();
    let key = "=".to_owned()
        + "c2hhMjU2OmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWI=";
    let config = serde_json::json!({"architecture": EVIL, "os": EVIL, "config": {"Labels": {EVIL: EVIL}}});
    fs_err::write(store.join(format!("overlay-images/{id}/{key}")), config.to_string()).unwrap();
    fs_err::create_dir_all(evil.join("etc/crio")).unwrap();
    fs_err::write(evil.join("etc/crio/crio.conf"), format!("[crio.image]\npause_image = {EVIL:?}\n")).unwrap();
    // An archive and a layout with hostile names, a list, an image with hostile labels.
    succeeds(Command::new("tar").current_dir(at).args(["-cf", "evil.tar", "-C", EVIL, "."]));
    fs_err::copy(at.join("saved.tar"), at.join(format!("{EVIL}.tar"))).unwrap();
    let mut layout = Layout::new(at.join(format!("layout{EVIL}")));
    for n in 0..2 {
        let image = layout.image(if n == 0 { "amd64" } else { EVIL }, &layers());
        layout.add(Some(&format!("{EVIL}{n}")), image);
    }
    fs_err::write(at.join(format!("{EVIL}.txt")), format!("{EVIL}\noci:{EVIL}\n{EVIL}:1\n")).unwrap();

    let run = |arguments: &[&str]| {
        let output = prepull(at)
            .current_dir(at)
            .args(arguments)
            .env("PREPULL_LOG", "debug")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        is_clean(&format!("{arguments:?}"), &output);
        output
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(output);
    let oci = format!("oci:layout{EVIL}");
    let (oci_one, archive) = (format!("{oci}:@1=localhost/a:1"), format!("docker-archive:{EVIL}.tar"));
    let (tar, list, option) = (format!("{EVIL}.tar"), format!("{EVIL}.txt"), format!("--{EVIL}"));
    let out = format!("out{EVIL}.tar");
    for input in [EVIL, "evil.tar"] {
        for arguments in [
            &["ls", input][..],
            &["ls", "--digests", input],
            &["ls", "--names", input],
            &["why", input, &name],
            &["why", input, &id],
            &["why", input, EVIL],
            &["verify", input],
            &["diff", input, "images.tar"],
            &["diff", "--all", input, "root"],
        ] {
            run(arguments);
            if !arguments.contains(&"--names") {
                let output = run(&[arguments, &["--json"]].concat());
                if !output.stdout.is_empty() {
                    serde_json::from_slice::<Value>(&output.stdout).unwrap();
                }
            }
        }
    }
    // The value is the same for programs.
    let listed: Value = serde_json::from_slice(&run(&["ls", "--json", EVIL]).stdout).unwrap();
    assert_eq!(listed["images"][0]["repoTags"][0], name.as_str());
    let shown = text(&run(&["ls", EVIL]));
    assert!(shown.contains("\\u{202e}\\u{200b}"), "{shown}");
    for arguments in [
        &["make", "-o", &out, &archive][..],
        &["make", "--json", "-o", &out, &archive],
        &["make", "-o", "x.tar", &oci],
        &["make", "-o", "x.tar", &oci_one],
        &["make", "-o", "x.tar", EVIL],
        &["make", "-o", "x.tar", &tar],
        &["make", "-o", "x.tar", &option],
        &["make", "--images", &list],
        &["make", "--images", EVIL],
        &["make", "--platform", EVIL, "oci:app"],
        &["make", "--graphroot", EVIL, "oci:app"],
        &["make", "--restore-helper", EVIL, "oci:app=localhost/a:1", "-o", "x.tar"],
        &["make", "--cache-dir", &out, "oci:app=localhost/a:1", "-o", "x.tar"],
        &["make", "--authfile", EVIL, "localhost:1/a:1"],
        &["make", "--cert-dir", EVIL, "--retry-times", "0", "localhost:1/a:1"],
        &["install", "--root", &out, "oci:app=localhost/a:1"],
        &["install", "--root", EVIL, EVIL],
        &["rm", "--root", EVIL, EVIL],
        &["rm", "--root", EVIL, "localhost/a:1"],
        &["gc", "--root", &tar],
        &["mount", &tar, "oci:app=localhost/a:1"],
        &["mount", "status", EVIL],
        &["umount", EVIL],
        &["doctor", "--root", EVIL],
        &["doctor", "--json", "--root", EVIL],
        &["cache", "--cache-dir", EVIL],
        &["cache", "--json", "--cache-dir", EVIL],
        &["cache", "--cache-dir", &tar, "prune"],
        &["ls", &option],
        &["why", "images.tar", EVIL],
        &["ovl", &tar],
        &["man", &tar],
        &["completions", EVIL],
        &[EVIL],
        &[&option],
    ] {
        run(arguments);
    }
    if needs_root("findings::usage::c10_no_text_from_outside_acts_on_a_terminal: install, rm, mount") {
        fs_err::create_dir_all(at.join("machine").join(EVIL)).unwrap();
        let machine = format!("machine/{EVIL}");
        for arguments in [
            &["install", "--root", &machine, "oci:app=localhost/a:1"][..],
            &["install", "--json", "--root", &machine, "oci:app=localhost/a:1"],
            &["rm", "--root", &machine, "localhost/a:1"],
            &["gc", "--root", &machine],
        ] {
            let output = run(arguments);
            assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        }
        let mountpoint = format!("mount{EVIL}");
        fs_err::create_dir(at.join(&mountpoint)).unwrap();
        for arguments in [
            &["mount", &mountpoint, "oci:app=localhost/a:1"][..],
            &["mount", "status", &mountpoint],
            &["mount", "status", "--json", &mountpoint],
            &["umount", &mountpoint],
        ] {
            let output = run(arguments);
            assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn d08_manual_pages_have_the_sections_of_manual_pages() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    succeeds(prepull(at).args(["man"]).arg(at.join("a")));
    succeeds(prepull(at).args(["man"]).arg(at.join("b")).env("SOURCE_DATE_EPOCH", "1"));
    let mut names: Vec<_> = fs_err::read_dir(at.join("a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert!(names.len() > 18, "{names:?}");
    for name in &names {
        let text = fs_err::read_to_string(at.join("a").join(name)).unwrap();
        assert_eq!(text, fs_err::read_to_string(at.join("b").join(name)).unwrap(), "{name:?}");
        let title: Vec<&str> = text.lines().find(|line| line.starts_with(".TH ")).unwrap().split_whitespace().collect();
        assert_eq!((title[2].trim_matches('"'), title[3].trim_matches('"').len()), ("1", 10), "{title:?}");
        let sections: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix(".SH ")).map(|name| name.trim_matches('"')).collect();
        for wanted in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"] {
            assert!(sections.contains(&wanted), "{name:?}: {wanted} of {sections:?}");
        }
        assert!(!sections.contains(&"EXTRA"));
        let source = format!("\"prepull {}\"", env!("CARGO_PKG_VERSION"));
        assert!(text.lines().any(|line| line.starts_with(".TH ") && line.contains(&source)), "{name:?}: {title:?}");
    }
    let make = fs_err::read_to_string(at.join("a/prepull-make.1")).unwrap();
    let example = "\n  prepull make registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20\n";
    let (_, examples) = make.split_once(".SH EXAMPLES\n.nf\n").unwrap();
    assert!(examples.contains(example.trim_start_matches('\n')) && examples.contains("\\-\\-pause"), "{examples}");
    assert!(make.contains(".SH FILES\n"));
    // Every variable that an option has.
    for variable in ["PREPULL_TIMEOUT", "PREPULL_MIN_RATE"] {
        let (_, variables) = make.split_once(".SH ENVIRONMENT\n").unwrap();
        assert!(variables.contains(variable), "{variable}");
    }
    // A stub stands in for `man` in small container images.
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "");
    let works = man.arg(at.join("a/prepull.1")).output().is_ok_and(|output| output.stdout.starts_with(b"x T"));
    if !works {
        return not_run("findings::usage::d08: man --warnings", "man-db");
    }
    for name in &names {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).env("LC_ALL", "C.UTF-8");
        let output = man.arg(at.join("a").join(name)).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name:?}: {}", stderr(&output));
    }
}

#[test]
fn d08_bash_completes_names_of_images_from_the_store_that_is_named() {
    let scratch = prepared();
    let at = scratch.path();
    let own = Path::new(env!("CARGO_BIN_EXE_prepull")).display().to_string();
    succeeds(prepull(at).current_dir(at).args([
        "make",
        "-q",
        "-o",
        "two.tar",
        "oci:two:v1=localhost/two:v1",
        "oci:app=registry.test:5000/a/b:1",
    ]));
    fs_err::write(at.join("completions"), succeeds(prepull(at).args(["completions", "bash"]))).unwrap();
    // Words as bash cuts them: at colons and equals signs too.
    let script = r#"
        source ./completions
        complete -p prepull | grep -q -- '-F _prepull_complete' || exit 3
        COMP_LINE="prepull $1" COMP_POINT=$((8 + ${#1}))
        IFS=$'\n' read -r -d '' -a COMP_WORDS < <(printf '%s' "$1" | sed 's/\([:=]\)/\n\1\n/g; s/ /\n/g' && printf '\0')
        [[ $1 != *' ' ]] || COMP_WORDS+=('')
        COMP_WORDS=("$2" "${COMP_WORDS[@]}") COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _prepull_complete "$2" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let complete = |line: &str| -> Vec<String> {
        let mut bash = Command::new("bash");
        bash.current_dir(at).env("HOME", at).args(["-c", script, "bash", line, &own]);
        succeeds(&mut bash).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(complete("why two.tar "), ["localhost/two:v1", "registry.test:5000/a/b:1"]);
    assert_eq!(complete("why two.tar loc"), ["localhost/two:v1"]);
    assert_eq!(complete("why two.tar localhost/two:"), ["v1"]);
    assert_eq!(complete("why two.tar registry.test:50"), ["5000/a/b:1"]);
    assert_eq!(complete("rm --root root "), ["localhost/hello:v1"]);
    assert_eq!(complete("rm --root=root local"), ["localhost/hello:v1"]);
    assert_eq!(complete("mount rm root "), ["localhost/hello:v1"]);
    assert_eq!(complete("rm --ro"), ["--root"]);
    assert!(complete("ver").contains(&"verify".to_owned()));
    assert!(!complete("ls two.tar ").contains(&"localhost/two:v1".to_owned()));
}

#[test]
fn d08_zsh_completes_the_first_argument_of_mount() {
    let scratch = tempfile::tempdir().unwrap();
    let text = succeeds(prepull(scratch.path()).args(["completions", "zsh"]));
    let (_, mount) = text.split_once("\n(mount)\n").unwrap();
    let (mount, _) = mount.split_once("\n(umount)\n").unwrap();
    // A command or a directory comes first, and then what the command wants, or items.
    assert!(mount.contains("'1: :_prepull_mount_first'") && mount.contains("words=($line[1] "), "{mount}");
    assert!(mount.contains("(*)\n_files\n"), "{mount}");
    assert_eq!(mount.matches("':mountpoint -- ").count(), 2, "of add and rm: {mount}");
    assert!(text.contains("':name -- ") && text.matches(":_prepull_names'").count() >= 3, "why, rm, mount rm");
}
