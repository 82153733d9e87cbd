//! Commands that write a file: `make`, `ovl`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use super::{CacheArgs, PlatformArgs, RegistryArgs, StoreArg, UnpackerArg};
use crate::cli::restore_helper::RestoreHelper;

/// `prepull make`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAKE_HELP)]
pub struct MakeArgs {
    /// Images: references with their version, or transport names; ITEM=NAME gives a name
    #[arg(value_name = "ITEM", required_unless_present_any = ["images", "pause", "allow_empty"])]
    pub items: Vec<OsString>,

    /// Read more items from FILE (`-`: standard input), one per line, `#` begins a comment
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,

    /// Make a store without images if no image is named
    #[arg(long)]
    pub allow_empty: bool,

    /// Include IMAGE, and make it CRI-O's pause_image
    #[arg(long, value_name = "IMAGE", conflicts_with = "no_config")]
    pub pause: Option<OsString>,

    /// Where to write (`-`: standard output) [default: $XCLUSTER_TMP/images.tar, else ./images.tar]
    #[arg(long, short = 'o', visible_alias = "output", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tar: Option<PathBuf>,

    /// The platform.
    #[command(flatten)]
    pub platform: PlatformArgs,

    /// Where the store lies in the machine [default: /var/lib/containers/storage; with --store additional
    /// /usr/lib/containers/storage]
    #[arg(long, value_name = "DIR")]
    pub graphroot: Option<String>,

    /// The machine's own store, or a read-only one beside it that survives `crio wipe`, power loss and upgrades
    ///
    /// The tar of a machine's own store is for a machine whose store is empty: unpacked over a store with images it takes the
    /// place of their records, and CRI-O deletes them. `prepull install` adds to a store. With an additional store, put every
    /// image that must stay into additional stores: after a power cut CRI-O 1.31 and newer delete the machine's own store if a
    /// pod has its image in an additional one.
    #[arg(long, value_enum, default_value_t)]
    pub store: StoreArg,

    /// A tar or root directory whose stores the machine has as well: its pinned images, pause image and additional stores stay in
    /// the configuration
    ///
    /// Unpack this tar after that one. The two stores need different graphroots.
    #[arg(long, value_name = "TAR|DIR", value_hint = ValueHint::AnyPath, conflicts_with = "no_config")]
    pub beside: Vec<PathBuf>,

    /// What unpacks the tar in the machine
    #[arg(long, value_enum, default_value_t)]
    pub unpacker: UnpackerArg,

    /// A static prepull-helper for the tar: puts back in the machine what busybox tar drops and disturbs (file capabilities,
    /// times)
    ///
    /// `auto`: prepull-helper beside prepull, in ../libexec or in /usr/libexec, if it is static and for the platform. `none`:
    /// leave it out. --unpacker gnu needs none.
    #[arg(long, value_name = "PATH", default_value = "auto", value_hint = ValueHint::FilePath,
          value_parser = OsStringValueParser::new().map(RestoreHelper::from))]
    pub restore_helper: RestoreHelper,

    /// Leave out etc/containers and etc/crio
    #[arg(long)]
    pub no_config: bool,

    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,

    /// What to do with registries
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// What to keep
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `prepull ovl`.
#[derive(Debug, clap::Args)]
pub struct OvlArgs {
    /// The overlay: a directory called `images` in $XCLUSTER_OVLPATH, or in the current directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,

    /// Replace files that prepull has not written
    #[arg(long)]
    pub force: bool,
}

pub(super) const MAKE_HELP: &str = "\
Items:
  registry.k8s.io/pause:3.9              an image in a registry; the version must be included
  alpine:3.20@sha256:...                 the same, and it must be this very image
  docker-daemon:NAME:TAG                 from the Docker daemon (DOCKER_HOST)
  oci:DIR[:REF]  oci-archive:FILE[:REF]  an OCI image layout
  docker-archive:FILE[:REF|:@N]          what `docker save` wrote
  dir:DIR                                what `skopeo copy ... dir:DIR` wrote
  ITEM=NAME                              called NAME in the machine: oci:app=localhost/app:v1

Examples:
  prepull make registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20
  prepull make --pause registry.k8s.io/pause:3.9 --images images.txt --tar - | ssh new-vm tar -C / -x
                                         only if the store of new-vm is empty; else use prepull install
  SOURCE_DATE_EPOCH=0 prepull make --store additional -o a.tar oci:app=localhost/app:v1
  prepull make --store additional --graphroot /usr/lib/containers/more --beside a.tar -o b.tar alpine:3.20";
