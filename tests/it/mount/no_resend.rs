//! As on kernels before 6.9, which do not send again what a dead worker had not answered.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{World, full, noise, ok, on_base, until};
use crate::command::needs_root;
use crate::raw::{archive, file};
use crate::stores::chain;

/// How long a reader may wait for an answer that nobody gives.
const WAIT: Duration = Duration::from_secs(15);

#[test]
fn nobody_waits_for_ever() {
    if !needs_root("mount::no_resend::nobody_waits_for_ever") {
        return;
    }
    let mut world = World::new();
    let items = [
        world.image("one", &[archive(&[file("large").data(noise("large", 8_000_000))])]),
        world.image("two", &on_base("two")),
    ];
    let mount = world.mount("mnt", &["--no-resend", &items[0], &items[1]]);
    assert_eq!(mount.status()["resends"], false);
    let path = mount.at.join("overlay").join(&chain(&mount.at, &full("one"))[0]).join("diff/large");
    let stop = world.at.join("stop");
    let (mut errors, mut rounds) = (0, 0);
    for _ in 0..5 {
        let _ = fs_err::remove_file(&stop);
        // Each reads until it is told to stop, or gets an error, which may only be EIO.
        let script = r#"while test ! -e "$2"; do
                dd "if=$1" of=/dev/null iflag=direct bs=1M status=none 2>"$3" || { grep -q 'Input/output error' "$3" && exit 5; cat "$3" >&2; exit 1; }
            done"#;
        let mut readers: Vec<Child> = (0..6)
            .map(|number| {
                let mut command = Command::new("sh");
                command.args(["-c", script, "sh"]).arg(&path).arg(&stop).arg(world.at.join(format!("said-{number}")));
                // With what it has started it can be ended.
                command.process_group(0).spawn().unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(150));
        mount.kill_worker();
        fs_err::write(&stop, "").unwrap();
        let begun = Instant::now();
        let ended =
            until(|| begun.elapsed() > WAIT || readers.iter_mut().all(|reader| reader.try_wait().unwrap().is_some()));
        let hanging = readers.iter_mut().filter_map(|reader| reader.try_wait().unwrap().is_none().then_some(reader));
        let hanging = hanging.map(|reader| kill_process_group(Pid::from_child(reader), Signal::KILL).unwrap()).count();
        assert!(ended && hanging == 0, "{hanging} readers wait for ever");
        for mut reader in readers {
            match reader.wait().unwrap().code() {
                Some(0) => {}
                Some(5) => errors += 1,
                other => panic!("{other:?}"),
            }
        }
        rounds += 1;
        // What is asked for now is answered.
        let read = ok(Command::new("dd")
            .arg(format!("if={}", path.display()))
            .args(["iflag=direct", "bs=1M", "status=none"])
            .arg(format!("of={}", world.at.join("copy").display())));
        assert_eq!(read, "");
        assert!(fs_err::read(world.at.join("copy")).unwrap() == noise("large", 8_000_000));
    }
    eprintln!("{rounds} workers killed, {errors} of {} readers had EIO", rounds * 6);
    assert_eq!(mount.names(), [full("one"), full("two")]);
}
