//! What else a stream may say, and what is refused of it: records, requests, order, and more than the limits.

use prepull::digest::Digest;
use prepull::entry::{Device, Entry, Kind, Meta};

use super::By;
use super::attacks::{Attack, all_refused, in_layer, jail};
use super::stream::{
    Stream, config_of, diff, digest, entry, good, id, image_record, layer_record, link, manifest_of, meta, request,
    stack,
};
use crate::command::needs_root;
use crate::stores::GRAPHROOT;

#[test]
fn records_that_do_not_fit() {
    if !needs_root("privilege::requests::records_that_do_not_fit") {
        return;
    }
    let jail = jail("");
    let mut attacks: Vec<Attack> = Vec::new();
    let lines = layer_record(2, Some(1)).to_lines();
    let many = |count: u32| (0..count).map(|number| (4_000_000_000 + number).to_string()).collect::<Vec<_>>().join(" ");
    let mut records = vec![
        (String::new(), "not a small file"),
        ("\n".to_owned(), "`id`"),
        ("id".to_owned(), "`text`"),
        (lines.trim_end().to_owned(), "`text`"),
        ("x".repeat(2 << 20), "`text`"),
        ("x".repeat((2 << 20) + 1), "not a small file"),
    ];
    let (time, parent) = ("2024-01-01T00:00:00Z", format!("parent {}\n", id(1)));
    for (from, to, why) in [
        (&id(2)[..], &id(3)[..], "not of the layer before it"),
        (&id(2), "../../x", "`id`"),
        (&id(2), "short", "`id`"),
        (&id(2), "", "`id`"),
        (&id(2), &"F".repeat(64), "`id`"),
        ("id ", "ID ", "`id`"),
        (&link(2), "../../../x", "`link`"),
        (&link(2), "", "`link`"),
        (&link(2), "l/AAAAAAAAAAAAAAAAAAAAAAAA", "`link`"),
        (&link(2), "AAAAAAAAAAAAAAAAAAAAAAAAA/", "`link`"),
        (&link(2), "AAAAAAAAAAAAAAAAAAAAAAAAAAA", "`link`"),
        (&link(2), &link(1), "File exists"),
        (&id(1), &id(2), "not of the layer before it"),
        (&id(1), &id(77), "its id is not the one"),
        (&format!("\ndiff-digest {}", digest(2)), &format!("\ndiff-digest {}", digest(3)), "its id is not the one"),
        (&parent, "", "its id is not the one"),
        (&id(1), "x", "`parent`"),
        ("parent", "Parent", "`created`"),
        ("link", &format!("{parent}link"), "`link`"),
        ("created", &format!("{parent}created"), "`created`"),
        (time, "2024-02-30T00:00:00Z", "`created`"),
        (time, "now", "`created`"),
        (time, "", "`created`"),
        (time, "2024-01-01T00:00:00", "`created`"),
        (time, "2024-01-01T00:00:00Z\",\"x\":\"", "`created`"),
        (time, "2024-01-01T24:00:00Z", "`created`"),
        (time, "2024-01-01T00:00:00+24:00", "`created`"),
        ("sha256", "sha512", "`compressed-diff-digest`"),
        ("sha256:", "", "`compressed-diff-digest`"),
        (&digest(2), "sha256:", "`compressed-diff-digest`"),
        ("\ndiff-digest sha256", "\ndiff-digest md5", "`diff-digest`"),
        ("compressed-size 100", "compressed-size -1", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 1e3", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 18446744073709551616", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 9223372036854775808", "`compressed-size`"),
        ("diff-size 1024", "diff-size 99999999999999999999", "`diff-size`"),
        ("diff-size 1024", "diff-size 1024 ", "`diff-size`"),
        ("compression 2", "compression 5", "`compression`"),
        ("compression 2", "compression 9", "`compression`"),
        ("compression 2", "compression x", "`compression`"),
        ("uidset 0", "uidset 4294967296", "`uidset`"),
        ("uidset 0", "uidset 0  1", "`uidset`"),
        ("uidset 0", "uidset 0 x", "`uidset`"),
        ("uidset 0", "uidset ", "`uidset`"),
        ("uidset 0", "uidset +0", "`uidset`"),
        ("uidset 0", "uidset 1 0", "`uidset`"),
        ("uidset 0", "uidset 0 0", "`uidset`"),
        ("uidset 0", "uidset 0 1 1 2", "`uidset`"),
        ("uidset 0", &format!("uidset {}", many(65_537)), "`uidset`"),
        ("gidset 0", "gidset 5 4", "`gidset`"),
        ("gidset 0", "gidset 5 5", "`gidset`"),
        ("gidset 0", &format!("gidset {}", many(65_537)), "`gidset`"),
        ("gidset 0\n", "gidset 0\ngidset 0\n", "`end`"),
        ("gidset 0\n", "gidset 0\nflags incomplete\n", "`end`"),
        ("created", "creaeted", "`created`"),
        ("\n", "\r\n", "`text`"),
        ("id ", "id \u{e9}", "`text`"),
        ("\n", "\0\n", "`text`"),
    ] {
        let changed = lines.replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        records.push((changed, why));
    }
    for (record, why) in &records {
        let stream = Stream::new("install", &jail).dir(diff(2)).split(2).file("prepull-layer", record);
        let shown: String = record.chars().take(500).collect();
        attacks.push((format!("layer record {shown:?}"), why, stream.end()));
    }

    let (config, manifest) = (config_of(1).into_bytes(), manifest_of(config_of(1).as_bytes()));
    let (config, manifest) = (&config[..], &manifest[..]);
    let record = image_record(config, manifest, Some(1), "localhost/bad:1");
    let (key, lines) = (format!("sha256:{}", record.id), record.to_lines());
    let manifest_line = lines.lines().find(|line| line.starts_with("data manifest ")).unwrap();
    let config_line = lines.lines().find(|line| line.starts_with("data sha256:")).unwrap();
    let name = "name localhost/bad:1\n";
    let size = format!("data manifest {}", manifest.len());
    let mut images = vec![(String::new(), "not a small file")];
    let more = format!("{name}{name}");
    for (from, to, why) in [
        (&record.id[..], &id(5)[..], "`data`"),
        ("digest sha256:", "digest sha1:", "`digest`"),
        (&format!("layer {}", id(1)), &format!("layer {}", id(78)), "do not end in its layer"),
        (&format!("layer {}\n", id(1)), "", "do not end in its layer"),
        (
            &format!("digest {}", Digest::of(manifest)),
            &format!("digest {}", Digest::of(config)),
            "none of its manifests",
        ),
        ("localhost/bad:1", &format!("localhost/bad@{}", digest(1)), "none of its manifests"),
        ("localhost/bad:1", &format!("localhost/bad:1@{key}"), "none of its manifests"),
        (&format!("layer {}", id(1)), "layer ../x", "`layer`"),
        (name, &more, "`name`"),
        ("localhost/bad:1", "bad", "`name`"),
        ("localhost/bad:1", "bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad", "`name`"),
        ("localhost/bad:1", "localhost/../bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad:1\",\"x", "`name`"),
        ("localhost/bad:1", "localhost/bad:1\",\"id\":\"x", "`name`"),
        ("localhost/bad:1", "localhost/Bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad:", "`name`"),
        ("localhost/bad:1", "", "`name`"),
        ("localhost/bad:1", "localhost/bad:1@sha256:x", "`name`"),
        ("localhost/bad:1", "localhost/bad@sha256:1", "`name`"),
        ("name", "names", "`data`|`end`"),
        (&format!("{manifest_line}\n"), "", "`data`"),
        (&format!("{config_line}\n"), "", "`data`"),
        (&size, "data manifest 18", "not of the image before it"),
        (&size, "data manifest -1", "`data`"),
        (&size, "data manifest", "`data`"),
        (manifest_line, &format!("{size} {key}"), "has another digest"),
        (config_line, &format!("data {key} {} {}", config.len(), digest(7)), "has another digest"),
        ("data manifest", "data ../../x", "`data`"),
        ("data manifest", "data ../manifest", "`data`"),
        ("data manifest", "data =bWFuaWZlc3Q=", "`data`"),
        ("data manifest", "data signature", "`data`"),
        (manifest_line, &format!("{manifest_line}\n{manifest_line}"), "`data`"),
        (manifest_line, &format!("{manifest_line} x"), "`data`"),
        ("created 2024", "created 20x4", "`created`"),
        (time, "2024-01-01 00:00:00", "`created`"),
        (name, "metadata {}\n", "`data`|`end`"),
        ("\n", "\n\n", "`digest`"),
        (" ", "  ", "`id`"),
    ] {
        let changed = lines.replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        images.push((changed, why));
    }
    let files = [("manifest", manifest), (&key[..], config)];
    for (changed, why) in &images {
        let stream = Stream::new("install", &jail).data(&record.id, &files).file("prepull-image", changed);
        attacks.push((format!("image record {changed:?}"), why, stream.end()));
    }
    let fits_not = "an image's record that is not of the image before it";
    for (what, why, files) in [
        ("no files", "a record without its files", vec![]),
        ("no config", fits_not, vec![("manifest", manifest)]),
        ("no manifest", fits_not, vec![(&key[..], config)]),
        ("one more file", fits_not, vec![("manifest", manifest), (&key[..], config), ("more", b"x")]),
        ("a longer config", fits_not, vec![("manifest", manifest), (&key[..], b"{ }")]),
        ("the manifest twice", "File exists", vec![("manifest", manifest), ("manifest", manifest), (&key[..], config)]),
        ("a long key", fits_not, vec![("manifest", manifest), (&key[..], config), (&"k".repeat(254)[..], b"x")]),
        ("a longer key", "its path", vec![("manifest", manifest), (&key[..], config), (&"k".repeat(256)[..], b"x")]),
    ] {
        let stream = Stream::new("install", &jail).data(&record.id, &files).file("prepull-image", &lines);
        attacks.push((format!("image with {what}"), why, stream.end()));
    }
    let directory = format!("{GRAPHROOT}/overlay-images/{}", record.id);
    for (what, kind) in [
        ("a link", Kind::Symlink(b"/etc/passwd".to_vec())),
        ("a directory", Kind::Directory),
        ("a pipe", Kind::Fifo),
        ("a whiteout", Kind::CharDevice(Device::WHITEOUT)),
        ("a hard link", Kind::Hardlink(b"etc/passwd".to_vec())),
    ] {
        let stream = Stream::new("install", &jail).at(format!("{directory}/manifest"), kind.clone());
        let stream = stream.data(&record.id, &files[1..]).file("prepull-image", &lines).end();
        attacks.push((format!("{what} as the manifest"), "not belong to the image", stream));
        let split = format!("{GRAPHROOT}/overlay-layers/{}.tar-split.gz", id(2));
        let stream = Stream::new("install", &jail).dir(diff(2)).at(split, kind.clone());
        let stream = stream.file("prepull-layer", layer_record(2, None).to_lines()).end();
        attacks.push((format!("{what} as the tar-split"), "not a regular file", stream));
        let in_layer = || Stream::new("install", &jail).dir(diff(2)).split(2);
        for (name, why, before) in [
            ("prepull-layer", "not a small file", in_layer()),
            ("prepull-image", "not a small file", Stream::new("install", &jail)),
            ("prepull-image", "is not complete", in_layer()),
            ("prepull-request", "not in the store", in_layer()),
        ] {
            attacks.push((format!("{what} as {name}"), why, before.at(name, kind.clone()).end()));
        }
    }
    // Its record is read when the layer is there, which others' directories are in: what publishes may not remove them.
    let of_user = Meta { uid: 1000, gid: 1000, ..meta(0o700) };
    let theirs = Entry { path: format!("{}/d", diff(2)).into_bytes(), meta: of_user, kind: Kind::Directory };
    let stream = Stream::new("install", &jail).dir(diff(2)).entry(&theirs).file(format!("{}/d/f", diff(2)), b"x");
    let stream = stream.entry(&theirs).split(2).file("prepull-layer", "id x\n").end();
    attacks.push(("a bad record of a layer of others' directories".to_owned(), "`id`", stream));
    all_refused("records", &jail, &attacks);

    // What is accepted on purpose. As many owners as a layer may have.
    let lines = layer_record(2, Some(1)).to_lines().replace("uidset 0\n", &format!("uidset {}\n", many(65_536)));
    let lines = lines.replace("gidset 0\n", &format!("gidset {}\n", many(65_536)));
    let stream = Stream::new("install", &jail).dir(diff(2)).split(2).file("prepull-layer", lines).end();
    jail.run(By::ForUser).feed(&stream).succeeded("65536 owners and groups");
    jail.outside_is_unchanged("records that are accepted");
}

#[test]
fn requests_and_order() {
    if !needs_root("privilege::requests::requests_and_order") {
        return;
    }
    let jail = jail("");
    let mut attacks: Vec<Attack> = Vec::new();
    let good_lines = request("install", &jail);
    let here = jail.root_number();
    let (device, inode) = here.split_once(':').unwrap();
    let store = &format!("/{GRAPHROOT}")[..];
    let graphroot = format!("graphroot {store}\n");
    let (version, word, no_graphroot) = ("another version", "the word is unknown", "it has no graphroot");
    let (elsewhere, other_store, more) = ("another directory", "another graphroot", "more lines");
    let mut requests = vec![
        (String::new(), "not a small file"),
        ("\n".to_owned(), version),
        ("prepull 1".to_owned(), version),
        ("prepull 1\n".to_owned(), "it has no word"),
        ("x".repeat(2 << 20), version),
        ("x".repeat((2 << 20) + 1), "not a small file"),
        (format!("{good_lines}\n"), more),
        (format!("{good_lines}layer {}\n", id(1)), more),
        (good_lines.trim_end().to_owned(), elsewhere),
        (format!("\u{feff}{good_lines}"), version),
        (good_lines.to_uppercase(), version),
        (good_lines.replace('\n', "\r\n"), version),
        ("{\"request\":\"install\"}\n".to_owned(), version),
        (format!("{}name bad\n", good_lines.replace("install", "sweep")), more),
        (format!("{}name bad\n", good_lines.replace("install", "collect")), more),
        (format!("{}x\n", good_lines.replace("install", "query")), "`end`"),
        (format!("{}layer ../x\n", good_lines.replace("install", "query")), "`layer`"),
        (format!("{}layer {}0\n", good_lines.replace("install", "query"), id(1)), "`layer`"),
    ];
    for (from, to, why) in [
        ("prepull 1", "prepull 2", version),
        ("prepull 1", "prepull 1 ", version),
        ("prepull 1", "prepull 01", version),
        ("prepull 1", "prepull", version),
        ("prepull 1\n", "", version),
        ("install", "Install", word),
        ("install", "", word),
        ("install", "install ", word),
        ("install", "everything", word),
        ("install", "unpack", word),
        ("install", "clear", word),
        ("install", "restore", word),
        ("install", "query\0", word),
        (store, "/", other_store),
        (store, "/etc", other_store),
        (store, "/srv", other_store),
        (store, "/var/lib/containers/storage/", other_store),
        (store, "/var/lib/../lib/containers/storage", other_store),
        (store, "", other_store),
        (&graphroot, "", no_graphroot),
        (&here, "0:0", elsewhere),
        (&here, "", elsewhere),
        (&here, &format!("{device}:1"), elsewhere),
        (&here, &format!("0{here}"), elsewhere),
        (&here, &format!("1{here}"), elsewhere),
        (&here, &format!("{device}:+{inode}"), elsewhere),
        (&here, &format!("{here}:"), elsewhere),
        ("root ", "root  ", other_store),
        ("\nroot ", "\nroot  ", elsewhere),
        ("request install\n", "request install\nrequest install\n", no_graphroot),
        ("request install\n", "request remove\nname ../x\n", no_graphroot),
        ("request install", "request collect", "not belong to this request"),
    ] {
        let changed = good_lines.replacen(from, to, 1);
        assert_ne!(changed, good_lines, "{from}");
        requests.push((changed, why));
    }
    for (lines, why) in &requests {
        let is_query = lines.contains("request query\n");
        let stream = Stream::default().file("prepull-request", lines);
        let stream = if is_query { stream } else { stream.layer(2, Some(1)) };
        attacks.push((format!("request {:?}", lines.chars().take(150).collect::<String>()), why, stream.end()));
    }
    for (line, why) in [
        ("name bad", "`name`"),
        ("name localhost/absent:1", "no such image"),
        ("id ../x", "`id`"),
        ("id ", "`id`"),
        // As few digits are a slip.
        ("id 5", "`id`"),
        ("id 5f", "`id`"),
        ("id 5F3", "`id`"),
        ("id 5f4", "no such image"),
        (&format!("id {}", id(1)), "no such image"),
        (&format!("id {}0", id(1)), "`id`"),
        ("id 5f3\nname localhost/good:1\n", "`end`"),
        ("x", "`end`"),
    ] {
        let lines = format!("{}{line}\n", request("remove", &jail));
        attacks.push((format!("remove {line}"), why, Stream::default().file("prepull-request", lines).end()));
    }
    let other_inode = std::os::unix::fs::MetadataExt::ino(&fs_err::metadata(jail.at("outside")).unwrap());
    let text = good_lines.replace(&here, &format!("{device}:{other_inode}"));
    let stream = Stream::default().file("prepull-request", text).layer(2, None).end();
    attacks.push(("another directory".to_owned(), elsewhere, stream));

    let start = || Stream::new("install", &jail);
    let second = diff(3);
    let image = config_of(1);
    let (image, name) = (image.as_bytes(), "localhost/a:1");
    let zipped = crate::made::gzip(&start().layer(2, None).end());
    attacks.push(("a compressed tar".to_owned(), "canonical|ends before its end", zipped));
    let (begin, open, incomplete) = ("the stream does not begin with it", "not complete yet", "is not complete");
    let (alone, none) = ("a record without its files", "layers are missing");
    let nowhere = config_of(50);
    let no_chain = "its id is not the one";
    let mut add = |name: &str, why, stream: Stream| attacks.push((name.to_owned(), why, stream.end()));
    add("no request", begin, Stream::default().layer(2, None));
    add("nothing at all", begin, Stream::default());
    add("the request twice", "not in the store", start().raw(&start().0));
    add("two open layers", open, start().dir(diff(2)).dir(&second).end_layer(2, None).end_layer(3, None));
    add("a file of the next layer", open, start().dir(diff(2)).file(format!("{second}/x"), b"").end_layer(2, None));
    add("a layer without a record", incomplete, start().dir(diff(2)).split(2));
    let lines = layer_record(2, None).to_lines();
    add("a layer without a tar-split", alone, start().dir(diff(2)).file("prepull-layer", &lines));
    let split = format!("{GRAPHROOT}/overlay-layers/{}.tar-split.gz", id(2));
    let two = start().dir(diff(2)).split(2).file(&split, b"split").end_layer(2, None);
    add("two tar-splits", "not belong to the layer", two);
    add("a directory after the tar-split", open, start().dir(diff(2)).split(2).dir(diff(2)).end_layer(2, None));
    add("a tar-split of another", open, start().dir(diff(2)).split(3));
    add("a tar-split before its layer", "not belong to the layer", start().file(split, b""));
    add("a record alone", alone, start().file("prepull-layer", &lines));
    add("a record twice", alone, start().layer(2, None).file("prepull-layer", &lines));
    add("a layer twice", "File exists", start().layer(2, None).layer(2, None));
    let lines = image_record(image, image, None, name).to_lines();
    add("an image's record alone", alone, start().file("prepull-image", lines));
    add("an image twice", "File exists", start().image(image, Some(1), name).image(image, Some(1), name));
    add("an image in a layer", incomplete, start().dir(diff(2)).image(image, Some(1), name));
    add("a layer in an image", open, start().data(&id(4), &[("manifest", b"")]).layer(2, None));
    add("a layer after an image", "layers come before", start().image(image, Some(1), name).layer(2, None));
    let two = start().data(&id(4), &[("manifest", b"")]).data(&id(5), &[("manifest", b"")]);
    add("two open images", "not belong to the image", two);
    add("an image without a record", incomplete, start().data(&id(4), &[("manifest", b"")]));
    add("a layer that begins with a file", open, start().file(format!("{}/x", diff(2)), b"").end_layer(2, None));
    add("another parent than its id says", no_chain, start().layer(2, Some(50)));
    add("an image of a layer that is nowhere", none, start().image(nowhere.as_bytes(), Some(50), name));
    add("a layer on itself", "not of the layer before it", start().layer(2, Some(2)));
    add("parents in a circle", no_chain, start().layer(2, Some(3)).layer(3, Some(2)));
    add("a layer without the parent that its id says", no_chain, start().layer(3, None));
    add(
        "an entry after the end of a collect",
        "not belong to this request",
        Stream::new("collect", &jail).dir(diff(2)),
    );
    add("an entry after the end of a sweep", "not belong to this request", Stream::new("sweep", &jail).dir(diff(2)));
    add("an entry after the end of a remove", "not belong to this request", Stream::new("remove", &jail).dir(diff(2)));
    add("a file in a query", "not belong to a query", Stream::new("query", &jail).file("x", b""));
    add("a layer in a query", "not belong to a query", Stream::new("query", &jail).dir(diff(2)));
    add("a tree into a store", word, Stream::new("unpack", &jail).file("x", b""));
    let (no_id, no_image) = ("its layer has no valid id", "its image has no valid id");
    add("a layer id of 63 digits", no_id, start().dir(format!("{GRAPHROOT}/overlay/{}/diff", &id(2)[1..])));
    add("a layer id in capitals", no_id, start().dir(format!("{GRAPHROOT}/overlay/{}/diff", "A".repeat(64))));
    add("an image id of 63 digits", no_image, start().data(&id(2)[1..], &[("manifest", b"")]));
    all_refused("requests and order", &jail, &attacks);

    // Nothing of these is published.
    let before = jail.published();
    jail.run(By::ForUser).feed(&stack(&jail, 501)).refused("501 layers on each other");
    let twice = layer_record(3, Some(1)).to_lines().replace(&link(3), &link(2));
    let stream = start().layer(2, Some(1)).dir(diff(3)).split(3).file("prepull-layer", twice);
    jail.run(By::ForUser).feed(&stream.end()).refused("one short name for two new layers");
    jail.outside_is_unchanged("layers that are not published");
    assert_eq!(jail.published(), before);

    // What is there already is taken for done, not made again.
    let again = jail.run(By::Sudo).feed(&good(&jail, 1, None).end());
    let done = &again.succeeded("a layer id that is there").done;
    assert_eq!((done.layers, done.images, done.names), (0, 0, 0));
    // Three digits are enough, when they are no other image's.
    let lines = format!("{}id 5f3\n", request("remove", &jail));
    let gone = jail.run(By::ForUser).feed(&Stream::default().file("prepull-request", lines).end());
    assert_eq!(gone.succeeded("an id of three digits").gone.names, ["localhost/good:1"]);
}

#[test]
fn over_the_limits() {
    if !needs_root("privilege::requests::over_the_limits") {
        return;
    }
    let jail = jail("max_bytes = 100000\nmax_inodes = 40\nmax_seconds = 30");
    let mut attacks: Vec<Attack> = Vec::new();
    let sized = |size| entry(format!("{}/big", diff(2)), Kind::Regular { size });
    for size in [100_001, 1 << 20, 1 << 40, i64::MAX as u64] {
        attacks.push((format!("{size} bytes"), "max_bytes", in_layer(&jail, |stream, _| stream.entry(&sized(size)))));
    }
    attacks.push((
        "many small files".to_owned(),
        "max_bytes",
        in_layer(&jail, |mut stream, at| {
            for number in 0..20 {
                stream = stream.file(format!("{at}/{number}"), vec![b'x'; 6000]);
            }
            stream
        }),
    ));
    for (what, kind) in [
        ("files", Kind::Regular { size: 0 }),
        ("directories", Kind::Directory),
        ("links", Kind::Symlink(b"x".to_vec())),
        ("pipes", Kind::Fifo),
        ("whiteouts", Kind::CharDevice(Device::WHITEOUT)),
    ] {
        attacks.push((
            format!("too many {what}"),
            "max_inodes",
            in_layer(&jail, |mut stream, at| {
                for number in 0..40 {
                    stream = stream.at(format!("{at}/{number}"), kind.clone());
                }
                stream
            }),
        ));
    }
    let mut many = Stream::new("install", &jail);
    for number in 10..51 {
        many = many.dir(diff(number)).end_layer(number, None);
    }
    attacks.push(("too many layers".to_owned(), "max_inodes", many.end()));
    let mut many = Stream::new("install", &jail);
    for number in 10..51_u32 {
        let config = config_of(1) + &" ".repeat(number as usize);
        many = many.image(config.as_bytes(), Some(1), &format!("localhost/a:{number}"));
    }
    attacks.push(("too many images".to_owned(), "max_inodes", many.end()));
    let big = vec![b'x'; (16 << 20) + 1];
    attacks.push((
        "a big manifest".to_owned(),
        "is too much",
        Stream::new("install", &jail).data(&id(4), &[("manifest", &big)]).end(),
    ));
    all_refused("limits", &jail, &attacks);
}

#[test]
fn records_that_could_not_be_read_again_are_not_written() {
    if !needs_root("privilege::requests::records_that_could_not_be_read_again_are_not_written") {
        return;
    }
    let jail = jail("");
    // As large as is read, to the byte (`RECORDS_MAX` in the helper's store).
    let path = jail.store().join("overlay-layers/layers.json");
    let records = fs_err::read_to_string(&path).unwrap();
    let (head, tail) = ("[{\"metadata\":\"", format!("\",{}", records.strip_prefix("[{").unwrap()));
    let full = [head, &"x".repeat((256 << 20) - head.len() - tail.len()), &tail].concat();
    fs_err::write(&path, &full).unwrap();
    let error = jail.run(By::ForUser).feed(&good(&jail, 2, Some(1)).end()).refused("one layer too many");
    assert!(error.contains("writing layers.json: File too large"), "{error}");
    assert!(fs_err::read_to_string(&path).unwrap() == full, "the records have changed");
    // The way out.
    let lines = format!("{}name localhost/good:1\n", request("remove", &jail));
    let outcome = jail.run(By::ForUser).feed(&Stream::default().file("prepull-request", lines).end());
    assert_eq!(outcome.succeeded("rm").gone.layers, 1);
    assert!(fs_err::metadata(&path).unwrap().len() < 1000);
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a good stream again");
}
