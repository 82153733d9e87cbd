//! `prepull ls`.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::args::LsArgs;
use super::common::input;
use super::output::{self, Printer, human, printable};
use super::{Failure, readable, unreadable};
use crate::inspect::find::{self, Found};
use crate::inspect::list::{Listed, list, tag_at};
use crate::inspect::root::Root;

/// What crictl writes where there is nothing to write.
const NONE: &str = "<none>";

#[derive(Serialize)]
struct Json<'a> {
    images: &'a [Listed],
}

/// Runs it. `--quiet` prints only ids, as for `podman images` and `docker images`.
pub fn run(args: &LsArgs, printer: &Printer) -> Result<(), Failure> {
    let shown = input(&args.path)?;
    let stores = find(&args.path).map_err(|error| unreadable(&shown, error))?;
    readable(&shown, &stores)?;
    let images = list(&stores).map_err(|error| unreadable(&shown, error))?;
    for image in images.iter().filter(|image| image.size.is_none()) {
        printer.warn(&format!("{shown}: image {}: a layer or its size is missing, so CRI-O will refuse it", image.id));
    }
    if args.json {
        output::json(&Json { images: &images })?;
    } else if args.names {
        let names = images.iter().flat_map(|image| image.repo_tags.iter());
        output::data(&names.map(|name| printable(name) + "\n").collect::<String>())?;
    } else if printer.is_quiet() {
        output::data(&images.iter().map(|image| printable(&image.id) + "\n").collect::<String>())?;
    } else {
        output::data(&table(&images, args.digests, stores.len() > 1))?;
    }
    Ok(())
}

fn find(path: &Path) -> Result<Vec<Found>, find::Error> {
    if path == Path::new("-") {
        return find::in_stream(io::stdin().lock());
    }
    if fs_err::metadata(path)?.is_dir() {
        return find::in_directory(&Root::open(path)?);
    }
    find::in_tar(fs_err::File::open(path)?.into_file())
}

/// As `crictl images`: a row for each name with a tag, `<none>` for an image without one.
fn table(images: &[Listed], digests: bool, stores: bool) -> String {
    let mut rows = vec![row("IMAGE", "TAG", "DIGEST", "IMAGE ID", "SIZE", "STORE")];
    for image in images {
        let (repository, digest) =
            image.repo_digests.first().and_then(|name| name.split_once('@')).unwrap_or((NONE, NONE));
        let id: String = image.id.chars().take(13).collect();
        let size = image.size.map_or_else(|| "<unknown>".to_owned(), human);
        let row = |name: &str, tag: &str| row(name, tag, digest, &id, &size, &format!("/{}", image.store));
        for name in &image.repo_tags {
            rows.push(tag_at(name).map_or_else(|| row(name, NONE), |at| row(&name[..at], &name[at + 1..])));
        }
        if image.repo_tags.is_empty() {
            rows.push(row(repository, NONE));
        }
    }
    match (digests, stores) {
        (false, false) => output::table(&rows.map_columns([0, 1, 3, 4])),
        (true, false) => output::table(&rows.map_columns([0, 1, 2, 3, 4])),
        (false, true) => output::table(&rows.map_columns([0, 1, 3, 4, 5])),
        (true, true) => output::table(&rows),
    }
}

fn row(name: &str, tag: &str, digest: &str, id: &str, size: &str, store: &str) -> [String; 6] {
    [name, tag, digest, id, size, store].map(str::to_owned)
}

/// Some of the columns.
trait MapColumns {
    fn map_columns<const N: usize>(&self, columns: [usize; N]) -> Vec<[String; N]>;
}

impl MapColumns for Vec<[String; 6]> {
    fn map_columns<const N: usize>(&self, columns: [usize; N]) -> Vec<[String; N]> {
        self.iter().map(|row| columns.map(|column| row[column].clone())).collect()
    }
}
