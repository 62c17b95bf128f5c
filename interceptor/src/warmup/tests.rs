//! Jobs and requests, hostile ones included. The content comes from an origin that tests can
//! block.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use futures::FutureExt;
use futures::future::BoxFuture;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::file::WarmupFile;
use super::registry::{JobRefusal, JobRegistry};
use super::ticket::{NodeInstance, ReadTicket, TICKET_LEN, TicketIssuer};
use super::wire::{
    API_PATH, FileProblem, FileResult, JobReport, JobRequest, JobState, MAX_BODY_BYTES, MAX_FILES,
    WarmupAction,
};
use super::{WarmupMount, api};
use crate::arrival::Arrival;
use crate::cache::{Cache, MIN_CAPACITY, ObjectId};
use crate::priority::Priority;
use crate::read::{FileLayout, FileVersion, Object, ObjectEncoding, Origin, OriginError, ReadError, Reader};
use crate::telemetry::peer::Peer;
use crate::telemetry::{Metrics, Source};
use crate::timeline::Timeline;
use crate::write_target::WriteTarget;

/// A user who may read some files and is no operator.
const USER: u32 = 65_534;

/// Issues the tickets of all mounts of these tests.
static ISSUER: LazyLock<Arc<TicketIssuer>> = LazyLock::new(Arc::default);

const SIZE: u64 = 1 << 20;
/// The largest number of a file that exists.
const FILES: u64 = 40;
/// The number of a file whose content cannot be fetched.
const BROKEN: u64 = 13;

/// An origin that fetches as many blocks as there are permits.
struct Gate(Semaphore);

impl Origin for Gate {
    fn resolve<'a>(&'a self, _: &'a FileVersion, _: Arrival) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        unreachable!("all layouts are known")
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        _: u64,
        _: &'a mut dyn WriteTarget,
        _: &'a Priority,
        _: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            self.0.acquire().await.expect("is not closed").forget();
            if object.id == ObjectId(BROKEN.into()) {
                return Err(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("no such needle")));
            }
            Ok(Source::Http)
        }
        .boxed()
    }
}

/// File `number` is one object with that id.
fn file(number: u64) -> Option<Arc<dyn WarmupFile>> {
    let id = ObjectId(number.into());
    let object = Object { id, offset: 0, size: SIZE, modified_ts_ns: 0, encoding: ObjectEncoding::default() };
    let version =
        FileVersion::with_layout("/secret/f", FileLayout::in_order(Box::<[Object]>::from([object]), SIZE));
    (1..=FILES).contains(&number).then(|| Arc::new(version) as _)
}

/// A registry with a mount, and the gate of its origin with `permits`.
fn registry(permits: usize) -> (Arc<JobRegistry>, Arc<Gate>) {
    let registry = JobRegistry::new();
    let gate = set_mount(&registry, permits);
    (registry, gate)
}

fn set_mount(registry: &JobRegistry, permits: usize) -> Arc<Gate> {
    let gate = Arc::new(Gate(Semaphore::new(permits)));
    let cache = Arc::new(Cache::new(MIN_CAPACITY).unwrap());
    let reader = Reader::new(cache, gate.clone(), Metrics::new(), Handle::current());
    let file = Box::new(|at: NodeInstance| file(at.node).filter(|_| at == instance(at.node)));
    registry.set_mount(WarmupMount { device: "0:50".into(), tickets: ISSUER.clone(), file, reader });
    gate
}

/// The current instance of file `number`.
fn instance(number: u64) -> NodeInstance {
    NodeInstance { node: number, serial: number ^ 0xff }
}

fn ticket_of(user: u32, number: u64) -> String {
    ISSUER.issue(&ReadTicket { file: instance(number), user, is_owner: false })
}

/// A ticket of root.
fn ticket(number: u64) -> String {
    ticket_of(0, number)
}

fn request(action: WarmupAction, numbers: impl IntoIterator<Item = u64>) -> JobRequest {
    let tickets = numbers.into_iter().map(ticket).collect();
    JobRequest { action, device: "0:50".into(), tickets, force: false, held_bytes: 0 }
}

const LONG: Duration = Duration::from_secs(20);

async fn done(registry: &Arc<JobRegistry>, request: JobRequest) -> JobReport {
    let begun = registry.begin(&request).unwrap();
    let report = registry.report(&begun.id, LONG).await.unwrap();
    assert_eq!(report.state, JobState::Done, "{report:?}");
    report
}

const WARM: FileResult = FileResult { size: SIZE, cached: SIZE, problem: None };
const COLD: FileResult = FileResult { size: SIZE, cached: 0, problem: None };

#[tokio::test]
async fn files_are_fetched_counted_and_evicted() {
    let (registry, _gate) = registry(100);
    let fetched = done(&registry, request(WarmupAction::Fetch, [1, 2, 99, BROKEN])).await;
    let problem = |size, problem| FileResult { size, cached: 0, problem: Some(problem) };
    let strange = [problem(0, FileProblem::Gone), problem(SIZE, FileProblem::Unreadable)];
    assert_eq!(fetched.results, [&[WARM, WARM], &strange[..]].concat());
    assert_eq!((fetched.files_done, fetched.bytes_done, fetched.bytes_moved), (4, 2 * SIZE, 2 * SIZE));
    assert_eq!(done(&registry, request(WarmupAction::Check, [3, 2])).await.results, [COLD, WARM]);
    let evicted = done(&registry, request(WarmupAction::Evict, [1, 2, 3])).await;
    assert_eq!((evicted.results, evicted.bytes_moved), (vec![COLD; 3], 2 * SIZE));
    assert_eq!(done(&registry, request(WarmupAction::Check, [1, 2])).await.results, [COLD, COLD]);
}

#[tokio::test]
async fn a_job_without_a_valid_ticket_of_each_file_does_and_reveals_nothing() {
    let (registry, _gate) = registry(100);
    let proved = request(WarmupAction::Fetch, [1, 2]);
    let with = |ticket: String| {
        let mut request = proved.clone();
        request.tickets.push(ticket);
        request
    };
    let strange = TicketIssuer::default().issue(&ReadTicket { file: instance(3), user: 0, is_owner: true });
    for bad in ["3".to_owned(), String::new(), strange] {
        assert!(matches!(registry.begin(&with(bad)), Err(JobRefusal::Ticket(_))));
    }
    assert!(matches!(registry.begin(&with(ticket_of(USER, 3))), Err(JobRefusal::NotOneUser)));
    assert!(matches!(registry.begin(&request(WarmupAction::Fetch, [])), Err(JobRefusal::NotOneUser)));
    assert_eq!(
        done(&registry, request(WarmupAction::Check, [1, 2, 3])).await.results,
        [COLD; 3],
        "nothing was begun"
    );
    // The node number belongs to another file now.
    let old = ReadTicket { file: NodeInstance { node: 1, serial: 1 }, user: 0, is_owner: true };
    let old = JobRequest { tickets: vec![ISSUER.issue(&old)], ..request(WarmupAction::Fetch, []) };
    let gone = FileResult { size: 0, cached: 0, problem: Some(FileProblem::Gone) };
    assert_eq!(done(&registry, old).await.results, [gone]);
}

#[tokio::test]
async fn a_user_evicts_only_files_of_his_own() {
    let (registry, _gate) = registry(100);
    let of_user = |action, is_owner| {
        let ticket = |number| ISSUER.issue(&ReadTicket { file: instance(number), user: USER, is_owner });
        JobRequest { tickets: [1, 2].map(ticket).into(), ..request(action, []) }
    };
    assert_eq!(done(&registry, of_user(WarmupAction::Fetch, false)).await.results, [WARM; 2]);
    let refused = FileResult { size: 0, cached: 0, problem: Some(FileProblem::NotPermitted) };
    assert_eq!(done(&registry, of_user(WarmupAction::Evict, false)).await.results, [refused; 2]);
    assert_eq!(done(&registry, of_user(WarmupAction::Check, false)).await.results, [WARM; 2]);
    let forced = JobRequest { force: true, ..of_user(WarmupAction::Fetch, true) };
    assert!(matches!(registry.begin(&forced), Err(JobRefusal::ForceNotPermitted)));
    assert_eq!(done(&registry, of_user(WarmupAction::Evict, true)).await.results, [COLD; 2]);
}

#[tokio::test]
async fn no_user_takes_all_jobs() {
    let (registry, _gate) = registry(0);
    let job_of = |user| JobRequest { tickets: vec![ticket_of(user, 1)], ..request(WarmupAction::Fetch, []) };
    let jobs_of = |user| (0..100).take_while(|_| registry.begin(&job_of(user)).is_ok()).count();
    assert_eq!((jobs_of(USER), jobs_of(USER - 1)), (8, 8));
    // For example the subordinate ids of one person.
    let others: usize = (100_000..100_020).map(jobs_of).sum();
    assert_eq!(others, 8);
    assert_eq!(jobs_of(0), 8, "the rest is for operators");
}

#[tokio::test]
async fn a_full_cache_ends_the_job_with_the_files_that_fit() {
    let (registry, _gate) = registry(100);
    let report = done(&registry, request(WarmupAction::Fetch, 1..=12)).await;
    assert_eq!(report.results, [WARM; 12]);
    let report = done(&registry, request(WarmupAction::Fetch, 14..=30)).await;
    let fitted = report.results.iter().filter(|result| result.problem.is_none()).count();
    assert!((1..=2).contains(&fitted), "{report:?}");
    assert!(report.results[fitted + 1..].iter().all(|result| result.problem == Some(FileProblem::Full)));
    assert_eq!(
        done(&registry, request(WarmupAction::Check, 1..=12)).await.results,
        [WARM; 12],
        "nothing was evicted"
    );
    let forced = JobRequest { force: true, ..request(WarmupAction::Fetch, 20..=31) };
    assert_eq!(done(&registry, forced).await.results, [WARM; 12]);
}

#[tokio::test]
async fn a_cancelled_job_is_gone() {
    let (registry, gate) = registry(1);
    let job = registry.begin(&request(WarmupAction::Fetch, 1..=5)).unwrap();
    assert_eq!(registry.report(&job.id, Duration::ZERO).await.unwrap().state, JobState::Running);
    let report = registry.cancel(&job.id).await.unwrap();
    assert_eq!(report.state, JobState::Cancelled);
    assert!(registry.report(&job.id, LONG).await.is_none() && registry.cancel(&job.id).await.is_none());
    gate.0.add_permits(100);
    assert_eq!(
        done(&registry, request(WarmupAction::Fetch, 6..=9)).await.results,
        [WARM; 4],
        "the permit was returned"
    );
}

#[tokio::test]
async fn a_job_ends_when_its_lease_runs_out() {
    let registry = JobRegistry::with_lease(Duration::from_millis(20));
    let _gate = set_mount(&registry, 0);
    let job = registry.begin(&request(WarmupAction::Fetch, [1])).unwrap();
    let gone = async {
        // A request would renew the lease. The task of the job owns the registry while it lives.
        while Arc::strong_count(&registry) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.unwrap();
    assert!(registry.report(&job.id, Duration::ZERO).await.is_none());
}

#[tokio::test]
async fn files_of_a_job_and_jobs_are_limited() {
    let (registry, _gate) = registry(0);
    let many = request(WarmupAction::Check, 0..=MAX_FILES as u64);
    assert!(registry.begin(&many).unwrap_err().to_string().contains("1024"));
    let mut jobs = 0;
    let error = loop {
        match registry.begin(&request(WarmupAction::Fetch, [1])) {
            Ok(_) => jobs += 1,
            Err(error) => break error.to_string(),
        }
        assert!(jobs < 1000);
    };
    assert!(error.contains("32 jobs"), "{error}");
}

/// A request as `interceptor warmup` sends it.
fn call(method: Method, path: &str, body: impl Into<Body>) -> HttpRequest<Body> {
    let mut request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header("X-Interceptor", "warmup")
        .body(body.into())
        .unwrap();
    let peer = Peer { remote: "127.0.0.1".parse().unwrap(), local: None, is_encrypted: false };
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

async fn answer(router: &Router, request: HttpRequest<Body>) -> (StatusCode, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    assert!(response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_none());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(!text.contains("secret"), "no names: {text}");
    (status, serde_json::from_slice(&body).unwrap_or(Value::String(text)))
}

fn check(tickets: &[String]) -> String {
    json!({ "action": "check", "device": "0:50", "tickets": tickets }).to_string()
}

#[tokio::test]
async fn a_job_over_http_from_start_to_delete() {
    let (registry, _gate) = registry(100);
    let router = api::router(registry);
    let body =
        json!({ "action": "fetch", "device": "0:50", "tickets": [ticket(1), ticket(u64::MAX)], "force": true })
            .to_string();
    let (status, job) = answer(&router, call(Method::POST, API_PATH, body)).await;
    assert_eq!(status, StatusCode::CREATED);
    let at = format!("{API_PATH}/{}", job["id"].as_str().unwrap());
    let (status, report) = answer(&router, call(Method::GET, &format!("{at}?wait_ms=99999999"), "")).await;
    assert_eq!(
        (status, &report["state"], &report["files_done"]),
        (StatusCode::OK, &json!("done"), &json!(2))
    );
    assert_eq!(report["results"][1]["problem"], "gone");
    assert_eq!(answer(&router, call(Method::DELETE, &at, "")).await.0, StatusCode::OK);
    assert_eq!(answer(&router, call(Method::GET, &at, "")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn requests_of_pages_and_other_hosts_are_refused() {
    let (registry, _gate) = registry(0);
    let router = api::router(registry);
    let changed = |change: &dyn Fn(&mut HttpRequest<Body>)| {
        let mut request = call(Method::POST, API_PATH, check(&[ticket(1)]));
        change(&mut request);
        request
    };
    type Change<'a> = (&'a str, StatusCode, &'a dyn Fn(&mut HttpRequest<Body>));
    let changes: [Change; 6] = [
        ("no custom header, like a form of a page", StatusCode::FORBIDDEN, &|request| {
            request.headers_mut().remove("x-interceptor");
        }),
        ("a page, by DNS rebinding", StatusCode::FORBIDDEN, &|request| {
            request.headers_mut().insert(header::ORIGIN, "http://evil.example:9650".parse().unwrap());
        }),
        ("a page in a sandbox", StatusCode::FORBIDDEN, &|request| {
            request.headers_mut().insert(header::ORIGIN, "null".parse().unwrap());
        }),
        ("text, which needs no preflight", StatusCode::UNSUPPORTED_MEDIA_TYPE, &|request| {
            request.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        }),
        ("another host", StatusCode::FORBIDDEN, &|request| {
            let peer = Peer {
                remote: "10.0.0.6".parse().unwrap(),
                local: "10.0.0.5".parse().ok(),
                is_encrypted: false,
            };
            request.extensions_mut().insert(ConnectInfo(peer));
        }),
        ("an unknown peer", StatusCode::FORBIDDEN, &|request| {
            request.extensions_mut().remove::<ConnectInfo<Peer>>();
        }),
    ];
    for (who, status, change) in changes {
        let (found, body) = answer(&router, changed(change)).await;
        assert_eq!(found, status, "{who}: {body}");
        assert!(body["error"].is_string(), "{who}: {body}");
    }
    let elsewhere = HttpRequest::get("/no/such/page").body(Body::empty()).unwrap();
    assert_eq!(answer(&router, elsewhere).await.0, StatusCode::NOT_FOUND, "other routes are not guarded");
    let preflight = answer(&router, call(Method::OPTIONS, API_PATH, "")).await;
    assert_eq!(preflight.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        answer(&router, call(Method::POST, API_PATH, check(&[ticket(1)]))).await.0,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let (registry, _gate) = registry(0);
    let router = api::router(registry);
    let too_many: Vec<_> = (0..=MAX_FILES as u64).map(ticket).collect();
    assert!(check(&too_many).len() < MAX_BODY_BYTES && too_many[0].len() == TICKET_LEN);
    for (body, status) in [
        (String::new(), StatusCode::BAD_REQUEST),
        ("[]".into(), StatusCode::BAD_REQUEST),
        (check(&[ticket(1)]).replace("check", "format"), StatusCode::BAD_REQUEST),
        (check(&["1".into()]), StatusCode::FORBIDDEN),
        (check(&[]), StatusCode::BAD_REQUEST),
        (check(&[]).replace("[]", "[1]"), StatusCode::BAD_REQUEST),
        (check(&[]).replace("[]", "[], \"nodes\": [1]"), StatusCode::BAD_REQUEST),
        (check(&[]).replace("[]", "[], \"paths\": [\"/etc\"]"), StatusCode::BAD_REQUEST),
        (check(&[ticket(1)]).replace("0:50", "0:51"), StatusCode::CONFLICT),
        (check(&too_many), StatusCode::PAYLOAD_TOO_LARGE),
        (" ".repeat(MAX_BODY_BYTES + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("[".repeat(MAX_BODY_BYTES), StatusCode::BAD_REQUEST),
    ] {
        let (found, answer) = answer(&router, call(Method::POST, API_PATH, body.clone())).await;
        assert_eq!(found, status, "{}: {answer}", &body[..body.len().min(80)]);
        assert!(answer["error"].is_string(), "{answer}");
    }
    let early = api::router(JobRegistry::new());
    let (status, _) = answer(&early, call(Method::POST, API_PATH, check(&[ticket(1)]))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

proptest! {
    #[test]
    fn arbitrary_bodies_and_ids_are_refused(body in prop::collection::vec(any::<u8>(), 0..300), id in "[a-zA-Z0-9%./-]{1,40}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let router = api::router(JobRegistry::new());
            let (status, _) = answer(&router, call(Method::POST, API_PATH, body)).await;
            assert!(status.is_client_error(), "{status}");
            if let Ok(uri) = format!("{API_PATH}/{id}").parse::<axum::http::Uri>() {
                let (status, _) = answer(&router, call(Method::GET, &uri.to_string(), "")).await;
                assert!(status.is_client_error(), "{uri}: {status}");
            }
        });
    }
}
