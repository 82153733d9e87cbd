//! Looks into stores that are there, in a tar or a directory, whoever made them: without unpacking, and for a tar without root.

pub mod contents;
pub mod dependents;
pub mod diff;
pub mod files;
pub mod find;
pub mod input;
pub mod list;
pub mod machine;
pub mod merged;
pub mod root;
pub mod stores;
pub mod why;

/// Serialises a path within an input as an absolute one, as all commands show it.
fn absolute<S: serde::Serializer>(path: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("/{path}"))
}

/// Serialises paths within an input as absolute ones.
fn all_absolute<S: serde::Serializer>(paths: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| format!("/{path}")))
}
