//! Fits a table of texts into the width of the screen.

use ratatui::layout::{Alignment, Constraint};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table};

use super::model::TableRows;
use super::view_rows::ColumnFit;
use crate::cli::fitted_text::{columns, cut_middle, wrap};

/// Columns between two columns of the table.
const SPACING: u16 = 2;
/// What a path or a sentence gets before any column of numbers.
const MIN_REST_WIDTH: usize = 12;
/// Lines of a sentence.
const MAX_LINES: usize = 3;

/// The table in `width` columns of the screen. Columns of numbers that do not fit are left out, the
/// last ones first.
pub(super) fn table<'a>(rows: &TableRows, width: u16) -> Table<'a> {
    let heads = heads(rows);
    let width = usize::from(width);
    let mut shown: Vec<usize> = (0..heads.len()).collect();
    let mut widths: Vec<usize> =
        shown.iter().map(|column| natural_width(rows, &heads, *column, width)).collect();
    let room = |widths: &[usize]| {
        width
            .checked_sub(widths.iter().sum::<usize>() + usize::from(SPACING) * widths.len().saturating_sub(1))
    };
    while room(&widths).is_none()
        && let Some(last) = shown.iter().rposition(|column| rows.columns[*column].1 == ColumnFit::Number)
    {
        shown.remove(last);
        widths.remove(last);
    }
    if let Some(rest) = shown.iter().position(|column| is_rest(rows.columns[*column].1)) {
        widths[rest] += room(&widths).unwrap_or(0);
    }
    let head = shown.iter().map(|column| {
        let style = Style::new().add_modifier(Modifier::BOLD);
        let is_sorted = rows.sorted_by == Some(*column);
        let style = if is_sorted { style.add_modifier(Modifier::UNDERLINED) } else { style };
        Cell::new(aligned(vec![heads[*column].clone()], rows.columns[*column].1)).style(style)
    });
    let body = rows.rows.iter().map(|row| {
        let cells: Vec<Vec<String>> = shown
            .iter()
            .zip(&widths)
            .map(|(column, width)| lines(&row[*column], rows.columns[*column].1, *width))
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let cells = shown.iter().zip(cells).map(|(column, text)| aligned(text, rows.columns[*column].1));
        Row::new(cells.map(Cell::new).collect::<Vec<_>>()).height(height as u16)
    });
    let constraints = widths.iter().map(|width| Constraint::Length(*width as u16));
    Table::new(body.collect::<Vec<_>>(), constraints.collect::<Vec<_>>())
        .header(Row::new(head.collect::<Vec<_>>()))
        .column_spacing(SPACING)
}

/// The names of the columns, with a mark at the one that rows are sorted by.
fn heads(rows: &TableRows) -> Vec<String> {
    let mark = |column| if rows.sorted_by == Some(column) { "▼" } else { "" };
    rows.columns.iter().enumerate().map(|(column, (name, _))| format!("{name}{}", mark(column))).collect()
}

fn is_rest(fit: ColumnFit) -> bool {
    matches!(fit, ColumnFit::Path | ColumnFit::Sentence)
}

fn natural_width(rows: &TableRows, heads: &[String], column: usize, width: usize) -> usize {
    let head = columns(&heads[column]);
    let widest = rows.rows.iter().map(|row| columns(&row[column])).max().unwrap_or(0);
    match rows.columns[column].1 {
        ColumnFit::Number => widest.max(head),
        ColumnFit::Name => widest.min(width / 3).max(head),
        ColumnFit::Path | ColumnFit::Sentence => MIN_REST_WIDTH,
    }
}

fn lines(text: &str, fit: ColumnFit, width: usize) -> Vec<String> {
    match fit {
        ColumnFit::Number => vec![text.to_owned()],
        ColumnFit::Name | ColumnFit::Path => vec![cut_middle(text, width)],
        ColumnFit::Sentence => wrap(text, width, MAX_LINES),
    }
}

fn aligned<'a>(lines: Vec<String>, fit: ColumnFit) -> Text<'a> {
    let alignment = if fit == ColumnFit::Number { Alignment::Right } else { Alignment::Left };
    Text::from(lines.into_iter().map(Line::from).collect::<Vec<_>>()).alignment(alignment)
}

#[cfg(test)]
mod tests {
    use ratatui::buffer::Buffer;
    use ratatui::layout::Rect;
    use ratatui::widgets::Widget;

    use super::*;

    const COLUMNS: [(&str, ColumnFit); 4] = [
        ("SERVER", ColumnFit::Name),
        ("P50", ColumnFit::Number),
        ("P99", ColumnFit::Number),
        ("ERROR", ColumnFit::Sentence),
    ];

    fn shown(width: u16) -> Vec<String> {
        let row = ["a:8080", "4.2 ms", "34 ms", "60 s ago: the connection was refused"];
        let rows =
            TableRows { columns: &COLUMNS, rows: vec![row.map(str::to_owned).into()], sorted_by: Some(1) };
        let area = Rect::new(0, 0, width, 4);
        let mut buffer = Buffer::empty(area);
        table(&rows, width).render(area, &mut buffer);
        let lines = buffer.content.chunks(usize::from(width));
        lines
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn numbers_are_aligned_right_and_the_last_column_takes_the_rest() {
        assert_eq!(
            shown(80),
            [
                "SERVER    P50▼    P99  ERROR",
                "a:8080  4.2 ms  34 ms  60 s ago: the connection was refused",
                "",
                ""
            ]
        );
    }

    #[test]
    fn numbers_give_way_to_names_and_sentences() {
        assert_eq!(
            shown(28),
            [
                "SERVER    P50▼  ERROR",
                "a:8080  4.2 ms  60 s ago:",
                "                the",
                "                connection…"
            ]
        );
        assert_eq!(shown(20)[0], "SERVER  ERROR");
    }
}
