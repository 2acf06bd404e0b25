//! A datagram of the kernel's, whatever it holds: reading it never panics.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tc_flows::fuzzing::datagram(bytes));
