//! Tests of the whole, against the real tools. One binary; each module says in a sentence what belongs into it.
//!
//! Tests that need a Debian package fail with its name when it is not there; none is skipped in silence.

#![allow(clippy::print_stderr, reason = "tests say what they compare")]

/// Bad input: one line that names the image, the layer and the entry, the right exit code, and no output file.
mod bad_input;
/// `busybox tar -o` and the rc script leave machines with the files that skopeo's stores show.
mod busybox;
/// The cache and the tars that it shares its space with.
mod cache;
/// Runs the `prepull` that is tested: no tests of its own.
mod command;
/// Whoever starts the helper, with whatever: it knows who that is, and in its root it can do its work and nothing else.
mod confine;
/// Images at the edge of what layers may be: no tests of its own.
mod corpus;
/// A real dockerd on a private socket; needs root.
mod daemon;
/// `prepull diff`: what differs between two stores, and nothing else.
mod diff;
/// GNU tar unpacks what skopeo would have made, and what skopeo refuses is refused.
mod edge;
/// `prepull make` when servers, file systems and limits are against it: what it says, how soon, and what it leaves.
mod failures;
/// Every command when the system fails it, when it is killed, and when its cache is damaged or used by others.
mod faults;
/// Regression tests for the faults found on prepull 0.1.0, one module for each part of the program.
mod findings;
/// The files of tests/hostile: each gets its verdict, and none does harm.
mod hostile;
/// `prepull install`, `rm` and `gc` on stores that podman and skopeo use as well: what they do, by whom, when, and if all fails.
mod install;
/// `prepull ls` agrees with podman, whoever made the store.
mod ls;
/// Hand-made OCI layouts and docker archives, and the tools that judge: no tests of its own.
mod made;
/// What layers on top of each other are, said plainly: no tests of its own.
mod model;
/// `prepull mount`: what it shows, to whom, and when all fails. Most of it needs root.
mod mount;
/// A good tar, and all that can be done to it: no tests of its own.
mod mutations;
/// `prepull-helper`: who may, what it does for them, and that nothing else can be had from it. Most of it needs root.
mod privilege;
/// Random layers: skopeo and prepull take the same ones, and make the same of them.
mod random;
/// Tar archives block by block: no tests of its own.
mod raw;
/// Stores of real images: the real tools list, mount, save and check them as they do skopeo's.
mod real;
/// Names are normalised as the real tools normalise them.
mod references;
/// The registry client against a server that misbehaves on purpose: breaks, redirects, proxies.
mod registry;
/// Who is told which secret: Basic, token servers, and what of it shows.
mod registry_auth;
/// The registry client against Debian's `docker-registry`: anonymous, htpasswd, TLS with a private authority, tokens.
mod registry_real;
/// The same images give the same bytes, whatever the circumstances; and none leaves broken bytes behind.
mod reproducible;
/// `prepull-helper restore`: after `busybox tar -o` and the rc script, stores are exact, and no manifest does harm.
mod restore;
/// Modules use only what the table in `src/lib.rs` allows.
mod rooms;
/// Random inputs by number: no tests of its own.
mod seeds;
/// Every local transport gives the image that skopeo gives, and refuses what skopeo refuses.
mod sources;
/// Random stacks of layers: the kernel, a plain model and prepull show the same.
mod stacks;
/// Stores made by the real tools and by prepull: no tests of its own.
mod stores;
/// Servers on 127.0.0.1 that tests start and that end with them: one that misbehaves, docker-registry. No tests of its own.
mod support;
/// Stores that skopeo makes of the images at the edge; this module has no tests.
mod theirs;
/// What `prepull` says of itself, and to who types something wrong.
mod usage;
/// `prepull verify` finds what is wrong with a store, and has nothing against good ones, whoever made them.
mod verify;
/// `prepull why` finds what the real tools find, and explains it.
mod why;
/// `prepull ovl`: the overlay that `xc mkcdrom images` calls.
mod xcluster;
