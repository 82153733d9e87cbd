//! A blob's wrapper: what comes out is what independent decoders make of it, its digest and size are right, and no piece of a
//! damaged blob passes for the whole.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use prepull::compression::{self, Compression, SizeLimit};
use prepull::digest::Digest;
use prepull::layer::inflate::{Inflation, inflate};
use prepull::source::Descriptor;
use prepull_fuzz::{Trickle, choice};

/// What is compared: enough for any input that is not all zeros.
const MOST: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let cut = rest.len() / 3;
    let blob = match choice & 7 {
        0 | 1 => rest.to_vec(),
        2 => prepull_fuzz::gzip(rest, &[]),
        3 => prepull_fuzz::gzip(rest, &[cut, cut]),
        4 => prepull_fuzz::zstd(rest, &[]),
        5 => prepull_fuzz::zstd(rest, &[cut, cut]),
        6 => [prepull_fuzz::gzip(rest, &[cut]), vec![0; cut]].concat(),
        _ => [prepull_fuzz::zstd(rest, &[cut]), b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec()].concat(),
    };
    if expanded(&blob[..]) > MOST {
        return;
    }
    let most = usize::from(choice >> 3) + 1;
    let found = whole(&blob, &blob, most);
    if (2..6).contains(&(choice & 7)) {
        let (bytes, _) = found.as_ref().expect("what was compressed can be inflated");
        assert!(&bytes[..] == rest);
    }
    if let Ok((bytes, inflation)) = &found {
        assert_eq!(inflation.diff_id, Digest::of(bytes));
        assert_eq!(inflation.size, bytes.len() as u64);
        let independent = match inflation.compression {
            Compression::None => Ok(blob.clone()),
            Compression::Gzip => all(flate2::read::MultiGzDecoder::new(&blob[..])),
            Compression::Zstd => zstd::decode_all(&blob[..]),
            // No other decoder is at hand: at least it is always the same.
            Compression::Bzip2 | Compression::Xz => compression::plain(&blob[..]).and_then(all),
            Compression::Lz4 => unreachable!("no layer is compressed like that"),
        };
        assert!(independent.is_ok_and(|independent| independent == *bytes));
    }
    // Whatever is missing, or is another byte, is noticed.
    if !blob.is_empty() {
        let at = cut.min(blob.len() - 1);
        assert!(whole(&blob[..at], &blob, most).is_err());
        let mut damaged = blob.clone();
        damaged[at] ^= 1 << (choice >> 5);
        assert!(whole(&damaged, &blob, most).is_err());
    }
});

fn all(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes)
}

/// How many bytes come out, as far as it matters.
fn expanded(blob: &[u8]) -> u64 {
    let count = |reader: &mut dyn Read| io::copy(&mut reader.take(MOST + 1), &mut io::sink()).unwrap_or(0);
    match blob {
        [0x1f, 0x8b, 0x08, ..] => count(&mut flate2::read::MultiGzDecoder::new(blob)),
        _ => compression::plain(blob).map_or(0, |mut decoder| count(&mut decoder)),
    }
}

/// What comes out of `blob`, which should be `expected`.
fn whole(blob: &[u8], expected: &[u8], most: usize) -> io::Result<(Vec<u8>, Inflation)> {
    let descriptor =
        Descriptor { media_type: String::new(), digest: Digest::of(expected), size: expected.len() as u64 };
    std::thread::scope(|scope| {
        let blob = Trickle::new(io::Cursor::new(blob.to_vec()), most * 97);
        let mut inflated = inflate(scope, Box::new(blob), &descriptor, SizeLimit::none()).expect("a thread");
        let bytes = all(&mut inflated)?;
        Ok((bytes, inflated.finish()?))
    })
}
