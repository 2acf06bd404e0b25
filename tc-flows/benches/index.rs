//! How much memory the index of installed rules takes: `Installed` with 100,000 admission rules
//! spread over 100 hooks, heap bytes by an allocator that counts. Prints the bytes a rule beyond
//! the rule's own value.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark, of known good rules"
)]

mod admission;

use tc_flows::{Handle, HwState, Installed, Rule};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

fn main() {
    const RULES: u32 = 100_000;
    let _profiler = dhat::Profiler::builder().testing().build();
    let held = || dhat::HeapStats::get().curr_bytes;
    let rules: Vec<Rule> =
        (1..=RULES).map(|at| admission::admission(1 + at % 100, at).unwrap()).collect();
    let before = held();
    let mut installed = Installed::new();
    for (at, rule) in (0..).zip(&rules) {
        installed.insert(rule.clone(), Handle(1 + at / 100), HwState::InHw);
    }
    let index = (held() - before) as f64 / f64::from(RULES);
    let value = size_of::<Rule>();
    println!("{index:.1} bytes a rule, {value} of them the rule's value, {RULES} rules");
}
