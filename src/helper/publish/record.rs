//! The records of a store: what layers.json and images.json hold of a layer and an image (containers/storage `layers.go`, `Layer`;
//! `images.go`, `Image`; fields in Go's order), and how the two go over the wire: as lines, `field value`.
//!
//! Lines, so that no JSON of a stranger is parsed with privilege: every value is checked by shape, and the JSON is written here. A
//! store with one bad name or time in it is one that podman and CRI-O do not load at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::Error;
use super::super::policy::number;
use super::super::receive::is_id;
use crate::go_types::is_time;

/// The most names, and the most files, of one image. While they are compared with the store's, others wait for its locks.
pub(super) const PER_IMAGE_MAX: usize = 1000;

/// Key of an image's own manifest (containers/storage `images.go`, `ImageDigestBigDataKey`), and with `-DIGEST` behind it of each
/// of its manifests and indexes.
pub const MANIFEST_KEY: &str = "manifest";

/// The most owners, and the most groups, of one layer: they are there for user namespaces, which are not made larger
/// (containers/storage `types/options.go`, `AutoUserNsMaxSize`).
pub const OWNERS_MAX: usize = 65536;

/// A layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerRecord {
    /// The chainID of its diffIDs, in hexadecimal digits.
    pub id: String,
    /// Its short name, which a mount's options have room for: in no record, but a file and a link in the store.
    #[serde(skip)]
    pub link: String,
    /// The layer below.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Digest of the blob as it was received.
    pub compressed_diff_digest: String,
    /// Its size in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_size: u64,
    /// The diffID.
    pub diff_digest: String,
    /// Bytes of the uncompressed tar.
    #[serde(skip_serializing_if = "is_zero")]
    pub diff_size: u64,
    /// containers/storage's number of the compression.
    #[serde(skip_serializing_if = "is_zero")]
    pub compression: u64,
    /// Owners that occur, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uidset: Vec<u32>,
    /// Groups that occur, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gidset: Vec<u32>,
}

/// An image. What a newer containers/storage adds is kept in `rest`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageRecord {
    /// The config's digest, in hexadecimal digits.
    pub id: String,
    /// What a registry answers for it: the index's digest, or the manifest's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Its names, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Names that it has or had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names_history: Vec<String>,
    /// Id of the uppermost layer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// Copies of it for user namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped_layers: Vec<String>,
    /// JSON in a string.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// Keys of its files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub big_data_names: Vec<String>,
    /// Their sizes in bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub big_data_sizes: BTreeMap<String, u64>,
    /// Their digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub big_data_digests: BTreeMap<String, String>,
    /// The config's time (RFC 3339).
    pub created: String,
    /// Whatever else there is.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Why a record is refused: the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record's field `{0}` is missing or not valid")]
pub struct Invalid(pub &'static str);

impl LayerRecord {
    /// As lines.
    #[must_use]
    pub fn to_lines(&self) -> String {
        let numbers = |set: &[u32]| set.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let mut lines = format!("id {}\nlink {}\n", self.id, self.link);
        if !self.parent.is_empty() {
            let _ = writeln!(lines, "parent {}", self.parent);
        }
        let _ = write!(
            lines,
            "created {}\ncompressed-diff-digest {}\ncompressed-size {}\ndiff-digest {}\ndiff-size {}\ncompression {}\n",
            self.created,
            self.compressed_diff_digest,
            self.compressed_size,
            self.diff_digest,
            self.diff_size,
            self.compression
        );
        for (field, set) in [("uidset", &self.uidset), ("gidset", &self.gidset)] {
            if !set.is_empty() {
                let _ = writeln!(lines, "{field} {}", numbers(set));
            }
        }
        lines
    }

    /// Reads [`Self::to_lines`].
    ///
    /// # Errors
    /// When a field is missing, out of its place, or has a value that no layer has.
    pub fn parse(lines: &str) -> Result<Self, Invalid> {
        let mut lines = Lines::new(lines)?;
        let record = Self {
            id: lines.must("id", is_id)?,
            link: lines.must("link", is_link)?,
            parent: lines.may("parent", is_id)?.unwrap_or_default(),
            created: lines.must("created", is_time)?,
            compressed_diff_digest: lines.must("compressed-diff-digest", is_digest)?,
            compressed_size: lines.number("compressed-size")?,
            diff_digest: lines.must("diff-digest", is_digest)?,
            diff_size: lines.number("diff-size")?,
            compression: lines.number("compression")?,
            uidset: lines.numbers("uidset")?,
            gidset: lines.numbers("gidset")?,
        };
        // 0 to 4: none, bzip2, gzip, xz, zstd (containers/storage `pkg/archive`, `Compression`).
        if record.compression > 4 {
            return Err(Invalid("compression"));
        }
        lines.end().map(|()| record)
    }
}

impl ImageRecord {
    /// As lines.
    #[must_use]
    pub fn to_lines(&self) -> String {
        let mut lines = format!("id {}\ndigest {}\n", self.id, self.digest);
        if !self.layer.is_empty() {
            let _ = writeln!(lines, "layer {}", self.layer);
        }
        let _ = writeln!(lines, "created {}", self.created);
        for name in &self.names {
            let _ = writeln!(lines, "name {name}");
        }
        for key in &self.big_data_names {
            let size = self.big_data_sizes.get(key).copied().unwrap_or_default();
            let digest = self.big_data_digests.get(key).map_or("", String::as_str);
            let _ = writeln!(lines, "data {key} {size} {digest}");
        }
        lines
    }

    /// Reads [`Self::to_lines`].
    ///
    /// # Errors
    /// When a field is missing, out of its place, or has a value that no image has.
    pub fn parse(lines: &str) -> Result<Self, Invalid> {
        let mut lines = Lines::new(lines)?;
        let mut record = Self {
            id: lines.must("id", is_id)?,
            digest: lines.must("digest", is_digest)?,
            layer: lines.may("layer", is_id)?.unwrap_or_default(),
            created: lines.must("created", is_time)?,
            metadata: "{}".to_owned(),
            ..Self::default()
        };
        record.names = lines.all("name", is_name)?;
        // A read-only store with a name twice is not loaded.
        if record.names.iter().collect::<BTreeSet<_>>().len() != record.names.len() {
            return Err(Invalid("name"));
        }
        record.names_history.clone_from(&record.names);
        while let Some(data) = lines.may("data", |_| true)? {
            let mut parts = data.split(' ');
            let (Some(key), Some(size), Some(digest), None) = (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return Err(Invalid("data"));
            };
            let of_manifest = key.strip_prefix("manifest-").is_some_and(is_digest);
            let of_config = key.strip_prefix("sha256:") == Some(&record.id);
            let size = size.parse().map_err(|_| Invalid("data"))?;
            if !(of_manifest || of_config || key == "manifest")
                || !is_digest(digest)
                || record.big_data_sizes.insert(key.to_owned(), size).is_some()
            {
                return Err(Invalid("data"));
            }
            record.big_data_digests.insert(key.to_owned(), digest.to_owned());
            record.big_data_names.push(key.to_owned());
        }
        if record.names.len() > PER_IMAGE_MAX || record.big_data_names.len() > PER_IMAGE_MAX {
            return Err(Invalid("name"));
        }
        // CRI-O lists no image at all when one of them lacks these.
        let config = format!("sha256:{}", record.id);
        if ![&config[..], "manifest"].iter().all(|key| record.big_data_sizes.contains_key(*key)) {
            return Err(Invalid("data"));
        }
        lines.end().map(|()| record)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::said(invalid.to_string())
    }
}

/// Lines of `field value`, in a fixed order.
#[derive(Debug)]
pub struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    /// # Errors
    /// When they are not whole lines of printable ASCII.
    pub fn new(text: &'a str) -> Result<Self, Invalid> {
        let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n'));
        if is_plain && (text.is_empty() || text.ends_with('\n')) { Ok(Self(text)) } else { Err(Invalid("text")) }
    }

    /// The value of the next line, if that is the field.
    ///
    /// # Errors
    /// When the value is not valid.
    pub fn may(&mut self, field: &'static str, is_valid: impl Fn(&str) -> bool) -> Result<Option<String>, Invalid> {
        let Some((line, rest)) = self.0.split_once('\n') else { return Ok(None) };
        let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(' ')) else { return Ok(None) };
        self.0 = rest;
        if is_valid(value) { Ok(Some(value.to_owned())) } else { Err(Invalid(field)) }
    }

    /// The same of a field that must be there.
    ///
    /// # Errors
    /// When it is not, or its value is not valid.
    pub fn must(&mut self, field: &'static str, is_valid: impl Fn(&str) -> bool) -> Result<String, Invalid> {
        self.may(field, is_valid)?.ok_or(Invalid(field))
    }

    /// The values of all next lines that are the field.
    ///
    /// # Errors
    /// When one is not valid.
    pub fn all(&mut self, field: &'static str, is_valid: impl Fn(&str) -> bool) -> Result<Vec<String>, Invalid> {
        std::iter::from_fn(|| self.may(field, &is_valid).transpose()).collect()
    }

    fn number(&mut self, field: &'static str) -> Result<u64, Invalid> {
        self.must(field, |_| true)?.parse().ok().filter(|number| *number <= i64::MAX as u64).ok_or(Invalid(field))
    }

    fn numbers(&mut self, field: &'static str) -> Result<Vec<u32>, Invalid> {
        let Some(text) = self.may(field, |_| true)? else { return Ok(Vec::new()) };
        let numbers = text.split(' ').map(number).collect::<Option<Vec<u32>>>();
        // As containers/storage sorts them (`layers.go`, `applyDiffWithOptions`): none twice.
        numbers.filter(|all| all.len() <= OWNERS_MAX && all.is_sorted_by(|a, b| a < b)).ok_or(Invalid(field))
    }

    /// # Errors
    /// When there is one more line.
    pub fn end(&self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid("end")) }
    }
}

/// As containers/storage makes them (`drivers/overlay/randomid.go`): 26 characters of base32.
fn is_link(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_id)
}

/// A full name with a tag or digest, in the form in which containers/image writes it (distribution reference grammar).
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_tag = |tag: &str| {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (1..=128).contains(&tag.len())
            && word(tag.as_bytes()[0])
            && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
    };
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    let Some((domain, path)) = rest.split_once('/') else { return false };
    let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
    (digest.is_some() || tag.is_some())
        && digest.is_none_or(is_digest)
        && tag.is_none_or(is_tag)
        && domain.len() + 1 + path.len() <= 255
        && is_domain(domain)
        // These two are written otherwise.
        && domain != "index.docker.io"
        && (domain != "docker.io" || path.contains('/'))
        && path.split('/').all(is_component)
}

/// A host with a `.` or a port, or localhost: others containers/image does not read back, IPv6 addresses among them.
fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    (text.contains(['.', ':']) || text == "localhost")
        && host.split('.').all(is_label)
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower-case words with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let separators: Vec<&[u8]> = bytes.split(word).filter(|separator| !separator.is_empty()).collect();
    [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(word))
        && separators
            .iter()
            .all(|text| matches!(text, [b'.' | b'_'] | [b'_', b'_']) || text.iter().all(|byte| *byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_containers_image_reads_back() {
        for good in ["localhost/a:1", "docker.io/library/alpine:3.20", "h:5/a/b_c__d.e--f:T_-.", "a.b-c/x:1"] {
            assert!(is_name(good), "{good}");
            assert!(is_name(&format!("{good}@sha256:{}", "0".repeat(64))), "{good}");
        }
        let long = format!("localhost/{}:1", "a".repeat(250));
        for bad in [
            "",
            "a:1",
            "localhost/a",
            "alpine:3.20",
            "library/a:1",
            "localhost/A:1",
            "localhost/a:",
            "localhost/a:.1",
            "localhost//a:1",
            "localhost/a/:1",
            "localhost/-a:1",
            "localhost/a___b:1",
            "localhost/a..b:1",
            "[::1]:5/a:1",
            "HOST/a:1",
            "docker.io/a:1",
            "index.docker.io/a/b:1",
            "h:/a:1",
            "h:x/a:1",
            "-h.x/a:1",
            "localhost/a:1@sha256:0",
            "localhost/a:1 ",
            "localhost/a@md5:1",
            &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[cfg(feature = "front")]
    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn what_is_a_name_here_is_one_for_the_front_end(
            name in "[a-cA-C0-9.:-]{1,8}/([a-b0-9._-]{1,4}/)?[a-b0-9._-]{1,6}(:[aA0_.-]{1,3})?",
            docker in "(docker.io|index.docker.io|localhost|a.b:5)/(library/|a/)?[ab_.-]{1,5}:[aA0_.-]{1,3}",
        ) {
            for name in [name, docker] {
                if is_name(&name) {
                    let reference = crate::reference::Reference::parse_full(&name).unwrap();
                    proptest::prop_assert_eq!(reference.to_string(), name);
                    proptest::prop_assert!(reference.is_storable());
                }
            }
        }
    }
}
