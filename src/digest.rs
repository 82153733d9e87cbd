//! SHA-256 digests, and readers that know what they have read.
//!
//! Bytes from outside are untrusted until a [`VerifyReader`] has consumed them to their end: it gives the last bytes out
//! only together with the verdict, so a caller that sees end of file has seen the right bytes.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::Digest as _;

/// A SHA-256 digest: the only algorithm that registries, OCI layouts and containers/storage use in practice.
///
/// Written `sha256:` and 64 lower-case hexadecimal digits ([OCI image spec, descriptor.md, "Digests"]). SHA-512, which
/// the specification also registers, is refused by name when parsed.
///
/// [OCI image spec, descriptor.md, "Digests"]: https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a string is not a [`Digest`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseDigestError {
    /// An algorithm other than sha256.
    #[error("digest {0:?}: only sha256 is supported")]
    Algorithm(String),
    /// Not `algorithm:hex`, or the wrong number of digits.
    #[error("{0:?} is not a digest: expected sha256: and 64 lower-case hexadecimal digits")]
    Form(String),
}

impl Digest {
    /// All zero: nothing has it.
    #[cfg(test)]
    pub const ZERO: Self = Self([0; 32]);

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits without the algorithm: how containers/storage names layers and images.
    #[must_use]
    pub fn hex(&self) -> String {
        // The formatter would be a fifth of what a store of many images costs.
        let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// From 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// When `hex` is anything else.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        let form = || ParseDigestError::Form(hex.to_owned());
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return Err(form());
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(form()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }

    /// Returns the id that a store gives the layer with this diffID on top of the layer `parent`: the diffID itself for the lowest
    /// layer, else the SHA-256 of the parent's id, `+` and the diffID, both in hexadecimal digits (containers/image
    /// `storage/storage_dest.go`, `computeNextLayerID`).
    #[must_use]
    pub fn layer_id(&self, parent: Option<&Self>) -> Self {
        parent.map_or(*self, |parent| Self::of(format!("{}+{}", parent.hex(), self.hex()).as_bytes()))
    }

    /// The raw 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex).map_err(|_| ParseDigestError::Form(text.to_owned())),
            Some((algorithm, _)) if !algorithm.is_empty() => Err(ParseDigestError::Algorithm(text.to_owned())),
            _ => Err(ParseDigestError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// What a [`VerifyReader`] found wrong. It travels inside an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The bytes hash to something else.
    #[error(
        "digest mismatch: expected {expected}, got {found} (the source gave wrong bytes; try again, or check the source)"
    )]
    Digest {
        /// What the descriptor says.
        expected: Digest,
        /// What the bytes are.
        found: Digest,
    },
    /// The stream ended early.
    #[error("truncated: expected {expected} bytes, got {found}")]
    Short {
        /// The descriptor's size in bytes.
        expected: u64,
        /// The bytes that came.
        found: u64,
    },
    /// The stream goes on after the descriptor's size.
    #[error("longer than the {expected} bytes that its descriptor says")]
    Long {
        /// The descriptor's size in bytes.
        expected: u64,
    },
}

impl From<VerifyError> for io::Error {
    fn from(error: VerifyError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Passes bytes through and reports end of file only when digest and size were right.
///
/// Bytes it has given out before its end are not yet verified: whoever uses it must not act for good before `Ok(0)`.
#[derive(Debug)]
pub struct VerifyReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Digest,
    size: u64,
    seen: u64,
}

impl<R: Read> VerifyReader<R> {
    /// Will verify that `inner` gives `size` bytes that hash to `expected`.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        Self { inner, hasher: Some(Hasher::new()), expected, size, seen: 0 }
    }
}

impl<R: Read> Read for VerifyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        self.seen += read as u64;
        if self.seen > self.size {
            return Err(VerifyError::Long { expected: self.size }.into());
        }
        if read > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..read]);
            }
            return Ok(read);
        }
        if self.seen < self.size {
            return Err(VerifyError::Short { expected: self.size, found: self.seen }.into());
        }
        if let Some(hasher) = self.hasher.take() {
            let found = hasher.finish();
            if found != self.expected {
                return Err(VerifyError::Digest { expected: self.expected, found }.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn a_digest_is_parsed_strictly_and_written_back() {
        let digest: Digest = HELLO.parse().unwrap();
        assert_eq!(digest.to_string(), HELLO);
        assert_eq!(digest, Digest::of(b"hello\n"));
        for bad in ["", "sha256:", "sha256:12", &HELLO.to_uppercase(), &HELLO[7..], "sha512:00", &format!("{HELLO}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_end_is_only_seen_with_the_right_bytes() {
        let read = |bytes: &[u8], size| {
            let mut out = Vec::new();
            VerifyReader::new(bytes, HELLO.parse().unwrap(), size).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(b"hello\n", 6).unwrap(), b"hello\n");
        for (bytes, size) in [(&b"hello"[..], 6), (b"hello\n\n", 6), (b"hellO\n", 6), (b"hello\n", 7), (b"hello\n", 5)]
        {
            assert_eq!(read(bytes, size).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?} {size}");
        }
    }
}
