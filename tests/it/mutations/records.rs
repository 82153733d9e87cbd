//! layers.json.

use prepull::verify::rule::Fate::{ImageDeleted, Kept, ListFails, StoreWiped, WrongContent};
use prepull::verify::rule::Severity::Warning;
use serde_json::json;

use super::{Row, drop_key, row};

const LAYERS: &str = "overlay-layers/layers.json";

pub fn rows() -> Vec<Row> {
    [whole(), fields()].into_iter().flatten().collect()
}

fn whole() -> Vec<Row> {
    vec![
        row("a layer that was pulled in part", |tar| {
            tar.layer_record(1, |record| {
                drop_key(record, "diff-digest");
                record["toc-digest"] = json!("sha256:0000000000000000000000000000000000000000000000000000000000000001");
            });
        })
        .note("layer-unverified"),
        row("no layers.json", |tar| tar.remove(LAYERS))
            .error("layers-json")
            .error("image-layer")
            .fate(ListFails, ImageDeleted),
        row("an empty layers.json", |tar| tar.set(LAYERS, ""))
            .error("layers-json")
            .error("image-layer")
            .fate(ListFails, ImageDeleted),
        row("layers.json is []", |tar| tar.set(LAYERS, "[]")).error("image-layer").fate(ListFails, ImageDeleted),
        row("layers.json is null", |tar| tar.set(LAYERS, "null")).error("image-layer"),
        row("layers.json is an object", |tar| tar.set(LAYERS, "{}"))
            .error("layers-json-syntax")
            .also(&["image-layer"])
            .fate(ListFails, StoreWiped),
        row("layers.json is cut off", |tar| {
            let content = tar.content(LAYERS);
            content.truncate(content.len() - 1);
        })
        .error("layers-json-syntax")
        .also(&["image-layer"])
        .fate(ListFails, StoreWiped),
        row("something after layers.json", |tar| tar.content(LAYERS).extend(b"]"))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("layers.json with a byte order mark", |tar| drop(tar.content(LAYERS).splice(..0, *b"\xef\xbb\xbf")))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("layers.json with a null record", |tar| tar.layers_json(|layers| layers.push(json!(null))))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("layers.json with spaces and a line end", |tar| {
            let content = tar.content(LAYERS);
            *content = format!(" {} \n", String::from_utf8_lossy(content)).into_bytes();
        }),
        row("no record of the lowest layer", |tar| tar.layers_json(|layers| drop(layers.remove(0))))
            .error("layer-parent")
            .fate(ListFails, ImageDeleted),
        row("no record of the top layer", |tar| tar.layers_json(|layers| drop(layers.pop())))
            .error("image-layer")
            .fate(ListFails, ImageDeleted),
        row("no record of a layer between", |tar| tar.layers_json(|layers| drop(layers.remove(1))))
            .error("layer-parent")
            .also(&["image-layer"]),
        row("a record twice", |tar| tar.layers_json(|layers| layers.push(layers[2].clone()))).warning("layer-twice"),
        row("children first", |tar| tar.layers_json(|layers| layers.reverse())),
        row("an unused layer", |tar| {
            tar.images_json(|images| images.retain(|image| image["names"][0] != "localhost/app:1"));
            let image = tar.text("overlay-images/{app}");
            tar.remove_tree(&image);
        })
        .note("layer-unused"),
    ]
}

fn fields() -> Vec<Row> {
    vec![
        row("no layer id", |tar| tar.layer_record(2, |layer| drop_key(layer, "id")))
            .error("layer-id")
            .also(&["image-layer", "layer-directory", "layer-link", "layer-lower"])
            .fate(ListFails, StoreWiped),
        row("a layer id in capitals", |tar| {
            tar.layer_record(2, |layer| layer["id"] = json!(layer["id"].as_str().unwrap().to_uppercase()));
        })
        .error("layer-id")
        .also(&["image-layer", "layer-directory", "layer-link", "layer-lower"]),
        row("a short layer id", |tar| tar.layer_record(2, |layer| layer["id"] = json!("12ab")))
            .error("layer-id")
            .also(&["image-layer", "layer-directory", "layer-link", "layer-lower"]),
        row("a layer id that is a number", |tar| tar.layer_record(2, |layer| layer["id"] = json!(5)))
            .error("layers-json-syntax")
            .also(&["image-layer"])
            .fate(ListFails, StoreWiped),
        row("another layer id", |tar| {
            let new = "1".repeat(64);
            tar.layer_record(2, |layer| layer["id"] = json!(new));
        })
        .error("image-layer")
        .also(&["layer-directory", "layer-link"]),
        row("a chosen layer id", |tar| {
            let new = "1".repeat(64);
            tar.layer_record(2, |layer| layer["id"] = json!(new));
            tar.image_record("app", |image| image["layer"] = json!(new));
            tar.rename("overlay/{2}", &format!("overlay/{new}"));
            tar.rename("overlay-layers/{2}.tar-split.gz", &format!("overlay-layers/{new}.tar-split.gz"));
            let target = prepull::entry::Kind::Symlink(format!("../{new}/diff").into_bytes());
            tar.edit("overlay/l/{l2}", |entry| entry.kind = target.clone());
        })
        .warning("layer-chain")
        .fate(Kept, Kept),
        row("no parent", |tar| tar.layer_record(2, |layer| drop_key(layer, "parent")))
            .error("image-layers")
            .also(&["layer-empty", "layer-lower-content"]),
        row("an unknown parent", |tar| tar.layer_record(1, |layer| layer["parent"] = json!("a".repeat(64))))
            .error("layer-parent")
            .also(&["layer-lower-content", "layer-lower-layers"]),
        row("the grandparent as parent", |tar| {
            let id = tar.layer(0).to_owned();
            tar.layer_record(2, |layer| layer["parent"] = json!(id));
        })
        .error("image-layers")
        .also(&["layer-lower-content", "layer-lower-layers", "entry-unexpected"]),
        row("a layer that is its own parent", |tar| {
            tar.layer_record(0, |layer| layer["parent"] = layer["id"].clone());
        })
        .error("layer-parent")
        .also(&["layer-lower", "layer-lower-content", "layer-lower-layers"]),
        row("layers in a circle", |tar| {
            let id = tar.layer(2).to_owned();
            tar.layer_record(0, |layer| layer["parent"] = json!(id));
        })
        .error("layer-parent")
        .also(&["layer-lower", "layer-lower-content", "layer-lower-layers"]),
        row("an incomplete layer", |tar| tar.layer_record(2, |layer| layer["flags"] = json!({"incomplete": true})))
            .error("layer-incomplete")
            .additional(Warning, "layer-incomplete")
            .fate(ListFails, ImageDeleted),
        row("a complete layer", |tar| tar.layer_record(2, |layer| layer["flags"] = json!({"incomplete": false}))),
        row("no diff-digest and no diff-size", |tar| {
            tar.layer_record(0, |layer| {
                drop_key(layer, "diff-digest");
                drop_key(layer, "diff-size");
            });
        })
        .error("layer-size-unknown")
        .also(&["image-layers"])
        .fate(ListFails, ListFails),
        row("no diff-digest", |tar| tar.layer_record(2, |layer| drop_key(layer, "diff-digest")))
            .error("layer-size-unknown")
            .also(&["image-layers"]),
        row("no diff-size", |tar| tar.layer_record(2, |layer| drop_key(layer, "diff-size"))).warning("layer-size"),
        row("another diff-size", |tar| tar.layer_record(1, |layer| layer["diff-size"] = json!(1024)))
            .warning("layer-size")
            .fate(Kept, Kept),
        row("a negative diff-size", |tar| tar.layer_record(1, |layer| layer["diff-size"] = json!(-1)))
            .error("layer-size-unknown")
            .fate(ListFails, ListFails),
        row("a diff-size that is a text", |tar| tar.layer_record(1, |layer| layer["diff-size"] = json!("10240")))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("another diff-digest", |tar| {
            tar.layer_record(2, |layer| layer["diff-digest"] = json!(format!("sha256:{}", "0".repeat(64))));
        })
        .error("layer-digest")
        .error("image-layers")
        .warning("layer-chain")
        .fate(WrongContent, WrongContent),
        row("a diff-digest that is none", |tar| tar.layer_record(2, |layer| layer["diff-digest"] = json!("sha256:x")))
            .error("layer-digest")
            .also(&["image-layers"]),
        row("a digest of the blob that is none", |tar| {
            tar.layer_record(2, |layer| layer["compressed-diff-digest"] = json!("sha256:x"));
        })
        .fate(Kept, Kept),
        row("a compression that is a text", |tar| tar.layer_record(0, |layer| layer["compression"] = json!("gzip")))
            .error("layers-json-syntax")
            .also(&["image-layer"])
            .fate(ListFails, StoreWiped),
        row("a blob's size that is a text", |tar| tar.layer_record(0, |layer| layer["compressed-size"] = json!("1")))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("nothing about the blobs", |tar| {
            tar.layers_json(|layers| {
                for layer in layers {
                    drop_key(layer, "compressed-diff-digest");
                    drop_key(layer, "compressed-size");
                    layer.as_object_mut().unwrap().remove("compression");
                }
            });
        })
        .fate(Kept, Kept),
        row("another size of the blob", |tar| tar.layer_record(0, |layer| layer["compressed-size"] = json!(1))),
        row("no ids", |tar| {
            tar.layers_json(|layers| {
                for layer in layers {
                    drop_key(layer, "uidset");
                    drop_key(layer, "gidset");
                }
            });
        }),
        row("other ids", |tar| tar.layer_record(1, |layer| layer["uidset"] = json!([0]))).note("layer-ids"),
        row("negative ids", |tar| tar.layer_record(1, |layer| layer["uidset"] = json!([-1])))
            .error("layers-json-syntax")
            .also(&["image-layer"]),
        row("no creation times of layers", |tar| {
            tar.layers_json(|layers| layers.iter_mut().for_each(|layer| drop_key(layer, "created")));
        })
        .fate(Kept, Kept),
        row("a creation time of a layer that is none", |tar| {
            tar.layer_record(1, |layer| layer["created"] = json!("yesterday"));
        })
        .error("layers-json-syntax")
        .also(&["image-layer"])
        .fate(ListFails, StoreWiped),
        row("an unknown key", |tar| tar.layer_record(1, |layer| layer["future"] = json!({"a": [1]}))),
        row("a key twice, the last one right", |tar| {
            let content = tar.content(LAYERS);
            let text = String::from_utf8_lossy(content).replacen(r#""diff-size":"#, r#""diff-size":1,"diff-size":"#, 1);
            *content = text.into_bytes();
        }),
        row("a key twice, the last one wrong", |tar| {
            let content = tar.content(LAYERS);
            let text = String::from_utf8_lossy(content).replacen(r#""id":"#, r#""diff-size":1,"id":"#, 1);
            *content = text.into_bytes();
        }),
    ]
}
