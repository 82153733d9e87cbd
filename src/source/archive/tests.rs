//! Good archives by GNU, PAX and links; and archives made to hurt.

use std::io::Write as _;

use super::*;

/// Writes headers that `tar::Builder` would refuse to write.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn member(mut self, kind: u8, name: &[u8], link: &[u8], claimed: u64, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_size(claimed);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.member(b'0', name.as_bytes(), b"", data.len() as u64, data)
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..=9).map(|digits| rest + digits).find(|n| rest + n.to_string().len() == *n).unwrap();
            data.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        self.member(b'x', b"pax", b"", data.len() as u64, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn open_as(bytes: &[u8], duplicates: Duplicates) -> Result<Archive, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open("test", file.path(), &Options::default(), duplicates)
}

fn open(bytes: &[u8]) -> Result<Archive, Error> {
    open_as(bytes, Duplicates::First)
}

fn content(archive: &Archive, name: &str) -> Vec<u8> {
    archive.read(name, 1 << 20).unwrap().unwrap_or_else(|| panic!("no {name}"))
}

#[track_caller]
fn refused(bytes: &[u8], part: &str) {
    let error = open(bytes).expect_err("it was accepted").to_string();
    assert!(error.contains(part) && !error.contains('\n'), "{error}");
}

#[test]
fn members_are_found_by_any_spelling_of_their_name() {
    let long = format!("{}/x", "d".repeat(150));
    let archive = open(
        &Tar::default()
            .file("./a", b"first")
            .file("/abs", b"abs")
            .file("b/../c", b"c")
            .file("a", b"second")
            .member(b'L', b"././@LongLink", b"", long.len() as u64 + 1, format!("{long}\0").as_bytes())
            .file("short", b"gnu")
            .pax(&[("SCHILY.xattr.user.x", "1\n2 size=99999\n"), ("path", "pax/\u{e4}"), ("mtime", "1.5")])
            .file("short", b"pax")
            .member(b'g', b"global", b"", 12, b"12 comment=x")
            .pax(&[("size", "5")])
            .member(b'0', b"sized", b"", 0, b"12345")
            .file("last", b"")
            .end(),
    )
    .unwrap();
    for (name, bytes) in [
        ("a", &b"first"[..]),
        ("abs", b"abs"),
        ("./c", b"c"),
        (&long, b"gnu"),
        ("pax/\u{e4}", b"pax"),
        ("sized", b"12345"),
        ("last", b""),
    ] {
        assert_eq!(content(&archive, name), bytes, "{name}");
    }
    assert!(archive.find(b"short").unwrap().is_none());
    assert!(archive.find(b"../a").unwrap().is_none());
    let twice = Tar::default().file("a", b"first").file("a", b"second").end();
    assert_eq!(content(&open_as(&twice, Duplicates::Last).unwrap(), "a"), b"second");
}

#[test]
fn one_link_is_followed_and_no_more() {
    let archive = open(
        &Tar::default()
            .file("x.tar", b"layer")
            .member(b'2', b"id/layer.tar", b"../x.tar", 0, b"")
            .member(b'1', b"id/hard", b"x.tar", 0, b"")
            .member(b'2', b"twice", b"id/layer.tar", 0, b"")
            .member(b'2', b"loop", b"loop", 0, b"")
            .member(b'2', b"out", b"../../etc/passwd", 0, b"")
            .member(b'5', b"dir", b"", 0, b"")
            .end(),
    )
    .unwrap();
    assert_eq!(content(&archive, "id/layer.tar"), b"layer");
    assert_eq!(content(&archive, "id/hard"), b"layer");
    for (name, part) in
        [("twice", "link to a link"), ("loop", "link to a link"), ("out", "link to nothing"), ("dir", "regular file")]
    {
        let error = archive.find(name.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[test]
fn readers_are_independent() {
    let archive = open(&Tar::default().file("a", b"aaaa").file("b", b"bbbb").end()).unwrap();
    let mut readers = ["a", "b", "a"].map(|name| archive.reader(&archive.find(name.as_bytes()).unwrap().unwrap()));
    let mut byte = [0];
    for _ in 0..4 {
        for (reader, expected) in readers.iter_mut().zip(*b"aba") {
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], expected);
        }
    }
    assert!(readers.iter_mut().all(|reader| reader.read(&mut byte).unwrap() == 0));
}

#[test]
fn compressed_archives_and_pipes_are_spooled() {
    let plain = Tar::default().file("a", b"hello").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    for bytes in [&gzip, &zstd::encode_all(&plain[..], 1).unwrap(), &plain] {
        assert_eq!(content(&open(bytes).unwrap(), "a"), b"hello");
        let stream = io::Cursor::new(bytes.clone());
        let archive = Archive::from_stream("-".to_owned(), stream, &Options::default(), Duplicates::First).unwrap();
        assert_eq!(content(&archive, "a"), b"hello");
    }
    refused(&gzip[..gzip.len() / 2], "read");
    refused(b"BZh91AY", "bzip2");
    let options = Options { tmpdir: Some("/nonexistent".into()), ..Options::default() };
    let error = Archive::from_stream("-".to_owned(), io::Cursor::new(plain), &options, Duplicates::First).unwrap_err();
    assert!(error.to_string().contains("TMPDIR"), "{error}");
}

#[test]
fn damaged_archives_are_refused() {
    let good = Tar::default().file("a", &[b'x'; 2000]).file("b", b"y").end();
    refused(&good[..1000], "truncated");
    refused(&good[..600], "truncated");
    refused(&good[..100], "truncated header");
    refused(&[b'z'; 2048], "checksum");
    refused(&Tar::default().file("a", b"").member(b'x', b"pax", b"", 3, b"xyz").end(), "malformed PAX");
    refused(&Tar::default().pax(&[("path", "b")]).end(), "describes a member");
    let mut flipped = good.clone();
    flipped[2] ^= 1;
    refused(&flipped, "checksum");
    assert!(open(b"").is_ok_and(|archive| archive.members.is_empty()));
}

#[test]
fn lying_headers_are_refused() {
    refused(&Tar::default().member(b'0', b"a", b"", 1 << 40, b"").end(), "truncated");
    refused(&Tar::default().member(b'0', b"a", b"", u64::MAX - 5, b"").end(), "truncated");
    refused(&Tar::default().pax(&[("size", "18446744073709551615")]).file("a", b"").end(), "truncated");
    refused(&Tar::default().pax(&[("size", "-1")]).file("a", b"").end(), "not a number");
    let big = vec![0; 2 << 20];
    refused(&Tar::default().member(b'x', b"pax", b"", big.len() as u64, &big).end(), "extended header");
    refused(&Tar::default().member(b'L', b"l", b"", big.len() as u64, &big).end(), "extended header");
    refused(&Tar::default().member(b'L', b"l", b"", 5000, &[b'n'; 5000]).file("a", b"").end(), "name of");
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    refused(&Tar::default().pax(&one).file("a", b"").end(), "malformed sparse");
    refused(&Tar::default().pax(&one).file("a", &[b'1'; 512]).end(), "malformed sparse");
    refused(&Tar::default().pax(&[("GNU.sparse.map", "0,1")]).file("a", b"x").end(), "malformed sparse");
    refused(&Tar::default().member(b'S', b"s", b"", 0, b"").end(), "malformed sparse");
}

#[test]
fn members_and_names_are_counted() {
    let mut many = Tar::default();
    for at in 0..=MEMBERS_MAX {
        many = many.file(&at.to_string(), b"");
    }
    refused(&many.end(), "more than 100000 members");
    let mut long = Tar::default();
    for at in 0..NAMES_MAX / 4000 + 2 {
        let name = format!("{at:05}{}", "n".repeat(4000));
        long = long.member(b'L', b"l", b"", name.len() as u64, name.as_bytes()).file("x", b"");
    }
    refused(&long.end(), "names of its members");
}

#[test]
fn what_is_no_file_is_named() {
    let missing = Archive::open("oci-archive", Path::new("/nonexistent/a=b"), &Options::default(), Duplicates::Last);
    let text = missing.unwrap_err().to_string();
    assert!(text.contains("oci-archive:/nonexistent/a=b: no such file") && text.contains("full one"), "{text}");
    let directory = Archive::open("oci-archive", Path::new("/"), &Options::default(), Duplicates::Last).unwrap_err();
    assert!(directory.to_string().contains("write oci:PATH"), "{directory}");
}

proptest::proptest! {
    #[test]
    fn no_damage_panics(at in 0..6000usize, byte: u8, cut in 0..6000usize) {
        let mut bytes = Tar::default()
            .pax(&[("path", "p"), ("size", "3")])
            .file("a", b"xyz")
            .member(b'L', b"l", b"", 2, b"n\0")
            .file("b", b"")
            .member(b'2', b"s", b"b", 0, b"")
            .end();
        let length = bytes.len();
        bytes[at % length] = byte;
        // The checksum of the first header is put right, so that what it says is believed.
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bytes[..512]);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes.truncate(length - cut % 1200);
        if let Ok(archive) = open(&bytes) {
            for name in ["p", "n", "s"] {
                let _ = archive.read(name, 100);
            }
        }
    }
}
