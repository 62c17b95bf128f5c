//! Connections that come and go, cleanly or not, leave nothing behind.

use std::fs;
use std::process::Command;

use rdma_engine::verbs::{ProtectionDomain, RdmaRead, Timeouts};

use crate::faults::{Server, post_again};
use crate::peer::{OPTIONS, Served, Side, pattern, patterned};
use crate::{completions, connect, turn, two_sides};

/// Open files of a process.
pub(crate) fn files(process: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Resident memory of a process, KiB.
pub(crate) fn resident(process: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the kernel counts: queue pairs, regions, domains, queues of all devices.
pub(crate) fn resources() -> String {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_thousand_connections_leave_nothing() {
    let Some(_turn) = turn() else { return };
    const LENGTH: usize = 4096;
    let cycle = |number: usize, server: &mut Side, client: &mut Side| {
        // As the engine does it: a domain and memory for each client.
        server.domain = ProtectionDomain::new(server.domain.context()).unwrap();
        let served = patterned(&server.domain, LENGTH).unwrap();
        let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
        let (pair, other) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
        let mut reads: Vec<_> = client
            .slots(4, LENGTH)
            .unwrap()
            .into_iter()
            .map(|memory| RdmaRead { memory, remote: served.remote(), token: 0 })
            .collect();
        pair.post_reads(&mut reads).unwrap();
        match number % 4 {
            // Ends as it should.
            0 => {
                let done = completions(&mut client.poller, 4);
                let memory = done[3].memory.as_ref().unwrap();
                assert!(memory.iter().enumerate().all(|(index, &byte)| byte == pattern(index)));
            }
            // The client goes in the middle of it, the server, or the memory that is read.
            1 => drop(pair),
            2 => drop(other),
            _ => drop(served),
        }
        // Taking completions frees the room in the completion queue, as in a process that has
        // connections.
        client.poller.queue().take(&mut Vec::new()).unwrap();
        server.poller.queue().take(&mut Vec::new()).unwrap();
    };
    let hundred = || {
        let (mut server, mut client) = two_sides();
        (0..100).for_each(|number| cycle(number, &mut server, &mut client));
    };
    // Everything that is allocated only once is allocated now.
    hundred();
    let before = (files("self"), resources());
    let grown = || {
        let memory = resident("self");
        hundred();
        resident("self").saturating_sub(memory)
    };
    let grown: Vec<usize> = (0..10).map(|_| grown()).collect();
    assert_eq!((files("self"), resources()), before);
    println!("{grown:?} KiB more after each 100 connections");
    // A leak of each connection shows in every hundred; growth of the heap after earlier tests
    // shows only in some.
    assert!(grown.iter().any(|&grown| grown < 400), "{grown:?} KiB");
}

#[test]
#[ignore = "needs an RDMA device"]
fn killed_processes_leave_nothing() {
    let Some(_turn) = turn() else { return };
    let before = resources();
    let own = files("self");
    for _ in 0..5 {
        let mut server = Server::start();
        let process = server.child.id().to_string();
        let mut idle = None;
        for number in 0..10 {
            let mut client = Side::open(None).unwrap();
            let served = Served::connect(&client, &server.address, Timeouts::default()).unwrap();
            post_again(&served, client.slots(4, 64 << 10).unwrap());
            if number == 9 {
                // In the middle of the reads.
                server.kill();
            } else if number % 2 == 0 {
                completions(&mut client.poller, 4);
            }
            drop((served, client));
            if number < 9 {
                // The server takes the next client only when it is done with this one; so this one
                // has seen it clean.
                let next = Side::open(None).unwrap();
                let served = Served::connect(&next, &server.address, Timeouts::default()).unwrap();
                let now = files(&process);
                assert_eq!(*idle.get_or_insert(now), now, "the server's files");
                drop((served, next));
            }
        }
    }
    assert_eq!(files("self"), own);
    // The kernel takes the resources of a killed process away with its last file.
    let started = std::time::Instant::now();
    while resources() != before {
        assert!(started.elapsed() < crate::DEADLINE, "{before}\n{}", resources());
        std::thread::yield_now();
    }
}
