//! `/metrics` for Prometheus and `/healthz` for service managers.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use daemon::prometheus::CONTENT_TYPE;
use daemon::{output, process_metrics};
use rdma_engine::bounded_listener::BoundedListener;
use rdma_engine::metrics::Metrics;
use rdma_engine::store::Store;
use tokio::net::TcpListener;

#[derive(Clone)]
struct Status {
    metrics: Arc<Metrics>,
    store: Arc<Store>,
}

/// Answers until the future is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    store: Arc<Store>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(Status { metrics, store });
    axum::serve(BoundedListener::new(listener), router).await
}

async fn exposition(State(status): State<Status>) -> impl IntoResponse {
    let mut out = status.metrics.exposition();
    let (open, needles) = status.store.open_volumes();
    for (name, help, value) in [
        ("rdma_engine_volumes", "Volumes in the directories.", status.store.volumes()),
        ("rdma_engine_open_volumes", "Volumes whose index is in memory.", open),
        ("rdma_engine_indexed_needles", "Needles in those indexes.", needles),
    ] {
        out.family(name, "gauge", help).sample(&[], value);
    }
    for (name, help, value) in [
        (
            "rdma_engine_index_reads_total",
            "Indexes of volumes that were read as a whole.",
            status.store.index_reads(),
        ),
        (
            "rdma_engine_log_lines_lost_total",
            "Log lines that standard error did not take, or not fast enough.",
            output::lost_lines(),
        ),
    ] {
        out.family(name, "counter", help).sample(&[], value);
    }
    process_metrics::add_to(&mut out);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], out.finish())
}
