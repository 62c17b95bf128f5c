//! What `?` shows in `interceptor top`: the keys, and what the terms on the screen mean.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout};
use ratatui::style::Stylize;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph};

/// The help fits a terminal of 80 columns and 24 lines.
const WIDTH: u16 = 80;

/// Keys, and terms as an operator needs them.
const ENTRIES: [(&str, &str); 20] = [
    ("Tab, 1 to 5", "the next view, or one of them: files, readers, servers, …"),
    ("s, /, Esc", "sort by the next column; show only rows with a text; show all"),
    ("p, ?, q", "pause; this help; quit (also Ctrl-C)"),
    ("", ""),
    ("hit ratio", "share of the bytes read that came from this host's memory"),
    ("read", "bytes per second that applications read now"),
    ("p50, p99", "half, or 99 of 100, took no longer (reads: to a factor of two)"),
    ("p99 wait", "p99 of what reads of the last minute waited, or wait so far"),
    ("origin saved", "bytes read minus bytes fetched from servers, since the start"),
    ("", ""),
    ("page cache", "the kernel's memory; it answers without asking the mount"),
    ("resident", "whole files in the mount's memory that the kernel reads itself"),
    ("cache", "the mount's memory (--cache-size), shared by all readers"),
    ("disk", "the cache on this host's disk (--disk-cache)"),
    ("verbs", "RDMA from an engine beside a volume server: the fastest way"),
    ("local", "files of a volume server on this host, through its engine"),
    ("tcp", "an engine, without RDMA"),
    ("http", "the volume server itself; works without any engine"),
    ("mount below", "the file system that an attached path covers"),
    ("incidents", "failed fetches, other sources used instead, damaged bytes"),
];

/// Draws the help over what is there.
pub(super) fn draw(frame: &mut Frame) {
    let [area] = Layout::horizontal([Constraint::Max(WIDTH)]).flex(Flex::Center).areas(frame.area());
    let height = ENTRIES.len() as u16 + 2;
    let [area] = Layout::vertical([Constraint::Max(height)]).flex(Flex::Center).areas(area);
    let entry = |(term, text): (&'static str, &'static str)| {
        Line::from(vec![format!("{term:<14}").bold(), Span::raw(text)])
    };
    let lines: Vec<Line> = ENTRIES.into_iter().map(entry).collect();
    let block = Block::bordered().title(" Help: any key closes it ").padding(Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
