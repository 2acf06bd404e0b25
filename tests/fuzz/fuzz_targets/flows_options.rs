//! The options of a flower filter: what is a rule of ours is the same after it was written and
//! read again.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tc_flows::fuzzing::options(bytes));
