//! Without any capability: what has been received becomes part of the store. It is root's, and so are its records, its locks and
//! the directories in which layers are renamed.
//!
//! JSON and the text of records are read here and nowhere else. What is taken out of the store goes into staging; what of it only
//! a run with capabilities can remove, the caller asks for by a request of its own ([`Answer::left`]).

/// Small files.
mod files;
/// New layers and images.
pub mod images;
/// Images of a stream.
pub mod incoming;
/// Records, and their text.
pub mod record;
/// Names, images, layers and left-overs taken away.
pub mod remove;
/// Directories, locks and records of a store.
pub mod store;
/// A whole tree.
pub mod tree;

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::confine::Powers;
use super::receive::{Received, Stream, Work, is_id};
use super::staging::{RUNS_MAX, Staging};
use super::{Error, Job};
use images::{Done, New};
use record::{Lines, is_name};
use remove::{Gone, Target};
use store::Store;

/// The fewest digits of an id that is not whole: CRI-O takes fewer for a name (`minimumTruncatedIDLength`), and so few may be a
/// slip. podman itself takes one.
const ID_MIN: usize = 3;

/// What the helper answers: one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Why it failed; empty when it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Whether it failed because an image is not there.
    #[serde(default)]
    pub not_found: bool,
    /// Layers that the store lacks: of those asked for, or of those that something received stands on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_layers: Vec<String>,
    /// Of the images asked for, those that an install would add or change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_images: Vec<String>,
    /// What was published.
    #[serde(default)]
    pub done: Done,
    /// What was removed.
    #[serde(default)]
    pub gone: Gone,
    /// Whether something is left in staging that only a run with capabilities can remove: the request `sweep`.
    #[serde(default)]
    pub left: bool,
    /// Extended attributes that the helper or the file system does not set: how many.
    #[serde(default)]
    pub dropped: u64,
    /// The first few of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_first: Vec<String>,
}

impl Answer {
    /// That nothing was done.
    #[must_use]
    pub fn failed(error: Error) -> Self {
        let mut answer = Self::default();
        answer.fail(error);
        answer
    }

    /// That not all was done.
    pub fn fail(&mut self, error: Error) {
        self.error = error.to_string();
        self.not_found = matches!(error, Error::NotFound(_));
        if let Error::Missing(layers) = error {
            self.missing_layers = layers;
        }
    }
}

/// Does what is left to be done, and takes what is left of the stream.
///
/// # Errors
/// When it cannot be done.
pub fn publish<R: Read>(work: Work, stream: &mut Stream<'_, R>, job: &Job, answer: &mut Answer) -> Result<(), Error> {
    let root = &job.target;
    match work {
        Work::Swept(count) => answer.gone.orphans = count,
        Work::Query(text, next) => {
            let mut lines = Lines::new(&text)?;
            let layers = lines.all("layer", is_id)?;
            lines.end()?;
            let images = incoming::asked(stream, next)?;
            (answer.missing_layers, answer.missing_images) = if Store::is_in(root) {
                images::lacking(&open(job)?, &layers, &images)?
            } else {
                (layers, images.into_iter().map(|image| image.id).collect())
            };
        }
        Work::Install(received) => {
            let Received { staging, layers, next } = received;
            let images = incoming::images(stream, &staging, next);
            let most = stream.budget.allow.max_store_bytes;
            let new = images.and_then(|images| New::of(&layers, images, most < u64::MAX));
            let published = new.and_then(|new| new.publish(&open(job)?, &staging, most, job.until));
            answer.left = !staging.remove(root, Powers::Own);
            answer.done = published?;
        }
        Work::Collect(swept) => {
            // Nothing is made where there is nothing.
            if Store::is_in(root) {
                answer.gone = staged(job, answer, |store, staging| remove::collect(store, staging, job.until))?;
            }
            answer.gone.orphans += swept;
        }
        Work::Remove(text) => {
            let mut lines = Lines::new(&text)?;
            let is_start = |id: &str| id.len() >= ID_MIN && is_id(&format!("{id:0<64}"));
            let mut targets: Vec<_> = lines.all("name", is_name)?.into_iter().map(Target::Name).collect();
            targets.extend(lines.all("id", is_start)?.into_iter().map(Target::Id));
            lines.end()?;
            if !Store::is_in(root) {
                let first = targets.into_iter().next();
                return match first {
                    Some(Target::Name(name) | Target::Id(name)) => Err(Error::NotFound(name)),
                    None => Ok(()),
                };
            }
            answer.gone = staged(job, answer, |store, staging| remove::remove(store, staging, &targets, job.until))?;
        }
        Work::Tree(staging, is_rest, identity) => {
            let published = tree::publish(root, &staging, is_rest, &identity);
            answer.left = !staging.remove(root, Powers::Own);
            published?;
        }
    }
    Ok(())
}

fn open(job: &Job) -> Result<Store, Error> {
    let root = job.target.open(b"").map_err(|error| Error::system("opening the store", error))?;
    Store::open(root, job.is_readable)
}

/// Something that needs a place for what it takes away.
fn staged(
    job: &Job,
    answer: &mut Answer,
    act: impl FnOnce(&Store, &Staging) -> Result<Gone, Error>,
) -> Result<Gone, Error> {
    let store = open(job)?;
    let staging = Staging::new(&job.target, RUNS_MAX)?;
    let gone = act(&store, &staging);
    answer.left = !staging.remove(&job.target, Powers::Own);
    gone
}
