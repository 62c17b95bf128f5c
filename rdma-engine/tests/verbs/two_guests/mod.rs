//! Faults between two hosts: guests of the virtual machine (`cargo xtask vm --pair`).
//!
//! Both run the same tests. The first guest reads, one test at a time. In the second guest each
//! test waits at its own port until the same test of the first connects, and follows its orders.
//! The order of the tests does not matter, because those of the second guest wait side by side.

mod cut;
mod engine_killed;
mod link_down;
mod second;

use std::env;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::{DEADLINE, has_device, skipped};

/// Which of the two guests this is.
enum Guest {
    First { second: String },
    Second,
}

/// This guest; `None` if it is the only one, or has no device, which is said.
fn guest() -> Option<Guest> {
    if !has_device() {
        return None;
    }
    if env::var("VM_GUESTS").as_deref() != Ok("2") {
        skipped("there is no second guest");
        return None;
    }
    match env::var("VM_GUEST").as_deref() {
        Ok("1") => Some(Guest::Second),
        _ => Some(Guest::First { second: env::var("VM_PEER").unwrap() }),
    }
}

/// Connects to the second guest's part of a test, once it has booted and got that far.
fn meet(second: &str, port: u16) -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect((second, port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < 4 * DEADLINE, "the other guest does not come: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for the first guest, whose other tests may have their turn before.
fn be_met(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                assert!(started.elapsed() < 8 * DEADLINE, "the other guest does not come");
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Takes this guest's end of the network down, or up again.
fn set_link(state: &str) {
    // Or the address goes with the link, which is another fault.
    std::fs::write("/proc/sys/net/ipv6/conf/roce0/keep_addr_on_down", "1").unwrap();
    let done = Command::new("ip").args(["link", "set", "dev", "roce0", state]).status().unwrap();
    assert!(done.success());
}
