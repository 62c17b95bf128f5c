//! A client with an engine that sends arbitrary bytes: the client takes no more memory than it
//! asked for, and accepts only an answer that belongs to its request.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rdma_engine::FileId;
use rdma_engine::client::{Client, ClientOptions, ReadTarget, Trust};
use rdma_engine::protocol::{
    Capabilities, Choose, MessageKind, Offer, SessionLimits, Transport, VERSION, Welcome,
};
use rdma_engine_fuzz::bounded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout};

const FID: FileId = FileId { volume: 1, key: 1, cookie: 1 };

/// A connection with its buffers, for any input.
const SPARE: usize = 256 << 10;

/// A client of an engine on this host has its answer by then, or never.
const LIMIT: Duration = Duration::from_millis(200);

struct Engine {
    runtime: Runtime,
    listener: TcpListener,
    address: String,
}

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        Engine { runtime, listener, address }
    })
}

/// What an engine says before the first answer.
fn introduction() -> BytesMut {
    let limits = SessionLimits { in_flight: 4, read: 1 << 20, idle_ms: 1000, lease_ms: 0 };
    let (capabilities, offers) = (Capabilities::default(), vec![Offer::Tcp]);
    let mut bytes = BytesMut::new();
    Welcome { version: VERSION, capabilities, instance: 1, limits, offers, proof: None }.encode(&mut bytes);
    Choose::Tcp.encode(MessageKind::Ready, &mut bytes);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((&[mode, length, offset], said)) = input.split_first_chunk() else { return };
    let Engine { runtime, listener, address } = engine();
    let mut asked = vec![0; usize::from(length) * 64];
    let answer = if mode % 4 == 0 { said.to_vec() } else { [&introduction()[..], said].concat() };
    bounded(SPARE + 4 * input.len(), || {
        runtime.block_on(async {
            let speaking = async {
                let (mut stream, _) = listener.accept().await.expect("a client");
                // A client that has heard enough hangs up.
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
                let mut requests = [0; 512];
                let hears = async { while stream.read(&mut requests).await.is_ok_and(|count| count > 0) {} };
                let _ = timeout(LIMIT, hears).await;
            };
            let reading = async {
                let trust = Trust { named: true, ..Trust::default() };
                let transports = vec![Transport::Tcp];
                let options = ClientOptions { transports, connect: LIMIT, trust, ..ClientOptions::default() };
                let client = Client::new(address.as_str(), options);
                let target = ReadTarget { fid: FID, offset: offset.into(), token: None };
                let asked_for = asked.len();
                let outcome = client.read(target, &mut asked, Instant::now() + LIMIT).await;
                if let Ok(delivered) = outcome {
                    let needle = delivered.needle;
                    assert_eq!((needle.header.key, needle.header.cookie), (FID.key, FID.cookie));
                    assert!(needle.length as usize <= asked_for);
                    assert!(!delivered.verified || needle.length == needle.data_size);
                }
            };
            tokio::join!(speaking, reading);
        });
        // What the connection's tasks hold goes with them.
        runtime.block_on(tokio::task::yield_now());
    });
});
