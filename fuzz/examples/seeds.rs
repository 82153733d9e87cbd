//! Writes seeds for every target below the directory that is named: see `fuzz/seed`.

#![allow(dead_code, reason = "the tests' generators do more than is needed here")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use prepull::compression::SizeLimit;
use prepull::digest::Digest;
use prepull::segment::convert::{Job, convert};
use prepull::segment::file::{Facts, Segment};
use prepull::segment::place::{Slot, Turns};
use prepull::source::Descriptor;
use prepull_fuzz::{SEPARATOR, empty_file, scratch};

#[path = "../../tests/it/corpus/mod.rs"]
mod corpus;
#[path = "../../tests/it/made.rs"]
mod made;
#[path = "../../tests/it/raw.rs"]
mod raw;

/// The largest seed, in bytes.
const MOST: usize = 16 << 10;

struct Seeds(PathBuf);

impl Seeds {
    /// A seed of `choice` and `parts`.
    fn add(&self, target: &str, choice: u8, parts: &[&[u8]]) {
        let mut bytes = vec![choice];
        bytes.extend(parts.join(&SEPARATOR));
        if bytes.len() > MOST {
            return;
        }
        let directory = self.0.join(target);
        fs_err::create_dir_all(&directory).expect("a directory");
        fs_err::write(directory.join(&Digest::of(&bytes).hex()[..16]), bytes).expect("a seed");
    }

    /// Each text of a file's unit tests with each choice.
    fn texts(&self, target: &str, choices: &[u8], source: &str, before: &[&[u8]]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src").join(source);
        for text in literals(&fs_err::read_to_string(path).expect("a source file")) {
            for choice in choices {
                self.add(target, *choice, &[before, &[text.as_bytes()]].concat());
            }
        }
    }
}

/// The string literals of Rust code; good enough for seeds.
fn literals(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some(at) = rest.find('"') {
        let is_raw = rest[..at].ends_with("r#");
        rest = &rest[at + 1..];
        let mut end = 0;
        if is_raw {
            end = rest.find("\"#").unwrap_or(rest.len());
        } else {
            let mut escaped = false;
            for (at, char) in rest.char_indices() {
                if char == '"' && !escaped {
                    end = at;
                    break;
                }
                escaped = char == '\\' && !escaped;
            }
        }
        let text = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        let unescaped = text.replace("\\\"", "\"").replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t");
        found.insert(if is_raw { text.to_owned() } else { unescaped.replace("\\0", "\0").replace("\\\\", "\\") });
    }
    found
}

fn main() {
    let seeds = Seeds(PathBuf::from(std::env::args().nth(1).expect("a directory")));
    layers(&seeds);
    exchanges(&seeds);
    images(&seeds);
    let registry: [(&[u8], &str); 5] =
        [(&[0], "challenge.rs"), (&[1], "header.rs"), (&[2], "url.rs"), (&[3], "token.rs"), (&[4], "error.rs")];
    for (choices, file) in registry {
        seeds.texts(
            "registry",
            choices,
            &format!("registry/{file}"),
            if choices == [2] { &[b"https://host:5000/v2/a/b?c=d"] } else { &[] },
        );
    }
    let times =
        b"\x30\x26\x30\x24\xa0\x03\x02\x01\x02\x02\x01\x01\x30\x00\x30\x00\x30\x16\x17\x0d260101000000Z\x18\x05abcde";
    seeds.add("registry", 5, &[times]);
    for file in ["reference.rs", "reference/item.rs", "reference/list.rs", "image/platform.rs"] {
        seeds.texts("reference", &[0, 1], file, &[]);
    }
    seeds.texts("config", &[0, 3, 4], "config/auth_tests.rs", &[b"quay.io/a/b"]);
    seeds.texts("config", &[4], "config/auth_tests.rs", &[]);
    seeds.texts("config", &[6], "registry/proxy.rs", &[b"localhost:5000", b"a/b", b"proxy:3128", b""]);
    seeds.texts("config", &[6], "registry/proxy.rs", &[b"docker.io", b"library/a"]);
    seeds.add("config", 4, &[br#"{"ServerURL":"https://a","Username":"<token>","Secret":"s"}"#]);
    seeds.add("config", 5, &[CERTIFICATE, CERTIFICATE, KEY]);
    seeds.add("config", 0x85, &[CERTIFICATE]);
    seeds.add("config", 7, &["a\u{1b}[31m\r\nb\u{202e}".as_bytes()]);
    seeds.texts("text", &[3], "storage/record.rs", &[]);
    seeds.texts("text", &[3], "image/config.rs", &[]);
    seeds.texts("text", &[2], "json/read.rs", &[b"size"]);
    seeds.texts("go_types", &[0, 1, 2, 3], "go_types/tests.rs", &[]);
    seeds.texts("text", &[4], "cli/cache.rs", &[]);
    for words in [
        "make\0-o\0-\0--platform\0linux/arm/v7\0a:1",
        "cache\0prune\0--all",
        "ls\0--json\0x",
        "make\0--retry-times=3\0--tls-verify=false\0--creds\0a:b\0x:1",
    ] {
        seeds.add("text", 5, &[words.as_bytes()]);
    }
    let acl: Vec<u8> =
        [(1u16, 6u16, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (0x10, 5, u32::MAX), (0x20, 0, u32::MAX)]
            .iter()
            .flat_map(|(tag, perm, id)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat())
            .collect();
    seeds.add("text", 0, &[&[&[1, 0o55][..], &2u32.to_le_bytes(), &acl].concat()]);
    seeds.texts("store", &[1], "inspect/list.rs", &[]);
    let records = [
        (&br#"[{"id":"i","digest":"sha256:d","names":["h:5000/a:1","b@sha256:e"],"layer":"l2","big-data-names":["a"],"big-data-sizes":{"a":1},"created":"x"}]"#[..]),
        br#"[{"id":"l1","diff-digest":"sha256:1","diff-size":100},{"id":"l2","parent":"l1","diff-digest":"sha256:2"}]"#,
    ];
    seeds.add("store", 1, &records);
    let store = made::tar(&[
        ("var/lib/s/overlay-images/images.json", records[0]),
        ("var/lib/s/overlay-layers/layers.json", records[1]),
        ("var/lib/s/overlay-images/images.lock", b""),
        ("b/vfs-images/images.json", b"null"),
    ]);
    seeds.add("store", 0, &[&store]);
    seeds.add("store", 0x90, &[&made::gzip(&store)]);
    requests(&seeds);
}

/// What the kernel sends to `mount`: one request, and steps of the target's own.
fn requests(seeds: &Seeds) {
    use prepull_fuzz::fuse::{name, opcode, range, request, xattr};
    let bodies = [
        (opcode::LOOKUP, name(b"overlay")),
        (opcode::GETATTR, vec![0; 16]),
        (opcode::READLINK, vec![]),
        (opcode::READ, range(1, 4096)),
        (opcode::READDIR, range(0, 4096)),
        (opcode::READDIRPLUS, range(2, 4096)),
        (opcode::GETXATTR, xattr(100, b"user.a")),
        (opcode::LISTXATTR, xattr(0, b"")),
        (opcode::STATFS, vec![]),
        // INIT, FORGET, OPEN.
        (26, [7_u32, 41, 1 << 17, u32::MAX, u32::MAX].into_iter().flat_map(u32::to_ne_bytes).collect()),
        (2, vec![0; 8]),
        (14, vec![0; 8]),
    ];
    for (opcode, body) in bodies {
        let request = request(opcode, 1, 1000, &body);
        seeds.add("fuse", 0, &[&request]);
        seeds.add("fuse", 1, &[&request]);
    }
    // Everything with nodes from all over: a name, attributes, a target, content near both ends and behind them, directories.
    let steps = |node: u8| {
        let steps = [
            [0, node, 0, 2, 0, 0, 0],
            [2, node, 0, 0, 0, 0, 0],
            [3, node, 0, 0, 0, 0, 0],
            [4, node, 0, 100, 0, 0x80, 4],
            [5, node, 0, 0xff, 0xff, 0x80, 0x1f],
            [6, node, 0, 0, 0, 0x60, 0],
            [7, node, 0, 5, 0, 0xb9, 0],
            [8, node, 0, 6, 0, 0x40, 0],
            [9, node, 0, 0, 0, 0x40, 0x40],
            [10, node, 0, 0, 0, 0x60, 0],
        ];
        steps.concat()
    };
    for node in (0..=255).step_by(5) {
        seeds.add("fuse", 2 | node & 1, &[&steps(node)]);
    }
}

/// Layers: for their readers, and for the segments that they become.
fn layers(seeds: &Seeds) {
    for (number, layer) in corpus::all().into_iter().flat_map(|case| case.layers).enumerate() {
        let choice = (number % 5) as u8;
        // With the checksum that it has, where that matters.
        let mut fixed = layer.tar.clone();
        prepull_fuzz::fix_checksums(&mut fixed);
        let raw = if fixed == layer.tar { 0 } else { 0x80 };
        seeds.add("tar", raw | 3, &[&layer.tar]);
        seeds.add("layer", raw | choice, &[&layer.tar]);
        if layer.blob != layer.tar || number % 50 == 0 {
            seeds.add("inflate", choice << 3, &[&layer.blob]);
            seeds.add("inflate", choice << 3 | 2 | (number % 6) as u8, &[&layer.tar]);
        }
        if number % 8 == 0 {
            segment(seeds, &layer.tar);
        }
    }
}

fn segment(seeds: &Seeds, tar: &[u8]) {
    let descriptor = Descriptor { media_type: String::new(), digest: Digest::of(tar), size: tar.len() as u64 };
    let key = Digest::of(b"key");
    let slot = Slot::none();
    let job = Job {
        descriptor: &descriptor,
        diff_id: descriptor.digest,
        prefix: b"s/",
        key,
        scratch: scratch(),
        slot: &slot,
        limit: SizeLimit::none(),
    };
    let files = std::cell::RefCell::new(Vec::new());
    let new_file = || {
        let file = empty_file()?;
        files.borrow_mut().push(file.try_clone()?);
        Ok(file)
    };
    let blob = std::io::Cursor::new(tar.to_vec());
    if convert(Box::new(blob), &job, Turns::unlimited().ticket(), &new_file).is_err() {
        return;
    }
    let mut file = files.borrow_mut().pop().expect("a file");
    let segment = Segment::open(file.try_clone().expect("a file"), &key, |_| Ok(None)).expect("a segment");
    let index = segment.index().expect("an index").encode();
    let facts: Facts = segment.facts().clone();
    let facts = serde_json::to_vec(&facts).expect("JSON");
    seeds.add("segment", 0, &[&index]);
    scenes(seeds, &index);
    seeds.add("segment", 1, &[&facts, &index, b"split", b"body"]);
    seeds.add("segment", 3, &[&[&[1, 2, 3, 4][..], b"warning"].concat(), b"split", b"body"]);
    seeds.add("segment", 4, &[&[&[1, 1, 1, 3][..], &tar[..tar.len().min(4096)]].concat()]);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("memory");
    file.read_to_end(&mut bytes).expect("memory");
    seeds.add("segment", 2, &[&bytes]);
}

/// One layer with this index, as `mount` shows it.
fn scenes(seeds: &Seeds, index: &[u8]) {
    let mut small = raw::archive(&[
        raw::dir("g").mode(0o700),
        raw::dir("g/overlay").xattr("user.b", "1").xattr("user.a", "2"),
        raw::dir("g/overlay/l"),
        raw::dir("g/overlay/l/diff"),
        raw::file("g/overlay/l/link"),
        raw::sym("g/overlay/s", "../l/diff"),
    ]);
    seeds.add("scene", 1, &[b"new\na/b", &small, index]);
    seeds.add("scene", 2, &[b"", &small, index]);
    let text = serde_json::json!({
        "generation": 1, "images": [], "tar": "t", "graphroot": "g", "stamp": 1, "marks_opaque": true,
        "layers": [{
            "id": "l", "slot": 5, "whiteouts": ["bmV3"],
            "tree": {"Tar": {"index": small.len(), "length": index.len()}},
            "root": {
                "mode": 0o755, "uid": 0, "gid": 0, "mtime": {"seconds": 1, "nanoseconds": 5}, "xattrs": [[[117, 46, 97], [49]]],
            },
        }],
    });
    small.extend_from_slice(index);
    seeds.add("scene", 0, &[text.to_string().as_bytes(), &small, b"content"]);
}

/// What a registry answers to a client that wants a manifest and a blob; first to its `GET /v2/`.
fn exchanges(seeds: &Seeds) {
    let ok = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: application/json; a=b\r\n\r\n{body}");
    let with = |status: &str, field: &str| format!("HTTP/1.1 {status}\r\n{field}\r\nContent-Length: 0\r\n\r\n");
    let bearer = r#"WWW-Authenticate: Bearer realm="http://auth.test/token?x=y",service="s""#;
    let part = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/100\r\n\r\nefghij".to_owned();
    let cases = [
        vec![ok("{}"), ok("{\"a\":1}"), ok("abcd"), part.clone(), ok("abcdefghijkl")],
        vec![with("401 Unauthorized", bearer), ok(r#"{"token":"t","expires_in":300}"#), ok("{}"), ok("abcd")],
        vec![with("401 Unauthorized", "WWW-Authenticate: Basic realm=x"), ok("{}"), ok("abcd")],
        vec![ok("{}"), with("401 Unauthorized", bearer), ok(r#"{"access_token":"t"}"#), ok("{}"), ok("abcd"), part],
        vec![
            ok("{}"),
            with("307 Temporary Redirect", "Location: http://cdn.test/x?sig=1"),
            ok("{}"),
            with("302 Found", "Location: ../y"),
            ok("a"),
        ],
        vec![ok("{}"), with("429 Too Many Requests", "Retry-After: 5"), with("404 Not Found", "X: y")],
        vec![
            ok(""),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
            with("200 OK", "Content-Encoding: gzip"),
        ],
    ];
    for answers in &cases {
        let answers: Vec<&[u8]> = answers.iter().map(String::as_bytes).collect();
        for choice in [0, 1, 3] {
            seeds.add("http", choice, &answers);
        }
    }
}

/// Images in all their wrappings.
fn images(seeds: &Seeds) {
    let hello = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/images/hello/blobs/sha256");
    for blob in fs_err::read_dir(hello).expect("tests/images/hello") {
        let bytes = fs_err::read(blob.expect("a blob").path()).expect("a blob");
        if bytes.starts_with(b"{") {
            seeds.add("image", 0, &[&bytes]);
            (0..3).for_each(|choice| seeds.add("go_types", choice, &[&bytes]));
            seeds.add("image", 1, &[b"{}", &bytes]);
        } else {
            seeds.add("inflate", 0, &[&bytes]);
        }
    }
    let layer = made::tar(&[("a", b"b")]);
    let config = made::config("amd64", std::slice::from_ref(&layer));
    let digest = Digest::of(&layer);
    let size = layer.len();
    let manifest = |kind: &str, config: &str, layer: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"{config}","digest":"@D","size":@S}},"layers":[{{"mediaType":"{layer}","digest":"{digest}","size":{size}}}]}}"#
        )
    };
    use prepull::media_type as media;
    let oci = manifest(media::OCI_MANIFEST, media::OCI_CONFIG, media::OCI_LAYERS[1]);
    let docker = manifest(media::DOCKER_MANIFEST, media::DOCKER_CONFIG, media::DOCKER_LAYER);
    let index = |kind: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{{"mediaType":"{}","digest":"@D","size":@S,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}},"annotations":{{"io.github.containers.compression.zstd":"true"}}}},{{"digest":"@D","size":@S,"platform":{{"os":"linux","architecture":"amd64"}}}},{{"digest":"@D"}}]}}"#,
            media::OCI_MANIFEST
        )
    };
    for (choice, manifest) in [(0, &oci), (1, &docker)] {
        seeds.add("image", choice, &[&config, manifest.as_bytes()]);
        for kind in [media::OCI_INDEX, media::DOCKER_LIST] {
            seeds.add("image", choice | 0x20, &[&config, manifest.as_bytes(), index(kind).as_bytes()]);
        }
    }
    seeds.texts("image", &[0], "image/tests.rs", &[]);
    seeds.texts("image", &[0], "image/tests.rs", &[&config]);

    let saved = made::tar(&[
        ("manifest.json", br#"[{"Config":"c.json","RepoTags":["localhost/a:1"],"Layers":["l/layer.tar"]},{"Config":"c.json","RepoTags":null,"Layers":["./l/layer.tar"]}]"#),
        ("c.json", &config),
        ("l/layer.tar", &layer),
    ]);
    let single = made::tar(&[
        ("manifest.json", br#"[{"Config":"c.json","RepoTags":["localhost/a:1"],"Layers":["l/layer.tar"]}]"#),
        ("c.json", &config),
        ("l/layer.tar", &made::gzip(&layer)),
    ]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = oci.replace("@D", &Digest::of(&config).to_string()).replace("@S", &config.len().to_string());
    let entry = format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"localhost/a:1","io.containerd.image.name":"localhost/b:2"}}}}"#,
        media::OCI_MANIFEST,
        Digest::of(manifest.as_bytes()),
        manifest.len()
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry},{entry}]}}"#);
    let layout = made::tar(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        (&blob(&config), &config),
        (&blob(&layer), &layer),
    ]);
    for choice in [0x00, 0x20, 0x30, 0x0c, 0x08] {
        seeds.add("archive", choice, &[&saved]);
        seeds.add("archive", choice, &[&single]);
        seeds.add("archive", choice | 2, &[&layout]);
        let answer = [&b"HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\n\r\n"[..], &single].concat();
        seeds.add("archive", choice | 3, &[&answer]);
    }
    // "hello" as xz -0 and bzip2 write it.
    seeds.add("inflate", 0, &[b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x0c\x00\x00\x00\x8f\x98\x41\x9c\x01\x00\x04\x68\x65\x6c\x6c\x6f\x00\x00\x00\x00\xb1\x37\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8\x2d\x80\xaf\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a"]);
    seeds.add("inflate", 0, &[b"\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\x19\x31\x65\x3d\x00\x00\x00\x81\x00\x02\x44\xa0\x00\x21\x9a\x68\x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80"]);
    seeds.add("archive", 3, &[b"HTTP/1.0 404 Not Found\r\nContent-Length: 20\r\n\r\n{\"message\":\"no such\"}"]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&saved).expect("memory");
    seeds.add("archive", 0x80, &[&gzip.finish().expect("memory")]);
    for case in corpus::all().iter().flat_map(|case| &case.layers).step_by(10) {
        seeds.add("archive", 0, &[&case.tar]);
    }
}

const CERTIFICATE: &[u8] = include_bytes!("localhost.pem");
/// In the form of one; no secret may be kept here, not even nobody's.
const KEY: &[u8] =
    b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n";
