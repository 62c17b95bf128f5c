//! `/api/v1/mounts`: how the mounts of this host are doing, each in a sentence, so that the
//! dashboard of one of them shows all.
//!
//! Only clients on this host get an answer: they could ask each daemon themselves. The daemons are
//! asked at most once in [`MIN_ASK_INTERVAL`], whatever the number of clients.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::Mutex;

use super::http::StatusClient;
use super::local_mounts::{self, LocalMount};
use super::options::StatusAccessOptions;
use crate::telemetry::peer::Peer;
use crate::telemetry::report::Severity;

/// Clients in between share an answer.
const MIN_ASK_INTERVAL: Duration = Duration::from_secs(5);
/// Mounts that are asked: more than fit on a page.
const MAX_MOUNTS: usize = 32;

/// A mount of this host.
#[derive(Debug, Clone, Serialize)]
struct MountSummary {
    mount_point: String,
    /// The page of its daemon, for a browser on this host; `null` if the daemon does not answer.
    url: Option<String>,
    /// Whether the daemon that answers is its daemon.
    is_this: bool,
    /// The severity of its verdict; `null` if its daemon does not answer.
    severity: Option<Severity>,
    /// The sentence of its verdict.
    text: Option<String>,
    /// Why the daemon does not answer.
    error: Option<String>,
}

/// The last answer and its time.
type LastAnswer = Option<(Instant, Vec<MountSummary>)>;

struct MountsApi {
    /// It asks the daemons, with the token of this one.
    client: StatusClient,
    last: Arc<Mutex<LastAnswer>>,
}

/// The route, for a daemon whose own API has `access`.
pub(super) fn router(access: &StatusAccessOptions) -> Router {
    let token_file = access.token_file().map(Path::to_owned);
    let client = StatusClient::with_token(token_file);
    let api = Arc::new(MountsApi { client, last: Arc::default() });
    Router::new().route("/api/v1/mounts", get(mounts)).with_state(api)
}

async fn mounts(State(api): State<Arc<MountsApi>>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    if !peer.is_local() {
        return (StatusCode::FORBIDDEN, "only clients on the host of the mounts get these\n").into_response();
    }
    // The lock goes with the question, which goes on if this client leaves.
    let mut last = api.last.clone().lock_owned().await;
    if let Some((_, summaries)) = last.as_ref().filter(|(at, _)| at.elapsed() < MIN_ASK_INTERVAL) {
        return Json(summaries.clone()).into_response();
    }
    let client = api.client.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let found = local_mounts::find(&client, MAX_MOUNTS)?;
        let summaries: Vec<_> = found.iter().map(summary).collect();
        *last = Some((Instant::now(), summaries.clone()));
        anyhow::Ok(summaries)
    });
    match asked.await {
        Ok(Ok(summaries)) => Json(summaries).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn summary(found: &LocalMount) -> MountSummary {
    let answer = found.report.as_ref().ok();
    let verdict = answer.map(|answer| &answer.report.verdict);
    MountSummary {
        mount_point: found.mount.path.to_string_lossy().into_owned(),
        url: answer.map(|answer| answer.dashboard.clone()),
        is_this: answer.is_some_and(|answer| answer.report.pid == std::process::id()),
        severity: verdict.map(|verdict| verdict.severity),
        text: verdict.map(|verdict| verdict.text.clone()),
        error: found.report.as_ref().err().cloned(),
    }
}
