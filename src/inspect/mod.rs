//! Looks into stores that are there, in a tar or a directory, whoever made them: without unpacking, and for a tar without root.

pub mod files;
pub mod find;
pub mod list;
pub mod machine;
pub mod why;
