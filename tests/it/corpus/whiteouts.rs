//! Whiteouts and opaque directories, in every form and order.

use super::{Case, many, one};
use crate::raw::{Raw, block, char, dir, fifo, file, link, mark, sym};

/// A lower layer with something of everything.
fn lower() -> Vec<Raw> {
    vec![
        dir("d/").mode(0o750).owner(1, 2),
        file("d/a"),
        file("d/b"),
        dir("d/s/").owner(3, 3),
        file("d/s/x"),
        file("d/s/y"),
        dir("d/s/t/"),
        file("d/s/t/z"),
        dir("e/"),
        file("e/f"),
        sym("l", "d"),
        sym("d/sym", "a"),
        file("top"),
        char("null", 1, 3),
        fifo("pipe"),
        link("hard", "top"),
    ]
}

fn over(name: &str, upper: &[Raw]) -> Case {
    many(name, &[&lower(), upper])
}

fn opq(directory: &str) -> Raw {
    mark(format!("{directory}.wh..wh..opq"))
}

pub fn cases() -> Vec<Case> {
    let wh = mark(".wh.top");
    let mut cases = vec![
        over("wh-file", std::slice::from_ref(&wh)),
        over("wh-all", &[mark(".wh.d"), mark(".wh.e"), mark(".wh.l"), mark(".wh.null"), mark(".wh.pipe"), wh.clone()]),
        over("wh-nested", &[dir("d/"), mark("d/.wh.a"), dir("d/s/"), mark("d/s/.wh.t"), mark("d/.wh.sym")]),
        over("wh-missing-parent", &[mark("d/s/.wh.x")]),
        over("wh-owner", &[mark(".wh.top").owner(1000, 1001).mode(0o7777).mtime(5)]),
        over("wh-owner-keep", &[mark(".wh.top").owner(-1, -1)]),
        over("wh-owner-large", &[mark(".wh.top").owner(3_000_000, 1 << 31)]),
        over("wh-with-data", &[file(".wh.top").data("data in a whiteout"), file("new")]),
        over("wh-dir", &[dir(".wh.d/"), file("new")]),
        over("wh-dir-no-slash", &[dir(".wh.d"), file("new")]),
        over("wh-symlink", &[sym(".wh.top", "x")]),
        over("wh-link", &[file("n"), link(".wh.top", "n")]),
        over("wh-link-to-nothing", &[link(".wh.top", "nothing")]),
        over("wh-char", &[char(".wh.top", 1, 3)]),
        over("wh-block", &[block(".wh.top", 1, 3)]),
        over("wh-fifo", &[fifo(".wh.top")]),
        over("wh-unknown-type", &[mark(".wh.top").typeflag(b'Z')]),
        over("wh-nothing", &[mark(".wh.not-there")]),
        over("wh-nothing-below", &[mark("no/such/.wh.file")]),
        over("wh-alone", &[mark(".wh.")]),
        over("wh-alone-nested", &[dir("d/"), mark("d/.wh.")]),
        over("wh-dot", &[mark(".wh..")]),
        over("wh-dot-nested", &[dir("d/"), mark("d/.wh..")]),
        over("wh-dotdot", &[mark(".wh...")]),
        over("wh-dotdot-nested", &[dir("d/"), dir("d/s/"), mark("d/s/.wh...")]),
        over("wh-dotdotdot", &[mark(".wh....")]),
        over("wh-wh", &[mark(".wh..wh.top")]),
        over("wh-wh-nested", &[dir("d/"), mark("d/.wh..wh.x")]),
        over("wh-plnk", &[dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2"), mark(".wh..wh.orph"), mark(".wh..wh.aufs")]),
        over("wh-in-wh-dir", &[dir(".wh.d/"), file(".wh.d/f")]),
        over("wh-opq-suffix", &[mark("d/.wh..wh..opqx")]),
        over("wh-of-hidden", &[mark(".wh..hidden"), mark(".wh.-x")]),
        over("wh-non-utf8", &[mark(b".wh.\xff"), mark(".wh.a\nb")]),
        over("wh-long", &[mark(format!(".wh.{}", "n".repeat(251)))]),
        over("wh-too-long", &[mark(format!(".wh.{}", "n".repeat(252)))]),
        over("wh-long-path", &[mark(vec!["p".repeat(90); 6].join("/") + "/.wh.x")]),
        over("wh-before-file", &[wh.clone(), file("top").data("new top")]),
        over("wh-after-file", &[file("top").data("new top"), wh.clone()]),
        over("wh-after-other-file", &[file("a"), dir("d/"), file("d/f"), mark("d/.wh.f")]),
        over("wh-before-dir", &[mark(".wh.d"), dir("d/"), file("d/new")]),
        over("wh-before-missing-dir", &[mark(".wh.d"), file("d/new")]),
        over("wh-before-symlink", &[mark(".wh.d"), sym("d", "e"), file("d/x")]),
        over("wh-before-symlink-real", &[dir("e"), mark(".wh.d"), sym("d", "e"), file("d/x")]),
        over("wh-before-link", &[file("n"), wh.clone(), link("top", "n")]),
        over("wh-before-device", &[wh.clone(), char("top", 1, 5), mark(".wh.e"), fifo("e")]),
        over("wh-then-below", &[mark(".wh.d"), mark("d/.wh.a"), mark("d/s/.wh.x")]),
        over("wh-then-opaque-below", &[mark(".wh.d"), opq("d/")]),
        over("wh-after-dir", &[dir("d/"), mark(".wh.d")]),
        over("wh-after-missing-dir", &[file("d/x"), mark(".wh.d")]),
        over("wh-twice", &[wh.clone(), mark("/.wh.top")]),
        over("wh-through-symlink", &[dir("d/"), sym("l", "d"), mark("l/.wh.a")]),
        over("wh-through-dangling", &[sym("l2", "d"), mark("l2/.wh.a")]),
        over("wh-below-file", &[file("top"), mark("top/.wh.x")]),
        over("wh-absolute", &[mark("/.wh.top"), mark("/d/.wh.a")]),
        over("wh-dot-slash", &[dir("./"), mark("./.wh.top"), mark("./d/.wh.a")]),
        over("wh-dotdot-path", &[mark("../.wh.top"), mark("d/../.wh.e")]),
        over("wh-setgid-parent", &[dir("d/").mode(0o2775).owner(0, 8), mark("d/.wh.a")]),
        over("wh-file-to-dir", &[dir("top/"), file("top/f")]),
        over("wh-dir-to-file", &[file("d").data("was a directory")]),
        over("wh-dir-to-symlink", &[sym("d", "e")]),
        over("wh-symlink-to-dir", &[dir("l/"), file("l/new")]),
        one("wh-in-first-layer", &[wh.clone(), dir("d/"), opq("d/"), mark("d/.wh.x")]),
        many("wh-again", &[&lower(), std::slice::from_ref(&wh), std::slice::from_ref(&wh)]),
        many("wh-readd", &[&lower(), &[mark(".wh.d")], &[dir("d/").mode(0o711), file("d/new")]]),
        many("wh-readd-wh", &[&lower(), &[mark(".wh.d")], &[file("d/new")], &[mark(".wh.d")], &[file("d/last")]]),
        over("opq", &[dir("d/"), opq("d/")]),
        over("opq-first", &[opq("d/"), dir("d/"), file("d/new")]),
        over("opq-last", &[dir("d/"), file("d/new"), file("d/a").data("new a"), opq("d/")]),
        over("opq-between", &[file("d/new"), opq("d/"), file("d/later"), dir("d/").mode(0o700)]),
        over("opq-missing-parent", &[opq("d/s/"), file("d/s/new")]),
        over("opq-nothing-below", &[dir("n/"), opq("n/"), file("n/f")]),
        over("opq-root", &[opq(""), file("new")]),
        over("opq-root-dot", &[dir("./"), opq("./"), file("./new")]),
        over("opq-root-slash", &[opq("/"), file("new"), dir("d/"), opq("d/")]),
        over("opq-nested", &[dir("d/"), opq("d/"), dir("d/s/"), opq("d/s/"), file("d/s/new")]),
        over("opq-inner-only", &[dir("d/"), dir("d/s/"), opq("d/s/"), dir("d/s/t/"), file("d/s/t/new")]),
        over("opq-inner-merged", &[dir("d/"), opq("d/"), dir("d/s/"), file("d/s/new"), dir("d/s/t/")]),
        over("opq-with-wh", &[dir("d/"), opq("d/"), mark("d/.wh.a"), mark("d/.wh.not-there")]),
        over("opq-wh-then-readd", &[dir("d/"), opq("d/"), mark("d/.wh.s"), dir("d/s/"), file("d/s/x").data("again")]),
        over("opq-file-to-dir", &[dir("d/"), opq("d/"), dir("d/a/"), file("d/a/f")]),
        over("opq-dir-to-file", &[dir("d/"), opq("d/"), file("d/s").data("file")]),
        over("opq-dir-to-symlink", &[dir("d/"), opq("d/"), sym("d/s", "../e")]),
        over("opq-over-file", &[dir("top/"), opq("top/"), file("top/f")]),
        over("opq-over-symlink", &[dir("l/"), opq("l/"), file("l/f")]),
        over("opq-dir-type", &[dir("d/.wh..wh..opq/"), file("d/new")]),
        over("opq-symlink-type", &[dir("d/"), sym("d/.wh..wh..opq", "x")]),
        over("opq-link-type", &[dir("d/"), link("d/.wh..wh..opq", "nothing")]),
        over("opq-data", &[dir("d/"), opq("d/").data("some data"), file("d/new")]),
        over("opq-owner", &[dir("d/"), opq("d/").owner(12, 13)]),
        over("opq-through-symlink", &[dir("e/"), sym("d", "e"), opq("d/"), file("e/new")]),
        over("opq-through-dangling", &[sym("x", "nowhere"), opq("x/")]),
        over("opq-on-file", &[file("top"), opq("top/")]),
        over("opq-twice", &[dir("d/"), opq("d/"), opq("/d/")]),
        over("opq-xattr-too", &[dir("d/").xattr("trusted.overlay.opaque", "y"), opq("d/"), file("d/new")]),
        over("opq-xattr-only", &[dir("d/").xattr("trusted.overlay.opaque", "y").mtime(9), file("d/new")]),
        over("opq-and-xattrs", &[dir("d/").xattr("user.a", "1").xattr("trusted.z", "2").mtime(9), opq("d/")]),
        over("opq-time", &[dir("d/").pax("mtime", "5.25").mode(0o2711).owner(9, 10), opq("d/"), file("d/n")]),
        over("opq-replaced", &[dir("d/"), opq("d/"), file("/d").data("file after all")]),
        over("opq-then-dir-again", &[dir("d/"), opq("d/"), dir("/d").mode(0o700).mtime(3), file("d/n")]),
        over("opq-hardlinks", &[dir("d/"), opq("d/"), file("d/n"), link("d/m", "d/n"), link("o", "d/n")]),
        over("opq-many", &[dir("d/"), opq("d/"), dir("e/"), opq("e/"), file("e/f").data("again")]),
    ];
    let second = [dir("d/"), opq("d/"), file("d/second"), dir("d/s/"), file("d/s/second")];
    cases.push(many("opq-then-more", &[&lower(), &second, &[file("d/third"), mark("d/s/.wh.second")]]));
    cases.push(many("opq-on-opq", &[&lower(), &second, &[dir("d/"), opq("d/"), file("d/third")]]));
    cases.push(many("opq-on-wh", &[&lower(), &[mark("d/.wh.s"), mark("d/.wh.a")], &[dir("d/"), opq("d/")]]));
    cases
        .push(many("opq-on-gone", &[&lower(), &[mark(".wh.d")], &[dir("d/"), opq("d/"), file("d/n")], &[file("d/o")]]));
    cases.push(many(
        "opq-inner-on-gone",
        &[&lower(), &[mark("d/.wh.s")], &[dir("d/"), dir("d/s/"), opq("d/s/"), file("d/s/n")]],
    ));
    cases.push(many(
        "opq-on-file-on-dir",
        &[
            &lower(),
            &[file("d").data("a file for a while")],
            &[dir("d/"), opq("d/"), file("d/n")],
            &[dir("d/"), dir("d/s/"), file("d/s/p")],
        ],
    ));
    cases.push(many(
        "opq-five",
        &[
            &lower(),
            &[dir("d/"), dir("d/s/"), opq("d/s/"), file("d/s/2"), mark("d/.wh.b")],
            &[dir("d/"), file("d/b").data("3"), dir("d/s/"), dir("d/s/t/"), file("d/s/t/3"), dir("e/"), opq("e/")],
            &[dir("d/"), opq("d/"), dir("d/s/"), file("d/s/4"), dir("d/s/t/"), mark("d/s/t/.wh.3")],
            &[file("d/s/t/5"), mark("d/s/.wh.4"), dir("e/"), dir("e/f/"), file("e/f/5")],
        ],
    ));
    cases.push(many(
        "opq-root-middle",
        &[&lower(), &[opq(""), dir("d/"), file("d/2")], &[dir("d/"), opq("d/"), file("d/3")]],
    ));
    cases
}
