//! The dashboard: a page that is compiled in and loads nothing from other hosts.
//!
//! The content security policy lets a browser load only files of this server, forbids inline
//! scripts and styles, and keeps text from HTML parsers (`require-trusted-types-for`): names of
//! files are untrusted and stay text. uPlot draws the charts (`page/uplot/README.md`).

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The content security policy of every response, not only of the page.
pub(super) const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                                          require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// Every file of the page: its path, type and content.
pub(super) const FILES: [(&str, &str, &str); 15] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/icon.svg", IMAGE, include_str!("page/icon.svg")),
    ("/dashboard.css", STYLE, include_str!("page/dashboard.css")),
    ("/dashboard.js", SCRIPT, include_str!("page/dashboard.js")),
    ("/charts.js", SCRIPT, include_str!("page/charts.js")),
    ("/format.js", SCRIPT, include_str!("page/format.js")),
    ("/heat.js", SCRIPT, include_str!("page/heat.js")),
    ("/memory.js", SCRIPT, include_str!("page/memory.js")),
    ("/overview.js", SCRIPT, include_str!("page/overview.js")),
    ("/reads.js", SCRIPT, include_str!("page/reads.js")),
    ("/servers.js", SCRIPT, include_str!("page/servers.js")),
    ("/tables.js", SCRIPT, include_str!("page/tables.js")),
    ("/terms.js", SCRIPT, include_str!("page/terms.js")),
    ("/uplot.js", SCRIPT, include_str!("page/uplot/uPlot.iife.min.js")),
    ("/uplot.css", STYLE, include_str!("page/uplot/uPlot.min.css")),
];

/// The routes of these files.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, text)| {
        router.route(path, get(move || async move { file(content_type, text) }))
    })
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
