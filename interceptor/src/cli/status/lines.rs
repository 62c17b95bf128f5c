//! The lines of `interceptor status`: a name and a figure each, or the row of a table.

use std::fmt::{self, Display};

use crate::cli::fitted_text::columns;

/// Columns of the names of figures.
pub(super) const NAME_WIDTH: usize = 14;

/// Writes a line with a name and a figure.
pub(super) fn line(f: &mut fmt::Formatter<'_>, name: &str, text: impl Display) -> fmt::Result {
    writeln!(f, "{name:<NAME_WIDTH$}{text}")
}

/// Writes a table whose columns are as wide as their widest cell. Columns are aligned right, but
/// for those in `left`.
pub(super) fn table<const COLUMNS: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
    left: &[usize],
) -> fmt::Result {
    let all: Vec<[String; COLUMNS]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| all.iter().map(|row| columns(&row[column])).max().unwrap_or(0));
    for row in &all {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (text, width))| {
            let gap = " ".repeat(width - columns(text));
            if left.contains(&column) { format!("{text}{gap}") } else { format!("{gap}{text}") }
        });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
