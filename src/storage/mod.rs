//! The containers/storage model: what of an image and its layers the overlay driver's tree holds, and under which names.
//!
//! Written after containers/storage 1.64 (`store.go`, `layers.go`, `images.go`, `drivers/overlay`) and containers/image
//! (`storage/storage_dest.go`); readable by every version since 1.20.

pub mod machine;
pub mod opaque;
pub mod record;
pub mod restore;
pub mod store;

use crate::digest::Digest;

/// Characters of a short layer link (`drivers/overlay/randomid.go`, `idLength`): kept short so that many fit a mount's options.
const LINK_LEN: usize = 26;

/// The short name of a layer in `overlay/l/`. containers/storage makes a random one; here it follows from the layer's id.
#[must_use]
pub fn link_name(layer_id: &Digest) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = Digest::of(format!("link:{}", layer_id.hex()).as_bytes());
    let bit = |index: usize| usize::from(hash.as_bytes()[index / 8] >> (7 - index % 8) & 1);
    // RFC 4648 base32: five bits a character.
    let character = |index: usize| ALPHABET[(0..5).fold(0, |value, offset| value << 1 | bit(5 * index + offset))];
    (0..LINK_LEN).map(|index| char::from(character(index))).collect()
}

/// The file name of a big data item.
pub use crate::helper::publish::incoming::file_name as big_data_file_name;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_the_documented_ones() {
        let id = |hex| Digest::from_hex(hex).unwrap();
        let first = id("1e2dd48f35fd9b1c42781a40931ac379a213be5511f736b258dfee59b29182d8");
        assert_eq!(link_name(&first), "5PK3UK2ZFRBFABJ3GZLTDWQYPL");
        let second = id("d41d036956d53a0068298002793675d6536b816623ccbaa13f3e95bc38ae0e25");
        assert_eq!(link_name(&second), "Q6GN5RWIAQC3LEURTUGP6JDIKC");
    }

    #[test]
    fn big_data_keys_become_file_names_as_in_store_go() {
        assert_eq!(big_data_file_name("manifest"), "manifest");
        assert_eq!(big_data_file_name("sha256:6f92"), "=c2hhMjU2OjZmOTI=");
    }
}
