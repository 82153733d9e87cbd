//! The stores that `install` writes, as root and by the helper: records, modes, and what stays outside of them.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::command::needs_root;
use crate::privilege::stream::Stream;
use crate::privilege::{By, Jail, USER};

pub(super) fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs_err::set_permissions(path.as_ref(), std::fs::Permissions::from_mode(mode)).unwrap();
}

/// An OCI layout with one image in two manifests, which have the layer in two compressions; returns their digests.
fn two_manifests(at: &Path) -> [String; 2] {
    use crate::made::Layout;
    let layer = crate::raw::archive(&[crate::raw::dir("bin/"), crate::raw::file("a").data("hello\n")]);
    let mut layout = Layout::new(at.to_owned());
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [prepull::digest::Digest::of(&layer).to_string()]},
    });
    let config = layout.blob(prepull::media_type::OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let blobs = [layout.blob(&format!("{tar}+gzip"), &crate::made::gzip(&layer)), layout.blob(tar, &layer)];
    let manifests = blobs.map(|blob| {
        layout.manifest(&serde_json::json!({
            "schemaVersion": 2, "mediaType": prepull::media_type::OCI_MANIFEST, "config": config, "layers": [blob],
        }))
    });
    let digests = [0, 1].map(|number| manifests[number]["digest"].as_str().unwrap().to_owned());
    let [first, second] = manifests;
    layout.add(Some("first"), first);
    layout.add(Some("second"), second);
    digests
}

/// A root directory, and what `prepull VERB --root` says of it.
pub(super) struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self { directory: crate::stores::scratch() }
    }

    pub(super) fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn prepull(&self, verb: &str) -> std::process::Command {
        fs_err::create_dir_all(self.at("root")).unwrap();
        let mut command = crate::command::prepull(self.directory.path());
        command.arg(verb).arg("--root").arg(self.at("root"));
        if verb == "install" {
            command.args(["--no-cache", "--platform", "linux/amd64"]);
        }
        command
    }

    #[track_caller]
    pub(super) fn installs(&self, arguments: &[&str]) -> String {
        let output = self.prepull("install").args(arguments).output().unwrap();
        let said = crate::command::stderr(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said + &String::from_utf8_lossy(&output.stdout)
    }

    /// Returns what `verify --strict` reports about the store: nothing if the store is good.
    pub(super) fn verify(&self) -> String {
        let mut command = crate::command::prepull(self.directory.path());
        let output = command.args(["verify", "--strict"]).arg(self.at("root")).output().unwrap();
        if output.status.success() { String::new() } else { String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    pub(super) fn record(&self) -> serde_json::Value {
        let path = self.at("root").join(crate::stores::GRAPHROOT).join("overlay-images/images.json");
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }
}

#[test]
fn a02_install_by_another_digest_adds_that_manifest() {
    if !needs_root("findings::install::a02_install_by_another_digest_adds_that_manifest") {
        return;
    }
    let machine = Machine::new();
    let oci = machine.at("oci");
    let [first, second] = two_manifests(&oci);
    let item = |name: &str, as_name: &str| format!("oci:{}:{name}={as_name}", oci.display());
    let by_digest = format!("localhost/app@{second}");
    machine.installs(&[&item("first", "localhost/app:1")]);
    let said = machine.installs(&[&item("second", &by_digest)]);
    assert!(!said.contains("everything is there already"), "{said}");
    let record = &machine.record()[0];
    let keys: Vec<&str> =
        record["big-data-names"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    for digest in [&first, &second] {
        let key = format!("manifest-{digest}");
        assert!(keys.contains(&&key[..]), "{key}: {keys:?}");
        assert_eq!(record["big-data-digests"][&key], **digest);
    }
    // The image's own manifest is the last that came, as after `skopeo copy` of both.
    assert_eq!(record["big-data-digests"]["manifest"], second);
    let graph = machine.at("root").join(crate::stores::GRAPHROOT);
    let store = format!("containers-storage:[overlay@{}+{}]{by_digest}", graph.display(), machine.at("run").display());
    let inspect = r#"exec skopeo inspect "$1""#;
    crate::command::succeeds(crate::stores::in_own_mounts("sh").args(["-c", inspect, "sh", &store]));
    assert_eq!(machine.verify(), "");
    for (name, as_name) in [("first", "localhost/app:1"), ("second", &by_digest[..])] {
        let said = machine.installs(&[&item(name, as_name)]);
        assert!(said.contains("everything is there already"), "{name}: {said}");
    }
    // A name by a digest without its manifest is an error.
    let path = graph.join("overlay-images/images.json");
    let text = fs_err::read_to_string(&path).unwrap();
    let other = second.replace(&second[60..], &"0".repeat(second.len() - 60));
    fs_err::write(&path, text.replace(&by_digest, &format!("localhost/app@{other}"))).unwrap();
    assert!(machine.verify().contains("image-name-digest"), "{}", machine.verify());
}

#[test]
fn a03_install_mends_what_a_record_has_lost() {
    if !needs_root("findings::install::a03_install_mends_what_a_record_has_lost") {
        return;
    }
    let machine = Machine::new();
    let oci = machine.at("oci");
    two_manifests(&oci);
    let layer = crate::raw::archive(&[crate::raw::file("top").data("top\n")]);
    let base = crate::raw::archive(&[crate::raw::dir("bin/")]);
    let mut layout = crate::made::Layout::new(machine.at("two"));
    let image = layout.image("amd64", &[base, layer]);
    layout.add(Some("localhost/two:1"), image);
    let item = format!("oci:{}:localhost/two:1", machine.at("two").display());
    machine.installs(&[&item]);
    assert_eq!(machine.verify(), "");
    let graph = machine.at("root").join(crate::stores::GRAPHROOT);
    let damage = |script: &str| {
        let mut command = std::process::Command::new("bash");
        crate::command::succeeds(command.args(["-euc", script]).current_dir(&graph));
    };
    for script in [
        "rm overlay-images/*/manifest",
        "rm overlay-images/*/=*",
        "for f in overlay-images/*/=*; do : >$f; done",
        "for f in overlay-images/*/*; do : >$f; done",
        "rm -r overlay-images/[0-9a-f]*",
        "for f in overlay-images/*/manifest; do sed -i s/schemaVersion/schemaversion/ $f; done",
        "for f in overlay-images/*/=*; do printf x >>$f; done",
        // The records themselves.
        r#"sed -i 's/"manifest":[0-9]*/"manifest":7/' overlay-images/images.json"#,
        r#"sed -i 's/"manifest":"sha256:..../"manifest":"sha256:0000/' overlay-images/images.json"#,
        r#"sed -i 's/"big-data-names":\[[^]]*\]/"big-data-names":["manifest"]/' overlay-images/images.json"#,
        // Files of layers.
        "rm overlay/*/lower",
        "for f in overlay/*/lower; do : >$f; done",
        "for f in overlay/*/lower; do printf l/AAAAAAAAAAAAAAAAAAAAAAAAAA >$f; done",
        "for f in overlay/*/link; do : >$f; done",
        "rm overlay/*/link",
        "rm -r overlay/*/diff",
    ] {
        damage(script);
        let said = machine.installs(&[&item]);
        assert!(!said.contains("everything is there already"), "{script}: {said}");
        assert_eq!(machine.verify(), "", "{script}");
        let mut podman = crate::stores::in_own_mounts("podman");
        podman.arg("--root").arg(&graph).arg("--runroot").arg(machine.at("run"));
        let listed = crate::command::succeeds(podman.args(["--storage-driver", "overlay", "images"]));
        assert!(listed.contains("localhost/two"), "{script}: {listed}");
        assert!(machine.installs(&[&item]).contains("everything is there already"), "{script}");
    }
}

#[test]
fn e09_additional_store_is_readable_by_either_way() {
    if !needs_root("findings::install::e09_additional_store_is_readable_by_either_way") {
        return;
    }
    let additional = "/usr/lib/containers/storage";
    let machine = Machine::new();
    machine.installs(&["--graphroot", additional, &crate::command::hello()]);
    assert_eq!(machine.verify(), "");
    let store = machine.at("root").join(&additional[1..]);
    for (name, mode) in [("", 0o755), ("overlay", 0o755), ("overlay-images/images.json", 0o644)] {
        let found = fs_err::metadata(store.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    // One that storage.conf names is one, wherever it is; the machine's own is not.
    let machine = Machine::new();
    fs_err::create_dir_all(machine.at("root/etc/containers")).unwrap();
    let conf = "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\"/srv/images\"]\n";
    fs_err::write(machine.at("root/etc/containers/storage.conf"), conf).unwrap();
    machine.installs(&["--graphroot", "/srv/images", &crate::command::hello()]);
    machine.installs(&[&crate::command::hello()]);
    for (name, mode) in [("srv/images/overlay", 0o755), ("var/lib/containers/storage/overlay", 0o700)] {
        let found = fs_err::metadata(machine.at("root").join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }

    // By the helper: for root, and for users where programs of images are harmless.
    let (by_place, by_key) = (additional, "/srv/store");
    for (graphroot, more, user) in [
        (by_place, "", false),
        (by_key, "additional = true", false),
        (by_place, "suid = false\nfilecaps = false", true),
        (by_key, "additional = true\nsuid = false\nfilecaps = false", true),
    ] {
        let jail = Jail::new(&format!("graphroot = \"{graphroot}\"\n{more}"));
        two_manifests(&jail.at("home/oci"));
        let said = jail.ok(&format!(
            r#"chown -R {USER} "$at/home"; cd /
            {who} install --no-cache --platform linux/amd64 --helper "$at/bin/prepull-helper" --root "$at/vm" --graphroot {graphroot} \
                oci:$at/home/oci:first=localhost/app:1 2>&1
            find "$at/vm{graphroot}" -path '*/diff/*' -prune -o ! -name '*.lock' ! -perm -444 -print
            "$at/bin/prepull" verify --strict --store additional "$at/vm{graphroot}" 2>&1 || :"#,
            who = if user { r#"as env PATH="$PATH" "$at/bin/prepull""# } else { "direct" },
        ));
        assert!(!said.contains("warning") && !said.contains("/overlay"), "{graphroot} {more}: {said}");
    }
    // Elsewhere a setuid program in it would make its user root.
    let jail = Jail::new(&format!("graphroot = \"{additional}\""));
    let outcome = jail.run(By::ForUser).feed(&Stream::new("query", &jail).end());
    assert!(outcome.refused("an open store").contains("users can reach it"), "{outcome:?}");
}

#[test]
fn a18_install_follows_links_and_leaves_directories_as_they_are() {
    if !needs_root("findings::install::a18_install_follows_links_and_leaves_directories_as_they_are") {
        return;
    }
    use std::os::unix::fs::{MetadataExt as _, symlink};
    for link in ["var", "var/lib", "var/lib/containers", "var/lib/containers/storage"] {
        for target in ["/data/far", "up/../data/far"] {
            let machine = Machine::new();
            let root = machine.at("root");
            fs_err::create_dir_all(root.join("data/far")).unwrap();
            chmod(root.join("data"), 0o2750);
            chown(root.join("data/far"), Some(7), Some(8)).unwrap();
            let owned_by_others = link == "var/lib/containers/storage";
            if owned_by_others {
                chown(root.join("data/far"), Some(0), Some(0)).unwrap();
            }
            chmod(root.join("data/far"), 0o701);
            let parent = root.join(link).parent().unwrap().to_owned();
            fs_err::create_dir_all(&parent).unwrap();
            fs_err::create_dir_all(parent.join("up")).unwrap();
            // A relative one leads there by way of `..`.
            let depth = link.matches('/').count();
            let target =
                if target.starts_with('/') { target.to_owned() } else { format!("{}data/far", "../".repeat(depth)) };
            symlink(&target, root.join(link)).unwrap();
            let below = "var/lib/containers/storage".strip_prefix(link).unwrap().trim_start_matches('/');
            let graph = root.join("data/far").join(below);
            fs_err::create_dir_all(&graph).unwrap();
            let state = |path: &Path| {
                let found = fs_err::symlink_metadata(path).unwrap();
                (found.mode(), found.uid(), found.gid(), found.mtime(), found.mtime_nsec(), found.ino())
            };
            let mut outside = vec![root.join(link), parent, root.join("data")];
            if !owned_by_others {
                outside.push(root.join("data/far"));
            }
            let before: Vec<_> = outside.iter().map(|path| state(path)).collect();
            machine.installs(&[&crate::command::hello()]);
            assert_eq!(outside.iter().map(|path| state(path)).collect::<Vec<_>>(), before, "{link} to {target}");
            assert!(graph.join("overlay-images/images.json").exists(), "{link} to {target}");
        }
    }
    // Missing directories are created so that every user can enter them.
    let machine = Machine::new();
    machine.installs(&[&crate::command::hello()]);
    for (name, mode) in [("var", 0o755), ("var/lib", 0o755), ("var/lib/containers", 0o755)] {
        let found = fs_err::metadata(machine.at("root").join(name)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, 0, 0), "{name}");
    }
    // A link to nothing is named.
    let machine = Machine::new();
    fs_err::create_dir_all(machine.at("root/var/lib")).unwrap();
    symlink("/gone", machine.at("root/var/lib/containers")).unwrap();
    let output = machine.prepull("install").arg(crate::command::hello()).output().unwrap();
    let said = crate::command::stderr(&output);
    assert!(output.status.code() == Some(1) && said.contains("a symbolic link to a missing directory"), "{said}");
}

#[test]
fn a18_install_takes_a_link_to_the_root() {
    if !needs_root("findings::install::a18_install_takes_a_link_to_the_root") {
        return;
    }
    let machine = Machine::new();
    fs_err::create_dir(machine.at("root")).unwrap();
    std::os::unix::fs::symlink("root", machine.at("link")).unwrap();
    for (verb, arguments) in [
        ("install", &["--no-cache", "--platform", "linux/amd64", "--pin"][..]),
        ("install", &["--no-cache", "--platform", "linux/amd64"]),
        ("gc", &[]),
    ] {
        let mut command = crate::command::prepull(machine.directory.path());
        command.arg(verb).arg("--root").arg(machine.at("link")).args(arguments);
        if verb == "install" {
            command.arg(crate::command::hello());
        }
        crate::command::succeeds(&mut command);
    }
    assert!(machine.at("root").join(crate::stores::GRAPHROOT).join("overlay-images/images.json").exists());
    assert!(machine.at("root/etc/crio/crio.conf.d/10-prepull.conf").exists());
}

#[test]
fn d04_root_that_a_user_cannot_enter_is_not_called_missing() {
    if !needs_root("findings::install::d04_root_that_a_user_cannot_enter_is_not_called_missing") {
        return;
    }
    let jail = Jail::new("");
    let said = jail.ok(r#"mkdir -m 700 "$at/closed" && mkdir "$at/closed/vm"
        as "$at/bin/prepull" install --via sudo --root "$at/closed/vm" localhost/x:1 2>&1 || echo "exit $?""#);
    assert!(said.contains("you must be able to enter the directory") && said.contains("exit 1"), "{said}");
}
