//! Screens of `eswitchctl`, as a real terminal shows them.
//!
//! In: a command line, run by a shell inside tmux. Out: what stands on the terminal then, as text
//! and as SVG. Bold and reverse are kept, which is all that `eswitchctl` uses.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use crate::{At, Error, Result, demo::Demo, net};

/// Columns and lines of the terminal.
const SIZE: (usize, usize) = (160, 40);

/// How long a screen may take to stand.
const LIMIT: Duration = Duration::from_secs(30);

/// What the shell shows when it waits.
const PROMPT: &str = "$";

/// A terminal with a shell in it, gone with this.
#[derive(Debug)]
pub struct Terminal {
    /// The name of a tmux server of its own.
    server: String,
}

/// What stood on a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen(Vec<Vec<Span>>);

/// Characters of one line that look alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Span {
    text: String,
    bold: bool,
    reverse: bool,
}

impl Terminal {
    /// Opens a terminal of this name, which no other has at the moment.
    ///
    /// # Errors
    /// tmux is missing, or its shell does not come.
    pub fn open(name: &str) -> Result<Terminal> {
        let terminal = Terminal { server: format!("eswitchd-{name}") };
        let (columns, lines) = SIZE;
        let size = ["-x", &columns.to_string(), "-y", &lines.to_string()];
        let shell = format!("env 'PS1={PROMPT} ' sh");
        terminal.tmux(&[&["new-session", "-d"], &size[..], &[&shell]].concat())?;
        terminal.until("a prompt", |screen| screen.last_line() == PROMPT)?;
        Ok(terminal)
    }

    /// Types a line and Enter.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn enter(&self, line: &str) -> Result<()> {
        self.type_keys(line)?;
        self.tmux(&["send-keys", "Enter"]).map(drop)
    }

    /// Types single keys.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_keys(&self, keys: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", keys]).map(drop)
    }

    /// What stands there at the moment.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<Screen> {
        Ok(Screen::read(&self.tmux(&["capture-pane", "-e", "-p"])?))
    }

    /// Waits until what stands there is as told; what that is.
    ///
    /// # Errors
    /// It never is: the last that stood there is in the message.
    pub fn until(&self, awaited: &str, fits: impl Fn(&Screen) -> bool) -> Result<Screen> {
        let mut last = Screen(Vec::new());
        let found = net::wait_for(awaited, LIMIT, || {
            last = self.screen().ok()?;
            fits(&last).then(|| last.clone())
        });
        found.map_err(|error| Error::Format { what: error.to_string(), text: last.text() })
    }

    /// Has the shell carry out a command; what stands there when it has ended, but for the prompt.
    ///
    /// # Errors
    /// The command does not end in time.
    pub fn shown(&self, command: &str) -> Result<Screen> {
        self.enter(command)?;
        let typed = format!("{PROMPT} {command}");
        // A long line goes on in the next.
        let typed: String = typed.chars().take(SIZE.0).collect();
        let mut screen = self.until(command, |screen| {
            screen.last_line() == PROMPT && screen.text().lines().any(|line| line == typed)
        })?;
        screen.0.pop();
        Ok(screen)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let server = ["-u", "-f", "/dev/null", "-L", &self.server];
        net::command("tmux", server.iter().chain(arguments))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.tmux(&["kill-server"]);
    }
}

impl Screen {
    /// Reads what `tmux capture-pane -e` prints: text with SGR sequences (ECMA-48, 8.3.117).
    fn read(printed: &str) -> Screen {
        let mut lines = Vec::new();
        let mut look = Span::default();
        for line in printed.lines() {
            let mut spans = Vec::new();
            let mut rest = line;
            while let Some((before, sequence)) = rest.split_once("\x1b[") {
                look.append(before, &mut spans);
                let (codes, behind) = sequence.split_once('m').unwrap_or((sequence, ""));
                codes.split(';').for_each(|code| look.change(code));
                rest = behind;
            }
            look.append(rest, &mut spans);
            if let Some(last) = spans.last_mut()
                && !last.reverse
            {
                last.text.truncate(last.text.trim_end().len());
            }
            spans.retain(|span| !span.text.is_empty());
            lines.push(spans);
        }
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        Screen(lines)
    }

    /// The text alone, without what is empty at its end.
    pub fn text(&self) -> String {
        let line = |spans: &Vec<Span>| {
            let line: String = spans.iter().map(|span| span.text.as_str()).collect();
            line.trim_end().to_owned() + "\n"
        };
        self.0.iter().map(line).collect()
    }

    fn last_line(&self) -> String {
        self.text().lines().last().unwrap_or_default().to_owned()
    }

    /// A picture of it, as wide as the terminal.
    pub fn svg(&self) -> String {
        /// A character cell, in pixels; the first line's base is at `BASE`.
        const CELL: (f64, f64) = (8.0, 18.0);
        const BASE: f64 = 13.0;
        const MARGIN: f64 = 10.0;
        let (width, height) =
            (2.0 * MARGIN + SIZE.0 as f64 * CELL.0, 2.0 * MARGIN + self.0.len() as f64 * CELL.1);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#1b1f24\"/>\n"
        );
        for (row, spans) in self.0.iter().enumerate() {
            let top = MARGIN + row as f64 * CELL.1;
            let mut left = MARGIN;
            for Span { text, bold, reverse } in spans {
                let wide = text.chars().count() as f64 * CELL.0;
                let colour = if *reverse { "#1b1f24" } else { "#e6edf3" };
                // Writing to a String cannot fail.
                if *reverse {
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{}\" \
                         fill=\"#e6edf3\"/>",
                        CELL.1
                    );
                }
                if !text.trim().is_empty() {
                    let weight = if *bold { " font-weight=\"bold\"" } else { "" };
                    let _ = writeln!(
                        svg,
                        "<text x=\"{left}\" y=\"{}\" textLength=\"{wide}\" \
                         lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\" \
                         fill=\"{colour}\"{weight}>{}</text>",
                        top + BASE,
                        escaped(text)
                    );
                }
                left += wide;
            }
        }
        svg + "</svg>\n"
    }

    /// Keeps it in a folder, as `NAME.txt` and `NAME.svg`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, folder: &Path, name: &str) -> Result<()> {
        for (ending, content) in [("txt", self.text()), ("svg", self.svg())] {
            let file = folder.join(format!("{name}.{ending}"));
            fs::write(&file, content).at(format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

impl Span {
    /// Notes one code of an SGR sequence. Colours are not kept.
    fn change(&mut self, code: &str) {
        match code {
            "" | "0" => (self.bold, self.reverse) = (false, false),
            "1" => self.bold = true,
            "22" => self.bold = false,
            "7" => self.reverse = true,
            "27" => self.reverse = false,
            _ => {}
        }
    }

    /// Text that looks like this, where there is any.
    fn append(&self, text: &str, to: &mut Vec<Span>) {
        if !text.is_empty() {
            to.push(Span { text: text.to_owned(), ..self.clone() });
        }
    }
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Keeps the screens of the documentation in a folder: from a demo that has run, with frames between
/// its guests, and with one of them asking for what it may not have.
///
/// # Errors
/// A command shows something else than it should.
pub fn of_demo(demo: &mut Demo<'_>, folder: &Path) -> Result<()> {
    demo.ping_on()?;
    let terminal = Terminal::open("top")?;
    terminal.enter("eswitchctl top")?;
    let moving = |line: &str| {
        let mut cells = line.split_whitespace();
        matches!(cells.next(), Some("a" | "b")) && cells.next().is_some_and(|rate| rate != "0")
    };
    let top = terminal.until("both ports receive", |screen| {
        screen.text().lines().filter(|line| moving(line)).count() == 2
    })?;
    top.keep(folder, "top")?;
    drop(terminal);

    let trace = format!(
        "eswitchctl trace --from port/b --dst-mac {} --ip 10.77.0.2,10.77.0.1 --icmp 8,0",
        demo.mac(0)
    );
    kept(folder, "trace", &trace, "result:")?;
    demo.steal()?;
    kept(folder, "status", "eswitchctl status", "degraded")?;
    kept(folder, "explain", "eswitchctl explain port b", "planned")
}

/// Keeps what a command leaves on a terminal, which has to say this.
fn kept(folder: &Path, name: &str, command: &str, says: &str) -> Result<()> {
    let screen = Terminal::open(name)?.shown(command)?;
    if screen.text().contains(says) {
        return screen.keep(folder, name);
    }
    let what = format!("`{command}`, which does not say `{says}`");
    Err(Error::Format { what, text: screen.text() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tmux_prints_is_text_with_its_look() {
        let screen = Screen::read("\x1b[1mtitle\x1b[0m  \n\n\x1b[7mHEAD \x1b[0m\nrow   \n\n\n");
        assert_eq!(screen.text(), "title\n\nHEAD\nrow\n");
        let look = |line: usize| (screen.0[line][0].bold, screen.0[line][0].reverse);
        assert_eq!((look(0), look(2), look(3)), ((true, false), (false, true), (false, false)));
        assert_eq!(screen.0[2][0].text, "HEAD ", "a bar is as long as it was");
    }

    #[test]
    fn a_look_goes_on_in_the_next_line_until_it_ends() {
        let screen = Screen::read("\x1b[1mone\ntwo\x1b[22m three\n");
        let bold: Vec<bool> = screen.0.concat().iter().map(|span| span.bold).collect();
        assert_eq!(bold, [true, true, false]);
    }

    #[test]
    fn a_picture_has_every_span_where_it_stood_and_no_markup_of_its_text() {
        let svg = Screen::read("a <b>\n\x1b[7mHEAD\x1b[0m&").svg();
        assert!(svg.contains(">a &lt;b&gt;</text>") && svg.contains(">&amp;</text>"), "{svg}");
        assert!(svg.contains("<rect x=\"10\" y=\"28\" width=\"32\""), "{svg}");
        assert!(svg.contains("<text x=\"42\" y=\"41\" textLength=\"8\""), "{svg}");
    }
}
