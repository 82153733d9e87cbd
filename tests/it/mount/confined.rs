//! What the process that answers the kernel has been left.

use rustix::fs::{Mode, OFlags};

use super::{World, number, on_base};
use crate::command::needs_root;

/// A line of /proc/PID/status.
fn field(process: u32, name: &str) -> String {
    let status = fs_err::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
}

#[test]
fn the_worker_has_what_it_needs_and_nothing_else() {
    if !needs_root("mount::confined::the_worker_has_what_it_needs_and_nothing_else") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two"))];
    // Whose layers are in the cache, and whose are converted for this: those are written by the same process.
    // What a caller leaves open to whoever it starts.
    let left_open = rustix::fs::open("/etc/passwd", OFlags::RDONLY, Mode::empty()).unwrap();
    let first = world.mount("first", &items[..1]);
    let second = world.mount("second", &items);
    drop(left_open);
    for mount in [&first, &second] {
        let worker = number(&mount.status()["worker"]);
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(worker, set), "0000000000000000", "{set}");
        }
        assert_eq!((field(worker, "NoNewPrivs"), field(worker, "Seccomp")), ("1".to_owned(), "2".to_owned()));
        assert_eq!(field(worker, "Groups"), "");
        let mut segments = 0;
        for (process, is_keeper) in [(worker, false), (mount.keeper, true)] {
            for entry in fs_err::read_dir(format!("/proc/{process}/fd")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let leads_to = fs_err::read_link(&path).unwrap();
                let info = fs_err::read_to_string(format!("/proc/{process}/fdinfo/{name}")).unwrap();
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
                let is_writable = u32::from_str_radix(flags, 8).unwrap() & 3 != 0;
                let text = leads_to.to_str().unwrap();
                if leads_to.starts_with(&mount.cache) {
                    assert!(!is_writable, "{text}");
                    segments += usize::from(process == worker);
                } else {
                    // Its memory is sealed; the rest is to talk by.
                    let is_known =
                        ["socket:", "/memfd:prepull", "/memfd:journal"].iter().any(|begin| text.starts_with(begin));
                    let is_device = matches!(text, "/dev/fuse" | "/dev/null");
                    assert!(
                        is_known || is_device || is_keeper && text == "anon_inode:[pidfd]",
                        "{process} has {name}: {text}"
                    );
                }
            }
        }
        assert!(segments >= 3, "{segments} segments");
    }
}
