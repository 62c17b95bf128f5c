//! A peer that goes away is a typed error in time, and all memory comes back.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdma_engine::verbs::{Completion, RdmaRead, RegisteredBuffer, Timeouts, WorkError};

use crate::peer::{Served, Side};
use crate::{DEADLINE, turn};

/// A serving process (`examples/one_sided.rs`), killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        // Beside the directory of the tests.
        let own = std::env::current_exe().unwrap();
        let directory: PathBuf = own.ancestors().nth(2).unwrap().join("examples");
        let mut command = Command::new(directory.join("one_sided"));
        let mut child = command.args(["serve", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().to_owned() }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps reads of all slots on the way.
pub(crate) fn post_again(served: &Served, done: impl IntoIterator<Item = RegisteredBuffer>) {
    let mut reads: Vec<_> = done
        .into_iter()
        .map(|memory| {
            let remote = served.memory.slice(0, memory.len() as u64).unwrap();
            RdmaRead { memory, remote, token: 0 }
        })
        .collect();
    served.pair.post_reads(&mut reads).unwrap();
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_killed_peer_is_a_typed_error_in_time() {
    let Some(_turn) = turn() else { return };
    const READS: usize = 8;
    let mut server = Server::start();
    let mut client = Side::open(None).unwrap();
    let served = Served::connect(&client, &server.address, Timeouts::default()).unwrap();
    post_again(&served, client.slots(READS, 256 << 10).unwrap());
    let mut done: Vec<Completion<RegisteredBuffer>> = Vec::new();
    let mut returned = 0;
    let mut killed: Option<Instant> = None;
    let mut first_error = None;
    let started = Instant::now();
    while returned < READS {
        assert!(started.elapsed() < DEADLINE, "{returned} reads came back; killed: {killed:?}");
        client.poller.wait(&mut done, Duration::from_secs(1)).unwrap();
        let good: Vec<RegisteredBuffer> = done
            .drain(..)
            .filter_map(|completion| match completion.result {
                Ok(_) if !served.pair.is_broken() => completion.memory,
                Ok(_) => {
                    returned += 1;
                    None
                }
                Err(error) => {
                    first_error = first_error.or(Some(error));
                    returned += 1;
                    None
                }
            })
            .collect();
        if killed.is_none() && !good.is_empty() {
            server.kill();
            killed = Some(Instant::now());
        }
        // The queue pair may break between the look and the post; then the memory is still here.
        if !good.is_empty() {
            post_again(&served, good);
        }
    }
    let error = first_error.unwrap();
    assert!(
        matches!(error, WorkError::RemoteAccess | WorkError::RetryExceeded | WorkError::RemoteOperation),
        "{error}"
    );
    let took = killed.unwrap().elapsed();
    println!("{error} after {} ms", took.as_millis());
    assert!(took < DEADLINE, "{took:?}");
}
