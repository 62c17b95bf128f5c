//! Finds out whether a filer answers, by pinging it.
//!
//! A filer that hangs keeps its connections open. HTTP/2 pings do not find that out in time,
//! because filers end the connections of clients that send them more often than every 20 s. So a
//! task for each filer ([`ping`]) makes the cheapest call that there is, `Ping`, every
//! [`PING_INTERVAL`]. It uses the connection of the subscription, whose loss is thereby noticed as
//! well. A filer that leaves a `Ping` unanswered for [`PING_TIMEOUT`], while nothing else comes
//! from it, is [down](super::liveness), and so is one that cannot be connected to.
//!
//! Each answer has the time of the filer's clock, by which the subscription judges how old events
//! are.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::sleep;

use super::endpoint::FilerEndpoint;
use super::liveness::Outage;
use super::pb;
use super::rpc::{CallFailure, FILER_TIMEOUT, within};

/// From the answer to one `Ping` to the next.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// How long a `Ping` may take, if nothing else comes from the filer either.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Pings a filer until it is dropped.
pub(super) async fn ping(filer: Weak<FilerEndpoint>) {
    let mut was_down = false;
    loop {
        let Some(filer) = filer.upgrade() else { return };
        let ping = async || {
            let mut stub = filer.events();
            let mut asking = std::pin::pin!(stub.ping(pb::PingRequest {}));
            let answer = within(PING_TIMEOUT, asking.as_mut()).await;
            if matches!(answer, Err(CallFailure::Timeout(_))) {
                update(&filer, Err(CallFailure::Timeout(PING_TIMEOUT)));
                // A slow filer is not down. The time in its answer is too old to judge events by.
                if within(FILER_TIMEOUT, asking).await.is_ok() {
                    filer.liveness.mark_up();
                }
            }
            answer
        };
        let mut answer = ping().await;
        // A connection that broke, as idle ones may, is replaced by the next call.
        if matches!(&answer, Err(failure @ CallFailure::Status(_)) if !failure.is_answer()) {
            answer = ping().await;
        }
        if !matches!(answer, Err(CallFailure::Timeout(_))) {
            update(&filer, answer.map(tonic::Response::into_inner));
        }
        let outage = filer.liveness.outage();
        match &outage {
            Some(Outage { reason, .. }) if !was_down => {
                tracing::warn!(filer = %filer.address, %reason, "a filer does not answer");
            }
            None if was_down => tracing::info!(filer = %filer.address, "a filer answers again"),
            _ => {}
        }
        was_down = outage.is_some();
        drop(filer);
        sleep(PING_INTERVAL).await;
    }
}

/// Updates what is known of the filer after a ping.
fn update(filer: &FilerEndpoint, answer: Result<pb::PingResponse, CallFailure>) {
    let liveness = &filer.liveness;
    match answer {
        Ok(answer) => {
            liveness.set_filer_time(answer.start_time_ns);
            liveness.mark_up();
        }
        Err(failure) if failure.is_answer() => liveness.mark_up(),
        Err(CallFailure::Timeout(_)) if liveness.last_message().elapsed() < PING_TIMEOUT => {}
        Err(failure) => {
            filer.record_error(&failure);
            liveness.mark_down(failure.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::super::filer::FilerClient;
    use super::super::pb;
    use super::super::scripted_filer::{self, ScriptedReply};

    async fn answers(client: &FilerClient, expected: bool) {
        let begun = Instant::now();
        while client.answering().is_ok() != expected {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is never seen to answer: {expected}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_filer_that_answers_late_is_slow_and_not_down() {
        let filer = scripted_filer::start(|call, _| match call {
            "Ping" => ScriptedReply::Late(super::PING_TIMEOUT * 3 / 2, Box::new(ScriptedReply::pong())),
            _ => ScriptedReply::message(&pb::GetFilerConfigurationResponse::default()),
        });
        let client = scripted_filer::client(vec![filer.await]).await;
        for _ in 0..2 {
            answers(&client, false).await;
            answers(&client, true).await;
        }
    }
}
