//! A link goes down while an engine is read from over it, and comes up again.

use std::time::Instant;

use rdma_engine::client::ReadError;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::second::{Order, Second, follow};
use super::{Guest, guest, set_link};
use crate::DEADLINE;
use crate::engine::{client, quiet_turn, read_again, reading};

/// What the readers of a link that went down get, each by its deadline at the latest: the device
/// tells only of reads that it has begun, and nothing of a request that waits for its answer.
async fn errors(mut readers: JoinSet<ReadError>) -> Vec<ReadError> {
    let down = Instant::now();
    let mut errors = Vec::new();
    while let Some(error) = readers.join_next().await {
        let error = error.unwrap();
        println!("{} ms after the link went down: {error}", down.elapsed().as_millis());
        errors.push(error);
    }
    errors
}

/// One end's link goes down in mid-read: `down` says how, and `up` brings it up, or waits for it.
fn a_link_goes_down(port: u16, down: impl Fn(&mut Second), up: impl Fn(&mut Second)) {
    let address = match guest() {
        Some(Guest::First { second }) => second,
        Some(Guest::Second) => return follow(port),
        None => return,
    };
    let Some(_turn) = quiet_turn() else { return };
    let mut second = Second::serving(&address, port);
    let client = client(second.engine);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let readers = reading(&client).await;
        down(&mut second);
        let errors = timeout(2 * DEADLINE, errors(readers)).await;
        // Before anything can fail here: the other tests need the link.
        up(&mut second);
        for error in errors.expect("the deadlines of the readers") {
            let typed = matches!(error, ReadError::Lost(_) | ReadError::Unavailable(_) | ReadError::Deadline);
            assert!(typed, "{error:?}");
        }
        let is_up = Instant::now();
        read_again(&client).await;
        println!("right bytes {} ms after the link came up", is_up.elapsed().as_millis());
    });
    drop((client, runtime));
    second.order(Order::Quiet);
}

#[test]
#[ignore = "needs two guests with RDMA devices"]
fn the_engine_s_link_goes_down_in_mid_read_and_comes_back() {
    a_link_goes_down(18_602, |second| second.begin(Order::Down), |second| second.done(Order::Down));
}

#[test]
#[ignore = "needs two guests with RDMA devices"]
fn the_client_s_link_goes_down_in_mid_read_and_comes_back() {
    a_link_goes_down(18_603, |_| set_link("down"), |_| set_link("up"));
}
