use super::*;

fn parse(lines: &str) -> Result<Vec<Allow>, String> {
    Policy::parse(lines).map(|policy| policy.allow).map_err(|error| error.to_string())
}

#[test]
fn a_short_entry_has_defaults() {
    let allow = parse("[[allow]]\nuser = 'alice'\nroot = '/srv/vm1'\nkind = 'storage'").unwrap();
    let expected = Allow {
        user: Some(Id::Name("alice".into())),
        group: None,
        root: "/srv/vm1".into(),
        kind: Kind::Storage,
        graphroot: None,
        max_bytes: 64 << 30,
        max_store_bytes: u64::MAX,
        keep_free: 0,
        additional: None,
        max_inodes: 4 << 20,
        max_seconds: 3600,
        devices: false,
        suid: true,
        filecaps: true,
    };
    assert_eq!(allow, [expected]);
    assert_eq!(allow[0].graphroot(), "/var/lib/containers/storage");
}

#[test]
fn all_keys_are_taken() {
    let allow = parse(
        "[[allow]]\ngroup = 1000\nroot = '/'\nkind = 'storage'\ngraphroot = '/a/b'\nmax_bytes = '20G'\nmax_inodes = 3\n\
         max_seconds = 4\ndevices = true\nsuid = false\nfilecaps = false\nmax_store_bytes = '1T'\nkeep_free = '5G'\nadditional = true\n\
         [[allow]]\nuser = 0\nroot = '/x'\nkind = 'rootfs'\nmax_bytes = 7",
    );
    let allow = allow.unwrap();
    let (store, tree) = (&allow[0], &allow[1]);
    assert_eq!((&store.user, &store.group), (&None, &Some(Id::Number(1000))));
    assert_eq!((store.root.as_str(), store.graphroot()), ("/", "/a/b"));
    assert_eq!((store.max_bytes, store.max_inodes, store.max_seconds), (20 << 30, 3, 4));
    assert_eq!((store.devices, store.suid, store.filecaps), (true, false, false));
    assert_eq!((store.max_store_bytes, store.keep_free, store.is_readable()), (1 << 40, 5 << 30, true));
    assert_eq!((tree.kind, tree.max_bytes), (Kind::Rootfs, 7));
    assert!(parse("").unwrap().is_empty(), "nobody may");
}

#[test]
fn the_example_is_a_policy() {
    let example = include_str!("../../../policy/helper.toml");
    assert_eq!(parse(example).unwrap(), [], "nothing is allowed as it comes");
    // What is commented out, with nothing after the `#`, is meant to be used.
    let used: String = example
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .fold(String::new(), |text, line| if line.starts_with(' ') { text } else { text + line + "\n" });
    assert!(!parse(&used).unwrap().is_empty());
}

#[test]
fn what_is_not_understood_is_refused() {
    let who = "give either user or group";
    let path = "entry 1: root and graphroot must be absolute";
    let rootfs = "takes no graphroot";
    let cases = [
        // (lines after [[allow]], what is wrong)
        ("root = '/a'\nkind = 'storage'", who),
        ("user = 'a'\ngroup = 'a'\nroot = '/a'\nkind = 'storage'", who),
        ("user = -1\nroot = '/a'\nkind = 'storage'", "a name or a number is expected"),
        ("user = 4294967296\nroot = '/a'\nkind = 'storage'", "a name or a number is expected"),
        ("user = 'a'\nkind = 'storage'", "missing field `root`"),
        ("user = 'a'\nroot = '/a'", "missing field `kind`"),
        ("user = 'a'\nroot = '/a'\nkind = 'Storage'", "unknown variant `Storage`"),
        ("user = 'a'\nroot = '/a'\nkind = 'mount'", "unknown variant `mount`"),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\ndeny = true", "unknown field `deny`"),
        ("user = 'a'\nuser = 'b'\nroot = '/a'\nkind = 'storage'", "duplicate key"),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\nsuid = 'no'", "invalid type"),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\nmax_bytes = -1", "a number or a text such as"),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\nmax_inodes = 1.5", "invalid type"),
        ("user = 'a'\nroot = '/a'\nkind = 'rootfs'\ngraphroot = '/s'", rootfs),
        ("user = 'a'\nroot = '/'\nkind = 'rootfs'", rootfs),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\ngraphroot = '/'", path),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\ngraphroot = 'b'", path),
        ("user = 'a'\nroot = '/a'\nkind = 'storage'\ngraphroot = '/b/../c'", path),
    ];
    for (lines, wrong) in cases {
        let error = parse(&format!("[[allow]]\n{lines}\n")).unwrap_err();
        assert!(error.contains(wrong) && error.starts_with(PATH), "{lines}: {error}");
        assert!(!error.contains('\n'), "{lines}: {error}");
    }
    for root in ["", "a", "./a", "//", "/a/", "/a//b", "/a/./b", "/a/..", "/..", "/.", "/a\\u0000b"] {
        let error = parse(&format!("[[allow]]\nuser = 'a'\nroot = \"{root}\"\nkind = 'storage'")).unwrap_err();
        assert!(error.contains(path), "{root}: {error}");
    }
    for size in ["", "G", "20g", "+1", "-1", "1 G", "1.5G", "0x10", "20GB", "99999999999999999999", "16777216T", "é"] {
        let error = parse(&format!("[[allow]]\nuser = 'a'\nroot = '/a'\nkind = 'storage'\nmax_bytes = '{size}'"));
        assert!(error.as_ref().unwrap_err().contains("a size is a number of bytes"), "{size}: {error:?}");
    }
    for text in ["allow = 1", "[allow]", "[[deny]]\nuser = 'a'", "version = 2", "[[allow", "[[allow]]\n\u{1}"] {
        parse(text).unwrap_err();
    }
}

#[test]
fn sizes() {
    for (text, bytes) in [("0", 0), ("1K", 1 << 10), ("3M", 3 << 20), ("16777215T", 16_777_215 << 40), ("12", 12)] {
        let entry = format!("[[allow]]\nuser = 'a'\nroot = '/a'\nkind = 'storage'\nmax_bytes = '{text}'");
        assert_eq!(parse(&entry).unwrap()[0].max_bytes, bytes, "{text}");
    }
}
