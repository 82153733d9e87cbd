//! Zstandard, frame by frame, so that each frame's window is known before libzstd allocates it.

use std::io::{self, BufRead, Read};

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::window::{self, Share};
use super::{corrupt, unsupported};

/// Maximum length of a frame's header with its magic number, in bytes (RFC 8878, section 3.1.1.1).
const HEADER_MAX: usize = 18;

/// The power of two of [`window::WINDOW_MAX`].
const WINDOW_LOG_MAX: u32 = window::WINDOW_MAX.ilog2();

/// Decompresses all frames of its input.
pub(super) struct Reader<R> {
    input: R,
    context: DCtx<'static>,
    /// The header of the current frame, and how much of it libzstd has taken.
    head: Vec<u8>,
    taken: usize,
    is_in_frame: bool,
    /// Memory for the largest window so far: libzstd keeps its buffer for the next frame.
    share: Option<Share>,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        let context = DCtx::create();
        Self { input, context, head: Vec::with_capacity(HEADER_MAX), taken: 0, is_in_frame: false, share: None }
    }

    /// Reads the header of the next frame and reserves its window. Returns whether there is a frame.
    fn begin(&mut self) -> io::Result<bool> {
        self.head.clear();
        self.taken = 0;
        let mut needed = 4;
        while self.head.len() < needed {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                break;
            }
            let count = available.len().min(needed - self.head.len());
            self.head.extend_from_slice(&available[..count]);
            self.input.consume(count);
            needed = header_length(&self.head);
        }
        if self.head.is_empty() {
            return Ok(false);
        }
        if self.head.len() < needed {
            return Err(corrupt("it ends in the header of a frame"));
        }
        if let Some(Header { window, content, dictionary }) = header(&self.head) {
            if dictionary != 0 {
                return Err(unsupported(format!("it needs the dictionary {dictionary}, which is not part of it")));
            }
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            if window > window::WINDOW_MAX {
                let (window, max) = (mib(window), mib(window::WINDOW_MAX));
                return Err(unsupported(format!("a window of {window} MiB, the limit is {max} MiB")));
            }
            // A window is never larger than the content (libzstd, `ZSTD_decodingBufferSize_internal`).
            let memory = content.map_or(window, |content| content.min(window));
            if self.share.as_ref().map_or(0, Share::bytes) < memory {
                // The buffer for the smaller one goes first.
                (self.context, self.share) = (DCtx::create(), None);
                self.share = window::take(memory)?;
            }
        }
        let limit = DParameter::WindowLogMax(WINDOW_LOG_MAX);
        self.context.set_parameter(limit).map_err(|code| corrupt(zstd_safe::get_error_name(code)))?;
        self.is_in_frame = true;
        Ok(true)
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame && !self.begin()? {
                return Ok(0);
            }
            let is_head = self.taken < self.head.len();
            let source = if is_head { &self.head[self.taken..] } else { self.input.fill_buf()? };
            let is_end = source.is_empty();
            let (mut input, mut output) = (InBuffer::around(source), OutBuffer::around(&mut *buffer));
            let hint = self.context.decompress_stream(&mut output, &mut input);
            let hint = hint.map_err(|code| corrupt(zstd_safe::get_error_name(code)))?;
            let (read, written) = (input.pos(), output.pos());
            if is_head {
                self.taken += read;
            } else {
                self.input.consume(read);
            }
            self.is_in_frame = hint != 0;
            if written > 0 {
                return Ok(written);
            }
            if is_end && self.is_in_frame {
                return Err(corrupt("it ends in the middle of a frame"));
            }
        }
    }
}

/// What a frame's header says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    window: u64,
    content: Option<u64>,
    dictionary: u32,
}

/// Returns the length of the header that begins like this, as far as it is known: at most four bytes more than `head` has.
fn header_length(head: &[u8]) -> usize {
    match head {
        [0x28, 0xb5, 0x2f, 0xfd] => 5,
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] => {
            let (window, dictionary, content) = fields(*descriptor);
            5 + window + dictionary + content
        }
        _ => 4,
    }
}

/// Returns the lengths of the header's window descriptor, dictionary id and content size.
fn fields(descriptor: u8) -> (usize, usize, usize) {
    let is_single = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match descriptor >> 6 {
        0 => usize::from(is_single),
        flag => 1 << flag,
    };
    (usize::from(!is_single), dictionary, content)
}

/// Parses a complete header; `None` for a skippable frame, and for anything that libzstd will refuse.
fn header(head: &[u8]) -> Option<Header> {
    let rest = head.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = rest.split_first()?;
    let (window, dictionary, content) = fields(descriptor);
    let (window, rest) = rest.split_at_checked(window)?;
    let (dictionary, rest) = rest.split_at_checked(dictionary)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let content = match content {
        0 => None,
        2 => Some(number(rest.get(..2)?) + 256),
        length => Some(number(rest.get(..length)?)),
    };
    let window = match window {
        [] => content?,
        [exponent_and_mantissa, ..] => {
            let base = 1_u64 << (10 + (exponent_and_mantissa >> 3));
            base + base / 8 * u64::from(exponent_and_mantissa & 7)
        }
    };
    Some(Header { window, content, dictionary: number(dictionary) as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_parsed_as_rfc_8878_has_them() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let parsed = |rest: &[u8]| header(&[&magic[..], rest].concat());
        let some = |window, content, dictionary| Some(Header { window, content, dictionary });
        assert_eq!(parsed(&[0x00, 0x00]), some(1 << 10, None, 0));
        assert_eq!(parsed(&[0x00, (19 << 3) | 1]), some((1 << 29) + (1 << 26), None, 0));
        assert_eq!(parsed(&[0x20, 0xff]), some(255, Some(255), 0));
        assert_eq!(parsed(&[0x60, 0x01, 0x00]), some(257, Some(257), 0));
        assert_eq!(parsed(&[0x83, 0x50, 1, 2, 3, 4, 5, 0, 0, 0]), some(1 << 20, Some(5), 0x0403_0201));
        assert_eq!(parsed(&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0]), some(1 << 32, Some(1 << 32), 0));
        assert_eq!(parsed(&[0x00]), None);
        assert_eq!(header(&[0x50, 0x2a, 0x4d, 0x18]), None);
    }
}
