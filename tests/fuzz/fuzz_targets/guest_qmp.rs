//! What comes out of a guest's QMP socket, in two reads: whatever it is, and whatever it answers to
//! what is asked, the observer of guests never panics.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| controller::observe::guest::fuzz_qmp(bytes));
