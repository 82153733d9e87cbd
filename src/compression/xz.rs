//! xz: all streams of a file, with the memory that the first block's dictionary needs.

use std::io::{self, BufRead, Chain, Cursor, Read};

use lzma_rust2::XzReader;

use super::unsupported;
use super::window::{self, Share, WINDOW_MAX};

/// Length of a stream's header (The .xz file format, section 2.1.1), in bytes.
const STREAM_HEADER: usize = 12;

/// Memory that a decoder may use for the dictionary of any block, in bytes: that of `xz -9`. A first block with a larger
/// dictionary raises the limit for its file.
const DICTIONARY: u64 = 64 << 20;

/// Memory of a decoder besides its dictionary, in KiB: more than the crate's estimate (`lzma2_reader.rs`, `get_memory_usage`).
const OVERHEAD: u32 = 256;

/// The id of the LZMA2 filter (section 5.3.1).
const LZMA2: u64 = 0x21;

/// Decompresses all streams of its input.
pub(super) struct Reader<R: Read>(State<R>);

enum State<R: Read> {
    /// Nothing has been read.
    New(R),
    /// In use.
    Begun {
        decoder: Box<XzReader<Chain<Cursor<Vec<u8>>, R>>>,
        /// Memory for the dictionary.
        _share: Option<Share>,
    },
    /// Failed before.
    Failed,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self(State::New(input))
    }
}

fn begin<R: BufRead>(mut input: R) -> io::Result<State<R>> {
    let mut head = Vec::new();
    input.by_ref().take(STREAM_HEADER as u64 + 1).read_to_end(&mut head)?;
    if let Some(&size) = head.get(STREAM_HEADER) {
        // Section 3.1.1; 0 is the index of a stream without blocks.
        let rest = if size == 0 { 0 } else { (u64::from(size) + 1) * 4 - 1 };
        input.by_ref().take(rest).read_to_end(&mut head)?;
    }
    let declared = dictionary(head.get(STREAM_HEADER..).unwrap_or_default()).unwrap_or(0);
    if declared > WINDOW_MAX {
        let (declared, max) = (declared.div_ceil(1 << 20), WINDOW_MAX >> 20);
        return Err(unsupported(format!("a dictionary of {declared} MiB, the limit is {max} MiB")));
    }
    let memory = declared.max(DICTIONARY);
    let share = window::take(memory)?;
    let limit = (memory >> 10) as u32 + OVERHEAD;
    let decoder = XzReader::new_mem_limit(Cursor::new(head).chain(input), true, limit);
    Ok(State::Begun { decoder: Box::new(decoder), _share: share })
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let State::New(_) = &self.0
            && let State::New(input) = std::mem::replace(&mut self.0, State::Failed)
        {
            self.0 = begin(input)?;
        }
        match &mut self.0 {
            State::Begun { decoder, .. } => decoder.read(buffer).map_err(|error| match error.kind() {
                io::ErrorKind::OutOfMemory => {
                    unsupported("a later block needs a larger dictionary than 64 MiB and the first one's")
                }
                _ => error,
            }),
            State::New(_) | State::Failed => Err(unsupported("it could not be read before")),
        }
    }
}

/// Returns the size of the dictionary that a block's header (section 3.1) declares, in bytes. `None` if the decoder will refuse it.
fn dictionary(block: &[u8]) -> Option<u64> {
    let (&flags, mut rest) = block.get(1..)?.split_first()?;
    let is_present = |bit: u8| flags & bit != 0;
    for _ in [0x40, 0x80].into_iter().filter(|bit| is_present(*bit)) {
        number(&mut rest)?;
    }
    for _ in 0..=(flags & 3) {
        let (filter, length) = (number(&mut rest)?, usize::try_from(number(&mut rest)?).ok()?);
        let (properties, after) = rest.split_at_checked(length)?;
        rest = after;
        if let (LZMA2, [bits]) = (filter, properties) {
            // Section 5.3.1.
            return match bits & 0x3f {
                40 => Some(u64::from(u32::MAX)),
                bits if bits < 40 => Some((2 | u64::from(bits & 1)) << (bits / 2 + 11)),
                _ => None,
            };
        }
    }
    None
}

/// Takes a multibyte integer (section 1.2).
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..9 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_are_found_in_block_headers() {
        // Header size, flags, filters: LZMA2 alone; after the sizes of the block; after x86 BCJ.
        assert_eq!(dictionary(&[2, 0, 0x21, 1, 22, 0, 0, 0]), Some(8 << 20));
        assert_eq!(dictionary(&[3, 0xc0, 0x80, 1, 5, 0x21, 1, 34, 0]), Some(512 << 20));
        assert_eq!(dictionary(&[2, 1, 4, 0, 0x21, 1, 40, 0]), Some(u64::from(u32::MAX)));
        for bad in [&[2, 0, 0x21, 1, 41][..], &[2, 0, 0x21, 9, 1], &[2, 0, 3, 1, 0], &[0], &[], &[1, 0x40, 0x80]] {
            assert_eq!(dictionary(bad), None, "{bad:?}");
        }
    }
}
