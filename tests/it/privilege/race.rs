//! Somebody renames the root directory all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::stream::good;
use super::{By, Jail, USER, figure};
use crate::command::needs_root;

const RUNS: usize = 200;

#[test]
fn a_root_that_is_swapped_for_a_link() {
    if !needs_root("privilege::race::a_root_that_is_swapped_for_a_link") {
        return;
    }
    let mut jail = Jail::new("");
    let (root, other, link) = (jail.root(), jail.at("other"), jail.at("link"));
    fs_err::create_dir_all(other.join("etc")).unwrap();
    std::os::unix::fs::symlink(jail.at("outside"), &link).unwrap();
    jail.keep_outside();
    let stream = good(&jail, 1, None).end();
    let (end, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut done, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                for name in [&link, &other] {
                    for _ in 0..2 {
                        let _ = renameat_with(CWD, &root, CWD, name, RenameFlags::EXCHANGE);
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        for _ in 0..RUNS {
            let outcome = jail.run(By::ForUser).feed(&stream);
            match outcome.code {
                0 => done += 1,
                // The shell did not get into it.
                99 => {}
                _ => {
                    outcome.refused("a race");
                    refused += 1;
                }
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    for name in ["outside/inner", "outside"] {
        let names = fs_err::read_dir(jail.at(name)).unwrap().count();
        assert_eq!(names, if name == "outside" { 2 } else { 1 }, "{name}");
    }
    // The other directory has another number than the one that the stream names.
    assert!(!other.join("var/lib/containers/storage/overlay-layers/layers.json").exists());
    eprintln!("{done} done, {refused} refused, {} swaps", swaps.load(Ordering::Relaxed));
    assert!(swaps.load(Ordering::Relaxed) > 1000);
    assert!(refused > 0, "the race was never lost: {done} of {RUNS}");
    figure("runs of the helper while its directory was swapped", RUNS);
}

#[test]
fn a_directory_that_becomes_a_link_is_never_followed() {
    if !needs_root("privilege::race::a_directory_that_becomes_a_link_is_never_followed") {
        return;
    }
    let jail = Jail::new("");
    fs_err::remove_dir_all(jail.at("outside")).unwrap();
    fs_err::create_dir(jail.at("outside")).unwrap();
    // In a directory of the user's own, who renames what root has allowed.
    let policy =
        format!("[[allow]]\nuser = \"tester\"\nroot = \"{}\"\nkind = \"storage\"\n", jail.at("home/vm").display());
    let jail = jail.with_policy(&policy);
    let said = jail.ok(&format!(
        r#"cp -r {repository}/tests/images "$at/home/"; mkdir "$at/home/vm"; ln -s "$at/outside" "$at/home/link"; chown -R -h {user} "$at/home"
        cat >"$at/swap.py" <<'END'
import ctypes, os, sys, time
open(os.environ["HOME"] + "/pid", "w").write(str(os.getpid()))
libc = ctypes.CDLL(None)
a, b = (path.encode() for path in sys.argv[1:])
end = time.time() + 100
while time.time() < end:
    libc.renameat2(-100, a, -100, b, 2)
END
        as python3 "$at/swap.py" "$at/home/vm" "$at/home/link" & while ! test -s "$at/home/pid"; do sleep 0.05; done
        done=0 refused=0
        for number in $(seq 40); do
            if (cd / && as "$at/bin/prepull" install --quiet --root "$at/home/vm" --helper "$at/bin/prepull-helper" --via sudo \
                "oci:$at/home/images/hello:v1=localhost/n$number:1" 2>>"$at/said"); then done=$((done + 1)); else refused=$((refused + 1)); fi
        done
        kill "$(cat "$at/home/pid")"; wait
        find "$at/outside" -mindepth 1 | grep . && exit 1
        echo "$done $refused""#,
        repository = crate::command::REPOSITORY,
        user = USER,
    ));
    let (done, refused) = said.trim().split_once(' ').unwrap();
    let (done, refused): (usize, usize) = (done.parse().unwrap(), refused.parse().unwrap());
    assert_eq!(done + refused, 40);
    assert!(refused > 0, "the race was never lost: {done} of 40");
    figure("installs while the directory was swapped for a link", 40);
}
