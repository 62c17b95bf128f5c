//! The status API: `/` for people, `/metrics` for Prometheus, `/api/v1/status` for scripts, `/healthz` and `/readyz`
//! for whoever restarts things.
//!
//! What is offered here only reads; what changes something is added by who starts the server, and guarded there. Nothing
//! is served that is not compiled in. The page's script and style come from here too, and the
//! content security policy lets the browser load nothing else; the script writes text nodes only, so a file name or
//! an error message can never become markup.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use tokio::net::TcpListener;

use super::export;
use super::peer::Peer;
use super::report::Report;
use super::status::Status;

const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                               base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The status API could not be offered.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the status API on --status-addr {address}: {error}{hint}")]
pub struct BindError {
    address: String,
    error: io::Error,
    hint: &'static str,
}

/// A bound status API that does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes `address` (`host:port`, port 0 for any free one).
    pub async fn bind(address: &str) -> Result<Self, BindError> {
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
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the runtime ends, also what `more` has.
    pub async fn serve(self, status: Arc<Status>, more: Router) {
        let service = router(status, more).into_make_service_with_connect_info::<Peer>();
        if let Err(error) = axum::serve(self.listener, service).await {
            tracing::error!(%error, "the status API has stopped");
        }
    }
}

fn router(status: Arc<Status>, more: Router) -> Router {
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", include_str!("page/index.html")) }))
        .route("/status.js", get(|| async { asset("text/javascript", include_str!("page/status.js")) }))
        .route("/status.css", get(|| async { asset("text/css", include_str!("page/status.css")) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/status", get(report))
        .with_state(status)
        .merge(more)
        .layer(middleware::map_response(secured))
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    ([(header::CONTENT_TYPE, export::CONTENT_TYPE)], export::exposition(status.metrics())).into_response()
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    match status.ready().await {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn report(State(status): State<Arc<Status>>) -> Json<Report> {
    Json(status.report())
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
        let response = router(some_status(), Router::new()).oneshot(request).await.unwrap();
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
    async fn every_address_answers() {
        for (path, status, content_type, text) in [
            ("/", StatusCode::OK, "text/html", "status.js"),
            ("/status.js", StatusCode::OK, "text/javascript", "/api/v1/status"),
            ("/status.css", StatusCode::OK, "text/css", "body"),
            (
                "/metrics",
                StatusCode::OK,
                export::CONTENT_TYPE,
                "interceptor_reads_total{source=\"http\"} 0\n",
            ),
            ("/healthz", StatusCode::OK, "text/plain", "ok"),
            ("/readyz", StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not mounted yet"),
            ("/api/v1/status", StatusCode::OK, "application/json", "\"api_version\":1"),
            ("/nothing", StatusCode::NOT_FOUND, "", ""),
        ] {
            let (found, found_type, body) = get(path).await;
            assert_eq!(found, status, "{path}");
            assert!(found_type.starts_with(content_type), "{path}: {found_type}");
            assert!(body.contains(text), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn the_page_brings_nothing_from_elsewhere() {
        for path in ["/", "/status.js", "/status.css"] {
            let (_, _, body) = get(path).await;
            for foreign in ["://", "innerHTML", "<style", " onclick", "eval("] {
                assert!(!body.contains(foreign), "{path} has {foreign}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_its_option() {
        let first = Server::bind("127.0.0.1:0").await.unwrap();
        let taken = first.address().to_string();
        let message = Server::bind(&taken).await.err().unwrap().to_string();
        assert!(message.contains("--status-addr") && message.contains(&taken), "{message}");
        assert!(message.contains("another daemon"), "{message}");
    }
}
