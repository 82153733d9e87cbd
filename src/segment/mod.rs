//! Segments: all that the store holds for one layer, in the form in which it leaves.
//!
//! ```text
//!  ┌──────────── data, SHA-256-verified when it was made, checksummed in chunks ───────────┐
//!  │ body: canonical tar of   │ tar-split.gz │ index: every entry, and where its content is │ sums │ facts │ trailer │
//!  │ overlay/<id>/diff/…      │              │                                              │      │       │         │
//!  └──────────────────────────┴──────────────┴──────────────────────────────────────────────┴──────┴───────┴─────────┘
//! ```
//!
//! The body may lie elsewhere: in the tar that it was written for, which the cache shares. The trailer says in which, and where.
//!
//! The body has every entry of the layer but whiteouts, in the order of the layer, each path once, parents first. What
//! depends on more than the layer is made from the index when a store is put together: whiteouts (their time; and opaque
//! directories turn into more of them, by what lower layers have), repeated directories, `link` and `lower`. So one segment
//! serves every unpacker, every kind of store and every time stamp.

pub mod cache;
pub mod convert;
pub mod file;
pub mod index;
pub mod place;
pub mod witness;
pub mod writer;
