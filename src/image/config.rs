//! The image's config: the few fields that a store needs. All others stay in the bytes.

use super::{Error, Platform};
use crate::digest::Digest;
use crate::json::{self, Document};

/// What a config says (OCI image spec, config.md; Docker's is the same in these fields).
#[derive(Debug)]
pub(super) struct Config {
    pub diff_ids: Vec<Digest>,
    pub created: Option<String>,
    pub platform: Platform,
}

impl Config {
    pub(super) fn parse(bytes: &[u8], id: &Digest) -> Result<Self, Error> {
        let json = |error: json::Error| Error::Config { id: *id, error };
        let document = Document::parse(bytes).map_err(json)?;
        let top = document.top();
        let mut diff_ids = Vec::new();
        if let Some(rootfs) = top.get("rootfs").map_err(json)? {
            for item in rootfs.get_items("diff_ids").map_err(json)? {
                let text = item.text().map_err(json)?;
                diff_ids.push(text.parse().map_err(|error| Error::DiffId { id: *id, error })?);
            }
        }
        let created = match top.get("created").map_err(json)? {
            Some(created) => Some(created.text().map_err(json)?),
            None => None,
        };
        if let Some(created) = created.filter(|created| !is_rfc3339(created)) {
            return Err(Error::Created { id: *id, created: created.to_owned() });
        }
        let text = |key| top.get_text(key).map(str::to_owned).map_err(json);
        Ok(Self {
            diff_ids,
            created: created.map(str::to_owned),
            platform: Platform { os: text("os")?, architecture: text("architecture")?, variant: text("variant")? },
        })
    }
}

/// Whether Go's `time.Time` takes this from JSON: RFC 3339 without leap seconds, with `T` and `Z` in upper case
/// (`time/format_rfc3339.go`). An image whose time it does not take is refused by skopeo, podman and CRI-O.
#[must_use]
pub fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let in_range = |from, low, high| number(from, from + 2).is_some_and(|number| (low..=high).contains(&number));
    let (Some(year), Some(month)) = (number(0, 4), number(5, 7)) else { return false };
    let days = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(at, separator)| bytes.get(*at) == Some(separator)) {
        return false;
    }
    if !(in_range(8, 1, days) && in_range(11, 0, 23) && in_range(14, 0, 59) && in_range(17, 0, 59)) {
        return false;
    }
    let mut zone = 19;
    if bytes.get(zone) == Some(&b'.') {
        let digits = bytes[zone + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        zone += 1 + digits;
    }
    match bytes.get(zone) {
        Some(b'Z') => bytes.len() == zone + 1,
        Some(b'+' | b'-') => {
            let colon = bytes.get(zone + 3) == Some(&b':');
            bytes.len() == zone + 6 && colon && in_range(zone + 1, 0, 23) && in_range(zone + 4, 0, 59)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_rfc3339;

    #[test]
    fn times_are_those_that_go_takes() {
        for good in [
            "2024-01-02T03:04:05Z",
            "0001-01-01T00:00:00Z",
            "2024-02-29T23:59:59.123456789+02:00",
            "2024-12-31T00:00:00-23:59",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "yesterday",
            "2024-01-02",
            "2024-01-02T03:04:05",
            "2024-01-02 03:04:05Z",
            "2024-01-02t03:04:05z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-02T24:00:00Z",
            "2024-01-02T03:04:60Z",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04:05,1Z",
            "2024-01-02T03:04:05Zx",
            "2024-01-02T03:04:05+0200",
            "2024-01-02T03:04:05+02:0\u{e9}",
            "+024-01-02T03:04:05Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
