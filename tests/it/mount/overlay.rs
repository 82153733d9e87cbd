//! Below a kernel overlay, as podman and CRI-O use it: what works and what does not is as with an unpacked store.

use std::path::Path;

use super::{World, full, noise, ok};
use crate::command::{needs_root, not_run};
use crate::raw::{archive, char, dir, fifo, file, link, mark, sym};
use crate::stores::{chain, in_own_mounts};

/// What is done, with `$1` as the store's directory `overlay`, `$2` as the lower layers, `$3` as a directory for this, `$4` with or
/// without an upper layer. It says how each attempt ended.
const SCRIPT: &str = r#"
overlay=$1 lower=$2 at=$3 upper=$4
mkdir -p "$at/m" "$at/up" "$at/work"
echo secret >"$at/secret"; chmod 600 "$at/secret"
cd "$overlay" || exit 99
test $upper = none || lower="$lower,upperdir=$at/up,workdir=$at/work"
mount -i -t overlay overlay -o "lowerdir=$lower" "$at/m" || exit 99
cd "$at/m" || exit 99
# In the same words, wherever it lies.
t() { name=$1; shift; out=$("$@" 2>&1); code=$?; echo "$name: $code: $out" | sed "s:$at:AT:g"; }
as() { setpriv --reuid=1000 --regid=1000 --clear-groups --bounding-set +all "$@"; }
p() { python3 -c "import os, sys, mmap, ctypes
try:
    print(eval(sys.argv[1]))
except OSError as e:
    print(e.strerror)" "$1"; }
tree() {
    find . -printf '%p %y %m %U:%G %T@ %n %l\n' | sort
    find . ! -type d -printf '%p %s\n' | sort
    find . -type f -exec sha256sum {} + | sort -k 2
    # Where a file has come from is a matter of file handles.
    find . -print0 | sort -z | xargs -0 getfattr -h -d -m - 2>/dev/null | grep -v 'trusted.overlay.\(origin\|impure\|uuid\)'
}
# What a change made now has for a time is no matter.
tree_now() { tree | sed -E 's/ 1[7-9][0-9]{8}\.[0-9]{10} / NOW /'; }
tree_now

# What runs as whom.
t setuid as ./bin/suid -u
t setgid as ./bin/sgid -g
t setuid-of-user ./bin/suid-user -u
t no-setuid as ./bin/plain -u
t setuid-by-link as ./bin/suid-link -u
t capability as ./bin/cat-cap "$at/secret"
t no-capability as ./bin/cat-plain "$at/secret"
t not-executable as ./etc/first
t script as ./bin/script
t no-access as cat ./root/secret
t access-by-acl as cat ./etc/for-1000
t no-access-by-acl setpriv --reuid=1001 --regid=1001 --clear-groups cat ./etc/for-1000
t whiteout cat ./etc/gone
t opaque ls -a opaque
t opaque-below ls -a opaque/sub
t null sh -c 'echo >./dev/null && cat ./dev/null'
t zero sh -c 'head -c 3 ./dev/zero | od -An -c'
t device-of-no-driver cat ./dev/nothing
t fifo p 'os.open("pipe", os.O_RDONLY | os.O_NONBLOCK) > 0'
t mmap p 'mmap.mmap(os.open("data", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_READ)[777777:777787]'
t mmap-private p 'mmap.mmap(os.open("data", os.O_RDONLY), 0, mmap.MAP_PRIVATE)[-10:]'
t direct p 'os.pread(os.open("data", os.O_RDONLY), 20, 999_990)'
t sendfile sh -c 'cp data "$0/copy" && cmp data "$0/copy" && rm "$0/copy"' "$at"
t hole p 'os.lseek(os.open("data", os.O_RDONLY), 0, os.SEEK_HOLE)'
t nlink stat -c %h etc/first etc/second etc/third
t same-inode test etc/first -ef etc/second
t other-inode test etc/first -ef etc/third

# What changes it.
t append sh -c 'echo more >>etc/first'
t linked-after-append sh -c 'cat etc/first etc/second | head -c 100; stat -c %h etc/first etc/second'
t overwrite p 'os.pwrite(os.open("data", os.O_RDWR), b"xyz", 777_777)'
t overwritten p 'os.pread(os.open("data", os.O_RDONLY), 12, 777_770)'
t truncate truncate -s 70000 large
t chmod chmod 4711 bin/plain
t chmod-ran as ./bin/plain -u
t chown chown 7:8 bin/cat-cap
t chown-takes-capability getfattr -d -m security.capability bin/cat-cap
t setfattr setfattr -n user.new -v 1 etc/third
t setfattr-trusted setfattr -n trusted.new -v 1 etc/third
t touch touch -d @5 etc/third
t times stat -c %Y etc/third
t rename p 'os.rename("etc/third", "etc/fourth")'
t rename-directory p 'os.rename("tree", "other")'
t rename-pure-directory p 'os.rename("top-only", "top-renamed")'
t mv mv tree tree-moved
t mv-there ls -R tree-moved
t over-whiteout sh -c 'echo again >etc/gone && cat etc/gone'
t mkdir-over-file p 'os.mkdir("etc/fourth")'
t rmdir p 'os.rmdir("opaque")'
t rm-r rm -r opaque
t mkdir-again sh -c 'mkdir opaque && ls -a opaque'
t unlink rm etc/second
t linked-after-unlink stat -c %h etc/first
t link ln large large-too
t link-nlink stat -c %h large
t symlink sh -c 'rm sym && ln -s /elsewhere sym && readlink sym'
t mknod sh -c 'mknod dev/new c 1 3 && echo >dev/new'
t exec-while-changed sh -c './bin/sleeper 1 & sleep 0.2; echo x >>bin/sleeper; wait $!'
t busy sh -c 'mkdir -p "$0/x"; mount --bind large "$0/secret" && cat "$0/secret" | wc -c; umount "$0/secret"' "$at"
tree_now
cd "$at/up"
tree_now
"#;

/// cap_dac_read_search+ep.
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// `u::rw-,u:1000:r--,g::---,m::r--,o::---`
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\0\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// Three layers with something of everything.
fn layers() -> Vec<Vec<u8>> {
    let program = |name: &str| fs_err::read(format!("/usr/bin/{name}")).unwrap();
    let (id, cat) = (program("id"), program("cat"));
    let bottom = archive(&[
        dir("bin/"),
        file("bin/suid").mode(0o4755).data(&id),
        link("bin/suid-link", "bin/suid").mode(0o4755),
        file("bin/sgid").mode(0o2755).owner(0, 43).data(&id),
        file("bin/suid-user").mode(0o4755).owner(1234, 1234).data(&id),
        file("bin/plain").mode(0o755).data(&id),
        file("bin/cat-cap").mode(0o755).data(&cat).xattr("security.capability", CAPABILITY),
        file("bin/cat-plain").mode(0o755).data(&cat),
        file("bin/sleeper").mode(0o755).data(program("sleep")),
        file("bin/script").mode(0o755).data("#!/bin/sh\necho it is $(id -u)\n"),
        dir("etc/"),
        file("etc/gone"),
        file("etc/first").data("linked\n"),
        link("etc/second", "etc/first"),
        file("etc/third").xattr("user.some", "value").xattr("trusted.other", "value"),
        file("etc/for-1000").mode(0o640).xattr("system.posix_acl_access", ACL),
        dir("root/").mode(0o700),
        file("root/secret").mode(0o600),
        dir("opaque/"),
        file("opaque/hidden"),
        dir("opaque/sub/"),
        file("opaque/sub/hidden"),
        dir("dev/"),
        char("dev/null", 1, 3).mode(0o666),
        char("dev/zero", 1, 5).mode(0o666),
        char("dev/nothing", 240, 77),
        fifo("pipe"),
        file("data").data(noise("data", 1_000_000)),
        file("large").data(noise("large", 300_000)),
        dir("tree/a/b/"),
        file("tree/a/b/c"),
        file("tree/d").mode(0o600).owner(5, 6),
        sym("sym", "etc/first"),
    ]);
    let middle = archive(&[
        mark("etc/.wh.gone"),
        dir("opaque/"),
        mark("opaque/.wh..wh..opq"),
        file("opaque/shown"),
        dir("opaque/sub/"),
        file("opaque/sub/shown"),
        dir("tree/"),
        file("tree/from-the-middle"),
    ]);
    let top = archive(&[dir("top-only/"), file("top-only/f"), file("tree/from-the-top"), mark("opaque/sub/.wh.shown")]);
    vec![bottom, middle, top]
}

fn lower(store: &Path, image: &str) -> String {
    let link = |id: &String| format!("l/{}", fs_err::read_to_string(store.join(format!("overlay/{id}/link"))).unwrap());
    chain(store, image).iter().map(link).collect::<Vec<_>>().join(":")
}

/// Runs the script on both; it must say the same.
fn behaves_alike(upper: &str, contains: &[&str]) {
    let mut world = World::new();
    let item = world.image("all", &layers());
    let unpacked = world.unpacked("unpacked", &[&item]);
    let mount = world.mount("mnt", &[item]);
    let done = |store: &Path, name: &str| {
        let at = world.at.join(name);
        fs_err::create_dir(&at).unwrap();
        let mut command = in_own_mounts("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(store.join("overlay"))
            .arg(lower(store, &full("all")))
            .arg(&at)
            .arg(upper);
        ok(command.env("LC_ALL", "C"))
    };
    let (ours, theirs) = (done(&mount.at, "ours"), done(&unpacked, "theirs"));
    let attempts = ours.lines().filter(|line| line.contains(": 0: ") || line.contains(": 1: ")).count();
    eprintln!("{attempts} attempts, {} lines", ours.lines().count());
    for part in contains {
        assert!(theirs.contains(part), "{part:?} is not in\n{theirs}");
    }
    let different: Vec<String> = ours
        .lines()
        .zip(theirs.lines())
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("ours   {ours}\ntheirs {theirs}"))
        .collect();
    assert!(different.is_empty() && ours.lines().count() == theirs.lines().count(), "{}\n{ours}", different.join("\n"));
}

/// What shows that the attempts are not all refused.
const RUNS: [&str; 10] = [
    "\nsetuid: 0: 0\n",
    "\nsetgid: 0: 43\n",
    "\nsetuid-of-user: 0: 1234\n",
    "\nno-setuid: 0: 1000\n",
    "\ncapability: 0: secret\n",
    "\nno-capability: 1: ",
    "\naccess-by-acl: 0: ",
    "\nno-access-by-acl: 1: ",
    "\nnull: 0: \n",
    "\nsame-inode: 0: \n",
];

#[test]
fn an_overlay_that_nobody_writes_to() {
    if needs_root("mount::overlay::an_overlay_that_nobody_writes_to") {
        behaves_alike("none", &[&RUNS[..], &["\nappend: 2: ", "Read-only file system"]].concat());
    }
}

#[test]
fn an_overlay_that_is_written_to() {
    if needs_root("mount::overlay::an_overlay_that_is_written_to") {
        behaves_alike("upper", &[&RUNS[..], &["\nappend: 0: ", "\nrm-r: 0: ", "\nover-whiteout: 0: again\n"]].concat());
    }
}

/// Mounts `$1` at `$2` with 0 to 65535 as 100000 to 165535: mount(8) of Debian 12 has no `X-mount.idmap`.
const MAPPED: &str = r#"
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    got = libc.syscall(ctypes.c_long(number), *words)
    if got < 0:
        error = ctypes.get_errno()
        print("refused", os.strerror(error))
        sys.exit(77)
    return got
holder = subprocess.Popen(["unshare", "--user", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
holder.stdout.readline()
for kind in "uid", "gid":
    with open(f"/proc/{holder.pid}/{kind}_map", "w") as out:
        out.write("0 100000 65536")
space = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
holder.kill()
class Attributes(ctypes.Structure):
    _fields_ = [("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("space", ctypes.c_uint64)]
# open_tree(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), mount_setattr(MOUNT_ATTR_IDMAP), move_mount
at_empty = 0x1000
tree = call(428, -100, os.fsencode(sys.argv[1]), 1 | os.O_CLOEXEC)
attributes = Attributes(0x00100000, 0, 0, space)
call(442, tree, b"", at_empty, ctypes.byref(attributes), ctypes.sizeof(attributes))
call(429, tree, b"", -100, os.fsencode(sys.argv[2]), 4)
"#;

#[test]
fn mapped_to_other_ids() {
    const TEST: &str = "mount::overlay::mapped_to_other_ids";
    if !needs_root(TEST) {
        return;
    }
    let mut world = World::new();
    let item = world.image("all", &layers());
    let unpacked = world.unpacked("unpacked", &[&item]);
    let mount = world.mount("mnt", &[item]);
    if mount.status()["mapsIds"] != true {
        return not_run(TEST, "Linux 6.12, whose FUSE can be mapped");
    }
    // Each layer is mapped, and an overlay is on top, as with containers in user namespaces.
    let script = r#"store=$1 at=$2 map=$3 as=; shift 3
        for layer; do
            mkdir -p "$at/$layer" && python3 -c "$map" "$store/overlay/$layer/diff" "$at/$layer" || exit 99
            as=$as${as:+:}$at/$layer
        done
        mkdir "$at/m" "$at/up" "$at/work" && mount -i -t overlay overlay -o "lowerdir=$as,upperdir=$at/up,workdir=$at/work" "$at/m" || exit 98
        cd "$at/$1" && find . -printf '%p %y %m %U:%G %T@ %n %l\n' | sort
        cd "$at/m" && find . -mindepth 1 -printf '%p %y %m %U:%G %T@ %n %l\n' | sort && getfattr -R -h -d -m - . | sort
        as() { who=$1; shift; setpriv --reuid=$who --regid=$who --clear-groups "$@" 2>&1 || echo refused; }
        as 101000 cat etc/for-1000
        as 1000 cat etc/for-1000
        as 100000 cat root/secret
        as 5 cat root/secret
        as 5 ./bin/suid -u
        as 100000 touch root/secret
        find root -printf '%p %U:%G\n'"#;
    let done = |store: &Path, name: &str| {
        let at = world.at.join(name);
        fs_err::create_dir(&at).unwrap();
        let mut command = in_own_mounts("sh");
        command.args(["-c", script, "sh"]).arg(store).arg(&at).arg(MAPPED).args(chain(store, &full("all")));
        ok(command.env("LC_ALL", "C"))
    };
    let (ours, theirs) = (done(&mount.at, "ours"), done(&unpacked, "theirs"));
    assert!(ours.contains("./etc/first f 644 100000:100000 ") && ours.contains("\n100000\n"), "{ours}");
    assert_eq!(ours, theirs);
}
