//! Commands that show a store without writing it: `mount`, `umount`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Subcommand, ValueHint};

use super::{CacheArgs, PlatformArgs, RegistryArgs};

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

    /// Let no other user see it (the default)
    ///
    /// The kernel then refuses every access by another user, whatever the modes of files are. Root's podman and CRI-O, and the
    /// containers that they run as any user, see a mount that root has made.
    #[arg(long, conflicts_with = "allow_other")]
    pub private: bool,

    /// Let other users see it: for a mount of a user's also root
    ///
    /// Every local user can then read the images, their configs and whatever files of theirs are readable for all. A user who is
    /// not root needs a line `user_allow_other` in /etc/fuse.conf.
    #[arg(long)]
    pub allow_other: bool,

    /// Mode of the mount's root directory: with --allow-other, 0711 hides the list of what is in it, 0700 all of it
    #[arg(long, value_name = "MODE", default_value = "0755", value_parser = mode)]
    pub mode: u16,

    /// Also over a directory that is not empty, and over a FILE of --write-storage-conf that prepull has not written
    #[arg(long)]
    pub force: bool,

    /// Show opaque directories as whiteouts of all that they hide: for containers in user namespaces, which see no trusted.*
    #[arg(long)]
    pub expand_opaque: bool,

    /// Fetch a layer when somebody reads it first; until then only manifests and configs are there
    #[arg(long)]
    pub lazy: bool,

    /// Do not return before it is unmounted
    #[arg(long)]
    pub foreground: bool,

    /// When it is mounted, also write a storage.conf that has it as an additional store of this user's own store
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

/// Parses the mode of a directory that its owner can use: octal.
fn mode(text: &str) -> Result<u16, String> {
    let mode = u16::from_str_radix(text, 8).map_err(|_| "not an octal number".to_owned())?;
    match mode {
        // Anything else would let nobody in, or be a promise of write access that a read-only mount cannot keep.
        0o500..=0o777 if mode & 0o500 == 0o500 => Ok(mode),
        _ => Err("not between 0500 and 0777, readable and searchable for its owner".to_owned()),
    }
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

    /// Mount a store without images if no image is named
    #[arg(long)]
    pub allow_empty: bool,

    /// The platform.
    #[command(flatten)]
    pub platform: PlatformArgs,

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
    /// List the mounts of this user, or say how one of them is
    Status(MountStatusArgs),
}

/// `prepull mount add`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("items", |arg| arg.help("Images, as for `make`")))]
pub struct MountAddArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,

    /// Also if images or containers of the machine's own store need layers of an image that loses its last name
    #[arg(long)]
    pub force: bool,

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

    /// Also if images or containers of the machine's own store need layers that are removed
    #[arg(long)]
    pub force: bool,

    /// Where layers are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `prepull mount status`.
#[derive(Debug, clap::Args)]
pub struct MountStatusArgs {
    /// Where it is mounted [default: list all mounts of this user; root: of all users]
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,

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

/// What stands below the help of `mount`.
pub(super) const MOUNT_HELP: &str = "\
As root (the store of root's podman and of CRI-O):
  sudo prepull mount /mnt/images registry.k8s.io/pause:3.9 docker.io/library/alpine:3.20
  sudo podman --storage-opt additionalimagestore=/mnt/images run alpine:3.20 true
  sudo prepull mount add /mnt/images oci:build/app=localhost/app:v2
  sudo prepull mount rm /mnt/images localhost/app:v1
  sudo prepull umount /mnt/images

As another user (rootless podman), inside podman's user namespace, where the images' files belong
to its root (mounted outside of it they belong to 65534 there, and no container starts):
  podman unshare prepull mount ~/images docker.io/library/alpine:3.20
  podman --storage-opt additionalimagestore=$HOME/images run docker.io/library/alpine:3.20 true
  podman unshare prepull umount ~/images

Only the user who mounts it sees it, unless --allow-other is given. Containers see it in any case.";
