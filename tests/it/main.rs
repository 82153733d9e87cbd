//! Tests of the whole, against the real tools. One binary; each module says in a sentence what belongs into it.

/// Hand-made OCI layouts and docker archives, and the tools that judge: no tests of its own.
mod made;
/// Every local transport gives the image that skopeo gives, and refuses what skopeo refuses.
mod sources;
