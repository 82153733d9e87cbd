//! Tests of the whole, against the real tools. One binary; each module says in a sentence what belongs into it.

/// Runs the `prepull` that is tested: no tests of its own.
mod command;
/// A real dockerd on a private socket; needs root.
mod daemon;
/// `prepull ls` agrees with podman, whoever made the store.
mod ls;
/// Hand-made OCI layouts and docker archives, and the tools that judge: no tests of its own.
mod made;
/// Names are normalised as the real tools normalise them.
mod references;
/// Every local transport gives the image that skopeo gives, and refuses what skopeo refuses.
mod sources;
