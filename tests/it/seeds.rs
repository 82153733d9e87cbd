//! Random inputs by number, so that a failure on one machine is the same failure on all: no tests of its own.
//!
//! Input number n is what the strategy draws from a generator seeded with n. What failed once is tried first ever after:
//! its number stands in `proptest-regressions/NAME.txt`.

use std::fmt::Debug;
use std::path::Path;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::command::REPOSITORY;

/// Draws `COUNT`, or from number `FROM` on `FROM+COUNT`, inputs in place of as many as CI has time for.
const HOW_MANY: &str = "PREPULL_RANDOM";

/// The most attempts to make a failing input smaller: each runs the tools.
const SHRINKS: usize = 60;

/// The numbers to try, the ones that failed once first.
fn numbers(name: &str, usual: u64) -> Vec<u64> {
    let path = Path::new(REPOSITORY).join(format!("tests/it/proptest-regressions/{name}.txt"));
    let failed = fs_err::read_to_string(path).unwrap_or_default();
    let number = |text: &str| text.trim().parse().unwrap_or_else(|error| panic!("{name}: {text:?}: {error}"));
    let failed = failed.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty());
    let wanted = std::env::var(HOW_MANY).unwrap_or_else(|_| usual.to_string());
    let (from, count) = match wanted.split_once('+') {
        Some((from, count)) => (number(from), number(count)),
        None => (0, number(&wanted)),
    };
    failed.map(number).chain(from..from + count).collect()
}

fn drawn<S: Strategy>(strategy: &S, number: u64) -> S::Tree {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    strategy.new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).unwrap()
}

/// Has `judge` look at `usual` inputs, `batch` at a time: it says of each what is wrong with it. The first one that fails is
/// made as small as it goes, and shown.
#[track_caller]
pub fn sweep<S: Strategy<Value: Clone + Debug>>(
    name: &str,
    strategy: &S,
    usual: u64,
    batch: usize,
    judge: impl Fn(&[S::Value]) -> Vec<Option<String>>,
) {
    let numbers = numbers(name, usual);
    let mut failed = Vec::new();
    for (done, batch) in numbers.chunks(batch).enumerate() {
        let inputs: Vec<S::Value> = batch.iter().map(|&number| drawn(strategy, number).current()).collect();
        let verdicts = judge(&inputs);
        assert_eq!(verdicts.len(), inputs.len());
        eprintln!("{name}: {} of {}", numbers.len().min((done + 1) * inputs.len()), numbers.len());
        failed.extend(batch.iter().zip(verdicts).filter_map(|(&number, verdict)| Some((number, verdict?))));
    }
    let Some((number, said)) = failed.first() else { return };
    for (number, said) in failed.iter().skip(1) {
        eprintln!("number {number}:\n{said:.1000}");
    }
    let mut tree = drawn(strategy, *number);
    let (mut smallest, mut said) = (tree.current(), said.clone());
    let mut moved = tree.simplify();
    for _ in 0..SHRINKS {
        if !moved {
            break;
        }
        let verdict = judge(std::slice::from_ref(&tree.current())).remove(0);
        moved = match verdict {
            Some(verdict) => {
                (smallest, said) = (tree.current(), verdict);
                tree.simplify()
            }
            None => tree.complicate(),
        };
    }
    let all: Vec<u64> = failed.iter().map(|(number, _)| *number).collect();
    panic!(
        "{} of {} fail: {all:?}\nnumber {number} (keep it in tests/it/proptest-regressions/{name}.txt), made smaller:\n\
         {smallest:#?}\n{said}",
        failed.len(),
        numbers.len()
    );
}
