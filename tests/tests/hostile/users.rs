//! An unprivileged user of the host.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use interceptor::warmup::ticket::READ_TICKET_XATTR;
use tests::user::xattr;
use tests::{Cluster, Mount, Needles, Pattern, host};

use super::fake::{NOBODY, as_user, local_session};
use super::{assert_bounded, resident_mib};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_user_gets_no_descriptor_of_a_volume() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let engine = cluster.engines()[0].address();
    assert_eq!(local_session(engine), "welcome");
    for user in [NOBODY, 23_456] {
        assert_eq!(as_user(user, || local_session(engine)), "refused: NotAllowed");
    }
}

/// Opens `count` connections, or as many as are accepted, and sends `greeting` on each of them.
fn hold(address: &str, count: usize, greeting: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    while held.len() < count {
        let Ok(mut stream) = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))
        else {
            break;
        };
        // It may have been closed already.
        let _ = stream.write_all(greeting);
        held.push(stream);
    }
    held
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn connections_that_say_nothing_take_neither_files_nor_memory_from_readers() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(1).bytes(0, 3_000_000);
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", &content, "").unwrap();
    // What a service has unless its unit says more.
    let mount = Mount::builder(&cluster)
        .wrapped_in(["prlimit", "--nofile=1024:1024"])
        .arg("--cache-size=64MiB")
        .start()
        .unwrap();
    let address = mount.status_url().unwrap().trim_start_matches("http://").to_owned();
    let before = resident_mib(mount.pid());
    let held = as_user(NOBODY, || hold(&address, 2000, b"GET /api/v1/status HTTP/1.1\r\nX-Slow: "));
    println!("{} connections are held", held.len());
    let mut bytes = Vec::new();
    File::open(mount.file("/file")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == content);
    assert_bounded("silent connections", mount.pid(), before);
    drop(held);
    assert_eq!(mount.status("/healthz").unwrap().0, 200);
}

/// What a client sends that asks for as much as it may, again and again, and takes no answer.
fn greedy(fid: rdma_engine::FileId) -> Vec<u8> {
    use rdma_engine::protocol::{
        Capabilities, Choose, ClientMessage, Hello, MessageKind, ReadRequest, VERSION,
    };
    let (capabilities, name) = (Capabilities::default(), "hostile".to_owned());
    let mut bytes = bytes::BytesMut::new();
    Hello { oldest: VERSION, newest: VERSION, capabilities, name, nonce: None }.encode(&mut bytes);
    Choose::Tcp.encode(MessageKind::Choose, &mut bytes);
    for number in 1..=256 {
        let read = ReadRequest { fid, offset: 0, length: 32 << 10, token: Vec::new() };
        ClientMessage::Read(read).encode(number, &mut bytes);
    }
    bytes.to_vec()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn sessions_that_take_no_answers_do_not_fill_an_engine() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let content = Pattern::new(1).bytes(0, 1 << 20);
    cluster.filer().put("/file", &content, "").unwrap();
    let needles = Needles::new(&cluster);
    let at = needles.assign("").unwrap();
    needles.put(&at, &content, "", &[]).unwrap();
    let engine = &cluster.engines()[0];
    let before = resident_mib(engine.pid());
    let greeting = greedy(at.fid.parse().unwrap());
    let held = as_user(NOBODY, || hold(engine.address(), 100, &greeting));
    println!("{} sessions are held", held.len());
    // The engine has handled all their requests when it answers another.
    let mount = Mount::builder(&cluster).engines(&cluster, "tcp").start().unwrap();
    assert!(std::fs::read(mount.file("/file")).unwrap() == content);
    assert_bounded("greedy sessions", engine.pid(), before);
    drop(held);
    assert_eq!(engine.get("/healthz").unwrap(), "ok\n");
}

/// A request to the status API of a mount, as a program without the command sends it.
fn post(address: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Interceptor: warmup\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_user_has_nothing_done_about_files_of_others() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let filer = cluster.filer();
    filer.put("/secret", &Pattern::new(1).bytes(0, 100_000), "mode=0600").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/secret");
    let ticket = xattr(&path, READ_TICKET_XATTR).unwrap();
    let device = {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(&path).unwrap().dev();
        format!("{}:{}", libc::major(device), libc::minor(device))
    };
    let address = mount.status_url().unwrap().trim_start_matches("http://").to_owned();
    let request = |action: &str, ticket: &str| {
        let body =
            format!(r#"{{"action":"{action}","device":"{device}","tickets":["{ticket}"],"force":false}}"#);
        post(&address, "/api/v1/warmup", &body)
    };
    let allowed = request("fetch", std::str::from_utf8(&ticket).unwrap());
    assert!(allowed.starts_with("HTTP/1.1 201"), "root may: {allowed}");
    as_user(NOBODY, || {
        assert_eq!(File::open(&path).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(xattr(&path, READ_TICKET_XATTR), Err(libc::EACCES));
        // Of the right form, and made up.
        let made_up: String = ticket.iter().rev().map(|&byte| char::from(byte)).collect();
        for action in ["fetch", "check", "evict"] {
            let answer = request(action, &made_up);
            assert!(answer.starts_with("HTTP/1.1 403"), "{action}: {answer}");
        }
    });
}
