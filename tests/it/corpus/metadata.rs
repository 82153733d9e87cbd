//! Modes, owners, times, devices, extended attributes, and numbers in all their forms.

use super::{Case, bytes, many, one};
use crate::raw::{Format, Sum, archive, block, char, dir, entries, fifo, file, link, mark, of_type, record, sym};

/// A valid `security.capability` of revision 2: `cap_net_raw+ep`.
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
/// The same of revision 3, for the user namespace of user 1000.
const CAPABILITY_3: &[u8] =
    b"\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00";
/// An ACL with the three base entries and nothing more.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
/// An ACL with an entry for user 1000.
const ACL_NAMED: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

pub fn cases() -> Vec<Case> {
    let mut all = modes_and_owners();
    all.extend(times_and_numbers());
    all.extend(types());
    all.extend(attributes());
    all
}

fn modes_and_owners() -> Vec<Case> {
    vec![
        one("mode-all", &[file("a").mode(0), file("b").mode(0o777), file("c").mode(0o7777), dir("d/").mode(0)]),
        one(
            "mode-special",
            &[
                file("suid").mode(0o4755).owner(1000, 1000),
                file("sgid").mode(0o2755).owner(0, 43),
                file("sticky").mode(0o1644),
                file("noexec").mode(0o6644).owner(7, 7),
                dir("tmp/").mode(0o1777),
                dir("sgid.d/").mode(0o2775).owner(0, 50),
                file("sgid.d/f").owner(1, 1),
                dir("sgid.d/sub/"),
            ],
        ),
        one("mode-type-bits", &[file("a").mode(0o100_640), dir("d/").mode(0o040_700), sym("s", "t").mode(0o120_777)]),
        one("mode-over-octal", &[file("a").mode(0o1_777_777), file("b").patch(100, "00000644")]),
        one("mode-base-256", &[file("a").patch(100, b"\x80\0\0\0\0\0\x01\xa4"), file("b").mode(-1)]),
        one("owner-octal-max", &[file("a").owner(2_097_151, 2_097_151), dir("d/").owner(65534, 65534)]),
        one("owner-base-256", &[file("a").owner(3_000_000, 4_000_000), sym("s", "t").owner(3_000_000, 1)]),
        one("owner-pax", &[file("a").owner(1, 2).pax("uid", "3000000").pax("gid", "7"), dir("d/").pax("uid", "5")]),
        one("owner-pax-over-base-256", &[file("a").owner(5_000_000, 0).pax("uid", "8")]),
        one("owner-pax-empty", &[file("a").owner(3, 4).pax("uid", "").pax("gid", "")]),
        one("owner-pax-junk", &[file("a").pax("uid", "root")]),
        one("owner-pax-sign", &[file("a").pax("uid", "+7").pax("gid", "007")]),
        one("owner-pax-space", &[file("a").pax("uid", " 7")]),
        one("owner-2-31", &[file("a").owner(1 << 31, (1 << 31) - 1)]),
        one("owner-max", &[file("a").owner(u32::MAX as i64 - 1, u32::MAX as i64 - 1)]),
        one("owner-keep", &[file("a").owner(u32::MAX as i64, 5), dir("d/").owner(5, u32::MAX as i64)]),
        one("owner-keep-dir", &[dir("d/").owner(3, 4), dir("/d").owner(-1, -1)]),
        one("owner-minus-1", &[file("a").owner(-1, -1)]),
        one("owner-minus-2", &[file("a").owner(-2, -2)]),
        one("owner-pax-minus-1", &[file("a").pax("uid", "-1").pax("gid", "-1")]),
        one("owner-2-32", &[file("a").owner(1 << 32, (1 << 32) + 5)]),
        one("owner-2-40", &[file("a").owner((1 << 40) + 3, 0)]),
        one("owner-names", &[file("a").patch(265, "daemon\0").patch(297, "games\0").pax("uname", "bin")]),
        one("owner-whiteout-only", &[mark(".wh.x").owner(77, 78)]),
        one("owner-dot-only", &[dir("./").owner(77, 78)]),
        one("owner-symlink", &[sym("s", "t").owner(9, 9), dir("d/").owner(9, 9), fifo("p").owner(9, 9)]),
        one("owner-special", &[char("c", 1, 3).owner(9, 9).mode(0o6666), block("b", 8, 0).owner(0, 6)]),
        one("owner-link-sets", &[file("a").owner(1, 1), link("b", "a").owner(2, 2)]),
    ]
}

fn times_and_numbers() -> Vec<Case> {
    let pax = |time: &str| file("a").pax("mtime", time);
    let mut all = vec![
        one("time-zero", &[file("a").mtime(0), dir("d/").mtime(0), sym("s", "t").mtime(0)]),
        one("time-one", &[file("a").mtime(1), sym("s", "t").mtime(1)]),
        one(
            "time-fraction",
            &[
                pax("1700000000.123456789"),
                dir("d/").pax("mtime", "5.000000001"),
                sym("s", "t").pax("mtime", "7.5"),
                fifo("p").pax("mtime", "8.25"),
                file("d/f").pax("mtime", "1.999999999"),
            ],
        ),
        one("time-atime", &[file("a").mtime(50).pax("atime", "99").pax("ctime", "7"), file("b").pax("atime", "1")]),
        one("time-atime-junk", &[file("a").pax("atime", "soon")]),
        one("time-octal-max", &[file("a").mtime((1 << 33) - 1), sym("s", "t").mtime((1 << 33) - 1)]),
        one("time-base-256", &[file("a").mtime(1 << 33), sym("s", "t").mtime(1 << 33), dir("d/").mtime(1 << 33)]),
        one("time-ext4-end", &[file("a").mtime((1 << 34) - (1 << 31) - 1)]),
        one("time-go-end", &[file("a").mtime(9_223_372_036), file("b").pax("mtime", "9223372036.854775807")]),
        one("time-beyond-go", &[file("a").mtime(9_223_372_037), dir("d/").mtime(1 << 40)]),
        one("time-negative", &[file("a").mtime(-1), dir("d/").mtime(-100), fifo("p").mtime(-1)]),
        one("time-negative-symlink", &[sym("s", "t").mtime(-1), sym("u", "t").pax("mtime", "-1.5")]),
        one("time-huge-symlink", &[sym("s", "t").mtime(9_223_372_037)]),
        one("time-huge-symlink-wraps", &[sym("s", "t").mtime(1 << 40)]),
        one("time-on-device", &[char("c", 1, 3).mtime(12), block("b", 8, 0).pax("mtime", "13.5")]),
        one("time-of-parents", &[dir("d/").mtime(5), dir("d/e/").mtime(6), file("d/e/f"), file("d/g")]),
        one("time-of-setuid", &[file("a").mode(0o4755).owner(5, 5).pax("mtime", "3.25")]),
    ];
    for (name, time) in [
        ("long", "1.1234567891"),
        ("dot", "1."),
        ("leading-dot", ".5"),
        ("exponent", "1e3"),
        ("negative", "-1.5"),
        ("minus-zero", "-0.5"),
        ("two-dots", "1.5.5"),
        ("plus", "+5.5"),
        ("minus-only", "-"),
        ("comma", "1,5"),
        ("huge", "99999999999999999999"),
        ("max", "9223372036854775807"),
        ("space", "5 "),
        ("sign-in-fraction", "5.-5"),
    ] {
        all.push(one(&format!("time-pax-{name}"), &[pax(time)]));
    }
    let field = |offset: usize, bytes: &[u8]| file("f").data("").patch(offset, bytes);
    for (name, entry) in [
        ("spaces", field(136, b"      5    \0")),
        ("no-end", field(136, b"000000000005")),
        ("blank", field(136, b"            ")),
        ("nuls", field(136, &[0; 12])),
        ("nul-led", field(136, b"\0\x0000000005\0\0")),
        ("junk", field(136, b"hello\0\0\0\0\0\0\0")),
        ("digit-8", field(108, b"0000008\0")),
        ("inner-space", field(108, b"00 0005\0")),
        ("minus", field(108, b"-000005\0")),
        ("base-256-overflow", field(136, b"\x80\x01\0\0\0\0\0\0\0\0\0\0")),
        ("base-256-63-bits", field(136, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")),
        ("base-256-64-bits", field(136, b"\x80\0\0\0\x80\0\0\0\0\0\0\0")),
        ("size-negative", field(124, &[0xff; 12])),
        ("size-base-256", file("f").data("abc").patch(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x03")),
        ("size-spaces", file("f").data("abc").patch(124, b"         3 \0")),
        ("dev-junk-in-file", field(329, b"junkjunk")),
        ("dev-junk-v7", field(329, b"junkjunk").format(Format::V7)),
        ("checksum-signed", file(b"\xff\xfe\xfd").sum(Sum::Signed)),
        ("checksum-wrong", file("f").sum(Sum::Wrong)),
        ("magic-unknown", field(257, b"USTAR\x0000")),
        ("magic-version", field(263, b"99")),
        ("reserved-bytes", field(500, b"rubbishrubbi")),
    ] {
        all.push(one(&format!("number-{name}"), &[entry, file("after")]));
    }
    let mut no_checksum = archive(&[file("f")]);
    no_checksum[148..156].fill(0);
    all.push(bytes("number-checksum-none", no_checksum));
    let mut no_checksum = archive(&[file("f")]);
    no_checksum[148..156].copy_from_slice(b"garbage!");
    all.push(bytes("number-checksum-junk", no_checksum));
    all
}

fn types() -> Vec<Case> {
    let global = |body: &[u8]| of_type("pax_global_header", b'g').data(body);
    vec![
        one(
            "devices",
            &[
                char("null", 1, 3).mode(0o666),
                block("sda", 8, 0),
                block("nvme", 259, 300),
                char("max", 4095, 1_048_575),
                char("minor", 5, 256).mtime(4),
                fifo("fifo").mode(0o622),
            ],
        ),
        one("device-zero", &[char("w", 0, 0).mode(0o600).owner(3, 3), block("b", 0, 0)]),
        many("device-zero-hides", &[&[file("w"), dir("d/"), file("d/f")], &[char("w", 0, 0), char("d", 0, 0)]]),
        one("device-overflow-minor", &[char("c", 1, 1 << 20)]),
        one("device-overflow-major", &[char("c", 4096, 0)]),
        one("device-overflow-both", &[char("c", 70_000, 5_000_000)]),
        one("device-negative", &[char("c", -1, -1)]),
        one("device-v7", &[char("c", 1, 3).format(Format::V7)]),
        one("device-gnu", &[char("c", 1, 3).format(Format::Gnu)]),
        one("device-below", &[char("c", 1, 3), file("c/f")]),
        one("fifo-below", &[fifo("p"), file("p/f")]),
        one("cont", &[of_type("f", b'7').data("contiguous")]),
        one("gnu-sparse", &[of_type("f", b'S').format(Format::Gnu).patch(386, "00000000000\x0000000000000\0")]),
        one(
            "pax-sparse-1.0",
            &[mark("GNUSparseFile.0/f")
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.name", "f")
                .pax("GNU.sparse.realsize", "2000000")
                .data([&b"1\n1000000\n3\n"[..], &[0; 500], b"abc"].concat())],
        ),
        one(
            "pax-sparse-0.1",
            &[mark("f")
                .pax("GNU.sparse.size", "4096")
                .pax("GNU.sparse.numblocks", "1")
                .pax("GNU.sparse.map", "10,3")
                .data("abc")],
        ),
        one(
            "pax-sparse-0.0",
            &[mark("f")
                .pax("GNU.sparse.size", "4096")
                .pax("GNU.sparse.numblocks", "1")
                .pax("GNU.sparse.offset", "10")
                .pax("GNU.sparse.numbytes", "3")
                .data("abc")],
        ),
        one("pax-sparse-unknown", &[file("f").pax("GNU.sparse.major", "7").pax("GNU.sparse.minor", "0")]),
        one("pax-unknown", &[file("f").pax("comment", "x").pax("VENDOR.key", "y").pax("hdrcharset", "BINARY")]),
        one("pax-key-case", &[file("f").pax("PATH", "g").pax("Mtime", "5")]),
        one("pax-size", &[file("f").data("hello").size(0).pax("size", "5"), file("g")]),
        one("pax-size-smaller", &[file("f").data("hello").pax("size", "2"), file("g")]),
        one("pax-size-larger", &[file("f").data("hello").pax("size", "3000"), file("g"), file("h")]),
        one("pax-size-negative", &[file("f").pax("size", "-5")]),
        one("pax-size-huge", &[file("f").pax("size", "9223372036854775807")]),
        one("pax-size-on-dir", &[dir("d/").pax("size", "512"), file("f")]),
        one("pax-size-on-link", &[file("f"), link("l", "f").pax("size", "512")]),
        one("size-huge", &[file("f").size(1 << 40)]),
        one("pax-no-records", &[file("f").after(b'x', "")]),
        one("pax-then-nothing", &[file("f"), of_type("x", b'x').data(record(b"path", b"g"))]),
        one("pax-malformed-length", &[file("f").after(b'x', "99 path=g\n")]),
        one("pax-malformed-no-equals", &[file("f").after(b'x', "8 path\n\n")]),
        one("pax-malformed-no-newline", &[file("f").after(b'x', "8 path=g")]),
        one("pax-malformed-zero", &[file("f").after(b'x', "0 path=g\n")]),
        one("pax-malformed-text", &[file("f").after(b'x', "not a record at all")]),
        one("pax-malformed-key", &[file("f").after(b'x', "6 =ab\n")]),
        one("pax-leading-zero", &[file("f").after(b'x', "0010 path=g\n"), file("h").after(b'x', "0000012 path=i\n")]),
        one("pax-nuls-after", &[file("f").after(b'x', "10 path=g\n\0\0\0\0")]),
        one("pax-huge", &[file("f").after(b'x', record(b"comment", &vec![b'x'; 1_100_000]))]),
        one("pax-large", &[file("f").after(b'x', record(b"comment", &vec![b'x'; 1_000_000]))]),
        one("pax-many", &[(0..50).fold(file("f"), |entry, _| entry.after(b'x', record(b"path", b"g")))]),
        one("gnu-long-huge", &[file("f").after(b'L', vec![b'x'; 1_100_000])]),
        one("global", &[global(&record(b"comment", b"0123456789abcdef")), file("f")]),
        one("global-path", &[global(&record(b"path", b"g")), file("f")]),
        one("global-mtime", &[global(&record(b"mtime", b"5")), file("f"), file("g").pax("mtime", "6")]),
        one("global-twice", &[global(&record(b"a", b"b")), file("f"), global(&record(b"a", b"c"))]),
        one(
            "global-number-junk",
            &[global(&record(b"uid", b"junk")), file("f"), global(&record(b"mtime", b"x")), file("g")],
        ),
        one("global-malformed", &[global(b"rubbish"), file("f")]),
        one("global-owner", &[global(b"").owner(44, 45), file("f")]),
        one("global-only", &[global(&record(b"comment", b"nothing else"))]),
        one("global-between", &[file("f").after(b'x', record(b"path", b"p")).after(b'g', record(b"comment", b"c"))]),
        bytes("global-last", [entries(&[file("f")]), global(&record(b"a", b"b")).encode()].concat()),
    ]
}

fn attributes() -> Vec<Case> {
    let on_all = |name: &str, key: &str, value: &[u8]| {
        let entries = [
            file("f").xattr(key, value),
            dir("d/").xattr(key, value),
            sym("s", "t").xattr(key, value),
            fifo("p").xattr(key, value),
            char("c", 1, 3).xattr(key, value),
            block("b", 8, 0).xattr(key, value),
        ];
        let types = ["file", "dir", "symlink", "fifo", "char", "block"];
        types.iter().zip(entries).map(|(kind, entry)| one(&format!("{name}-{kind}"), &[entry])).collect::<Vec<_>>()
    };
    let on_file = |name: &str, key: &str, value: &[u8]| one(name, &[file("f").xattr(key, value)]);
    let mut all = on_all("xattr-user", "user.test", b"value");
    all.extend(on_all("xattr-trusted", "trusted.test", b"value"));
    all.extend(on_all("xattr-security", "security.test", b"value"));
    all.extend(on_all("xattr-capability", "security.capability", CAPABILITY));
    all.extend(on_all("xattr-opaque", "trusted.overlay.opaque", b"y"));
    all.extend(on_all("xattr-acl", "system.posix_acl_access", ACL));
    all.extend(on_all("xattr-selinux", "security.selinux", b"system_u:object_r:bin_t:s0\0"));
    all.extend([
        on_file("xattr-capability-3", "security.capability", CAPABILITY_3),
        on_file("xattr-capability-bad", "security.capability", b"rubbish"),
        on_file("xattr-capability-short", "security.capability", &CAPABILITY[..12]),
        on_file("xattr-capability-1", "security.capability", b"\x01\x00\x00\x01\x00\x20\x00\x00\x00\x00\x00\x00"),
        on_file("xattr-acl-named", "system.posix_acl_access", ACL_NAMED),
        on_file("xattr-acl-bad", "system.posix_acl_access", b"rubbish"),
        on_file("xattr-acl-default-file", "system.posix_acl_default", ACL),
        one("xattr-acl-default", &[dir("d/").xattr("system.posix_acl_default", ACL_NAMED), file("d/f"), dir("d/e/")]),
        on_file("xattr-ima", "security.ima", b"\x01hash"),
        on_file("xattr-no-namespace", "foo", b"1"),
        on_file("xattr-unknown-namespace", "foo.bar", b"1"),
        on_file("xattr-system-unknown", "system.foo", b"1"),
        on_file("xattr-user-only", "user.", b"1"),
        on_file("xattr-trusted-only", "trusted.", b"1"),
        on_file("xattr-security-only", "security.", b"1"),
        on_file("xattr-system-only", "system.", b"1"),
        on_file("xattr-no-name", "", b"1"),
        on_file("xattr-binary", "user.bin", b"\0\x01\xff\n="),
        on_file("xattr-empty", "user.empty", b""),
        on_file("xattr-3000", "user.large", &[b'v'; 3000]),
        on_file("xattr-70000", "user.huge", &[b'v'; 70_000]),
        on_file("xattr-name-255", &format!("user.{}", "n".repeat(250)), b"1"),
        on_file("xattr-name-256", &format!("user.{}", "n".repeat(251)), b"1"),
        on_file("xattr-name-non-ascii", "user.é ü", b"1"),
        on_file("xattr-opaque-x", "trusted.overlay.opaque", b"x"),
        on_file("xattr-redirect", "trusted.overlay.redirect", b"/etc"),
        on_file("xattr-metacopy", "trusted.overlay.metacopy", b""),
        on_file("xattr-origin", "trusted.overlay.origin", b"\0\xfb\x1d"),
        on_file("xattr-user-overlay", "user.overlay.opaque", b"y"),
        one("xattr-user-overlay-fifo", &[fifo("p").xattr("user.overlay.whiteout", "y")]),
        one("xattr-user-overlay-symlink", &[sym("s", "t").xattr("user.overlay.opaque", "y")]),
        one("xattr-opaque-dir-x", &[dir("d/").xattr("trusted.overlay.opaque", "x"), file("d/f")]),
        one("xattr-opaque-root", &[dir("/").xattr("trusted.overlay.opaque", "y"), file("f")]),
        one("xattr-many", &[(0..40).fold(file("f"), |f, n| f.xattr(&format!("user.k{n}"), format!("v{n}")))]),
        one("xattr-order", &[file("f").xattr("user.b", "1").xattr("user.a", "2").xattr("user.b", "3")]),
        one("xattr-libarchive", &[file("f").pax("LIBARCHIVE.xattr.user.a", "MQ")]),
        one(
            "xattr-old-keyword",
            &[file("f").pax("RHT.security.selinux", "label").pax("SCHILY.acl.access", "user::rwx")],
        ),
        one("xattr-on-whiteout", &[mark(".wh.f").xattr("user.a", "1").xattr("trusted.a", "1")]),
        one("xattr-on-opaque", &[dir("d/"), mark("d/.wh..wh..opq").xattr("trusted.a", "1")]),
        one("xattr-on-link", &[sym("s", "t"), link("u", "s").xattr("trusted.a", "1")]),
        one("xattr-capability-setuid", &[file("f").mode(0o4755).owner(3, 3).xattr("security.capability", CAPABILITY)]),
        one("xattr-capability-link", &[file("f").xattr("security.capability", CAPABILITY), link("g", "f")]),
        one(
            "xattr-capability-link-chown",
            &[file("f").xattr("security.capability", CAPABILITY), link("g", "f").owner(5, 5)],
        ),
        one(
            "xattr-capability-link-chmod",
            &[file("f").xattr("security.capability", CAPABILITY), link("g", "f").mode(0o600)],
        ),
        one(
            "acl-then-chmod",
            &[file("f").mode(0o600).xattr("system.posix_acl_access", ACL_NAMED), link("g", "f").mode(0o4711)],
        ),
        one(
            "acl-replaced",
            &[
                file("f").xattr("system.posix_acl_access", ACL_NAMED),
                link("g", "f").mode(0o700).xattr("system.posix_acl_access", ACL),
            ],
        ),
        on_file("xattr-acl-empty", "system.posix_acl_access", b"\x02\0\0\0"),
        on_file("xattr-acl-short", "system.posix_acl_access", b"\x02\0"),
        one("acl-then-mode", &[file("f").mode(0o600).xattr("system.posix_acl_access", ACL)]),
    ]);
    all
}
