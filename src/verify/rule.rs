//! What is looked for, what happens when it is not so, and what to do about it: all in one table.
//!
//! What happens was measured with CRI-O 1.24, 1.29 and a version after 1.36 (docs/format/damage.tsv), and with containers/storage
//! 1.24 to 1.64. Where versions differ, the worst is said. "After a
//! power cut" is the check that CRI-O makes after an unclean shutdown (cri-o `internal/lib/container_server.go`, `InternalRepair`;
//! containers/storage `check.go`, `repair.go`): 1.24 has none, in 1.29 it is off unless `internal_repair` is set, later it is on.

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know: nobody will notice, or it is mended at the first start.
    Note,
    /// Something is lost that a machine may do without.
    Warning,
    /// Images are not there, not whole, or not for long.
    Error,
}

/// What CRI-O makes of a store in which it is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Nothing happens.
    Kept,
    /// It makes what is missing.
    Healed,
    /// It removes what nothing refers to.
    Removed,
    /// Containers see other files than the image has.
    WrongContent,
    /// The image is listed, but its pods do not start, or pull.
    PodFails,
    /// It does not see the image.
    Unseen,
    /// Listing images fails, for all of them.
    ListFails,
    /// CRI-O does not start.
    NoStart,
    /// It deletes the image.
    ImageDeleted,
    /// It deletes the whole store.
    StoreWiped,
}

/// All that is said of a rule.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Its name, for scripts.
    pub name: &'static str,
    /// How bad it is in a machine's own store.
    pub primary: Severity,
    /// How bad it is in an additional store, which is read-only.
    pub additional: Severity,
    /// What a start of CRI-O makes of it.
    pub start: Fate,
    /// What a start after a power cut makes of it; an additional store is not checked then.
    pub crash: Fate,
    /// What will happen, for people.
    pub then: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// What to do when the store itself is damaged.
const AGAIN: &str =
    "find out what changed it, and write the store again with `prepull make`, or pull the image again if it was pulled";
const REMOVE: &str = "leave it out";
const OVER: &str =
    "unpack such a tar into an empty store only, and put more images into a store with `prepull install`";
const CONFIG: &str = "mend the file, or leave it out (`prepull make` writes a good one)";

macro_rules! rules {
    ($($variant:ident $name:literal $primary:ident $additional:ident $start:ident $crash:ident $then:literal $remedy:expr;)*) => {
        /// What can be wrong with a store, or with the tar that it is in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $then] $variant,)*
        }

        impl Rule {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// All that is said of it.
            #[must_use]
            pub const fn info(self) -> Info {
                match self {
                    $(Self::$variant => Info {
                        name: $name,
                        primary: Severity::$primary,
                        additional: Severity::$additional,
                        start: Fate::$start,
                        crash: Fate::$crash,
                        then: $then,
                        remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

rules! {
    // The tar.
    TarDamaged "tar" Error Error Unseen Unseen "unpacking stops there, and what follows is lost" AGAIN;
    TarNoEnd "tar-end" Error Error Unseen Unseen "it was probably cut off, and unpackers do not all complain" AGAIN;
    TarAfterEnd "tar-after-end" Warning Warning Kept Kept "unpackers stop at the end marker, so what comes after it is lost" "do not append tars to one another with `cat`";
    TarName "tar-name" Error Error Unseen Unseen "unpackers refuse it, or leave out a part of the name" AGAIN;
    TarAbsolute "tar-absolute" Warning Warning Kept Kept "unpackers leave out the slash in front, and say so; with -P it is unpacked elsewhere" "make the tar without -P";
    TarNoDirectory "tar-directory" Warning Warning Kept Kept "the unpacker makes the directory, with an owner and a mode of its own" "put directories in front of what is in them";
    TarThroughLink "tar-through-link" Error Error WrongContent WrongContent "it ends where the link leads, perhaps outside, or unpacking fails" AGAIN;
    TarTwice "tar-twice" Warning Warning Kept Kept "the last one counts, where the unpacker does not fail" AGAIN;
    TarOverDirectory "tar-over-directory" Error Error WrongContent WrongContent "unpackers cannot replace a directory with files in it, and fail" AGAIN;
    TarGlobal "tar-global" Warning Warning Kept Kept "GNU tar takes owners, times and names from it, busybox does not" AGAIN;
    TarNoTarget "tar-hardlink" Error Error WrongContent ImageDeleted "the unpacker fails, or leaves the file out" AGAIN;
    TarType "tar-type" Error Error WrongContent WrongContent "unpackers do not know it, and leave it out or make a file of it" AGAIN;
    TarPaxNumber "tar-pax-number" Error Error WrongContent WrongContent "busybox does not read PAX records: it takes the wrong owner, or loses its place in the archive" "write the tar with `prepull make`, or unpack it with GNU tar";
    TarSparse "tar-sparse" Error Error WrongContent WrongContent "busybox does not know sparse files" "make the tar without --sparse";
    Vanished "vanished" Note Note Kept Kept "the store is in use: what was found is from different moments" "verify it again when it is not in use";
    Socket "socket" Note Note Kept Kept "sockets are not part of images" REMOVE;

    // What else is in the machine.
    RootDirectory "root-directory" Error Error PodFails PodFails "unpacking gives the machine's own directory this mode and owner" "make it root's, mode 0755, or leave its entry out";
    CrioState "crio-state" Error Error Kept ImageDeleted "CRI-O takes it for its own from before: it believes in a power cut or an upgrade, and checks or wipes the store" REMOVE;
    RuntimeState "runtime-state" Warning Warning Kept Kept "it is about containers and paths of the machine that made the store" REMOVE;
    Driver "driver" Error Error Unseen Unseen "CRI-O's driver is overlay: it sees no image of another driver" "make the store with the overlay driver";
    StorageConf "storage-conf" Error Error NoStart NoStart "CRI-O and podman fail to start" CONFIG;
    StorageDriver "storage-conf-driver" Error Error Unseen Unseen "CRI-O uses another driver, and sees no image" CONFIG;
    StorageGraphroot "storage-conf-graphroot" Error Error Unseen Unseen "CRI-O looks for its images elsewhere" CONFIG;
    StorageRunroot "storage-conf-runroot" Error Error Kept Kept "mounts and locks of one boot are found by the next" CONFIG;
    StorageAdditional "storage-conf-additional" Error Error Unseen Unseen "CRI-O does not look into the additional store" "add it to additionalimagestores in etc/containers/storage.conf";
    RegistriesConf "registries-conf" Error Error Kept Kept "CRI-O and podman cannot pull, nor look up short names" CONFIG;
    PolicyJson "policy-json" Error Error Kept Kept "every pull of another image fails" CONFIG;
    PolicyReject "policy-reject" Warning Warning Kept Kept "pulls are refused; what is in the store runs" CONFIG;
    CrioConf "crio-conf" Error Error NoStart NoStart "CRI-O does not start" CONFIG;
    CrioPinned "crio-pinned" Warning Warning Kept Kept "the kubelet's garbage collection and `crictl rmi --prune` may remove the image" "list it in pinned_images of etc/crio/crio.conf.d";
    CrioPause "crio-pause" Error Error PodFails PodFails "every pod pulls the pause image first" "`prepull make --pause IMAGE` puts it into the store";

    // The store.
    StoreMode "store-mode" Warning Warning Kept Kept "others may change what root's containers run" "directories 0700 and files 0600, in an additional store 0755 and 0644";
    StoreUnreadable "store-unreadable" Note Warning Kept Kept "users who are not root cannot read it, and their podman fails" "directories 0755 and files 0644";
    StoreOwner "store-owner" Warning Warning Kept Kept "its owner may change what root's containers run" "give it to root";
    MountProgram "has-mount-program" Note Note Healed Healed "the first start walks over all files of all layers" AGAIN;
    MountProgramTrue "has-mount-program-true" Warning Warning Kept Kept "containers/storage believes that the store needs fuse-overlayfs" AGAIN;
    Lock "lock" Note Error Healed Healed "in a read-only store it cannot be made: nothing is listed, or every call fails" AGAIN;
    StoreType "store-type" Error Error NoStart NoStart "containers/storage cannot open it: CRI-O does not start, or lists nothing" AGAIN;
    OwnStoreAtRisk "own-store-at-risk" Error Error Kept StoreWiped "once a pod or container, also one that has ended, has its image in the additional store, CRI-O 1.31 and newer delete the whole own store after a power cut" "put every image that must stay into additional stores, or set internal_repair = false in crio.conf";
    OwnImageOnAdditional "own-image-on-additional" Error Error Kept ImageDeleted "CRI-O 1.31 and newer delete an image on layers of an additional store after a power cut" "put the image into an additional store, or set internal_repair = false in crio.conf";
    OverlayUnknown "overlay-unknown" Warning Warning Removed Removed "nothing refers to it: CRI-O deletes it, and `podman system check` complains" REMOVE;
    LinkUnused "overlay-link-unused" Note Note Kept Kept "no layer has this link" REMOVE;

    // images.json.
    ImagesJson "images-json" Error Error ImageDeleted ImageDeleted "the list of images is empty, and CRI-O 1.29 and newer delete overlay-images/*" AGAIN;
    ImagesJsonSyntax "images-json-syntax" Error Error NoStart NoStart "CRI-O does not start" AGAIN;
    ImageId "image-id" Error Error ListFails ImageDeleted "CRI-O refuses the whole list" AGAIN;
    ImageTwice "image-twice" Warning Error Kept Kept "the last record counts; with a read-only store like that CRI-O does not start" AGAIN;
    ImageIdConfig "image-id-config" Warning Warning Kept Kept "a later pull of the image does not find it, and fetches it again" AGAIN;
    ImageName "image-name" Error Error ListFails ListFails "CRI-O refuses the whole list; 1.24 shows the name, but no pod finds it" "give it a full name with a tag";
    ImageNameShort "image-name-short" Error Error PodFails PodFails "it is listed under its full name, but pods do not find it and pull" "store the full name, for instance docker.io/library/NAME:TAG";
    ImageNameTwice "image-name-twice" Warning Error Kept Kept "the last image in images.json keeps the name; with a read-only store like that CRI-O does not start" AGAIN;
    ImageNoName "image-no-name" Note Note Kept Kept "pods find it by its digest or id only" "give it a name";
    ImageManifest "image-manifest" Error Error ListFails ImageDeleted "listing fails for all images" AGAIN;
    ImageConfig "image-config" Error Error ListFails ImageDeleted "listing fails for all images" AGAIN;
    ImageMalformed "image-malformed" Error Error ListFails ListFails "CRI-O cannot list any image, nor can podman: both read every manifest and config when they list images" "remove the image, or write the store again with `prepull make`";
    ImageManifestMalformed "image-manifest-malformed" Warning Warning Kept Kept "a pod that names the image by this manifest's digest does not find it" AGAIN;
    ImageData "image-data" Error Warning Kept ImageDeleted "after a power cut CRI-O deletes the image" AGAIN;
    ImageDataSize "image-data-size" Error Warning Kept ImageDeleted "after a power cut CRI-O deletes the image" AGAIN;
    ImageDataDigest "image-data-digest" Warning Warning Kept Kept "the image is listed with a digest that is not its own" AGAIN;
    ImageDataContent "image-data-content" Error Error WrongContent WrongContent "it is not what its key says, and nothing finds the image by that digest" AGAIN;
    ImageConfigContent "image-config-content" Error Error ListFails ListFails "CRI-O compares the config of every image with its digest, and lists no image" AGAIN;
    ImageDataUnlisted "image-data-unlisted" Note Note Kept Kept "no record has this file" REMOVE;
    ImageDirectory "image-directory" Error Error ImageDeleted ImageDeleted "the image is lost, and CRI-O deletes its data at the next start: probably a second tar for a machine's own store was unpacked over a store that had images" OVER;
    ImageLayer "image-layer" Error Error ListFails ImageDeleted "listing fails for all images, unless an additional store has the layer" AGAIN;
    ImageLayers "image-layers" Error Error WrongContent WrongContent "containers see other files than the image has" AGAIN;
    ImageNameDigest "image-name-digest" Error Error PodFails PodFails "pods and tools that use the image by this digest cannot open it" "`prepull install` it by that digest again, or take the name away";
    ImageDigest "image-digest" Warning Warning Kept Kept "the image is listed with a digest that is not its own" AGAIN;

    // layers.json.
    LayersJson "layers-json" Error Error ListFails ImageDeleted "listing fails for all images, and CRI-O deletes the layers that are not in it" AGAIN;
    LayersJsonSyntax "layers-json-syntax" Error Error ListFails StoreWiped "listing fails for all images, and after a power cut CRI-O 1.31 and newer delete the machine's own store" AGAIN;
    LayerId "layer-id" Error Error ListFails StoreWiped "no image can have this layer" AGAIN;
    LayerTwice "layer-twice" Warning Warning Kept Kept "the last record counts" AGAIN;
    LayerParent "layer-parent" Error Error ListFails ImageDeleted "listing fails for all images, unless an additional store has the layer" AGAIN;
    LayerIncomplete "layer-incomplete" Error Warning ListFails ImageDeleted "it counts as half written: CRI-O deletes it, and listing fails; in a read-only store it is used as it is" AGAIN;
    LayerSizeUnknown "layer-size-unknown" Error Error ListFails ListFails "the image's size is unknown, so listing fails for all images" AGAIN;
    LayerChain "layer-chain" Warning Warning Kept Kept "a later pull does not find the layer, and fetches it again" AGAIN;
    LayerCountOld "layer-count-old" Warning Warning Kept Kept "its containers do not start with containers/storage before 1.44 (CRI-O 1.24 and 1.25, podman up to 4.3), which mounts 128 layers" "build the image with fewer layers, or use a newer CRI-O";
    LayerCount "layer-count" Error Error PodFails ImageDeleted "overlay takes at most 500 layers" "build the image with fewer layers";
    LayerUnused "layer-unused" Note Note Kept Kept "no image has this layer" REMOVE;
    LayerUnverified "layer-unverified" Note Note Kept Kept "it was pulled in part, by a table of contents: there is no diffID to compare its files with" "pull it whole, or take it from prepull";
    LayerSize "layer-size" Warning Warning Kept Kept "`crictl images` shows a wrong size" AGAIN;
    LayerIds "layer-ids" Note Note Kept Kept "podman chooses too few ids for user namespaces" AGAIN;

    // What runs.
    VolatileLayers "volatile-layers-json" Error Error ListFails StoreWiped "listing fails for all images, and after a power cut CRI-O deletes the whole store" "remove the file when nothing uses the store";
    ContainersJson "containers-json" Error Error NoStart NoStart "containers/storage since 1.45 cannot open the store: CRI-O and podman do not start; older versions forget the containers" "remove the file when nothing uses the store";

    // overlay/<layer>.
    LayerDirectory "layer-directory" Error Error PodFails ImageDeleted "its containers do not start" AGAIN;
    LayerEmpty "layer-empty" Error Note Kept ImageDeleted "after a power cut CRI-O deletes all images with this layer" AGAIN;
    LayerMountpoint "layer-mountpoint" Error Note Kept ImageDeleted "after a power cut CRI-O deletes all images with this layer" AGAIN;
    LayerWork "layer-work" Note Note Healed Healed "`podman system check` complains until the layer is mounted" AGAIN;
    LayerLink "layer-link" Warning Error PodFails ImageDeleted "containers/storage takes the name from overlay/l, but cannot where that has no link, or for an image's top layer in a read-only store: then its containers do not start" AGAIN;
    LayerLinkContent "layer-link-content" Error Error PodFails ImageDeleted "its containers do not start" AGAIN;
    Link "overlay-link" Warning Error Healed Healed "containers/storage makes it again, but not since 1.64, and never in a read-only store" AGAIN;
    LinkLayer "overlay-link-layer" Error Error PodFails ImageDeleted "its containers do not start, or see another layer" AGAIN;
    LinkTarget "overlay-link-target" Error Error WrongContent ImageDeleted "podman and CRI-O merge the directory that it leads to into containers, also one of the host; where there is none they do not start" AGAIN;
    LinkAbsolute "overlay-link-absolute" Note Note Kept Kept "the store cannot be moved" AGAIN;
    LayerLower "layer-lower" Error Error WrongContent ImageDeleted "containers see the top layer only" AGAIN;
    LayerLowerContent "layer-lower-content" Error Error PodFails ImageDeleted "its containers do not start, or see other files than the image has" AGAIN;
    LayerLowerLayers "layer-lower-layers" Error Error WrongContent ImageDeleted "containers/storage since 1.64 believes it, and mounts other layers" AGAIN;
    LayerLowerLayersMissing "layer-lower-layers-missing" Note Note Kept Kept "containers/storage since 1.64 falls back to `lower`" AGAIN;
    LayerRootMode "layer-root-mode" Error Error PodFails PodFails "only root may enter the containers' `/`: exec fails with EACCES" AGAIN;
    LayerOrphan "layer-orphan" Error Error ImageDeleted ImageDeleted "the layer's images are lost, and CRI-O deletes it at the next start: probably a second tar for a machine's own store was unpacked over a store that had images" OVER;
    TarSplit "tar-split" Warning Warning Kept Kept "the image cannot be pushed, saved or checked, and its files could not be compared" AGAIN;
    TarSplitMalformed "tar-split-malformed" Error Error Kept Kept "the image cannot be pushed, saved or checked, and its files could not be compared" AGAIN;
    TarSplitUnused "tar-split-unused" Note Note Removed Removed "no layer has it: CRI-O deletes it" REMOVE;
    LayerDigest "layer-digest" Error Error WrongContent WrongContent "the files, put together again, are not the image's layer: it cannot be pushed or saved" AGAIN;

    // overlay/<layer>/diff.
    EntryMissing "entry-missing" Error Error WrongContent WrongContent "containers miss a file of the image" AGAIN;
    EntryUnexpected "entry-unexpected" Error Error WrongContent WrongContent "containers see a file that the image has not" AGAIN;
    EntryType "entry-type" Error Error WrongContent WrongContent "containers see something else than the image has" AGAIN;
    EntryContent "entry-content" Error Error WrongContent WrongContent "containers see other bytes than the image has" AGAIN;
    EntryMode "entry-mode" Error Error WrongContent WrongContent "containers see another mode than the image has" AGAIN;
    EntryOwner "entry-owner" Error Error WrongContent WrongContent "containers see another owner than the image has" "after `busybox tar -o`: run etc/init.d/25prepull.rc, or wait for the boot; else unpack as root";
    EntryTime "entry-time" Note Note Kept Kept "`podman system check` complains" "unpack with GNU tar, or use `prepull make --restore-helper`";
    EntryXattr "entry-xattr" Warning Warning WrongContent WrongContent "programs with file capabilities fail (`Operation not permitted`)" "unpack with `tar --xattrs --xattrs-include='*'`, or restore usr/share/prepull/xattrs";
    EntryHardlink "entry-hardlink" Warning Warning Kept Kept "it takes its space twice, and a change of one is none of the other" AGAIN;
    ContentGone "content-gone" Warning Warning Kept Kept "a later entry of the same layer replaced the file: containers are right, but the image cannot be pushed or saved" "build the image anew";
    WhiteoutMissing "whiteout-missing" Error Error WrongContent WrongContent "a file that the image deleted is there again" AGAIN;
    WhiteoutFile "whiteout-file" Error Error WrongContent WrongContent "overlay knows no `.wh.` files: containers see it, and what it should hide" AGAIN;
    OpaqueLost "opaque-lost" Error Error WrongContent WrongContent "files that the image deleted are there again" "unpack with `tar --xattrs --xattrs-include='*'`, or use `prepull make --unpacker busybox`";
    OpaqueTwice "opaque-twice" Warning Warning Kept Kept "`ls` shows ghosts where an opaque directory has whiteouts, too" AGAIN;
    OverlayXattr "overlay-xattr" Error Error WrongContent WrongContent "it steers the overlay mount: containers see other files than the image has" AGAIN;
    OpaqueUnreadable "opaque-unreadable" Warning Warning Kept Kept "only root sees trusted.overlay.opaque, so opaque directories could not be judged" "run this as root";

    // What the unpacker does to it.
    XattrDropped "xattr-dropped" Warning Warning WrongContent WrongContent "busybox tar drops it, and nothing says what it was" "use `prepull make`, which lists it, or with --restore-helper puts it back, or unpack with GNU tar";
    XattrListed "xattr-listed" Note Note Kept Kept "busybox tar drops it; usr/share/prepull/xattrs says what it was" "`prepull make --restore-helper`, or after unpacking: setfattr --restore=/usr/share/prepull/xattrs";
    OpaqueDropped "opaque-dropped" Error Error WrongContent WrongContent "busybox tar drops it: files that the image deleted come back" "use `prepull make --unpacker busybox`, or unpack with GNU tar";
    OwnersLost "owners-lost" Warning Warning WrongContent WrongContent "`busybox tar -o` gives the files to root, and nothing gives them back" "use `prepull make --unpacker busybox`, or unpack without -o";
    OwnersScript "owners-script" Warning Warning Kept Kept "it may give owners back in another way, or not at all" "take the script that `prepull make` writes";
    OwnersList "owners-list" Error Error WrongContent WrongContent "the rc script gives files to the wrong owner after `busybox tar -o`" AGAIN;
    RestoreHelper "restore-helper" Warning Warning WrongContent WrongContent "the rc script cannot run it: file capabilities and times that busybox tar drops stay lost" "`prepull make --restore-helper` with a static prepull-helper";
    RestoreManifest "restore-manifest" Error Error WrongContent WrongContent "prepull-helper does not give files back what busybox tar drops, or something else" AGAIN;
}

impl Rule {
    /// What a start of CRI-O, and one after a power cut, make of it in the machine's own store.
    #[must_use]
    pub const fn fates(self) -> (Fate, Fate) {
        let Info { start, crash, .. } = self.info();
        (start, crash)
    }

    /// The same of an additional store: nothing can be made there, and nothing is checked or removed.
    #[must_use]
    pub const fn fates_in_additional(self) -> (Fate, Fate) {
        let fate = match self {
            Self::Lock | Self::Driver | Self::ImageTwice | Self::ImageNameTwice => Fate::NoStart,
            Self::Link => Fate::PodFails,
            Self::ImagesJson | Self::ImageDirectory | Self::LayerOrphan => Fate::Unseen,
            // The check reads the layers of all stores, and what it deletes is the machine's own (CRI-O 1.37, measured).
            Self::LayersJsonSyntax => return (Fate::ListFails, Fate::StoreWiped),
            _ => self.info().start,
        };
        (fate, fate)
    }

    /// Returns whether it is about data that no record names any more: no image that is listed suffers from it.
    #[must_use]
    pub const fn is_orphan(self) -> bool {
        matches!(self, Self::ImageDirectory | Self::LayerOrphan)
    }

    /// Returns whether one image or layer of which it is true is enough for no image of the store to be listed, or kept.
    #[must_use]
    pub const fn concerns_all_images(self, additional: bool) -> bool {
        let (start, crash) = if additional { self.fates_in_additional() } else { self.fates() };
        matches!(start, Fate::Unseen | Fate::ListFails | Fate::NoStart) || matches!(crash, Fate::StoreWiped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_texts_are_one_line() {
        let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.info().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
        for rule in Rule::ALL {
            let Info { name, then, remedy, .. } = rule.info();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
            for text in [then, remedy] {
                assert!(!text.is_empty() && !text.ends_with('.') && !text.contains('\n'), "{name}: {text}");
            }
        }
    }
}
