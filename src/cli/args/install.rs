//! Commands that write into the store of a directory: `install`, `rm`, `gc`, `doctor`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};

use super::{CacheArgs, PlatformArgs, RegistryArgs};

/// Whose store is written.
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    /// The root of the machine: `/`, or where its disk is mounted
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,

    /// Where the store lies below it [default: /var/lib/containers/storage]
    #[arg(long, value_name = "DIR")]
    pub graphroot: Option<String>,

    /// How to write [default: own as root; else the first of socket and sudo that works]
    #[arg(long, value_enum)]
    pub via: Option<ViaArg>,

    /// What is tried.
    #[command(flatten)]
    pub helper: HelperArgs,
}

/// The program and the socket that are tried.
#[derive(Debug, clap::Args)]
pub struct HelperArgs {
    /// Where the helper is
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, default_value = crate::install::way::HELPER)]
    pub helper: PathBuf,

    /// Where the service listens
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, default_value = crate::install::way::SOCKET)]
    pub socket: PathBuf,
}

/// `--via`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ViaArg {
    /// The service, at `--socket`
    Socket,
    /// The helper, by sudo
    Sudo,
    /// This process: root, also in a user namespace (podman unshare)
    Own,
}

/// `prepull install`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// Images: references with their version, or transport names; ITEM=NAME gives a name
    #[arg(value_name = "ITEM", required_unless_present_any = ["images", "pause", "allow_empty"])]
    pub items: Vec<OsString>,

    /// Where to
    #[command(flatten)]
    pub target: TargetArgs,

    /// Read more items from FILE (`-`: standard input), one per line, `#` begins a comment
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,

    /// Succeed without doing anything if no image is named
    #[arg(long)]
    pub allow_empty: bool,

    /// The platform.
    #[command(flatten)]
    pub platform: PlatformArgs,

    /// DIR is empty: write all that a tar of `make` has, with etc/containers and etc/crio
    #[arg(long)]
    pub rootfs: bool,

    /// With --rootfs: include IMAGE, and make it CRI-O's pause_image
    #[arg(long, value_name = "IMAGE", requires = "rootfs")]
    pub pause: Option<OsString>,

    /// Pin the images also where no crio.conf has pinned_images: write etc/crio/crio.conf.d/10-prepull.conf
    ///
    /// If prepull has written the drop-in whose pinned_images CRI-O uses, `install` always adds the names to it, and `rm` removes
    /// them. CRI-O reads it when it is reloaded.
    #[arg(long, conflicts_with = "rootfs")]
    pub pin: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// What to do with registries
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// What to keep
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `prepull rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Names, or ids (12 digits or more of one)
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,

    /// Where from
    #[command(flatten)]
    pub target: TargetArgs,

    /// Remove images also if images or containers in the store that storage.conf names need their layers: CRI-O then lists nothing
    #[arg(long)]
    pub force: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull gc`.
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// Where
    #[command(flatten)]
    pub target: TargetArgs,

    /// Remove layers also if images or containers in the store that storage.conf names need them: CRI-O then lists nothing
    #[arg(long)]
    pub force: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Try only this directory, whether or not the policy names it
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,

    /// What is tried.
    #[command(flatten)]
    pub helper: HelperArgs,

    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) const INSTALL_HELP: &str = "\
Examples:
  prepull install --root /mnt registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20
  podman unshare prepull install --root ~/vm oci:build/app=localhost/app:v1
  prepull install --root / --images images.txt && crictl images
  prepull install --root / --pin alpine:3.20 && systemctl reload crio";
