//! A link goes down while an engine is read from over it, and comes up again.

use std::time::Instant;

use rdma_engine::client::ReadError;
use tokio::task::JoinSet;

use super::second::{Order, Second, follow};
use super::{Guest, guest, set_link};
use crate::DEADLINE;
use crate::engine::{client, quiet_turn, read_again, reading};

/// Waits for what the readers of a link that went down get.
async fn errors(mut readers: JoinSet<ReadError>) {
    let down = Instant::now();
    while let Some(error) = readers.join_next().await {
        let error = error.unwrap();
        println!("{} ms after the link went down: {error}", down.elapsed().as_millis());
        let typed = matches!(error, ReadError::Lost(_) | ReadError::Unavailable(_) | ReadError::Deadline);
        assert!(typed, "{error:?}");
    }
    // It was the device that gave the peer up, not the readers.
    assert!(down.elapsed() < DEADLINE / 2);
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
        errors(readers).await;
        up(&mut second);
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
