//! tar-split: what lets containers/storage give a layer out again byte for byte (`<id>.tar-split.gz`): [`TarSplit`] writes
//! it, [`Pieces`] reads it.
//!
//! JSON lines as `vbatts/tar-split` packs them (`tar/asm/disassemble.go`, `tar/storage/packer.go`): segments are the raw
//! bytes between file contents, files carry a CRC-64/GO-ISO of their content. Compressed fast: it is 3 % of a layer's work.

use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::json;
use crate::layer::tar::META_MAX;

/// Raw bytes after the end of the archive are recorded in pieces of at most this size (`paddingChunkSize`), 1 MiB.
pub const TAIL_CHUNK: usize = 1 << 20;

/// JSON collected before it is compressed. The compressor sees the same pieces for the same layer, whatever the blob's
/// compression or the machine: that keeps the compressed bytes the same.
const CHUNK: usize = 64 << 10;

/// Writes a layer's tar-split.
#[derive(Debug)]
pub struct TarSplit<W: Write> {
    gzip: GzEncoder<W>,
    json: Vec<u8>,
    position: u64,
}

impl<W: Write> TarSplit<W> {
    /// Writes compressed lines to `out`.
    pub fn new(out: W) -> Self {
        let gzip = flate2::GzBuilder::new().operating_system(255).write(out, flate2::Compression::new(LEVEL));
        Self { gzip, json: Vec::with_capacity(2 * CHUNK), position: 0 }
    }

    /// Records raw bytes of the archive; nothing for no bytes.
    ///
    /// # Errors
    /// Those of the output.
    pub fn segment(&mut self, raw: &[u8]) -> io::Result<()> {
        if raw.is_empty() {
            return Ok(());
        }
        self.json.extend_from_slice(br#"{"type":2,"payload":""#);
        base64_into(&mut self.json, raw);
        self.json.push(b'"');
        self.end_line()
    }

    /// Records an entry by its name as it stands in the archive, the size that its header says, and the CRC of its content.
    ///
    /// # Errors
    /// Those of the output.
    pub fn file(&mut self, name: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.json.extend_from_slice(br#"{"type":1"#);
        match std::str::from_utf8(name) {
            Ok("") => {}
            Ok(text) => {
                self.json.extend_from_slice(br#","name":"#);
                json::write::string(&mut self.json, text);
            }
            Err(_) => {
                self.json.extend_from_slice(br#","name_raw":""#);
                base64_into(&mut self.json, name);
                self.json.push(b'"');
            }
        }
        if size > 0 {
            write!(self.json, r#","size":{size},"payload":""#)?;
            base64_into(&mut self.json, &crc.to_be_bytes());
            self.json.push(b'"');
        } else {
            self.json.extend_from_slice(br#","payload":null"#);
        }
        self.end_line()
    }

    /// Ends the stream and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.gzip.write_all(&self.json)?;
        self.gzip.finish()
    }

    fn end_line(&mut self) -> io::Result<()> {
        writeln!(self.json, r#","position":{}}}"#, self.position)?;
        self.position += 1;
        if self.json.len() >= CHUNK {
            self.gzip.write_all(&self.json)?;
            self.json.clear();
        }
        Ok(())
    }
}

/// zlib's level 1, as Go's `gzip.BestSpeed` that containers/storage uses.
const LEVEL: u32 = 1;

fn base64_into(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    debug_assert_eq!(start + written, out.len());
}

/// The longest line, in bytes: the headers of one entry ([`META_MAX`]) in base64, and some JSON around them.
pub const LINE_MAX: u64 = (META_MAX as u64 + (64 << 10)) / 3 * 4 + 4096;

/// A line of a tar-split.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Raw bytes of the archive.
    Segment(Vec<u8>),
    /// The content of an entry.
    File {
        /// Its name as it stands in the archive.
        name: Vec<u8>,
        /// Bytes.
        size: u64,
        /// CRC-64 of the content; 0 where there is none.
        crc: u64,
    },
}

/// Why a tar-split cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// Reading or decompressing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what tar-split writes.
    #[error("line {line}: {what}")]
    Line {
        /// Its number; the first is 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

#[derive(serde::Deserialize)]
struct Line<'a> {
    r#type: u64,
    #[serde(borrow, default)]
    name: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    name_raw: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    size: Option<i64>,
    #[serde(borrow, default)]
    payload: Option<std::borrow::Cow<'a, str>>,
    position: u64,
}

/// Reads a tar-split, line by line, as `tar/storage/packer.go` does.
#[derive(Debug)]
pub struct Pieces<R: BufRead> {
    input: BufReader<MultiGzDecoder<R>>,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Pieces<R> {
    /// Reads compressed lines from `input`.
    pub fn new(input: R) -> Self {
        Self { input: BufReader::with_capacity(CHUNK, MultiGzDecoder::new(input)), line: Vec::new(), number: 0 }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// When the input is not gzip, or a line is malformed or longer than [`LINE_MAX`].
    pub fn next_piece(&mut self) -> Result<Option<Piece>, SplitError> {
        self.line.clear();
        let read = self.input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let fail = |what: String| SplitError::Line { line: self.number, what };
        if read as u64 > LINE_MAX {
            return Err(fail(format!("more than {LINE_MAX} bytes")));
        }
        let line: Line<'_> = serde_json::from_slice(&self.line).map_err(|error| fail(error.to_string()))?;
        if line.position != self.number - 1 {
            return Err(fail(format!("position {} where {} was expected", line.position, self.number - 1)));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| fail(error.to_string()));
        let payload = decode(line.payload.as_deref().unwrap_or_default())?;
        match line.r#type {
            2 => Ok(Some(Piece::Segment(payload))),
            1 => {
                let name = match (line.name_raw, line.name) {
                    (Some(raw), _) => decode(&raw)?,
                    (None, name) => name.unwrap_or_default().into_owned().into_bytes(),
                };
                let size = u64::try_from(line.size.unwrap_or(0)).map_err(|_| fail("a negative size".to_owned()))?;
                let crc = match <[u8; 8]>::try_from(&payload[..]) {
                    Ok(bytes) => u64::from_be_bytes(bytes),
                    Err(_) if payload.is_empty() => 0,
                    Err(_) => return Err(fail(format!("a CRC of {} bytes, not 8", payload.len()))),
                };
                Ok(Some(Piece::File { name, size, crc }))
            }
            other => Err(fail(format!("type {other}, not 1 or 2"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_go_writes() {
        let mut split = TarSplit::new(Vec::new());
        split.segment(b"head").unwrap();
        split.segment(b"").unwrap();
        split.file(b"etc/motd", 6, 0x614c_3eee_e2d8_1000).unwrap();
        split.file(b"a<b>\"\n", 0, 0).unwrap();
        split.file(b"\xff", 0, 0).unwrap();
        let gzip = split.finish().unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            concat!(
                "{\"type\":2,\"payload\":\"aGVhZA==\",\"position\":0}\n",
                "{\"type\":1,\"name\":\"etc/motd\",\"size\":6,\"payload\":\"YUw+7uLYEAA=\",\"position\":1}\n",
                "{\"type\":1,\"name\":\"a\\u003cb\\u003e\\\"\\n\",\"payload\":null,\"position\":2}\n",
                "{\"type\":1,\"name_raw\":\"/w==\",\"payload\":null,\"position\":3}\n",
            )
        );
        let mut pieces = Pieces::new(&gzip[..]);
        let file = |name: &[u8], size, crc| Piece::File { name: name.to_vec(), size, crc };
        let expected = [
            Piece::Segment(b"head".to_vec()),
            file(b"etc/motd", 6, 0x614c_3eee_e2d8_1000),
            file(b"a<b>\"\n", 0, 0),
            file(b"\xff", 0, 0),
        ];
        for piece in expected {
            assert_eq!(pieces.next_piece().unwrap(), Some(piece));
        }
        assert_eq!(pieces.next_piece().unwrap(), None);
    }

    #[test]
    fn lines_that_are_no_good_are_named() {
        for (text, part) in [
            ("{", "line 1: EOF"),
            (r#"{"type":3,"position":0}"#, "type 3"),
            (r#"{"type":2,"payload":"!","position":0}"#, "line 1"),
            (r#"{"type":1,"size":-1,"position":0}"#, "negative"),
            (r#"{"type":1,"size":1,"payload":"AA==","position":0}"#, "1 bytes"),
            (r#"{"type":2,"payload":"","position":1}"#, "position 1"),
        ] {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            let error = Pieces::new(&gzip.finish().unwrap()[..]).next_piece().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Pieces::new(&b"no gzip"[..]).next_piece().is_err());
    }
}
