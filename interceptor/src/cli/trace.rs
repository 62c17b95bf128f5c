//! `interceptor trace`: each read of a file or tree, from the application's call to what the
//! servers took.
//!
//! The daemon of the mount sends the reads that it answers, and the calls that its eBPF programs
//! see (`/api/v1/trace`). A thread takes them as they come, so that a terminal that stands still
//! holds nobody up. What the kernel answers from its page cache or by passthrough never comes to
//! the daemon: of such a read there is only the call.

use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueHint};
use daemon::size::ByteSize;
use daemon::{duration, output};
use serde::Serialize;
use serde_json::json;

use super::http::StatusClient;
use super::server_events::{ServerEvents, events_of};
use super::signals::{INTERRUPTED_EXIT_CODE, noted_signals};
use super::untrusted::plain;
use crate::telemetry::answered_read::StepList;
use crate::telemetry::followed_call::FollowedCall;
use crate::telemetry::trace::{
    CALL, CallEvent, END, EndEvent, FOLLOWING, FollowingEvent, MAX_SECONDS, READ, ReadEvent,
};

/// For how long reads may be followed.
pub(super) const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(MAX_SECONDS);

/// Reads that wait to be printed. The daemon queues some more.
const QUEUED_EVENTS: usize = 4096;

/// How often the end and signals are looked for.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Follows the reads of a file or tree, from the call to the servers.
#[derive(Debug, Clone, Args)]
pub(super) struct TraceOptions {
    /// A file or directory in a mount; of a directory, the reads of all files below it
    #[arg(value_hint = ValueHint::AnyPath)]
    path: PathBuf,

    /// How long, from 1s to 60m; Ctrl-C ends it earlier
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = |text: &str| duration::within(text, TIMES))]
    time: Duration,

    /// Leave out the calls of applications; to see them costs every system call of the host some
    /// time
    #[arg(long)]
    no_calls: bool,

    /// Print JSON, an object for each read and each call
    #[arg(long)]
    json: bool,

    /// The file with the token that the daemon was given with the same option
    #[arg(long, value_name = "FILE")]
    status_token_file: Option<PathBuf>,
}

/// What the daemon tells.
enum TraceEvent {
    Following(FollowingEvent),
    Read(Box<ReadEvent>),
    Call(Box<CallEvent>),
    End(EndEvent),
}

/// What was seen.
#[derive(Debug, Default)]
struct Totals {
    reads: u64,
    from_memory: u64,
    failed: u64,
    asked_bytes: u64,
    slowest_seconds: f64,
    calls: u64,
    calls_without_request: u64,
    slowest_call_seconds: f64,
    /// Whether calls were followed.
    with_calls: bool,
    /// Reads and calls that came too fast, for the daemon and for the terminal.
    left_out: u64,
}

/// Prints reads as they are answered, and a summary on standard error.
pub(super) fn run(options: &TraceOptions) -> anyhow::Result<ExitCode> {
    let client = StatusClient::with_token(options.status_token_file.clone());
    let (client, place) = client.for_place(&options.path)?;
    let calls = ("calls", if options.no_calls { "false" } else { "true" });
    let events = events_of(&client, "/api/v1/trace", &place.path, options.time, &[calls])
        .with_context(|| format!("the daemon of {} at {}", place.mount.path.display(), client.address))?;
    let interrupted = noted_signals()?;
    let missed = Arc::new(AtomicU64::new(0));
    let (sender, reads) = sync_channel(QUEUED_EVENTS);
    let counted = missed.clone();
    let reading = thread::Builder::new().name("events".into());
    let reading = reading.spawn(move || take_events(events, &sender, &counted))?;
    let mut totals = Totals::default();
    let shown = show(&reads, options, &interrupted, &mut totals);
    totals.left_out += missed.load(Ordering::Relaxed);
    output::note(summary(&totals));
    shown?;
    if interrupted.load(Ordering::Relaxed) {
        return Ok(ExitCode::from(INTERRUPTED_EXIT_CODE));
    }
    reading.join().map_err(|_| anyhow!("a thread has panicked"))??;
    Ok(ExitCode::SUCCESS)
}

/// Prints reads until the daemon has told the last one, or a signal comes.
fn show(
    events: &Receiver<TraceEvent>,
    options: &TraceOptions,
    interrupted: &AtomicBool,
    totals: &mut Totals,
) -> anyhow::Result<()> {
    while !interrupted.load(Ordering::Relaxed) {
        match events.recv_timeout(POLL_INTERVAL) {
            Ok(TraceEvent::Following(event)) => {
                totals.with_calls = event.calls;
                event.unseen.iter().for_each(|unseen| output::note(format_args!("not shown: {unseen}")));
                let (path, time) = (options.path.display(), options.time);
                output::note(format_args!("following reads of {path} for {time:?}"));
            }
            Ok(TraceEvent::Read(event)) => {
                totals.add(&event);
                print(READ, &*event, options.json, || line(&event))?;
            }
            Ok(TraceEvent::Call(event)) => {
                totals.add_call(&event);
                print(CALL, &*event, options.json, || call_line(&event.call))?;
            }
            Ok(TraceEvent::End(end)) => {
                totals.left_out = end.left_out;
                if end.is_early {
                    output::note(
                        "ended early: too many follow reads of this mount, and a later one took this place",
                    );
                }
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
    Ok(())
}

/// Prints an event in a line.
fn print(
    kind: &str,
    event: &impl Serialize,
    as_json: bool,
    line: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let json = || {
        let mut object = json!(event);
        object["kind"] = kind.into();
        object.to_string()
    };
    let line = if as_json { json() } else { line() };
    Ok(output::print(format_args!("{line}\n"))?)
}

/// Passes events on as they come, to the last one. Those for which there is no room are counted.
fn take_events(
    mut events: ServerEvents<impl Read>,
    taken: &SyncSender<TraceEvent>,
    missed: &AtomicU64,
) -> anyhow::Result<()> {
    loop {
        let event = match events.next()? {
            (FOLLOWING, data) => {
                // A daemon of before there were calls says nothing here.
                let event: Option<_> = serde_json::from_str(data).context("the daemon sent no begin")?;
                TraceEvent::Following(event.unwrap_or_default())
            }
            (READ, data) => TraceEvent::Read(serde_json::from_str(data).context("the daemon sent no read")?),
            (CALL, data) => TraceEvent::Call(serde_json::from_str(data).context("the daemon sent no call")?),
            (END, data) => {
                let event = serde_json::from_str(data).context("the daemon sent no end")?;
                // Fails if nobody waits any more.
                let _ = taken.send(TraceEvent::End(event));
                return Ok(());
            }
            _ => continue,
        };
        match taken.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => _ = missed.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Disconnected(_)) => return Ok(()),
        }
    }
}

impl Totals {
    fn add(&mut self, event: &ReadEvent) {
        let read = &event.read;
        self.reads += 1;
        self.asked_bytes += read.len;
        self.failed += u64::from(read.error.is_some());
        self.from_memory += u64::from(read.error.is_none() && read.steps.is_empty());
        self.slowest_seconds = self.slowest_seconds.max(read.seconds);
        self.left_out = event.left_out;
    }

    fn add_call(&mut self, event: &CallEvent) {
        self.calls += 1;
        self.calls_without_request += u64::from(event.call.requests == 0 && event.call.error.is_none());
        self.slowest_call_seconds = self.slowest_call_seconds.max(event.call.seconds);
        self.left_out = event.left_out;
    }
}

/// A read, in a line.
fn line(event: &ReadEvent) -> String {
    let read = &event.read;
    let waited = match (&read.error, read.steps.is_empty()) {
        (None, true) => "memory".to_owned(),
        (None, false) => StepList(&read.steps).to_string(),
        (Some(error), _) => format!("FAILED: {error}; {}", StepList(&read.steps)),
    };
    let range = ReadRange { path: &read.path, offset: read.offset, len: read.len };
    range.line("read", read.seconds, (&read.caller_name, read.caller), &waited)
}

/// A call, in a line.
fn call_line(call: &FollowedCall) -> String {
    let answered = match (&call.error, call.requests, call.passthrough) {
        (Some(error), ..) => format!("FAILED: {error}"),
        (None, 0, true) => "passthrough".to_owned(),
        (None, 0, false) => "no request to the daemon".to_owned(),
        (None, 1, _) => "1 request to the daemon".to_owned(),
        (None, requests, _) => format!("{requests} requests to the daemon"),
    };
    let range = ReadRange { path: &call.path, offset: call.offset, len: call.len };
    range.line("call", call.seconds, (&call.caller_name, call.caller), &answered)
}

/// What is read.
struct ReadRange<'a> {
    path: &'a str,
    offset: u64,
    len: u64,
}

impl ReadRange<'_> {
    /// `reader` is the name of a thread, which may be empty, and its number.
    fn line(&self, kind: &str, seconds: f64, reader: (&str, u32), answered: &str) -> String {
        let Self { path, offset, len } = self;
        let reader = match reader {
            ("", number) => number.to_string(),
            (name, number) => format!("{name}[{number}]"),
        };
        let text = format!("{path} {offset}+{len} {reader}: {answered}");
        format!("{kind} {:>10.3} ms  {}", seconds * 1e3, plain(&text))
    }
}

fn summary(totals: &Totals) -> String {
    let Totals { reads, from_memory, failed, asked_bytes, slowest_seconds, left_out, .. } = totals;
    let bytes = ByteSize(*asked_bytes);
    let slowest = slowest_seconds * 1e3;
    let mut text = format!(
        "{reads} reads of {bytes}: {from_memory} answered from memory, {failed} failed, the slowest took {slowest:.3} ms"
    );
    if totals.with_calls {
        let Totals { calls, calls_without_request, slowest_call_seconds, .. } = totals;
        let slowest = slowest_call_seconds * 1e3;
        text += &format!(
            "; {calls} calls seen: {calls_without_request} without a request, the slowest took {slowest:.3} ms"
        );
    }
    if *left_out > 0 {
        text += &format!(
            "; {left_out} more of this mount were left out: too many at a time, or of files that are not known any more"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::answered_read::{AnsweredRead, ReadStep};

    fn event(error: Option<&str>, steps: Vec<ReadStep>) -> ReadEvent {
        let error = error.map(str::to_owned);
        let read = AnsweredRead {
            path: "/a/\u{1b}[2Jfile".into(),
            offset: 4096,
            len: 8192,
            caller: 7,
            caller_name: "cat".into(),
            seconds: 0.25,
            error,
            steps,
            ..AnsweredRead::default()
        };
        ReadEvent { read, left_out: 2 }
    }

    fn step() -> ReadStep {
        ReadStep {
            step: "request".into(),
            server: Some("volume:8080".into()),
            source: Some("http".into()),
            begun: 0.0,
            seconds: 0.25,
            first_byte: Some(0.125),
            error: None,
            note: None,
        }
    }

    #[test]
    fn a_read_is_a_line_that_says_what_it_waited_for() {
        assert_eq!(
            line(&event(None, Vec::new())),
            "read    250.000 ms  /a/\u{fffd}[2Jfile 4096+8192 cat[7]: memory"
        );
        let fetched = line(&event(None, vec![step()]));
        assert!(fetched.ends_with("cat[7]: http volume:8080 0.250 s (first byte 0.125 s)"), "{fetched}");
        let failed = line(&event(Some("no server"), Vec::new()));
        assert!(failed.ends_with("cat[7]: FAILED: no server; -"), "{failed}");
    }

    #[test]
    fn a_call_is_a_line_that_says_who_answered() {
        let call = FollowedCall {
            path: "/a".into(),
            len: 10,
            caller: 7,
            caller_name: "cat".into(),
            seconds: 1e-5,
            ..FollowedCall::default()
        };
        assert_eq!(call_line(&call), "call      0.010 ms  /a 0+10 cat[7]: no request to the daemon");
        let line = |call: FollowedCall| call_line(&call).rsplit_once(": ").unwrap().1.to_owned();
        assert_eq!(line(FollowedCall { passthrough: true, ..call.clone() }), "passthrough");
        assert_eq!(line(FollowedCall { requests: 1, ..call.clone() }), "1 request to the daemon");
        assert_eq!(line(FollowedCall { requests: 2, ..call.clone() }), "2 requests to the daemon");
        assert!(call_line(&FollowedCall { error: Some("no".into()), ..call }).ends_with("FAILED: no"));
    }

    #[test]
    fn the_summary_counts_what_was_shown_and_what_was_not() {
        let mut totals = Totals::default();
        for event in [event(None, Vec::new()), event(None, vec![step()]), event(Some("no"), Vec::new())] {
            totals.add(&event);
        }
        let told = summary(&totals);
        assert!(told.starts_with("3 reads of 24 KiB: 1 answered from memory, 1 failed"), "{told}");
        assert!(told.contains("250.000 ms; 2 more of this mount were left out"), "{told}");
    }

    #[test]
    fn events_are_taken_to_the_end_and_a_broken_stream_is_told() {
        let read = serde_json::to_string(&event(None, Vec::new())).unwrap();
        let begin = format!("event: following\ndata: null\n\n: keep-alive\n\nevent: read\ndata: {read}\n\n");
        let (sender, events) = sync_channel(8);
        let missed = AtomicU64::new(0);
        let whole = format!("{begin}event: end\ndata: {{\"left_out\":3,\"is_early\":false}}\n\n");
        take_events(ServerEvents::new(whole.as_bytes()), &sender, &missed).unwrap();
        let mut totals = Totals::default();
        let options = TraceOptions {
            path: "/a".into(),
            time: Duration::from_secs(1),
            no_calls: false,
            json: true,
            status_token_file: None,
        };
        show(&events, &options, &AtomicBool::new(false), &mut totals).unwrap();
        assert_eq!((totals.reads, totals.left_out), (1, 3));
        for (broken, told) in [(begin.as_str(), "has ended"), ("event: read\ndata: {}\n", "no read")] {
            let error = take_events(ServerEvents::new(broken.as_bytes()), &sender, &missed).unwrap_err();
            assert!(format!("{error:#}").contains(told), "{error:#}");
        }
    }

    #[test]
    fn reads_that_cannot_be_printed_in_time_are_counted() {
        let read = serde_json::to_string(&event(None, Vec::new())).unwrap();
        let (sender, events) = sync_channel(1);
        let missed = AtomicU64::new(0);
        let many = format!("event: read\ndata: {read}\n\n").repeat(3);
        // Nobody has taken the first one by then.
        take_events(ServerEvents::new(many.as_bytes()), &sender, &missed).unwrap_err();
        assert_eq!(missed.load(Ordering::Relaxed), 2);
        drop(events);
    }
}
