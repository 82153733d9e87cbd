//! The machine's configuration: storage.conf, policy.json, crio.conf.

use prepull::verify::rule::Fate;

use super::{Archive, Row, row};

const STORAGE: &str = "/etc/containers/storage.conf";
const POLICY: &str = "/etc/containers/policy.json";

/// The drop-in that `make` writes, which has the store's name in its own where that is an additional one.
fn crio(tar: &Archive<'_>) -> &'static str {
    if tar.flavour().additional {
        "/etc/crio/crio.conf.d/10-prepull-usr-lib-containers-storage.conf"
    } else {
        "/etc/crio/crio.conf.d/10-prepull.conf"
    }
}

fn replace(tar: &mut Archive<'_>, path: &str, from: &str, to: &str) {
    let text = String::from_utf8(tar.content(path).clone()).unwrap();
    assert!(text.contains(from), "{from:?} in {text}");
    tar.set(path, text.replace(from, to));
}

pub fn rows() -> Vec<Row> {
    vec![
        row("no storage.conf", |tar| tar.remove(STORAGE)),
        row("storage.conf is no TOML", |tar| tar.set(STORAGE, "[storage\n"))
            .error("storage-conf")
            .fate(Fate::NoStart, Fate::NoStart),
        row("the driver is not text", |tar| replace(tar, STORAGE, "driver = \"overlay\"", "driver = 1"))
            .error("storage-conf"),
        row("the driver is vfs", |tar| replace(tar, STORAGE, "\"overlay\"", "\"vfs\""))
            .error("storage-conf-driver")
            .fate(Fate::Unseen, Fate::Unseen),
        row("the driver is nothing", |tar| replace(tar, STORAGE, "driver = \"overlay\"", "driver = \"\"")),
        row("the store is elsewhere", |tar| {
            let graphroot = format!("\"/{}\"", tar.graphroot());
            replace(tar, STORAGE, &graphroot, "\"/srv/containers\"");
        })
        .error("storage-conf-graphroot")
        // CRI-O finds an additional store by its drop-in, too.
        .not_additional(),
        row("a path of the machine that made it", |tar| {
            replace(tar, STORAGE, "/run/containers/storage", "/home/me/run");
        })
        .error("storage-conf-runroot"),
        row("locks in /var/lib", |tar| replace(tar, STORAGE, "/run/containers/storage", "/var/lib/containers/run"))
            .error("storage-conf-runroot"),
        row("no policy.json", |tar| tar.remove(POLICY)),
        row("policy.json is no JSON", |tar| tar.set(POLICY, "{")).error("policy-json"),
        row("policy.json is empty", |tar| tar.set(POLICY, "")).error("policy-json"),
        row("policy.json is a list", |tar| tar.set(POLICY, "[]")).error("policy-json"),
        row("a policy without default", |tar| tar.set(POLICY, r#"{"default":[]}"#)).error("policy-json"),
        row("a policy with an unknown key", |tar| {
            tar.set(POLICY, r#"{"default":[{"type":"insecureAcceptAnything"}],"x":1}"#);
        })
        .error("policy-json"),
        row("a policy with an unknown type", |tar| tar.set(POLICY, r#"{"default":[{"type":"trust"}]}"#))
            .error("policy-json"),
        row("a policy that rejects", |tar| tar.set(POLICY, r#"{"default":[{"type":"reject"}]}"#))
            .warning("policy-reject"),
        row("a drop-in that is no TOML", |tar| tar.set(crio(tar), "[crio.image]\npinned_images = ["))
            .error("crio-conf")
            .fate(Fate::NoStart, Fate::NoStart),
        row("pinned_images is text", |tar| tar.set(crio(tar), "[crio.image]\npinned_images = \"a\""))
            .error("crio-conf"),
        row("nothing is pinned", |tar| tar.set(crio(tar), "[crio.image]\npinned_images = []")).warning("crio-pinned"),
        row("pinned without a tag", |tar| {
            let path = crio(tar);
            replace(tar, path, ":1\"", "\"");
        })
        .warning("crio-pinned"),
        row("all are pinned by a pattern", |tar| tar.set(crio(tar), "[crio.image]\npinned_images = [\"localhost/*\"]")),
        row("a later drop-in pins others", |tar| {
            tar.add_file("/etc/crio/crio.conf.d/20-other.conf", "[crio.image]\npinned_images = [\"quay.io/a:1\"]\n");
        })
        .warning("crio-pinned"),
        row("the pause image is not there", |tar| {
            let path = crio(tar);
            let text = String::from_utf8(tar.content(path).clone()).unwrap();
            let pause = "[crio.image]\npause_image = \"registry.k8s.io/pause:3.9\"";
            tar.set(path, text.replace("[crio.image]", pause));
        })
        .error("crio-pause")
        .fate(Fate::PodFails, Fate::PodFails),
        row("registries.conf is no TOML", |tar| tar.add_file("/etc/containers/registries.conf", "x = ["))
            .error("registries-conf"),
    ]
}
