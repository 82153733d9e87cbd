//! LZ4 frames, one after the other (lz4_Frame_format.md, 1.6.4).

use std::io::{self, BufRead, Cursor, Read};

use lz4_flex::frame::FrameDecoder;

use super::corrupt;

/// What a frame begins with.
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// Decompresses all frames of its input. Blocks have at most 4 MiB, and the window 64 KiB.
pub(super) struct Reader<R: BufRead>(State<R>);

enum State<R: BufRead> {
    Between(R),
    Frame(Box<FrameDecoder<Rest<R>>>),
    Failed,
}

/// The input of one frame: its magic number, and what follows. A frame has an end marker, so the input's end comes too early; the
/// crate would take that for the frame's end.
struct Rest<R> {
    magic: Cursor<[u8; 4]>,
    input: R,
}

impl<R: Read> Read for Rest<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.magic.read(buffer)? {
            0 => {}
            count => return Ok(count),
        }
        match self.input.read(buffer)? {
            0 if !buffer.is_empty() => Err(corrupt("it ends in the middle of a frame")),
            count => Ok(count),
        }
    }
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self(State::Between(input))
    }
}

/// Skips skippable frames, and returns the magic number of the next frame. `None` at the end of the input.
fn next_magic<R: BufRead>(input: &mut R) -> io::Result<Option<[u8; 4]>> {
    loop {
        if input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if !matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
            return Ok(Some(magic));
        }
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if io::copy(&mut input.by_ref().take(length), &mut io::sink())? != length {
            return Err(corrupt("it ends in the middle of a frame"));
        }
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.0, State::Failed) {
                State::Failed => return Err(corrupt("it could not be read before")),
                State::Between(mut input) => match next_magic(&mut input)? {
                    None => {
                        self.0 = State::Between(input);
                        return Ok(0);
                    }
                    Some(MAGIC) => {
                        let rest = Rest { magic: Cursor::new(MAGIC), input };
                        self.0 = State::Frame(Box::new(FrameDecoder::new(rest)));
                    }
                    Some(_) => return Err(corrupt("something else follows a frame")),
                },
                State::Frame(mut decoder) => match decoder.read(buffer)? {
                    0 => self.0 = State::Between(decoder.into_inner().input),
                    count => {
                        self.0 = State::Frame(decoder);
                        return Ok(count);
                    }
                },
            }
        }
    }
}
