//! What `rm` and `gc` take away, and what they do not.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::{World, base, full, hex_names, ok, on_base, top};
use crate::command::{fails, needs_root};
use crate::stores::{chain, json};

#[test]
fn images_go_by_name_and_by_id() {
    if !needs_root("install::removal::images_go_by_name_and_by_id") {
        return;
    }
    let mut world = World::new();
    let items: Vec<String> = ["base", "app", "other", "lone", "none"]
        .map(|name| match name {
            "base" => world.image(name, &base()),
            "lone" => world.image(name, &[top(name)]),
            "none" => world.image(name, &[]),
            _ => world.image(name, &on_base(name)),
        })
        .to_vec();
    world.installs(&items.iter().map(String::as_str).collect::<Vec<_>>());
    world.installs(&[&format!("{}=localhost/second:1", items[1])]);
    assert_eq!(world.layers().len(), 5);
    let other = world.record(&full("other"));

    // One of two names.
    let gone = world.does("rm", &["localhost/second:1"]);
    assert_eq!((&gone["images"], &gone["layers"]), (&serde_json::json!([]), &0.into()), "{gone}");
    world.is_good();
    let id = world.id(&full("app"));
    // Its last one. Layers that others stand on stay.
    let gone = world.does("rm", &[&full("app")]);
    assert_eq!((&gone["images"], &gone["layers"]), (&serde_json::json!([id]), &1.into()), "{gone}");
    world.is_good();
    assert_eq!(world.layers().len(), 4);
    assert!(!world.graph().join("overlay-images").join(&id).exists());
    assert_eq!(world.record(&full("other")), other, "another image's record");
    assert_eq!(world.reads(&full("other"), "name"), "other\n");

    // By id, by the beginning of one, with all names; without `:latest`; and nothing of a request is done when a part cannot be.
    world.podman(&["tag", &full("lone"), "localhost/lone"]);
    let lone = world.id(&full("lone"));
    let before = world.state_inside();
    fails(world.prepull("rm").args([&lone[..12], "localhost/missing:1"]), 2, "no such image");
    fails(world.prepull("rm").arg(full("missing")), 2, "no such image");
    fails(world.prepull("rm").arg(full("app")), 2, "no such image");
    fails(world.prepull("rm").arg("0123456789ab"), 2, "0123456789ab");
    fails(world.prepull("rm").arg("UPPER:1"), 2, "UPPER:1");
    assert!(world.state_inside() == before, "a refused request changed something");
    let gone = world.does("rm", &["localhost/lone"]);
    assert_eq!(gone["names"], serde_json::json!(["localhost/lone:latest"]));
    world.podman(&["tag", &full("lone"), "localhost/lone:3"]);
    let gone = world.does("rm", &[&format!("sha256:{}", &lone[..20])]);
    assert_eq!((&gone["images"], gone["names"].as_array().unwrap().len()), (&serde_json::json!([lone]), 2), "{gone}");
    world.is_good();
    // Without layers.
    world.does("rm", &[&full("none")]);
    world.is_good();
    let gone = world.does("rm", &[&full("base")]);
    assert_eq!(gone["layers"], 0);
    world.is_good();
    world.podman(&["rmi", &full("other")]);
    world.is_good();
    assert!(world.layers().is_empty());
    assert_eq!(fs_err::read_dir(world.graph().join("overlay/l")).unwrap().count(), 0);
}

#[test]
fn an_ambiguous_beginning_of_an_id() {
    if !needs_root("install::removal::an_ambiguous_beginning_of_an_id") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &base());
    world.installs(&[&item]);
    // Two configs whose digests begin with 12 same digits cannot be found in an afternoon: the record is made up.
    let path = world.graph().join("overlay-images/images.json");
    let mut images = json(&world.graph(), "overlay-images/images.json");
    let id = world.id(&full("one"));
    let twin = format!("{}{}", &id[..20], "0".repeat(44));
    let mut second = images[0].clone();
    second["id"] = twin.as_str().into();
    second["names"] = serde_json::json!([full("two")]);
    images.as_array_mut().unwrap().push(second);
    fs_err::write(&path, serde_json::to_vec(&images).unwrap()).unwrap();
    let before = world.state_inside();
    let output = world.prepull("rm").arg(&id[..12]).output().unwrap();
    assert!(!output.status.success() && crate::command::stderr(&output).contains("several images"), "{output:?}");
    assert!(world.state_inside() == before);
    world.does("rm", &[&twin[..21]]);
    assert_eq!(world.records().len(), 1);
    world.is_good();
}

#[test]
fn an_image_that_a_container_uses_stays() {
    if !needs_root("install::removal::an_image_that_a_container_uses_stays") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &on_base("app"));
    world.installs(&[&item]);
    let container = world.podman(&["create", "--network", "none", &full("app")]);
    let volatile = world.podman(&["create", "--rm", "--network", "none", &full("app")]);
    let id = world.id(&full("app"));
    let before = world.state_inside();
    fails(world.prepull("rm").arg(full("app")), 1, "in use by container");
    fails(world.prepull("rm").arg(&id[..12]), 1, "in use by container");
    assert!(world.state_inside() == before, "a refused request changed something");
    // A name more may go.
    world.podman(&["tag", &full("app"), "localhost/more:1"]);
    world.does("rm", &["localhost/more:1"]);
    let layers = world.layers();
    world.does("gc", &[]);
    assert_eq!(world.layers(), layers, "gc took layers of containers");
    world.is_good();
    world.podman(&["rm", &container]);
    fails(world.prepull("rm").arg(full("app")), 1, &volatile);
    world.podman(&["rm", &volatile]);
    world.does("rm", &[&full("app")]);
    assert!(world.layers().is_empty());
    world.is_good();
}

/// Only the kernel sets when something was renamed last: so the clock is turned, for one process.
fn two_days_later(world: &World, command: &mut Command) {
    const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += 2 * 24 * 3600;
    return result;
}
"#;
    let (source, library) = (world.at.join("clock.c"), world.at.join("clock.so"));
    fs_err::write(&source, CLOCK).unwrap();
    ok(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl"));
    command.env("LD_PRELOAD", library);
}

#[test]
fn gc_takes_what_nobody_names() {
    if !needs_root("install::removal::gc_takes_what_nobody_names") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.installs(&[&one, &two]);
    world.podman(&["create", "--network", "none", &full("one")]);
    let graph = world.graph();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|digit| digit.repeat(64));
    let make = |path: &str| fs_err::create_dir_all(graph.join(path)).unwrap();
    // Orphans: a layer with a short name, a tar-split, an image, a dangling short name.
    make(&format!("overlay/{a}/diff/sub/dir"));
    fs_err::write(graph.join(format!("overlay/{a}/link")), "A".repeat(26)).unwrap();
    fs_err::write(graph.join(format!("overlay-layers/{a}.tar-split.gz")), "").unwrap();
    fs_err::write(graph.join(format!("overlay-layers/{b}.tar-split.gz")), "").unwrap();
    make(&format!("overlay-images/{c}"));
    fs_err::write(graph.join(format!("overlay-images/{c}/manifest")), "{}").unwrap();
    let link = |name: &str, id: &str| {
        std::os::unix::fs::symlink(format!("../{id}/diff"), graph.join("overlay/l").join(name)).unwrap();
    };
    link(&"A".repeat(26), &a);
    link(&"D".repeat(26), &d);
    make(".prepull-staging-7/deep/er");
    fs_err::write(graph.join(".prepull-staging-7/deep/file"), "x").unwrap();
    fs_err::set_permissions(graph.join(".prepull-staging-7"), std::fs::Permissions::from_mode(0o700)).unwrap();
    // What is none of its business.
    // Last: the layer of a container whose records are elsewhere.
    let others = format!("overlay/{}", "e".repeat(64));
    make(&format!("{others}/diff"));
    fs_err::write(graph.join(&others).join("link"), "E".repeat(26)).unwrap();
    for path in ["overlay/staging/x", "overlay/tempdirs/y", "overlay/odd", "overlay-images/odd", "odd"] {
        make(path);
    }
    let l = graph.join("overlay/l");
    std::os::unix::fs::symlink("elsewhere", l.join("odd")).unwrap();
    let layers = world.layers();

    let gone = world.does("gc", &[]);
    assert_eq!((&gone["layers"], &gone["images"]), (&0.into(), &serde_json::json!([])), "{gone}");
    assert!(gone["orphans"].as_u64().unwrap() >= 5, "{gone}");
    assert!(graph.join(&others).exists());
    fs_err::remove_dir_all(graph.join(&others)).unwrap();
    let left: Vec<String> = layers.into_iter().filter(|id| *id != a && !others.ends_with(&id[..])).collect();
    assert_eq!(world.layers(), left);
    assert!(!graph.join(format!("overlay-layers/{b}.tar-split.gz")).exists());
    assert!(hex_names(&graph.join("overlay-images")).iter().all(|id| *id != c));
    for name in ["A", "D"] {
        assert!(l.join(name.repeat(26)).symlink_metadata().is_err(), "{name}");
    }
    for path in ["overlay/staging/x", "overlay/tempdirs/y", "overlay/odd", "overlay-images/odd", "odd"] {
        assert!(graph.join(path).exists(), "{path}");
        fs_err::remove_dir(graph.join(path)).unwrap();
    }
    assert!(l.join("odd").symlink_metadata().is_ok());
    fs_err::remove_file(l.join("odd")).unwrap();
    world.is_good();
    assert_eq!(world.does("gc", &[])["orphans"], 0);
}

/// Layers without an image are somebody's who is still pulling, until they are a day old.
#[test]
fn gc_takes_unreferenced_layers_when_they_are_old() {
    if !needs_root("install::removal::gc_takes_unreferenced_layers_when_they_are_old") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.installs(&[&one, &two]);
    let top = chain(&world.graph(), &full("two"))[0].clone();
    // The image goes, its layer stays, as if a pull were under way.
    let path = world.graph().join("overlay-images/images.json");
    let mut images = json(&world.graph(), "overlay-images/images.json");
    images.as_array_mut().unwrap().retain(|image| image["names"] != serde_json::json!([full("two")]));
    fs_err::write(&path, serde_json::to_vec(&images).unwrap()).unwrap();
    let gone = world.does("gc", &[]);
    assert_eq!(gone["layers"], 0, "{gone}");
    assert!(world.layers().contains(&top));
    // Nor does rm take what it has not made unused.
    world.does("rm", &[&full("one")]);
    assert_eq!(world.layers().len(), 3);
    let mut later = world.prepull("gc");
    two_days_later(&world, &mut later);
    let gone: serde_json::Value = serde_json::from_str(&ok(later.arg("--json"))).unwrap();
    assert_eq!((&gone["layers"], world.layers().len()), (&3.into(), 0), "{gone}");
    world.is_good();
}

#[test]
fn podman_removes_what_is_ours_and_prune_takes_the_rest() {
    if !needs_root("install::removal::podman_removes_what_is_ours_and_prune_takes_the_rest") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.installs(&[&one, &two]);
    world.podman(&["untag", &full("two")]);
    world.podman(&["image", "prune", "--force"]);
    assert_eq!(world.listed(), [full("one")]);
    assert_eq!(world.layers().len(), 2);
    world.is_good();
    world.podman(&["rmi", "--all"]);
    world.is_good();
    assert!(world.layers().is_empty());
}
