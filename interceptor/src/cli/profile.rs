//! `interceptor profile`: what is asked of a mount, by operation, file and process.
//!
//! The daemon of the mount counts while this runs (`/api/v1/profile`), and sends the totals every
//! second. A terminal shows each; the last ones are printed at the end. After Ctrl-C those are
//! the next that the daemon sends, which have all that was counted until then. What the kernel
//! answers from its caches or by passthrough never comes to the daemon, and so is not counted.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum, ValueHint};
use daemon::size::ByteSize;
use daemon::{duration, output};
use ratatui::crossterm::terminal;
use serde_json::json;

use super::http::StatusClient;
use super::server_events::{ServerEvents, events_of};
use super::signals::noted_signals;
use super::trace::{POLL_INTERVAL, TIMES};
use super::untrusted::plain;
use crate::telemetry::profile::{PROFILE, ProfileEvent, SNAPSHOT_INTERVAL};
use crate::telemetry::request_profile::{ProfileReport, ProfileRow, Usage};
use crate::telemetry::trace::END;

/// How many rows of a table are printed. `--json` prints all.
const MAX_ROWS: usize = 20;

/// How long totals are waited for after Ctrl-C.
const LAST_TOTALS_TIMEOUT: Duration = SNAPSHOT_INTERVAL.saturating_mul(2);

/// Counts what is asked of a mount.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("mount_point", |path| path
    .value_name("PATH")
    .value_hint(ValueHint::AnyPath)
    .help("A file or directory in a mount, such as its mount point; without it, all of the mount of --status-addr")))]
pub(super) struct ProfileOptions {
    /// Which daemon.
    #[command(flatten)]
    daemon: StatusClient,

    /// How long, from 1s to 60m; Ctrl-C ends it earlier
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = |text: &str| duration::within(text, TIMES))]
    time: Duration,

    /// Show one table only
    #[arg(long, value_name = "WHAT")]
    by: Option<ProfileTable>,

    /// Print the totals as one JSON document, with all rows of all tables
    #[arg(long)]
    json: bool,
}

/// What requests are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileTable {
    Operation,
    File,
    Process,
}

/// Shows the totals while they grow, and prints the last ones.
pub(super) fn run(options: &ProfileOptions) -> anyhow::Result<ExitCode> {
    let (client, inside) = daemon_and_path(&options.daemon)?;
    let events = events_of(&client, "/api/v1/profile", &inside, options.time, &[]);
    let events = events.with_context(|| format!("the daemon at {}", client.address))?;
    output::note(format_args!("counting requests for {:?}", options.time));
    let interrupted = noted_signals()?;
    let (sender, totals) = sync_channel(1);
    let reading = thread::Builder::new().name("events".into());
    let reading = reading.spawn(move || take_events(events, &sender))?;
    let tables = options.by.as_ref().map_or(ProfileTable::value_variants(), std::slice::from_ref);
    let mut live = (!options.json && io::stdout().is_terminal()).then(LiveView::default);
    let last = last_totals(&totals, &interrupted, |profile| match &mut live {
        Some(live) => Ok(output::print(live.frame(profile, tables))?),
        None => Ok(()),
    })?;
    if let Some(ProfileEvent { profile, is_early }) = last {
        let clear = live.map_or(String::new(), |live| live.clear());
        if options.json {
            output::print(format_args!("{}\n", json!(profile)))?;
        } else {
            output::print(format_args!("{clear}{}", text(&profile, tables, MAX_ROWS)))?;
        }
        if is_early {
            output::note(
                "ended early: there are too many profiles of this mount, and a later one took this place",
            );
        }
    }
    if !interrupted.load(Ordering::Relaxed) {
        reading.join().map_err(|_| anyhow!("a thread has panicked"))??;
    }
    Ok(ExitCode::SUCCESS)
}

/// The daemon that is asked, and the path from the root of its mount on, which is empty for all.
fn daemon_and_path(daemon: &StatusClient) -> anyhow::Result<(StatusClient, PathBuf)> {
    let Some(path) = &daemon.mount_point else { return Ok((daemon.clone(), PathBuf::new())) };
    let (client, place) = daemon.for_place(path)?;
    Ok((client, place.path))
}

/// Passes totals on as they come, to the last ones.
fn take_events(mut events: ServerEvents<impl Read>, totals: &SyncSender<ProfileEvent>) -> anyhow::Result<()> {
    loop {
        let (name, data) = events.next()?;
        let is_last = name == END;
        if is_last || name == PROFILE {
            let event = serde_json::from_str(data).context("the daemon sent no profile")?;
            // Fails if nobody waits any more.
            if totals.send(event).is_err() || is_last {
                return Ok(());
            }
        }
    }
}

/// Shows totals until the daemon has sent the last ones or a signal comes. Returns the last ones
/// that came.
fn last_totals(
    totals: &Receiver<ProfileEvent>,
    interrupted: &AtomicBool,
    mut show: impl FnMut(&ProfileReport) -> anyhow::Result<()>,
) -> anyhow::Result<Option<ProfileEvent>> {
    let (mut last, mut deadline) = (None, None);
    loop {
        if deadline.is_none() && interrupted.load(Ordering::Relaxed) {
            deadline = Some(Instant::now() + LAST_TOTALS_TIMEOUT);
        }
        match totals.recv_timeout(POLL_INTERVAL) {
            Ok(event) if deadline.is_some() => return Ok(Some(event)),
            Ok(event) => {
                show(&event.profile)?;
                last = Some(event);
            }
            Err(RecvTimeoutError::Timeout) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            Err(_) => return Ok(last),
        }
    }
}

/// Tables on a terminal, each in place of the one before.
#[derive(Debug, Default)]
struct LiveView {
    lines: usize,
}

impl LiveView {
    fn frame(&mut self, profile: &ProfileReport, tables: &[ProfileTable]) -> String {
        let height = terminal::size().map_or(24, |(_, height)| usize::from(height));
        // The first line and the last; of each table a gap, the names of columns, and others.
        let rows = (height.saturating_sub(2) / tables.len()).saturating_sub(3).clamp(1, MAX_ROWS);
        let text = text(profile, tables, rows);
        let clear = self.clear();
        self.lines = text.lines().count();
        // Without wrapping, so that a line stays one.
        format!("{clear}\x1b[?7l{text}\x1b[?7h")
    }

    /// Goes to where the tables begin, and takes them away.
    fn clear(&self) -> String {
        match self.lines {
            0 => String::new(),
            lines => format!("\r\x1b[{lines}A\x1b[J"),
        }
    }
}

fn text(profile: &ProfileReport, tables: &[ProfileTable], max_rows: usize) -> String {
    let mut all = Usage::default();
    profile.operations.iter().for_each(|row| all.add(&row.usage));
    let (bytes, seconds) = (ByteSize(all.bytes), profile.seconds);
    let mut text = format!("{} requests in {seconds:.1} s, {bytes}\n", all.count);
    for table in tables {
        let (title, rows, others) = match table {
            ProfileTable::Operation => ("operation", &profile.operations, Usage::default()),
            ProfileTable::File => ("file", &profile.files, profile.other_files),
            ProfileTable::Process => ("process", &profile.processes, profile.other_processes),
        };
        let (shown, hidden) = rows.split_at(rows.len().min(max_rows));
        let mut others = others;
        hidden.iter().for_each(|row| others.add(&row.usage));
        // Names come last, as nothing bounds their width.
        _ = writeln!(
            text,
            "\n{:>9}  {:>10}  {:>12}  {:>13}  {title}",
            "requests", "bytes", "time", "average"
        );
        shown.iter().for_each(|row| text += &line(&row.usage, &shown_name(row)));
        if others.count > 0 {
            text += &line(&others, "others");
        }
    }
    text
}

fn line(usage: &Usage, name: &str) -> String {
    let Usage { count, bytes, seconds } = *usage;
    let average = seconds * 1e3 / count.max(1) as f64;
    let bytes = ByteSize(bytes).to_string();
    format!("{count:>9}  {bytes:>10}  {seconds:>10.3} s  {average:>10.3} ms  {name}\n")
}

fn shown_name(row: &ProfileRow) -> String {
    match (row.name.as_str(), row.pid) {
        ("", Some(pid)) => format!("unknown[{pid}]"),
        (name, Some(pid)) => format!("{}[{pid}]", plain(name)),
        (name, None) => plain(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, pid: Option<u32>, count: u64) -> ProfileRow {
        let usage = Usage { count, bytes: count * 1024, seconds: 0.5 };
        ProfileRow { name: name.into(), pid, usage }
    }

    fn profile() -> ProfileReport {
        ProfileReport {
            seconds: 2.0,
            operations: vec![row("read", None, 3), row("getattr", None, 1)],
            files: vec![row("/a/\u{1b}[2Jfile", None, 3)],
            other_files: Usage { count: 1, ..Usage::default() },
            processes: vec![row("cat", Some(7), 3), row("", Some(0), 1)],
            other_processes: Usage::default(),
        }
    }

    #[test]
    fn tables_have_what_they_show_first_and_the_rest_as_others() {
        let all = text(&profile(), ProfileTable::value_variants(), 20);
        assert!(all.starts_with("4 requests in 2.0 s, 4 KiB\n"), "{all}");
        for shown in ["3       3 KiB       0.500 s     166.667 ms  read\n", "  cat[7]\n", "  unknown[0]\n"] {
            assert!(all.contains(shown), "{shown}: {all}");
        }
        assert!(all.contains("  /a/\u{fffd}[2Jfile\n"), "{all}");
        assert_eq!(all.matches("  others\n").count(), 1, "{all}");
        let one = text(&profile(), &[ProfileTable::Process], 1);
        assert!(one.contains("cat[7]") && one.ends_with("500.000 ms  others\n"), "{one}");
        assert!(!one.contains("getattr") && !one.contains("/a/"), "{one}");
    }

    #[test]
    fn a_frame_takes_the_place_of_the_one_before() {
        let mut live = LiveView::default();
        let first = live.frame(&profile(), &[ProfileTable::Operation]);
        assert!(first.starts_with("\x1b[?7l4 requests") && first.ends_with("\x1b[?7h"), "{first:?}");
        let second = live.frame(&profile(), &[ProfileTable::Operation]);
        assert!(second.starts_with("\r\x1b[5A\x1b[J"), "{second:?}");
    }

    #[test]
    fn totals_are_taken_to_the_last_ones_and_a_broken_stream_is_told() {
        let event = |name: &str, seconds| {
            let data = ProfileEvent { profile: ProfileReport { seconds, ..profile() }, is_early: false };
            format!("event: {name}\ndata: {}\n\n", json!(data))
        };
        let take = |told: &str| {
            let (sender, totals) = sync_channel(8);
            let taken = take_events(ServerEvents::new(told.as_bytes()), &sender);
            drop(sender);
            let mut shown = 0;
            let count = |_: &ProfileReport| {
                shown += 1;
                Ok(())
            };
            let last = last_totals(&totals, &AtomicBool::new(false), count).unwrap();
            (taken, shown, last.map(|last| last.profile.seconds))
        };
        let begin = event(PROFILE, 1.0);
        let (taken, shown, last) = take(&format!("{begin}{}", event(END, 2.0)));
        assert_eq!((taken.is_ok(), shown, last), (true, 2, Some(2.0)));
        let (taken, _, last) = take(&begin);
        assert!(taken.unwrap_err().to_string().contains("has ended"));
        assert_eq!(last, Some(1.0), "what came is shown all the same");
        assert!(take("event: profile\ndata: {}\n").0.is_err());
    }

    #[test]
    fn after_a_signal_the_next_totals_are_the_last() {
        let (sender, totals) = sync_channel(8);
        for seconds in [1.0, 2.0] {
            let profile = ProfileReport { seconds, ..profile() };
            sender.send(ProfileEvent { profile, is_early: false }).unwrap();
        }
        let interrupted = AtomicBool::new(false);
        let interrupt = |_: &ProfileReport| {
            interrupted.store(true, Ordering::Relaxed);
            Ok(())
        };
        let last = last_totals(&totals, &interrupted, interrupt).unwrap();
        assert_eq!(last.unwrap().profile.seconds, 2.0);
    }
}
