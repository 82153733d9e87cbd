//! Images made by hand, good ones and ones that lie.

use std::collections::HashMap;
use std::io::Cursor;

use super::*;
use crate::media_type::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;

/// Blobs and manifests by digest.
#[derive(Debug, Default)]
struct Fake {
    top: Vec<u8>,
    media_type: Option<String>,
    blobs: HashMap<Digest, Vec<u8>>,
}

impl ImageSource for Fake {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, source::Error> {
        let Some(digest) = instance else {
            return Ok(RawManifest { media_type: self.media_type.clone(), bytes: self.top.clone() });
        };
        let missing = || source::Error::NotFound(format!("no manifest {digest}"));
        Ok(RawManifest { media_type: None, bytes: self.blobs.get(digest).cloned().ok_or_else(missing)? })
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, source::Error> {
        let missing = || source::Error::NotFound(format!("no blob {}", blob.digest));
        Ok(Box::new(Cursor::new(self.blobs.get(&blob.digest).cloned().ok_or_else(missing)?)))
    }

    fn names(&self) -> Vec<Reference> {
        Vec::new()
    }
}

impl Fake {
    fn put(&mut self, bytes: &[u8]) -> (Digest, usize) {
        self.blobs.insert(Digest::of(bytes), bytes.to_vec());
        (Digest::of(bytes), bytes.len())
    }

    fn descriptor(&mut self, media_type: &str, bytes: &[u8]) -> String {
        let (digest, size) = self.put(bytes);
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
    }

    fn open(&self) -> Result<Image, Error> {
        Image::open(self, None, &"linux/amd64".parse().unwrap())
    }
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn config(architecture: &str, diff_ids: usize) -> Vec<u8> {
    let diff_ids: Vec<String> = (0..diff_ids).map(|at| format!("\"{}\"", Digest::of(&[at as u8]))).collect();
    format!(
        r#"{{"created":"2024-01-02T03:04:05+02:00","os":"linux","architecture":"{architecture}","rootfs":{{"diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
    .into_bytes()
}

fn manifest(fake: &mut Fake, config: &[u8], layer: &str, layers: usize) -> String {
    let config = fake.descriptor(OCI_CONFIG, config);
    let layers: Vec<String> = (0..layers)
        .map(|at| format!(r#"{{"mediaType":"{layer}","digest":"{}","size":7}}"#, Digest::of(&[at as u8, 1])))
        .collect();
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","))
}

fn single(layers: usize) -> Fake {
    let mut fake = Fake::default();
    fake.top = manifest(&mut fake, &config("amd64", layers), LAYER, layers).into_bytes();
    fake
}

#[track_caller]
fn refused(fake: &Fake, part: &str) {
    let error = fake.open().expect_err("it was accepted").to_string();
    assert!(error.contains(part) && !error.contains('\n'), "{error}");
}

#[test]
fn an_image_is_opened_and_verified() {
    let fake = single(3);
    let image = fake.open().unwrap();
    assert_eq!(image.manifest_digest(), Digest::of(&fake.top));
    assert_eq!((image.index(), image.index_digest()), (None, None));
    assert_eq!(image.digest(), image.manifest_digest());
    assert_eq!(image.manifest().bytes, fake.top);
    assert_eq!(image.id(), Digest::of(image.config()));
    assert_eq!(image.created(), Some("2024-01-02T03:04:05+02:00"));
    assert_eq!(image.platform().to_string(), "linux/amd64");
    let diff_ids: Vec<Digest> = image.layers().iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, [Digest::of(&[0]), Digest::of(&[1]), Digest::of(&[2])]);
    assert_eq!(image.layers()[1].descriptor.digest, Digest::of(&[1, 1]));
    assert!(Image::open(&fake, Some(image.manifest_digest()), &Platform::host()).is_ok());
    let error = Image::open(&fake, Some(Digest::of(b"other")), &Platform::host()).unwrap_err().to_string();
    assert!(error.contains("expected sha256:"), "{error}");
    assert_eq!(single(0).open().unwrap().layers(), []);
}

#[test]
fn chain_ids_are_those_of_containers_storage() {
    let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
    let ab = Digest::of(format!("{}+{}", a.hex(), b.hex()).as_bytes());
    let abc = Digest::of(format!("{}+{}", ab.hex(), c.hex()).as_bytes());
    assert_eq!(chain_ids(&[a, b, c]), [a, ab, abc]);
    assert_eq!(chain_ids(&[]), []);
}

#[test]
fn the_manifest_for_the_platform_is_chosen() {
    for index_type in [OCI_INDEX, DOCKER_LIST] {
        let mut fake = Fake { media_type: Some(index_type.to_owned()), ..Fake::default() };
        let mut entries = vec![
            r#"{"mediaType":"x","digest":"md5:1","size":1,"platform":{"os":"unknown","architecture":"unknown"}}"#
                .to_owned(),
        ];
        for (platform, variant) in [("arm64", "v8"), ("amd64", ""), ("arm", "v6"), ("arm", "v7"), ("amd64", "")] {
            let body = manifest(&mut fake, &config(platform, 1), LAYER, 1) + &" ".repeat(entries.len());
            let (digest, size) = fake.put(body.as_bytes());
            entries.push(format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{platform}","variant":"{variant}"}}}}"#
            ));
        }
        fake.top = format!(r#"{{"schemaVersion":2,"mediaType":"{index_type}","manifests":[{}]}}"#, entries.join(","))
            .into_bytes();
        for (wanted, entry) in
            [("linux/amd64", 2), ("linux/arm64", 1), ("linux/arm/v7", 4), ("linux/arm/v6", 3), ("linux/arm", 4)]
        {
            let image = Image::open(&fake, Some(Digest::of(&fake.top)), &wanted.parse().unwrap()).unwrap();
            assert!(entries[entry].contains(&image.manifest_digest().to_string()), "{wanted}");
            assert_eq!(image.index_digest(), Some(Digest::of(&fake.top)));
            assert_eq!(image.digest(), Digest::of(&fake.top));
        }
        let error = Image::open(&fake, None, &"linux/s390x".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8, linux/amd64, linux/arm/v6") && !error.contains("unknown"), "{error}");
        // The chosen manifest's bytes are not what the index says.
        let broken = Fake { blobs: fake.blobs.keys().map(|digest| (*digest, b"{}".to_vec())).collect(), ..fake };
        refused(&broken, "expected sha256:");
    }
}

#[test]
fn zstd_is_preferred_and_an_entry_without_platform_comes_last() {
    let mut fake = Fake::default();
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    let mut entries = Vec::new();
    for extra in
        ["", platform, &format!(r#"{platform},"annotations":{{"io.github.containers.compression.zstd":"true"}}"#)]
    {
        let body = manifest(&mut fake, &config("amd64", 1), LAYER, 1) + &" ".repeat(entries.len());
        let (digest, size) = fake.put(body.as_bytes());
        entries.push((digest, format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size}{extra}}}"#)));
    }
    for (count, chosen) in [(1, 0), (2, 1), (3, 2)] {
        let list: Vec<&str> = entries[..count].iter().map(|(_, entry)| entry.as_str()).collect();
        fake.top = format!(r#"{{"manifests":[{}]}}"#, list.join(",")).into_bytes();
        assert_eq!(fake.open().unwrap().manifest_digest(), entries[chosen].0, "{count}");
    }
}

#[test]
fn indexes_in_indexes_are_followed_to_a_limit() {
    let mut fake = Fake::default();
    let mut top = manifest(&mut fake, &config("amd64", 1), LAYER, 1);
    let mut media_type = OCI_MANIFEST;
    for depth in 1..=INDEXES_MAX + 1 {
        let entry = fake.descriptor(media_type, top.as_bytes());
        top = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[{entry}]}}"#);
        media_type = OCI_INDEX;
        fake.top = top.clone().into_bytes();
        if depth > INDEXES_MAX {
            refused(&fake, "more than 4 indexes within each other");
        } else {
            assert_eq!(fake.open().unwrap().index().unwrap().bytes, top.as_bytes(), "{depth}");
        }
    }
    fake.top = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":null}}"#).into_bytes();
    refused(&fake, "there are: none");
}

#[test]
fn docker_manifests_are_understood() {
    let mut fake = Fake::default();
    let config = fake.descriptor(DOCKER_CONFIG, &config("arm64", 1));
    let layer = format!(r#"{{"mediaType":"{DOCKER_LAYER}","digest":"{}","size":7}}"#, Digest::of(b"l"));
    fake.top =
        format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","CONFIG":{config},"Layers":[{layer}],"x":1}}"#)
            .into_bytes();
    assert_eq!(fake.open().unwrap().platform().to_string(), "linux/arm64");
    fake.top = String::from_utf8(fake.top).unwrap().replace(DOCKER_LAYER, LAYER).into_bytes();
    refused(&fake, "layer 1 of 1: media type \"application/vnd.oci.image.layer.v1.tar+gzip\"");
}

#[test]
fn other_things_than_images_are_refused_by_name() {
    let mut table: Vec<(String, &str)> = vec![
        (String::new(), "not JSON"),
        ("garbage".into(), "not JSON"),
        ("[]".into(), "not an object"),
        ("{}".into(), "no media type"),
        ("[".repeat(50_000), "not JSON"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "schema 1"),
        (r#"{"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#.into(), "schema 1"),
        (r#"{"mediaType":"application/vnd.foo"}"#.into(), "application/vnd.foo is not"),
        (r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"}}"#.into(), "helm"),
        (r#"{"config":{},"manifests":[]}"#.into(), "ambiguous"),
        (format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[],"layers":[]}}"#), "ambiguous"),
        (format!(r#"{{"mediaType":"{OCI_MANIFEST}"}}"#), "no config"),
        (format!(r#"{{"config":{{"mediaType":"{DOCKER_CONFIG}"}}}}"#), "without `mediaType`"),
        (format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{DOCKER_CONFIG}"}}}}"#), "artifact"),
        (
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"../x"}}}}"#),
            "its config",
        ),
        (
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"sha512:ab"}}}}"#),
            "sha256",
        ),
    ];
    table.push((format!("{}{{}}", " ".repeat(4 << 20)), "at most 4194304"));
    for (bytes, part) in table {
        refused(&Fake { top: bytes.into_bytes(), ..Fake::default() }, part);
    }
}

#[test]
fn layers_that_cannot_be_read_are_refused_by_name() {
    for (media_type, part) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "decrypt"),
        ("application/vnd.in-toto+json", "layer 1 of 2: media type \"application/vnd.in-toto+json\""),
        ("", "media type \"\""),
    ] {
        let mut fake = Fake::default();
        fake.top = manifest(&mut fake, &config("amd64", 2), media_type, 2).into_bytes();
        refused(&fake, part);
    }
}

#[test]
fn configs_that_do_not_fit_are_refused() {
    let mut fake = Fake::default();
    for (layers, config, part) in [
        (1, config("amd64", 2), "2 rootfs.diff_ids, but the manifest has 1 layers"),
        (2, config("amd64", 1), "1 rootfs.diff_ids, but the manifest has 2 layers"),
        (0, b"garbage".to_vec(), "not JSON"),
        (1, br#"{"rootfs":{"diff_ids":["sha256:1"]}}"#.to_vec(), "diff_ids"),
        (1, br#"{"rootfs":{"diff_ids":[null]}}"#.to_vec(), "not a string"),
        (0, br#"{"created":""}"#.to_vec(), "`created` is the string \"\", not a time"),
        (1, br#"{"rootfs":[]}"#.to_vec(), "not an object"),
        (1, vec![b' '; (4 << 20) + 1], "at most 4194304"),
        (501, config("amd64", 501), "501 layers"),
    ] {
        fake.top = manifest(&mut fake, &config, LAYER, layers).into_bytes();
        refused(&fake, part);
    }
    for config in [&b"{}"[..], b"null", br#"{"created":null,"rootfs":null,"os":null,"rootfs":{"diff_ids":null}}"#] {
        fake.top = manifest(&mut fake, config, LAYER, 0).into_bytes();
        assert_eq!(fake.open().unwrap().created(), None);
    }
}

#[test]
fn a_config_that_is_not_what_its_descriptor_says_is_refused() {
    let good = single(1);
    let id = good.open().unwrap().id();
    for (bytes, part) in [(b"{}".to_vec(), "truncated"), (vec![b'x'; 1 << 23], "longer")] {
        let fake = Fake { blobs: HashMap::from([(id, bytes)]), top: good.top.clone(), media_type: None };
        refused(&fake, part);
    }
    let mut flipped = good.blobs[&id].clone();
    flipped[0] ^= 1;
    refused(
        &Fake { blobs: HashMap::from([(id, flipped)]), top: good.top.clone(), media_type: None },
        "digest mismatch",
    );
    refused(&Fake { top: good.top, ..Fake::default() }, "no blob");
}
