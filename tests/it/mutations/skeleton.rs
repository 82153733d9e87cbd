//! The store's directories, locks and links.

use prepull::entry::Kind;
use prepull::verify::rule::Fate::{ImageDeleted, Kept, NoStart, PodFails, WrongContent};
use prepull::verify::rule::Severity::{Error, Warning};

use super::{Row, row};

const NOWHERE: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

pub fn rows() -> Vec<Row> {
    [files(), modes(), layers(), lowers()].into_iter().flatten().collect()
}

fn files() -> Vec<Row> {
    vec![
        row("no storage.lock", |tar| tar.remove("storage.lock")).note("lock").not_additional().fate(Kept, Kept),
        row("no userns.lock", |tar| tar.remove("userns.lock")).note("lock").not_additional(),
        row("no containers.lock", |tar| tar.remove("overlay-containers/containers.lock")).note("lock").not_additional(),
        row("no images.lock", |tar| tar.remove("overlay-images/images.lock")).note("lock").additional(Error, "lock"),
        row("no layers.lock", |tar| tar.remove("overlay-layers/layers.lock")).note("lock").additional(Error, "lock"),
        row("a lock with a token", |tar| tar.set("overlay-layers/layers.lock", [b'1'; 64])),
        row("a lock that is a directory", |tar| {
            tar.edit("overlay-images/images.lock", |entry| entry.kind = Kind::Directory);
        })
        .error("store-type")
        .fate(NoStart, NoStart),
        row("a lock that is a link", |tar| {
            tar.edit("overlay-layers/layers.lock", |entry| entry.kind = Kind::Symlink(b"gone".to_vec()));
        })
        .error("store-type"),
        row("no .has-mount-program", |tar| tar.remove("overlay/.has-mount-program"))
            .note("has-mount-program")
            .not_additional(),
        row(".has-mount-program is empty", |tar| tar.set("overlay/.has-mount-program", "")).note("has-mount-program"),
        row(".has-mount-program is true", |tar| tar.set("overlay/.has-mount-program", "true"))
            .warning("has-mount-program-true"),
        row("no overlay-containers", |tar| tar.remove_tree("overlay-containers")).note("lock").not_additional(),
        row("overlay-containers is a file", |tar| {
            tar.remove_tree("overlay-containers");
            tar.add_file("overlay-containers", "");
        })
        .error("store-type")
        .not_additional(),
        row("overlay-images is a link", |tar| {
            tar.edit("overlay-images", |entry| entry.kind = Kind::Symlink(b"/tmp".to_vec()));
        })
        .error("store-type")
        .error("tar-through-link")
        .error("image-manifest")
        .also(&["image-config", "image-data", "image-layers", "lock"]),
        row("no links", |tar| {
            for link in ["overlay/l/{l0}", "overlay/l/{l1}", "overlay/l/{l2}"] {
                tar.remove(link);
            }
        })
        .warning("overlay-link")
        .additional(Error, "overlay-link")
        .fate(Kept, Kept),
        row("no overlay/l", |tar| tar.remove_tree("overlay/l"))
            .warning("overlay-link")
            .additional(Error, "overlay-link")
            .fate(Kept, Kept),
        row("overlay/l is a file", |tar| {
            tar.remove_tree("overlay/l");
            tar.add_file("overlay/l", "");
        })
        .error("store-type")
        .also(&["overlay-link"]),
        row("a directory that is no layer", |tar| tar.add_directory("overlay/xyzdir"))
            .warning("overlay-unknown")
            .fate(Kept, Kept),
        row("a layer without a record", |tar| {
            tar.add_directory(&format!("overlay/{NOWHERE}"));
            tar.add_directory(&format!("overlay/{NOWHERE}/diff"));
        })
        .error("layer-orphan")
        .fate(ImageDeleted, ImageDeleted),
        row("only the tree of a layer without a record", |tar| tar.add_directory(&format!("overlay/{NOWHERE}/diff")))
            .error("layer-orphan"),
        row("overlay/tempdirs", |tar| tar.add_directory("overlay/tempdirs")).warning("overlay-unknown"),
        row("overlay/staging", |tar| tar.add_directory("overlay/staging")),
        row("a file in overlay", |tar| tar.add_file("overlay/file", "")),
        row("an image without a record", |tar| tar.add_directory(&format!("overlay-images/{NOWHERE}")))
            .error("image-directory")
            .fate(ImageDeleted, ImageDeleted),
        row("a tar-split without a layer", |tar| tar.add_file(&format!("overlay-layers/{NOWHERE}.tar-split.gz"), ""))
            .note("tar-split-unused"),
        row("a link of no layer", |tar| {
            tar.add(&format!("overlay/l/{}", &NOWHERE[..26]), Kind::Symlink(b"../none/diff".to_vec()), b"");
        })
        .note("overlay-link-unused"),
        row("podman's database", |tar| tar.add_file("db.sql", "")).warning("runtime-state"),
        row("podman's directory", |tar| tar.add_directory("libpod")).warning("runtime-state"),
        row("containers", |tar| tar.add_file("overlay-containers/containers.json", "[]")).warning("runtime-state"),
        row("layers of containers", |tar| tar.add_file("overlay-layers/volatile-layers.json", "[]"))
            .warning("runtime-state"),
        row("another driver", |tar| {
            tar.rename("overlay", "vfs");
            tar.rename("overlay-images", "vfs-images");
            tar.rename("overlay-layers", "vfs-layers");
        })
        .error("driver"),
    ]
}

fn modes() -> Vec<Row> {
    vec![
        row("directories 0755, files 0644", |tar| {
            let graphroot = tar.path("");
            for item in &mut tar.items {
                let in_store = item.entry.path.starts_with(&graphroot);
                if in_store && !item.entry.path.windows(5).any(|part| part == b"/diff") {
                    item.entry.meta.mode = if item.entry.kind == Kind::Directory { 0o755 } else { 0o644 };
                }
            }
        }),
        row("graphroot 0777", |tar| tar.prepend("", Kind::Directory).meta.mode = 0o777).warning("store-mode"),
        row("images.json 0666", |tar| tar.edit("overlay-images/images.json", |entry| entry.meta.mode = 0o666))
            .warning("store-mode"),
        row("overlay 0770", |tar| tar.edit("overlay", |entry| entry.meta.mode = 0o770)).warning("store-mode"),
        row("images.json 0600", |tar| tar.edit("overlay-images/images.json", |entry| entry.meta.mode = 0o600))
            .additional(Warning, "store-unreadable"),
        row("overlay-layers 0700", |tar| tar.edit("overlay-layers", |entry| entry.meta.mode = 0o700))
            .additional(Warning, "store-unreadable"),
        row("graphroot of 1000", |tar| tar.prepend("", Kind::Directory).meta.uid = 1000).warning("store-owner"),
        row("a lock of 1000", |tar| tar.edit("overlay-images/images.lock", |entry| entry.meta.uid = 1000))
            .warning("store-owner"),
        row("a link of group 7", |tar| tar.edit("overlay/l/{l1}", |entry| entry.meta.gid = 7)).warning("store-owner"),
        row("the store's times", |tar| tar.edit("overlay", |entry| entry.meta.mtime.seconds = 1)),
    ]
}

fn layers() -> Vec<Row> {
    vec![
        row("no empty", |tar| tar.remove("overlay/{0}/empty"))
            .error("layer-empty")
            .additional(prepull::verify::rule::Severity::Note, "layer-empty")
            .fate(Kept, ImageDeleted),
        row("empty is a file", |tar| {
            tar.edit("overlay/{0}/empty", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("layer-empty")
        .additional(prepull::verify::rule::Severity::Note, "layer-empty")
        .fate(Kept, ImageDeleted),
        row("no merged", |tar| tar.remove("overlay/{2}/merged")).note("layer-work").not_additional(),
        row("no work and no merged", |tar| {
            for layer in ["{0}", "{1}", "{2}"] {
                tar.remove(&format!("overlay/{layer}/work"));
                tar.remove(&format!("overlay/{layer}/merged"));
            }
        })
        .note("layer-work")
        .not_additional()
        .fate(Kept, Kept),
        row("merged is a file", |tar| {
            tar.edit("overlay/{1}/merged", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("layer-mountpoint")
        .additional(prepull::verify::rule::Severity::Note, "layer-mountpoint")
        .fate(Kept, ImageDeleted),
        row("no diff", |tar| tar.remove_tree("overlay/{2}/diff")).error("layer-directory").fate(PodFails, ImageDeleted),
        row("no layer's directory", |tar| tar.remove_tree("overlay/{1}")).error("layer-directory").also(&[
            "layer-link",
            "layer-lower",
            "overlay-link",
            "owners-list",
        ]),
        row("diff is a file", |tar| {
            tar.remove_tree("overlay/{2}/diff");
            tar.add_file("overlay/{2}/diff", "");
        })
        .error("layer-directory")
        .also(&["entry-missing", "whiteout-missing", "opaque-lost", "owners-list"]),
        row("an empty diff", |tar| {
            tar.remove_tree("overlay/{2}/diff");
            tar.add_directory("overlay/{2}/diff");
        })
        .error("entry-missing")
        .error("whiteout-missing"),
        row("no link", |tar| tar.remove("overlay/{2}/link"))
            .warning("layer-link")
            .additional(Error, "layer-link")
            .fate(Kept, Kept),
        row("no link of the lowest layer", |tar| tar.remove("overlay/{0}/link")).warning("layer-link").fate(Kept, Kept),
        row("no links at all", |tar| {
            for layer in ["0", "1", "2"] {
                tar.remove(&format!("overlay/{{{layer}}}/link"));
            }
            tar.remove_tree("overlay/l");
        })
        .error("layer-link")
        .fate(PodFails, ImageDeleted),
        row("link is a directory", |tar| tar.edit("overlay/{0}/link", |entry| entry.kind = Kind::Directory))
            .warning("layer-link"),
        row("link with a line end", |tar| tar.set("overlay/{2}/link", "{l2}\n")).error("layer-link-content"),
        row("an empty link", |tar| tar.set("overlay/{0}/link", "")).error("layer-link-content"),
        row("a link with a slash", |tar| tar.set("overlay/{2}/link", "../../x")).error("layer-link-content"),
        row("another layer's link", |tar| tar.set("overlay/{2}/link", "{l0}"))
            .error("layer-link-content")
            .also(&["overlay-link-layer"]),
        row("a link that is nowhere", |tar| tar.set("overlay/{2}/link", "NOWHERE"))
            .error("layer-link-content")
            .fate(PodFails, ImageDeleted),
        row("short links", |tar| {
            for layer in ["0", "1", "2"] {
                let to = format!("SHORT{layer}");
                tar.rename(&format!("overlay/l/{{l{layer}}}"), &format!("overlay/l/{to}"));
                tar.set(&format!("overlay/{{{layer}}}/link"), to);
            }
            tar.set("overlay/{1}/lower", "l/SHORT0");
            tar.set("overlay/{2}/lower", "l/SHORT1:l/SHORT0");
        }),
        row("absolute links", |tar| {
            for layer in ["0", "1", "2"] {
                let target = tar.path(&format!("overlay/{{{layer}}}/diff"));
                let target = [b"/", &target[..]].concat();
                tar.edit(&format!("overlay/l/{{l{layer}}}"), |entry| entry.kind = Kind::Symlink(target.clone()));
            }
        })
        .note("overlay-link-absolute")
        .fate(Kept, Kept),
        row("a link to another layer", |tar| {
            let target = tar.text("../{0}/diff").into_bytes();
            tar.edit("overlay/l/{l1}", |entry| entry.kind = Kind::Symlink(target.clone()));
        })
        .error("overlay-link-layer")
        .fate(PodFails, ImageDeleted),
        row("a dangling link", |tar| {
            tar.edit("overlay/l/{l1}", |entry| entry.kind = Kind::Symlink(b"../none/diff".to_vec()));
        })
        .error("overlay-link-layer"),
        row("an absolute link to elsewhere", |tar| {
            tar.edit("overlay/l/{l1}", |entry| entry.kind = Kind::Symlink(b"/etc".to_vec()));
        })
        .error("overlay-link-target"),
        row("a link that is a file", |tar| {
            tar.edit("overlay/l/{l1}", |entry| entry.kind = Kind::Regular { size: 0 });
        })
        .error("overlay-link-layer")
        .also(&["overlay-link"]),
        row("the top's root 0700", |tar| tar.edit("overlay/{2}/diff", |entry| entry.meta.mode = 0o700))
            .error("layer-root-mode")
            .fate(PodFails, PodFails),
        row("the lowest root 0755", |tar| tar.edit("overlay/{0}/diff", |entry| entry.meta.mode = 0o755)),
        row("the top's root 0777", |tar| tar.edit("overlay/{2}/diff", |entry| entry.meta.mode = 0o777))
            .error("entry-mode")
            .fate(WrongContent, WrongContent),
        row("the top's root of 1000", |tar| tar.edit("overlay/{2}/diff", |entry| entry.meta.uid = 1000))
            .error("entry-owner")
            .also(&["owners-list"]),
    ]
}

fn lowers() -> Vec<Row> {
    vec![
        row("no lower", |tar| tar.remove("overlay/{2}/lower")).error("layer-lower").fate(WrongContent, ImageDeleted),
        row("lower with a line end", |tar| tar.set("overlay/{2}/lower", "l/{l1}:l/{l0}\n"))
            .error("layer-lower-content")
            .fate(PodFails, ImageDeleted),
        row("an empty lower", |tar| tar.set("overlay/{1}/lower", "")).error("layer-lower-content"),
        row("lower in another order", |tar| tar.set("overlay/{2}/lower", "l/{l0}:l/{l1}")).error("layer-lower-content"),
        row("lower without a layer", |tar| tar.set("overlay/{2}/lower", "l/{l1}")).error("layer-lower-content"),
        row("lower with a layer too many", |tar| tar.set("overlay/{1}/lower", "l/{l0}:l/{l2}"))
            .error("layer-lower-content"),
        row("lower of the lowest layer", |tar| tar.add_file("overlay/{0}/lower", "l/X")).error("layer-lower-content"),
        row("no lower-layers", |tar| tar.remove("overlay/{2}/lower-layers"))
            .note("layer-lower-layers-missing")
            .fate(Kept, Kept),
        row("another lower-layers", |tar| tar.set("overlay/{2}/lower-layers", "{0}:{1}"))
            .error("layer-lower-layers")
            .fate(WrongContent, ImageDeleted),
        row("lower-layers with a line end", |tar| tar.set("overlay/{2}/lower-layers", "{1}:{0}\n"))
            .error("layer-lower-layers"),
    ]
}
