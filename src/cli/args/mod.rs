//! The command line as the user types it: one struct for each command.
//!
//! Each module has the commands of one task; `common` has the options that several commands share.

mod cache;
mod common;
mod inspect;
mod install;
mod make;
mod mount;

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueHint};

pub use cache::*;
pub use common::*;
pub use inspect::*;
pub use install::*;
pub use make::*;
pub use mount::*;

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
