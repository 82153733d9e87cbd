//! What was found, collected rule by rule: a hostile store can break each a million times.

use std::collections::BTreeMap;

use super::rule::{Fate, Rule, Severity};

/// How many findings of one rule and severity are kept with their words; all are counted.
pub const FINDINGS_SHOWN: usize = 100;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: a path in the input, or an image.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// All findings of one rule and severity.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// The first few.
    pub first: Vec<Finding>,
}

/// A store that was looked at.
#[derive(Debug, Clone, Default)]
pub struct StoreSummary {
    /// Where it lies in the input.
    pub graphroot: String,
    /// Whether it was judged as an additional store.
    pub additional: bool,
    /// Images in its records.
    pub images: usize,
    /// Layers in its records.
    pub layers: usize,
    /// Layers whose files gave their diffID again.
    pub replayed: usize,
    /// Entries of its layers.
    pub entries: usize,
    /// Size of its images, in bytes, as its records have it: the uncompressed tars of the layers, configs and manifests.
    pub bytes: u64,
}

/// All that was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The stores.
    pub stores: Vec<StoreSummary>,
    groups: BTreeMap<(std::cmp::Reverse<Severity>, Rule), Group>,
    start: BTreeMap<Fate, usize>,
    crash: BTreeMap<Fate, usize>,
}

impl Report {
    /// Adds a finding.
    pub(super) fn add(&mut self, rule: Rule, severity: Severity, checked: bool, finding: Finding) {
        let group = self.groups.entry((std::cmp::Reverse(severity), rule)).or_default();
        group.count += 1;
        if group.first.len() < FINDINGS_SHOWN {
            group.first.push(finding);
        }
        if severity == Severity::Error {
            let (start, crash) = if checked { rule.fates() } else { rule.fates_in_additional() };
            *self.start.entry(start).or_default() += 1;
            *self.crash.entry(crash).or_default() += 1;
        }
    }

    /// Takes in another report's findings.
    pub(super) fn merge(&mut self, other: Self) {
        for (key, group) in other.groups {
            let mine = self.groups.entry(key).or_default();
            mine.count += group.count;
            let room = FINDINGS_SHOWN - mine.first.len();
            mine.first.extend(group.first.into_iter().take(room));
        }
        for (mine, theirs) in [(&mut self.start, other.start), (&mut self.crash, other.crash)] {
            for (fate, count) in theirs {
                *mine.entry(fate).or_default() += count;
            }
        }
    }

    /// All findings, the worst first, then in the order of the rules.
    pub fn groups(&self) -> impl Iterator<Item = (Rule, Severity, &Group)> {
        self.groups.iter().map(|((severity, rule), group)| (*rule, severity.0, group))
    }

    /// How many findings of `severity` there are.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.groups().filter(|(_, of, _)| *of == severity).map(|(_, _, group)| group.count).sum()
    }

    /// Whether there is no error.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// The worst that a start of CRI-O makes of it, and a start after a power cut.
    #[must_use]
    pub fn fate(&self) -> (Fate, Fate) {
        let worst = |fates: &BTreeMap<Fate, usize>| fates.keys().next_back().copied().unwrap_or(Fate::Kept);
        (worst(&self.start), worst(&self.crash))
    }
}
