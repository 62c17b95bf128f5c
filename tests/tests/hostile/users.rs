//! A user of the host who may do nothing special.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tests::{Cluster, Mount, Pattern, host};

use super::fake::{NOBODY, as_user, local_session};
use super::{assert_bounded, resident_mib};

#[test]
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

/// Connections that a user holds open and says little on.
const HELD: usize = 2000;

/// Opens connections for as long as they are taken.
fn hold(address: &str, greeting: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    while held.len() < HELD {
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
    let held = as_user(NOBODY, || hold(&address, b"GET /api/v1/status HTTP/1.1\r\nX-Slow: "));
    println!("{} connections are held", held.len());
    let mut bytes = Vec::new();
    std::fs::File::open(mount.file("/file")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == content);
    assert_bounded("silent connections", mount.pid(), before);
    drop(held);
    assert_eq!(mount.status("/healthz").unwrap().0, 200);
}
