//! Faults that were found on prepull 0.1.0, each with the behaviour that is right. A test's name begins with the number of
//! its fault: `a01` to `a18` wrong results, `b01` to `b14` registries and archives, `c01` to `c10` privilege, `d01` to `d09`
//! first use, `e01` to `e10` CRI-O.

/// Archives, layouts and compressed layers, the size of what is unpacked, and the tar that the cache shares: B6, B9, B11, B12, B14, A16, C4.
mod archives;
/// What is left to the processes that fetch and parse when root runs them.
mod confined;
/// CRI-O: damaged stores, an additional store beside its own, images that are installed later.
mod crio;
/// D9: the README is one page, and what it and the manual say of files and commands exists.
mod docs;
/// A1: each field of each document as skopeo and podman judge it.
mod go_fields;
/// What podman and CRI-O cannot read back from a store: A1, A4, A11, A12, A13.
mod go_types;
/// The helper: who starts it, what its callers get out of it, and what stores have afterwards.
mod helper;
/// The stores that `install` writes, as root and by the helper.
mod install;
/// The style of all JSON, and docs/json.md.
mod json;
/// `prepull mount`: who sees it, what it refuses to show, and who may change it.
mod mount;
/// Progress on terminals and in pipes.
mod progress;
/// Registries, TLS, proxies and credentials.
mod registry;
/// Certificates of registries.
mod registry_tls;
/// Stores in tars and directories: what unpacking them changes, and what `ls`, `verify`, `why` and `diff` make of them.
mod stores;
/// What a user types first, what `prepull` answers, and that its answers do not act on a terminal.
mod usage;
