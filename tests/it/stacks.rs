//! Random stacks of layers: what the kernel shows of them, what a plain model says, and prepull's own merged view are one.

use std::path::Path;
use std::process::Command;

use prepull::layer::tar::TarReader;
use prepull::layer::tree::Tree;
use prepull::segment::index::Index;
use prepull::storage::opaque::MergedView;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::busybox::{Machine, applets};
use crate::command::{needs_root, prepull, stderr};
use crate::corpus::{Case, plain};
use crate::made::Layout;
use crate::model::{Meta, Model, Op, Path as Name};
use crate::raw::{Raw, archive};
use crate::seeds::sweep;
use crate::stores::{
    Clock, GRAPHROOT, Mount, Time, Tree as Shown, chain, differences, each, scratch, unpack_gnu, walk,
};

/// Set where the test has mounts of its own.
const INSIDE: &str = "PREPULL_STACKS_INSIDE";

/// Few names, so that layers often have the same ones.
fn name() -> impl Strategy<Value = Name> {
    vec(select(vec!["a", "b", "c"]), 1..=3)
}

fn directory() -> impl Strategy<Value = Name> {
    vec(select(vec!["a", "b", "c"]), 0..=2)
}

fn owner() -> impl Strategy<Value = (u32, u32)> {
    select(vec![(0, 0), (0, 0), (1000, 100), (0, 8), (3_000_000, 65_534)])
}

fn meta(modes: &[u32]) -> impl Strategy<Value = Meta> + use<> {
    (select(modes.to_vec()), owner(), option::weighted(0.2, 0..10u8)).prop_map(|(mode, owner, attribute)| Meta {
        mode,
        owner,
        attribute,
    })
}

fn op() -> impl Strategy<Value = Op> {
    // No directory is setgid: what that does to new entries is compared with skopeo in corpus/names.rs.
    let dir_meta = || meta(&[0o755, 0o755, 0o700, 0o1777, 0]);
    let file_meta = || meta(&[0o644, 0o600, 0o4755, 0o2711, 0]);
    prop_oneof![
        6 => (name(), dir_meta()).prop_map(|(name, meta)| Op::Dir(name, meta)),
        1 => dir_meta().prop_map(|meta| Op::Dir(Vec::new(), Meta { attribute: None, ..meta })),
        6 => (name(), file_meta(), "[a-z]{0,3}").prop_map(|(name, meta, data)| Op::File(name, meta, data)),
        2 => (name(), owner(), select(vec!["a", "/b", "../c", "nowhere", "a/b"]))
            .prop_map(|(name, owner, target)| Op::Symlink(name, owner, target.to_owned())),
        1 => (name(), file_meta()).prop_map(|(name, meta)| Op::Fifo(name, meta)),
        1 => (name(), file_meta(), select(vec![0, 3])).prop_map(|(name, meta, minor)| Op::Char(name, meta, minor)),
        3 => (name(), name(), file_meta()).prop_map(|(name, target, meta)| Op::Link(name, target, meta)),
        4 => name().prop_map(Op::Whiteout),
        4 => directory().prop_map(Op::Opaque),
    ]
}

type Stack = Vec<Vec<Op>>;

fn stack() -> impl Strategy<Value = Stack> {
    vec(vec(op(), 1..12), 1..=5)
}

#[test]
fn merged_views_are_what_the_kernel_and_a_model_show() {
    const NAME: &str = "stacks::merged_views_are_what_the_kernel_and_a_model_show";
    if !needs_root(NAME) {
        return;
    }
    // Once more where mounts are its own: then nothing is left of them, however it ends.
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
        let status = command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1").status().unwrap();
        assert!(status.success(), "inside: {status}");
        return;
    }
    sweep("stacks", &stack(), 240, 80, judge);
}

/// Directories that are on one layer only are not merged, and show whiteouts as names without a file.
fn without_ghosts(mut tree: Shown) -> Shown {
    tree.retain(|_, node| node.kind != "ghost");
    tree.values_mut().for_each(|node| node.time = Time::Made);
    tree
}

/// What `busybox tar` keeps.
fn without_attributes(mut tree: Shown) -> Shown {
    tree.values_mut().for_each(|node| node.xattrs.clear());
    tree
}

/// prepull's own opinion of the names.
fn view(layers: &[Vec<Raw>]) -> MergedView {
    let mut view = MergedView::default();
    for layer in layers {
        let (bytes, mut tree) = (archive(layer), Tree::new());
        let mut reader = TarReader::new(&bytes[..]);
        while let Some(header) = reader.next_header().unwrap() {
            reader.skip_content().unwrap();
            tree.place(&header).unwrap();
        }
        view.stack(&Index::of(&tree));
    }
    view
}

fn judge(stacks: &[Stack]) -> Vec<Option<String>> {
    let models: Vec<(Model, Vec<Vec<Raw>>)> = stacks
        .iter()
        .map(|stack| {
            let mut model = Model::default();
            let layers = stack.iter().map(|ops| model.layer(ops)).collect();
            (model, layers)
        })
        .collect();
    let scratch = scratch();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    let mut items = Vec::new();
    let case = |number: usize, layers: &[Vec<Raw>]| Case {
        name: format!("stack{number}"),
        layers: layers.iter().map(|entries| plain(archive(entries))).collect(),
    };
    for (number, (_, layers)) in models.iter().enumerate() {
        let case = case(number, layers);
        case.write(&mut layout);
        items.push(format!("oci:{}:{}", layout.path.display(), case.image()));
    }
    let make = |unpacker: &str| {
        let tar = at.join(format!("{unpacker}.tar"));
        let mut command = prepull(at);
        command.args(["make", "--quiet", "--no-config", "--unpacker", unpacker, "-o"]).arg(&tar).args(&items);
        let output = command.output().unwrap();
        if output.status.success() { Ok(tar) } else { Err(stderr(&output)) }
    };
    let tars = make("gnu").and_then(|gnu| Ok((gnu, make("busybox")?)));
    let (gnu, busybox) = match (tars, stacks) {
        (Ok(tars), _) => tars,
        (Err(said), [_]) => return vec![Some(said)],
        // Which one it was.
        (Err(_), _) => return stacks.iter().map(|stack| judge(std::slice::from_ref(stack)).remove(0)).collect(),
    };
    let gnu_root = at.join("gnu");
    unpack_gnu(&gnu, &gnu_root).unwrap();
    let machine = Machine::new(at.join("busybox"), &applets(at), true);
    machine.unpack(&busybox, &["-o"]);
    machine.restore();

    let numbers: Vec<usize> = (0..models.len()).collect();
    let verdicts = std::sync::Mutex::new(vec![None; models.len()]);
    let broken = each(&numbers, 4, |&number| {
        let (model, layers) = &models[number];
        let mut report = String::new();
        let wanted = model.shown();
        let seen = |store: &Path, what: &str| {
            let mount_point = at.join(format!("{what}{number}"));
            let chain = chain(store, &format!("localhost/stack{number}:1"));
            let _mounted = Mount::overlay(store, &chain, &mount_point);
            without_ghosts(walk(&mount_point, &Clock::stamp()))
        };
        differences("GNU tar, and the model", &seen(&gnu_root.join(GRAPHROOT), "g"), &wanted, &mut report);
        let busybox = without_attributes(seen(&machine.store(), "b"));
        differences("busybox, and the model", &busybox, &without_attributes(wanted), &mut report);
        let (ours, model) = (view(layers), view(&[model.flat()]));
        if ours != model {
            report += &format!("  merged view: {ours:?}\n  and the model: {model:?}\n");
        }
        if !report.is_empty() {
            verdicts.lock().unwrap()[number] = Some(report);
        }
        Ok(())
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    verdicts.into_inner().unwrap()
}
