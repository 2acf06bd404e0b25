//! Adds up the `test result:` lines that libtest prints.
//!
//! In: the output of test executables, in any pieces. Out: one [`Totals`]. Runs nothing.

use std::fmt;
use std::ops::AddAssign;

/// Sum of `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were not run because they are marked so.
    pub ignored: u64,
    /// Benchmarks measured.
    pub measured: u64,
    /// Tests that the filter left out.
    pub filtered_out: u64,
    /// Time in seconds.
    pub seconds: f64,
    /// How many `test result:` lines were added up.
    pub executables: u64,
}

impl Totals {
    /// Reads one line, for instance
    /// `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    /// Anything else is `None`.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let mut totals = Self { executables: 1, ..Self::default() };
        for part in counts.split("; ") {
            if let Some(time) = part.strip_prefix("finished in ") {
                totals.seconds = time.trim_end_matches('s').parse().ok()?;
                continue;
            }
            let (count, name) = part.split_once(' ')?;
            let field = match name {
                "passed" => &mut totals.passed,
                "failed" => &mut totals.failed,
                "ignored" => &mut totals.ignored,
                "measured" => &mut totals.measured,
                "filtered out" => &mut totals.filtered_out,
                _ => return None,
            };
            *field = count.parse().ok()?;
        }
        Some(totals)
    }

    /// Whether nothing failed.
    pub fn ok(&self) -> bool {
        self.failed == 0
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.measured += other.measured;
        self.filtered_out += other.filtered_out;
        self.seconds += other.seconds;
        self.executables += other.executables;
    }
}

/// In libtest's own form.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "test result: {}. {} passed; {} failed; {} ignored; {} measured; {} filtered out; \
             finished in {:.2}s",
            if self.ok() { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            self.measured,
            self.filtered_out,
            self.seconds
        )
    }
}

/// Finds the lines in a stream that arrives in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    totals: Totals,
}

impl Reader {
    /// Takes the next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        for byte in piece {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            if let Some(found) = Totals::parse(&String::from_utf8_lossy(&self.line)) {
                self.totals += found;
            }
            self.line.clear();
        }
    }

    /// The sum so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 2 measured; 3 filtered out; \
                      finished in 1.25s";
    const FAILED: &str = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; \
                          0 filtered out; finished in 0.50s";

    #[test]
    fn what_is_printed_is_what_was_read() {
        for line in [OK, FAILED] {
            assert_eq!(Totals::parse(line).unwrap().to_string(), line);
        }
    }

    #[test]
    fn lines_add_up_however_the_stream_is_cut() {
        let stream = format!("running 3 tests\ntest a ... ok\n\n{OK}\r\n\nnoise\n{FAILED}\n");
        for size in [1, 7, 64, stream.len()] {
            let mut reader = Reader::default();
            stream.as_bytes().chunks(size).for_each(|piece| reader.feed(piece));
            let totals = reader.totals();
            assert_eq!((totals.passed, totals.failed, totals.executables), (13, 2, 2));
            assert_eq!(
                totals.to_string(),
                "test result: FAILED. 13 passed; 2 failed; 1 ignored; 2 measured; 3 filtered out; \
                 finished in 1.75s"
            );
        }
    }

    #[test]
    fn a_test_that_only_talks_about_results_counts_nothing() {
        for line in
            ["test result: ok", "test result: ok. many passed", "a test result: ok. 1 passed"]
        {
            assert_eq!(Totals::parse(line), None, "{line}");
        }
    }
}
