//! Images as a user names them: items of the command line and of lists.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use super::output::Several;
use super::{Exit, Failure};
use crate::inspect::find;
use crate::inspect::root::Root;
use crate::plan;
use crate::reference::{Item, LIST_BYTES_MAX, Location, parse_list_lines};
use crate::source::{self, Holding};

/// Endings of names that are meant as files.
const FILE_ENDINGS: [&str; 8] = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".oci", ".img"];

/// Returns the items of the command line, then those of the lists.
///
/// # Errors
/// When some of them cannot be understood: all of these are named. When there are none and `may_be_empty` is false.
pub fn all_items(typed: &[OsString], lists: &[PathBuf], may_be_empty: bool) -> Result<Vec<Item>, Failure> {
    let (mut items, mut errors) = (Vec::new(), Vec::new());
    for typed in typed {
        match parse(typed) {
            Ok(item) => items.push(item),
            Err(error) => errors.push(error),
        }
    }
    for list in lists {
        let bytes = read(list).map_err(Failure::usage)?;
        let shown = if list == Path::new("-") { "standard input".into() } else { list.display().to_string() };
        if bytes.contains(&0) {
            let what = "not a list of images, since it has NUL bytes (an archive is an item: docker-archive:FILE)";
            return Err(Failure::usage(anyhow!("--images {shown}: {what}")));
        }
        let lines = parse_list_lines(&bytes).map_err(|error| Failure::usage(anyhow!("{shown}: {error}")))?;
        for (line, typed) in lines {
            match parse(OsStr::from_bytes(typed)) {
                Ok(item) => items.push(item),
                Err(error) => errors.push(error.context(format!("{shown}: line {line}"))),
            }
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(Failure::usage(errors.remove(0))),
        count => {
            let total = format!("{count} of {} items are wrong", items.len() + count);
            return Err(Failure::usage(Several { errors, total }));
        }
    }
    if items.is_empty() && !may_be_empty {
        let lists: Vec<_> = lists.iter().map(|list| list.display().to_string()).collect();
        let which = if lists.is_empty() {
            "no image is named (ITEM, or --images FILE)".to_owned()
        } else {
            format!("{}: no image in it, only comments and empty lines", lists.join(", "))
        };
        return Err(Failure::usage(anyhow!("{which}; --allow-empty allows a store without images")));
    }
    Ok(items)
}

fn read(list: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = LIST_BYTES_MAX as u64 + 1;
    if list == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).context("reading standard input")?;
    } else {
        let shown = || format!("--images {}", list.display());
        let file = std::fs::OpenOptions::new().read(true).open(list).with_context(shown)?;
        file.take(limit).read_to_end(&mut bytes).with_context(shown)?;
    }
    Ok(bytes)
}

/// Parses one item. What is not one is looked up as a path, since users of tar and podman name files.
fn parse(typed: &OsStr) -> anyhow::Result<Item> {
    match Item::parse(typed) {
        Ok(item) => match &item.location {
            Location::Overlay(name) if is_id(name) => {
                Err(anyhow!("{item}: an id names no image in a registry or an archive (NAME:TAG or NAME@sha256:DIGEST)"))
            }
            Location::Overlay(name) => Err(path_hint(typed).unwrap_or_else(|| {
                anyhow!(
                    "{item}: an image needs its version ({name}:TAG or {name}@sha256:DIGEST; not `latest`, which pods pull again each time)"
                )
            })),
            // An image may be called so, but a file that lies here is more likely meant.
            Location::Registry(_) if names_a_file(typed) => path_hint(typed).map_or(Ok(item), Err),
            _ => Ok(item),
        },
        Err(error) => Err(path_hint(typed).unwrap_or_else(|| error.into())),
    }
}

/// Returns whether `text` is as long as ids are shown, and hexadecimal.
fn is_id(text: &str) -> bool {
    (12..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether `FILE:REFERENCE` names an archive that exists.
fn names_a_file(typed: &OsStr) -> bool {
    let bytes = typed.as_bytes();
    let file = &bytes[..bytes.iter().position(|byte| *byte == b':').unwrap_or(bytes.len())];
    FILE_ENDINGS.iter().any(|ending| file.ends_with(ending.as_bytes())) && Path::new(OsStr::from_bytes(file)).is_file()
}

/// Returns what to write instead of a path, if `typed` is one.
fn path_hint(typed: &OsStr) -> Option<anyhow::Error> {
    let bytes = typed.as_bytes();
    if matches!(bytes, b"true" | b"false") {
        return Some(anyhow!(
            "{}: not an image; the value of an option follows a `=` (--tls-verify=false)",
            typed.to_string_lossy()
        ));
    }
    let item = crate::text::printable(&typed.to_string_lossy());
    let path = Path::new(typed);
    // `FILE:REFERENCE`, `FILE=NAME`: the path ends before it.
    let ends = bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b':' | b'=')).map(|(at, _)| at);
    let places = std::iter::once(path).chain(ends.map(|at| Path::new(OsStr::from_bytes(&bytes[..at]))));
    let found = places.filter(|path| !path.as_os_str().is_empty()).find(|path| path.exists());
    let Some(found) = found else {
        let is_path = [&b"./"[..], b"../", b"/", b"~"].iter().any(|start| bytes.starts_with(start))
            || FILE_ENDINGS.iter().any(|ending| bytes.ends_with(ending.as_bytes()));
        return is_path.then(|| anyhow!("{item}: no such file (an image in a registry is NAME:TAG; a file is docker-archive:FILE or oci-archive:FILE)"));
    };
    let shown = crate::text::printable(&found.to_string_lossy());
    Some(match (source::recognise(found, &source::Options::from_env()), found.is_dir()) {
        (Some(Holding::DockerArchive), _) => {
            anyhow!("{item}: an archive as `docker save` writes it (docker-archive:{item})")
        }
        (Some(Holding::OciArchive), _) => anyhow!("{item}: an archive of an OCI layout (oci-archive:{item})"),
        (Some(Holding::OciLayout), _) => anyhow!("{item}: an OCI layout (oci:{item})"),
        (Some(Holding::Directory), _) => anyhow!("{item}: an image as `skopeo copy` writes it (dir:{item})"),
        (None, is_directory) if has_store(found) => {
            let what = if is_directory { "a directory" } else { "a tar" };
            let how = if is_directory {
                "prepull ls lists its images; name the images themselves here".to_owned()
            } else {
                format!(
                    "name the images themselves here; the tar is unpacked by tar -C DIR -x -f {shown}, or shown by prepull mount DIR {shown}"
                )
            };
            anyhow!("{shown}: {what} with a store, as `prepull make` writes it ({how})")
        }
        (None, true) => anyhow!(
            "{item}: a directory without an image that is known (oci:DIR is an OCI layout, dir:DIR what skopeo writes)"
        ),
        (None, false) => anyhow!(
            "{item}: not an archive of images (docker-archive:FILE, oci-archive:FILE; a list of images is --images FILE)"
        ),
    })
}

/// Returns whether a store is found at `path`.
fn has_store(path: &Path) -> bool {
    let found = if path.is_dir() {
        Root::open(path).map_err(find::Error::from).and_then(|root| find::in_directory(&root))
    } else {
        match fs_err::File::open(path) {
            Ok(file) => find::in_tar(file.into_file()),
            Err(_) => return false,
        }
    };
    found.is_ok_and(|stores| !stores.is_empty())
}

/// Returns the failure of a plan: one line for each item that failed.
pub fn plan_failure(error: plan::Error) -> Failure {
    let exit = if error.is_not_found() { Exit::Usage } else { Exit::Failure };
    let error = match error {
        plan::Error::Several { failed, total, unfinished } => {
            let unfinished =
                if unfinished == 0 { String::new() } else { format!(", {unfinished} were not looked at to the end") };
            let total = format!("{} of {total} images failed{unfinished}", failed.len());
            Several { errors: failed.into_iter().map(anyhow::Error::new).collect(), total }.into()
        }
        error => error.into(),
    };
    Failure { exit, error }
}
