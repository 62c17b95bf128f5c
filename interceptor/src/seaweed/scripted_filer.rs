//! A filer for tests that sends replies no real one can be made to send.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

use super::address::ServerAddress;
use super::filer::FilerClient;
use super::pb;
use super::security::Security;

/// How the filer replies to a call.
pub(crate) enum ScriptedReply {
    /// With this message.
    Message(Vec<u8>),
    /// With these messages until there are no more.
    Stream(Receiver<Vec<u8>>),
    /// With this gRPC status.
    Status(u16),
    /// With another reply, after this time.
    Late(Duration, Box<ScriptedReply>),
    /// Not at all.
    Silence,
}

impl ScriptedReply {
    pub(crate) fn message(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec())
    }

    /// The reply to a `Ping`.
    pub(crate) fn pong() -> Self {
        Self::message(&pb::PingResponse { start_time_ns: now_ns() })
    }
}

/// What the filer's clock shows.
pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Returns the reply to a call, given its path and message.
type Script = dyn Fn(&str, &[u8]) -> ScriptedReply + Send + Sync;

/// Starts a filer on a loopback port. It stops with the runtime. The script is given the name of a
/// call.
pub(crate) async fn start(
    script: impl Fn(&str, &[u8]) -> ScriptedReply + Send + Sync + 'static,
) -> ServerAddress {
    start_service(move |path, message| script(path.rsplit('/').next().unwrap_or_default(), message)).await
}

/// Starts another gRPC service in the same way. The script is given the path of a call,
/// `/SERVICE/NAME`.
pub(crate) async fn start_service(
    script: impl Fn(&str, &[u8]) -> ScriptedReply + Send + Sync + 'static,
) -> ServerAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc_port = listener.local_addr().unwrap().port();
    let script: Arc<Script> = Arc::new(script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, script.clone()));
        }
    });
    ServerAddress { host: "127.0.0.1".into(), http_port: grpc_port, grpc_port }
}

/// A client of such filers. The script must answer `GetFilerConfiguration`.
pub(crate) async fn client(filers: Vec<ServerAddress>) -> FilerClient {
    FilerClient::connect(filers, &Security::default()).await.unwrap()
}

async fn serve(stream: TcpStream, script: Arc<Script>) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let script = script.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut message = BytesMut::new();
            while let Some(Ok(part)) = body.data().await {
                let _ = body.flow_control().release_capacity(part.len());
                message.put(part);
            }
            // Fails if the client is gone.
            let _ = answer(respond, script(head.uri.path(), message.get(5..).unwrap_or_default())).await;
        });
    }
}

async fn answer(mut respond: SendResponse<Bytes>, mut reply: ScriptedReply) -> Result<(), h2::Error> {
    while let ScriptedReply::Late(pause, then) = reply {
        sleep(pause).await;
        reply = *then;
    }
    let begin = |respond: &mut SendResponse<Bytes>| {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        respond.send_response(head, false)
    };
    let status = match reply {
        ScriptedReply::Silence | ScriptedReply::Late(..) => {
            std::future::poll_fn(|context| respond.poll_reset(context)).await?;
            return Ok(());
        }
        ScriptedReply::Message(message) => {
            let mut stream = begin(&mut respond)?;
            send(&mut stream, &message)?;
            return end(&mut stream, 0);
        }
        ScriptedReply::Stream(mut messages) => {
            // A filer sends the head with the first message.
            let Some(first) = messages.recv().await else { return end(&mut begin(&mut respond)?, 0) };
            let mut stream = begin(&mut respond)?;
            send(&mut stream, &first)?;
            while let Some(message) = messages.recv().await {
                send(&mut stream, &message)?;
            }
            return end(&mut stream, 0);
        }
        ScriptedReply::Status(status) => status,
    };
    end(&mut begin(&mut respond)?, status)
}

fn send(stream: &mut SendStream<Bytes>, message: &[u8]) -> Result<(), h2::Error> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    stream.send_data(frame.freeze(), false)
}

fn end(stream: &mut SendStream<Bytes>, status: u16) -> Result<(), h2::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    stream.send_trailers(trailers)
}
