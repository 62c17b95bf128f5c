//! `/api/v1/live`: the status once a second, as server-sent events.
//!
//! One task serves all listeners: each tick takes a snapshot for the history and, if there are
//! listeners, serializes the status once. A listener first receives the history of one span
//! (`event: history`), then the status every second (`event: status`) and each point of the span
//! when it is complete (`event: point`). A listener that lags behind receives the whole history
//! again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use futures::stream::{self, Stream, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::history::{History, SPANS, SpanReport, TICK};
use super::status::Status;

const MAX_LISTENERS: usize = 64;
/// Ticks that a listener may lag behind.
const MAX_LAG_TICKS: usize = 4;

/// The data of one tick, as JSON.
struct Tick {
    status: String,
    /// The points that are complete, by span.
    points: [Option<String>; SPANS.len()],
}

/// The history and the listeners.
pub(super) struct Live {
    status: Arc<Status>,
    history: History,
    ticks: broadcast::Sender<Arc<Tick>>,
    /// Each ends its listener when it is cancelled; the oldest first.
    listeners: Mutex<VecDeque<CancellationToken>>,
}

impl Live {
    pub(super) fn new(status: Arc<Status>) -> Arc<Self> {
        let history = History::new(status.metrics());
        Arc::new(Self {
            status,
            history,
            ticks: broadcast::Sender::new(MAX_LAG_TICKS),
            listeners: Mutex::default(),
        })
    }

    /// Ticks until the runtime shuts down.
    pub(super) async fn run(self: Arc<Self>) {
        let mut due = tokio::time::interval(TICK);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is immediate.
        due.tick().await;
        loop {
            due.tick().await;
            let live = self.clone();
            // Reading the BPF maps takes system calls, and the hottest files take some
            // milliseconds.
            if tokio::task::spawn_blocking(move || live.tick()).await.is_err() {
                return;
            }
        }
    }

    fn tick(&self) {
        let points = self.history.tick(self.status.metrics());
        if self.ticks.receiver_count() == 0 {
            return;
        }
        let points = points.map(|point| point.as_ref().map(json));
        // Fails if the last listener has disconnected since the check, which does not matter.
        let _ = self.ticks.send(Arc::new(Tick { status: json(&self.status.report()), points }));
    }

    /// The routes of the history and of the live view.
    pub(super) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/api/v1/history", routing::get(history))
            .route("/api/v1/live", routing::get(live))
            .with_state(self)
    }
}

/// Serializes a value. The types in use consist of numbers and strings, which cannot fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("\"{error}\""))
}

#[derive(Deserialize)]
struct SpanQuery {
    span: Option<String>,
}

impl SpanQuery {
    /// The index of the requested span; the shortest if none is named.
    fn span(&self) -> Result<usize, LiveError> {
        let Some(name) = &self.span else { return Ok(0) };
        SPANS.iter().position(|span| span.name == *name).ok_or(LiveError::NoSuchSpan)
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
enum LiveError {
    NoSuchSpan,
}

impl IntoResponse for LiveError {
    fn into_response(self) -> Response {
        match self {
            Self::NoSuchSpan => {
                let names = SPANS.map(|span| span.name).join(", ");
                (StatusCode::BAD_REQUEST, format!("span is one of {names}\n")).into_response()
            }
        }
    }
}

async fn history(
    State(live): State<Arc<Live>>,
    Query(query): Query<SpanQuery>,
) -> Result<Json<Option<SpanReport>>, LiveError> {
    let span = query.span()?;
    Ok(Json(live.history.report(SPANS[span].name)))
}

async fn live(
    State(live): State<Arc<Live>>,
    Query(query): Query<SpanQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, LiveError> {
    let span = query.span()?;
    Ok(Sse::new(listen(live, span)).keep_alive(KeepAlive::default()))
}

/// The events for one listener. If there are too many, the oldest one makes room.
fn listen(live: Arc<Live>, span: usize) -> impl Stream<Item = Result<Event, Infallible>> {
    let displaced = CancellationToken::new();
    // Cancelled when the listener goes, too.
    let listening = displaced.clone().drop_guard();
    {
        let mut listeners = live.listeners.lock();
        listeners.retain(|listener| !listener.is_cancelled());
        if listeners.len() == MAX_LISTENERS
            && let Some(oldest) = listeners.pop_front()
        {
            oldest.cancel();
        }
        listeners.push_back(displaced.clone());
    }
    let event = |name: &str, data: &str| Ok(Event::default().event(name).data(data));
    let whole = move |live: &Live| event("history", &json(&live.history.report(SPANS[span].name)));
    // Subscribes before it reads the history, so that no point is missed.
    let ticks = live.ticks.subscribe();
    let first = stream::iter([whole(&live)]);
    let rest = stream::unfold((live, ticks, listening), move |(live, mut ticks, listening)| async move {
        let events = match ticks.recv().await {
            Ok(tick) => {
                let point = tick.points[span].as_deref().map(|point| event("point", point));
                point.into_iter().chain([event("status", &tick.status)]).collect()
            }
            Err(RecvError::Lagged(_)) => vec![whole(&live)],
            Err(RecvError::Closed) => return None,
        };
        Some((stream::iter(events), (live, ticks, listening)))
    });
    first.chain(rest.flatten()).take_until(displaced.cancelled_owned())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use axum::body::to_bytes;

    use super::super::status::tests::some_status;
    use super::*;

    /// The next event of a listener, as text.
    async fn next(events: &mut (impl Stream<Item = Result<Event, Infallible>> + Unpin + Send)) -> String {
        let event = events.next().await.unwrap();
        let body = Sse::new(stream::iter([event])).into_response().into_body();
        String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_listener_gets_history_then_points_and_status() {
        let live = Live::new(some_status());
        let mut events = pin!(listen(live.clone(), 0));
        assert!(
            next(&mut events).await.starts_with("event: history\ndata: {\"api_version\":2,\"span\":\"5m\"")
        );
        let tick = Tick { status: "{}".into(), points: [Some("{\"seconds\":1}".into()), None, None] };
        assert!(live.ticks.send(Arc::new(tick)).is_ok());
        assert_eq!(next(&mut events).await, "event: point\ndata: {\"seconds\":1}\n\n");
        assert_eq!(next(&mut events).await, "event: status\ndata: {}\n\n");
    }

    #[tokio::test]
    async fn one_listener_too_many_takes_the_place_of_the_oldest() {
        let live = Live::new(some_status());
        let mut listening: Vec<_> = (0..MAX_LISTENERS).map(|_| Box::pin(listen(live.clone(), 0))).collect();
        drop(listening.pop());
        listening.push(Box::pin(listen(live.clone(), 0)));
        assert!(listening[0].next().await.is_some(), "one had gone, and left its place");
        let _one_more = listen(live.clone(), 0);
        assert!(listening[0].next().await.is_none(), "it made room");
        assert!(listening[1].next().await.is_some());
    }

    #[tokio::test]
    async fn a_listener_that_lags_gets_the_history_again() {
        let live = Live::new(some_status());
        let mut events = pin!(listen(live.clone(), 1));
        next(&mut events).await;
        for _ in 0..=MAX_LAG_TICKS {
            let tick = Tick { status: "{}".into(), points: [None, None, None] };
            assert!(live.ticks.send(Arc::new(tick)).is_ok());
        }
        assert!(next(&mut events).await.contains("\"span\":\"1h\""));
    }

    #[test]
    fn without_listeners_nothing_is_serialized() {
        let live = Live::new(some_status());
        live.tick();
        assert_eq!(live.ticks.receiver_count(), 0);
        assert_eq!(SpanQuery { span: Some("2d".into()) }.span(), Err(LiveError::NoSuchSpan));
    }
}
