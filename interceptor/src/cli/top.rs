//! `interceptor top`: a running mount, live in a terminal.
//!
//! Polls the daemon's status API once a second and redraws the whole screen ([`view`]). [`model`]
//! computes rates from two answers and holds the user's choices, [`hit_ratio_history`] keeps the
//! last minutes, [`view_rows`] has the tables and [`table`] fits them to the screen. The terminal
//! is restored on every way out: by a key, a signal, an error or a panic.

mod help;
mod hit_ratio_history;
mod model;
mod table;
mod view;
mod view_rows;

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use daemon::duration;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::http::StatusClient;
use super::options::POLL_INTERVAL_RANGE;
use super::signals::Signals;
use crate::telemetry::report::StatusReport;
use hit_ratio_history::{HISTORY_SPAN, HitRatioHistory};
use model::TopModel;
use view_rows::TopView;

/// Interval at which keys are polled: shorter than a user notices.
const KEY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Watches a running mount.
#[derive(Debug, Clone, Args)]
pub(super) struct TopOptions {
    /// Which daemon.
    #[command(flatten)]
    daemon: StatusClient,

    /// Ask this often
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = |text: &str| duration::within(text, POLL_INTERVAL_RANGE))]
    interval: Duration,
}

/// Shows it until the user quits.
pub(super) fn run(options: &TopOptions) -> anyhow::Result<()> {
    ensure!(io::stdout().is_terminal(), "standard output is no terminal; `interceptor status` prints once");
    // A wrong address ends the program with an error, rather than showing an empty screen.
    let first = options.daemon.report()?;
    let past = hit_ratios_until_now(&options.daemon, first.uptime_seconds);
    let model = TopModel::new(first, past);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let outcome = runtime.block_on(follow(options, model, &mut terminal));
    let restored = ratatui::try_restore();
    // An answer that is still under way is not needed any more.
    runtime.shutdown_background();
    outcome.and(restored.context("cannot give the terminal back"))
}

/// What the daemon remembers; nothing if it does not tell.
fn hit_ratios_until_now(daemon: &StatusClient, uptime_seconds: f64) -> HitRatioHistory {
    let answer = daemon.get(&format!("/api/v1/history?span={HISTORY_SPAN}")).ok();
    let past = answer.and_then(|answer| serde_json::from_str(&answer.body).ok());
    past.map_or_else(HitRatioHistory::default, |past| HitRatioHistory::new(&past, uptime_seconds))
}

async fn follow(
    options: &TopOptions,
    mut model: TopModel,
    terminal: &mut ratatui::DefaultTerminal,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot catch signals")?;
    let mut keys = interval(KEY_POLL_INTERVAL);
    keys.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = Instant::now();
    let mut answer: Option<tokio::task::JoinHandle<anyhow::Result<StatusReport>>> = None;
    let mut is_stale = true;
    loop {
        if is_stale {
            terminal.draw(|frame| view::draw(frame, &model))?;
            is_stale = false;
        }
        tokio::select! {
            _ = signals.next() => return Ok(()),
            _ = keys.tick() => {}
        }
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    if !model_takes(&mut model, key) {
                        return Ok(());
                    }
                    is_stale = true;
                }
                Event::Resize(..) => is_stale = true,
                _ => {}
            }
        }
        if answer.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
            && let Some(finished) = answer.take()
        {
            model.answered(finished.await.context("asking the daemon")?);
            is_stale = true;
        }
        if answer.is_none() && asked.elapsed() >= options.interval {
            asked = Instant::now();
            let daemon = options.daemon.clone();
            // A daemon that hangs must not hang the keys.
            answer = Some(tokio::task::spawn_blocking(move || daemon.report()));
        }
    }
}

/// Has `model` do what a key says. False when that is to quit.
fn model_takes(model: &mut TopModel, key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return false,
        _ if model.shows_help() => model.show_help(false),
        code if model.is_typing() => match code {
            KeyCode::Enter => model.stop_typing(),
            KeyCode::Esc => model.clear_filter(),
            KeyCode::Backspace => model.erase(),
            KeyCode::Char(letter) if !control => model.typed(letter),
            _ => {}
        },
        KeyCode::Char('q') => return false,
        KeyCode::Esc => model.clear_filter(),
        KeyCode::Char('?') => model.show_help(true),
        KeyCode::Char('p') => model.pause(),
        KeyCode::Char('s') => model.sort_next(),
        KeyCode::Char('/') => model.start_typing(),
        KeyCode::Tab => model.show_next(),
        KeyCode::Char(digit @ '1'..='5') => model.show(TopView::ALL[digit as usize - '1' as usize]),
        _ => {}
    }
    true
}
