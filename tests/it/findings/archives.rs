//! Archives, layouts and compressed layers: whatever skopeo takes is taken, within limits that are stated.

use std::path::Path;
use std::process::Command;

use prepull::media_type::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::command::{fails, prepull, succeeds};
use crate::made::{Layout, config, gzip, tar};

/// Returns `prepull make` without a cache, writing to `out.tar` in `home`.
fn make(home: &Path, item: &str) -> Command {
    let mut command = prepull(home);
    command.args(["make", "--no-cache", "--no-config", "-o"]).arg(home.join("out.tar")).arg(item);
    command
}

/// Adds an image with one layer, whose blob and descriptor are given, and returns the manifest's descriptor.
fn one_layer(layout: &Layout, is_docker: bool, plain: &[u8], layer: Value) -> Value {
    let (manifest, config_type) = if is_docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
    let config = layout.blob(config_type, &config("amd64", &[plain.to_vec()]));
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": [layer]});
    let mut descriptor = layout.manifest(&manifest);
    descriptor["mediaType"] = manifest["mediaType"].clone();
    descriptor
}

#[test]
fn b12_nondistributable_layers_and_parameters_are_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1")]);
    let oci = "application/vnd.oci.image.layer";
    let docker = "application/vnd.docker.image.rootfs";
    // What skopeo 1.9 does with each of them is the same, but for the empty error column: it takes it.
    let table = [
        (false, format!("{oci}.nondistributable.v1.tar"), ""),
        (false, format!("{oci}.nondistributable.v1.tar+gzip"), ""),
        (false, format!("{docker}.foreign.diff.tar.gzip"), ""),
        (false, format!("{oci}.v1.tar+gzip; charset=utf-8"), ""),
        (false, format!("{oci}.nondistributable.v1.tar+gzip;a=b;c=d"), ""),
        (true, format!("{docker}.foreign.diff.tar"), ""),
        (true, format!("{docker}.foreign.diff.tar.gzip"), ""),
        (true, format!("{docker}.diff.tar.gzip; charset=utf-8"), "cannot be read by CRI-O"),
        (true, format!("{oci}.nondistributable.v1.tar"), "not a known type of layer"),
        (false, format!("{oci}.v1.tar+gzip+encrypted; a=b"), "decrypt"),
    ];
    for (number, (is_docker, media_type, refused)) in table.iter().enumerate() {
        let mut layout = Layout::new(at.join(number.to_string()));
        let bytes = if media_type.contains("gzip") { gzip(&plain) } else { plain.clone() };
        let mut layer = layout.blob(media_type, &bytes);
        // Nothing is fetched from there: port 1 of this machine refuses everybody.
        layer["urls"] = json!(["http://127.0.0.1:1/layer"]);
        let descriptor = one_layer(&layout, *is_docker, &plain, layer);
        layout.add(Some("localhost/a:1"), descriptor);
        let item = format!("oci:{}", layout.path.display());
        match *refused {
            "" => drop(succeeds(&mut make(at, &item))),
            part => fails(&mut make(at, &item), 1, part),
        }
    }
}

#[test]
fn b12_missing_foreign_layer_is_explained_with_its_urls() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1")]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let urls = json!(["https://example.com/\u{1b}[31m", "https://example.com/b", "c", "d"]);
    for (urls, part) in [
        (urls, r"distributed with the image but from https://example.com/\u{1b}[31m, https://example.com/b, c ("),
        (json!(null), "from elsewhere (no URL is known)"),
    ] {
        let mut layout = Layout::new(at.join("layout"));
        let mut layer = layout.blob(foreign, &gzip(&plain));
        let digest = layer["digest"].as_str().unwrap().replace(':', "/");
        fs_err::remove_file(layout.path.join("blobs").join(digest)).unwrap();
        layer["urls"] = urls;
        let descriptor = one_layer(&layout, true, &plain, layer);
        layout.add(Some("localhost/a:1"), descriptor);
        fails(&mut make(at, &format!("oci:{}", layout.path.display())), 2, part);
    }
}
