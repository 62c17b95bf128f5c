//! `/api/v1/trace`: the reads of a file or tree while they last, as server-sent events.
//!
//! `?path=/dir&seconds=10` is answered with `following`, then with a `read` for each read that the
//! daemon answers, and after that time with `end`. With `&calls=true` there is also a `call` for
//! each call of an application that has returned, after the reads that it waited for. All but the
//! first have `left_out`: how many so far came too fast for this client. A follower too many takes
//! the place of the first one, to which `end` comes early.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::answered_read::AnsweredRead;
use super::followed_call::{CallTracing, FollowedCall};
use super::read_followers::{FollowedEvent, FollowedReads};
use super::status::Status;

/// How long reads may be followed, in seconds.
pub(crate) const MAX_SECONDS: u64 = 3600;

/// The events, by name.
pub(crate) const FOLLOWING: &str = "following";
pub(crate) const READ: &str = "read";
pub(crate) const CALL: &str = "call";
pub(crate) const END: &str = "end";

/// The data of the event `following`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct FollowingEvent {
    /// Whether calls are followed.
    pub(crate) calls: bool,
    /// Which calls cannot be seen, though they were asked for, and why.
    pub(crate) unseen: Option<String>,
}

/// The data of the event `call`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CallEvent {
    /// The call.
    #[serde(flatten)]
    pub(crate) call: FollowedCall,
    /// How many reads and calls were left out so far.
    pub(crate) left_out: u64,
}

/// The data of the event `read`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReadEvent {
    /// The read.
    #[serde(flatten)]
    pub(crate) read: AnsweredRead,
    /// How many reads and calls were left out so far.
    pub(crate) left_out: u64,
}

/// The data of the event `end`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EndEvent {
    /// How many were left out.
    pub(crate) left_out: u64,
    /// Whether that is early, as another follower has the place of this one.
    pub(crate) is_early: bool,
}

/// What is asked for.
#[derive(Debug, Deserialize)]
pub(super) struct TraceQuery {
    #[serde(default)]
    pub(super) path: String,
    #[serde(default = "default_seconds")]
    pub(super) seconds: u64,
    /// Whether the calls of applications are followed, too.
    #[serde(default)]
    pub(super) calls: bool,
}

impl TraceQuery {
    /// Whether path and seconds are what can be followed.
    pub(super) fn check(&self) -> Result<(), TraceError> {
        if !self.path.is_empty() && !self.path.starts_with('/') {
            return Err(TraceError::Path);
        }
        if !(1..=MAX_SECONDS).contains(&self.seconds) {
            return Err(TraceError::Seconds);
        }
        Ok(())
    }
}

fn default_seconds() -> u64 {
    10
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TraceError {
    Path,
    Seconds,
}

impl IntoResponse for TraceError {
    fn into_response(self) -> Response {
        let (code, text) = match self {
            Self::Path => (StatusCode::BAD_REQUEST, "path begins with / at the root of the mount\n".into()),
            Self::Seconds => (StatusCode::BAD_REQUEST, format!("seconds is 1 to {MAX_SECONDS}\n")),
        };
        (code, text).into_response()
    }
}

/// The route.
pub(super) fn router(status: Arc<Status>) -> Router {
    Router::new().route("/api/v1/trace", get(trace)).with_state(status)
}

async fn trace(
    State(status): State<Arc<Status>>,
    Query(query): Query<TraceQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, TraceError> {
    query.check()?;
    let calls = match query.calls {
        true => Some(begin_calls(&status).await),
        false => None,
    };
    let following = match &calls {
        None => FollowingEvent::default(),
        Some(Ok(CallShare { calls, .. })) => FollowingEvent { calls: true, unseen: calls.unseen() },
        Some(Err(reason)) => FollowingEvent { calls: false, unseen: Some(reason.clone()) },
    };
    let reads = status.metrics().slow_reads().followers().follow(&query.path, following.calls);
    let follower = TraceFollower { reads, calls: calls.and_then(Result::ok) };
    let until = Instant::now() + Duration::from_secs(query.seconds);
    Ok(Sse::new(events(following, follower, until)).keep_alive(KeepAlive::default()))
}

/// A client's share of the calls that are traced.
struct CallShare {
    calls: Arc<dyn CallTracing>,
    /// How many had been lost before.
    lost_before: u64,
}

/// Begins to follow calls.
///
/// # Errors
/// That calls are not seen, and why.
async fn begin_calls(status: &Status) -> Result<CallShare, String> {
    let none = || {
        "calls, as eBPF is switched off, not ready yet, or cannot be used (see `interceptor check`)"
            .to_owned()
    };
    let source = status.call_source().ok_or_else(none)?;
    let calls = tokio::task::spawn_blocking(move || source()).await;
    let calls = calls.unwrap_or_else(|panic| Err(format!("calls ({panic})")))?;
    let lost_before = calls.lost();
    Ok(CallShare { calls, lost_before })
}

/// What a client gets its events from.
struct TraceFollower {
    reads: FollowedReads,
    calls: Option<CallShare>,
}

impl TraceFollower {
    /// How many reads and calls did not reach the client.
    fn left_out(&self) -> u64 {
        let lost = |share: &CallShare| share.calls.lost().saturating_sub(share.lost_before);
        self.reads.left_out() + self.calls.as_ref().map_or(0, lost)
    }
}

/// What comes next.
enum TraceState {
    Beginning(FollowingEvent, TraceFollower),
    Following(TraceFollower),
    Ended,
}

fn events(
    following: FollowingEvent,
    follower: TraceFollower,
    until: Instant,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(TraceState::Beginning(following, follower), move |state| async move {
        let (event, next) = match state {
            TraceState::Beginning(following, follower) => {
                (event(FOLLOWING, &following), TraceState::Following(follower))
            }
            TraceState::Following(mut follower) => {
                let next = next_before(&mut follower.reads, until).await;
                let left_out = follower.left_out();
                match next {
                    Some(FollowedEvent::Read(read)) => {
                        let data = ReadEvent { read: Arc::unwrap_or_clone(read), left_out };
                        (event(READ, &data), TraceState::Following(follower))
                    }
                    Some(FollowedEvent::Call(call)) => {
                        let data = CallEvent { call: Arc::unwrap_or_clone(call), left_out };
                        (event(CALL, &data), TraceState::Following(follower))
                    }
                    None => {
                        let end = EndEvent { left_out, is_early: Instant::now() < until };
                        (event(END, &end), TraceState::Ended)
                    }
                }
            }
            TraceState::Ended => return None,
        };
        Some((Ok(event), next))
    })
}

/// The next event; `None` when the time is over and what came before has been taken, or when
/// another follower has this one's place.
async fn next_before(reads: &mut FollowedReads, until: Instant) -> Option<FollowedEvent> {
    if Instant::now() < until {
        let event = tokio::time::timeout_at(until, reads.queue.recv()).await;
        if let Ok(event) = event {
            return event;
        }
    }
    // What comes from now on is not waited for, or a mount that is always read would have no end.
    reads.queue.close();
    reads.queue.try_recv().ok()
}

/// An event. The types in use consist of numbers and strings, which can be written.
pub(super) fn event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).unwrap_or_else(|_| Event::default().event(name))
}

#[cfg(test)]
mod tests {
    use super::super::answered_read::ReadTarget;
    use super::super::status::tests::some_status;
    use super::*;
    use crate::arrival::Arrival;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    async fn ask(status: &Arc<Status>, query: &str) -> (StatusCode, String) {
        let request = Request::get(format!("/api/v1/trace?{query}")).body(Body::empty()).unwrap();
        let response = router(status.clone()).oneshot(request).await.unwrap();
        let code = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn reads_are_told_until_the_time_is_over() {
        let status = some_status();
        let target = |path| ReadTarget { path, offset: 4096, len: 10, caller: 0 };
        let slow_reads = status.metrics().slow_reads();
        let reading = async {
            while !slow_reads.followers().has_any() {
                tokio::task::yield_now().await;
            }
            slow_reads.answered_at_once(|| target("/elsewhere"), Arrival::now());
            slow_reads.answered_at_once(|| target("/a/file"), Arrival::now());
            slow_reads.begin(target("/a"), Arrival::now()).end(Some(&"no server"), &[]);
        };
        let ((code, told), ()) = tokio::join!(ask(&status, "path=/a&seconds=1"), reading);
        assert_eq!(code, StatusCode::OK);
        let lines: Vec<&str> = told.lines().filter(|line| line.starts_with("event:")).collect();
        assert_eq!(lines, ["event: following", "event: read", "event: read", "event: end"]);
        let mut data = told.lines().filter_map(|line| line.strip_prefix("data: "));
        let read: ReadEvent = serde_json::from_str(data.clone().nth(1).unwrap()).unwrap();
        assert_eq!((read.read.path.as_str(), read.read.offset, read.left_out), ("/a/file", 4096, 0));
        let failed: ReadEvent = serde_json::from_str(data.clone().nth(2).unwrap()).unwrap();
        assert_eq!(failed.read.error.as_deref(), Some("no server"));
        let end: EndEvent = serde_json::from_str(data.next_back().unwrap()).unwrap();
        assert_eq!((end.left_out, end.is_early), (0, false));
    }

    #[tokio::test]
    async fn reads_without_end_do_not_keep_a_follower() {
        let status = some_status();
        let slow_reads = status.metrics().slow_reads();
        let mut reads = slow_reads.followers().follow("/", false);
        let target = ReadTarget { path: "/a", offset: 0, len: 1, caller: 0 };
        let until = Instant::now();
        let mut taken = 0;
        loop {
            // There is always one more.
            slow_reads.answered_at_once(|| target, Arrival::now());
            if next_before(&mut reads, until).await.is_none() {
                break;
            }
            taken += 1;
        }
        assert_eq!(taken, 1, "what was there when the time was over");
    }

    #[tokio::test]
    async fn what_cannot_be_followed_is_refused_with_what_is_right() {
        let status = some_status();
        for (query, right) in
            [("path=a", "begins with /"), ("seconds=0", "1 to 3600"), ("seconds=3601", "1 to 3600")]
        {
            let (code, told) = ask(&status, query).await;
            assert!(code == StatusCode::BAD_REQUEST && told.contains(right), "{query}: {code} {told}");
        }
    }
}
