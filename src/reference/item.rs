//! What is typed on the command line, or on a line of an image list ([`super::parse_list`]): where an image lies, and perhaps its name.
//!
//! The transports and their syntax are skopeo's ([containers-transports(5)]). Paths are bytes and are never interpreted
//! here: parsing looks at no file.
//!
//! [containers-transports(5)]: https://github.com/containers/image/blob/main/docs/containers-transports.5.md

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::{ParseReferenceError, Reference};
use crate::digest::Digest;
use crate::text::printable;

const TRANSPORTS: &str = "docker://, docker-daemon:, oci:, oci-archive:, docker-archive: and dir:";

/// One image that the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// As typed, for messages: bytes that are not UTF-8 are replaced, hidden characters are escaped.
    pub typed: String,
    /// Where the image lies.
    pub location: Location,
    /// The name it shall have in the store (`ITEM=NAME`), where one was given.
    pub name: Option<Reference>,
}

/// Where an image lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A registry. The reference has a domain, and a tag or a digest or both.
    Registry(Reference),
    /// The Docker daemon's own store.
    DockerDaemon(DaemonImage),
    /// A directory in OCI image layout.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name` to look for, or `@N` for the Nth image.
        reference: Option<String>,
    },
    /// A tar archive of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// As in [`Self::OciLayout`].
        reference: Option<String>,
    },
    /// What `docker save` writes.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images.
        select: ArchiveSelect,
    },
    /// A directory as skopeo's `dir:` writes it.
    Dir {
        /// The directory.
        path: PathBuf,
    },
    /// An xcluster overlay, `ovl` or `ovl/sub`: an item without `:`.
    Overlay(String),
}

/// An image of the Docker daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonImage {
    /// By name, with a tag or a digest, not both.
    Name(Reference),
    /// By id, the digest of its config.
    Id(Digest),
}

/// Which image of a `docker save` archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveSelect {
    /// The only one.
    Only,
    /// The one with this tag.
    Tag(Reference),
    /// The one at this place, from 0.
    Index(usize),
}

/// Why an item cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseItemError {
    /// Nothing typed.
    #[error("an empty image name")]
    Empty,
    /// Not UTF-8 where only a path may be that.
    #[error("{0}: not UTF-8 (only a path may have other bytes)")]
    Utf8(String),
    /// A byte that no path and no name can have.
    #[error("{0}: has a NUL byte")]
    Nul(String),
    /// A transport that prepull does not read.
    #[error("{typed}: the transport {transport} is not supported; there are {TRANSPORTS}, and plain image names")]
    Transport {
        /// The item.
        typed: String,
        /// The transport, with its colon.
        transport: String,
    },
    /// `docker:NAME`: a slip, or the image called docker.
    #[error(
        "{typed}: write docker://{rest} for an image in a registry, or docker.io/library/{typed} for the image called docker"
    )]
    DockerWithoutSlashes {
        /// The item.
        typed: String,
        /// What follows the colon.
        rest: String,
    },
    /// A web address.
    #[error("{typed}: write the image name without {scheme}//")]
    Url {
        /// The item.
        typed: String,
        /// `http:` or `https:`.
        scheme: String,
    },
    /// The image's own name.
    #[error("{typed}: {}", without_name(.typed, .error))]
    Reference {
        /// The item.
        typed: String,
        /// What is wrong.
        error: ParseReferenceError,
    },
    /// The name after `=`.
    #[error("{typed}: the name after `=`: {error}")]
    Name {
        /// The item.
        typed: String,
        /// What is wrong.
        error: ParseReferenceError,
    },
    /// A name that Go accepts, but that names no registry.
    #[error("{typed}: {first:?} cannot be the name of a registry (`_` is not allowed in a host name)")]
    Registry {
        /// The item.
        typed: String,
        /// The first component.
        first: String,
    },
    /// No path after the transport.
    #[error("{0}: no path after the transport")]
    Path(String),
    /// A reference within a layout or an archive that cannot be one.
    #[error("{typed}: {reference:?} is not {expected}")]
    Within {
        /// The item.
        typed: String,
        /// What follows the path.
        reference: String,
        /// What should.
        expected: &'static str,
    },
    /// Tag and digest, where the daemon takes only one.
    #[error("{0}: the Docker daemon takes a tag or a digest, not both; leave one out")]
    DaemonBoth(String),
    /// The repository name that the daemon keeps for ids.
    #[error("{0}: `sha256` is not a repository; an image id has all its 64 digits: docker-daemon:sha256:...")]
    DaemonId(String),
}

impl Item {
    /// Understands one item.
    ///
    /// `=NAME` at its end is taken for the store's name. In an item with a path, which may have a `=` itself, NAME must be
    /// a full name ([`Reference::parse_full`]): `oci:/srv/a=b/app:v1` has none, `oci:app=localhost/app:v1` has.
    ///
    /// # Errors
    /// When it is no image name, or its transport is unknown.
    pub fn parse(typed: &OsStr) -> Result<Self, ParseItemError> {
        let bytes = typed.as_bytes();
        let shown = show(bytes);
        if bytes.is_empty() {
            return Err(ParseItemError::Empty);
        }
        if bytes.contains(&0) {
            return Err(ParseItemError::Nul(shown));
        }
        let (transport, rest) = split_transport(bytes);
        let (rest, name) = match transport {
            Transport::Registry | Transport::Daemon => split_any_name(rest, &shown)?,
            _ => split_full_name(rest),
        };
        let location = transport.location(rest, &shown)?;
        Ok(Self { typed: shown, location, name })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

/// Returns the text of `error` for a message that begins with `typed`, which is often the very name that the error is about.
fn without_name(typed: &str, error: &ParseReferenceError) -> String {
    let text = error.to_string();
    let rest = text.strip_prefix(&format!("{typed:?}")).map(|rest| rest.trim_start_matches([':', ' ']));
    rest.map_or_else(|| text.clone(), str::to_owned)
}

#[derive(Clone, Copy)]
enum Transport {
    Registry,
    Daemon,
    OciLayout,
    OciArchive,
    DockerArchive,
    Dir,
    Overlay,
}

fn split_transport(typed: &[u8]) -> (Transport, &[u8]) {
    let prefixes: [(&[u8], Transport); 6] = [
        (b"docker://", Transport::Registry),
        (b"docker-daemon:", Transport::Daemon),
        (b"oci:", Transport::OciLayout),
        (b"oci-archive:", Transport::OciArchive),
        (b"docker-archive:", Transport::DockerArchive),
        (b"dir:", Transport::Dir),
    ];
    for (prefix, transport) in prefixes {
        if let Some(rest) = typed.strip_prefix(prefix) {
            return (transport, rest);
        }
    }
    let before_name = split_full_name(typed).0;
    (if before_name.contains(&b':') { Transport::Registry } else { Transport::Overlay }, typed)
}

/// Cuts `=NAME` off where a reference, which has no `=`, comes before it.
fn split_any_name<'a>(rest: &'a [u8], shown: &str) -> Result<(&'a [u8], Option<Reference>), ParseItemError> {
    let Some(at) = rest.iter().position(|b| *b == b'=') else { return Ok((rest, None)) };
    let name = text(&rest[at + 1..], shown)?;
    match Reference::parse(name) {
        Ok(name) => Ok((&rest[..at], Some(name))),
        Err(error) => Err(ParseItemError::Name { typed: shown.to_owned(), error }),
    }
}

/// Cuts `=NAME` off where a path comes before it: the last `=`, if a full name is behind it.
fn split_full_name(rest: &[u8]) -> (&[u8], Option<Reference>) {
    // No name has a `=` itself.
    let Some(at) = rest.iter().rposition(|b| *b == b'=') else { return (rest, None) };
    match std::str::from_utf8(&rest[at + 1..]).ok().and_then(|name| Reference::parse_full(name).ok()) {
        Some(name) => (&rest[..at], Some(name)),
        None => (rest, None),
    }
}

impl Transport {
    fn location(self, rest: &[u8], shown: &str) -> Result<Location, ParseItemError> {
        match self {
            Self::Registry => registry(text(rest, shown)?, shown),
            Self::Daemon => daemon(text(rest, shown)?, shown),
            Self::OciLayout => {
                let (path, reference) = path_and_oci_reference(rest, shown)?;
                Ok(Location::OciLayout { path, reference })
            }
            Self::OciArchive => {
                let (path, reference) = path_and_oci_reference(rest, shown)?;
                Ok(Location::OciArchive { path, reference })
            }
            Self::DockerArchive => {
                let (path, within) = split_path(rest, shown)?;
                let select = match within {
                    None => ArchiveSelect::Only,
                    Some(within) => archive_select(text(within, shown)?, shown)?,
                };
                Ok(Location::DockerArchive { path, select })
            }
            Self::Dir if rest.is_empty() => Err(ParseItemError::Path(shown.to_owned())),
            Self::Dir => Ok(Location::Dir { path: path(rest) }),
            Self::Overlay => Ok(Location::Overlay(text(rest, shown)?.to_owned())),
        }
    }
}

fn registry(rest: &str, shown: &str) -> Result<Location, ParseItemError> {
    let typed = || shown.to_owned();
    if !shown.starts_with("docker://") {
        let (first, after) = rest.split_once(':').unwrap_or((rest, ""));
        match first {
            "docker" => return Err(ParseItemError::DockerWithoutSlashes { typed: typed(), rest: after.to_owned() }),
            "http" | "https" if after.starts_with("//") => {
                return Err(ParseItemError::Url { typed: typed(), scheme: format!("{first}:") });
            }
            "containers-storage" | "sif" | "ostree" | "atomic" | "tarball" | "docker-registry" => {
                return Err(ParseItemError::Transport { typed: typed(), transport: format!("{first}:") });
            }
            _ if after.starts_with("//") => {
                return Err(ParseItemError::Transport { typed: typed(), transport: format!("{first}:") });
            }
            _ => {}
        }
    }
    let reference = Reference::parse(rest).map_err(|error| ParseItemError::Reference { typed: typed(), error })?;
    if reference.domain().is_empty() {
        let first = reference.path().split('/').next().unwrap_or_default().to_owned();
        return Err(ParseItemError::Registry { typed: typed(), first });
    }
    Ok(Location::Registry(reference))
}

/// containers/image `docker/daemon/daemon_transport.go`, `ParseReference`.
fn daemon(rest: &str, shown: &str) -> Result<Location, ParseItemError> {
    if let Ok(id) = rest.parse::<Digest>() {
        return Ok(Location::DockerDaemon(DaemonImage::Id(id)));
    }
    let reference =
        Reference::parse(rest).map_err(|error| ParseItemError::Reference { typed: shown.to_owned(), error })?;
    if reference.familiar().starts_with("sha256:") {
        return Err(ParseItemError::DaemonId(shown.to_owned()));
    }
    if reference.tag().is_some() && reference.digest().is_some() {
        return Err(ParseItemError::DaemonBoth(shown.to_owned()));
    }
    Ok(Location::DockerDaemon(DaemonImage::Name(reference)))
}

/// The path ends at the first `:` (containers/image `oci/internal/oci_util.go`, `docker/archive/transport.go`).
fn split_path<'a>(rest: &'a [u8], shown: &str) -> Result<(PathBuf, Option<&'a [u8]>), ParseItemError> {
    let colon = rest.iter().position(|b| *b == b':');
    let (before, within) = match colon {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    if before.is_empty() {
        return Err(ParseItemError::Path(shown.to_owned()));
    }
    Ok((path(before), within))
}

fn path_and_oci_reference(rest: &[u8], shown: &str) -> Result<(PathBuf, Option<String>), ParseItemError> {
    let (path, within) = split_path(rest, shown)?;
    let reference = match within {
        None | Some([]) => None,
        Some(within) => {
            let reference = text(within, shown)?;
            let number = reference.strip_prefix('@').is_some_and(|number| number.parse::<u32>().is_ok());
            if !number && !is_oci_reference(reference) {
                return Err(ParseItemError::Within {
                    typed: shown.to_owned(),
                    reference: reference.to_owned(),
                    expected: "a reference in an OCI layout (letters and digits, separated by one of -._:@+/)",
                });
            }
            Some(reference.to_owned())
        }
    };
    Ok((path, reference))
}

/// The grammar of `org.opencontainers.image.ref.name` (OCI image spec, annotations.md; containers/image `refRegexp`).
fn is_oci_reference(reference: &str) -> bool {
    reference.split('/').all(|component| {
        let bytes = component.as_bytes();
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .split(u8::is_ascii_alphanumeric)
                .all(|separator| matches!(separator, b"" | b"-" | b"." | b"_" | b":" | b"@" | b"+" | b"--"))
    })
}

fn archive_select(within: &str, shown: &str) -> Result<ArchiveSelect, ParseItemError> {
    if let Some(number) = within.strip_prefix('@') {
        return number.parse().map(ArchiveSelect::Index).map_err(|_| ParseItemError::Within {
            typed: shown.to_owned(),
            reference: within.to_owned(),
            expected: "the number of an image in the archive: @0 is the first",
        });
    }
    let reference = Reference::parse_or_latest(within)
        .map_err(|error| ParseItemError::Reference { typed: shown.to_owned(), error })?;
    if reference.digest().is_some() {
        return Err(ParseItemError::Within {
            typed: shown.to_owned(),
            reference: within.to_owned(),
            expected: "a tag: an archive knows no digests",
        });
    }
    Ok(ArchiveSelect::Tag(reference))
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn text<'a>(bytes: &'a [u8], shown: &str) -> Result<&'a str, ParseItemError> {
    std::str::from_utf8(bytes).map_err(|_| ParseItemError::Utf8(shown.to_owned()))
}

/// Returns a path for messages, with hidden characters escaped.
pub(crate) fn show_path(path: &std::path::Path) -> String {
    show(path.as_os_str().as_bytes())
}

/// Returns bytes for messages, which are one line each.
fn show(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(typed: &str) -> Result<Item, ParseItemError> {
        Item::parse(OsStr::new(typed))
    }

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    fn oci(path: &str, reference: Option<&str>) -> Location {
        Location::OciLayout { path: path.into(), reference: reference.map(str::to_owned) }
    }

    fn archive(path: &str, select: ArchiveSelect) -> Location {
        Location::DockerArchive { path: path.into(), select }
    }

    #[test]
    fn items_are_understood_as_skopeo_does() {
        let by_digest = format!("docker-daemon:{DIGEST}");
        let both = format!("r.io/a:1@{DIGEST}");
        let table: Vec<(&str, Location, Option<&str>)> = vec![
            ("alpine:3", Location::Registry(reference("alpine:3")), None),
            ("docker://alpine:3", Location::Registry(reference("alpine:3")), None),
            ("docker://docker:dind", Location::Registry(reference("docker:dind")), None),
            ("localhost:5000/x:1", Location::Registry(reference("localhost:5000/x:1")), None),
            ("[::1]:5000/x:1", Location::Registry(reference("[::1]:5000/x:1")), None),
            (&both, Location::Registry(reference(&both)), None),
            ("alpine:3=r.local/a:1", Location::Registry(reference("alpine:3")), Some("r.local/a:1")),
            ("alpine:3=mine:1", Location::Registry(reference("alpine:3")), Some("mine:1")),
            ("docker-daemon:a/b:1", Location::DockerDaemon(DaemonImage::Name(reference("a/b:1"))), None),
            (&by_digest, Location::DockerDaemon(DaemonImage::Id(DIGEST.parse().unwrap())), None),
            ("oci:d", oci("d", None), None),
            ("oci:d:", oci("d", None), None),
            ("oci:/a/d:v1", oci("/a/d", Some("v1")), None),
            ("oci:d:a/b:c", oci("d", Some("a/b:c")), None),
            ("oci:d:@1", oci("d", Some("@1")), None),
            ("oci:build/app=registry.local/app:v1", oci("build/app", None), Some("registry.local/app:v1")),
            (
                "oci:build/app:x=registry.local:5000/app:v1",
                oci("build/app", Some("x")),
                Some("registry.local:5000/app:v1"),
            ),
            ("oci:a=b:v1", oci("a=b", Some("v1")), None),
            ("oci:a=b/c:v1", oci("a=b/c", Some("v1")), None),
            ("oci:a=b=localhost/x:1", oci("a=b", None), Some("localhost/x:1")),
            ("oci-archive:d.tar:v1", Location::OciArchive { path: "d.tar".into(), reference: Some("v1".into()) }, None),
            ("docker-archive:d.tar", archive("d.tar", ArchiveSelect::Only), None),
            ("docker-archive:d.tar:@2", archive("d.tar", ArchiveSelect::Index(2)), None),
            ("docker-archive:d.tar:a", archive("d.tar", ArchiveSelect::Tag(reference("a:latest"))), None),
            ("docker-archive:d.tar:r.io/a:1", archive("d.tar", ArchiveSelect::Tag(reference("r.io/a:1"))), None),
            (
                "docker-archive:d.tar:a:1=r.io/a:1",
                archive("d.tar", ArchiveSelect::Tag(reference("a:1"))),
                Some("r.io/a:1"),
            ),
            ("dir:/a:b", Location::Dir { path: "/a:b".into() }, None),
            ("dir:/a=localhost/x:1", Location::Dir { path: "/a".into() }, Some("localhost/x:1")),
            ("iperf", Location::Overlay("iperf".into()), None),
            ("mserver/image", Location::Overlay("mserver/image".into()), None),
            ("iperf=localhost/iperf:1", Location::Overlay("iperf".into()), Some("localhost/iperf:1")),
        ];
        for (typed, location, name) in table {
            let item = parse(typed).unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!(item.location, location, "{typed}");
            assert_eq!(item.name, name.map(reference), "{typed}");
            assert_eq!(item.to_string(), typed);
        }
    }

    #[test]
    fn what_is_no_item_is_refused_with_a_hint() {
        let both = format!("docker-daemon:a:1@{DIGEST}");
        let table = [
            ("", "empty"),
            ("docker:dind", "docker://dind"),
            ("containers-storage:a:1", "there are docker://, docker-daemon:, oci:"),
            ("sif:a", "not supported"),
            ("ostree:a@/b", "not supported"),
            ("https://r.io/a:1", "without https://"),
            ("foo://a", "foo: is not supported"),
            ("docker://alpine", "TAG"),
            ("docker-daemon:alpine", "TAG"),
            ("docker-daemon:sha256:12", "64 digits"),
            (&both, "not both"),
            ("localhost:5000/x", "localhost:5000/x:TAG"),
            ("my_host.x/a:1", "cannot be the name of a registry"),
            ("oci:", "no path"),
            ("oci::v1", "no path"),
            ("oci:d:-x", "not a reference"),
            ("oci:d:a..b", "not a reference"),
            ("oci:d:@-1", "not a reference"),
            ("docker-archive:", "no path"),
            ("docker-archive:d:", "empty"),
            ("docker-archive:d:@x", "@0 is the first"),
            ("docker-archive:d:@-1", "@0 is the first"),
            ("dir:", "no path"),
            ("alpine:3=", "the name after `=`"),
            ("alpine:3=mine", "mine:TAG"),
            ("a\0:1", "NUL"),
            ("a:1\nb", "\\n"),
        ];
        for (typed, part) in table {
            let error = parse(typed).expect_err(typed).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{typed}: {error}");
        }
    }

    #[test]
    fn a_path_may_have_any_bytes() {
        let item = Item::parse(OsStr::from_bytes(b"oci:/a\xff\n:v1=localhost/x:1")).unwrap();
        assert_eq!(
            item.location,
            Location::OciLayout { path: OsStr::from_bytes(b"/a\xff\n").into(), reference: Some("v1".into()) }
        );
        assert_eq!(item.typed, "oci:/a\u{fffd}\\n:v1=localhost/x:1");
        assert!(Item::parse(OsStr::from_bytes(b"r.io/\xff:1")).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Item::parse(OsStr::from_bytes(&bytes));
        }

        #[test]
        fn no_words_panic(words in prop::collection::vec("oci:|docker://|docker-daemon:|dir:|docker-archive:|=|@|/|a|r\\.io|:1|#| ", 0..9)) {
            let text = words.concat();
            if let Ok(item) = parse(&text) {
                prop_assert_eq!(Item::parse(OsStr::new(&item.typed)), Ok(item));
            }
        }
    }
}
