//! How large decompressed data may be.

use std::fmt;

use crate::text::human;

/// Default maximum of the uncompressed size of an image's layers, or of an archive, in bytes: 64 GiB. The largest images in
/// use, those of CUDA and of models, have about 40 GiB.
const SIZE_MAX: u64 = 64 << 30;

/// Default maximum of the uncompressed size of a layer that is compressed more than [`RATIO_MAX`] to one, in bytes: 4 GiB.
const DENSE_MAX: u64 = 4 << 30;

/// Largest ratio of sizes that is not unusual: programs and texts have 2 to 10, zeros have 1,000 (gzip) to 10,000 or more.
const RATIO_MAX: u64 = 100;

/// A limit for uncompressed sizes. Each layer is held to it while it is decompressed, and the sum of an image's layers as each of them
/// ends: the layers that are decompressed at once may have as much each before the image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    max: u64,
    dense_max: u64,
}

/// What exceeds a [`SizeLimit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    plain: u64,
    compressed: u64,
    max: u64,
}

impl Default for SizeLimit {
    fn default() -> Self {
        Self { max: SIZE_MAX, dense_max: DENSE_MAX }
    }
}

impl SizeLimit {
    /// The limit that a user has set, in bytes, whatever the ratio.
    #[must_use]
    pub fn of(max: u64) -> Self {
        Self { max, dense_max: max }
    }

    /// No limit.
    #[must_use]
    pub fn none() -> Self {
        Self::of(u64::MAX)
    }

    /// Checks that `plain` bytes, of a blob of `compressed` bytes, are not too many.
    ///
    /// # Errors
    /// [`TooLarge`] if they are.
    pub fn check(&self, plain: u64, compressed: u64) -> Result<(), TooLarge> {
        let is_dense = plain / RATIO_MAX > compressed;
        let max = if is_dense { self.dense_max.min(self.max) } else { self.max };
        if plain > max { Err(TooLarge { plain, compressed, max }) } else { Ok(()) }
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plain, compressed, max } = *self;
        let ratio = plain / compressed.max(1);
        write!(f, "more than {} uncompressed, of {} compressed (more than {ratio}:1)", shown(max), human(compressed))?;
        f.write_str("; --max-size SIZE allows more")
    }
}

impl std::error::Error for TooLarge {}

/// Returns a limit for people: in the binary unit of which it is a multiple, as the defaults are written, else as any size.
fn shown(max: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let fits = |power: usize| max > 0 && max.is_multiple_of(1 << (10 * (power + 1)));
    match (0..UNITS.len()).rev().find(|power| fits(*power)) {
        Some(power) => format!("{} {}", max >> (10 * (power + 1)), UNITS[power]),
        None => human(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dense_data_have_the_smaller_limit() {
        let limit = SizeLimit::default();
        assert!(limit.check(40 << 30, 10 << 30).is_ok());
        assert!(limit.check((64 << 30) + 1, 10 << 30).is_err());
        assert!(limit.check(4 << 30, 1).is_ok());
        let bomb = limit.check(8_600_000_000, 8_300_000).unwrap_err().to_string();
        assert_eq!(
            bomb,
            "more than 4 GiB uncompressed, of 8.30 MB compressed (more than 1036:1); --max-size SIZE allows more"
        );
        let set = SizeLimit::of(10 << 30);
        assert!(set.check(8_600_000_000, 8_300_000).is_ok());
        assert!(set.check((10 << 30) + 1, 10 << 30).is_err());
        assert!(SizeLimit::none().check(u64::MAX, 0).is_ok());
        let sizes = [0, 1023, 1536, 3 << 40, 64 << 30, 5_000_000_000, u64::MAX];
        assert_eq!(
            sizes.map(shown),
            ["0 B", "1.02 kB", "1.54 kB", "3 TiB", "64 GiB", "5.00 GB", "18446744 TB"],
            "a size that the user has typed is shown as typed"
        );
    }
}
