//! The dashboard: a page that is compiled in and loads nothing from elsewhere.
//!
//! The content security policy lets a browser run and load only what this server sends, no script or style within the page, and hand
//! text to no parser of HTML (`require-trusted-types-for`): names of files are whatever somebody chose, and stay text. The charts are drawn
//! by uPlot (`page/uplot/README.md`).

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// For everything that is served, not only for the page.
pub(super) const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                                          require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// Every file of the page: its path, type and content.
pub(super) const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/icon.svg", IMAGE, include_str!("page/icon.svg")),
    ("/dashboard.css", STYLE, include_str!("page/dashboard.css")),
    ("/dashboard.js", SCRIPT, include_str!("page/dashboard.js")),
    ("/charts.js", SCRIPT, include_str!("page/charts.js")),
    ("/format.js", SCRIPT, include_str!("page/format.js")),
    ("/heat.js", SCRIPT, include_str!("page/heat.js")),
    ("/tables.js", SCRIPT, include_str!("page/tables.js")),
    ("/uplot.js", SCRIPT, include_str!("page/uplot/uPlot.iife.min.js")),
    ("/uplot.css", STYLE, include_str!("page/uplot/uPlot.min.css")),
];

/// Serves them.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, text)| {
        router.route(path, get(move || async move { file(content_type, text) }))
    })
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
