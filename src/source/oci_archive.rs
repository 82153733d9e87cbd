//! `oci-archive:`: a tar archive of an OCI image layout. It is read in place, where containers/image unpacks it.

use std::path::Path;

use super::archive::{Archive, Duplicates};
use super::oci_layout::Layout;
use super::{Error, Options};

/// Indexes the archive.
pub(super) fn open(path: &Path, options: &Options) -> Result<Layout<Archive>, Error> {
    Layout::new(Archive::open("oci-archive", path, options, Duplicates::Last)?)
}
