//! How fast rules become netlink messages: many admission rules into one buffer.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark, of known good rules")]

mod admission;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tc_flows::{Handle, Mode, Op, Owner, encode};

fn bench(criterion: &mut Criterion) {
    const RULES: u32 = 1000;
    let ops: Vec<Op> = (1..=RULES)
        .map(|at| Op::Add { rule: admission::admission(7, at).unwrap(), handle: Handle(at) })
        .collect();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(RULES.into()));
    group.bench_function("admission", |bencher| {
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            encode(black_box(&ops), Owner(*b"test"), Mode::Fast, 1, &mut out);
            black_box(&out);
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
