//! What gives back what busybox loses.

use super::{Row, row};

const SCRIPT: &str = "/etc/init.d/25prepull.rc";

fn list(tar: &super::Archive<'_>, name: &str) -> String {
    format!("/usr/share/prepull/{}/{name}", tar.graphroot().replace('/', "-"))
}

pub fn rows() -> Vec<Row> {
    vec![
        row("no script", |tar| tar.remove(SCRIPT)).busybox().warning("owners-lost"),
        row("no script and no lists", |tar| {
            tar.remove(SCRIPT);
            tar.remove_tree("/usr/share/prepull");
        })
        .busybox(),
        row("another script", |tar| tar.content(SCRIPT).extend(b"exit\n")).busybox().warning("owners-script"),
        row("a script that does not run", |tar| tar.edit(SCRIPT, |entry| entry.meta.mode = 0o644))
            .busybox()
            .warning("owners-script"),
        row("a list is missing", |tar| {
            let path = list(tar, "owners/1000:1000");
            tar.remove(&path);
        })
        .busybox()
        .error("owners-list"),
        row("a file is not in its list", |tar| {
            let path = list(tar, "owners/1000:1000");
            let text = String::from_utf8(tar.content(&path).clone()).unwrap();
            let first = text.split_inclusive('\0').next().unwrap().to_owned();
            *tar.content(&path) = first.into_bytes();
        })
        .busybox()
        .error("owners-list"),
        row("a file is in another list", |tar| {
            let (from, to) = (list(tar, "owners/0:42"), list(tar, "owners/0:43"));
            tar.rename(&from, &to);
        })
        .busybox()
        .error("owners-list"),
        row("a file too many in a list", |tar| {
            let (path, more) = (list(tar, "owners/1000:1000"), tar.text("{0}/diff/etc/motd\0"));
            tar.content(&path).extend(more.as_bytes());
        })
        .busybox()
        .error("owners-list"),
        row("a file outside in a list", |tar| {
            let path = list(tar, "owners/1000:1000");
            tar.content(&path).extend(b"../../../../../etc/shadow\0");
        })
        .busybox()
        .error("owners-list"),
        row("a link in the list of files", |tar| {
            let (from, to) = (list(tar, "links/7:7"), list(tar, "owners/7:7"));
            tar.rename(&from, &to);
        })
        .busybox()
        .error("owners-list"),
        row("no list of modes", |tar| {
            let path = list(tar, "modes/4755");
            tar.remove(&path);
        })
        .busybox()
        .error("owners-list"),
        row("another mode", |tar| {
            let (from, to) = (list(tar, "modes/4755"), list(tar, "modes/6755"));
            tar.rename(&from, &to);
        })
        .busybox()
        .error("owners-list"),
        row("done already", |tar| {
            let path = list(tar, "state");
            tar.set(&path, "done\n");
        })
        .busybox()
        .error("owners-list"),
        row("the state is root's", |tar| {
            let path = list(tar, "state");
            tar.edit(&path, |entry| entry.meta.uid = 0);
        })
        .busybox()
        .error("owners-list"),
        row("no state", |tar| {
            let path = list(tar, "state");
            tar.remove(&path);
        })
        .busybox()
        .error("owners-list"),
        row("another store", |tar| {
            let path = list(tar, "overlay");
            tar.set(&path, "tmp\n");
        })
        .busybox()
        .error("owners-list"),
        row("lists of another store", |tar| {
            let path = list(tar, "overlay").trim_end_matches("/overlay").to_owned();
            tar.rename(&path, "/usr/share/prepull/other");
        })
        .busybox()
        .error("owners-list"),
        row("no list of attributes", |tar| tar.remove("/usr/share/prepull/xattrs")).busybox().warning("xattr-dropped"),
        row("another value in the list of attributes", |tar| {
            let content = tar.content("/usr/share/prepull/xattrs");
            let at = content.iter().rposition(|&byte| byte == b'A').unwrap();
            content[at] = b'B';
        })
        .busybox()
        .warning("xattr-dropped"),
        row("another file in the list of attributes", |tar| {
            let content = tar.content("/usr/share/prepull/xattrs");
            let text = String::from_utf8(content.clone()).unwrap().replace("bin/ping", "bin/pong");
            *content = text.into_bytes();
        })
        .busybox()
        .warning("xattr-dropped"),
    ]
}
