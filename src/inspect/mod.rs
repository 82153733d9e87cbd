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
