//! A terminal that is painted on.
//!
//! In: lines. Out: a screen that shows them, and keys. Whatever ends the command, the terminal is
//! afterwards as it was before.

use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc::Sender;

/// What Ctrl-C sends (`termios(3)`, VINTR) while the terminal makes no signal of it.
pub(super) const INTERRUPT: u8 = 3;

/// What is in force while this lives: keys without a line's end, the other screen, no cursor.
pub(super) struct Screen(Termios);

impl Screen {
    pub(super) fn take() -> io::Result<Screen> {
        let before = tcgetattr(io::stdin())?;
        let mut keys = before.clone();
        keys.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(io::stdin(), OptionalActions::Now, &keys)?;
        let screen = Screen(before);
        io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs none of it.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Sends each key that is typed from now on. The thread ends with the process.
pub(super) fn send_keys(keys: Sender<u8>) {
    std::thread::spawn(move || {
        for key in io::stdin().lock().bytes() {
            let Ok(key) = key else { break };
            if keys.blocking_send(key).is_err() {
                break;
            }
        }
    });
}

/// Lines and columns.
pub(super) fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => (24, 80),
    }
}

/// Shows these lines and nothing else. With `colours` the first is bold and the head of the table,
/// behind an empty line, in reverse.
pub(super) fn paint(out: &mut dyn Write, lines: &[String], colours: bool) -> io::Result<()> {
    let mut text = String::from("\x1b[H");
    let mut after_blank = false;
    for (at, line) in lines.iter().enumerate() {
        let colour = match (at, after_blank) {
            (0, _) => "\x1b[1m",
            (_, true) => "\x1b[7m",
            _ => "",
        };
        after_blank = line.is_empty();
        // No line's end behind the last: the screen would scroll.
        let end = if at + 1 < lines.len() { "\r\n" } else { "" };
        match colours && !colour.is_empty() {
            true => text.push_str(&format!("{colour}{line}\x1b[0m\x1b[K{end}")),
            false => text.push_str(&format!("{line}\x1b[K{end}")),
        }
    }
    text.push_str("\x1b[J");
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_painted_over_the_one_before_without_scrolling() {
        let lines = ["title", "", "HEAD", "row"].map(str::to_owned);
        let painted = |colours| {
            let mut out = Vec::new();
            paint(&mut out, &lines, colours).unwrap();
            String::from_utf8(out).unwrap()
        };
        let plain = "\x1b[Htitle\x1b[K\r\n\x1b[K\r\nHEAD\x1b[K\r\nrow\x1b[K\x1b[J";
        assert_eq!(painted(false), plain);
        assert!(painted(true).contains("\x1b[1mtitle\x1b[0m"));
        assert!(painted(true).contains("\x1b[7mHEAD\x1b[0m"));
    }
}
