//! A volume server that is not what the cluster takes it for: the true one has gone, and another
//! program has its port.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use tests::{Cluster, Mount, Pattern, eventually, host};

use super::fake::{Liar, NOBODY, pour};
use super::{WAIT_TIMEOUT, assert_bounded, resident_mib};

const SIZE: usize = 1 << 20;

/// What the server does with a connection.
type Lie = fn(TcpStream);

/// Takes a request, however long it is, and gives what it asks for.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return None;
        }
        text.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn answer(stream: &mut TcpStream, head: &str, body: &[u8]) {
    // The client may have gone.
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes());
    let _ = stream.write_all(body);
}

fn silence(mut stream: TcpStream) {
    while request(&mut stream).is_some() {}
}

fn endless_head(mut stream: TcpStream) {
    request(&mut stream);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
    pour(&mut stream, &b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(1000));
}

fn endless_body(mut stream: TcpStream) {
    request(&mut stream);
    answer(&mut stream, "200 OK\r\nContent-Length: 4611686018427387904", b"");
    pour(&mut stream, &[b'!'; 65536]);
}

fn endless_pieces(mut stream: TcpStream) {
    request(&mut stream);
    answer(&mut stream, "200 OK\r\nTransfer-Encoding: chunked", b"");
    let piece = [b"10000\r\n".to_vec(), vec![b'!'; 65536], b"\r\n".to_vec()].concat();
    pour(&mut stream, &piece);
}

/// Packed bytes that unpack to more than the chunk has.
fn bomb(mut stream: TcpStream) {
    request(&mut stream);
    answer(&mut stream, "200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked", b"");
    // A gzip header, then stored blocks for ever: what is unpacked has no end, so a decoder must
    // stop where the chunk does.
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let _ = stream.write_all(b"a\r\n");
    let _ = stream.write_all(&head);
    let _ = stream.write_all(b"\r\n");
    let block = [vec![0, 0xff, 0xff, 0, 0], vec![0; 0xffff]].concat();
    let piece = [format!("{:x}\r\n", block.len()).into_bytes(), block, b"\r\n".to_vec()].concat();
    pour(&mut stream, &piece);
}

/// Bytes of the right length that do not have the checksum that comes with them.
fn forged(mut stream: TcpStream) {
    while let Some(text) = request(&mut stream) {
        let range = text
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (first, last) = range
            .and_then(|range| {
                let (first, last) = range.split_once('-')?;
                Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
            })
            .unwrap_or((0, SIZE - 1));
        let length = last + 1 - first;
        let head = format!(
            "200 OK\r\nETag: \"01234567\"\r\nContent-Length: {length}\r\n\
             Content-Range: bytes {first}-{last}/{SIZE}"
        );
        answer(&mut stream, &head, &vec![b'!'; length]);
    }
}

fn sends_elsewhere(mut stream: TcpStream) {
    let own = stream.local_addr().unwrap();
    while request(&mut stream).is_some() {
        answer(&mut stream, &format!("302 Found\r\nLocation: http://{own}/again\r\nContent-Length: 0"), b"");
    }
}

fn hangs_up(mut stream: TcpStream) {
    request(&mut stream);
    answer(&mut stream, &format!("200 OK\r\nContent-Length: {SIZE}"), &[b'!'; 1000]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_that_a_false_volume_server_says_is_read_and_it_costs_no_memory() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let server = &cluster.volume_servers()[0];
    let port: u16 = server.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let lies: [(&str, Lie); 8] = [
        ("silence", silence),
        ("an endless head", endless_head),
        ("an endless body", endless_body),
        ("endless pieces", endless_pieces),
        ("a bomb", bomb),
        ("forged bytes", forged),
        ("a redirect to itself", sends_elsewhere),
        ("half a body", hangs_up),
    ];
    let name = |index: usize| format!("/file{index}");
    for index in 0..lies.len() {
        cluster.filer().put(&name(index), &Pattern::new(index as u64).bytes(0, SIZE), "").unwrap();
    }
    let mount = Mount::builder(&cluster)
        .args(["--cache-size=64MiB", "--read-retry-time=500ms", "--transport=http"])
        .start()
        .unwrap();
    server.kill();
    for (index, (what, lie)) in lies.iter().copied().enumerate() {
        let liar = eventually("the port", WAIT_TIMEOUT, || Liar::start(NOBODY, port, lie).ok()).unwrap();
        let (before, began) = (resident_mib(mount.pid()), Instant::now());
        let outcome = File::open(mount.file(&name(index))).and_then(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| bytes)
        });
        assert!(outcome.is_err(), "{what}: {} bytes were read", outcome.unwrap().len());
        assert!(began.elapsed() < 4 * WAIT_TIMEOUT, "{what} took {:?}", began.elapsed());
        assert_bounded(what, mount.pid(), before);
        drop(liar);
    }
    cluster.restart_volume_server(0).unwrap();
    for index in 0..lies.len() {
        let right = Pattern::new(index as u64).bytes(0, SIZE);
        let read = || std::fs::read(mount.file(&name(index))).ok().filter(|bytes| *bytes == right);
        eventually("the true bytes", WAIT_TIMEOUT, || read().map(drop)).unwrap();
    }
}
