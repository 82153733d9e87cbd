//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{ArgAction, Parser, Subcommand, ValueEnum, ValueHint};

use super::restore_helper::RestoreHelper;
use crate::image::Platform;
use crate::storage::store::{StoreKind, Unpacker};

/// Container images into machines before they boot
///
/// prepull writes a tar with a containers-storage tree that CRI-O or podman in a virtual machine takes as its own: the
/// images are there at boot. It needs no root, no user namespace, no daemon, and the same images give the same bytes.
#[derive(Debug, Parser)]
#[command(name = "prepull", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Args {
    /// Say only what went wrong
    #[arg(short, long, global = true, display_order = 900)]
    pub quiet: bool,

    /// Say more (repeat for even more; PREPULL_LOG takes a filter)
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 901)]
    pub verbose: u8,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write images into a tar that a machine unpacks at its root
    Make(Box<MakeArgs>),
    /// Write images into the store of a directory, beside those that are there
    ///
    /// DIR is the root of a machine: a mounted disk image, a root file system, or `/`. Layers that are in its store are not
    /// written again, other images keep theirs, and podman or CRI-O may use the store meanwhile. Where only root may write, a
    /// small helper with four capabilities writes; `prepull doctor` says how to come by it.
    #[command(after_help = INSTALL_HELP)]
    Install(Box<InstallArgs>),
    /// Remove images from the store of a directory, and layers that no other image needs
    ///
    /// An image goes with its last name. Nothing is removed that a container uses.
    Rm(RmArgs),
    /// Remove from the store of a directory what nothing refers to
    ///
    /// That is what killed processes have left, and layers that no image has needed for a day.
    Gc(GcArgs),
    /// Show images as a store that podman and CRI-O use at once, without unpacking them
    ///
    /// MOUNTPOINT becomes the very store that `make --store additional` would write, read-only. ITEM is as for `make`; or it is one
    /// tar that `make` has written, which is shown where it lies.
    #[command(after_help = MOUNT_HELP)]
    Mount(Box<MountArgs>),
    /// Unmount what `mount` has mounted
    Umount(UmountArgs),
    /// Say which ways there are for this user to write into a directory of root's, and how to make one
    Doctor(DoctorArgs),
    /// List the images in a store
    Ls(LsArgs),
    /// Say whether a store is whole, and whether CRI-O would keep it
    ///
    /// Each layer is put together again from its files, which must give its digest; owners, modes, whiteouts and attributes are
    /// compared with the layer; records, links, locks and the machine's configuration are judged by what CRI-O and
    /// containers/storage do with them. Exit code 0: good. 1: there are errors. 2: there is no store, or it
    /// cannot be read.
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Say what differs between two stores: images, names, layers, files, bytes
    ///
    /// Exit code as diff(1): 0 the same, 1 different, 2 trouble.
    Diff(DiffArgs),
    /// Explain what CRI-O finds under a name
    ///
    /// Says how CRI-O will look NAME up in the machine that the tar is unpacked in, which image it finds, and whether a pod
    /// starts without a pull. Nothing is unpacked, and no registry is asked. It ends with 0 if a pod needs no pull, with 1 if
    /// CRI-O finds the image, but will pull or stumble all the same, and with 2 if it finds none.
    Why(WhyArgs),
    /// Write the `images` overlay for xcluster
    ///
    /// `xc mkcdrom images` then takes the images from it: those that `prepull make` has put into $XCLUSTER_TMP/images.tar.
    Ovl(OvlArgs),
    /// Show what is kept of layers that were converted before
    Cache(CacheCommandArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Where to
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

/// What stands below the help of `mount`.
const MOUNT_HELP: &str = "\
Examples:
  prepull mount /mnt/images registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20
  podman --storage-opt additionalimagestore=/mnt/images run alpine:3.20 true
  prepull mount add /mnt/images oci:build/app=localhost/app:v2
  prepull mount rm /mnt/images localhost/app:v1
  prepull umount /mnt/images";

/// `prepull mount`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true, subcommand_negates_reqs = true)]
pub struct MountArgs {
    /// What to do with a mount that is there
    #[command(subcommand)]
    pub command: Option<MountCommand>,

    /// Where: an empty directory
    #[arg(value_name = "MOUNTPOINT", required = true, value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,

    /// Let other users look into it, root among them (root's own mounts are for all)
    #[arg(long)]
    pub allow_other: bool,

    /// Show opaque directories as whiteouts of all that they hide: for containers in user namespaces, which see no trusted.*
    #[arg(long)]
    pub expand_opaque: bool,

    /// Fetch a layer when somebody reads it first; until then only manifests and configs are there
    #[arg(long)]
    pub lazy: bool,

    /// Do not return before it is unmounted
    #[arg(long)]
    pub foreground: bool,

    /// Also write a storage.conf that has it as an additional store
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write_storage_conf: Option<PathBuf>,

    /// Print how it is as JSON
    #[arg(long)]
    pub json: bool,

    /// Take the kernel for one before 6.9
    #[arg(long, hide = true)]
    pub no_resend: bool,

    /// Which images.
    #[command(flatten)]
    pub what: MountItems,
}

/// Images for a mount.
#[derive(Debug, clap::Args)]
pub struct MountItems {
    /// Images, as for `make`; for a new mount also one tar that `make` has written
    #[arg(value_name = "ITEM")]
    pub items: Vec<OsString>,

    /// Read more items from FILE (`-`: standard input), one per line, `#` begins a comment
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,

    /// Platform of the images, as os/arch[/variant] [default: this machine's]
    #[arg(long)]
    pub platform: Option<Platform>,

    /// Where images come from.
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Where layers are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What can be done with a mount.
#[derive(Debug, Subcommand)]
pub enum MountCommand {
    /// Show more images, at once; who has the name of one of them loses it
    Add(Box<MountAddArgs>),
    /// Do not show these images any more; containers that use them go on
    Rm(MountRmArgs),
    /// Say how it is
    Status(MountStatusArgs),
}

/// `prepull mount add`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("items", |arg| arg.help("Images, as for `make`")))]
pub struct MountAddArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,

    /// Which images.
    #[command(flatten)]
    pub what: MountItems,
}

/// `prepull mount rm`.
#[derive(Debug, clap::Args)]
pub struct MountRmArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,

    /// Names of images, or ids with at least 12 digits
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,

    /// Where layers are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `prepull mount status`.
#[derive(Debug, clap::Args)]
pub struct MountStatusArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull umount`.
#[derive(Debug, clap::Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,

    /// Also if somebody uses it: it goes from the directory at once, and is served until nobody uses it any more
    #[arg(short = 'z', long)]
    pub lazy: bool,
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

/// `prepull cache`.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub struct CacheCommandArgs {
    /// The cache [default: $XDG_CACHE_HOME/prepull, else ~/.cache/prepull]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    pub cache_dir: Option<PathBuf>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do with it; without: show it
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
}

/// What can be done with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Remove what was not used for the longest time, and what killed processes left
    Prune(PruneArgs),
}

/// `prepull cache prune`.
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// Leave at most this many bytes (5G, 500M) [default: 10G, unless --older-than is given]
    #[arg(long, value_name = "SIZE", value_parser = super::cache::parse_size)]
    pub max_size: Option<u64>,

    /// Remove what was not used for this time (30d, 12h)
    #[arg(long, value_name = "DURATION", value_parser = super::cache::parse_duration)]
    pub older_than: Option<Duration>,

    /// Remove everything
    #[arg(long, conflicts_with_all = ["max_size", "older_than"])]
    pub all: bool,
}

/// `prepull ls`.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// A tar with a store (also compressed with gzip or zstd; `-`: standard input), a graphroot, or a root directory
    #[arg(value_name = "TAR|DIR", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,

    /// Show digests
    #[arg(long)]
    pub digests: bool,

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
    /// A tar with a store (also compressed with gzip or zstd; `-`: standard input), a graphroot, or a root directory
    #[arg(value_name = "TAR|DIR", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,

    /// The image as a pod or crictl names it: a name, or an id or its beginning
    pub name: String,

    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Whose store is written.
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    /// The root of the machine: `/`, or where its disk is mounted
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,

    /// Where the store lies below it [default: /var/lib/containers/storage]
    #[arg(long, value_name = "DIR")]
    pub graphroot: Option<String>,

    /// Who writes [default: this process if it is root; else what works, in this order]
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
    /// The helper, which has file capabilities
    Helper,
    /// The helper, by sudo
    Sudo,
    /// This process: root, also in a user namespace (podman unshare)
    Own,
}

/// `prepull install`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// Images: references with their version, or transport names; ITEM=NAME gives a name
    #[arg(value_name = "ITEM", required_unless_present = "images")]
    pub items: Vec<OsString>,

    /// Where to
    #[command(flatten)]
    pub target: TargetArgs,

    /// Read more items from FILE (`-`: standard input), one per line, `#` begins a comment
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,

    /// Platform of the images, as os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// DIR is empty: write all that a tar of `make` has, with etc/containers and etc/crio
    #[arg(long)]
    pub rootfs: bool,

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

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Say whether this directory can be written, not only what is set up
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,

    /// What is tried.
    #[command(flatten)]
    pub helper: HelperArgs,

    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// `prepull make`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAKE_HELP)]
pub struct MakeArgs {
    /// Images: references with their version, or transport names; ITEM=NAME gives a name
    #[arg(value_name = "ITEM", required_unless_present_any = ["images", "pause"])]
    pub items: Vec<OsString>,

    /// Read more items from FILE (`-`: standard input), one per line, `#` begins a comment
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,

    /// Include IMAGE, and make it CRI-O's pause_image
    #[arg(long, value_name = "IMAGE", conflicts_with = "no_config")]
    pub pause: Option<OsString>,

    /// Where to write (`-`: standard output) [default: $XCLUSTER_TMP/images.tar, else ./images.tar]
    #[arg(long, short = 'o', visible_alias = "output", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tar: Option<PathBuf>,

    /// Platform of the images, as os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// Where the store lies in the machine [default: /var/lib/containers/storage; with --store additional
    /// /usr/lib/containers/storage]
    #[arg(long, value_name = "DIR")]
    pub graphroot: Option<String>,

    /// The machine's own store, or a read-only one beside it that survives `crio wipe`, power loss and upgrades
    #[arg(long, value_enum, default_value_t)]
    pub store: StoreArg,

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

/// Options for whatever talks to a registry.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Credentials for all registries (better: `podman login`, since others can see a command line)
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,

    /// Credentials file [default: $REGISTRY_AUTH_FILE, then those of podman, skopeo and docker]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub authfile: Option<PathBuf>,

    /// Directory with *.crt, *.cert and *.key for all registries
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cert_dir: Option<PathBuf>,

    /// Require HTTPS with a valid certificate; `false` also allows plain HTTP
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub tls_verify: bool,

    /// How often to try again after a failure without progress
    #[arg(long, value_name = "N", default_value_t = crate::registry::retry::RETRY_TIMES)]
    pub retry_times: u32,

    /// Wait this many seconds before each retry [default: 1, 2, 4, ...]
    #[arg(long, value_name = "SECONDS")]
    pub retry_delay: Option<u64>,
}

/// Options for the segment cache.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// Keep converted layers below DIR [default: $XDG_CACHE_HOME/prepull, else ~/.cache/prepull]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "no_cache")]
    pub cache_dir: Option<PathBuf>,

    /// Keep nothing
    #[arg(long)]
    pub no_cache: bool,

    /// Write large new layers twice, instead of giving the cache a hard link to the tar
    #[arg(long)]
    pub no_link: bool,
}

/// `--store`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum StoreArg {
    /// graphroot
    #[default]
    Primary,
    /// additionalimagestores
    Additional,
}

/// `--unpacker`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum UnpackerArg {
    /// busybox tar, also with -o: no attributes, owners given back by etc/init.d/25prepull.rc
    #[default]
    Busybox,
    /// GNU tar --xattrs --xattrs-include='*', bsdtar: everything is in the tar itself
    Gnu,
}

impl From<StoreArg> for StoreKind {
    fn from(arg: StoreArg) -> Self {
        match arg {
            StoreArg::Primary => Self::Primary,
            StoreArg::Additional => Self::Additional,
        }
    }
}

impl From<UnpackerArg> for Unpacker {
    fn from(arg: UnpackerArg) -> Self {
        match arg {
            UnpackerArg::Busybox => Self::Busybox,
            UnpackerArg::Gnu => Self::Gnu,
        }
    }
}

const MAKE_HELP: &str = "\
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
  prepull make --pause registry.k8s.io/pause:3.9 --images images.txt --tar - | ssh vm tar -C / -x
  SOURCE_DATE_EPOCH=0 prepull make --store additional -o a.tar oci:app=localhost/app:v1";

const INSTALL_HELP: &str = "\
Examples:
  prepull install --root /mnt registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20
  podman unshare prepull install --root ~/vm oci:build/app=localhost/app:v1
  prepull install --root / --images images.txt && crictl images";

const VERIFY_HELP: &str = "\
Examples:
  prepull verify images.tar
  prepull make --tar - alpine:3.20 | tee images.tar | prepull verify -
  sudo prepull verify /                  what this machine has in its store
  prepull verify --json images.tar | jq -r '.findings[].rule'";
