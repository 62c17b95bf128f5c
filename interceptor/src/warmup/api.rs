//! The HTTP routes of the job registry. No request is trusted.
//!
//! A request must come from this host and not from a web page. A page of another site can make a
//! browser send a request here, but not with the required header: that takes a preflight, which
//! is never granted. A page that resolves its own name to this host (DNS rebinding) can send the
//! header, but then the browser names the page in `Origin`, which no other client sends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::time::timeout;

use super::registry::{JobRefusal, JobRegistry};
use super::wire::{self, API_PATH, MAX_BODY_BYTES, MAX_WAIT_MS, REQUEST_HEADER};
use crate::telemetry::peer::Peer;

/// The time in which a body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The routes of `registry`. The server must provide each connection's [`Peer`].
pub fn router(registry: Arc<JobRegistry>) -> Router {
    Router::new()
        .route(API_PATH, post(begin))
        .route(&format!("{API_PATH}/{{id}}"), get(report).delete(cancel))
        // Guards these routes only, not the others of the server.
        .route_layer(middleware::from_fn(guard))
        .with_state(registry)
}

/// A refusal with its HTTP status.
#[derive(Debug)]
struct Error(StatusCode, String);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.0, Json(wire::ErrorBody { error: self.1 })).into_response()
    }
}

impl From<JobRefusal> for Error {
    fn from(refusal: JobRefusal) -> Self {
        let code = match refusal {
            JobRefusal::NotMounted => StatusCode::SERVICE_UNAVAILABLE,
            JobRefusal::OtherMount { .. } => StatusCode::CONFLICT,
            JobRefusal::TooManyFiles(_) => StatusCode::PAYLOAD_TOO_LARGE,
            JobRefusal::NotOneUser => StatusCode::BAD_REQUEST,
            JobRefusal::Ticket(_) | JobRefusal::ForceNotPermitted => StatusCode::FORBIDDEN,
            JobRefusal::TooManyJobs(_) => StatusCode::TOO_MANY_REQUESTS,
        };
        Self(code, refusal.to_string())
    }
}

async fn guard(request: Request, next: Next) -> Result<Response, Error> {
    let forbidden = |why: &str| Err(Error(StatusCode::FORBIDDEN, why.to_owned()));
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    if !peer.is_some_and(|ConnectInfo(peer)| peer.is_local()) {
        return forbidden("only processes on the host of the mount may ask for this");
    }
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        return forbidden("web pages may not ask for this");
    }
    if headers.get(REQUEST_HEADER.0).is_none_or(|value| value != REQUEST_HEADER.1) {
        return forbidden("the header `X-Interceptor: warmup` is missing");
    }
    Ok(next.run(request).await)
}

async fn begin(
    State(registry): State<Arc<JobRegistry>>,
    request: Request,
) -> Result<impl IntoResponse, Error> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_none_or(|content_type| content_type != "application/json") {
        return Err(Error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/json".into()));
    }
    let body = body(request.into_body(), BODY_TIMEOUT).await?;
    let request: wire::JobRequest = serde_json::from_slice(&body)
        .map_err(|error| Error(StatusCode::BAD_REQUEST, format!("the request is not understood: {error}")))?;
    Ok((StatusCode::CREATED, Json(registry.begin(&request)?)))
}

async fn body(body: Body, deadline: Duration) -> Result<bytes::Bytes, Error> {
    match timeout(deadline, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let limit = format!("the body breaks off or is longer than {MAX_BODY_BYTES} bytes");
            Err(Error(StatusCode::PAYLOAD_TOO_LARGE, limit))
        }
        Err(_) => Err(Error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".into())),
    }
}

#[derive(Deserialize)]
struct Wait {
    /// The time to wait for the end of the job, milliseconds.
    #[serde(default)]
    wait_ms: u64,
}

async fn report(
    State(registry): State<Arc<JobRegistry>>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<wire::JobReport>, Error> {
    let wait = Duration::from_millis(wait.wait_ms.min(MAX_WAIT_MS));
    registry.report(&id, wait).await.map(Json).ok_or_else(unknown)
}

async fn cancel(
    State(registry): State<Arc<JobRegistry>>,
    Path(id): Path<String>,
) -> Result<Json<wire::JobReport>, Error> {
    registry.cancel(&id).await.map(Json).ok_or_else(unknown)
}

fn unknown() -> Error {
    Error(StatusCode::NOT_FOUND, "there is no such job (any more)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_never_ends_times_out() {
        let endless = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let Error(status, _) = body(Body::from_stream(endless), Duration::ZERO).await.unwrap_err();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    }
}
