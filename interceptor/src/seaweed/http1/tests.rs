//! The client against a server that behaves as real ones rarely do.

use super::*;
use crate::seaweed::scripted::{ScriptedServer, Step, answer, send};
use crate::timeline::{StepKind, Timeline};
use tokio::time::Instant;

fn client(timeouts: HttpTimeouts) -> HttpClient {
    HttpClient::new(None, timeouts)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn get(client: &HttpClient, server: &ScriptedServer) -> Result<Response, HttpError> {
    client
        .get(
            &GetRequest { authority: server.address(), target: "/x", fields: &[] },
            soon(),
            &Timeline::default(),
        )
        .await
}

async fn body(mut response: Response) -> Result<Vec<u8>, HttpError> {
    let (mut body, mut piece) = (Vec::new(), [0; 7]);
    loop {
        match response.read(&mut piece).await? {
            0 => return Ok(body),
            count => body.extend_from_slice(&piece[..count]),
        }
    }
}

async fn fetch(steps: Vec<Step>) -> Result<Vec<u8>, HttpError> {
    let server = ScriptedServer::always(steps);
    body(get(&client(HttpTimeouts::default()), &server).await?).await
}

fn raw(text: &str) -> Vec<Step> {
    vec![Step::Send(text.into()), Step::Close]
}

#[tokio::test]
async fn bodies_of_any_length_arrive_over_one_connection() {
    let server = ScriptedServer::start(|nth, _| send(200, &[], &vec![nth as u8; nth * 10_001]));
    let client = client(HttpTimeouts::default());
    for nth in 0..8 {
        let response = get(&client, &server).await.unwrap();
        assert_eq!(response.head().content_length(), Some(nth as u64 * 10_001));
        assert_eq!(body(response).await.unwrap(), vec![nth as u8; nth * 10_001]);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_request_is_what_a_server_expects() {
    let server = ScriptedServer::always(send(200, &[], b""));
    let request =
        GetRequest { authority: server.address(), target: "/3,01?a=b", fields: &[("Range", "bytes=0-1")] };
    client(HttpTimeouts::default()).get(&request, soon(), &Timeline::default()).await.unwrap();
    let expected = format!(
        "GET /3,01?a=b HTTP/1.1\r\nHost: {}\r\nUser-Agent: interceptor/{}\r\nRange: bytes=0-1\r\n\r\n",
        server.address(),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(server.requests(), [expected]);
}

#[tokio::test]
async fn nothing_can_be_smuggled_into_a_request() {
    let client = client(HttpTimeouts::default());
    for (authority, target, value) in
        [("a:1\r\nX: y", "/", "v"), ("a:1", "/ HTTP/1.1\r\n", "v"), ("a:1", "/", "v\r\nX: y"), ("", "/", "v")]
    {
        let request = GetRequest { authority, target, fields: &[("F", value)] };
        assert!(matches!(
            client.get(&request, soon(), &Timeline::default()).await,
            Err(HttpError::BadRequest)
        ));
    }
}

#[tokio::test]
async fn chunked_bodies_are_decoded_and_the_connection_kept() {
    let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\nA;name=value\r\n, chunked \r\n05\r\nworld\r\n0\r\nTrailer: x\r\n\r\n";
    let server = ScriptedServer::always(vec![Step::Send(text.into())]);
    let client = client(HttpTimeouts::default());
    for _ in 0..2 {
        let response = get(&client, &server).await.unwrap();
        assert_eq!(body(response).await.unwrap(), b"hello, chunked world");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn malformed_chunked_bodies_are_refused() {
    for text in
        ["x\r\n", "\r\n", "-1\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "10000000000000000\r\n", &"1".repeat(3000)]
    {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}");
        assert!(matches!(fetch(raw(&answer)).await, Err(HttpError::Chunked)), "{text:?}");
    }
    let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    assert!(matches!(fetch(raw(cut)).await, Err(HttpError::Closed(ResponsePhase::Body))));
}

#[tokio::test]
async fn a_body_cut_short_is_an_error() {
    let mut whole = answer(200, &[], &[1; 100_000]);
    whole.truncate(90_000);
    let cut = fetch(vec![Step::Send(whole.clone()), Step::Close]).await;
    assert!(matches!(cut, Err(HttpError::Closed(ResponsePhase::Body))));
    let broken = fetch(vec![Step::Send(whole), Step::Reset]).await;
    assert!(matches!(broken, Err(HttpError::Io(_))));
}

#[tokio::test]
async fn a_malformed_head_is_an_error() {
    assert!(matches!(fetch(raw("\0\u{1}\u{2} rubbish\r\n\r\n")).await, Err(HttpError::Head(_))));
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(100_000));
    assert!(matches!(fetch(raw(&endless)).await, Err(HttpError::Head(_))));
    let cut = fetch(raw("HTTP/1.1 200 OK\r\nContent-")).await;
    assert!(matches!(cut, Err(HttpError::Closed(ResponsePhase::Head))));
    assert!(matches!(fetch(vec![Step::Close]).await, Err(HttpError::Closed(ResponsePhase::BeforeResponse))));
}

#[tokio::test]
async fn a_body_must_say_how_long_it_is_unless_it_only_explains_an_error() {
    assert!(matches!(fetch(raw("HTTP/1.1 200 OK\r\n\r\nbody")).await, Err(HttpError::UnknownLength)));
    let server = ScriptedServer::always(raw("HTTP/1.1 404 Not Found\r\n\r\nbody"));
    let response = get(&client(HttpTimeouts::default()), &server).await.unwrap();
    assert_eq!(response.head().status, 404);
}

#[tokio::test]
async fn informational_responses_are_skipped() {
    let text = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(fetch(raw(text)).await.unwrap(), b"ok");
}

#[tokio::test]
async fn a_server_that_sends_nothing_times_out() {
    let timeouts = HttpTimeouts { stall: Duration::from_millis(50), ..HttpTimeouts::default() };
    let mut begun = answer(200, &[], &[1; 1000]);
    begun.truncate(500);
    for steps in [vec![Step::Hold], vec![Step::Send(begun.clone()), Step::Hold]] {
        let server = ScriptedServer::always(steps);
        let outcome = async { body(get(&client(timeouts.clone()), &server).await?).await }.await;
        assert!(matches!(outcome, Err(HttpError::Stalled(_))), "{outcome:?}");
    }
    let server = ScriptedServer::always(vec![Step::Send(begun), Step::Hold]);
    let request = GetRequest { authority: server.address(), target: "/", fields: &[] };
    let deadline = Instant::now() + Duration::from_millis(50);
    let outcome = async {
        body(client(HttpTimeouts::default()).get(&request, deadline, &Timeline::default()).await?).await
    }
    .await;
    assert!(matches!(outcome, Err(HttpError::Deadline)), "{outcome:?}");
}

#[tokio::test]
async fn a_response_without_end_misses_its_deadline() {
    let piece = format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000)).into_bytes();
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let server = ScriptedServer::always(vec![Step::Send(head), Step::Repeat(piece)]);
    let request = GetRequest { authority: server.address(), target: "/", fields: &[] };
    let deadline = Instant::now() + Duration::from_millis(50);
    let outcome = async {
        body(client(HttpTimeouts::default()).get(&request, deadline, &Timeline::default()).await?).await
    }
    .await;
    assert!(matches!(outcome, Err(HttpError::Deadline)));
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced_once() {
    let server =
        ScriptedServer::start(|nth, _| if nth == 1 { vec![Step::Close] } else { send(200, &[], b"ok") });
    let client = client(HttpTimeouts::default());
    for _ in 0..2 {
        assert_eq!(body(get(&client, &server).await.unwrap()).await.unwrap(), b"ok");
    }
    assert_eq!((server.connections(), server.requests().len()), (2, 3));
}

#[tokio::test]
async fn a_connection_is_kept_only_after_exactly_one_whole_response() {
    let rubbish = [answer(200, &[], b"ok"), b"rubbish".to_vec()].concat();
    let closing = send(200, &[("Connection", "close")], b"ok");
    for steps in [vec![Step::Send(rubbish)], closing] {
        let server = ScriptedServer::always(steps);
        let client = client(HttpTimeouts::default());
        for _ in 0..2 {
            assert_eq!(body(get(&client, &server).await.unwrap()).await.unwrap(), b"ok");
        }
        assert_eq!(server.connections(), 2);
    }
    let server = ScriptedServer::always(send(200, &[], b"ok"));
    let client = client(HttpTimeouts::default());
    let mut half = get(&client, &server).await.unwrap();
    assert_eq!(half.read(&mut [0]).await.unwrap(), 1);
    drop(half);
    assert_eq!(body(get(&client, &server).await.unwrap()).await.unwrap(), b"ok");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_closed_port_is_a_failure_to_connect() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let request = GetRequest { authority: &address, target: "/", fields: &[] };
    let timeline = Timeline::default();
    let outcome = client(HttpTimeouts::default()).get(&request, soon(), &timeline).await;
    assert!(matches!(outcome, Err(HttpError::Connect(_))));
    let step = timeline.steps().remove(0);
    assert_eq!((step.kind, step.server.as_deref()), (StepKind::Connect, Some(&*address)));
    assert!(step.error.unwrap().contains("cannot connect"));
}
