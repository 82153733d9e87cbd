//! Streams and processes that the helper must refuse: nothing is published, nothing outside is touched, and the next request works.

use std::process::Command;

use prepull::entry::{Device, Kind};
use prepull::wire;

use crate::command::needs_root;
use crate::privilege::{Answer, Jail, entry, figure, file, header};
use crate::stores::GRAPHROOT;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A path in layer A.
fn diff(path: &str) -> String {
    format!("{GRAPHROOT}/overlay/{A}/diff{path}")
}

fn digest() -> String {
    format!("sha256:{B}")
}

fn layer_record(id: &str, parent: &str, link: &str) -> String {
    let parent = if parent.is_empty() { String::new() } else { format!("parent {parent}\n") };
    let digest = digest();
    format!(
        "id {id}\nlink {link}\n{parent}created 2024-01-02T03:04:05Z\ncompressed-diff-digest {digest}\ncompressed-size 1\n\
         diff-digest {digest}\ndiff-size 1\ncompression 0\n"
    )
}

fn image_record(id: &str, layer: &str, name: &str) -> String {
    let digest = digest();
    format!(
        "id {id}\ndigest {digest}\nlayer {layer}\ncreated 2024-01-02T03:04:05Z\nname {name}\n\
         data sha256:{id} 2 {digest}\ndata manifest 2 {digest}\n"
    )
}

const LINK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Layer A with `inside`.
fn layer(inside: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut entries = vec![header(&entry(&diff(""), Kind::Directory))];
    entries.extend_from_slice(inside);
    entries.push(header(&entry(&diff(""), Kind::Directory)));
    entries.push(file(&format!("{GRAPHROOT}/overlay-layers/{A}.tar-split.gz"), b"x"));
    entries.push(file("prepull-layer", layer_record(A, "", LINK).as_bytes()));
    entries
}

/// The image B on layer A.
fn image() -> Vec<Vec<u8>> {
    let data = |key: &str| file(&format!("{GRAPHROOT}/overlay-images/{B}/{key}"), b"{}");
    let record = image_record(B, A, "localhost/b:1");
    vec![data(&format!("sha256:{B}")), data("manifest"), file("prepull-image", record.as_bytes())]
}

fn at(path: &str, kind: Kind) -> Vec<u8> {
    header(&entry(&diff(path), kind))
}

fn link(path: &str, target: &str) -> Vec<u8> {
    at(path, Kind::Symlink(target.as_bytes().to_vec()))
}

fn hard(path: &str, target: &str) -> Vec<u8> {
    at(path, Kind::Hardlink(target.as_bytes().to_vec()))
}

fn with(path: &str, change: impl Fn(&mut prepull::entry::Entry)) -> Vec<u8> {
    let mut changed = entry(&diff(path), Kind::Regular { size: 0 });
    change(&mut changed);
    header(&changed)
}

fn xattr(name: &str, value: &[u8]) -> Vec<u8> {
    with("/f", |entry| entry.meta.xattrs = vec![(name.as_bytes().to_vec(), value.to_vec())])
}

/// What a layer may not have in it, with a part of the answer.
fn inside() -> Vec<(&'static str, Vec<Vec<u8>>, &'static str)> {
    let d = || at("/d", Kind::Directory);
    let outside = [GRAPHROOT, "/overlay/", B, "/diff/f"].concat();
    let char = |major, minor| at("/c", Kind::CharDevice(Device { major, minor }));
    vec![
        ("a path with ..", vec![file(&diff("/../../x"), b"")], "its path"),
        ("a path with .", vec![file(&diff("/./x"), b"")], "its path"),
        ("an empty component", vec![file(&diff("//x"), b"")], "its path"),
        ("an absolute path", vec![file("/etc/x", b"")], "its path"),
        ("a long name", vec![file(&diff(&format!("/{}", "n".repeat(256))), b"")], "its path"),
        ("a long path", vec![file(&diff(&"/n".repeat(2600)), b"")], "its path"),
        ("a NUL in a path", vec![file(&diff("/a\0b"), b"")], "canonical"),
        ("a path outside the store", vec![file("etc/x", b"")], "not in the store"),
        ("a path beside the layer", vec![file(&format!("{GRAPHROOT}/overlay/{A}/link"), b"")], "no file of a layer"),
        ("a file in overlay", vec![file(&format!("{GRAPHROOT}/overlay/x"), b"")], "no file of a layer"),
        ("another layer", vec![file(&outside, b"")], "not complete yet"),
        (
            "records of the store",
            vec![file(&format!("{GRAPHROOT}/overlay-layers/layers.json"), b"[]")],
            "does not belong",
        ),
        ("no parent", vec![file(&diff("/d/x"), b"")], "No such file"),
        ("a symlink as parent", vec![d(), link("/s", "d"), file(&diff("/s/x"), b"")], "Not a directory"),
        ("an absolute symlink as parent", vec![link("/s", "/"), file(&diff("/s/x"), b"")], "Not a directory"),
        (
            "a symlink out as parent",
            vec![link("/s", "../../../../../../../../tmp"), file(&diff("/s/x"), b"")],
            "Not a directory",
        ),
        ("a directory behind a symlink", vec![d(), link("/s", "d"), at("/s/e", Kind::Directory)], "Not a directory"),
        ("a symlink made a directory", vec![link("/s", "/etc"), at("/s", Kind::Directory)], "Not a directory"),
        ("a symlink overwritten", vec![link("/s", "/etc/passwd"), file(&diff("/s"), b"x")], "File exists"),
        (
            "a symlink further up",
            vec![d(), at("/d/e", Kind::Directory), link("/s", "d"), file(&diff("/s/e/x"), b"")],
            "Too many levels of symbolic links",
        ),
        ("a file twice", vec![file(&diff("/f"), b""), file(&diff("/f"), b"")], "File exists"),
        ("a directory made a file", vec![d(), file(&diff("/d"), b"")], "File exists"),
        ("a file made a directory", vec![file(&diff("/f"), b""), at("/f", Kind::Directory)], "Not a directory"),
        ("a file below a file", vec![file(&diff("/f"), b""), file(&diff("/f/x"), b"")], "Not a directory"),
        ("the root a file", vec![with("", |_| ())], "the root of a tree is a directory"),
        ("a hard link out", vec![hard("/h", "etc/passwd")], "outside its tree"),
        ("a hard link up", vec![hard("/h", &diff("/../link"))], "its path"),
        ("a hard link to another layer", vec![hard("/h", &outside)], "outside its tree"),
        ("a hard link to nothing", vec![hard("/h", &diff("/f"))], "No such file"),
        ("a hard link to itself", vec![hard("/h", &diff("/h"))], "No such file"),
        ("a hard link to a directory", vec![d(), hard("/h", &diff("/d"))], "a directory"),
        (
            "a hard link through a symlink",
            vec![d(), file(&diff("/d/f"), b""), link("/s", "d"), hard("/h", &diff("/s/f"))],
            "Not a directory",
        ),
        (
            "a whiteout through a symlink",
            vec![link("/s", "/"), at("/s/w", Kind::CharDevice(Device::WHITEOUT))],
            "Not a directory",
        ),
        ("an owner that is nobody's number", vec![with("/f", |entry| entry.meta.uid = u32::MAX)], "nobody's number"),
        ("such a group", vec![with("/f", |entry| entry.meta.gid = u32::MAX)], "nobody's number"),
        ("/dev/null", vec![char(1, 3)], "no devices"),
        ("a disk", vec![at("/b", Kind::BlockDevice(Device { major: 8, minor: 0 }))], "no devices"),
        ("a block device 0:0", vec![at("/b", Kind::BlockDevice(Device::WHITEOUT))], "no devices"),
        ("a device 0:1", vec![char(0, 1)], "no devices"),
        ("overlay's redirect", vec![xattr("trusted.overlay.redirect", b"/x")], "steer the overlay"),
        ("overlay's opaque on a file", vec![xattr("trusted.overlay.opaque", b"y")], "steer the overlay"),
        ("overlay's metacopy", vec![xattr("trusted.overlay.metacopy", b"")], "steer the overlay"),
        ("overlay's for users", vec![xattr("user.overlay.redirect", b"/x")], "steer the overlay"),
        ("a capability that is none", vec![xattr("security.capability", b"garbage")], "Invalid argument"),
        ("the end before the record", vec![wire::END.to_vec()], "not complete"),
        ("a record of the request", vec![file("prepull-request", b"prepull 1\n")], "not in the store"),
    ]
}

/// Records that do not fit.
fn records() -> Vec<(String, Vec<Vec<u8>>)> {
    let mut all = Vec::new();
    let good = layer_record(A, "", LINK);
    for (from, to) in [
        (A, B),
        (A, "short"),
        (A, &A.to_uppercase()[..]),
        ("id ", "ID "),
        (LINK, "../../../../../../x"),
        (LINK, "AAAAAAAAAAAAAAAAAAAAAAAAA/"),
        ("link", "parent aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nlink"),
        ("2024-01-02T03:04:05Z", "now"),
        ("2024-01-02T03:04:05Z", "2024-02-30T03:04:05Z"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z\",\"x\":\""),
        ("compression 0", "compression 9"),
        ("compressed-size 1", "compressed-size -1"),
        ("diff-size 1", "diff-size 99999999999999999999"),
        ("diff-digest sha256", "diff-digest md5"),
        ("compression 0\n", "compression 0\nuidset 0 x\n"),
        ("compression 0\n", "compression 0"),
        ("compression 0\n", "compression 0\nmore 1\n"),
        ("compression 0\n", "compression 0\u{e9}\n"),
    ] {
        let mut entries = layer(&[]);
        let record = good.replacen(from, to, 1);
        assert_ne!(record, good);
        *entries.last_mut().unwrap() = file("prepull-layer", record.as_bytes());
        all.push((format!("layer: {from:.20} is {to:.20}"), [entries, image()].concat()));
    }
    let good = image_record(B, A, "localhost/b:1");
    for (from, to) in [
        (B, A),
        ("localhost/b:1", "b:1"),
        ("localhost/b:1", "localhost/b"),
        ("localhost/b:1", "localhost/B:1"),
        ("localhost/b:1", "localhost/../b:1"),
        ("localhost/b:1", "localhost/b:1\",\"id\":\"x"),
        ("localhost/b:1", "localhost/b@sha256:1"),
        ("2024-01-02T03:04:05Z", "2024-01-02 03:04:05"),
        ("data manifest 2", "data manifest 3"),
        ("data manifest ", "data ../manifest "),
        ("data manifest ", "data =bWFuaWZlc3Q= "),
        ("name", "names"),
    ] {
        let record = good.replacen(from, to, 1);
        assert_ne!(record, good);
        let mut entries = [layer(&[]), image()].concat();
        *entries.last_mut().unwrap() = file("prepull-image", record.as_bytes());
        all.push((format!("image: {from:.20} is {to:.20}"), entries));
    }
    let without = |at: usize| {
        let mut entries = [layer(&[]), image()].concat();
        entries.remove(at);
        entries
    };
    let length = without(0).len() + 1;
    all.push(("no tar-split".into(), without(2)));
    all.push(("no record of the layer".into(), without(3)));
    all.push(("no config".into(), without(4)));
    all.push(("no manifest".into(), without(5)));
    all.push(("no record of the image".into(), without(length - 1)));
    all.push(("an image without its layer".into(), image()));
    let mut orphan = layer(&[]);
    *orphan.last_mut().unwrap() = file("prepull-layer", layer_record(A, B, LINK).as_bytes());
    all.push(("a layer without its parent".into(), orphan));
    all.push(("a layer twice".into(), [layer(&[]), layer(&[])].concat()));
    all
}

/// Nothing may have changed but an empty store's directories; and the next request must work.
#[track_caller]
fn refused(jail: &Jail, before: &str, what: &str, part: &str, answer: &Answer) {
    let json =
        answer.json.as_ref().unwrap_or_else(|| panic!("{what}: no answer: {:?} {}", answer.status, answer.stderr));
    assert!(answer.status == Some(1) && answer.error().contains(part), "{what}: {part:?} is not in {json}");
    assert_eq!(jail.tree(), before, "{what}");
}

fn prepared(more: &str) -> (Jail, String) {
    let jail = Jail::new(more);
    // An image that must stay, and is what it was.
    let script = format!(
        r#""$at/bin/prepull" install --quiet --no-cache --root "$at/vm" {}=localhost/old:1"#,
        crate::command::hello()
    );
    jail.ok(&script);
    let before = jail.tree();
    (jail, before)
}

#[test]
fn streams_that_lead_elsewhere_are_refused() {
    if !needs_root("privilege::attacks::streams_that_lead_elsewhere_are_refused") {
        return;
    }
    let (jail, before) = prepared("max_bytes = 100000\nmax_inodes = 50");
    let canary = || {
        let script = "ls -A /etc; sha256sum /etc/passwd /etc/shadow /etc/group";
        Command::new("sh").args(["-c", script]).output().unwrap().stdout
    };
    let outside = canary();
    let mut tried = 0;
    for (what, entries, part) in inside() {
        let answer = jail.send(&jail.stream("install", &[layer(&entries), image()].concat()));
        refused(&jail, &before, what, part, &answer);
        tried += 1;
    }
    for (what, entries) in records() {
        let answer = jail.send(&jail.stream("install", &entries));
        refused(&jail, &before, &what, "", &answer);
        assert!(!answer.error().is_empty(), "{what}");
        tried += 1;
    }
    let big = at("/f", Kind::Regular { size: 100_001 });
    let answer = jail.send(&jail.stream("install", &layer(&[big, vec![0; 100_352]])));
    refused(&jail, &before, "too much", "max_bytes", &answer);
    let many: Vec<Vec<u8>> = (0..60).map(|number| file(&diff(&format!("/{number}")), b"")).collect();
    refused(&jail, &before, "too many", "max_inodes", &jail.send(&jail.stream("install", &layer(&many))));
    let good = [layer(&[file(&diff("/f"), b"content")]), image()].concat();
    for (what, replace, to) in [
        ("another version", "prepull 1", "prepull 2"),
        ("another store", GRAPHROOT, "srv"),
        ("another directory", "root ", "root 1"),
        ("no such request", "request install", "request everything"),
        ("a tree", "request install", "request unpack"),
        ("more lines", "request install", "request install\nrequest install"),
        ("no line", "prepull 1\n", ""),
    ] {
        let stream = [jail.request("install", replace, to), good.concat(), wire::END.to_vec()].concat();
        refused(&jail, &before, what, "", &jail.send(&stream));
        tried += 1;
    }
    refused(&jail, &before, "nothing", "ends before its end", &jail.send(b""));
    refused(&jail, &before, "garbage", "canonical", &jail.send(&[0x5a; 5000]));
    refused(&jail, &before, "no request", "does not begin", &jail.send(&[good.concat(), wire::END.to_vec()].concat()));
    refused(&jail, &before, "a compressed tar", "", &jail.send(&crate::made::gzip(&good.concat())));
    tried += 6;

    // A good stream, cut off at every block, and with a changed byte in every header.
    let stream = jail.stream("install", &good);
    for cut in (512..stream.len()).step_by(512) {
        let answer = jail.send(&stream[..cut]);
        // What is after the end is nobody's business, and the second of the two zero blocks is.
        refused(&jail, &before, &format!("cut off at {cut}"), "", &answer);
        assert!(!answer.error().is_empty());
        tried += 1;
    }
    for number in 0..200 {
        let mut changed = stream.clone();
        // Spread over all bytes of headers and contents.
        let place = number * 9973 % stream.len();
        changed[place] ^= 1 << (number % 8);
        let answer = jail.send(&changed);
        assert!(answer.json.is_some(), "{place}: {}", answer.stderr);
        if !answer.error().is_empty() {
            assert_eq!(jail.tree(), before, "a changed byte at {place}");
        } else {
            // Content, or a record that is as good: the old image is there, and the new one goes again.
            jail.ok(r#""$at/bin/prepull" rm --quiet --root "$at/vm" bbbbbbbbbbbb && "$at/bin/prepull" gc --quiet --root "$at/vm""#);
        }
        tried += 1;
    }
    assert_eq!(canary(), outside);
    assert_eq!(jail.send(&stream).error(), "", "the good one");
    jail.ok(r#""$at/bin/prepull" ls "$at/vm" | grep -q '^localhost/b ' && "$at/bin/prepull" ls "$at/vm" | grep -q '^localhost/old '"#);
    figure("hostile streams to the helper", tried);
}

#[test]
fn what_the_policy_does_not_allow_is_refused() {
    if !needs_root("privilege::attacks::what_the_policy_does_not_allow_is_refused") {
        return;
    }
    let (jail, before) = prepared("suid = false\nfilecaps = false");
    let send = |entry: Vec<u8>| jail.send(&jail.stream("install", &[layer(&[entry]), image()].concat()));
    refused(&jail, &before, "setuid", "setuid", &send(with("/f", |entry| entry.meta.mode = 0o4755)));
    refused(&jail, &before, "setgid", "setuid", &send(with("/f", |entry| entry.meta.mode = 0o2755)));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    refused(&jail, &before, "a capability", "file capabilities", &send(xattr("security.capability", &capability)));
    assert_eq!(send(with("/f", |entry| entry.meta.mode = 0o1755)).error(), "");
}

#[test]
fn who_is_slow_or_never_ends_is_cut_off() {
    if !needs_root("privilege::attacks::who_is_slow_or_never_ends_is_cut_off") {
        return;
    }
    let (jail, before) = prepared("max_seconds = 2\nmax_bytes = 1000000");
    let sends = |what: &str, part: &str, source: &str, stream: &[u8]| {
        fs_err::write(jail.at("stream"), stream).unwrap();
        let script = format!(r#"cd "$at/vm" && ({source}) | as sudo -n "$at/bin/prepull-helper" stdio"#);
        let begun = std::time::Instant::now();
        refused(&jail, &before, what, part, &jail.send_by(&script, b""));
        assert!(begun.elapsed().as_secs() < 30, "{what}");
    };
    let good = jail.stream("install", &layer(&[]));
    sends("silence", "too long", "sleep 20 & sleep 4", b"");
    sends(
        "a byte now and then",
        "too long",
        r#"python3 -c 'import sys,time
for byte in open(sys.argv[1],"rb").read():
    sys.stdout.buffer.write(bytes([byte])); sys.stdout.flush(); time.sleep(0.01)' "$at/stream""#,
        &good,
    );
    let endless =
        [jail.request("install", "", ""), at("", Kind::Directory), at("/f", Kind::Regular { size: 1 << 40 })].concat();
    sends("an endless file", "max_bytes", r#"cat "$at/stream" /dev/zero"#, &endless);
    sends("endless zeros", "does not begin", "cat /dev/zero", b"");
}

#[test]
fn a_directory_that_becomes_a_link_is_never_followed() {
    if !needs_root("privilege::attacks::a_directory_that_becomes_a_link_is_never_followed") {
        return;
    }
    let jail = Jail::new("");
    fs_err::create_dir(jail.at("outside")).unwrap();
    // In a directory of the user's own, who renames what root has allowed.
    let policy =
        format!("[[allow]]\nuser = \"tester\"\nroot = \"{}\"\nkind = \"storage\"\n", jail.at("home/vm").display());
    let jail = jail.with_policy(&policy);
    let said = jail.ok(&format!(
        r#"cp -r {repository}/tests/images "$at/home/"; mkdir "$at/home/vm"; ln -s "$at/outside" "$at/home/link"; chown -R -h {user} "$at/home"
        cat >"$at/swap.py" <<'END'
import ctypes, os, sys, time
open(os.environ["HOME"] + "/pid", "w").write(str(os.getpid()))
libc = ctypes.CDLL(None)
a, b = (path.encode() for path in sys.argv[1:])
end = time.time() + 100
while time.time() < end:
    libc.renameat2(-100, a, -100, b, 2)
END
        as python3 "$at/swap.py" "$at/home/vm" "$at/home/link" & while ! test -s "$at/home/pid"; do sleep 0.05; done
        done=0 refused=0
        for number in $(seq 40); do
            if (cd / && as "$at/bin/prepull" install --quiet --root "$at/home/vm" --helper "$at/bin/prepull-helper" --via sudo \
                "oci:$at/home/images/hello:v1=localhost/n$number:1" 2>>"$at/said"); then done=$((done + 1)); else refused=$((refused + 1)); fi
        done
        kill "$(cat "$at/home/pid")"; wait
        find "$at/outside" -mindepth 1 | grep . && exit 1
        echo "$done $refused""#,
        repository = crate::command::REPOSITORY,
        user = super::USER,
    ));
    let (done, refused) = said.trim().split_once(' ').unwrap();
    let (done, refused): (usize, usize) = (done.parse().unwrap(), refused.parse().unwrap());
    assert_eq!(done + refused, 40);
    assert!(refused > 0, "the race was never lost: {done} of 40");
    figure("installs while the directory was swapped for a link", 40);
}

#[test]
fn how_it_is_started_makes_no_difference() {
    if !needs_root("privilege::attacks::how_it_is_started_makes_no_difference") {
        return;
    }
    let jail = Jail::new("");
    let query = jail.stream("query", &[]);
    let run = |how: &str| jail.send_by(&format!(r#"cd "$at/vm" && {how}"#), &query);
    let helper = r#""$at/bin/prepull-helper""#;
    let mut tried = 0;
    let mut same = |how: &str| {
        let answer = run(how);
        assert_eq!(answer.error(), "", "{how}: {:?} {}", answer.status, answer.stderr);
        assert!(answer.json.is_some(), "{how}: {}", answer.stderr);
        tried += 1;
    };
    let sudo = format!("as sudo -n {helper} stdio");
    same(&sudo);
    // As root with the caller's number, as sudo starts it; then the environment is nobody's but ours.
    let huge = r#"X=$(head -c 100000 /dev/zero | tr '\0' x)"#;
    for environment in [
        "LD_PRELOAD=/nonexistent.so",
        "GLIBC_TUNABLES=glibc.malloc.check=3",
        "RUST_BACKTRACE=full",
        huge,
        "MALLOC_CHECK_=3",
    ] {
        same(&format!("env SUDO_UID={} {environment} {helper} stdio", super::USER));
    }
    same(&format!("(ulimit -c 0; {sudo})"));
    same(&format!("(ulimit -t 10; {sudo})"));
    same(&format!("(ulimit -f 0; {sudo})"));
    same(&format!("{sudo} 2>&-"));
    same(&format!("{sudo} 7</etc/shadow 8>>/etc/passwd"));
    same(&format!("(trap '' PIPE XFSZ TERM INT; {sudo})"));
    for bad in ["", "x", "-1", "4294967296", "0x0"] {
        let answer = run(&format!("env SUDO_UID={bad} {helper} stdio"));
        assert!(answer.error().contains("SUDO_UID"), "{bad:?}: {}", answer.error());
        tried += 1;
    }
    // No other words, and none at all.
    for words in ["", "stdio stdio", "query", "--help", "stdio --root=/etc", "''", "restore x"] {
        let answer = run(&format!("env SUDO_UID={} {helper} {words}", super::USER));
        assert!(answer.status == Some(2) && answer.stderr.contains("usage"), "{words}: {}", answer.stderr);
        tried += 1;
    }
    // The kernel makes one empty word of none.
    let answer = run(r#"exec -a '' "$at/bin/prepull-helper""#);
    assert_eq!(answer.status, Some(2), "no words at all");
    // sudoers lets nothing else through.
    let answer = run(&format!("as sudo -n {helper} restore"));
    assert!(answer.status == Some(1) && answer.json.is_none());
    assert_eq!(run(&format!("{sudo} <&-")).status, Some(1), "no input");
    assert!(run(&format!("{sudo} >&-")).json.is_none(), "no output");
    // A daemon of root's at the other end of a socket that a user hands to sudo: the user stays who it is.
    let nobody = jail.with_policy("[[allow]]\nuser = \"root\"\nroot = \"/\"\nkind = \"storage\"\n");
    let script = r#"python3 -c 'import socket,sys,time
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen(); time.sleep(20)' "$at/sock" & sleep 1; chmod 777 "$at/sock"
        cd / && as python3 -c 'import socket,subprocess,sys
peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1])
sys.exit(subprocess.run(["sudo", "-n", sys.argv[2], "stdio"], stdin=peer.fileno()).returncode)' "$at/sock" "$at/bin/prepull-helper"; status=$?; kill %1; exit $status"#;
    let answer = nobody.send_by(script, b"");
    assert!(answer.error().contains("allows to the caller"), "{:?} {}", answer.json, answer.stderr);
    figure("ways to start the helper wrongly", tried + 6);
}
