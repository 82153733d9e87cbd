//! images.json, and the files of images.

use prepull::verify::rule::Fate::{ImageDeleted, Kept, ListFails, NoStart, PodFails, WrongContent};
use prepull::verify::rule::Severity::{Error, Warning};
use serde_json::json;

use super::{Row, drop_key, row};

const IMAGES: &str = "overlay-images/images.json";

pub fn rows() -> Vec<Row> {
    [whole(), names(), fields(), data()].into_iter().flatten().collect()
}

fn whole() -> Vec<Row> {
    vec![
        row("no images.json", |tar| tar.remove(IMAGES)).error("images-json").fate(ImageDeleted, ImageDeleted),
        row("an empty images.json", |tar| tar.set(IMAGES, "")).error("images-json").fate(ImageDeleted, ImageDeleted),
        row("images.json is []", |tar| tar.set(IMAGES, "[]")).error("images-json").fate(ImageDeleted, ImageDeleted),
        row("images.json is an object", |tar| tar.set(IMAGES, "{}")).error("images-json-syntax").fate(NoStart, NoStart),
        row("images.json is cut off", |tar| {
            let content = tar.content(IMAGES);
            content.truncate(content.len() / 2);
        })
        .error("images-json-syntax"),
        row("a null record", |tar| tar.images_json(|images| images.push(json!(null)))).error("images-json-syntax"),
        row("images in another order", |tar| tar.images_json(|images| images.reverse())),
        row("an image twice", |tar| tar.images_json(|images| images.push(images[0].clone())))
            .warning("image-twice")
            .additional(Error, "image-twice")
            .fate(Kept, Kept),
        row("no record of an image", |tar| {
            tar.images_json(|images| images.retain(|image| image["names"][0] != "localhost/zero:1"));
        })
        .error("image-directory")
        .fate(ImageDeleted, ImageDeleted),
    ]
}

fn names() -> Vec<Row> {
    vec![
        row("no names", |tar| tar.image_record("app", |image| drop_key(image, "names")))
            .note("image-no-name")
            .fate(Kept, Kept),
        row("an empty list of names", |tar| tar.image_record("app", |image| image["names"] = json!([])))
            .note("image-no-name"),
        row("names that are no list", |tar| tar.image_record("app", |image| image["names"] = json!("localhost/app:1")))
            .error("images-json-syntax"),
        row("a name with a digest only", |tar| {
            tar.image_record("app", |image| {
                image["names"] = json!([format!("localhost/app@{}", image["digest"].as_str().unwrap())]);
            });
        })
        .note("image-no-name")
        .fate(Kept, Kept),
        row("a name without a tag", |tar| tar.image_record("app", |image| image["names"] = json!(["localhost/app"])))
            .error("image-name")
            .fate(ListFails, ListFails),
        row("a name in capitals", |tar| tar.image_record("app", |image| image["names"] = json!(["localhost/App:1"])))
            .error("image-name")
            .fate(ListFails, ListFails),
        row("an empty name", |tar| tar.image_record("app", |image| image["names"] = json!([""]))).error("image-name"),
        row("a name with an escape sequence", |tar| {
            tar.image_record("app", |image| image["names"] = json!(["localhost/\u{1b}[31mapp:1"]));
        })
        .error("image-name"),
        row("a short name", |tar| tar.image_record("app", |image| image["names"] = json!(["busybox:1.36"])))
            .error("image-name-short")
            .fate(PodFails, PodFails),
        row("a name without library", |tar| {
            tar.image_record("app", |image| image["names"] = json!(["docker.io/busybox:1.36"]));
        })
        .error("image-name-short"),
        row("one name of two images", |tar| {
            tar.image_record("app", |image| image["names"] = json!(["localhost/app:1", "localhost/base:1"]));
        })
        .warning("image-name-twice")
        .additional(Error, "image-name-twice")
        .fate(Kept, Kept),
        row("a name twice in one image", |tar| {
            tar.image_record("app", |image| image["names"] = json!(["localhost/app:1", "localhost/app:1"]));
        }),
        row("two names", |tar| {
            tar.image_record("app", |image| image["names"] = json!(["localhost/app:1", "docker.io/library/app:1"]));
        }),
        row("no old names", |tar| tar.image_record("app", |image| drop_key(image, "names-history"))),
    ]
}

fn fields() -> Vec<Row> {
    vec![
        row("no image id", |tar| tar.image_record("zero", |image| drop_key(image, "id")))
            .error("image-id")
            .also(&["image-directory"]),
        row("an image id in capitals", |tar| {
            tar.image_record("zero", |image| image["id"] = json!(image["id"].as_str().unwrap().to_uppercase()));
        })
        .error("image-id")
        .also(&["image-directory"]),
        row("a short image id", |tar| tar.image_record("zero", |image| image["id"] = json!("12ab")))
            .error("image-id")
            .also(&["image-directory"]),
        row("an image id that is no config", |tar| {
            let new = "2".repeat(64);
            tar.image_record("app", |image| image["id"] = json!(new));
            tar.rename("overlay-images/{app}", &format!("overlay-images/{new}"));
        })
        .warning("image-id-config")
        .fate(Kept, Kept),
        row("an image id without a directory", |tar| {
            tar.image_record("app", |image| image["id"] = json!("2".repeat(64)));
        })
        .error("image-manifest")
        .also(&["image-config", "image-data", "image-directory"])
        .fate(ImageDeleted, ImageDeleted),
        row("no layer", |tar| tar.image_record("app", |image| drop_key(image, "layer"))).error("image-layers"),
        row("the layer below", |tar| {
            let id = tar.layer(1).to_owned();
            tar.image_record("app", |image| image["layer"] = json!(id));
        })
        .error("image-layers")
        .fate(WrongContent, WrongContent),
        row("an unknown layer", |tar| tar.image_record("app", |image| image["layer"] = json!("3".repeat(64))))
            .error("image-layer")
            .fate(ListFails, ImageDeleted),
        row("a layer of an image without", |tar| {
            let id = tar.layer(1).to_owned();
            tar.image_record("zero", |image| image["layer"] = json!(id));
        })
        .error("image-layers"),
        row("an image of another's layers whose id is no config", |tar| {
            let (new, id) = ("2".repeat(64), tar.layer(1).to_owned());
            tar.image_record("app", |image| (image["id"], image["layer"]) = (json!(new), json!(id)));
            tar.rename("overlay-images/{app}", &format!("overlay-images/{new}"));
        })
        .error("image-layers"),
        row("no digest", |tar| tar.image_record("app", |image| drop_key(image, "digest"))),
        row("another digest", |tar| {
            tar.image_record("app", |image| image["digest"] = json!(format!("sha256:{}", "4".repeat(64))));
        })
        .warning("image-digest"),
        row("a digest that is none", |tar| tar.image_record("app", |image| image["digest"] = json!("sha256:")))
            .error("images-json-syntax"),
        row("no creation time of an image", |tar| tar.image_record("app", |image| drop_key(image, "created"))),
        row("a creation time with a zone", |tar| {
            tar.image_record("app", |image| image["created"] = json!("2024-01-02T03:04:05.5+02:00"));
        }),
        row("a creation time that is none", |tar| tar.image_record("app", |image| image["created"] = json!("now")))
            .error("images-json-syntax"),
        row("metadata that are no text", |tar| tar.image_record("app", |image| image["metadata"] = json!({})))
            .error("images-json-syntax")
            .fate(NoStart, NoStart),
        row("old names that are no texts", |tar| tar.image_record("app", |image| image["names-history"] = json!([1])))
            .error("images-json-syntax"),
        row("no metadata", |tar| tar.image_record("app", |image| drop_key(image, "metadata"))),
        row("big data in another order", |tar| {
            tar.image_record("app", |image| image["big-data-names"].as_array_mut().unwrap().reverse());
        }),
        row("big data listed twice", |tar| {
            tar.image_record("app", |image| {
                let names = image["big-data-names"].as_array_mut().unwrap();
                names.push(names[0].clone());
            });
        }),
        row("no big data", |tar| tar.image_record("app", |image| drop_key(image, "big-data-names")))
            .note("image-data-unlisted")
            .fate(Kept, Kept),
        row("no manifest listed", |tar| {
            tar.image_record("app", |image| {
                image["big-data-names"].as_array_mut().unwrap().retain(|name| name != "manifest");
            });
        })
        .note("image-data-unlisted")
        .fate(Kept, Kept),
        row("no config listed", |tar| {
            tar.image_record("app", |image| {
                let names = image["big-data-names"].as_array_mut().unwrap();
                names.retain(|name| !name.as_str().unwrap().starts_with("sha256:"));
            });
        })
        .note("image-data-unlisted")
        .fate(Kept, Kept),
        row("big data that is not there", |tar| {
            tar.image_record("app", |image| {
                image["big-data-names"].as_array_mut().unwrap().push(json!("signature-1234"));
                image["big-data-sizes"]["signature-1234"] = json!(0);
            });
        })
        .error("image-data")
        .additional(Warning, "image-data")
        .fate(Kept, ImageDeleted),
        row("no sizes", |tar| tar.image_record("app", |image| drop_key(image, "big-data-sizes")))
            .error("image-data-size")
            .additional(Warning, "image-data-size")
            .fate(Kept, ImageDeleted),
        row("another size", |tar| tar.image_record("app", |image| image["big-data-sizes"]["manifest"] = json!(1)))
            .error("image-data-size")
            .additional(Warning, "image-data-size")
            .fate(Kept, ImageDeleted),
        row("a size that is no number", |tar| {
            tar.image_record("app", |image| image["big-data-sizes"]["manifest"] = json!(1.5));
        })
        .error("images-json-syntax"),
        row("no digests", |tar| tar.image_record("app", |image| drop_key(image, "big-data-digests"))).fate(Kept, Kept),
        row("another digest of a manifest", |tar| {
            let digest = format!("sha256:{}", "5".repeat(64));
            tar.image_record("app", |image| image["big-data-digests"]["manifest"] = json!(digest));
        })
        .warning("image-data-digest")
        .fate(Kept, Kept),
        row("a digest of a manifest that is none", |tar| {
            tar.image_record("app", |image| image["big-data-digests"]["manifest"] = json!("md5:0"));
        })
        .error("images-json-syntax"),
        row("a key twice in images.json, the last one wrong", |tar| {
            let content = tar.content(IMAGES);
            let text = String::from_utf8_lossy(content).replacen(r#""layer":"#, r#""layer":"x","layer":"#, 1);
            *content = text.into_bytes();
        }),
    ]
}

fn data() -> Vec<Row> {
    vec![
        row("no manifest", |tar| tar.remove("overlay-images/{app}/manifest"))
            .error("image-manifest")
            .fate(ListFails, ImageDeleted),
        row("no config", |tar| tar.remove("overlay-images/{app}/=sha256:{app}"))
            .error("image-config")
            .fate(ListFails, ImageDeleted),
        row("no manifest by its digest", |tar| {
            let key = manifest_key(tar);
            tar.remove(&key);
        })
        .error("image-data")
        .additional(Warning, "image-data")
        .fate(Kept, ImageDeleted),
        row("no image directory", |tar| tar.remove_tree("overlay-images/{app}"))
            .error("image-manifest")
            .also(&["image-config", "image-data"]),
        row("an image directory that is a file", |tar| {
            tar.remove_tree("overlay-images/{zero}");
            tar.add_file("overlay-images/{zero}", "");
        })
        .error("image-manifest")
        .also(&["image-config", "image-data"]),
        row("an empty manifest", |tar| tar.set("overlay-images/{app}/manifest", ""))
            .error("image-data-size")
            .error("image-malformed")
            .additional(Warning, "image-data-size")
            .additional(Error, "image-malformed")
            .fate(ListFails, ImageDeleted),
        row("a manifest that is no JSON", |tar| {
            let content = tar.content("overlay-images/{app}/manifest");
            content[0] = b'x';
        })
        .error("image-malformed")
        .warning("image-data-digest"),
        row("a bit of a manifest by its digest", |tar| {
            let key = manifest_key(tar);
            tar.content(&key)[9] ^= 1;
        })
        .error("image-data-content")
        .fate(WrongContent, WrongContent),
        row("a bit of the config", |tar| {
            let content = tar.content("overlay-images/{app}/=sha256:{app}");
            let at = content.windows(5).position(|part| part == b"amd64").unwrap();
            content[at] ^= 1;
        })
        .error("image-config-content")
        .fate(ListFails, ListFails),
        row("the manifest is a directory", |tar| {
            tar.edit("overlay-images/{app}/manifest", |entry| entry.kind = prepull::entry::Kind::Directory);
        })
        .error("image-manifest"),
        row("the manifest of another image", |tar| {
            let other = tar.content("overlay-images/{base}/manifest").clone();
            *tar.content("overlay-images/{app}/manifest") = other;
        })
        .error("image-config")
        .also(&["image-data-size"]),
        row("a file of no record", |tar| tar.add_file("overlay-images/{app}/more", "x")).note("image-data-unlisted"),
    ]
}

fn manifest_key(tar: &mut super::Archive<'_>) -> String {
    let mut key = String::new();
    tar.image_record("app", |image| {
        let names = image["big-data-names"].as_array().unwrap();
        let found = names.iter().find(|name| name.as_str().unwrap().starts_with("manifest-")).unwrap();
        key = format!("overlay-images/{{app}}/={}", found.as_str().unwrap());
    });
    key
}
