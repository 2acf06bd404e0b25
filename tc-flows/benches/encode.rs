//! How fast rules become netlink messages: the admission rule of a switchdev program (a VLAN tag
//! and a source MAC lead to a chain), many of them into one buffer.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark, of known good rules")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tc_flows::{
    Action, ChainId, Handle, Hook, Ifindex, Mac, Match, Mode, Op, Owner, Prio, Rule, VlanId,
    VlanTpid, encode,
};

fn admissions(count: u32) -> Vec<Op> {
    let hook = Hook::ingress(Ifindex::new(7).unwrap());
    (1..=count)
        .map(|at| {
            let [_, b, c, d] = at.to_be_bytes();
            let matching = Match::vlan(VlanTpid::Dot1Q, VlanId::new(100).unwrap())
                .src(Mac([2, 0, 0, b, c, d]));
            let actions = [Action::Goto(ChainId::new(5).unwrap())];
            let rule =
                Rule::new(hook, ChainId::ZERO, Prio::new(10).unwrap(), matching, actions).unwrap();
            Op::Add { rule, handle: Handle(at) }
        })
        .collect()
}

fn bench(criterion: &mut Criterion) {
    const RULES: u32 = 1000;
    let ops = admissions(RULES);
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
