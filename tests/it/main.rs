//! Tests of the whole, against the real tools. One binary; each module says in a sentence what belongs into it.

/// A real dockerd on a private socket; needs root.
mod daemon;
/// Hand-made OCI layouts and docker archives, and the tools that judge: no tests of its own.
mod made;
/// Names are normalised as the real tools normalise them.
mod references;
/// Every local transport gives the image that skopeo gives, and refuses what skopeo refuses.
mod sources;
