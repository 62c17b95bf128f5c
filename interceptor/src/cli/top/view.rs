//! The screen of `interceptor top`: figures, sources, and below them the chosen table, as much of
//! it as fits.

use daemon::size::ByteSize;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Gauge, Row, Table};

use super::model::{TableRows, TopModel, TopView, rate};
use crate::cli::untrusted::plain;
use crate::telemetry::report::Severity;

/// Width of columns of figures.
const FIGURE_WIDTH: u16 = 12;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, model: &TopModel) {
    let parts = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(10),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(1),
    ];
    let [title, verdict, ratios, cache, sources, tabs, rows, keys] =
        Layout::vertical(parts).areas(frame.area());
    frame.render_widget(title_line(model), title);
    frame.render_widget(verdict_line(model), verdict);
    frame.render_widget(ratatui::widgets::Paragraph::new(ratio_lines(model)), ratios);
    draw_cache(frame, model, cache);
    let widths = [FIGURE_WIDTH, FIGURE_WIDTH, FIGURE_WIDTH, 10, 10, 10].map(Constraint::Length);
    frame.render_widget(table(&model.sources(), &widths), sources);
    frame.render_widget(tab_line(model), tabs);
    let chosen = model.rows();
    frame.render_widget(table(&chosen, &widths_of(model.view())), rows);
    frame.render_widget(key_line(model), keys);
}

fn widths_of(view: TopView) -> Vec<Constraint> {
    match view {
        TopView::Files => {
            vec![Constraint::Length(FIGURE_WIDTH), Constraint::Length(FIGURE_WIDTH), Constraint::Fill(1)]
        }
        TopView::Readers => vec![
            Constraint::Length(FIGURE_WIDTH),
            Constraint::Length(FIGURE_WIDTH),
            Constraint::Length(16),
            Constraint::Fill(1),
        ],
        TopView::Servers => vec![Constraint::Length(28), Constraint::Length(24), Constraint::Fill(1)],
        TopView::Incidents => vec![Constraint::Length(FIGURE_WIDTH), Constraint::Fill(1)],
    }
}

fn title_line(model: &TopModel) -> Line<'_> {
    let report = model.report();
    let filer = match report.filers.is_empty() {
        true => "",
        false => report.current_filer.as_deref().unwrap_or("no filer"),
    };
    let mut line = vec!["interceptor ".bold()];
    // What is out of the ordinary goes first: long names are cut off at the window's edge.
    if model.is_paused() {
        line.push("PAUSED  ".bold().fg(Color::Yellow));
    }
    if let Some(trouble) = model.trouble() {
        line.push(format!("{trouble}  ").fg(Color::Red));
    }
    line.push(Span::raw(format!("{}  {filer}{}", report.mount_point, report.filer_path)));
    Line::from(line)
}

fn verdict_line(model: &TopModel) -> Line<'_> {
    let verdict = &model.report().verdict;
    let color = match verdict.severity {
        Severity::Good => Color::Green,
        Severity::Degraded => Color::Yellow,
        Severity::Bad => Color::Red,
    };
    Line::from(plain(&verdict.text).bold().fg(color))
}

fn ratio_lines(model: &TopModel) -> Vec<Line<'_>> {
    let report = model.report();
    let percent = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{:.1} %", 100.0 * ratio));
    let ratios = report.hit_ratios.get("1m").copied().unwrap_or_default();
    let figure = |name: &str, value: String| [format!("{name} ").dim(), format!("{value}  ").bold()];
    let hits = [
        figure("from memory, 1 min", percent(ratios.overall.or(ratios.cache))),
        figure("page cache", percent(ratios.page_cache)),
        figure("resident", percent(ratios.resident)),
        figure("cache", percent(ratios.cache)),
    ];
    let saved = report.time_saved.seconds.map_or("-".into(), |seconds| format!("~{seconds:.0} s"));
    let outcome = |outcome: &str| {
        let bytes = report.prefetch.iter().filter(|part| part.outcome == outcome).map(|part| part.bytes);
        ByteSize(bytes.sum()).to_string()
    };
    let more = [
        figure("read", model.throughput().map_or("-".into(), rate)),
        figure("saved", saved),
        figure("ahead: used", outcome("used")),
        figure("wasted", outcome("wasted")),
    ];
    [hits, more].map(|figures| figures.into_iter().flatten().collect::<Vec<_>>().into()).into()
}

fn draw_cache(frame: &mut Frame, model: &TopModel, area: Rect) {
    let Some(cache) = &model.report().cache else { return };
    let taken = cache.used + cache.resident;
    let part = if cache.capacity > 0 { taken as f64 / cache.capacity as f64 } else { 0.0 };
    let [used, resident, capacity] = [cache.used, cache.resident, cache.capacity].map(ByteSize);
    let label = format!("cache: blocks {used} + resident files {resident} of {capacity}");
    let gauge = Gauge::default().ratio(part.clamp(0.0, 1.0)).label(label).gauge_style(Color::Cyan);
    frame.render_widget(gauge, area);
}

fn table<'a>(rows: &TableRows, widths: &[Constraint]) -> Table<'a> {
    let head = rows.head.iter().enumerate().map(|(column, name)| {
        let style = Style::new().add_modifier(Modifier::BOLD);
        Cell::new(*name).style(if column == rows.sorted_by { style.fg(Color::Cyan) } else { style })
    });
    let body = rows.rows.iter().map(|row| Row::new(row.iter().cloned().map(Cell::new)));
    Table::new(body, widths.to_vec()).header(Row::new(head)).column_spacing(1)
}

fn tab_line(model: &TopModel) -> Line<'_> {
    let tab = |(number, view): (usize, TopView)| {
        let text = format!(" {number} {} ", view.name());
        if view == model.view() { text.reversed() } else { text.dim() }
    };
    let mut line: Vec<Span> = (1..).zip(TopView::ALL).map(tab).collect();
    if model.is_typing() || !model.filter().is_empty() {
        let cursor = if model.is_typing() { "_" } else { "" };
        line.push(format!("  /{}{cursor}", model.filter()).fg(Color::Yellow));
    }
    Line::from(line)
}

fn key_line(model: &TopModel) -> Line<'_> {
    let keys = if model.is_typing() {
        "Enter keeps the filter  Esc clears it"
    } else {
        "Tab next view  s sort  / filter  p pause  q quit"
    };
    Line::from(keys.dim())
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::model;
    use super::*;

    fn screen(model: &TopModel, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_that_matters_fits_80_by_24() {
        let shown = screen(&model(), 80, 24);
        for part in [
            "changes of the filer are not heard",
            "/mnt/data",
            "from memory, 1 min 0.0 %",
            "page cache",
            "2 MiB/s",
            "READ LATELY",
            "[2J",
            "q quit",
        ] {
            assert!(shown.contains(part), "no {part:?} in:\n{shown}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn any_size_can_be_drawn() {
        let mut model = model();
        for view in TopView::ALL {
            model.show(view);
            for (width, height) in [(1, 1), (10, 3), (40, 10), (300, 100)] {
                screen(&model, width, height);
            }
        }
    }
}
