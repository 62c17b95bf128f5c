//! Sessions with an engine: what goes by message, what ends them, and that they leave nothing.

use bytes::BytesMut;
use rdma_engine::client::ReadTarget;
use rdma_engine::protocol::frame::HEADER;
use rdma_engine::protocol::{ClientMessage, MAX_REQUEST_SIZE, MESSAGE_WINDOW, MessageKind};
use rdma_engine::server::EngineOptions;

use crate::client::{Brought, ByHand};
use crate::engine::{client, metric, quiet_turn, serve, soon, until};
use crate::leaks::{files, resident};
use crate::volume::{content, fid};

#[test]
#[ignore = "needs an RDMA device"]
fn an_answer_goes_the_way_its_request_came() {
    let Some(_turn) = quiet_turn() else { return };
    const LENGTH: usize = 5000;
    let served = serve(&[LENGTH, 70_000], EngineOptions::default());
    let mut client = ByHand::connect(served.address);
    let expected = content(1, LENGTH);
    assert_eq!(client.ask(1, 1, LENGTH as u32), Brought::Data(expected.clone()));
    client.ask_by_message(2, 1, LENGTH as u32, true);
    let message = client.message();
    assert!(message.ends_with(&expected));
    assert_eq!(message[8..16], 2u64.to_be_bytes());
    client.ask_by_message(3, 2, 70_000, true);
    assert_eq!(client.message()[4], MessageKind::Grant as u8);
    // Given back over the stream: both paths can be mixed.
    client.send(3, &ClientMessage::Done);
    client.ask_by_message(4, 9, 1, true);
    assert_eq!(client.message()[4], MessageKind::Refused as u8);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_message_that_is_no_request_ends_only_its_session() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&[100], EngineOptions::default());
    let mut request = BytesMut::new();
    ClientMessage::Ping.encode(1, &mut request);
    let longer = [&request[..], b"x"].concat();
    for message in [&b"x"[..], &[0xff; 64], &[0; 2300], &longer, &request[..HEADER - 1]] {
        let mut hostile = ByHand::connect(served.address);
        hostile.post(message);
        hostile.hung_up();
    }
    // One for which the engine has no room breaks the queue pair.
    let mut hostile = ByHand::connect(served.address);
    hostile.post(&[0; MAX_REQUEST_SIZE + 1]);
    hostile.hung_up();
    let mut honest = ByHand::connect(served.address);
    assert_eq!(honest.ask(1, 1, 100), Brought::Data(content(1, 100)));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_client_that_takes_no_message_loses_its_session() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&[100], EngineOptions::default());
    let mut client = ByHand::connect(served.address);
    client.ask_by_message(1, 1, 100, false);
    client.hung_up();
    until(&served.metrics, "rdma_engine_connections{transport=\"verbs\"}", 0);
}

#[test]
#[ignore = "needs an RDMA device"]
fn more_requests_than_go_by_message_are_all_answered() {
    let Some(_turn) = quiet_turn() else { return };
    const LENGTH: usize = 3000;
    let served = serve(&[LENGTH], EngineOptions::default());
    let client = client(served.address);
    let expected = content(1, LENGTH);
    served.runtime.block_on(async {
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..4 * MESSAGE_WINDOW {
            let client = client.clone();
            readers.spawn(async move {
                let mut bytes = vec![0xee; LENGTH];
                let target = ReadTarget { fid: fid(1), offset: 0, token: None };
                let delivered = client.read(target, &mut bytes, soon()).await.unwrap();
                assert!(delivered.verified);
                bytes
            });
        }
        while let Some(bytes) = readers.join_next().await {
            assert!(bytes.unwrap() == expected);
        }
    });
    let by_message = metric(&served.metrics, "rdma_engine_reads_total{transport=\"verbs\"}");
    let over_tcp = metric(&served.metrics, "rdma_engine_reads_total{transport=\"tcp\"}");
    assert_eq!(by_message + over_tcp, 4 * MESSAGE_WINDOW as u64);
    assert!(by_message >= MESSAGE_WINDOW as u64, "{by_message}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn hundreds_of_sessions_leave_nothing() {
    let Some(_turn) = quiet_turn() else { return };
    // A minute or two for ten, where devices are emulated.
    let hundreds = std::env::var("HUNDREDS").map_or(2, |count| count.parse().unwrap());
    const LENGTH: usize = 20_000;
    let sessions = "rdma_engine_connections{transport=\"verbs\"}";
    let served = serve(&[LENGTH], EngineOptions { staging: 1 << 20, ..EngineOptions::default() });
    let expected = content(1, LENGTH);
    let cycle = |number: usize| {
        let mut client = ByHand::connect(served.address);
        match number % 4 {
            // Comes to its end.
            0 => {
                let grant = client.granted(1, 1, LENGTH as u32);
                assert!(client.fetch(&grant, LENGTH).unwrap() == expected);
                client.send(1, &ClientMessage::Done);
            }
            // Is gone with what it was granted, with an answer on its way, or before it said a
            // word.
            1 => drop(client.granted(1, 1, LENGTH as u32)),
            2 => client.ask_by_message(1, 1, LENGTH as u32, true),
            _ => {}
        }
    };
    let hundred = |_: u32| {
        (0..100).for_each(&cycle);
        until(&served.metrics, sessions, 0);
        until(&served.metrics, "rdma_engine_staging_bytes{transport=\"verbs\"}", 0);
    };
    // Everything that is allocated only once is allocated now.
    hundred(0);
    let (open, memory) = (files("self"), resident("self"));
    (0..hundreds).for_each(hundred);
    // A queue pair is taken from its device a moment after the session has ended.
    let started = std::time::Instant::now();
    while files("self") > open && started.elapsed() < crate::DEADLINE {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(files("self") <= open, "{} files, {open} before", files("self"));
    let grown = resident("self").saturating_sub(memory);
    println!("{grown} KiB more after {hundreds} hundred sessions");
    assert!(grown < 8192, "{grown} KiB");
}
