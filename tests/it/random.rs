//! Random layers, most of them a little wrong: skopeo and prepull take the same ones, and make the same of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use prepull::layer::path::{below_root, clean};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::command::needs_root;
use crate::corpus::{Case, plain};
use crate::edge::{Difference, ask};
use crate::raw::{Format, Raw, Sum, entries, of_type};
use crate::seeds::sweep;
use crate::stores::{each, scratch};

/// Bytes that are shown as text.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.200}", self.0.escape_ascii())
    }
}

/// How an archive ends.
#[derive(Debug, Clone)]
enum End {
    Whole,
    /// So many zeros.
    Zeros(usize),
    /// So many bytes are cut off what is otherwise whole.
    Cut(usize),
    Bytes(Bytes),
}

type Layer = (Vec<Raw>, End);

/// Mostly names that meet each other.
fn name() -> impl Strategy<Value = Bytes> {
    let usual = [
        "a", "b", "c", "a/b", "a/c", "a/b/c", "b/a", "c/a", "./a", "/a", "/a/b", "a/", "b/", "c/", "a/b/", "d/e/f",
        "/c", "g", "h",
    ];
    let odd = [
        "../a",
        "a/../b",
        "a//b",
        "a/.",
        "a/./b",
        "..",
        ".",
        "/",
        "./",
        "",
        "a/..",
        "//a",
        "b/..//a/c",
        "/..",
        "a/b/../../../c",
        "...",
        " ",
        "a\nb",
        "\\",
        "C:\\a",
        "C:/a",
        "\\\\host\\share",
        "//host/share",
        "-",
        "\u{e9}",
    ];
    let whiteouts = [
        ".wh.a",
        ".wh.b",
        "a/.wh.b",
        "a/.wh.c",
        "b/.wh.a",
        ".wh..wh.a",
        ".wh..wh..opq",
        "a/.wh..wh..opq",
        "b/.wh..wh..opq",
        "/.wh.a",
        ".wh.c/",
        "x/y/.wh.z",
        ".wh..wh..opq/",
        ".wh..wh.plnk",
        "c/.wh..wh..opq",
        "a/b/.wh..wh..opq",
    ];
    let odd_whiteouts = [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", ".wh.a/b", "a/.wh./c"];
    let text = |list: &[&'static str]| select(list.to_vec()).prop_map(|name| name.as_bytes().to_vec());
    let long = select(vec![99, 100, 101, 155, 156, 254, 255, 256]).prop_map(|count| vec![b'n'; count]);
    let deep = select(vec![20, 60, 100]).prop_map(|count| b"d/".repeat(count));
    let any = vec(select(vec![b'a', b'/', b'.', 0xff, 0xc3, b'\\', 1, 0x7f, b' ']), 1..6);
    prop_oneof![
        40 => text(&usual),
        8 => text(&odd),
        10 => text(&whiteouts),
        1 => text(&odd_whiteouts),
        2 => prop_oneof![long, deep, any],
    ]
    .prop_map(Bytes)
}

/// Numbers as headers have them, and as they should not.
fn number(usual: &[i64]) -> impl Strategy<Value = i64> + use<> {
    let odd = [
        -1,
        -2,
        1 << 21,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        (1 << 32) + 7,
        1 << 33,
        1 << 40,
        i64::MAX,
        i64::MIN,
    ];
    prop_oneof![40 => select(usual.to_vec()), 1 => select(odd.to_vec())]
}

/// A PAX record.
fn record() -> impl Strategy<Value = (String, Bytes)> {
    let values = |list: &[&'static str]| select(list.to_vec()).prop_map(|value| Bytes(value.as_bytes().to_vec()));
    let key = |key: &'static str| Just(key.to_owned());
    let numbers =
        ["0", "5", "1000", "-1", "4294967295", "4294967296", "+7", "007", " 1", "", "x", "9223372036854775808"];
    let times = [
        "0",
        "1.5",
        "1700000000.123456789",
        "-1.5",
        "9223372037",
        ".5",
        "1.",
        "",
        "1e3",
        "99999999999999999999",
        "1.1234567890123",
    ];
    let capability = Bytes(b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec());
    prop_oneof![
        2 => (key("path"), name()),
        2 => (key("linkpath"), name()),
        1 => (select(vec!["uid", "gid"]).prop_map(str::to_owned), values(&numbers)),
        1 => (key("size"), values(&["0", "1", "3", "512", "-1", "", "99999999999", "junk"])),
        2 => (select(vec!["mtime", "atime", "ctime"]).prop_map(str::to_owned), values(&times)),
        1 => (select(vec!["uname", "gname", "comment", "hdrcharset", "PATH", "VENDOR.x"]).prop_map(str::to_owned), values(&["", "x", "BINARY"])),
        3 => (
            select(vec![
                "user.a", "user.b", "trusted.a", "security.x", "security.selinux", "system.x", "trusted.overlay.opaque",
                "trusted.overlay.redirect", "user.overlay.whiteout", "trusted.overlay.metacopy", "user.", "nonsense",
            ])
            .prop_map(|name| format!("SCHILY.xattr.{name}")),
            values(&["y", "1", "", "/etc"])
        ),
        1 => (key("SCHILY.xattr.security.capability"), prop_oneof![3 => Just(capability), 1 => values(&["short"])]),
        1 => (select(vec!["GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.size", "GNU.sparse.name"]).prop_map(str::to_owned), values(&["7", "x"])),
    ]
}

fn entry() -> impl Strategy<Value = Raw> {
    let types = prop_oneof![
        8 => Just(b'0'),
        6 => Just(b'5'),
        4 => Just(b'2'),
        4 => Just(b'1'),
        1 => select(vec![b'3', b'4', b'6']),
        1 => select(vec![0, 0, 0, 0, 0, 0, b'g', b'g', b'7', b'V', b'D']),
    ];
    let data = prop_oneof![
        6 => vec(select(vec![b'x', b'y', b'0']), 0..4),
        1 => select(vec![511, 512, 513, 1024]).prop_map(|count| vec![b'z'; count]),
    ];
    let format = prop_oneof![
        8 => Just(Format::Ustar),
        2 => Just(Format::Gnu),
        1 => select(vec![Format::V7, Format::Star]),
    ];
    let patch = (
        select(vec![
            (100, 8),
            (108, 8),
            (116, 8),
            (124, 12),
            (136, 12),
            (257, 8),
            (329, 8),
            (337, 8),
            (345, 12),
            (500, 12),
        ]),
        vec(select(vec![b' ', b'0', b'7', 0, b'8', 0x80, 0xff, b'-', b'x']), 12),
    );
    let numbers = (
        number(&[0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o100_644]),
        number(&[0, 0, 1000, 65534]),
        number(&[0, 0, 100]),
        number(&[0, 5, 1_700_000_000]),
        number(&[1, 8, 0]),
        number(&[3, 0, 256]),
    );
    let odd = (
        option::weighted(0.015, select(vec![0, 1, 2, 511, 512, 4096, 1 << 33])),
        vec(record(), 0..3),
        option::weighted(0.12, Just(())),
        option::weighted(0.02, (select(vec![b'L', b'K', b'x', b'g']), name())),
        option::weighted(0.015, patch),
        prop_oneof![200 => Just(Sum::Right), 2 => Just(Sum::Signed), 1 => Just(Sum::Wrong)],
        option::weighted(0.02, name()),
    );
    (name(), types, name(), data, format, numbers, odd).prop_map(
        |(name, typeflag, target, data, format, numbers, odd)| {
            let (mode, uid, gid, mtime, major, minor) = numbers;
            let (size, records, has_records, before, patch, sum, prefix) = odd;
            let has_data = matches!(typeflag, b'0' | 0 | b'7' | b'V');
            let mut raw = of_type(name.0, typeflag).mode(mode).owner(uid, gid).mtime(mtime).format(format).sum(sum);
            if has_data {
                raw = raw.data(data);
            }
            if matches!(typeflag, b'1' | b'2') {
                raw = raw.target(target.0);
            }
            if matches!(typeflag, b'3' | b'4') {
                raw = raw.device(major, minor);
            }
            if let Some(size) = size {
                raw = raw.size(size);
            }
            if has_records.is_some() {
                raw = records.into_iter().fold(raw, |raw, (key, value)| raw.pax(key, value.0));
            }
            if let Some((typeflag, body)) = before {
                raw = raw.after(typeflag, body.0);
            }
            if let Some(((offset, length), bytes)) = patch {
                raw = raw.patch(offset, &bytes[..length]);
            }
            if let Some(prefix) = prefix {
                raw = raw.prefix(&prefix.0[..prefix.0.len().min(155)]);
            }
            raw
        },
    )
}

fn layer() -> impl Strategy<Value = Layer> {
    let end = prop_oneof![
        24 => Just(End::Whole),
        1 => select(vec![0, 100, 511, 512, 513, 10_240]).prop_map(End::Zeros),
        1 => (1..3000usize).prop_map(End::Cut),
        1 => name().prop_map(End::Bytes),
    ];
    let list = prop_oneof![
        1 => vec(entry(), 1..9),
        6 => vec((entry(), any::<prop::sample::Index>()), 1..12).prop_map(tidy),
    ];
    (list, end)
}

/// Leaves out most of what would have the layer refused, so that there is something to compare.
fn tidy(list: Vec<(Raw, prop::sample::Index)>) -> Vec<Raw> {
    let (mut kept, mut kinds) = (Vec::<Raw>::new(), BTreeMap::<Vec<u8>, u8>::new());
    for (mut raw, index) in list {
        let name = clean(raw.name().as_bytes());
        let path = below_root(&name);
        let above = |at: usize| kinds.get(&path[..at]).is_some_and(|kind| *kind != b'5');
        let blocked = path.iter().enumerate().any(|(at, byte)| *byte == b'/' && above(at));
        let hides = String::from_utf8_lossy(&path).replace(".wh.", "").into_bytes();
        let is_whiteout = hides != path && !path.ends_with(b".wh..wh..opq");
        let again = kept.iter().any(|other| clean(other.name().as_bytes()) == name);
        if blocked || again || is_whiteout && kinds.contains_key(&hides) || path.is_empty() && raw.kind() != b'5' {
            continue;
        }
        if raw.kind() == b'1' {
            let files: Vec<&Raw> = kept
                .iter()
                .filter(|other| matches!(other.kind(), b'0' | b'2') && !other.name().contains(".wh."))
                .collect();
            let Some(target) = (!files.is_empty()).then(|| index.get(&files)) else { continue };
            // With a slash after a symbolic link, skopeo gives the hardlink's mode to what the symbolic link leads to. No
            // builder writes that, and prepull does not do it.
            raw = raw.target(if target.kind() == b'2' {
                target.name().trim_end_matches(['/', '.']).to_owned()
            } else {
                target.name()
            });
        }
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                kinds.entry(path[..at].to_vec()).or_insert(b'5');
            }
        }
        kinds.insert(if is_whiteout { hides } else { path }, if is_whiteout { b'3' } else { raw.kind() });
        kept.push(raw);
    }
    kept
}

fn bytes_of((list, end): &Layer) -> Vec<u8> {
    let mut bytes = entries(list);
    match end {
        End::Whole => bytes.resize(bytes.len() + 1024, 0),
        End::Zeros(count) => bytes.resize(bytes.len() + count, 0),
        End::Cut(count) => {
            bytes.resize(bytes.len() + 1024, 0);
            bytes.truncate(bytes.len().saturating_sub(*count));
        }
        End::Bytes(more) => bytes.extend_from_slice(&more.0),
    }
    bytes
}

#[test]
fn skopeo_and_prepull_agree_about_random_layers() {
    if !needs_root("random::skopeo_and_prepull_agree_about_random_layers") {
        return;
    }
    let (taken, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    sweep("random", &vec(layer(), 1..=2), 60, 60, |images: &[Vec<Layer>]| {
        let scratch = scratch();
        let numbered: Vec<(usize, &Vec<Layer>)> = images.iter().enumerate().collect();
        let verdicts = Mutex::new(vec![None; images.len()]);
        let broken = each(&numbered, 8, |(number, layers)| {
            let case = Case {
                name: format!("random{number}"),
                layers: layers.iter().map(|layer| plain(bytes_of(layer))).collect(),
            };
            let (may, refusals) = may_differ(layers);
            let found = ask(&case, &scratch.path().join(&case.name), &may);
            asked.fetch_add(1, Ordering::Relaxed);
            taken.fetch_add(usize::from(found.prepull), Ordering::Relaxed);
            if std::env::var_os("PREPULL_EDGE").is_some() {
                eprintln!("{}: {}", case.name, found.said);
            }
            let refused = refusals.iter().any(|text| found.said.contains(text));
            let agree = found.skopeo == found.prepull || found.skopeo && refused;
            if !agree || !found.report.is_empty() {
                verdicts.lock().unwrap()[*number] = Some(format!("  {}\n{}", found.said, found.report));
            }
            Ok(())
        });
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        verdicts.into_inner().unwrap()
    });
    // If nearly all were refused, or taken, little would be compared.
    let (taken, asked) = (taken.into_inner(), asked.into_inner());
    eprintln!("{taken} of {asked} random images are valid");
    assert!((asked / 5..asked * 9 / 10).contains(&taken), "{taken} of {asked} are valid");
}

/// What may differ on purpose, by class ([`crate::edge::DIFFERENCES`] has the reasons), and what prepull then says.
fn may_differ(layers: &[Layer]) -> (Vec<Difference>, Vec<&'static str>) {
    let text = |what: &str| {
        layers.iter().any(|layer| entries(&layer.0).windows(what.len()).any(|part| part == what.as_bytes()))
    };
    let mut may = Vec::new();
    if text("overlay.") || text(".wh..wh..opq") {
        may.push(Difference::NoOverlayAttributes);
    }
    // The root of the lower layer may be claimed.
    if layers.len() > 1 {
        may.push(Difference::RootOwner);
    }
    if layers.iter().any(|layer| matches!(layer.1, End::Cut(_))) {
        may.push(Difference::TarSplit);
    }
    let mut refusals = if text("GNU.sparse.") { vec!["sparse file: "] } else { Vec::new() };
    // A whiteout or link of negative size: Go reads it, and tar-split then has a record that makes no sense.
    if text("size=-") {
        refusals.push("PAX record");
    }
    (may, refusals)
}
