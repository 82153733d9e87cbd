//! Near misses: what somebody who typed a name that is not there may have meant.

use super::stores::{Stores, parse};
use super::{NAME_MAX, Nearness, Role, Suggestion};
use crate::reference::Reference;

/// The most near misses that are shown.
pub const SUGGESTIONS_MAX: usize = 8;
/// How many letters may differ in a near miss.
pub(super) const TYPOS_MAX: usize = 2;

/// Names in the stores that are like `name`, nearest first.
pub(super) fn suggestions(name: &str, candidates: &[Reference], stores: &Stores<'_>) -> Vec<Suggestion> {
    let lower = name.trim().to_lowercase();
    let bare = lower.split_once("://").map_or(&*lower, |(_, rest)| rest);
    let wanted: Vec<Reference> = candidates.iter().cloned().chain(parse(bare)).collect();
    let full = if bare == name { Nearness::FullName } else { Nearness::Spelling };
    let mut all = Vec::new();
    for store in &stores.0 {
        for stored in store.images.iter().flat_map(|image| &image.names) {
            let near = parse(stored).and_then(|there| {
                let nearness = |wanted: &Reference| nearness(wanted, &there, stored, store.role == Role::Unused, full);
                wanted.iter().filter_map(nearness).min()
            });
            // An exact name that is not found: `Stores::get` says why.
            let is_hidden = store.role != Role::Unused && candidates.iter().any(|name| name.to_string() == *stored);
            let hidden = is_hidden.then_some((0, Nearness::HiddenByPrimary));
            let nearness =
                hidden.or(near).or_else(|| is_typo(bare, &stored.to_lowercase()).then_some((7, Nearness::Typo)));
            if let Some((rank, reason)) = nearness {
                all.push(Suggestion { rank, name: stored.clone(), store: store.found.graphroot.clone(), reason });
            }
        }
    }
    all.sort();
    all.dedup();
    all.truncate(SUGGESTIONS_MAX);
    all
}

fn nearness(
    wanted: &Reference,
    there: &Reference,
    stored: &str,
    unused: bool,
    full: Nearness,
) -> Option<(u8, Nearness)> {
    let last = |name: &Reference| name.path().rsplit('/').next().unwrap_or_default().to_owned();
    let same = wanted == there;
    if same && unused {
        Some((0, Nearness::UnusedStore))
    } else if same && there.to_string() != *stored {
        Some((1, Nearness::StoredShort))
    } else if same {
        Some((2, full))
    } else if wanted.name() == there.name() {
        Some((3, Nearness::SameRepository))
    } else if wanted.path() == there.path() && wanted.tag() == there.tag() {
        Some((4, Nearness::OtherRegistry))
    } else if is_typo(&wanted.to_string(), &there.to_string()) {
        Some((5, Nearness::Typo))
    } else if last(wanted) == last(there) && wanted.tag() == there.tag() {
        Some((6, Nearness::OtherRepository))
    } else {
        None
    }
}

/// Whether at most [`TYPOS_MAX`] letters must be changed, put in or left out.
pub(super) fn is_typo(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > TYPOS_MAX || a.len() > NAME_MAX {
        return false;
    }
    // Only the diagonal counts, and what is near to it.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let from = (i + 1).saturating_sub(TYPOS_MAX);
        let to = (i + 1 + TYPOS_MAX).min(b.len());
        let far = TYPOS_MAX + 1;
        let mut next = vec![far; b.len() + 1];
        if from == 0 {
            next[0] = i + 1;
        }
        for j in from.max(1)..=to {
            let change = row[j - 1] + usize::from(*x != b[j - 1]);
            next[j] = change.min(row[j] + 1).min(next[j - 1] + 1).min(far);
        }
        row = next;
    }
    row[b.len()] <= TYPOS_MAX
}
