//! `prepull ovl`: the overlay that `xc mkcdrom images` calls.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::command::{fails, prepull, stderr, succeeds};

fn assert_fails(output: &Output, said: &str) {
    assert_eq!((output.status.code(), stderr(output).as_str()), (Some(1), said));
    assert!(output.stdout.is_empty());
}

#[test]
fn the_tar_script_keeps_its_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let images = at.join("images");
    succeeds(prepull(at).args(["ovl", "images"]).current_dir(at));
    assert!(images.join("README.md").is_file());
    let (tmp, xcluster) = (at.join("a 'tmp'"), at.join("xcluster.sh"));
    fs_err::create_dir(&tmp).unwrap();
    fs_err::write(&xcluster, "#!/bin/sh\ntest \"$1\" = env && echo \"XCLUSTER_TMP='$TEST_TMP'\"\necho \"Z='1'\"\n")
        .unwrap();
    fs_err::set_permissions(&xcluster, PermissionsExt::from_mode(0o755)).unwrap();
    let tar = |arguments: &[&str], asks: bool| {
        let mut command = Command::new(images.join("tar"));
        command.args(arguments).current_dir(at).env_remove("XCLUSTER").env_remove("XCLUSTER_TMP");
        if asks {
            command.env("XCLUSTER", &xcluster).env("TEST_TMP", &tmp)
        } else {
            command.env("XCLUSTER_TMP", &tmp)
        };
        command.output().unwrap()
    };
    for asks in [true, false] {
        assert_fails(&tar(&[], asks), "ERROR: No out-file\n");
        assert_fails(&tar(&["-"], asks), "ERROR: No images built\n");
    }
    fs_err::write(tmp.join("images.tar"), "the images").unwrap();
    for asks in [true, false] {
        assert_eq!(tar(&["-"], asks).stdout, b"the images");
        let output = tar(&["out.tar"], asks);
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
        assert_eq!(fs_err::read(at.join("out.tar")).unwrap(), b"the images");
        fs_err::remove_file(at.join("out.tar")).unwrap();
    }
    let mut nothing_set = Command::new(images.join("tar"));
    nothing_set.arg("-").env_remove("XCLUSTER").env_remove("XCLUSTER_TMP");
    assert_fails(&nothing_set.output().unwrap(), "ERROR: Neither XCLUSTER_TMP nor XCLUSTER is set\n");
}

#[test]
fn files_of_others_are_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let ovl = |arguments: &[&str]| {
        let mut command = prepull(at);
        command.args(["ovl", "sub/images"]).args(arguments).current_dir(at);
        command
    };
    let tar = at.join("sub/images/tar");
    assert_eq!(stderr(&ovl(&[]).output().unwrap()), "wrote sub/images/README.md\nwrote sub/images/tar\n");
    let written = fs_err::read(&tar).unwrap();
    assert_eq!(fs_err::metadata(&tar).unwrap().permissions().mode() & 0o100, 0o100);
    assert_eq!(stderr(&ovl(&[]).output().unwrap()), "");

    fs_err::write(&tar, "somebody's own").unwrap();
    fs_err::remove_file(at.join("sub/images/README.md")).unwrap();
    fails(&mut ovl(&[]), 1, "sub/images/tar is there, and is not what this version of prepull writes");
    assert_eq!(fs_err::read(&tar).unwrap(), b"somebody's own");
    assert!(!at.join("sub/images/README.md").exists(), "all or nothing");
    succeeds(&mut ovl(&["--force"]));
    assert_eq!(fs_err::read(&tar).unwrap(), written);

    // A link is not followed, and a mode that was lost comes back.
    fs_err::rename(&tar, at.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(at.join("elsewhere"), &tar).unwrap();
    fails(&mut ovl(&[]), 1, "sub/images/tar is there");
    succeeds(&mut ovl(&["--force"]));
    assert!(fs_err::symlink_metadata(&tar).unwrap().is_file());
    fs_err::set_permissions(&tar, PermissionsExt::from_mode(0o644)).unwrap();
    succeeds(&mut ovl(&[]));
    assert_eq!(fs_err::metadata(&tar).unwrap().permissions().mode() & 0o100, 0o100);
}
