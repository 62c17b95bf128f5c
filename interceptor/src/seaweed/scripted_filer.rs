//! A filer for tests whose answers no real one can be brought to give.

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

/// What the filer does about a call.
pub(crate) enum Reply {
    /// Gives this message.
    Message(Vec<u8>),
    /// Gives these messages until there are no more.
    Stream(Receiver<Vec<u8>>),
    /// Fails with this status of gRPC.
    Status(u16),
    /// Does this so much later.
    Late(Duration, Box<Reply>),
    /// Says nothing.
    Silence,
}

impl Reply {
    pub(crate) fn message(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec())
    }

    /// To a `Ping`.
    pub(crate) fn pong() -> Self {
        Self::message(&pb::PingResponse { start_time_ns: now_ns() })
    }
}

/// What the clock of the filer shows.
pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Says what is done about a call of this name, and of this message.
type Script = dyn Fn(&str, &[u8]) -> Reply + Send + Sync;

/// Starts a filer on a loopback port; it goes with the runtime.
pub(crate) async fn start(script: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static) -> ServerAddress {
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
            let call = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
            // The client may have gone.
            let _ = answer(respond, script(&call, message.get(5..).unwrap_or_default())).await;
        });
    }
}

async fn answer(mut respond: SendResponse<Bytes>, mut reply: Reply) -> Result<(), h2::Error> {
    while let Reply::Late(pause, then) = reply {
        sleep(pause).await;
        reply = *then;
    }
    let begin = |respond: &mut SendResponse<Bytes>| {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        respond.send_response(head, false)
    };
    let status = match reply {
        Reply::Silence | Reply::Late(..) => {
            std::future::poll_fn(|context| respond.poll_reset(context)).await?;
            return Ok(());
        }
        Reply::Message(message) => {
            let mut stream = begin(&mut respond)?;
            send(&mut stream, &message)?;
            return end(&mut stream, 0);
        }
        Reply::Stream(mut messages) => {
            // As a filer does, not before there is a message.
            let Some(first) = messages.recv().await else { return end(&mut begin(&mut respond)?, 0) };
            let mut stream = begin(&mut respond)?;
            send(&mut stream, &first)?;
            while let Some(message) = messages.recv().await {
                send(&mut stream, &message)?;
            }
            return end(&mut stream, 0);
        }
        Reply::Status(status) => status,
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
