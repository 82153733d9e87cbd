//! Commands that read a store: `ls`, `verify`, `diff`, `why`.

use std::path::PathBuf;

use clap::ValueHint;

use super::{StoreArg, UnpackerArg};

/// `prepull ls`.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// A tar with a store (also compressed with gzip, zstd, xz, bzip2 or lz4; `-`: standard input), a graphroot, or a root directory
    #[arg(value_name = "TAR|DIR", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,

    /// Show digests
    #[arg(long)]
    pub digests: bool,

    /// Print only the names, one a line (`-q` prints only the ids)
    #[arg(long, conflicts_with_all = ["digests", "json"])]
    pub names: bool,

    /// Print the images as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A tar with a store, a graphroot, or a root directory. A tar that is compressed or comes through a pipe (`-`: standard
    /// input) is copied to $TMPDIR (else /var/tmp) first
    #[arg(value_name = "TAR|DIR", value_hint = ValueHint::AnyPath, required_unless_present = "rules")]
    pub path: Option<PathBuf>,

    /// What will unpack the tar [default: busybox when prepull made it for that, else gnu]
    #[arg(long, value_enum)]
    pub unpacker: Option<UnpackerArg>,

    /// Whether it is the machine's own store or an additional one [default: what its storage.conf says, else by its place]
    #[arg(long, value_enum)]
    pub store: Option<StoreArg>,

    /// Fail on warnings, too
    #[arg(long)]
    pub strict: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Print all rules, and what happens when one is broken
    #[arg(long)]
    pub rules: bool,
}

/// `prepull diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// A tar with a store, a graphroot, or a root directory
    #[arg(value_name = "OLD", value_hint = ValueHint::AnyPath)]
    pub old: PathBuf,

    /// Another one
    #[arg(value_name = "NEW", value_hint = ValueHint::AnyPath)]
    pub new: PathBuf,

    /// Show all files, not the first few of each image
    #[arg(long)]
    pub all: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull why`.
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// A tar with a store (also compressed with gzip, zstd, xz, bzip2 or lz4; `-`: standard input), a graphroot, or a root directory
    #[arg(value_name = "TAR|DIR", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,

    /// The image as a pod or crictl names it: a name, or an id or its beginning
    pub name: String,

    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) const VERIFY_HELP: &str = "\
Examples:
  prepull verify images.tar
  prepull make --tar - alpine:3.20 | tee images.tar | prepull verify -
  sudo prepull verify /                  what this machine has in its store
  prepull verify --json images.tar | jq -r '.findings[].rule'";
