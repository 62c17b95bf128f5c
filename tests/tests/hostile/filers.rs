//! A filer that is not what the mount takes it for: the true one has gone, and another program has
//! its ports.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tests::{Cluster, Mount, Pattern, eventually, host};

use super::fake::{Liar, NOBODY, pour};
use super::{WAIT_TIMEOUT, assert_bounded, resident_mib};

/// What the filer does with a gRPC connection.
type Lie = fn(TcpStream);

/// Until the client goes.
fn silence(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn garbage(mut stream: TcpStream) {
    pour(&mut stream, &[0x5a; 65536]);
}

/// Kinds of frames of HTTP/2.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

fn http2_frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// Speaks HTTP/2 as far as a request, and then answers it with `answer`, which is told the stream.
fn answered(mut stream: TcpStream, answer: impl Fn(&mut TcpStream, u32)) {
    // The greeting: 24 bytes, and then frames.
    let mut greeting = [0; 24];
    if stream.read_exact(&mut greeting).is_err()
        || stream.write_all(&http2_frame(SETTINGS, 0, 0, &[])).is_err()
    {
        return;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == SETTINGS && head[4] & 1 == 0 {
            let _ = stream.write_all(&http2_frame(SETTINGS, 1, 0, &[]));
        }
        if head[3] == HEADERS {
            answer(&mut stream, number);
        }
    }
}

/// `:status: 200`, and a literal of the static table's `content-type`.
const GRPC_HEAD: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// A message of 4 GiB, as it says, which never ends.
fn huge_message(stream: TcpStream) {
    answered(stream, |stream, number| {
        let _ = stream.write_all(&http2_frame(HEADERS, 4, number, GRPC_HEAD));
        let _ = stream.write_all(&http2_frame(DATA, 0, number, b"\0\xff\xff\xff\xff"));
        pour(stream, &http2_frame(DATA, 0, number, &[0; 16384]));
    });
}

/// A message within the limit that is no message.
fn nonsense(stream: TcpStream) {
    answered(stream, |stream, number| {
        let _ = stream.write_all(&http2_frame(HEADERS, 4, number, GRPC_HEAD));
        let body = [&b"\0\0\0\x03\xe8"[..], &[0xff; 1000]].concat();
        let _ = stream.write_all(&http2_frame(DATA, 1, number, &body));
    });
}

/// Headers that never end.
fn endless_head(stream: TcpStream) {
    const CONTINUATION: u8 = 9;
    answered(stream, |stream, number| {
        let field = [&b"\0\x01x\x7f\xe1\x06"[..], &[b'a'; 992]].concat();
        let _ = stream.write_all(&http2_frame(HEADERS, 0, number, GRPC_HEAD));
        pour(stream, &http2_frame(CONTINUATION, 0, number, &field.repeat(16)));
    });
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_false_filer_costs_neither_memory_nor_the_mount() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(1).bytes(0, 300_000);
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/known/file", &content, "").unwrap();
    let mut mount = Mount::builder(&cluster).arg("--cache-size=64MiB").start().unwrap();
    assert!(fs::read(mount.file("/known/file")).unwrap() == content);
    let filer = &cluster.filers()[0];
    let port: u16 = filer.address().rsplit_once(':').unwrap().1.parse().unwrap();
    filer.kill();
    let lies: [(&str, Lie); 5] = [
        ("silence", silence),
        ("garbage", garbage),
        ("a huge message", huge_message),
        ("nonsense", nonsense),
        ("an endless head", endless_head),
    ];
    for (index, (what, lie)) in lies.into_iter().enumerate() {
        let port = port + tests::ports::GRPC_OFFSET;
        let liar = eventually("the port", WAIT_TIMEOUT, || Liar::start(NOBODY, port, lie).ok()).unwrap();
        let (before, began) = (resident_mib(mount.pid()), Instant::now());
        let outcome = fs::read_dir(mount.file(&format!("/never-seen{index}")));
        assert!(outcome.is_err(), "{what}: a directory that no filer has");
        assert!(began.elapsed() < 4 * WAIT_TIMEOUT, "{what} took {:?}", began.elapsed());
        assert_bounded(what, mount.pid(), before);
        assert!(mount.is_running(), "{what}");
        drop(liar);
    }
    cluster.restart_filer(0).unwrap();
    cluster.filer().put("/known/new", b"new", "").unwrap();
    let read = || fs::read(mount.file("/known/new")).ok().filter(|bytes| bytes == b"new").map(drop);
    eventually("the true filer", Duration::from_secs(60), read).unwrap();
}
