//! The status API: `/` is the dashboard ([`page`](super::page)), `/metrics` is for Prometheus,
//! `/api/v1/…` for scripts and the dashboard, `/healthz` and `/readyz` for service managers.
//!
//! The routes here only read. The caller of [`StatusServer::serve`] adds those that change
//! something, with a guard of their own. All files served are compiled in.
//! [`access`](super::access) decides which requests are answered; `/healthz` and `/readyz` always
//! are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use daemon::prometheus::CONTENT_TYPE;
use rdma_engine::bounded_listener::BoundedListener;
use tokio::net::TcpListener;

use super::access::{self, AccessGuard, ApiSecrets};
use super::export;
use super::live::Live;
use super::page::{self, SECURITY_POLICY};
use super::peer::Peer;
use super::profile;
use super::report::{self, ApiAccess, StatusReport};
use super::status::Status;
use super::tls::{StatusCertificate, StatusListener};
use super::trace;
use crate::vital;

/// The status API cannot listen on its address.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the status API on --status-addr {address}: {error}{hint}")]
pub struct BindError {
    address: String,
    error: io::Error,
    hint: &'static str,
}

impl BindError {
    /// Whether another process listens on the address.
    pub fn is_in_use(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }
}

/// A status API that is bound to its address and does not answer yet.
pub struct StatusServer {
    listener: TcpListener,
    address: SocketAddr,
    guard: Arc<AccessGuard>,
    certificate: Option<StatusCertificate>,
}

impl StatusServer {
    /// Binds to `address` (`host:port`, port 0 for any free one).
    pub async fn bind(address: &str, secrets: ApiSecrets) -> Result<Self, BindError> {
        let failed = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another daemon may be using it: choose another port, port 0 for any free one, or `none`"
                }
                _ => "",
            };
            BindError { address: address.to_owned(), error, hint }
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let guard = AccessGuard::new(address, &secrets);
        Ok(Self { listener, address, guard, certificate: secrets.certificate })
    }

    /// The address that it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the runtime shuts down; `more` are further routes, behind the same access
    /// rules.
    pub async fn serve(self, status: Arc<Status>, more: Router) {
        status.set_access(self.guard.access());
        if self.guard.access() == ApiAccess::Open {
            tracing::warn!(
                address = %self.address,
                "the status API is open: everybody who can reach it reads the names of files and who reads them; \
                 --status-token-file keeps others out"
            );
        }
        let live = Live::new(status.clone());
        tokio::spawn(vital::task("live view", live.clone().run()));
        let service = router(status, live, self.guard, more).into_make_service_with_connect_info::<Peer>();
        let connections = BoundedListener::new(self.listener);
        let served = match StatusListener::new(connections, self.certificate.as_ref()) {
            Ok(listener) => axum::serve(listener, service).await.map_err(anyhow::Error::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            tracing::error!(%error, "the status API has stopped");
        }
    }
}

fn router(status: Arc<Status>, live: Arc<Live>, guard: Arc<AccessGuard>, more: Router) -> Router {
    Router::new()
        .merge(page::router())
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(report))
        .route("/api/v1/schema", get(|| async { Json(report::schema()) }))
        .with_state(status.clone())
        .merge(live.router())
        .merge(trace::router(status.clone()))
        .merge(profile::router(status.clone()))
        .merge(more)
        .route_layer(middleware::from_fn_with_state(guard, access::guard))
        // Service managers have no token, and these answers show no names of files.
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(Router::new().route("/readyz", get(ready)).with_state(status))
        .layer(middleware::map_response(secured))
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    let is_ready = status.ready().await.is_ok();
    let text = export::exposition(status.metrics(), status.identity(), is_ready).finish();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    match status.ready().await {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn report(State(status): State<Arc<Status>>) -> Result<Json<StatusReport>, StatusCode> {
    // Scanning the heat map may take milliseconds.
    let report = tokio::task::spawn_blocking(move || status.report()).await;
    report.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SECURITY_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::super::status::tests::some_status;
    use super::*;

    async fn get(path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (status, address) = (some_status(), "127.0.0.1:9650".parse().unwrap());
        let router = router(
            status.clone(),
            Live::new(status),
            AccessGuard::new(address, &ApiSecrets::default()),
            Router::new(),
        );
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], SECURITY_POLICY);
        let content_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .map_or("", |value| value.to_str().unwrap())
            .to_owned();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_route_answers() {
        for (path, status, content_type, text) in [
            ("/", StatusCode::OK, "text/html", "dashboard.js"),
            ("/dashboard.js", StatusCode::OK, "text/javascript", "/api/v1/live"),
            ("/dashboard.css", StatusCode::OK, "text/css", "body"),
            ("/uplot.js", StatusCode::OK, "text/javascript", "uPlot"),
            ("/api/v1/history", StatusCode::OK, "application/json", "\"span\":\"5m\""),
            ("/api/v1/history?span=1d", StatusCode::OK, "application/json", "\"step_seconds\":300.0"),
            ("/api/v1/history?span=1w", StatusCode::BAD_REQUEST, "text/plain", "5m, 1h, 1d"),
            ("/api/v1/schema", StatusCode::OK, "application/json", "\"hit_ratios\""),
            ("/metrics", StatusCode::OK, CONTENT_TYPE, "interceptor_reads_total{source=\"http\"} 0\n"),
            ("/healthz", StatusCode::OK, "text/plain", "ok"),
            ("/readyz", StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not mounted yet"),
            ("/api/v1/status", StatusCode::OK, "application/json", "\"api_version\":2"),
            ("/nothing", StatusCode::NOT_FOUND, "", ""),
        ] {
            let (found, found_type, body) = get(path).await;
            assert_eq!(found, status, "{path}");
            assert!(found_type.starts_with(content_type), "{path}: {found_type}");
            assert!(body.contains(text), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_other_hosts() {
        let ours = page::FILES.iter().filter(|(path, ..)| !path.starts_with("/uplot"));
        for (path, _, text) in ours {
            for foreign in ["https://", "//cdn", "innerHTML", "insertAdjacent", "<style", " onclick", "eval("]
            {
                assert!(!text.contains(foreign), "{path} has {foreign}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_its_option() {
        let first = StatusServer::bind("127.0.0.1:0", ApiSecrets::default()).await.unwrap();
        let taken = first.address().to_string();
        let message = StatusServer::bind(&taken, ApiSecrets::default()).await.err().unwrap().to_string();
        assert!(message.contains("--status-addr") && message.contains(&taken), "{message}");
        assert!(message.contains("another daemon"), "{message}");
    }
}
