//! Encodes the admission rule of a switchdev program as often as the first argument says, for
//! counting instructions: `valgrind --tool=callgrind target/release/examples/encode 1000`.
//! The difference of two counts is that of the rules alone.

use std::error::Error;

use tc_flows::{
    Action, ChainId, Handle, Hook, Ifindex, Mac, Match, Mode, Op, Owner, Prio, Rule, VlanId,
    VlanTpid, encode,
};

fn main() -> Result<(), Box<dyn Error>> {
    let times: u32 = std::env::args().nth(1).ok_or("how often?")?.parse()?;
    let hook = Hook::ingress(Ifindex::new(7).ok_or("no interface")?);
    let vid = VlanId::new(100).ok_or("no tag")?;
    let rule = Rule::new(
        hook,
        ChainId::ZERO,
        Prio::new(10).ok_or("no prio")?,
        Match::vlan(VlanTpid::Dot1Q, vid).src(Mac([2, 0, 0, 0, 0, 1])),
        [Action::Goto(ChainId::new(5).ok_or("no chain")?)],
    )?;
    let op = [Op::Add { rule, handle: Handle(1) }];
    let mut out = Vec::with_capacity(4096);
    for seq in 0..times {
        out.clear();
        encode(std::hint::black_box(&op), Owner(*b"test"), Mode::Fast, seq, &mut out);
        std::hint::black_box(&out);
    }
    Ok(())
}
