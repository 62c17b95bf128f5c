//! Clients of an engine that try to read data without a grant, and to take resources that other
//! clients need.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rdma_engine::Refusal;
use rdma_engine::protocol::{ClientMessage, Grant, ReadRequest};
use rdma_engine::server::EngineOptions;
use rdma_engine::verbs::WorkError;

use crate::client::{Brought, ByHand};
use crate::engine::{Program, Served, quiet_turn, serve, until};
use crate::leaks::resident;
use crate::peer::Side;
use crate::volume::{content, fid, write};
use crate::{DEADLINE, turn};

const LENGTH: usize = 70_000;
const SESSIONS: &str = "rdma_engine_connections{transport=\"verbs\"}";

/// How much an engine's memory may grow by what clients do to it, KiB.
const GROWTH: usize = 64 << 10;

/// Says how much memory an engine takes now, and checks that this is not much more than `before`.
fn assert_bounded(what: &str, engine: &Program, before: usize) {
    let after = resident(&engine.child.id().to_string());
    println!("{what}: {before} KiB before, {after} KiB after");
    assert!(after <= before + GROWTH, "{what}: {before} KiB before, {after} KiB after");
}

#[test]
#[ignore = "needs an RDMA device"]
fn keys_and_addresses_that_were_guessed_open_nothing() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&[LENGTH], EngineOptions::default());
    let mut honest = ByHand::connect(served.address);
    let theirs = honest.granted(1, 1, LENGTH as u32);
    let staging = EngineOptions::default().staging as u64;
    // Keys of other regions follow each other in some bits, and differ at random in others.
    let keys = [1, 0x100, 0x200, 0x300, 0x1_0000, 0x8000_0000, 0xffff_ffff];
    let mut guesses: Vec<Box<dyn Fn(Grant) -> Grant>> = Vec::new();
    for change in keys {
        guesses.push(Box::new(move |own| Grant { rkey: own.rkey ^ change, ..own }));
        guesses.push(Box::new(move |own| Grant { rkey: own.rkey.wrapping_add(change), ..own }));
    }
    // The first is what is granted, so it lies at the beginning.
    for offset in [u64::MAX, u64::MAX << 12, staging - LENGTH as u64 + 1, staging, 1 << 40] {
        guesses.push(Box::new(move |own| Grant { address: own.address.wrapping_add(offset), ..own }));
    }
    for address in [0, u64::MAX - LENGTH as u64] {
        guesses.push(Box::new(move |own| Grant { address, ..own }));
    }
    guesses.push(Box::new(move |_| theirs));
    guesses.push(Box::new(move |own| Grant { address: theirs.address, ..own }));
    for guess in guesses {
        let mut hostile = ByHand::connect(served.address);
        let own = hostile.granted(1, 1, LENGTH as u32);
        let guessed = guess(own);
        assert_eq!(hostile.fetch(&guessed, LENGTH), Err(WorkError::RemoteAccess), "{guessed:?} of {own:?}");
        // That was its only guess.
        hostile.hung_up();
    }
    assert!(honest.fetch(&theirs, LENGTH).unwrap() == content(1, LENGTH));
}

/// A client that was granted something by an engine, whose session is over.
fn left_behind(served: &Served) -> (ByHand, Grant) {
    let mut client = ByHand::connect(served.address);
    let grant = client.granted(1, 1, LENGTH as u32);
    assert!(client.fetch(&grant, LENGTH).unwrap() == content(1, LENGTH));
    client.hang_up();
    until(&served.metrics, SESSIONS, 0);
    (client, grant)
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_was_granted_is_gone_with_its_session() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&[LENGTH, LENGTH], EngineOptions::default());
    let (mut hostile, grant) = left_behind(&served);
    let outcome = hostile.fetch(&grant, LENGTH);
    assert!(matches!(outcome, Err(WorkError::RetryExceeded | WorkError::RemoteAccess)), "{outcome:?}");
    let mut next = ByHand::connect(served.address);
    let own = next.granted(1, 2, LENGTH as u32);
    // The memory may lie where the other's lay, and even its key may come again: then it is this
    // session's.
    match next.fetch(&grant, LENGTH) {
        Ok(bytes) => {
            assert_eq!((own.rkey, own.address), (grant.rkey, grant.address));
            assert!(bytes == content(2, LENGTH));
        }
        Err(error) => assert_eq!(error, WorkError::RemoteAccess),
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn after_its_lease_a_grant_opens_only_what_the_session_was_granted() {
    let Some(_turn) = quiet_turn() else {
        return;
    };
    let lease = Duration::from_secs(1);
    // Room for one needle.
    let served = serve(&[LENGTH; 3], EngineOptions { staging: LENGTH, lease, ..EngineOptions::default() });
    let mut other = ByHand::connect(served.address);
    other.granted(1, 2, LENGTH as u32);
    let mut hostile = ByHand::connect(served.address);
    let first = hostile.granted(1, 1, LENGTH as u32);
    until(&served.metrics, "rdma_engine_leases_over_total", 2);
    other.granted(2, 2, LENGTH as u32);
    let next = hostile.granted(2, 3, LENGTH as u32);
    assert_eq!(next.address, first.address, "the memory is used again");
    assert!(hostile.fetch(&first, LENGTH).unwrap() == content(3, LENGTH));
}

#[test]
#[ignore = "needs an RDMA device"]
fn requests_of_extreme_sizes_are_answered_or_refused() {
    let Some(_turn) = turn() else { return };
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &[LENGTH, 100]);
    let engine = Program::start(directory.path(), "127.0.0.1:0".parse().unwrap());
    let mut client = ByHand::connect(engine.address);
    let before = resident(&engine.child.id().to_string());
    let most = client.limits.read;
    let mut number = 0;
    let mut ask = |key, offset, length| {
        number += 1;
        let answer = client.ask_for(number, ReadRequest { fid: fid(key), offset, length, token: Vec::new() });
        // Also for what was not granted: that is ignored.
        client.send(number, &ClientMessage::Done);
        answer
    };
    for _ in 0..10 {
        assert_eq!(ask(1, 0, u32::MAX), Brought::Refused(Refusal::TooLong));
        assert_eq!(ask(1, 0, most + 1), Brought::Refused(Refusal::TooLong));
        assert_eq!(ask(1, u32::MAX, most), Brought::Refused(Refusal::OutOfRange));
        assert_eq!(ask(1, LENGTH as u32 + 1, 0), Brought::Refused(Refusal::OutOfRange));
        assert_eq!(ask(1, LENGTH as u32, most), Brought::Data(Vec::new()));
        assert_eq!(ask(2, 0, most), Brought::Data(content(2, 100)));
        assert_eq!(ask(u64::MAX, u32::MAX, 0), Brought::Refused(Refusal::NoNeedle));
        // As much as one read may bring is granted where there is as much.
        assert!(matches!(ask(1, 0, most), Brought::Grant(needle, _) if needle.length as usize == LENGTH));
    }
    for other in [0, 1 << 40, u64::MAX] {
        client.send(other, &ClientMessage::Done);
        client.send(other, &ClientMessage::Cancel);
    }
    let grant = client.granted(u64::MAX, 1, LENGTH as u32);
    assert!(client.fetch(&grant, LENGTH).unwrap() == content(1, LENGTH));
    assert_bounded("extreme sizes", &engine, before);
}

#[test]
#[ignore = "needs an RDMA device"]
fn sessions_that_take_nothing_leave_memory_and_room_for_others() {
    let Some(_turn) = turn() else { return };
    const NEEDLE: usize = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &[NEEDLE; 8]);
    let options = ["--staging", "4MiB", "--max-staging", "32MiB", "--max-waiting", "4MiB", "--lease", "10m"];
    let engine = Program::with(&options, directory.path(), "[::]:0".parse().unwrap());
    let at = |address: IpAddr| SocketAddr::new(address, engine.address.port());
    let before = resident(&engine.child.id().to_string());
    let mut held = Vec::new();
    // One peer may take at most half of the staging memory.
    while let Ok(client) = ByHand::try_connect(at("127.0.0.1".parse().unwrap())) {
        held.push(client);
        assert!(held.len() <= 4, "{} sessions of 4 MiB have more than 16 MiB", held.len());
    }
    assert_eq!(held.len(), 4);
    for client in &mut held {
        // What is granted is never fetched, and what comes in line is never taken.
        for number in 0..u64::from(client.limits.in_flight) {
            let read =
                ReadRequest { fid: fid(1 + number % 8), offset: 0, length: NEEDLE as u32, token: Vec::new() };
            client.send(number, &ClientMessage::Read(read));
        }
    }
    let near = Side::open(None).unwrap().place.gid.unwrap().gid.address();
    let mut honest = ByHand::connect(at(near));
    let grant = honest.granted(1, 1, NEEDLE as u32);
    assert!(honest.fetch(&grant, NEEDLE).unwrap() == content(1, NEEDLE));
    assert_bounded("sessions that take nothing", &engine, before);
    // A session that ends frees its part for the next.
    drop(held.pop());
    let started = Instant::now();
    while ByHand::try_connect(at("127.0.0.1".parse().unwrap())).is_err() {
        assert!(started.elapsed() < DEADLINE, "no room comes back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn idle_sessions_come_to_their_end() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&[LENGTH], EngineOptions { idle: Duration::from_secs(2), ..EngineOptions::default() });
    let mut silent = ByHand::connect(served.address);
    let mut pinging = ByHand::connect(served.address);
    let mut refused = ByHand::connect(served.address);
    // Neither pings nor what is refused keep a session.
    let missing = ClientMessage::Read(ReadRequest { fid: fid(99), offset: 0, length: 1, token: Vec::new() });
    let started = Instant::now();
    for number in 1.. {
        let ping = pinging.try_send(number, &ClientMessage::Ping);
        let read = refused.try_send(number, &missing);
        if !(ping || read) {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "they go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    silent.hung_up();
    until(&served.metrics, SESSIONS, 0);
    let mut next = ByHand::connect(served.address);
    let grant = next.granted(1, 1, LENGTH as u32);
    assert!(next.fetch(&grant, LENGTH).unwrap() == content(1, LENGTH));
}
