//! What the daemon says, as YAML.
//!
//! In: JSON. Out: the same in blocks (YAML 1.2). Every text is quoted, since `no` or `1e3` without
//! quotes would be none; nothing in it reaches a terminal but printable characters.

use std::io::{self, Write};

use serde_json::Value;

use super::table::is_dangerous;

/// Writes a value, each line after so many blanks.
pub(super) fn write(out: &mut dyn Write, value: &Value, indent: usize) -> io::Result<()> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                write!(out, "{:indent$}{}:", "", key(name))?;
                write_behind(out, value, indent)?;
            }
            Ok(())
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                write!(out, "{:indent$}-", "")?;
                write_behind(out, item, indent)?;
            }
            Ok(())
        }
        scalar => writeln!(out, "{:indent$}{}", "", in_a_line(scalar)),
    }
}

/// Writes what stands behind a key or a dash.
fn write_behind(out: &mut dyn Write, value: &Value, indent: usize) -> io::Result<()> {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    match is_block {
        true => {
            writeln!(out)?;
            write(out, value, indent + 2)
        }
        false => writeln!(out, " {}", in_a_line(value)),
    }
}

fn key(name: &str) -> String {
    let is_word = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        // These are none in YAML 1.1.
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&name);
    if is_word { name.to_owned() } else { quoted(name) }
}

fn in_a_line(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        // Empty lists and objects, numbers, true, false, null are the same in YAML.
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_dangerous(c) => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value = json!({
            "id": "web-1",
            "macs": ["02:aa:00:00:00:01"],
            "none": [], "empty": {}, "on": true, "12": null, "number": -1.5,
            "nested": [[1, [2]], {"a": {"b": "\u{1b}[2J \"quoted\" \\ \u{202e} é no\n"}}],
        });
        let mut text = Vec::new();
        write(&mut text, &value, 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, value, "{text}");
    }
}
