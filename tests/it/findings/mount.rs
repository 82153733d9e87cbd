//! Faults of `prepull mount`. Most tests need root.

use std::path::Path;
use std::process::Command;

use crate::command::{fails, needs_root, stderr, succeeds};
use crate::mount::{World, full, ok, on_base};
use crate::raw::{archive, file};

/// Writes a storage.conf with its store in `world` and `mount` as an additional store.
fn storage_conf(world: &World, mount: &Path) -> std::path::PathBuf {
    let path = world.at.join("storage.conf");
    let at = world.at.display();
    let text = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{at}/own\"\nrunroot = \"{at}/own-run\"\n[storage.options]\n\
         additionalimagestores = [\"{}\"]\n",
        mount.display()
    );
    fs_err::write(&path, text).unwrap();
    path
}

#[test]
fn e03_mount_rm_refuses_layers_that_the_own_store_needs() {
    if !needs_root("findings::mount::e03_mount_rm_refuses_layers_that_the_own_store_needs") {
        return;
    }
    let mut world = World::new();
    let base = on_base("base");
    let mut derived = base.clone();
    derived.push(archive(&[file("derived")]));
    let (below, other, above) =
        (world.image("base", &base), world.image("other", &on_base("other")), world.image("derived", &derived));
    let mount = world.mount("mnt", &[&below, &other]);
    let conf = storage_conf(&world, &mount.at);
    let skopeo = format!("containers-storage:{}", full("derived"));
    let tool = |program: &str| {
        let mut command = Command::new(program);
        command.env("CONTAINERS_STORAGE_CONF", &conf).env("HOME", world.at.join("home"));
        command
    };
    ok(tool("skopeo").args(["copy", "--quiet", &above, &skopeo]));
    // The own store has the top layer only.
    let layers = crate::stores::json(&world.at, "own/overlay-layers/layers.json");
    assert_eq!(layers.as_array().unwrap().len(), 1);
    let list = || tool("podman").args(["images", "--format", "{{.Repository}} {{.Size}}"]).output().unwrap();
    assert!(String::from_utf8_lossy(&list().stdout).contains("localhost/derived"), "{}", stderr(&list()));

    let changing = |verb: &str, arguments: &[&str]| {
        let mut command = mount.changing(verb, arguments);
        command.env("CONTAINERS_STORAGE_CONF", &conf);
        command
    };
    let expected = format!("image {} of the store {}/own would lose layers", full("derived"), world.at.display());
    fails(&mut changing("rm", &[&full("base")]), 1, &expected);
    // By its id, and when another image takes its only name.
    let images = crate::stores::json(&mount.at, "overlay-images/images.json");
    let record = images.as_array().unwrap().iter().find(|image| image["names"][0] == full("base").as_str()).unwrap();
    fails(&mut changing("rm", &[&record["id"].as_str().unwrap()[..16]]), 1, &expected);
    fails(&mut changing("add", &[&format!("{other}={}", full("base"))]), 1, &expected);
    assert_eq!(mount.names(), [full("base"), full("other")]);
    assert!(list().status.success());
    // An image that no other needs goes, and so does one whose layers others of the mount have.
    succeeds(&mut changing("rm", &[&full("other")]));
    succeeds(&mut changing("add", &[&above]));
    succeeds(&mut changing("rm", &[&full("base")]));
    assert!(list().status.success());
    fails(&mut changing("rm", &[&full("derived")]), 1, &expected);
    // What cannot be checked is refused, too.
    let damaged = world.at.join("own/overlay-images/images.json");
    let records = fs_err::read(&damaged).unwrap();
    fs_err::write(&damaged, "[{").unwrap();
    fails(&mut changing("rm", &[&full("derived")]), 1, "own/overlay-images/images.json: ");
    fs_err::write(&damaged, records).unwrap();
    succeeds(changing("rm", &[&full("derived")]).arg("--force"));
    assert_eq!(mount.names(), [""; 0]);
    // What the refusal is for.
    let output = list();
    assert!(!output.status.success() && stderr(&output).contains("layer not known"), "{}", stderr(&output));
}
