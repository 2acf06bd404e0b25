//! Answers to a batch of changes, in any order, cut, repeated, or of another batch: each change
//! has exactly one outcome, and none succeeded that the kernel did not say so of.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tc_flows::fuzzing::replies(bytes));
