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

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand, ValueHint};

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
#[command(name = "prepull", version, max_term_width = 100)]
pub struct Args {
    /// Print only errors and warnings; of `ls` also the ids
    #[arg(short, long, global = true, display_order = 900)]
    pub quiet: bool,

    /// Print more (repeat for still more; PREPULL_LOG takes a filter)
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 901)]
    pub verbose: u8,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Commands by what a user wants to achieve: headings of the help.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Put images into machines", &["make", "install", "mount", "umount"]),
    ("Look into stores", &["ls", "why", "verify", "diff"]),
    ("Clean up", &["rm", "gc", "cache"]),
    ("Set up", &["doctor", "completions", "man", "ovl", "help"]),
];

/// Returns the definition of the command line, whose help lists the commands by purpose.
#[must_use]
pub fn command() -> clap::Command {
    use std::fmt::Write as _;
    let command = Args::command();
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (heading, names) in GROUPS {
        let _ = write!(template, "\n{heading}:\n");
        for name in names {
            let about = match command.find_subcommand(name).and_then(clap::Command::get_about) {
                Some(about) => about.to_string(),
                None => "Print the help of a command".to_owned(),
            };
            let _ = writeln!(template, "  {name:12} {about}");
        }
    }
    template += "\nOptions:\n{options}{after-help}";
    command.help_template(template)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write images into a tar that a machine unpacks at its root
    Make(Box<MakeArgs>),
    /// Write images into the store of a directory, beside those it has
    ///
    /// DIR is the root of a machine: a mounted disk image, a root file system, or `/`. Layers that are in its store are not
    /// written again, other images keep theirs, and podman or CRI-O may use the store meanwhile. Where only root may write, a
    /// small helper with four capabilities writes; `prepull doctor` says how to come by it.
    #[command(after_help = INSTALL_HELP)]
    Install(Box<InstallArgs>),
    /// Remove images, and layers that no other image needs, from a store
    ///
    /// An image goes with its last name. Nothing is removed that a container uses.
    Rm(RmArgs),
    /// Remove from a store what nothing refers to
    ///
    /// That is what killed processes have left, and layers that no image has needed for a day.
    Gc(GcArgs),
    /// Show images as a store, without unpacking them
    ///
    /// podman and CRI-O use it at once. MOUNTPOINT becomes the very store that `make --store additional` would write, read-only. ITEM is as for `make`; or it is one
    /// tar that `make` has written, which is shown where it lies.
    #[command(after_help = MOUNT_HELP)]
    Mount(Box<MountArgs>),
    /// Unmount what `mount` has mounted
    Umount(UmountArgs),
    /// Check which install methods work, and how to enable the others
    Doctor(DoctorArgs),
    /// List the images in a store
    Ls(LsArgs),
    /// Check that a store is whole, and that CRI-O would keep it
    ///
    /// Each layer is put together again from its files, which must give its digest; owners, modes, whiteouts and attributes are
    /// compared with the layer; records, links, locks and the machine's configuration are judged by what CRI-O and
    /// containers/storage do with them. Exit code 0: good. 1: there are errors. 2: there is no store, or it
    /// cannot be read.
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Compare two stores: names, images, layers and files
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
    /// Show or bound the cache of converted layers
    Cache(CacheCommandArgs),
    /// Print the completions for a shell
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
