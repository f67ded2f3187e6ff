//! The one place that writes to standard output and, for people, to standard error.
//!
//! Invariants: results go to standard output, everything else to standard error; a reader that went away (`| head`)
//! ends the program quietly with exit code 0; there are no colours; what others have written (names, labels, reasons)
//! cannot steer a terminal: control characters are shown as escapes. JSON escapes them by itself.

use std::{
    fmt::Display,
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::{Failure, Problem};

/// Standard output, locked and buffered.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    out: BufWriter<StdoutLock<'static>>,
}

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Output {
    /// Takes standard output.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: BufWriter::new(io::stdout().lock()) }
    }

    /// Whether programs read it.
    pub(crate) const fn json(&self) -> bool {
        self.json
    }

    /// Writes a line; a line break in it is shown as an escape.
    pub(crate) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        written(writeln!(self.out, "{}", visible(&text.to_string(), "")))
    }

    /// Writes lines.
    pub(crate) fn lines(&mut self, text: impl Display) -> Result<(), Failure> {
        written(writeln!(self.out, "{}", visible(&text.to_string(), "\n")))
    }

    /// Writes one JSON document, indented.
    pub(crate) fn document(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        written(serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from))?;
        self.line("")
    }

    /// Writes one JSON document on one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        written(serde_json::to_writer(&mut self.out, value).map_err(io::Error::from))?;
        self.line("")
    }

    /// Writes a table.
    pub(crate) fn table(
        &mut self,
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|column| match column {
            Column::Left(name) | Column::Right(name) => name.to_uppercase(),
        }));
        table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| visible(cell, "")).collect::<Vec<_>>()));
        for (index, column) in columns.iter().enumerate() {
            if let Some(set) = table.column_mut(index) {
                set.set_padding((0, 2)).set_cell_alignment(match column {
                    Column::Left(_) => CellAlignment::Left,
                    Column::Right(_) => CellAlignment::Right,
                });
            }
        }
        self.lines(table.trim_fmt())
    }

    /// Hands everything to the reader.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        written(self.out.flush())
    }
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| {
        let gone = error.kind() == io::ErrorKind::BrokenPipe;
        if gone { Failure::ReaderGone } else { Problem::new("write standard output").because(&error).into() }
    })
}

/// Whether a person reads standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Says something that is no result.
pub(crate) fn note(text: impl Display) {
    // Nobody can be told that standard error is gone.
    writeln!(io::stderr().lock(), "{}", visible(&text.to_string(), "\n")).ok();
}

/// A text with its control characters as escapes (ESC as `\u{1b}`), except for those that are kept.
fn visible(text: &str, keep: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && !keep.contains(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent_to_the_terminal() {
        let text = "a\u{1b}[2J\u{7}\nb\r\u{9b}1m\u{7f}é";
        assert_eq!(visible(text, ""), r"a\u{1b}[2J\u{7}\nb\r\u{9b}1m\u{7f}é");
        assert_eq!(visible("a\nb\tc", "\n"), "a\nb\\tc");
    }
}
