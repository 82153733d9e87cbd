//! tar-split: what lets containers/storage give a layer out again byte for byte (`<id>.tar-split.gz`).
//!
//! JSON lines as `vbatts/tar-split` packs them (`tar/asm/disassemble.go`, `tar/storage/packer.go`): segments are the raw
//! bytes between file contents, files carry a CRC-64/GO-ISO of their content. Compressed fast: it is 3 % of a layer's work.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;

use crate::json;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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
    }
}
