//! Lines out of a byte stream, bounded.
//!
//! In: bytes as they come, split anywhere. Out: whole lines without their ends. No I/O here, and
//! never more memory than one line of the longest allowed length plus one read.

/// The peer sent a line longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {limit} bytes")]
pub(crate) struct LineTooLong {
    /// The longest line that is taken.
    pub(crate) limit: usize,
}

/// What is kept allocated between lines.
const IDLE_CAPACITY: usize = 8 * 1024;

/// Splits a byte stream at `\n`; a `\r` before it belongs to the line's end.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Where the first line that was not handed out begins.
    start: usize,
    /// Up to where no line end was found.
    scanned: usize,
    limit: usize,
}

impl Lines {
    /// Takes lines of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Lines { bytes: Vec::new(), start: 0, scanned: 0, limit }
    }

    /// Where the next bytes of the stream are appended, with room for one read. Whoever appends
    /// must take all lines out before asking for room again, so that the bound holds.
    pub(crate) fn room(&mut self) -> &mut Vec<u8> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.bytes.is_empty() {
            self.bytes.shrink_to(IDLE_CAPACITY);
        }
        self.bytes.reserve(IDLE_CAPACITY / 2);
        &mut self.bytes
    }

    /// The next whole line; `None` until more bytes have come.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let too_long = Err(LineTooLong { limit: self.limit });
        let unseen = self.bytes.get(self.scanned..).unwrap_or_default();
        let Some(length) = unseen.iter().position(|&b| b == b'\n') else {
            self.scanned = self.bytes.len();
            return if self.scanned - self.start > self.limit { too_long } else { Ok(None) };
        };
        let end = self.scanned + length;
        if end - self.start > self.limit {
            return too_long;
        }
        let line = self.start..end;
        self.start = end + 1;
        self.scanned = self.start;
        let line = self.bytes.get(line).unwrap_or_default();
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(lines: &mut Lines) -> Result<Vec<Vec<u8>>, LineTooLong> {
        let mut out = Vec::new();
        while let Some(line) = lines.next_line()? {
            out.push(line.to_vec());
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_the_stream_is_split(
            content in proptest::collection::vec(proptest::collection::vec(
                any::<u8>().prop_filter("no line end", |b| *b != b'\n' && *b != b'\r'), 0..40), 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..60),
            crlf in any::<bool>(),
        ) {
            let end: &[u8] = if crlf { b"\r\n" } else { b"\n" };
            let stream: Vec<u8> = content.iter().flat_map(|l| [l.as_slice(), end].concat()).collect();
            let mut lines = Lines::new(64);
            let mut seen = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.room().extend_from_slice(now);
                seen.extend(drain(&mut lines).unwrap());
                rest = later;
            }
            prop_assert_eq!(seen, content);
        }
    }

    #[test]
    fn a_line_that_never_ends_is_refused_once_it_passes_the_bound() {
        let mut lines = Lines::new(1 << 20);
        let chunk = [b'x'; 4096];
        let mut fed = 0;
        let refused = loop {
            lines.room().extend_from_slice(&chunk);
            fed += chunk.len();
            if let Err(error) = drain(&mut lines) {
                break error;
            }
            assert!(fed < 2 << 20, "more than the bound was taken");
        };
        assert_eq!(refused, LineTooLong { limit: 1 << 20 });
        assert!(lines.bytes.capacity() < 4 << 20);
    }

    #[test]
    fn a_line_of_exactly_the_bound_is_taken() {
        let mut lines = Lines::new(4);
        lines.room().extend_from_slice(b"abcd\nabcde\n");
        assert_eq!(lines.next_line(), Ok(Some(b"abcd".as_slice())));
        assert!(lines.next_line().is_err());
    }

    #[test]
    fn memory_of_a_long_line_is_given_back() {
        let mut lines = Lines::new(1 << 20);
        let mut long = vec![b'x'; 500_000];
        long.push(b'\n');
        lines.room().extend_from_slice(&long);
        assert_eq!(drain(&mut lines).unwrap().len(), 1);
        lines.room();
        assert!(lines.bytes.capacity() <= 2 * IDLE_CAPACITY);
    }
}
