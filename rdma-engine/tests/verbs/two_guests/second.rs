//! What the second guest does for the first: it has an engine, and a link.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{be_met, meet, set_link};
use crate::engine::{LENGTHS, Program};
use crate::leaks::resources;
use crate::volume::write;
use crate::{DEADLINE, turn};

/// How long a link stays down: several times what it takes until a queue pair gives its peer up.
const DOWN_FOR: Duration = Duration::from_secs(6);

/// The orders of the first guest, one byte each. The second guest answers with the same byte when
/// it is done.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(u8)]
pub(super) enum Order {
    /// Start the engine, at the same address each time.
    Serve = b's',
    /// `kill -9` it.
    Kill = b'k',
    /// Take the link down for a while.
    Down = b'd',
    /// Wait until the engine, which has no client any more, holds nothing of a device.
    Quiet = b'q',
}

impl Order {
    fn of(byte: u8) -> Self {
        let all = [Self::Serve, Self::Kill, Self::Down, Self::Quiet];
        all.into_iter().find(|&order| order as u8 == byte).expect("an order")
    }
}

/// The engine's port in a test that meets at `port`.
fn engine_port(port: u16) -> u16 {
    port + 100
}

/// The second guest, as the first has it.
pub(super) struct Second {
    stream: TcpStream,
    /// Where its engine serves.
    pub(super) engine: SocketAddr,
}

impl Second {
    /// Meets it, with its engine serving.
    pub(super) fn serving(address: &str, port: u16) -> Self {
        let stream = meet(address, port);
        stream.set_read_timeout(Some(2 * DEADLINE)).unwrap();
        let engine = SocketAddr::new(address.parse().unwrap(), engine_port(port));
        let mut second = Self { stream, engine };
        second.order(Order::Serve);
        second
    }

    /// Has something done, and waits until it is.
    pub(super) fn order(&mut self, order: Order) {
        self.begin(order);
        self.done(order);
    }

    /// Has something begun.
    pub(super) fn begin(&mut self, order: Order) {
        self.stream.write_all(&[order as u8]).unwrap();
    }

    /// Waits until it is done.
    pub(super) fn done(&mut self, order: Order) {
        let mut answer = [0];
        self.stream.read_exact(&mut answer).expect("the second guest says that it is done");
        assert_eq!(Order::of(answer[0]), order);
    }
}

/// The second guest's part: follows the orders of the first guest, which connects to `port`, until
/// it disconnects.
pub(super) fn follow(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let mut first = be_met(&listener);
    // What the test before has left is gone now.
    let Some(_turn) = turn() else { return };
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &LENGTHS);
    let mut engine = None;
    let before = resources();
    let mut byte = [0];
    while first.read(&mut byte).unwrap() == 1 {
        match Order::of(byte[0]) {
            Order::Serve => {
                let listen = SocketAddr::from(([0, 0, 0, 0], engine_port(port)));
                engine = Some(Program::start(directory.path(), listen));
            }
            Order::Kill => drop(engine.take().expect("an engine that serves")),
            Order::Down => {
                set_link("down");
                thread::sleep(DOWN_FOR);
                set_link("up");
            }
            Order::Quiet => {
                let started = Instant::now();
                while resources() != before {
                    assert!(started.elapsed() < DEADLINE, "left behind: {before}\n{}", resources());
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        first.write_all(&byte).unwrap();
    }
}
