//! Trees of layers, and the tar-splits that say what should be in them.

use prepull::entry::{Device, Kind};
use prepull::verify::rule::Fate::{Kept, WrongContent};
use serde_json::json;

use super::{Row, row};

pub fn rows() -> Vec<Row> {
    [contents(), metadata(), types(), whiteouts(), splits()].into_iter().flatten().collect()
}

fn contents() -> Vec<Row> {
    vec![
        row("a bit of a file", |tar| tar.content("overlay/{0}/diff/etc/motd")[2] ^= 4)
            .error("entry-content")
            .fate(WrongContent, WrongContent),
        row("a bit at the end of a large file", |tar| {
            *tar.content("overlay/{0}/diff/very/deep/down/file").last_mut().unwrap() ^= 0x80;
        })
        .error("entry-content"),
        row("a file cut off", |tar| tar.content("overlay/{2}/diff/app/data").truncate(4)).error("entry-content"),
        row("a file with more", |tar| tar.content("overlay/{2}/diff/app/data").push(0)).error("entry-content"),
        row("an emptied file", |tar| tar.content("overlay/{2}/diff/app/data").clear()).error("entry-content"),
        row("an empty file filled", |tar| tar.content("overlay/{0}/diff/etc/empty").push(b'x')).error("entry-content"),
        row("a file removed", |tar| tar.remove("overlay/{0}/diff/etc/shadow"))
            .error("entry-missing")
            .also(&["owners-list"])
            .fate(WrongContent, WrongContent),
        row("a directory removed", |tar| tar.remove_tree("overlay/{0}/diff/very")).error("entry-missing"),
        row("an empty file removed", |tar| tar.remove("overlay/{0}/diff/etc/empty")).error("entry-missing"),
        row("a symbolic link removed", |tar| tar.remove("overlay/{0}/diff/bin/sh")).error("entry-missing"),
        row("a device removed", |tar| tar.remove("overlay/{0}/diff/dev/null")).error("entry-missing"),
        row("a file added", |tar| tar.add_file("overlay/{0}/diff/etc/more", "x"))
            .error("entry-unexpected")
            .fate(WrongContent, WrongContent),
        row("a directory added", |tar| tar.add_directory("overlay/{1}/diff/etc/more.d")).error("entry-unexpected"),
        row("a file renamed", |tar| tar.rename("overlay/{0}/diff/etc/motd", "overlay/{0}/diff/etc/motd2"))
            .error("entry-missing")
            .error("entry-unexpected"),
        row("two files exchanged", |tar| {
            let first = std::mem::take(tar.content("overlay/{0}/diff/d/a"));
            *tar.content("overlay/{0}/diff/d/a") = tar.content("overlay/{0}/diff/d/keep").clone();
            *tar.content("overlay/{0}/diff/d/keep") = first;
        })
        .error("entry-content"),
        row("a file in another layer", |tar| tar.rename("overlay/{2}/diff/app/data", "overlay/{1}/diff/data"))
            .error("entry-missing")
            .error("entry-unexpected"),
    ]
}

fn metadata() -> Vec<Row> {
    vec![
        row("a file's mode", |tar| tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.meta.mode = 0o666))
            .error("entry-mode")
            .fate(WrongContent, WrongContent),
        row("a directory's mode", |tar| tar.edit("overlay/{0}/diff/tmp", |entry| entry.meta.mode = 0o777))
            .error("entry-mode"),
        row("setuid lost", |tar| tar.edit("overlay/{0}/diff/bin/su", |entry| entry.meta.mode = 0o755))
            .error("entry-mode")
            .also(&["owners-list"]),
        row("setuid gained", |tar| tar.edit("overlay/{0}/diff/bin/tool", |entry| entry.meta.mode = 0o4755))
            .error("entry-mode"),
        row("a device's mode", |tar| tar.edit("overlay/{0}/diff/dev/null", |entry| entry.meta.mode = 0o600))
            .error("entry-mode"),
        row("a fifo's mode", |tar| tar.edit("overlay/{0}/diff/dev/pipe", |entry| entry.meta.mode = 0o600))
            .error("entry-mode"),
        row("a symbolic link's mode", |tar| tar.edit("overlay/{0}/diff/bin/sh", |entry| entry.meta.mode = 0o755)),
        row("a file's owner", |tar| tar.edit("overlay/{0}/diff/bin/su", |entry| entry.meta.uid = 1001))
            .error("entry-owner")
            .also(&["owners-list"])
            .fate(WrongContent, WrongContent),
        row("a file's group", |tar| tar.edit("overlay/{0}/diff/etc/shadow", |entry| entry.meta.gid = 0))
            .error("entry-owner")
            .also(&["owners-list"]),
        row("a directory's owner", |tar| tar.edit("overlay/{0}/diff/home", |entry| entry.meta.uid = 0))
            .error("entry-owner")
            .also(&["owners-list"]),
        row("a symbolic link's owner", |tar| tar.edit("overlay/{0}/diff/etc/owned", |entry| entry.meta.uid = 0))
            .error("entry-owner")
            .also(&["owners-list"]),
        row("a file's time", |tar| tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.meta.mtime.seconds += 1))
            .note("entry-time")
            .fate(Kept, Kept),
        row("a directory's time", |tar| tar.edit("overlay/{0}/diff/etc", |entry| entry.meta.mtime.seconds = 0))
            .note("entry-time"),
        row("a fraction of a time", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.meta.mtime.nanoseconds = 5);
        }),
        row("a capability lost", |tar| tar.edit("overlay/{0}/diff/bin/ping", |entry| entry.meta.xattrs.clear()))
            .warning("entry-xattr")
            .fate(Kept, Kept),
        row("a capability changed", |tar| {
            tar.edit("overlay/{0}/diff/bin/ping", |entry| entry.meta.xattrs[0].1[5] = 0x40);
        })
        .warning("entry-xattr"),
        row("an attribute gained", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| {
                entry.meta.xattrs.push((b"user.x".to_vec(), b"y".to_vec()));
            });
        })
        .warning("entry-xattr"),
        row("an SELinux label", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| {
                entry.meta.xattrs.push((b"security.selinux".to_vec(), b"system_u:object_r:etc_t:s0".to_vec()));
            });
        })
        .gnu(),
        row("an attribute of overlay", |tar| {
            tar.edit("overlay/{0}/diff/etc", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.redirect".to_vec(), b"/tmp".to_vec()));
            });
        })
        .error("overlay-xattr")
        .fate(WrongContent, WrongContent),
        row("an attribute of overlay on a file", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.whiteout".to_vec(), b"y".to_vec()));
            });
        })
        .error("overlay-xattr"),
        row("an attribute of overlay on a root", |tar| {
            tar.edit("overlay/{2}/diff", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.metacopy".to_vec(), Vec::from(*b"x")));
            });
        })
        .error("overlay-xattr"),
    ]
}

fn types() -> Vec<Row> {
    vec![
        row("a file that is a symbolic link", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.kind = Kind::Symlink(b"shadow".to_vec()));
        })
        .error("entry-type")
        .fate(WrongContent, WrongContent),
        row("a file that is a fifo", |tar| tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.kind = Kind::Fifo))
            .error("entry-type"),
        row("a file that is a directory", |tar| {
            tar.edit("overlay/{0}/diff/etc/motd", |entry| entry.kind = Kind::Directory);
        })
        .error("entry-type"),
        row("an empty directory that is a file", |tar| {
            tar.edit("overlay/{0}/diff/tmp", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("entry-type"),
        row("a directory that is a file", |tar| {
            tar.edit("overlay/{0}/diff/etc", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("entry-type")
        .error("tar-through-link")
        .also(&["entry-missing", "owners-list"]),
        row("a symbolic link that leads elsewhere", |tar| {
            tar.edit("overlay/{0}/diff/bin/sh", |entry| entry.kind = Kind::Symlink(b"su".to_vec()));
        })
        .error("entry-type"),
        row("a symbolic link that is a file", |tar| {
            tar.edit("overlay/{0}/diff/bin/sh", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("entry-type"),
        row("another device", |tar| {
            tar.edit("overlay/{0}/diff/dev/null", |entry| {
                entry.kind = Kind::CharDevice(Device { major: 1, minor: 5 });
            });
        })
        .error("entry-type"),
        row("a block device that is a character device", |tar| {
            tar.edit("overlay/{0}/diff/dev/loop0", |entry| {
                entry.kind = Kind::CharDevice(Device { major: 7, minor: 0 });
            });
        })
        .error("entry-type"),
        row("a device that is a file", |tar| {
            tar.edit("overlay/{0}/diff/dev/null", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("entry-type"),
        row("a device that is a whiteout", |tar| {
            tar.edit("overlay/{0}/diff/dev/null", |entry| entry.kind = Kind::CharDevice(Device::WHITEOUT));
        })
        .error("entry-type"),
        row("a hard link that is a copy", |tar| {
            let content = tar.content("overlay/{0}/diff/bin/tool").clone();
            let meta = tar.items[tar.positions("overlay/{0}/diff/bin/tool")[0]].entry.meta.clone();
            tar.edit("overlay/{0}/diff/bin/tool2", |entry| {
                (entry.kind, entry.meta) = (Kind::Regular { size: 0 }, meta.clone());
            });
            *tar.content("overlay/{0}/diff/bin/tool2") = content;
        })
        .warning("entry-hardlink")
        .fate(Kept, Kept),
        row("a hard link to another file", |tar| {
            let target = tar.path("overlay/{0}/diff/bin/tool");
            tar.edit("overlay/{0}/diff/bin/su", |entry| entry.kind = Kind::Hardlink(target.clone()));
        })
        .error("entry-mode")
        .error("entry-owner")
        .error("entry-content")
        .also(&["owners-list"]),
        row("the first name of a hard link is missing", |tar| tar.remove("overlay/{0}/diff/bin/tool"))
            .error("tar-hardlink")
            .error("entry-missing"),
        row("a hard link into another layer", |tar| {
            let target = tar.path("overlay/{0}/diff/bin/tool");
            tar.add("overlay/{2}/diff/app/tool", Kind::Hardlink(target), b"");
        })
        .error("tar-hardlink"),
        row("a hard link to a directory", |tar| {
            let target = tar.path("overlay/{0}/diff/bin");
            tar.add("overlay/{0}/diff/bin2", Kind::Hardlink(target), b"");
        })
        .error("tar-hardlink"),
    ]
}

fn whiteouts() -> Vec<Row> {
    vec![
        row("no whiteout", |tar| tar.remove("overlay/{1}/diff/etc/old"))
            .error("whiteout-missing")
            .also(&["owners-list"])
            .fate(WrongContent, WrongContent),
        row("no whiteout in the root", |tar| tar.remove("overlay/{2}/diff/gone")).error("whiteout-missing"),
        row("a whiteout that is a file", |tar| {
            tar.edit("overlay/{2}/diff/gone", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("whiteout-missing"),
        row("a whiteout as in layers", |tar| {
            tar.remove("overlay/{2}/diff/gone");
            tar.add_file("overlay/{2}/diff/.wh.gone", "");
        })
        .error("whiteout-file")
        .error("whiteout-missing"),
        row("a whiteout that is another device", |tar| {
            tar.edit("overlay/{2}/diff/gone", |entry| entry.kind = Kind::CharDevice(Device { major: 0, minor: 1 }));
        })
        .error("whiteout-missing"),
        row("a whiteout's mode and time", |tar| {
            tar.edit("overlay/{2}/diff/gone", |entry| {
                entry.meta.mode = 0o600;
                entry.meta.mtime.seconds = 1;
            });
        }),
        row("a whiteout too many", |tar| {
            tar.add("overlay/{2}/diff/etc/shadow", Kind::CharDevice(Device::WHITEOUT), b"");
        })
        .error("entry-unexpected")
        .fate(WrongContent, WrongContent),
        row("no marker of an opaque directory", |tar| {
            tar.edit("overlay/{1}/diff/d", |entry| entry.meta.xattrs.clear());
        })
        .gnu()
        .error("opaque-lost")
        .fate(WrongContent, WrongContent),
        row("another value of an opaque marker", |tar| {
            tar.edit("overlay/{1}/diff/d", |entry| entry.meta.xattrs[0].1 = b"x".to_vec());
        })
        .gnu()
        .error("opaque-lost")
        .error("overlay-xattr"),
        row("no marker where there is nothing to hide", |tar| {
            tar.edit("overlay/{1}/diff/lonely", |entry| entry.meta.xattrs.clear());
        })
        .gnu(),
        row("whiteouts instead of a marker", |tar| {
            tar.edit("overlay/{1}/diff/d", |entry| entry.meta.xattrs.clear());
            for path in ["overlay/{1}/diff/d/a", "overlay/{1}/diff/d/s/b"] {
                tar.add(path, Kind::CharDevice(Device::WHITEOUT), b"");
            }
        })
        .gnu(),
        row("whiteouts and a marker", |tar| {
            tar.add("overlay/{1}/diff/d/a", Kind::CharDevice(Device::WHITEOUT), b"");
        })
        .gnu()
        .warning("opaque-twice")
        .fate(Kept, Kept),
        row("no whiteout for an opaque directory", |tar| tar.remove("overlay/{1}/diff/d/a"))
            .busybox()
            .error("opaque-lost")
            .fate(WrongContent, WrongContent),
        row("no whiteouts for an opaque directory", |tar| {
            tar.remove("overlay/{1}/diff/d/a");
            tar.remove("overlay/{1}/diff/d/s/b");
        })
        .busybox()
        .error("opaque-lost"),
        row("a marker that busybox drops", |tar| {
            tar.remove("overlay/{1}/diff/d/a");
            tar.remove("overlay/{1}/diff/d/s/b");
            tar.edit("overlay/{1}/diff/d", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            });
        })
        .busybox()
        .error("opaque-dropped")
        .fate(WrongContent, WrongContent),
        row("a marker too many", |tar| {
            tar.edit("overlay/{2}/diff/etc", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            });
        })
        .error("overlay-xattr")
        .also(&["opaque-dropped"])
        .fate(WrongContent, WrongContent),
        row("a marker on a root", |tar| {
            tar.edit("overlay/{2}/diff", |entry| {
                entry.meta.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            });
        }),
    ]
}

fn splits() -> Vec<Row> {
    const SPLIT: &str = "overlay-layers/{0}.tar-split.gz";
    vec![
        row("no tar-split", |tar| tar.remove(SPLIT)).warning("tar-split").fate(Kept, Kept),
        row("an empty tar-split", |tar| tar.content(SPLIT).clear()).warning("tar-split").fate(Kept, Kept),
        row("no tar-splits", |tar| {
            for layer in ["0", "1", "2"] {
                tar.remove(&format!("overlay-layers/{{{layer}}}.tar-split.gz"));
            }
        })
        .warning("tar-split"),
        row("a tar-split cut off", |tar| {
            let content = tar.content(SPLIT);
            content.truncate(content.len() / 2);
        })
        .error("tar-split-malformed")
        .fate(Kept, Kept),
        row("a tar-split that is no gzip", |tar| tar.set(SPLIT, "text")).error("tar-split-malformed"),
        row("a tar-split that is a directory", |tar| {
            tar.edit(SPLIT, |entry| entry.kind = Kind::Directory);
        })
        .error("tar-split-malformed"),
        row("another layer's tar-split", |tar| {
            let other = tar.content("overlay-layers/{2}.tar-split.gz").clone();
            *tar.content(SPLIT) = other;
        })
        .error("entry-missing")
        .error("entry-unexpected")
        .also(&["entry-content", "layer-digest", "whiteout-missing"]),
        row("a tar-split compressed again", |tar| tar.split(0, |_| {})),
        row("an empty segment at the end", |tar| {
            tar.split(0, |lines| {
                let position = lines.len();
                lines.push(json!({"type": 2, "payload": "", "position": position}));
            });
        }),
        row("a tar-split without its last line", |tar| tar.split(0, |lines| drop(lines.pop())))
            .error("layer-digest")
            .warning("layer-size"),
        row("a tar-split with more at the end", |tar| {
            tar.split(0, |lines| {
                let position = lines.len();
                lines.push(json!({"type": 2, "payload": "AAAA", "position": position}));
            });
        })
        .error("layer-digest"),
        row("a tar-split without a line", |tar| {
            tar.split(0, |lines| {
                lines.remove(3);
                lines.iter_mut().enumerate().for_each(|(at, line)| line["position"] = json!(at));
            });
        })
        .error("tar-split-malformed"),
        row("a wrong position", |tar| tar.split(0, |lines| lines[4]["position"] = json!(5)))
            .error("tar-split-malformed"),
        row("another checksum", |tar| {
            tar.split(0, |lines| {
                let line = lines.iter_mut().find(|line| line["name"] == "etc/motd").unwrap();
                line["payload"] = json!("AAAAAAAAAAA=");
            });
        })
        .error("entry-content"),
        row("another size in a tar-split", |tar| {
            tar.split(0, |lines| {
                let line = lines.iter_mut().find(|line| line["name"] == "etc/motd").unwrap();
                line["size"] = json!(5);
            });
        })
        .error("tar-split-malformed"),
        row("a bit of a header in a tar-split", |tar| {
            // The last byte of the padding that ends the header block.
            tar.split(0, |lines| {
                let line = lines.iter_mut().find(|line| line["type"] == 2).unwrap();
                let text = line["payload"].as_str().unwrap();
                line["payload"] = json!(format!("{}B{}", &text[..50], &text[51..]));
            });
        })
        .error("tar-split-malformed")
        .also(&["layer-digest"]),
    ]
}
