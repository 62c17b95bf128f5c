//! `/api/v1/profile`: the requests of a mount or tree by operation, file and process, as
//! server-sent events.
//!
//! `?path=/dir&seconds=10` is answered with `profile` at once and then every second, and after that
//! time with `end`. Each has the totals since the beginning. One profile too many takes the place
//! of the first one, to which `end` comes early. What is counted is given up with the connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::sse::{Event, Sse};
use axum::routing::get;
use futures::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::request_profile::{ProfileReport, RunningProfile};
use super::status::Status;
use super::trace::{END, TraceError, TraceQuery, event};

/// The event with the totals so far. The last one is `end`.
pub(crate) const PROFILE: &str = "profile";

/// How often the totals are sent.
pub(crate) const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);

/// The data of both events.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProfileEvent {
    /// The totals.
    pub(crate) profile: ProfileReport,
    /// Whether this is early, as another profile has the place of this one.
    pub(crate) is_early: bool,
}

/// The route.
pub(super) fn router(status: Arc<Status>) -> Router {
    Router::new().route("/api/v1/profile", get(profile)).with_state(status)
}

async fn profile(
    State(status): State<Arc<Status>>,
    Query(query): Query<TraceQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, TraceError> {
    query.check()?;
    let metrics = status.metrics();
    // All of the mount, with requests whose file has no path.
    let is_whole = query.path.trim_end_matches('/').is_empty();
    let tree = if is_whole { String::new() } else { metrics.slow_reads().followers().path_of(&query.path) };
    let until = Instant::now() + Duration::from_secs(query.seconds);
    Ok(Sse::new(events(metrics.profilers().start(&tree), until)))
}

fn events(profile: RunningProfile, until: Instant) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((profile, Instant::now())), move |state| async move {
        let (profile, next) = state?;
        sleep_until(next.min(until)).await;
        let is_early = profile.is_displaced();
        let data = ProfileEvent { profile: profile.report(), is_early };
        if is_early || next >= until {
            return Some((Ok(event(END, &data)), None));
        }
        Some((Ok(event(PROFILE, &data)), Some((profile, Instant::now() + SNAPSHOT_INTERVAL))))
    })
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::some_status;
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt;

    async fn ask(status: &Arc<Status>, query: &str) -> axum::response::Response {
        let request = Request::get(format!("/api/v1/profile?{query}")).body(Body::empty()).unwrap();
        router(status.clone()).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn totals_are_told_each_second_and_at_the_end() {
        let status = some_status();
        status.metrics().slow_reads().followers().set_root("/data");
        let response = ask(&status, "path=/a&seconds=2").await;
        assert_eq!(response.status(), StatusCode::OK);
        for path in ["/data/a/file", "/data/b", "/a"] {
            status.metrics().profilers().begin("read", 0, || Some(path.into())).transferred(7);
        }
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let told = String::from_utf8(body.to_vec()).unwrap();
        let names: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!((names[..2].to_vec(), names[names.len() - 1]), (vec![PROFILE, PROFILE], END));
        let data = told.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
        let ProfileEvent { profile, is_early } = serde_json::from_str(data).unwrap();
        assert!(!is_early && profile.seconds >= 2.0);
        let [file] = &profile.files[..] else { panic!("{:?}", profile.files) };
        assert_eq!((file.name.as_str(), file.usage.count, file.usage.bytes), ("/data/a/file", 1, 7));
        assert!(!status.metrics().profilers().has_any(), "it ends with the response");
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_profile_along_and_a_displaced_one_ends_early() {
        let status = some_status();
        let profilers = status.metrics().profilers();
        drop(ask(&status, "seconds=3600").await);
        assert!(!profilers.has_any());
        let first = ask(&status, "seconds=3600").await;
        let _later: Vec<_> = (0..4).map(|_| profilers.start("")).collect();
        let body = to_bytes(first.into_body(), usize::MAX).await.unwrap();
        let told = String::from_utf8(body.to_vec()).unwrap();
        assert!(told.contains("event: end") && told.contains("\"is_early\":true"), "{told}");
        for query in ["path=a", "seconds=0"] {
            assert_eq!(ask(&status, query).await.status(), StatusCode::BAD_REQUEST);
        }
    }
}
