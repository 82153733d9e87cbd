use super::{BLOCK, checksum, header, number, padding};
use crate::entry::{Entry, Kind};

/// The two zero blocks that end an archive.
pub const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

/// Sets the modification time of a header block as [`header`] made it to a whole second.
pub fn set_mtime(block: &mut [u8; BLOCK as usize], seconds: i64) {
    number(&mut block[136..148], seconds);
    checksum(block);
}

/// Appends `entry` with content that is at hand.
pub fn small_file(out: &mut Vec<u8>, entry: &Entry, content: &[u8]) {
    debug_assert_eq!(entry.kind, Kind::Regular { size: content.len() as u64 });
    header(entry, out);
    out.extend_from_slice(content);
    out.resize(out.len() + padding(content.len() as u64) as usize, 0);
}
