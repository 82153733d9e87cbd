//! Index, manifest and config: who gets an image has what the digests say, and `ls` understands what is recorded of it.
#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::fuzz_target;
use prepull::digest::Digest;
use prepull::go_types::{go_time, seconds_since_epoch};
use prepull::image::{Image, LAYERS_MAX, Platform};
use prepull::inspect::find::Found;
use prepull::inspect::list::list;
use prepull::json;
use prepull::source::{Descriptor, Error, ImageSource, RawManifest};
use prepull::storage::record::StoreImage;
use prepull_fuzz::{choice, parts};

#[derive(Debug)]
struct Source {
    top: RawManifest,
    manifest: RawManifest,
    config: Vec<u8>,
}

impl ImageSource for Source {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        Ok(if instance.is_some() { self.manifest.clone() } else { self.top.clone() })
    }

    fn blob(&self, _: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(Cursor::new(self.config.clone())))
    }

    fn names(&self) -> Vec<prepull::reference::Reference> {
        Vec::new()
    }
}

/// Puts the digest (`@D`) and the size (`@S`) of what is described where the input says so.
fn describe(text: &[u8], described: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    text.replace("@D", &Digest::of(described).to_string()).replace("@S", &described.len().to_string()).into_bytes()
}

const MEDIA_TYPES: [Option<&str>; 5] = [
    None,
    Some(prepull::media_type::OCI_MANIFEST),
    Some(prepull::media_type::OCI_INDEX),
    Some(prepull::media_type::DOCKER_MANIFEST),
    Some("text/plain"),
];

const PLATFORMS: [&str; 4] = ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm"];

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let [config, manifest, index] = parts(rest);
    let manifest = describe(manifest, config);
    let media_type = MEDIA_TYPES[usize::from(choice & 0xf) % MEDIA_TYPES.len()].map(str::to_owned);
    let manifest = RawManifest { media_type: media_type.clone(), bytes: manifest };
    let top = if index.is_empty() {
        manifest.clone()
    } else {
        RawManifest { media_type, bytes: describe(index, &manifest.bytes) }
    };
    let platform: Platform = PLATFORMS[usize::from(choice >> 4) % PLATFORMS.len()].parse().expect("a platform");
    let source = Source { top: top.clone(), manifest: manifest.clone(), config: config.to_vec() };
    let opened = Image::open(&source, None, &platform);
    let pinned = Image::open(&source, Some(top.digest()), &platform);
    match (&opened, &pinned) {
        (Ok(_), Ok(_)) => {}
        (Err(opened), Err(pinned)) => assert_eq!(opened.to_string(), pinned.to_string()),
        _ => panic!("the right digest makes a difference"),
    }
    assert!(Image::open(&source, Some(Digest::of(b"another")), &platform).is_err());
    if let Ok(image) = opened {
        check(&image, &source);
    }
});

fn check(image: &Image, source: &Source) {
    assert_eq!(image.id(), Digest::of(image.config()));
    assert_eq!(image.config(), source.config);
    assert_eq!(image.manifest_digest(), image.manifest().digest());
    assert_eq!(image.digest(), source.top.digest());
    assert!(image.layers().len() <= LAYERS_MAX);
    assert_eq!(image.chain_ids().len(), image.layers().len());
    let created = image.created().and_then(|created| {
        let written = go_time(created)?;
        assert_eq!(go_time(&written).as_ref(), Some(&written), "{created}");
        assert_eq!(seconds_since_epoch(&written), seconds_since_epoch(created), "{created}");
        Some(written)
    });
    let mut stored = StoreImage::new(image);
    stored.add_name("localhost/a:1".to_owned());
    stored.merge(image);
    let stamp = "2024-01-02T03:04:05Z";
    let images = json::write::to_vec(&[stored.record(stamp)]).expect("a record is JSON");
    let found = Found { graphroot: "s".into(), driver: "overlay".into(), images, ..Found::default() };
    let listed = list(&[found]).expect("ls understands what make writes");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, image.id().hex());
    assert_eq!(listed[0].repo_tags, ["localhost/a:1"]);
    assert_eq!(listed[0].repo_digests, [format!("localhost/a@{}", image.digest())]);
    assert_eq!(listed[0].created, created.unwrap_or_else(|| stamp.to_owned()));
    assert_eq!(listed[0].layers, usize::from(!image.layers().is_empty()));
}
