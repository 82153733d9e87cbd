//! Many files: how soon they are there, and what they take.

use std::process::Command;
use std::time::Instant;

use super::{World, number, ok};
use crate::command::needs_root;
use crate::raw::{archive, dir, file};

/// Files in a directory.
const EACH: usize = 250;

/// How many inodes: 1,000,000 take a minute to make.
fn count() -> usize {
    std::env::var("PREPULL_MOUNT_INODES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000)
}

#[test]
fn many_inodes_are_there_at_once_and_take_little() {
    if !needs_root("mount::large::many_inodes_are_there_at_once_and_take_little") {
        return;
    }
    let mut world = World::new();
    let count = count();
    let mut entries = vec![dir("many/")];
    for number in 0..count {
        let directory = number / EACH;
        if number % EACH == 0 {
            entries.push(dir(format!("many/{directory}/")));
        } else {
            entries.push(file(format!("many/{directory}/a-file-called-{number}.txt")).data([b'x'; 10]));
        }
    }
    let layer = archive(&entries);
    drop(entries);
    let item = world.image("large", &[layer]);
    // Converts it.
    drop(world.mount("mnt", &[&item]));
    let begun = Instant::now();
    let mount = world.mount("mnt", &[&item]);
    let mounted = begun.elapsed();
    let begun = Instant::now();
    let said = ok(Command::new("sh")
        .args(["-c", r#"find "$1"/overlay/*/diff/many -mindepth 1 | wc -l"#, "sh"])
        .arg(&mount.at));
    let found = begun.elapsed();
    assert_eq!(said.trim().parse::<usize>().unwrap(), count);
    let status = fs_err::read_to_string(format!("/proc/{}/status", number(&mount.status()["worker"]))).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10;
    eprintln!("{count} inodes: mounted in {mounted:?}, found in {found:?}, {} MiB resident", resident >> 20);
    assert!(resident <= 300 * count + (32 << 20), "{resident} bytes for {count} inodes");
    // A worker that takes over has as much.
    mount.kill_worker();
    let status = fs_err::read_to_string(format!("/proc/{}/status", number(&mount.status()["worker"]))).unwrap();
    let again = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
    let again = again.strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10;
    assert!(again <= 300 * count + (32 << 20), "{again} bytes for {count} inodes");
}
