//! A layer opened: from the blob to the tree that unpacking it would leave, and to its tar-split.

pub mod acl;
pub mod inflate;
pub mod inode;
pub mod path;
pub mod tar;
pub mod tar_split;
pub mod tree;
