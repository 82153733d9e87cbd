//! prepull turns container images into the files that a containers/storage overlay store is made of, as one verified
//! stream, and puts that stream where the user wants it.
//!
//! ```text
//!  Reference ─▶ ImageSource ─▶ Image ───────▶ Segment ───────────▶ Store ─────────▶ tar
//!  (what the    (where its     (manifest +    (one layer as the    (segments in order,
//!   user typed)  bytes lie)     config, all    store's entries,     image records,
//!                               verified)      verified, cached)    layers.json, images.json)
//!                                                                          │
//!                                                                          ├───▶ install ─▶ helper ─▶ a store that is there
//!                                                                          └───▶ mount ─▶ the same store, live over FUSE
//! ```
//!
//! After [`image::Image`] no code knows what a registry is. After [`segment`] no code knows what an image layer is.
//! Nothing points left, and a test keeps this table true:
//!
//! | module | may use |
//! | --- | --- |
//! | entry |  |
//! | digest |  |
//! | media_type |  |
//! | json |  |
//! | go_types | json |
//! | atomic |  |
//! | text |  |
//! | threads |  |
//! | signals |  |
//! | channel |  |
//! | compression | text |
//! | confine |  |
//! | config | threads |
//! | wire | entry |
//! | helper | digest, entry, go_types, json, wire |
//! | reference | digest, text |
//! | registry | compression, config, digest, json, threads |
//! | source | atomic, compression, config, digest, go_types, json, media_type, reference, registry, threads |
//! | image | digest, go_types, json, media_type, source |
//! | layer | compression, digest, entry, json, source, threads |
//! | segment | atomic, compression, digest, entry, layer, source, threads, wire |
//! | storage | digest, entry, go_types, helper, image, json, layer, segment, wire |
//! | install | channel, entry, helper, threads, wire |
//! | inspect | atomic, compression, entry, go_types, layer, reference, storage |
//! | sink | atomic, digest, segment, storage, threads |
//! | plan | compression, digest, go_types, image, reference, source, storage, threads |
//! | make | atomic, compression, digest, entry, image, media_type, plan, segment, sink, source, storage, threads |
//! | mount | atomic, channel, digest, entry, inspect, layer, make, plan, segment, signals, sink, storage, threads, wire |
//! | verify | digest, entry, go_types, image, inspect, json, layer, reference, segment, storage, threads, wire |
//! | xcluster | atomic |
//! | cli | atomic, channel, compression, config, confine, digest, go_types, helper, image, inspect, install, make, mount, plan, reference, registry, segment, signals, sink, source, storage, text, threads, verify, xcluster |

#[cfg(feature = "front")]
pub mod atomic;
#[cfg(feature = "front")]
pub mod channel;
#[cfg(feature = "front")]
pub mod cli;
#[cfg(feature = "front")]
pub mod compression;
#[cfg(feature = "front")]
pub mod config;
#[cfg(feature = "front")]
pub mod confine;
pub mod digest;
pub mod entry;
pub mod go_types;
pub mod helper;
#[cfg(feature = "front")]
pub mod image;
#[cfg(feature = "front")]
pub mod inspect;
#[cfg(feature = "front")]
pub mod install;
pub mod json;
#[cfg(feature = "front")]
pub mod layer;
#[cfg(feature = "front")]
pub mod make;
#[cfg(feature = "front")]
pub mod media_type;
#[cfg(feature = "front")]
pub mod mount;
#[cfg(feature = "front")]
pub mod plan;
#[cfg(feature = "front")]
pub mod reference;
#[cfg(feature = "front")]
pub mod registry;
#[cfg(feature = "front")]
pub mod segment;
#[cfg(feature = "front")]
pub mod signals;
#[cfg(feature = "front")]
pub mod sink;
#[cfg(feature = "front")]
pub mod source;
#[cfg(feature = "front")]
pub mod storage;
#[cfg(feature = "front")]
pub mod text;
#[cfg(feature = "front")]
pub mod threads;
#[cfg(feature = "front")]
pub mod verify;
pub mod wire;
#[cfg(feature = "front")]
pub mod xcluster;
