//! The network between the guests is cut while the first reads what the second has registered.

use std::io::Write;
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rdma_engine::verbs::{Completion, RegisteredBuffer, Timeouts, WorkError};

use super::{Guest, be_met, guest, meet};
use crate::faults::post_again;
use crate::peer::{CUT, Served, Side, serve_one};
use crate::{DEADLINE, completions, turn};

const PORT: u16 = 18_600;

/// The second guest's part.
fn serve_until_the_network_was_cut() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let _first = be_met(&listener);
    let Some(_turn) = turn() else { return };
    let (sender, ended) = channel();
    for _ in 0..2 {
        let (stream, sender) = (be_met(&listener), sender.clone());
        thread::spawn(move || sender.send(serve_one(stream).map_err(|error| error.to_string())));
    }
    let cuts = [(); 2].map(|()| ended.recv_timeout(4 * DEADLINE).unwrap());
    assert!(cuts.contains(&Ok(true)) && cuts.contains(&Ok(false)), "{cuts:?}");
}

#[test]
#[ignore = "needs two guests with RDMA devices"]
fn a_network_that_is_cut_is_a_typed_error_or_our_deadline() {
    let address = match guest() {
        Some(Guest::First { second }) => second,
        Some(Guest::Second) => return serve_until_the_network_was_cut(),
        None => return,
    };
    let Some(_turn) = turn() else { return };
    let _second = meet(&address, PORT);
    let server = format!("{address}:{PORT}");
    let mut slow = Side::open(None).unwrap();
    let mut quick = Side::open(None).unwrap();
    // Half a minute of retries: only the deadline of the test ends this in time.
    let for_long = Timeouts { answer: Duration::from_secs(4), retries: 6 };
    let patient = Served::connect(&slow, &server, for_long).unwrap();
    let mut hasty = Served::connect(&quick, &server, Timeouts::default()).unwrap();
    post_again(&patient, slow.slots(2, 1 << 20).unwrap());
    post_again(&hasty, quick.slots(2, 1 << 20).unwrap());
    hasty.stream.write_all(&[CUT]).unwrap();

    // Reads go on until the network is cut, and then end with the error for a peer that does not
    // answer.
    let mut done: Vec<Completion<RegisteredBuffer>> = Vec::new();
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
        slow.poller.queue().take(&mut done).unwrap();
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
    // The first may have been read before the cut without a word: the second of the batch was to
    // speak for it.
    assert_eq!(back[1].result, Err(WorkError::Flushed));
}
