//! An engine with a client that sends arbitrary bytes: the engine takes no more memory than a
//! session may have, and ends the session when the client sends no more.
#![no_main]

use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rdma_engine::FileId;
use rdma_engine::checksum;
use rdma_engine::metrics::Metrics;
use rdma_engine::needle::Header;
use rdma_engine::protocol::{Capabilities, Choose, ClientMessage, Hello, MessageKind, ReadRequest, VERSION};
use rdma_engine::server::{self, EngineOptions};
use rdma_engine::store::Store;
use rdma_engine_fuzz::bounded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const COOKIE: u32 = 7;

/// A session with its buffers, and the answers that wait for it.
const SESSION: usize = 4 << 20;

/// Far more than an engine needs to end a session.
const LIMIT: Duration = Duration::from_secs(100);

struct Engine {
    runtime: Runtime,
    address: String,
}

/// A volume of two needles: 100 bytes, and 40,000.
fn volume() -> (Vec<u8>, Vec<u8>) {
    let mut dat = vec![3, 0, 0, 0, 0, 0, 0, 0];
    let mut idx = Vec::new();
    for (key, length) in [(1u64, 100u32), (2, 40_000)] {
        let (at, data) = (dat.len() as u32 / 8, vec![key as u8; length as usize]);
        let size = length as i32 + 5;
        dat.extend(Header { cookie: COOKIE, key, size }.to_bytes());
        dat.extend(length.to_be_bytes());
        dat.extend(&data);
        dat.push(0);
        dat.extend(checksum::crc32c(&data).to_be_bytes());
        dat.extend([0; 8]);
        dat.resize((dat.len() / 8 + 1) * 8, 0);
        idx.extend(key.to_be_bytes());
        idx.extend(at.to_be_bytes());
        idx.extend(size.to_be_bytes());
    }
    (dat, idx)
}

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory").keep();
        let (dat, idx) = volume();
        fs::write(directory.join("1.dat"), dat).expect("writing");
        fs::write(directory.join("1.idx"), idx).expect("writing");
        let store = Arc::new(Store::new(vec![directory], None).expect("listing"));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let options = EngineOptions { verbs: false, local: false, ..EngineOptions::default() };
        let listen = "127.0.0.1:0".parse().expect("an address");
        let engine = server::Engine::bind(listen, store, None, Arc::new(Metrics::default()), &options);
        let engine = runtime.block_on(engine).expect("a port");
        let address = engine.address().expect("an address").to_string();
        runtime.spawn(engine.serve());
        Engine { runtime, address }
    })
}

/// A client's side of a session. The first byte decides how much of it is well formed, because
/// mutations alone hardly ever find a frame.
fn said(input: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let Some((&mode, mut rest)) = input.split_first() else { return out };
    if mode & 1 == 0 {
        let (oldest, newest) = (VERSION, VERSION);
        let (capabilities, name) = (Capabilities::default(), "fuzz".into());
        Hello { oldest, newest, capabilities, name, nonce: None }.encode(&mut out);
        Choose::Tcp.encode(MessageKind::Choose, &mut out);
    }
    while let Some((&[kind, number, key, offset, length], more)) = rest.split_first_chunk() {
        rest = more;
        let fid = FileId { volume: 1, key: u64::from(key % 4), cookie: COOKIE };
        let (offset, length) = (u32::from(offset) << (key % 16), u32::from(length) << (key % 26));
        let request = match kind % 6 {
            0 | 1 => ClientMessage::Read(ReadRequest {
                fid,
                offset,
                length,
                token: rest[..rest.len().min(16)].to_vec(),
            }),
            2 => ClientMessage::Ping,
            3 => ClientMessage::Cancel,
            4 => ClientMessage::Done,
            _ => {
                out.extend_from_slice(rest);
                break;
            }
        };
        request.encode(number.into(), &mut out);
    }
    out
}

fuzz_target!(|input: &[u8]| {
    let Engine { runtime, address } = engine();
    let said = said(input);
    bounded(SESSION + 4 * said.len(), || {
        runtime.block_on(async {
            let mut stream = TcpStream::connect(address.as_str()).await.expect("an engine");
            // No TIME_WAIT: many connections would use up the ports.
            stream.set_zero_linger().expect("a socket");
            let (mut from, mut to) = stream.split();
            let talking = async {
                // An engine that has heard enough hangs up.
                let _ = to.write_all(&said).await;
                let _ = to.shutdown().await;
            };
            let hearing = async {
                let mut answers = [0; 4096];
                while from.read(&mut answers).await.is_ok_and(|count| count > 0) {}
            };
            let ended = timeout(LIMIT, async { tokio::join!(talking, hearing) }).await;
            assert!(ended.is_ok(), "the engine does not end the session");
        });
    });
});
