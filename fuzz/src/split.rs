//! Reads a tar-split as who exports a layer does (`vbatts/tar-split`, `tar/asm/assemble.go`).

use base64::Engine as _;
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    r#type: u8,
    name: Option<String>,
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    payload: Option<String>,
    position: u64,
}

/// A file's place in a tar-split.
#[derive(Debug)]
pub struct File {
    /// Its name as it stands in the archive.
    pub name: Vec<u8>,
    /// The bytes of content that follow in the archive.
    pub size: u64,
    /// CRC-64/GO-ISO of the content.
    pub crc: u64,
    /// The type in the header before it.
    pub typeflag: u8,
}

/// Puts the layer together; `content` gives what each file has.
///
/// # Panics
/// When the tar-split is not one.
pub fn assemble(split_gz: &[u8], mut content: impl FnMut(&File, usize) -> Vec<u8>) -> Vec<u8> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
    let mut json = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(split_gz), &mut json).expect("gzip");
    let mut tar = Vec::new();
    let mut header_end = 0;
    for (number, line) in json.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let line: Line = serde_json::from_slice(line).expect("a line of JSON");
        assert_eq!(line.position, number as u64);
        let payload = line.payload.as_deref().map(decode).unwrap_or_default();
        if line.r#type == 2 {
            assert!(!payload.is_empty());
            tar.extend_from_slice(&payload);
            header_end = tar.len();
            continue;
        }
        assert_eq!(line.r#type, 1);
        let typeflag = tar[header_end - 512 + 156];
        let name = line.name_raw.as_deref().map(decode);
        let name = name.unwrap_or_else(|| line.name.unwrap_or_default().into_bytes());
        let crc = payload.try_into().map_or(0, u64::from_be_bytes);
        // A type of NUL is a directory's where the name says so.
        let has_body = !(matches!(typeflag, b'1'..=b'6' | b'g') || typeflag == 0 && name.ends_with(b"/"));
        let size = if has_body { line.size } else { 0 };
        let file = File { name, size, crc, typeflag };
        if file.size > 0 {
            let content = content(&file, tar.len());
            assert_eq!(content.len() as u64, file.size);
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
            digest.update(&content);
            assert_eq!(digest.finalize(), file.crc, "the content has another checksum");
            tar.extend_from_slice(&content);
        }
    }
    tar
}
