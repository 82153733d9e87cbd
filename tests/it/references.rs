//! skopeo writes the name it was given, normalised, into a docker archive: so it can be asked about any name.

use std::path::Path;

use prepull::reference::Reference;

use crate::made::{Layout, layers, skopeo};

/// What skopeo makes of a name: the normal form, or `None` when it refuses.
fn ask_skopeo(directory: &Path, name: &str) -> Option<String> {
    let out = directory.join("out.tar");
    let _ = fs_err::remove_file(&out);
    let output = skopeo(directory, &["copy", "--quiet", "oci:layout", &format!("docker-archive:out.tar:{name}")]);
    if !output.status.success() {
        return None;
    }
    let mut archive = tar::Archive::new(fs_err::File::open(&out).unwrap());
    let manifest =
        archive.entries().unwrap().map(Result::unwrap).find(|entry| &*entry.path_bytes() == b"manifest.json");
    let manifest: serde_json::Value = serde_json::from_reader(manifest.unwrap()).unwrap();
    Some(manifest[0]["RepoTags"][0].as_str().unwrap().to_owned())
}

#[test]
fn names_are_normalised_as_skopeo_does() {
    let scratch = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(scratch.path().join("layout"));
    let descriptor = layout.image("amd64", &layers()[..1]);
    layout.add(None, descriptor);
    let hex = "ab".repeat(32);
    let long = |length: usize| format!("localhost/{}:1", "a".repeat(length - "localhost/".len()));
    let longest_tag = "t".repeat(128);
    for name in [
        "alpine",
        "alpine:3",
        "library/alpine:3",
        "docker.io/alpine:3",
        "index.docker.io/alpine:3",
        "index.docker.io/a/b:3",
        "docker.io/a/b/c:3",
        "localhost/x:1",
        "localhost:5000/x",
        "localhost:5000",
        "localhost",
        "host:x",
        "a.b",
        "a.b/c",
        "a:b/c",
        "a:1/c:2",
        "my_host/x:1",
        "my_host.x/y:1",
        "my__host.x/y",
        "-host.x/y",
        "host-.x/y",
        "h-o--st.x/y",
        "a__b",
        "a___b",
        "a_b",
        "a.b_c-d",
        "a--b",
        "a-.b",
        "a..b",
        "a._b",
        "_a",
        "a_",
        "a-",
        "-a",
        "a/-b",
        "a//b",
        "a/",
        "/a",
        "Foo",
        "ghcr.io/Foo",
        "foo/Bar",
        "GHCR.io/foo",
        "x:_t",
        "x:.t",
        "x:-t",
        "x:T.t-t_t",
        "x:",
        ":t",
        "x:t:t",
        "x@t",
        "1.2.3.4/x",
        "1.2.3.4:80/x:1",
        "xn--n3h.com/x",
        "\u{e4}",
        "a/\u{e4}",
        "x:\u{e4}",
        "a b",
        "a:b c",
        " a",
        "a ",
        "a\n",
        "http://a/b",
        "docker.io/library",
        "docker.io",
        "docker.io/",
        "docker.io//x",
        "docker.io:443/x",
        "localhost:/x",
        "localhost:0x/y",
        "a.b.:1/x",
        ".a/x",
        "a/b.c:1/d",
        &hex,
        &hex[1..],
        &format!("a/{hex}"),
        &format!("{hex}:1"),
        &long(255),
        &long(256),
        &format!("x:{longest_tag}"),
        &format!("x:{longest_tag}t"),
    ] {
        let ours = Reference::parse_or_latest(name).ok().map(|reference| reference.to_string());
        assert_eq!(ours, ask_skopeo(scratch.path(), name), "{name:?}");
        assert!(Reference::parse_or_latest(name).map_or(true, |reference| reference.is_storable()), "{name:?}");
    }
    // Where distribution/reference has gone further than containers/image: hosts in upper case and IPv6 addresses.
    for name in ["Foo/bar:1", "[::1]:5000/x:1"] {
        assert!(!Reference::parse(name).unwrap().is_storable(), "{name:?}");
        assert_eq!(ask_skopeo(scratch.path(), name), None, "{name:?}");
    }
}
