use std::io::Write as _;

use super::*;

fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    plain(Cursor::new(bytes))?.read_to_end(&mut out).map(|_| out)
}

/// Compresses with a program of Debian, as the world does.
fn by(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn formats(bytes: &[u8]) -> Vec<(Compression, Vec<u8>)> {
    vec![
        (Compression::Gzip, by("gzip", &["-c"], bytes)),
        (Compression::Bzip2, by("bzip2", &["-c"], bytes)),
        (Compression::Xz, by("xz", &["-c"], bytes)),
        (Compression::Zstd, by("zstd", &["-qc"], bytes)),
        (Compression::Lz4, by("lz4", &["-qc"], bytes)),
    ]
}

#[test]
fn formats_are_told_by_their_bytes_and_read_to_their_ends() {
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(|number| (number / 3).to_le_bytes()).collect();
    assert_eq!(read(bytes.clone()).unwrap(), bytes);
    assert_eq!(read(Vec::new()).unwrap(), b"");
    for (compression, compressed) in formats(&bytes) {
        assert_eq!(Compression::detect(&compressed), compression);
        assert!(read(compressed.clone()).unwrap() == bytes, "{compression:?}");
        let twice = read([&compressed[..], &compressed].concat()).unwrap();
        assert!(twice == [&bytes[..], &bytes].concat(), "{compression:?} twice");
        for cut in [compressed.len() - 1, compressed.len() / 2, 7] {
            let error = read(compressed[..cut].to_vec()).unwrap_err().to_string();
            assert!(error.contains(compression.name()), "{compression:?} cut at {cut}: {error}");
        }
        let mut damaged = compressed.clone();
        damaged[compressed.len() / 2] ^= 0x10;
        assert!(read(damaged).is_err() || compression == Compression::Lz4, "{compression:?} damaged");
    }
}

#[test]
fn skippable_frames_are_skipped() {
    let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let [zstd, lz4] = ["zstd", "lz4"].map(|program| by(program, &["-qc"], b"hello"));
    assert_eq!(read([&skippable[..], &zstd, &skippable, &zstd].concat()).unwrap(), b"hellohello");
    assert_eq!(read([&lz4[..], &skippable, &lz4].concat()).unwrap(), b"hellohello");
    assert!(read([&zstd[..], &skippable[..9]].concat()).is_err());
    assert!(read([&lz4[..], b"garbage"].concat()).is_err());
    assert!(read([&zstd[..], b"gar"].concat()).is_err());
}

#[test]
fn windows_beyond_the_limit_are_refused_by_their_size() {
    // Frame headers with a window of 1 KiB << log, and a block of one zero that ends the frame.
    let frame = |log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, log << 3, 0x03 | 1 << 3, 0, 0, 0];
    for log in [0, 17, 18, 19] {
        assert_eq!(read(frame(log).to_vec()).unwrap(), [0], "{log}");
    }
    assert_eq!(read([frame(19), frame(0), frame(18), frame(19)].concat()).unwrap(), [0; 4]);
    let refused = |bytes: Vec<u8>| read(bytes).unwrap_err().to_string();
    assert_eq!(refused(frame(20).to_vec()), "zstd stream: a window of 1024 MiB, the limit is 512 MiB");
    let slightly = [0x28, 0xb5, 0x2f, 0xfd, 0, (19 << 3) | 1, 3, 0, 0];
    assert_eq!(refused(slightly.to_vec()), "zstd stream: a window of 576 MiB, the limit is 512 MiB");
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 1, 0, 7, 3, 0, 0];
    assert!(refused(dictionary.to_vec()).contains("needs the dictionary 7"));
    let xz = |size: &str| by("xz", &["-c", &format!("--lzma2=preset=0,dict={size}")], b"hello");
    assert_eq!(read(xz("512MiB")).unwrap(), b"hello");
    assert_eq!(refused(xz("768MiB")), "xz stream: a dictionary of 768 MiB, the limit is 512 MiB");
    assert_eq!(read([xz("1MiB"), xz("64MiB")].concat()).unwrap(), b"hellohello");
    assert!(refused([xz("1MiB"), xz("128MiB")].concat()).contains("larger dictionary"));
}

#[test]
fn errors_of_the_input_come_out_unchanged() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    for (compression, compressed) in formats(b"hello") {
        let half = Cursor::new(compressed[..compressed.len() / 2].to_vec()).chain(Broken);
        let error = io::copy(&mut plain(half).unwrap(), &mut io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "broken", "{compression:?}");
    }
}
