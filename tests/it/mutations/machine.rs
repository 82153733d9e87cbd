//! What gives back what busybox loses.

use prepull::entry::{Entry, Kind};
use prepull::wire::{self, read::Reader};

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

/// Changes of a tar with a helper.
pub fn helper_rows() -> Vec<Row> {
    fn helper(tar: &super::Archive<'_>) -> String {
        list(tar, "prepull-helper")
    }
    fn manifest(tar: &super::Archive<'_>) -> String {
        list(tar, "manifest.tar")
    }
    /// Reads the manifest, and writes it again otherwise.
    fn entries(tar: &mut super::Archive<'_>, change: impl Fn(&mut Vec<Entry>)) {
        let content = tar.content(&manifest(tar));
        let (mut reader, mut entries) = (Reader::new(&content[..]), Vec::new());
        while let Some(entry) = reader.next_entry().unwrap() {
            entries.push(entry);
        }
        change(&mut entries);
        content.clear();
        entries.iter().for_each(|entry| wire::header(entry, content));
        content.extend_from_slice(&wire::END);
    }
    fn of(entries: &[Entry], end: &str) -> usize {
        entries.iter().position(|entry| entry.path.ends_with(end.as_bytes())).unwrap()
    }
    vec![
        row("no helper", |tar| tar.remove(&helper(tar))).warning("restore-helper").also(&["xattr-listed"]),
        row("a helper that does not run", |tar| tar.edit(&helper(tar), |entry| entry.meta.mode = 0o644))
            .warning("restore-helper")
            .also(&["xattr-listed"]),
        row("a helper that is none", |tar| tar.set(&helper(tar), "#! /bin/sh\n"))
            .warning("restore-helper")
            .also(&["xattr-listed"]),
        row("no manifest", |tar| tar.remove(&manifest(tar))).error("restore-manifest").also(&["xattr-listed"]),
        row("a manifest without its end", |tar| {
            let content = tar.content(&manifest(tar));
            content.truncate(content.len() - 1024);
        })
        .error("restore-manifest")
        .also(&["xattr-listed"]),
        row("a manifest that is no tar", |tar| tar.set(&manifest(tar), "bin/ping\n"))
            .error("restore-manifest")
            .also(&["xattr-listed"]),
        row("no helper, no manifest, no list", |tar| {
            tar.remove(&helper(tar));
            tar.remove(&manifest(tar));
            tar.remove("/usr/share/prepull/xattrs");
        })
        .warning("xattr-dropped"),
        row("no list beside a manifest", |tar| tar.remove("/usr/share/prepull/xattrs")),
        row("a helper that nobody calls", |tar| tar.remove(SCRIPT)).warning("owners-lost").also(&["xattr-listed"]),
        row("a file with attributes is not listed", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/ping");
                entries.remove(at);
            });
        })
        .note("xattr-listed"),
        row("another capability", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/ping");
                entries[at].meta.xattrs[0].1[5] ^= 1;
            });
        })
        .error("restore-manifest")
        .also(&["xattr-listed"]),
        row("another time of a link", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/sh");
                entries[at].meta.mtime.seconds += 1;
            });
        })
        .error("restore-manifest"),
        row("another target of a link", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/sh");
                entries[at].kind = Kind::Symlink(b"other".to_vec());
            });
        })
        .error("restore-manifest"),
        row("another mode in the manifest", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/ping");
                entries[at].meta.mode = 0o4755;
            });
        })
        .error("restore-manifest")
        .also(&["xattr-listed"]),
        row("a link is not listed", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "etc/owned");
                entries.remove(at);
            });
        })
        .error("restore-manifest"),
        row("a file that is not there is listed", |tar| {
            entries(tar, |entries| {
                let at = of(entries, "bin/sh");
                entries[at].path.push(b'2');
            });
        })
        .error("restore-manifest"),
        row("an entry twice in the manifest", |tar| entries(tar, |entries| entries.push(entries[0].clone())))
            .error("restore-manifest")
            .also(&["xattr-listed"]),
    ]
}
