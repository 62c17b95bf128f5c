//! `/api/v1/mounts`: how the mounts of this host are doing, each in a sentence, so that the
//! dashboard of one of them shows all.
//!
//! Only clients on this host get an answer: they could ask each daemon themselves. The daemons are
//! asked at most once in [`MIN_INTERVAL`], whatever the number of clients.

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
use super::mount_address::address_in_time;
use super::options::StatusAccessOptions;
use crate::telemetry::peer::Peer;
use crate::telemetry::report::{Severity, StatusReport};

/// Clients in between share an answer.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
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
    /// Of its verdict; `null` if its daemon does not answer.
    severity: Option<Severity>,
    /// The sentence of its verdict.
    text: Option<String>,
    /// Why the daemon does not answer.
    error: Option<String>,
}

/// The last answer and its time.
type LastAnswer = Option<(Instant, Vec<MountSummary>)>;

struct MountsApi {
    /// What asks the daemons. Those with another token do not answer it.
    client: StatusClient,
    last: Mutex<LastAnswer>,
}

/// The route, for a daemon whose own API has `access`.
pub(super) fn router(access: &StatusAccessOptions) -> Router {
    let token_file = access.token_file().map(Path::to_owned);
    let client = StatusClient { token_file, ..StatusClient::at(String::new()) };
    let api = Arc::new(MountsApi { client, last: Mutex::default() });
    Router::new().route("/api/v1/mounts", get(mounts)).with_state(api)
}

async fn mounts(State(api): State<Arc<MountsApi>>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    if !peer.is_local() {
        return (StatusCode::FORBIDDEN, "only clients on the host of the mounts get these\n").into_response();
    }
    let mut last = api.last.lock().await;
    if let Some((_, summaries)) = last.as_ref().filter(|(at, _)| at.elapsed() < MIN_INTERVAL) {
        return Json(summaries.clone()).into_response();
    }
    let client = api.client.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let found = local_mounts::ask_all(&client, MAX_MOUNTS, StatusClient::report)?;
        anyhow::Ok(found.iter().map(summary).collect::<Vec<_>>())
    });
    match asked.await {
        Ok(Ok(summaries)) => {
            *last = Some((Instant::now(), summaries.clone()));
            Json(summaries).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn summary(found: &LocalMount<StatusReport>) -> MountSummary {
    let report = found.report.as_ref().ok();
    let verdict = report.map(|report| &report.verdict);
    let address = report.and_then(|_| address_in_time(&found.mount).ok());
    MountSummary {
        mount_point: found.mount.path.to_string_lossy().into_owned(),
        url: address.map(|address| format!("http://{address}/")),
        is_this: report.is_some_and(|report| report.pid == std::process::id()),
        severity: verdict.map(|verdict| verdict.severity),
        text: verdict.map(|verdict| verdict.text.clone()),
        error: found.report.as_ref().err().cloned(),
    }
}
