//! The tar as such.

use prepull::entry::Kind;
use prepull::verify::rule::Fate::{Kept, PodFails, Unseen, WrongContent};

use super::{Item, Row, row};
use crate::raw::{dir, file, mark, of_type};

pub fn rows() -> Vec<Row> {
    [ends(), names(), order(), kinds()].into_iter().flatten().collect()
}

fn ends() -> Vec<Row> {
    vec![
        row("cut in a file", |tar| {
            tar.bytes = Some(|bytes| {
                let at = bytes.windows(14).position(|part| part == b"big-data-names").unwrap();
                bytes.truncate(at);
            })
        })
        .error("tar")
        .fate(Unseen, Unseen),
        row("cut in the large file", |tar| {
            tar.bytes = Some(|bytes| {
                let at = bytes.windows(600).position(|part| part.iter().all(|&byte| byte == b'x')).unwrap();
                bytes.truncate(at + 5000);
            });
        })
        .error("tar"),
        row("cut in a header", |tar| tar.bytes = Some(|bytes| bytes.truncate(512 * 7 + 300))).error("tar"),
        row("cut after an entry", |tar| {
            let half = tar.items.len() / 2;
            tar.items.truncate(half);
            tar.end.clear();
        })
        .error("tar-end")
        .also(&["images-json", "layers-json"]),
        row("cut after the last entry", |tar| tar.end.clear()).error("tar-end").fate(Unseen, Unseen),
        row("cut between the zero blocks", |tar| tar.end.truncate(512)),
        row("padded to a record", |tar| tar.end.resize(10240, 0)),
        row("the first block lost", |tar| tar.bytes = Some(|bytes| drop(bytes.drain(..512)))).warning("tar-directory"),
        row("a block lost", |tar| {
            tar.bytes = Some(|bytes| {
                let at = bytes.windows(600).position(|part| part.iter().all(|&byte| byte == b'x')).unwrap();
                let at = at / 512 * 512 + 512;
                drop(bytes.drain(at..at + 512));
            });
        })
        .error("entry-content")
        .also(&["overlay-link"]),
        row("two tars one after the other", |tar| {
            let more = tar.encode();
            tar.end.extend(more);
        })
        .warning("tar-after-end"),
        row("something after the end", |tar| tar.end.extend([b'x'; 100])).warning("tar-after-end"),
        row("a wrong checksum", |tar| tar.bytes = Some(|bytes| bytes[512 * 3 + 150] ^= 1)).error("tar"),
        row("a bit of a name", |tar| tar.bytes = Some(|bytes| bytes[512 * 3] ^= 1)).error("tar"),
    ]
}

fn names() -> Vec<Row> {
    vec![
        row("names with ./", |tar| {
            for item in &mut tar.items {
                item.entry.path = [b"./", &item.entry.path[..]].concat();
                if let Kind::Hardlink(target) = &mut item.entry.kind {
                    *target = [b"./", &target[..]].concat();
                }
            }
        }),
        row("absolute names", |tar| {
            for item in &mut tar.items {
                item.entry.path = [b"/", &item.entry.path[..]].concat();
            }
        })
        .warning("tar-absolute")
        .fate(Kept, Kept),
        row("a name that leads up", |tar| tar.add_file("/../etc/passwd", "x")).error("tar-name"),
        row("a name that leads up and down", |tar| {
            let path = tar.path("overlay/{2}/diff/app/../../../../more");
            tar.add_raw(file(path).encode());
        })
        .error("tar-name"),
        row("a name that no file system takes", |tar| {
            let path = tar.path(&format!("overlay/{{2}}/diff/{}", "n".repeat(256)));
            tar.add_raw(mark(path).encode());
        })
        .error("tar-name"),
        row("a path that no file system takes", |tar| {
            let path = tar.path(&format!("overlay/{{2}}/diff/{}", "n/".repeat(3000)));
            tar.add_raw(dir(path).encode());
        })
        .error("tar-name"),
        row("a file in a link", |tar| {
            tar.add("overlay/{2}/diff/away", Kind::Symlink(b"/etc".to_vec()), b"");
            tar.add_file("overlay/{2}/diff/away/passwd", "x");
        })
        .error("tar-through-link")
        .also(&["entry-unexpected"]),
        row("a file in a file", |tar| tar.add_file("overlay/{0}/diff/etc/motd/x", "x")).error("tar-through-link"),
    ]
}

fn order() -> Vec<Row> {
    vec![
        row("a directory after what is in it", |tar| {
            let path = tar.path("overlay/{0}/diff/bin");
            let (first, rest): (Vec<Item>, Vec<Item>) =
                std::mem::take(&mut tar.items).into_iter().partition(|item| item.entry.path != path);
            tar.items = first;
            tar.items.extend(rest);
        })
        .warning("tar-directory"),
        row("no directory of a file", |tar| tar.remove("overlay/{0}/diff/very/deep"))
            .warning("tar-directory")
            .note("entry-time"),
        row("no directory of the store", |tar| tar.remove("overlay-images")).warning("tar-directory"),
        row("directories above the store, as prepull 0.1.0 wrote them", |tar| {
            for path in ["/var", "/var/lib", "/usr", "/usr/lib", "/etc", "/etc/containers"].iter().rev() {
                tar.prepend(path, Kind::Directory);
            }
            tar.prepend("", Kind::Directory);
        }),
        row("a directory once more", |tar| {
            let item = tar.items.iter().find(|item| item.entry.path.ends_with(b"/diff/etc")).unwrap().clone();
            tar.items.push(item);
        }),
        row("a file once more", |tar| {
            let item = tar.items.iter().find(|item| item.entry.path.ends_with(b"/diff/etc/motd")).unwrap().clone();
            tar.items.push(item);
        })
        .warning("tar-twice"),
        row("a file once more with another content", |tar| {
            let path = tar.path("overlay/{0}/diff/etc/motd");
            let mut item = tar.items.iter().find(|item| item.entry.path == path).unwrap().clone();
            item.content[0] ^= 1;
            tar.items.push(item);
        })
        .warning("tar-twice")
        .error("entry-content"),
        row("images.json twice", |tar| {
            let item = tar.items.iter().find(|item| item.entry.path.ends_with(b"/images.json")).unwrap().clone();
            tar.items.insert(0, item);
            tar.set("overlay-images/images.json", "[]");
        })
        .error("images-json")
        .warning("tar-twice"),
        row("a file in the place of a directory", |tar| tar.add_file("overlay/{0}/diff/etc", ""))
            .error("tar-over-directory"),
        row("a hard link before its target", |tar| {
            let path = tar.path("overlay/{0}/diff/bin/tool2");
            let at = tar.items.iter().position(|item| item.entry.path == path).unwrap();
            let item = tar.items.remove(at);
            tar.items.insert(at - 1, item);
        })
        .error("tar-hardlink")
        .also(&["entry-missing"]),
    ]
}

fn kinds() -> Vec<Row> {
    vec![
        row("an unknown type", |tar| tar.add_raw(of_type("var/x", b'Z').encode())).error("tar-type"),
        row("a contiguous file", |tar| tar.add_raw(file("var/x").typeflag(b'7').encode())).error("tar-type"),
        row("a global header", |tar| {
            let body = crate::raw::record(b"comment", b"x");
            let entry = mark("var/x").after(b'g', body).encode();
            tar.items.insert(0, Item { entry: tar.entry("/raw", Kind::Fifo), content: Vec::new(), raw: Some(entry) });
        })
        .warning("tar-global"),
        row("a sparse file", |tar| tar.add_raw(file("var/x").typeflag(b'S').encode())).error("tar-sparse"),
        row("an owner that busybox does not see", |tar| {
            let path = tar.path("overlay/{0}/diff/bin/su");
            let raw = file(&path).data("bin/su").mode(0o4755).pax("uid", "1000").pax("gid", "1000").encode();
            for item in tar.items.iter_mut().filter(|item| item.entry.path == path) {
                item.raw = Some(raw.clone());
            }
        })
        .busybox()
        .error("tar-pax-number")
        .fate(WrongContent, WrongContent),
        row("an owner that GNU tar sees", |tar| {
            let path = tar.path("overlay/{0}/diff/bin/su");
            let raw = file(&path).data("bin/su").mode(0o4755).pax("uid", "1000").pax("gid", "1000").encode();
            for item in tar.items.iter_mut().filter(|item| item.entry.path == path) {
                item.raw = Some(raw.clone());
            }
        })
        .gnu()
        .note("tar-pax-number"),
        row("a size beyond all files", |tar| {
            let raw = of_type("var/x", b'0').size(1 << 62).encode();
            tar.add_raw(raw);
        })
        .error("tar"),
        row("/etc 0700", |tar| tar.prepend("/etc", Kind::Directory).meta.mode = 0o700)
            .error("root-directory")
            .fate(PodFails, PodFails),
        row("/etc of 1000", |tar| tar.prepend("/etc", Kind::Directory).meta.uid = 1000).error("root-directory"),
        row("/etc is a link", |tar| {
            tar.prepend("/etc", Kind::Symlink(b"tmp".to_vec()));
        })
        .error("root-directory")
        .error("tar-through-link")
        .also(&["owners-list"]),
        row("/ 0700", |tar| tar.add_raw(dir("./").mode(0o700).encode())).error("root-directory"),
        row("/ 0755", |tar| tar.add_raw(dir("./").mode(0o755).encode())),
        row("/run/crio", |tar| {
            tar.add_directory("/run");
            tar.add_directory("/run/crio");
            tar.add_file("/run/crio/version", "1.29");
        })
        .error("crio-state"),
        row("CRI-O's files", |tar| {
            tar.add_directory("/var/lib/crio");
            tar.add_file("/var/lib/crio/clean.shutdown.supported", "");
        })
        .error("crio-state")
        .fate(Kept, prepull::verify::rule::Fate::ImageDeleted),
        row("CRI-O's directory", |tar| tar.add_directory("/var/lib/crio")),
        row("another file of the machine", |tar| {
            tar.add_directory("/opt");
            tar.add_file("/opt/file", "x");
        }),
    ]
}
