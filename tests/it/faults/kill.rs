//! Killed and stopped at any time.

use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use super::{Case, May, Random, TABLE, Work, all_right, figures, is_all};

fn is_made_here(case: &Case) -> bool {
    case.line.starts_with("make -q")
}

/// Sends `signals` in turn, each after a while in which the command might be done; gives how many were in time.
fn rounds(
    work: &Work,
    cases: &[&Case],
    rounds: usize,
    seed: u64,
    signals: &[Signal],
    may: May,
) -> (usize, Vec<String>) {
    let mut random = Random(seed);
    let (mut hit, mut wrong) = (0, Vec::new());
    for (at, case) in cases.iter().enumerate() {
        let reference = work.reference(case);
        work.begin(case.from);
        let begun = std::time::Instant::now();
        assert!(work.run(&mut work.command(&[], case.line)).status.success());
        let usual = begun.elapsed();
        for round in (at..rounds).step_by(cases.len()) {
            work.begin(case.from);
            let signal = signals[round / cases.len() % signals.len()];
            let delay = usual.mul_f64(random.below(1100) as f64 / 1000.0);
            let mut is_sent = false;
            let ran = work.run_and(&mut work.command(&[], case.line), |pid, passed| {
                if passed >= delay && !is_sent {
                    is_sent = true;
                    let _ = kill_process_group(pid, signal);
                }
            });
            hit += usize::from(!ran.status.success());
            if let Err(error) = work.judge(case, &reference, may, &ran) {
                wrong.push(format!("{}: {signal:?} after {delay:?} (round {round}): {error}", case.name));
            }
        }
    }
    (hit, wrong)
}

#[test]
fn kill_9_at_any_time() {
    let work = Work::new();
    let cases: Vec<&Case> = TABLE.iter().filter(|case| is_made_here(case)).collect();
    let count = if is_all() { 600 } else { 90 };
    let (hit, wrong) = rounds(&work, &cases, count, 11, &[Signal::KILL], May::Die);
    figures(&format!("kill -9 at random times: {count} runs of {} commands, {hit} killed", cases.len()));
    all_right(&wrong);
    assert!(hit > count / 4, "{hit} of {count}");
}

#[test]
fn interrupts_at_any_time() {
    let work = Work::new();
    let cases: Vec<&Case> = TABLE.iter().filter(|case| is_made_here(case)).collect();
    let count = if is_all() { 600 } else { 72 };
    let (hit, wrong) = rounds(&work, &cases, count, 13, &[Signal::INT, Signal::TERM, Signal::HUP], May::Stop);
    figures(&format!(
        "SIGINT, SIGTERM and SIGHUP at random times: {count} runs of {} commands, {hit} stopped",
        cases.len()
    ));
    all_right(&wrong);
    assert!(hit > count / 4, "{hit} of {count}");
}

/// One after the other on one cache that nobody looks after: what each leaves, the next one has to cope with.
#[test]
fn a_cache_that_many_were_killed_on() {
    let work = Work::new();
    let names = ["make, empty cache", "make, two items", "make, shared tar", "make to a stream", "make from dir:"];
    let cases: Vec<&Case> = TABLE.iter().filter(|case| names.contains(&case.name)).collect();
    let references: Vec<_> = cases.iter().map(|case| work.reference(case)).collect();
    let count = if is_all() { 400 } else { 60 };
    let mut random = Random(17);
    let mut hit = 0;
    work.begin(super::From::Nothing);
    for round in 0..count {
        let case = cases[random.below(cases.len() as u64) as usize];
        let delay = Duration::from_micros(random.below(if case.line.contains("large") { 200_000 } else { 40_000 }));
        let ran = work.run_and(&mut work.command(&[], case.line), |pid, passed| {
            if passed >= delay {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        });
        hit += usize::from(!ran.status.success());
        if round % 10 == 9 {
            for (case, reference) in cases.iter().zip(&references) {
                let ran = work.run(&mut work.command(&[], case.line));
                assert!(ran.status.success() && ran.stdout == reference.stdout, "round {round}: {}", ran.stderr);
                let out = super::tree(&work.world().join("out"));
                let expected = reference.out.get(std::path::Path::new("images.tar"));
                let made = out.get(std::path::Path::new("images.tar"));
                assert!(expected.is_none() || made == expected, "round {round}: {}", case.name);
            }
        }
        if round % 37 == 36 {
            work.succeeds("cache prune -q --cache-dir cache --all");
        }
    }
    figures(&format!("kill -9 on one cache: {count} runs, {hit} killed"));
}
