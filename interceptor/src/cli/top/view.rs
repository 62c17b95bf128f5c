//! The screen of `interceptor top`: the verdict, the mount, four figures, the sources of bytes, and
//! below them the chosen table, as much of it as fits.
//!
//! A terminal of less than [`MIN_FULL_HEIGHT`] lines shows no sparkline, no usage of the cache and
//! fewer sources.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, LineGauge, Paragraph, Sparkline, SparklineBar, Tabs};

use super::help;
use super::model::TopModel;
use super::table::table;
use super::view_rows::TopView;
use crate::cli::figures::{latency, percent, rate, severity_word, signed_size, size};
use crate::cli::fitted_text::{columns, cut_end, cut_middle, wrap};
use crate::cli::untrusted::plain;
use crate::telemetry::report::Severity;

/// Lines of a terminal that has room for everything.
const MIN_FULL_HEIGHT: u16 = 20;
/// Lines of a terminal that has room for a tall sparkline and empty lines.
const MIN_TALL_HEIGHT: u16 = 32;
/// Lines of the sources, their heading included, on a small screen.
const MIN_SOURCE_ROWS: u16 = 3;
/// Lines of the verdict.
const MAX_VERDICT_LINES: usize = 2;
/// Columns in which the four figures stand beside each other.
const MIN_FIGURES_WIDTH: u16 = 76;
/// Widths of the four figures, of 80 columns; other widths are shared in proportion.
const FIGURE_WIDTHS: [u16; 4] = [19, 19, 19, 23];
/// Columns of the names of sparkline and cache.
const LABEL_WIDTH: u16 = 22;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, model: &TopModel) {
    let Rect { width, height, .. } = frame.area();
    let (is_full, is_tall) = (height >= MIN_FULL_HEIGHT, height >= MIN_TALL_HEIGHT);
    let verdict_lines = verdict_lines(model, width);
    let sources = model.sources();
    let figure_rows = if width >= MIN_FIGURES_WIDTH { 1 } else { 2 };
    let source_rows = sources.rows.len() as u16 + if is_full { 2 } else { 1 };
    let heights = [
        verdict_lines.len() as u16,
        1,
        figure_rows,
        if is_tall { 3 } else { u16::from(is_full) },
        u16::from(is_full),
        u16::from(is_tall),
        source_rows.min(if is_full { height / 3 } else { MIN_SOURCE_ROWS }),
        u16::from(is_tall),
        1,
    ];
    let parts =
        heights.map(Constraint::Length).into_iter().chain([Constraint::Fill(1), Constraint::Length(1)]);
    let [verdict, mount, figures, ratios, cache, _, source, _, tabs, rows, keys] =
        Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Paragraph::new(verdict_lines), verdict);
    frame.render_widget(mount_line(model, width), mount);
    draw_figures(frame, model, figures);
    draw_hit_ratios(frame, model, ratios);
    draw_cache(frame, model, cache);
    let [source, others] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(u16::from(is_full))]).areas(source);
    frame.render_widget(table(&sources, width), source);
    frame.render_widget(cut_end(&model.other_sources(), usize::from(width)).dim(), others);
    draw_tabs(frame, model, tabs);
    let chosen = model.rows();
    if chosen.rows.is_empty() && model.filter().is_empty() {
        frame.render_widget(
            Paragraph::new(wrap(model.view().empty_text(model.report()), width.into(), 2).join("\n")).dim(),
            rows,
        );
    } else {
        frame.render_widget(table(&chosen, width), rows);
    }
    frame.render_widget(key_line(model, width), keys);
    if model.shows_help() {
        help::draw(frame);
    }
}

/// What matters most: that the daemon does not answer, or its verdict. The word before it says what
/// the colour says.
fn verdict_lines<'a>(model: &TopModel, width: u16) -> Vec<Line<'a>> {
    let verdict = &model.report().verdict;
    let (severity, word, text) = match model.trouble() {
        Some(trouble) => (Severity::Bad, "NO ANSWER", format!("figures are old: {trouble}")),
        None => (verdict.severity, severity_word(verdict.severity), verdict.text.clone()),
    };
    let color = match severity {
        Severity::Good => Color::Green,
        Severity::Degraded => Color::Yellow,
        Severity::Bad => Color::Red,
    };
    let mark = format!(" {word} ");
    let indent = columns(&mark) + 1;
    // More is not shown, and wrapping it takes time.
    let text: String = text.chars().take(MAX_VERDICT_LINES * usize::from(width)).collect();
    let lines = wrap(&plain(&text), usize::from(width).saturating_sub(indent).max(1), MAX_VERDICT_LINES);
    let line = |(number, text): (usize, String)| {
        let mark = match number {
            0 => mark.clone().bold().reversed().fg(color),
            _ => " ".repeat(columns(&mark)).into(),
        };
        Line::from(vec![mark, " ".into(), text.bold().fg(color)])
    };
    lines.into_iter().enumerate().map(line).collect()
}

fn mount_line<'a>(model: &TopModel, width: u16) -> Line<'a> {
    let report = model.report();
    let source = match (report.filers.is_empty(), &report.current_filer) {
        (true, _) => "over the mount below".to_owned(),
        (false, Some(filer)) => format!("of {filer}{}", report.filer_path),
        (false, None) => format!("of no filer, {}", report.filer_path),
    };
    let pause = if model.is_paused() { " PAUSED (p) " } else { "" };
    let room = usize::from(width).saturating_sub(columns(pause) + 1);
    let text = cut_middle(&plain(&format!("{} {source}", report.mount_point)), room);
    let gap = " ".repeat(usize::from(width).saturating_sub(columns(&text) + columns(pause)));
    Line::from(vec![text.into(), gap.into(), pause.bold().reversed().fg(Color::Yellow)])
}

/// The four figures, beside each other, or two and two.
fn draw_figures(frame: &mut Frame, model: &TopModel, area: Rect) {
    let report = model.report();
    let waits = report.read_waits.get("1m").and_then(|waits| waits.p99_seconds);
    let figures = [
        ("hit ratio ", percent(model.hit_ratio())),
        ("read ", model.throughput().map_or("-".into(), rate)),
        ("p99 wait ", latency(waits)),
        ("origin saved ", signed_size(report.origin_bytes_saved)),
    ];
    let rows = usize::from(area.height.max(1));
    let lines = Layout::vertical(vec![Constraint::Length(1); rows]).split(area);
    let in_row = figures.len().div_ceil(rows);
    for ((figures, widths), line) in
        figures.chunks(in_row).zip(FIGURE_WIDTHS.chunks(in_row)).zip(lines.iter())
    {
        let places = Layout::horizontal(widths.iter().map(|width| Constraint::Fill(*width))).split(*line);
        for ((name, value), place) in figures.iter().zip(places.iter()) {
            frame.render_widget(Line::from(vec![name.dim(), value.as_str().bold()]), *place);
        }
    }
}

/// The hit ratio of the last minutes. The lowest bar means no hit; no bar means no read.
fn draw_hit_ratios(frame: &mut Frame, model: &TopModel, area: Rect) {
    let parts = [Constraint::Length(LABEL_WIDTH), Constraint::Fill(1), Constraint::Length(7)];
    let [name, bars, scale] = Layout::horizontal(parts).areas(area);
    frame.render_widget("hit ratio, last 5 min".dim(), name);
    let top = u64::from(bars.height) * 8;
    let bar = |ratio: Option<f64>| {
        SparklineBar::from(ratio.map(|ratio| 1 + (ratio * top.saturating_sub(1) as f64).round() as u64))
    };
    let ratios = model.hit_ratio_bars(usize::from(bars.width));
    let sparkline = Sparkline::default().data(ratios.into_iter().map(bar)).max(top).fg(Color::Cyan);
    frame.render_widget(sparkline, bars);
    let scales = if area.height < 3 { vec![" 0-100%"] } else { vec!["  100 %", "", "    0 %"] };
    frame.render_widget(Paragraph::new(scales.join("\n")).dim(), scale);
}

fn draw_cache(frame: &mut Frame, model: &TopModel, area: Rect) {
    let Some(cache) = &model.report().cache else { return };
    let taken = cache.used + cache.resident;
    let part = if cache.capacity > 0 { taken as f64 / cache.capacity as f64 } else { 0.0 };
    let [used, resident, capacity] = [cache.used, cache.resident, cache.capacity].map(size);
    let label = format!("cache: {used} blocks + {resident} resident files of {capacity}");
    let gauge = LineGauge::default()
        .ratio(part.clamp(0.0, 1.0))
        .label(label.dim())
        .filled_symbol(symbols::line::THICK_HORIZONTAL)
        .unfilled_symbol(symbols::line::HORIZONTAL)
        .filled_style(Style::new().fg(Color::Cyan))
        .unfilled_style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(gauge, area);
}

/// The tabs on a line; where their names do not fit, only the chosen one has its name.
fn draw_tabs(frame: &mut Frame, model: &TopModel, area: Rect) {
    let findings = model.report().verdict.findings.len();
    let name = |view: TopView, is_long: bool| {
        let number = view as usize + 1;
        match view {
            _ if view != model.view() && !is_long => number.to_string(),
            TopView::Findings if findings > 0 => format!("{number} {} ({findings})", view.name()),
            _ => format!("{number} {}", view.name()),
        }
    };
    let titles = |is_long: bool| {
        let title = |view: TopView| match view == model.view() {
            true => format!("┤ {} ├", name(view, is_long)),
            false => format!("  {}  ", name(view, is_long)),
        };
        TopView::ALL.map(title)
    };
    let long = titles(true);
    let fits = long.iter().map(|title| columns(title) + 1).sum::<usize>() < usize::from(area.width);
    let titles = if fits { long } else { titles(false) };
    frame.render_widget(Block::new().borders(Borders::TOP).border_style(Style::new().dim()), area);
    let tabs = Tabs::new(titles)
        .select(model.view() as usize)
        .highlight_style(Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED))
        .padding("", "")
        .divider("─".dim());
    frame.render_widget(tabs, area);
}

fn key_line<'a>(model: &TopModel, width: u16) -> Line<'a> {
    let mut text = String::new();
    if model.is_typing() {
        text = format!("/{}_  Enter keeps the filter  Esc clears it", plain(model.filter()));
        return Line::from(cut_end(&text, width.into()).bold());
    }
    let filter = match model.filter() {
        "" => String::new(),
        filter => format!("Esc ends /{}", plain(filter)),
    };
    let keys = ["Tab next view", "? help", "q quit", "/ filter", "s sort", "p pause", &filter];
    for key in keys.into_iter().filter(|key| !key.is_empty()) {
        let gap = if text.is_empty() { "" } else { "  " };
        if columns(&text) + columns(gap) + columns(key) <= usize::from(width) {
            text += gap;
            text += key;
        }
    }
    Line::from(Span::from(text).dim())
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
        let first = shown.lines().next().unwrap();
        assert!(first.contains(" DEGRADED  Serving 75 % from memory; changes of the filer are"), "{shown}");
        for part in [
            "/mnt/data of no filer",
            "hit ratio 75 %",
            "read 8 MiB/s",
            "p99 wait 4.2 ms",
            "origin saved 16 MiB",
            "not observed: page cache, resident",
            "┤ 1 Files ├",
            "5 Findings (1)",
            "READ LATELY",
            "[2J",
            "q quit",
        ] {
            assert!(shown.contains(part), "no {part:?} in:\n{shown}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn a_daemon_that_does_not_answer_takes_the_place_of_the_verdict() {
        let mut model = model();
        model.answered(Err(anyhow::anyhow!("nothing listens there")));
        assert!(screen(&model, 80, 24).contains(" NO ANSWER  figures are old: nothing listens there"));
    }

    #[test]
    fn the_help_fits_80_by_24() {
        let mut model = model();
        model.show_help(true);
        let shown = screen(&model, 80, 24);
        for part in ["any key closes it", "page cache", "damaged bytes", "(reads: to a factor of two)"] {
            assert!(shown.contains(part), "no {part:?} in:\n{shown}");
        }
    }

    #[test]
    fn any_size_can_be_drawn() {
        let mut model = model();
        for view in TopView::ALL {
            model.show(view);
            for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 24), (300, 100)] {
                for shows_help in [false, true] {
                    model.show_help(shows_help);
                    screen(&model, width, height);
                }
            }
        }
    }

    #[test]
    fn a_narrow_screen_names_the_chosen_tab() {
        let mut model = model();
        model.show(TopView::Servers);
        let shown = screen(&model, 40, 12);
        assert!(shown.contains("1  ─  2  ─┤ 3 Servers ├─  4"), "{shown}");
        assert!(shown.lines().last().unwrap().contains("Tab next view"), "{shown}");
    }
}
