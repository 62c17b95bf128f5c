//! The engine's process is killed while it is read from, and started again.

use std::time::{Duration, Instant};

use rdma_engine::client::{ReadError, ReadTarget};

use super::second::{Order, Second, follow};
use super::{Guest, guest};
use crate::engine::{client, quiet_turn, read_again, reading, soon};
use crate::volume::fid;

const PORT: u16 = 18_601;

/// Attempts to reach an engine that is not there.
const ATTEMPTS: usize = 3;

/// The pauses between them double, and the first of all, 100 ms, was before the first attempt.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(200 + 400);

#[test]
#[ignore = "needs two guests with RDMA devices"]
fn an_engine_killed_in_mid_read_is_left_alone_and_found_again() {
    let address = match guest() {
        Some(Guest::First { second }) => second,
        Some(Guest::Second) => return follow(PORT),
        None => return,
    };
    let Some(_turn) = quiet_turn() else { return };
    let mut second = Second::serving(&address, PORT);
    let client = client(second.engine);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut readers = reading(&client).await;
        second.order(Order::Kill);
        let killed = Instant::now();
        while let Some(error) = readers.join_next().await {
            let error = error.unwrap();
            println!("{} ms after the kill: {error}", killed.elapsed().as_millis());
            assert!(matches!(error, ReadError::Lost(_) | ReadError::Unavailable(_)), "{error:?}");
        }
        assert_eq!(client.transport(), None);

        // Asked all the time, it tries to connect now and then, and says at once that it does not
        // in between.
        let (mut attempts, mut left_alone) = (0, 0);
        let began = Instant::now();
        while attempts < ATTEMPTS {
            let target = ReadTarget { fid: fid(1), offset: 0, token: None };
            match client.read(target, &mut [0; 100], soon()).await {
                Err(ReadError::Lost(_)) => attempts += 1,
                Err(ReadError::Unavailable(_)) => left_alone += 1,
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("{ATTEMPTS} attempts and {left_alone} refusals in {} ms", began.elapsed().as_millis());
        assert!(began.elapsed() >= BETWEEN_ATTEMPTS && left_alone > 0);

        second.order(Order::Serve);
        let served = Instant::now();
        read_again(&client).await;
        println!("right bytes {} ms after an engine serves again", served.elapsed().as_millis());
    });
    drop((client, runtime));
    second.order(Order::Quiet);
}
