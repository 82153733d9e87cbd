//! The media types of what an image is made of (OCI image spec, media-types.md; Docker's image manifest v2, schema 2).

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A Docker layer. It says gzip, but readers go by the bytes.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Media types of layers that an OCI manifest may have besides [`DOCKER_LAYERS`]. The blob's first bytes decide how it is compressed.
///
/// Nondistributable layers are ordinary layers that a registry was once not allowed to hold (OCI image spec, layer.md,
/// "Non-Distributable Layers"). containers/image reads them like all others.
pub const OCI_LAYERS: [&str; 9] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+bzip2",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+xz",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Media types of layers that a Docker manifest may have (containers/image `manifest/manifest.go`, `SupportedSchema2MediaType`).
pub const DOCKER_LAYERS: [&str; 4] = [
    DOCKER_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Returns the media type without its parameters (RFC 9110, section 8.3.1).
#[must_use]
pub fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    #[test]
    fn essence_drops_parameters() {
        for (typed, essence) in [("a/b", "a/b"), ("a/b; charset=utf-8", "a/b"), (" a/b ;x", "a/b"), ("", ""), (";", "")]
        {
            assert_eq!(super::essence(typed), essence);
        }
    }
}
