//! CRI-O: what it makes of damaged stores, of an additional store beside its own, and of images that are installed later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use prepull::verify::rule::Fate;
use prepull::verify::{Options, verify};
use serde_json::Value;

use crate::command::{REPOSITORY, fails, needs_root, prepull, stderr, succeeds};
use crate::made::{Layout, tar};
use crate::mutations::{Archive, Base, Row, gnu_bases, rows};
use crate::stores::{each, scratch};

/// Fates of damaged stores, as measured.
const DAMAGE: &str = "docs/format/damage.tsv";

/// Names a directory where the damaged tars are left, to be measured with another CRI-O.
const TARS: &str = "PREPULL_DAMAGED_TARS";

/// A row of the table.
struct Damage {
    /// The change of a good store.
    name: String,
    additional: bool,
    /// The image that suffers from it.
    image: String,
    /// The worst of the fates after a start of CRI-O 1.24, 1.29 and 1.37.
    start: Fate,
    /// The fate after a power cut, by CRI-O 1.37; `None` where it was not measured.
    crash: Option<Fate>,
    /// Severity and name of the rule that finds it; `None` where nothing needs to.
    rule: Option<String>,
    /// True if `verify` may expect worse, because it knows of more versions or cannot tell two causes apart.
    is_stricter: bool,
    /// Exit code of `why` for the image.
    why: i32,
}

fn fate(text: &str) -> Fate {
    serde_json::from_value(text.into()).unwrap_or_else(|_| panic!("no fate: {text:?}"))
}

fn table() -> Vec<Damage> {
    let text = fs_err::read_to_string(Path::new(REPOSITORY).join(DAMAGE)).unwrap();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[name, store, image, a, b, c, crash, rule, why] = &fields[..] else { panic!("{line:?}") };
        Damage {
            name: name.to_owned(),
            additional: match store {
                "own" => false,
                "additional" => true,
                other => panic!("no kind of store: {other:?}"),
            },
            image: image.to_owned(),
            start: [a, b, c].map(fate).into_iter().max().unwrap(),
            crash: (crash != "-").then(|| fate(crash)),
            rule: Some(rule.trim_end_matches('+').to_owned()).filter(|rule| rule != "-"),
            is_stricter: rule.ends_with('+'),
            why: why.parse().unwrap(),
        }
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(row).collect()
}

fn damaged(base: &Base, row: &Row) -> Vec<u8> {
    let mut archive = Archive::of(base);
    (row.change)(&mut archive);
    archive.encode()
}

#[test]
fn e05_verdicts_agree_with_the_measured_damage() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let bases = gnu_bases(at);
    let all: Vec<Row> = rows();
    let by_name: BTreeMap<&str, &Row> = all.iter().map(|row| (row.name, row)).collect();
    if let Some(directory) = std::env::var_os(TARS) {
        for (base, kind) in bases.iter().zip(["own", "additional"]) {
            for row in all.iter().filter(|row| row.is_for(base.flavour)) {
                let file = Path::new(&directory).join(format!("{kind}.{}.tar", row.name.replace('/', "%")));
                fs_err::write(file, damaged(base, row)).unwrap();
            }
        }
    }
    let table = table();
    assert!(table.len() >= 160, "only {} rows", table.len());
    let work: Vec<(usize, &Damage)> = table.iter().enumerate().collect();
    let failures = each(&work, 2, |(number, damage)| {
        let base = &bases[usize::from(damage.additional)];
        let row = by_name.get(&damage.name[..]).ok_or_else(|| format!("{}: no such change", damage.name))?;
        let tar = at.join(format!("{number}.tar"));
        fs_err::write(&tar, damaged(base, row)).unwrap();
        let report = verify(&tar, &Options::default()).unwrap();
        let image = format!("localhost/{}:1", damage.image);
        let code = prepull(at).arg("why").arg(&tar).arg(image).output().unwrap().status.code().unwrap();
        fs_err::remove_file(&tar).unwrap();
        let fail = |what: String| {
            Err(format!("{} ({}): {what}", damage.name, if damage.additional { "additional" } else { "own" }))
        };
        let found: Vec<String> = report
            .groups()
            .map(|(rule, severity, _)| format!("{severity:?} {}", rule.info().name).to_lowercase())
            .collect();
        if damage.rule.as_ref().is_some_and(|rule| !found.contains(rule)) {
            return fail(format!("no {:?} in {found:?}", damage.rule));
        }
        if code != damage.why {
            return fail(format!("why ends with {code}, not {}", damage.why));
        }
        let said = report.fate();
        let wanted = (damage.start, damage.crash.unwrap_or(said.1));
        if report.is_good() {
            // What CRI-O keeps, lists and runs is no error.
            let is_harmless = wanted.0 <= Fate::Removed && wanted.1 <= Fate::Removed;
            return if is_harmless { Ok(()) } else { fail(format!("no error, but {wanted:?}")) };
        }
        let agrees = if damage.is_stricter { said.0 >= wanted.0 && said.1 >= wanted.1 } else { said == wanted };
        if agrees { Ok(()) } else { fail(format!("verify says {said:?}, measured is {wanted:?}; {found:?}")) }
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), table.len(), failures.join("\n"));
}

/// CRI-O and podman read the manifest and config of every image when they list one.
#[test]
fn e06_what_stops_listing_is_a_problem_of_every_image() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let bases = gnu_bases(at);
    let all: Vec<Row> = rows();
    let by_name: BTreeMap<&str, &Row> = all.iter().map(|row| (row.name, row)).collect();
    let table = table();
    let work: Vec<(usize, &Damage)> = table.iter().enumerate().collect();
    let failures = each(&work, 2, |(number, damage)| {
        let tar = at.join(format!("{number}.tar"));
        fs_err::write(&tar, damaged(&bases[usize::from(damage.additional)], by_name[&damage.name[..]])).unwrap();
        // It has no layers, so it shares none with the others.
        let other = if damage.image == "zero" { "base" } else { "zero" };
        let output = prepull(at).arg("why").arg(&tar).arg(format!("localhost/{other}:1")).output().unwrap();
        fs_err::remove_file(&tar).unwrap();
        let expected = match damage.start {
            // No image can be found in such a store.
            _ if damage.rule.as_deref() == Some("error driver") => 2,
            Fate::ListFails | Fate::NoStart => 1,
            fate if fate <= Fate::PodFails && !damage.is_stricter => 0,
            _ => return Ok(()),
        };
        let code = output.status.code().unwrap();
        if code == expected {
            return Ok(());
        }
        let kind = if damage.additional { "additional" } else { "own" };
        let said = String::from_utf8_lossy(&output.stdout);
        Err(format!("{} ({kind}): why {other} ends with {code}, not {expected}: {said}", damage.name))
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), table.len(), failures.join("\n"));
}

/// A machine's root directory below a scratch directory, and images to put there.
struct Machine {
    _scratch: tempfile::TempDir,
    at: PathBuf,
    layout: Layout,
}

impl Machine {
    fn new() -> Self {
        let scratch = scratch();
        let at = scratch.path().canonicalize().unwrap();
        fs_err::create_dir(at.join("root")).unwrap();
        let layout = Layout::new(at.join("oci"));
        Self { _scratch: scratch, at, layout }
    }

    /// Adds an image of one file; returns its item.
    fn image(&mut self, name: &str) -> String {
        self.image_of(name, &[tar(&[(name, name.as_bytes())])])
    }

    fn image_of(&mut self, name: &str, layers: &[Vec<u8>]) -> String {
        let descriptor = self.layout.image("amd64", layers);
        let full = format!("localhost/{name}:1");
        self.layout.add(Some(&full), descriptor);
        format!("oci:{}:{full}", self.layout.path.display())
    }

    fn root(&self) -> PathBuf {
        self.at.join("root")
    }

    fn prepull(&self, verb: &str) -> Command {
        let mut command = prepull(&self.at);
        command.current_dir(&self.at).arg(verb);
        if matches!(verb, "make" | "install") {
            command.args(["--platform", "linux/amd64", "--no-cache"]);
        }
        command
    }

    /// Makes `name` in the scratch directory; returns what is said on standard error.
    #[track_caller]
    fn make(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.prepull("make").args(["--unpacker", "gnu", "-o", name]).args(arguments).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }

    #[track_caller]
    fn unpack(&self, name: &str) {
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=*", "-xpf", name, "-C", "root"]).current_dir(&self.at);
        succeeds(&mut tar);
    }

    /// Runs it; returns standard output and the exit code.
    fn says(&self, verb: &str, arguments: &[&str]) -> (String, i32) {
        let output = self.prepull(verb).args(arguments).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    fn json(&self, verb: &str, arguments: &[&str]) -> Value {
        let (text, _) = self.says(verb, &[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{verb} {arguments:?}: {error}: {text}"))
    }

    /// The rules that `verify ROOT` finds broken.
    fn rules(&self) -> (Vec<String>, Value) {
        let report = self.json("verify", &["root"]);
        let findings = report["findings"].as_array().unwrap();
        (findings.iter().map(|finding| finding["rule"].as_str().unwrap().to_owned()).collect(), report)
    }

    /// The drop-in of the machine's own store.
    fn drop_in(&self) -> String {
        fs_err::read_to_string(self.root().join(DROP_IN)).unwrap_or_default()
    }
}

const DROP_IN: &str = "etc/crio/crio.conf.d/10-prepull.conf";

#[test]
fn e01_own_store_beside_an_additional_one_is_reported() {
    let mut machine = Machine::new();
    let (own, other) = (machine.image("own"), machine.image("other"));
    machine.make("own.tar", &[&own]);
    let said = machine.make("other.tar", &["--store", "additional", &other]);
    let note = said.lines().last().unwrap();
    assert!(note.contains("after a power cut CRI-O 1.31 and newer delete the machine's own store"), "{said}");
    let said = machine.make("beside.tar", &["--store", "additional", "--beside", "own.tar", &other]);
    assert!(
        said.contains("warning: own.tar: /var/lib/containers/storage has localhost/own:1: after a power cut"),
        "{said}"
    );
    machine.unpack("own.tar");
    assert!(!machine.rules().0.contains(&"own-store-at-risk".to_owned()));
    machine.unpack("beside.tar");
    let (rules, report) = machine.rules();
    assert!(rules.contains(&"own-store-at-risk".to_owned()), "{report}");
    assert_eq!(report["afterPowerCut"], "store-wiped", "{report}");
    let text = machine.says("why", &["root", "localhost/own:1"]);
    assert!(text.1 == 0 && text.0.contains("CRI-O 1.31 and newer delete the whole own store"), "{text:?}");
    // Nothing is lost where nothing is in the own store, or where CRI-O does not look.
    let repair = machine.root().join("etc/crio/crio.conf.d/90-repair.conf");
    fs_err::write(&repair, "[crio]\ninternal_repair = false\n").unwrap();
    assert!(!machine.rules().0.contains(&"own-store-at-risk".to_owned()));
    fs_err::remove_file(&repair).unwrap();
    fs_err::remove_dir_all(machine.root().join("var/lib/containers/storage")).unwrap();
    assert!(!machine.rules().0.contains(&"own-store-at-risk".to_owned()));
}

#[test]
fn e08_second_tar_over_a_store_with_images_is_an_error() {
    let mut machine = Machine::new();
    let (first, second) = (machine.image("first"), machine.image("second"));
    machine.make("first.tar", &[&first]);
    machine.make("second.tar", &[&second]);
    machine.unpack("first.tar");
    machine.unpack("second.tar");
    let (rules, report) = machine.rules();
    for rule in ["image-directory", "layer-orphan"] {
        assert!(rules.contains(&rule.to_owned()), "{rule}: {report}");
    }
    assert_eq!((&report["good"], &report["start"]), (&false.into(), &"image-deleted".into()));
    let (text, code) = machine.says("why", &["root", "localhost/first:1"]);
    assert!(code == 2 && text.contains("a second tar for a machine's own store was unpacked"), "{text}");
    let (text, code) = machine.says("why", &["root", "localhost/second:1"]);
    assert!(code == 0 && text.contains("a second tar for a machine's own store was unpacked"), "{text}");
}

#[test]
fn e08_additional_stores_keep_each_others_configuration() {
    let mut machine = Machine::new();
    let (first, second, pause) = (machine.image("first"), machine.image("second"), machine.image("pause"));
    machine.make("first.tar", &["--store", "additional", "--pause", &pause, &first]);
    let more = ["--store", "additional", "--graphroot", "/usr/lib/containers/more", "--beside", "first.tar"];
    machine.make("second.tar", &[&more[..], &[&second]].concat());
    for order in [["first.tar", "second.tar"], ["second.tar", "first.tar"]] {
        for name in order {
            machine.unpack(name);
        }
        for name in ["first", "second", "pause"] {
            let why = machine.json("why", &["root", &format!("localhost/{name}:1")]);
            assert_eq!(
                (&why["verdict"], &why["pinned"]["pinned"]),
                (&"usable".into(), &true.into()),
                "{order:?}: {why}"
            );
            assert_eq!(why["pause"]["configured"]["value"], "localhost/pause:1", "{why}");
            let roles: Vec<&Value> = why["stores"].as_array().unwrap().iter().map(|store| &store["role"]).collect();
            assert_eq!(roles, ["additional", "additional"], "{order:?}: {why}");
        }
        fs_err::remove_dir_all(machine.root()).unwrap();
        fs_err::create_dir(machine.root()).unwrap();
    }
    let refused = |arguments: &[&str], part: &str| {
        let mut command = machine.prepull("make");
        fails(command.args(["-o", "x.tar", "--beside", "first.tar"]).args(arguments), 2, part);
    };
    refused(&["--store", "additional", &second], "it has a store at /usr/lib/containers/storage as well");
    machine.make("own.tar", &[&first]);
    let elsewhere = ["--graphroot", "/var/lib/other", "--beside", "own.tar", &second];
    refused(&elsewhere, "a machine has one store of its own, and that is /var/lib/containers/storage");
}

#[test]
fn e07_install_and_rm_keep_the_list_of_pinned_images() {
    if !needs_root("install: pinned images") {
        return;
    }
    let mut machine = Machine::new();
    let images: Vec<String> = ["one", "two", "three", "pause"].iter().map(|name| machine.image(name)).collect();
    let install = |arguments: &[&str]| {
        let output = machine.prepull("install").args(["--root", "root"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stderr(&output)
    };
    install(&["--rootfs", "--pause", &images[3], &images[0]]);
    let whole = machine.drop_in();
    assert!(whole.contains("pause_image = \"localhost/pause:1\"") && whole.contains("\"localhost/one:1\""), "{whole}");
    // A later image is pinned where prepull's own drop-in pins, and no longer when it is removed.
    let said = install(&[&images[1]]);
    assert!(said.contains("pinned localhost/two:1 (after `systemctl reload crio`)"), "{said}");
    assert!(machine.drop_in().contains("\"localhost/two:1\""), "{}", machine.drop_in());
    assert!(!install(&[&images[1]]).contains("pinned"), "it is pinned already");
    succeeds(machine.prepull("rm").args(["--root", "root", "localhost/two:1"]));
    assert_eq!(machine.drop_in(), whole);
    // A file that prepull has not written stays as it is.
    let other = machine.root().join("etc/crio/crio.conf.d/20-other.conf");
    fs_err::write(&other, "[crio.image]\npinned_images = [\"localhost/one:1\"]\n").unwrap();
    let said = install(&[&images[2]]);
    assert!(said.contains("localhost/three:1 is not pinned: etc/crio/crio.conf.d/20-other.conf"), "{said}");
    fs_err::remove_file(&other).unwrap();
    let changed = format!("{whole}# changed\n");
    fs_err::write(machine.root().join(DROP_IN), &changed).unwrap();
    assert!(install(&[&images[1]]).contains("was not written by prepull"));
    assert_eq!(machine.drop_in(), changed);
    // Without a list, only --pin makes one.
    fs_err::write(machine.root().join(DROP_IN), "[crio.image]\n").unwrap();
    succeeds(machine.prepull("rm").args(["--root", "root", "localhost/two:1"]));
    assert!(install(&[&images[1]]).contains("localhost/two:1 is not pinned: the kubelet's garbage collection"));
    fs_err::remove_file(machine.root().join(DROP_IN)).unwrap();
    install(&["--pin", &images[1]]);
    assert!(machine.drop_in().contains("\"localhost/two:1\""), "{}", machine.drop_in());
    // No link leads out of the machine.
    let outside = machine.at.join("outside");
    fs_err::create_dir(&outside).unwrap();
    fs_err::remove_dir_all(machine.root().join("etc/crio")).unwrap();
    std::os::unix::fs::symlink(&outside, machine.root().join("etc/crio")).unwrap();
    let said = install(&["--pin", &images[1]]);
    assert!(said.contains("localhost/two:1 is not pinned: writing"), "{said}");
    assert_eq!(fs_err::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn e07_pins_follow_links_as_the_machine_does() {
    if !needs_root("install: pinned images behind links") {
        return;
    }
    for (link, target) in [("etc", "/opt/e"), ("etc/crio", "/opt/crio"), ("etc/crio/crio.conf.d", "../../opt/pins")] {
        let mut machine = Machine::new();
        let image = machine.image("one");
        let real = machine.root().join("opt").join(target.rsplit('/').next().unwrap());
        fs_err::create_dir_all(&real).unwrap();
        fs_err::create_dir_all(machine.root().join(link).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, machine.root().join(link)).unwrap();
        let output = machine.prepull("install").args(["--root", "root", "--pin", &image]).output().unwrap();
        assert!(output.status.success() && stderr(&output).contains("pinned localhost/one:1"), "{}", stderr(&output));
        let below = DROP_IN.strip_prefix(link).unwrap().trim_start_matches('/');
        let text = fs_err::read_to_string(real.join(below)).unwrap();
        assert!(text.contains("\"localhost/one:1\""), "{link}: {text}");
        let names = fs_err::read_dir(real.join(below).parent().unwrap().parent().unwrap()).unwrap();
        assert!(!names.flatten().any(|name| name.file_name().as_encoded_bytes().starts_with(b".10-prepull")), "{link}");
    }
}

#[test]
fn e06_id_is_not_a_name_for_a_pod() {
    let mut machine = Machine::new();
    let item = machine.image("app");
    machine.make("app.tar", &[&item]);
    let id = machine.json("why", &["app.tar", "localhost/app:1"])["image"]["id"].as_str().unwrap().to_owned();
    for typed in [&id[..], &id[..12]] {
        let (text, code) = machine.says("why", &["app.tar", typed]);
        assert!(code == 1 && text.contains("crictl takes an id, but a pod needs a name"), "{text}");
        assert_eq!(machine.json("why", &["app.tar", typed])["verdict"], "id-only");
    }
}

/// Makes a machine whose own image `child` lies on a layer that only its additional store, with the image `base`, has, as after
/// a pull by CRI-O.
fn machine_with_child_of_additional_store() -> Machine {
    let mut machine = Machine::new();
    let (lower, upper) = (tar(&[("lower", b"1")]), tar(&[("upper", b"2")]));
    let (base, child) =
        (machine.image_of("base", std::slice::from_ref(&lower)), machine.image_of("child", &[lower, upper]));
    machine.make("own.tar", &[&child]);
    machine.make("more.tar", &["--store", "additional", &base]);
    machine.unpack("own.tar");
    machine.unpack("more.tar");
    // CRI-O pulls only the layers that no store has.
    let records = machine.root().join("var/lib/containers/storage/overlay-layers/layers.json");
    let mut layers: Vec<Value> = serde_json::from_slice(&fs_err::read(&records).unwrap()).unwrap();
    let lowest = layers.iter().position(|layer| layer["parent"].is_null()).unwrap();
    let lowest = layers.remove(lowest)["id"].as_str().unwrap().to_owned();
    fs_err::write(&records, serde_json::to_vec(&layers).unwrap()).unwrap();
    fs_err::remove_dir_all(machine.root().join("var/lib/containers/storage/overlay").join(lowest)).unwrap();
    let (rules, report) = machine.rules();
    assert!(rules.contains(&"own-image-on-additional".to_owned()), "{report}");
    machine
}

#[test]
fn e03_rm_refuses_to_take_layers_that_the_own_store_needs() {
    if !needs_root("rm: images on layers of an additional store") {
        return;
    }
    let machine = machine_with_child_of_additional_store();
    let rm = || {
        let mut command = machine.prepull("rm");
        command.args(["--root", "root", "--graphroot", "/usr/lib/containers/storage", "localhost/base:1"]);
        command
    };
    fails(&mut rm(), 1, "nothing removed: image localhost/child:1");
    succeeds(rm().arg("--force"));
    let (rules, report) = machine.rules();
    assert!(rules.contains(&"layer-parent".to_owned()) && report["start"] == "list-fails", "{report}");
}

#[test]
fn e03_gc_refuses_to_take_layers_that_the_own_store_needs() {
    if !needs_root("gc: images on layers of an additional store") {
        return;
    }
    let machine = machine_with_child_of_additional_store();
    let gc = || {
        let mut command = machine.prepull("gc");
        command.args(["--root", "root", "--graphroot", "/usr/lib/containers/storage"]);
        command
    };
    succeeds(&mut gc());
    // The store's images are lost, and so none of its images has the layer any more.
    let store = machine.root().join("usr/lib/containers/storage");
    fs_err::write(store.join("overlay-images/images.json"), b"[]").unwrap();
    fails(&mut gc(), 1, "nothing removed: image localhost/child:1");
    succeeds(gc().arg("--force"));
    // Unreferenced layers are kept for a day.
    let layers = fs_err::read(store.join("overlay-layers/layers.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&layers).unwrap().len(), 1);
}
