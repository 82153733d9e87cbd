//! Compression, the ends of archives, and layers that are hardly any.

use super::{Case, Layer, TAR, TAR_GZIP, TAR_ZSTD, bytes, gzipped, of, one, plain};
use crate::made::gzip;
use crate::raw::{Raw, archive, dir, entries, file, mark};

fn blob(name: &str, tar: Vec<u8>, blob: Vec<u8>, media: &'static str) -> Case {
    of(name, vec![Layer { tar, blob, media }])
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// What an ordinary filter makes of `bytes`.
fn filtered(program: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run {program} (apt-get install xz-utils bzip2): {error}"));
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

pub fn cases() -> Vec<Case> {
    let tar = || archive(&[dir("d/"), file("d/f").data("x".repeat(3000)), file("g")]);
    let data = || entries(&[dir("d/"), file("d/f").data("x".repeat(3000))]);
    let half = tar().len() / 2;
    let cut = |count: usize| tar()[..count].to_vec();
    let zeros = |count: usize| vec![0; count];
    let damaged = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0x40;
        bytes
    };
    let long =
        |count: usize| -> Vec<u8> { (0..count as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect() };
    let files: Vec<Raw> = (0..3000).map(|n| file(format!("f{n}")).owner(n, n % 7).mtime(n)).collect();
    let sizes: Vec<Raw> = [0, 1, 511, 512, 513, 1023, 1024, 262_143, 262_144, 262_145, 524_288]
        .iter()
        .map(|&size| file(format!("s{size}")).data(long(size)))
        .collect();
    let gz = gzip(&tar());
    let zst = zstd_of(&tar());
    let first_half = &tar()[..half];
    let second_half = &tar()[half..];
    let mut cases = vec![
        blob("gzip", tar(), gz.clone(), TAR_GZIP),
        blob("gzip-members", tar(), [gzip(first_half), gzip(second_half)].concat(), TAR_GZIP),
        blob("gzip-empty-member", tar(), [gzip(b""), gz.clone(), gzip(b"")].concat(), TAR_GZIP),
        blob("gzip-garbage-after", tar(), [&gz[..], b"garbage after the stream"].concat(), TAR_GZIP),
        blob("gzip-zeros-after", tar(), [&gz[..], &zeros(512)].concat(), TAR_GZIP),
        blob("gzip-cut", tar(), gz[..gz.len() - 20].to_vec(), TAR_GZIP),
        blob("gzip-cut-trailer", tar(), gz[..gz.len() - 4].to_vec(), TAR_GZIP),
        blob("gzip-cut-header", tar(), gz[..5].to_vec(), TAR_GZIP),
        blob("gzip-crc", tar(), damaged(gz.clone(), gz.len() - 6), TAR_GZIP),
        blob("gzip-length", tar(), damaged(gz.clone(), gz.len() - 2), TAR_GZIP),
        blob("gzip-damaged", tar(), damaged(gz.clone(), gz.len() / 2), TAR_GZIP),
        blob("gzip-as-plain", tar(), gz.clone(), TAR),
        blob("gzip-as-zstd", tar(), gz.clone(), TAR_ZSTD),
        blob("gzip-twice", tar(), gzip(&gz), TAR_GZIP),
        blob("gzip-of-nothing", Vec::new(), gzip(b""), TAR_GZIP),
        blob("plain-as-gzip", tar(), tar(), TAR_GZIP),
        blob("zstd", tar(), zst.clone(), TAR_ZSTD),
        blob("zstd-frames", tar(), [zstd_of(first_half), zstd_of(second_half)].concat(), TAR_ZSTD),
        blob("zstd-skippable-last", tar(), [&zst[..], b"\x50\x2a\x4d\x18\x04\0\0\0skip"].concat(), TAR_ZSTD),
        blob("zstd-skippable-first", tar(), [b"\x50\x2a\x4d\x18\x04\0\0\0skip", &zst[..]].concat(), TAR_ZSTD),
        blob("zstd-cut", tar(), zst[..zst.len() - 5].to_vec(), TAR_ZSTD),
        blob("zstd-garbage-after", tar(), [&zst[..], b"garbage"].concat(), TAR_ZSTD),
        blob("zstd-as-gzip", tar(), zst.clone(), TAR_GZIP),
        blob("zstd-of-nothing", Vec::new(), zstd_of(b""), TAR_ZSTD),
        blob("bzip2", tar(), filtered("bzip2", &tar()), TAR),
        blob("xz", tar(), filtered("xz", &tar()), TAR),
        bytes("empty", Vec::new()),
        bytes("zeros-512", zeros(512)),
        bytes("zeros-1024", zeros(1024)),
        bytes("zeros-10240", zeros(10_240)),
        bytes("zeros-odd", zeros(1000)),
        bytes("zeros-few", zeros(100)),
        bytes("zeros-3-mib", zeros(3 << 20)),
        bytes("text", b"this is not a tar at all, but it is longer than one block. ".repeat(20)),
        bytes("text-short", b"short".to_vec()),
        bytes("no-end", data()),
        bytes("one-end", [data(), zeros(512)].concat()),
        bytes("one-end-then-data", [data(), zeros(512), entries(&[file("after")])].concat()),
        bytes("padded", [data(), zeros(10_240)].concat()),
        bytes("padded-odd", [data(), zeros(1024 + 77)].concat()),
        bytes("padded-more", [tar(), zeros(2_500_000)].concat()),
        bytes("garbage-after", [tar(), b"garbage after the end".to_vec()].concat()),
        bytes("garbage-after-more", [tar(), long(1_500_000)].concat()),
        bytes("tar-after", [tar(), archive(&[file("second")])].concat()),
        bytes("cut-header", cut(300)),
        bytes("cut-second-header", cut(512 + 100)),
        bytes("cut-data", cut(1024 + 1000)),
        bytes("cut-before-padding", cut(1024 + 3000)),
        bytes("cut-in-padding", cut(1024 + 3000 + 10)),
        bytes("cut-after-header", cut(1024)),
        bytes("half-end", [data(), zeros(100)].concat()),
        bytes("cut-in-pax", mark("f").pax("path", "g".repeat(300)).encode()[..700].to_vec()),
        of("no-layers", Vec::new()),
        of("same-layer-twice", vec![gzipped(tar()), gzipped(tar())]),
        of("empty-between", vec![gzipped(tar()), plain(zeros(1024)), gzipped(archive(&[file("h")]))]),
        of("two-blobs", vec![plain(tar()), Layer { tar: tar(), blob: zstd_of(&tar()), media: TAR_ZSTD }]),
        of(
            "many-layers",
            (0..40).map(|n| plain(archive(&[file(format!("f{n}")), mark(format!(".wh.f{}", n - 1))]))).collect(),
        ),
        of("many-files", vec![gzipped(archive(&files))]),
        of("many-sizes", vec![gzipped(archive(&sizes))]),
        one("padding-not-zero", &[file("f").data("abc"), file("g")]),
    ];
    let mut odd = archive(&[file("f").data("abc"), file("g")]);
    odd[515..1024].fill(b'#');
    cases.pop();
    cases.push(bytes("padding-not-zero", odd));
    cases
}
