//! Tests of the whole, against the real tools. One binary; each module says in a sentence what belongs into it.

/// Images at the edge of what layers may be: no tests of its own.
mod corpus;
/// A real dockerd on a private socket; needs root.
mod daemon;
/// GNU tar unpacks what skopeo would have made, and what skopeo refuses is refused.
mod edge;
/// Hand-made OCI layouts and docker archives, and the tools that judge: no tests of its own.
mod made;
/// Tar archives block by block: no tests of its own.
mod raw;
/// Names are normalised as the real tools normalise them.
mod references;
/// Every local transport gives the image that skopeo gives, and refuses what skopeo refuses.
mod sources;
/// Stores made by the real tools and by prepull: no tests of its own.
mod stores;
