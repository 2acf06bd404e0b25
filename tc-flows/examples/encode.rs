//! Encodes the admission rule of a switchdev program as often as the first argument says, for
//! counting instructions: `valgrind --tool=callgrind target/release/examples/encode 1000`.
//! The difference of two counts is that of the rules alone.

#[path = "../benches/admission/mod.rs"]
mod admission;

use std::error::Error;

use tc_flows::{Handle, Mode, Op, Owner, encode};

fn main() -> Result<(), Box<dyn Error>> {
    let times: u32 = std::env::args().nth(1).ok_or("how often?")?.parse()?;
    let rule = admission::admission(7, 1).ok_or("no rule")?;
    let op = [Op::Add { rule, handle: Handle(1) }];
    let mut out = Vec::with_capacity(4096);
    for seq in 0..times {
        out.clear();
        encode(std::hint::black_box(&op), Owner(*b"test"), Mode::Fast, seq, &mut out);
        std::hint::black_box(&out);
    }
    Ok(())
}
