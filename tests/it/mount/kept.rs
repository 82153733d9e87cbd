//! Under a service manager even the keeper may die.

use std::process::Command;

use super::{World, ok, on_base};
use crate::command::{REPOSITORY, needs_root};

#[test]
fn a_mount_outlives_all_its_processes() {
    if !needs_root("mount::kept::a_mount_outlives_all_its_processes") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two"))];
    let at = world.at.join("mnt");
    fs_err::create_dir(&at).unwrap();
    let mut manager = Command::new("python3");
    manager.arg(format!("{REPOSITORY}/tests/it/mount/service_manager.py"));
    manager.arg(world.prepull().get_program()).arg(&at).arg(world.cache()).args(items);
    let said = ok(&mut manager);
    assert!(said.ends_with("kept\n"), "{said}");
}
