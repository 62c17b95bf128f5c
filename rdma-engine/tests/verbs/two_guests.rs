//! Faults of the network between two hosts: guests of the virtual machine (`cargo xtask vm --pair`), the first reading from the second.

use std::env;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rdma_engine::verbs::{Completion, Slot, Timeouts, WorkError};

use crate::faults::post_again;
use crate::peer::{CUT, Served, Side, serve_one};
use crate::{DEADLINE, Turn, completions, turn};

const PORT: u16 = 18_600;

/// Address of the other guest, if there is one.
fn peer(test: &str) -> Option<(String, Turn)> {
    let turn = turn(test)?;
    if env::var("VM_GUESTS").as_deref() != Ok("2") {
        println!("skipped: {test}: there is no second guest");
        return None;
    }
    Some((format!("{}:{PORT}", env::var("VM_PEER").unwrap()), turn))
}

/// Waits until the other guest has booted.
fn wait_for(server: &str) {
    let started = Instant::now();
    while TcpStream::connect(server).is_err() {
        assert!(started.elapsed() < 4 * DEADLINE, "the other guest does not answer");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The second guest's part.
fn serve_until_the_network_is_cut() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let (sender, ended) = channel();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let sender = sender.clone();
            thread::spawn(move || sender.send(serve_one(stream).map_err(|error| error.to_string())));
        }
    });
    // A client that only looks whether we are there ends too early, which is no fault.
    while ended.recv_timeout(4 * DEADLINE).unwrap() != Ok(true) {}
}

#[test]
fn a_network_that_is_cut_is_a_typed_error_or_our_deadline() {
    let Some((server, _turn)) = peer("a_network_that_is_cut_is_a_typed_error_or_our_deadline") else {
        return;
    };
    if env::var("VM_GUEST").as_deref() == Ok("1") {
        return serve_until_the_network_is_cut();
    }
    wait_for(&server);
    let mut slow = Side::open(None).unwrap();
    let mut quick = Side::open(None).unwrap();
    // Half a minute of retries: only a deadline of our own ends this in time.
    let for_long = Timeouts { answer: Duration::from_secs(4), retries: 6 };
    let patient = Served::connect(&slow, &server, for_long).unwrap();
    let mut hasty = Served::connect(&quick, &server, Timeouts::default()).unwrap();
    post_again(&patient, slow.slots(2, 1 << 20).unwrap());
    post_again(&hasty, quick.slots(2, 1 << 20).unwrap());
    hasty.stream.write_all(&[CUT]).unwrap();

    // Reads go on until the network is cut, then end with the type that says that nobody answers.
    let mut done: Vec<Completion<Slot>> = Vec::new();
    let mut patient_reads = 0;
    let started = Instant::now();
    let error = 'reading: loop {
        assert!(started.elapsed() < DEADLINE, "reads go on over a network that is cut");
        quick.poller.wait(&mut done, Duration::from_millis(200)).unwrap();
        for completion in done.drain(..) {
            match completion.result {
                Ok(_) => post_again(&hasty, completion.memory),
                Err(error) => break 'reading error,
            }
        }
        slow.poller.poll(&mut done).unwrap();
        for completion in done.drain(..) {
            completion.result.unwrap();
            patient_reads += 1;
            post_again(&patient, completion.memory);
        }
    };
    assert_eq!(error, WorkError::RetryExceeded);
    println!("the peer does not answer: {} ms; {patient_reads} reads before", started.elapsed().as_millis());

    // The other connection waits in vain until its deadline, and gets its memory back.
    assert_eq!(slow.poller.wait(&mut done, Duration::from_secs(1)).unwrap(), 0);
    patient.pair.abort().unwrap();
    let back = completions(&mut slow.poller, 2);
    assert!(
        back.iter()
            .all(|completion| completion.memory.as_ref().is_some_and(|memory| memory.len() == 1 << 20))
    );
    // The first may have been read before the cut without a word: the second of the batch was to speak for it.
    assert_eq!(back[1].result, Err(WorkError::Flushed));
}
