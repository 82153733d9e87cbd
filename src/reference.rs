//! What the user typed, and what it means: references as Docker and containers/image write them.
//!
//! A [`Reference`] names an image in a registry and in a store. An [`Item`] is one word of the command line or one line
//! of an image list: a [`Location`], and perhaps the name that the image shall have in the store.
//!
//! Names are normalised as Go's `github.com/distribution/reference` does (`normalize.go`, `ParseNormalizedNamed`), with
//! the length limit of containers/image's copy of it, since CRI-O reads the names with that copy.

mod item;
mod list;

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

pub(crate) use item::show_path;
pub use item::{ArchiveSelect, DaemonImage, Item, Location, ParseItemError};
pub use list::{LIST_BYTES_MAX, LIST_ITEMS_MAX, LIST_LINE_MAX, ListError, parse_list, parse_list_lines};

/// The longest name without tag and digest, in bytes (containers/image `docker/reference`, `NameTotalLengthMax`).
pub const NAME_LENGTH_MAX: usize = 255;

/// The longest tag, in bytes (distribution/reference `regexp.go`, `tag`).
pub const TAG_LENGTH_MAX: usize = 128;

/// The registry of names that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// What that registry was called once.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
/// The name space of Docker's own images.
const OFFICIAL_PREFIX: &str = "library/";

/// A named image reference, normalised (`docker.io/library/alpine:latest`), with a tag or a digest or both.
///
/// ```
/// # use prepull::reference::Reference;
/// let alpine = Reference::parse("alpine:3.20")?;
/// assert_eq!(alpine.to_string(), "docker.io/library/alpine:3.20");
/// assert_eq!((alpine.domain(), alpine.path(), alpine.tag()), ("docker.io", "library/alpine", Some("3.20")));
/// # Ok::<(), prepull::reference::ParseReferenceError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not a [`Reference`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseReferenceError {
    /// Nothing at all.
    #[error("an empty image reference")]
    Empty,
    /// Neither tag nor digest.
    #[error("{0:?}: the version must be included ({0}:TAG, or {0}@sha256:DIGEST)")]
    Version(String),
    /// 64 hexadecimal digits look like an image id.
    #[error("{0:?} looks like an image id, not a name: write NAME:TAG or NAME@sha256:...")]
    Identifier(String),
    /// Upper case in the repository.
    #[error("{0:?}: the repository name must be in lower case")]
    Uppercase(String),
    /// More than [`NAME_LENGTH_MAX`] bytes.
    #[error("{0:?}...: the name has {1} bytes, at most {NAME_LENGTH_MAX} are allowed")]
    Length(String, usize),
    /// The part after `@`.
    #[error("{0:?}: {1}")]
    Digest(String, crate::digest::ParseDigestError),
    /// The part after `:`.
    #[error(
        "{0:?}: {1:?} is not a tag: letters, digits, `_`, `.` and `-`, at most {TAG_LENGTH_MAX}, not beginning with `.` or `-`"
    )]
    Tag(String, String),
    /// The registry's name has letters that are not ASCII. Go's distribution/reference refuses them as well.
    #[error(
        "{0:?} is not an image reference: a registry's name has ASCII letters only: write {1:?} as DNS knows it, which begins with `xn--`"
    )]
    NotAscii(String, String),
    /// Anything else.
    #[error("{0:?} is not an image reference: expected [HOST[:PORT]/]NAME:TAG or [HOST[:PORT]/]NAME@sha256:...")]
    Form(String),
    /// No registry, where a full name is wanted.
    #[error("{0:?}: a full name is needed here, with the registry first, for instance localhost/{0}")]
    Domain(String),
}

impl Reference {
    /// Parses and normalises; a tag or a digest must be there.
    ///
    /// # Errors
    /// When `text` is no reference, or has no version.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let reference = parse_normalized(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            return Err(ParseReferenceError::Version(text.to_owned()));
        }
        Ok(reference)
    }

    /// As [`Self::parse`], but a bare name gets the tag `latest`: Go's `TagNameOnly`, for names inside other formats.
    ///
    /// # Errors
    /// When `text` is no reference.
    pub fn parse_or_latest(text: &str) -> Result<Self, ParseReferenceError> {
        let mut reference = parse_normalized(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        Ok(reference)
    }

    /// As [`Self::parse`], but the registry must be written out: `localhost/a:1` is a full name, `a:1` is not.
    ///
    /// # Errors
    /// When `text` is no reference, or has no registry or no version.
    pub fn parse_full(text: &str) -> Result<Self, ParseReferenceError> {
        let reference = Self::parse(text)?;
        match text.split_once('/') {
            Some((first, _)) if is_domain_like(first) && !reference.domain.is_empty() => Ok(reference),
            _ => Err(ParseReferenceError::Domain(text.to_owned())),
        }
    }

    /// The registry's host and port: `docker.io`, `localhost:5000`.
    ///
    /// Empty for the few names that Go accepts although their first component is no host name (`my_host.x/app`):
    /// they can be names in a store, but no registry serves them. [`Location::Registry`] never holds one.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/alpine`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path: `docker.io/library/alpine`.
    #[must_use]
    pub fn name(&self) -> String {
        if self.domain.is_empty() { self.path.clone() } else { format!("{}/{}", self.domain, self.path) }
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `name:tag` where there is a tag, else `name@digest` as it is: the name under which a store keeps the image.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        match self.tag {
            Some(_) => Self { digest: None, ..self.clone() },
            None => self.clone(),
        }
    }

    /// `name@digest`, with neither tag nor the old digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Whether a store may keep this name. containers/image does not understand an IPv6 address, nor a host in upper case
    /// that has neither `.` nor `:`, and CRI-O lists no image at all when it finds a name that it does not understand: such
    /// an image needs another name (`ITEM=NAME`).
    #[must_use]
    pub fn is_storable(&self) -> bool {
        let domain = self.domain.as_str();
        !domain.starts_with('[') && (domain.is_empty() || domain == "localhost" || domain.contains(['.', ':']))
    }

    /// How the Docker command line writes it: without `docker.io/` and `library/` (Go's `FamiliarString`), but only where
    /// that is read as the same name again: `docker.io/library.be/a` without its domain would be of another registry.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut short = self.clone();
        if self.domain == DEFAULT_DOMAIN {
            short.domain.clear();
            if let Some(path) = self.path.strip_prefix(OFFICIAL_PREFIX).filter(|path| !path.contains('/')) {
                path.clone_into(&mut short.path);
            }
        }
        let text = short.to_string();
        if parse_normalized(&text).is_ok_and(|again| again == *self) { text } else { self.to_string() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}/", self.domain)?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Go's `ParseNormalizedNamed`: neither tag nor digest need be there.
fn parse_normalized(text: &str) -> Result<Reference, ParseReferenceError> {
    use ParseReferenceError as E;
    if text.is_empty() {
        return Err(E::Empty);
    }
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(E::Identifier(text.to_owned()));
    }
    let (domain, rest) = split_domain(text);
    let rest = if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        format!("{OFFICIAL_PREFIX}{rest}")
    } else {
        rest.to_owned()
    };
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse::<Digest>().map_err(|error| E::Digest(text.to_owned(), error))?))
        }
        None => (rest.as_str(), None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(E::Uppercase(text.to_owned()));
    }
    if !path.split('/').all(is_path_component) {
        return Err(E::Form(text.to_owned()));
    }
    let (domain, path) = if is_domain(domain) {
        (domain.to_owned(), path.to_owned())
    } else if is_path_component(domain) {
        // Go's expression makes the domain optional, so `my_host.x/app` is a path without a domain.
        (String::new(), format!("{domain}/{path}"))
    } else if !domain.is_ascii() {
        return Err(E::NotAscii(text.to_owned(), domain.to_owned()));
    } else {
        return Err(E::Form(text.to_owned()));
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(E::Tag(text.to_owned(), tag.to_owned()));
    }
    let reference = Reference { domain, path, tag: tag.map(str::to_owned), digest };
    let length = reference.name().len();
    if length > NAME_LENGTH_MAX {
        return Err(E::Length(reference.name()[..40].to_owned(), length));
    }
    Ok(reference)
}

/// Go's `splitDockerDomain` (distribution/reference `normalize.go`), still without `library/`.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest)) if is_domain_like(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, text),
    }
}

/// Whether a first component is taken for a registry rather than for a name space of docker.io.
///
/// A first component with upper case letters is a host in distribution/reference; containers/image refuses it.
fn is_domain_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// `domain` of distribution/reference `regexp.go`: host name or `[IPv6]`, perhaps a port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            (None, port)
        }
        None => {
            let colon = domain.find(':').unwrap_or(domain.len());
            (Some(&domain[..colon]), &domain[colon..])
        }
    };
    let host_is_right = host.is_none_or(|host| {
        host.split('.').all(|label| {
            label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    });
    let port_is_right = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    host_is_right && port_is_right
}

/// `path-component` of distribution/reference `regexp.go`: runs of lower-case letters and digits, separated by
/// `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(&alphanumeric) || !bytes.last().is_some_and(&alphanumeric) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// `tag` of distribution/reference `regexp.go`: `[\w][\w.-]{0,127}`.
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_go_does() {
        let with_digest = format!("name@{DIGEST}");
        let with_both = format!("name:tag@{DIGEST}");
        let hex = "a".repeat(64);
        let table: &[(&str, &str)] = &[
            ("alpine:latest", "docker.io/library/alpine:latest"),
            ("library/alpine:latest", "docker.io/library/alpine:latest"),
            ("docker.io/alpine:latest", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine:latest", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine:1", "docker.io/library/alpine:1"),
            ("foo/bar:1", "docker.io/foo/bar:1"),
            ("foo/bar/baz:1", "docker.io/foo/bar/baz:1"),
            ("localhost/x:1", "localhost/x:1"),
            ("LOCALHOST/x:1", "LOCALHOST/x:1"),
            ("Foo/bar:1", "Foo/bar:1"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("host:5000", "docker.io/library/host:5000"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("[fd00:1:2::3]/x:1", "[fd00:1:2::3]/x:1"),
            ("k8s.gcr.io/pause:3.6", "k8s.gcr.io/pause:3.6"),
            ("k8s.gcr.io:443/a/b/c/pause:3.6", "k8s.gcr.io:443/a/b/c/pause:3.6"),
            ("a__b:1", "docker.io/library/a__b:1"),
            ("a--b---c:1", "docker.io/library/a--b---c:1"),
            ("a.b_c-d:1", "docker.io/library/a.b_c-d:1"),
            ("my_host/x:1", "docker.io/my_host/x:1"),
            ("my_host.x/y:1", "my_host.x/y:1"),
            ("x:_tag", "docker.io/library/x:_tag"),
            ("x:V1.0-RC_1", "docker.io/library/x:V1.0-RC_1"),
            ("192.168.0.1:80/x:1", "192.168.0.1:80/x:1"),
            ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com"),
            (&with_digest, &format!("docker.io/library/{with_digest}")),
            (&with_both, &format!("docker.io/library/{with_both}")),
            (&format!("docker.io/{hex}:1"), &format!("docker.io/library/{hex}:1")),
            (&format!("{hex}:1"), &format!("docker.io/library/{hex}:1")),
        ];
        for (typed, normal) in table {
            let reference = Reference::parse(typed).unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!(&reference.to_string(), normal, "{typed}");
            assert_eq!(Reference::parse(normal).as_ref(), Ok(&reference), "{normal}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let hex = "a".repeat(64);
        let long = format!("docker.io/{}:1", vec!["a"; 130].join("/"));
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":1",
            "a:",
            "/a:1",
            "a/:1",
            "a//b:1",
            "-a:1",
            "a-:1",
            "a___b:1",
            "a..b:1",
            "a._b:1",
            ".a:1",
            "a_:1",
            "_a:1",
            "ghcr.io/Foo:1",
            "Alpine:1",
            "foo/Bar:1",
            "a:b:c",
            "a: b",
            "a b:1",
            "a:1 ",
            "https://a/b:1",
            "a@sha256:12",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a:.1",
            "a:-1",
            "-host.x/a:1",
            "host-.x/a:1",
            "host..x/a:1",
            "host:/a:1",
            "host:x/a:1",
            "[::1/x:1",
            "[]/x:1",
            "[::g]:1/x:1",
            "[::1]x/y:1",
            "a\0:1",
            "ä:1",
            "a/ä:1",
            "docker.io/:1",
            "docker.io//a:1",
            "localhost:5000/:1",
            "a@",
            &format!("a@{}", DIGEST.to_uppercase()),
            &hex,
            &long,
            &long_tag,
            "a:1@",
            "a:1\n",
            "\u{212a}/x:1", // the Kelvin sign lower-cases to ASCII k
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted: {:?}", Reference::parse(bad));
        }
    }

    #[test]
    fn a_bare_name_is_told_what_to_write() {
        let error = Reference::parse("alpine").unwrap_err().to_string();
        assert!(error.contains("the version must be included") && error.contains("TAG"), "{error}");
        assert_eq!(Reference::parse_or_latest("alpine").unwrap().to_string(), "docker.io/library/alpine:latest");
        assert!(Reference::parse("localhost:5000/x").is_err());
    }

    #[test]
    fn a_full_name_begins_with_its_registry() {
        for full in ["localhost/a:1", "docker.io/a:1", "r.local:5000/a/b:1"] {
            assert!(Reference::parse_full(full).is_ok(), "{full}");
        }
        for short in ["a:1", "b/a:1", "localhost:5000", "my_host.x/a:1", "latest", "localhost/a"] {
            assert!(Reference::parse_full(short).is_err(), "{short}");
        }
    }

    #[test]
    fn parts_can_be_taken_apart() {
        let both = Reference::parse(&format!("localhost:5000/a/b:1@{DIGEST}")).unwrap();
        assert_eq!(both.without_digest().to_string(), "localhost:5000/a/b:1");
        assert_eq!(both.name(), "localhost:5000/a/b");
        assert_eq!(both.with_digest(Digest::of(b"")).to_string(), format!("localhost:5000/a/b@{DIGEST}"));
        for (full, familiar) in [
            ("alpine:1", "alpine:1"),
            ("a/b:1", "a/b:1"),
            ("library/a/b:1", "library/a/b:1"),
            ("r.io/a:1", "r.io/a:1"),
            ("docker.io/library.be/a:1", "docker.io/library.be/a:1"),
            ("docker.io/localhost/a:1", "docker.io/localhost/a:1"),
        ] {
            assert_eq!(Reference::parse(full).unwrap().familiar(), familiar);
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_and_the_normal_form_is_stable(text in "[a-zA-Z0-9._:/@\\[\\]-]{0,60}|.{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }

        #[test]
        fn made_references_are_accepted(
            domain in "([a-z][a-z0-9]{0,5}\\.[a-z]{2}(:[0-9]{1,4})?/)?",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,2}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let reference = Reference::parse(&format!("{domain}{path}:{tag}")).unwrap();
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
    }
}
