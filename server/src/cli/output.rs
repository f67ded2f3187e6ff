//! The one place that writes to standard output and, for people, to standard error.
//!
//! Invariants: results go to standard output, everything else to standard error; a reader that went away (`| head`)
//! ends the program quietly with exit code 0; there are no colours.

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

    /// Writes a line.
    pub(crate) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        written(writeln!(self.out, "{text}"))
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
        table.add_rows(rows);
        for (index, column) in columns.iter().enumerate() {
            if let Some(set) = table.column_mut(index) {
                set.set_padding((0, 2)).set_cell_alignment(match column {
                    Column::Left(_) => CellAlignment::Left,
                    Column::Right(_) => CellAlignment::Right,
                });
            }
        }
        self.line(table.trim_fmt())
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
    writeln!(io::stderr().lock(), "{text}").ok();
}
