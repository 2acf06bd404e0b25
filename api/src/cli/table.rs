//! Tables of text.
//!
//! In: rows of cells. Out: aligned columns. Cells come from the daemon, and partly from guests:
//! nothing in them reaches the terminal but printable characters.

use std::{
    borrow::Cow,
    io::{self, Write},
};

/// Blanks between two columns.
const GAP: usize = 2;

/// A text whose control characters are escaped.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    match text.contains(is_dangerous) {
        false => Cow::Borrowed(text),
        true => text
            .chars()
            .map(|c| match is_dangerous(c) {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            })
            .collect::<String>()
            .into(),
    }
}

/// Controls, and what reorders text.
pub(super) fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text, or a dash for none.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map(|text| text.to_string()).filter(|text| !text.is_empty()).unwrap_or("-".to_owned())
}

/// Writes a table, each line after `indent`. The last column is as wide as it is.
pub(super) fn write<const N: usize>(
    out: &mut dyn Write,
    indent: &str,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head)
        .chain(rows)
        .map(|row| row.map(|cell| printable(&cell).into_owned()))
        .collect();
    let widths: Vec<_> = (0..N)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + GAP - cell.chars().count()));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let mut out = Vec::new();
        let rows = [["é".to_owned(), "1".to_owned()], ["long".to_owned(), String::new()]];
        write(&mut out, "", ["A", "B"], rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A     B\né     1\nlong\n");
    }

    #[test]
    fn a_guest_cannot_write_to_the_terminal() {
        assert_eq!(printable("\u{1b}[2Jx\ny"), "\\u{1b}[2Jx\\ny");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(printable("größe 3 µs"), "größe 3 µs");
    }
}
