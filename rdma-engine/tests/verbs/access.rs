//! A key opens what it was made for and nothing else.

use rdma_engine::verbs::{PostError, RdmaRead, RemoteMemory, Timeouts, WorkError, WorkKind};

use crate::peer::{OPTIONS, Side, patterned};
use crate::{completions, connect, turn, two_sides};

const LENGTH: usize = 4096;

/// Reads with one key on a fresh connection to `server`; the bytes must not change when that
/// fails.
fn read_with(server: &Side, remote: RemoteMemory) -> Result<Vec<u8>, WorkError> {
    let mut client = Side::open(None).unwrap();
    let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
    let (pair, _other) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
    let mut memory = client.slots(1, LENGTH).unwrap().remove(0);
    memory.fill(0xee);
    pair.post_reads(&mut vec![RdmaRead { memory, remote, token: 0 }]).unwrap();
    let done = completions(&mut client.poller, 1).remove(0);
    assert_eq!(done.work, WorkKind::Read);
    let memory = done.memory.unwrap();
    if done.result.is_err() {
        assert!(memory.iter().all(|&byte| byte == 0xee), "something was read");
    }
    done.result.map(|_| memory.to_vec())
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_wrong_key_is_refused_and_breaks_the_connection() {
    let Some(_turn) = turn() else { return };
    let (server, mut client) = two_sides();
    let served = patterned(&server.domain, LENGTH).unwrap();
    let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
    let (pair, _other) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
    let good = served.remote();
    let wrong = RemoteMemory { rkey: good.rkey ^ 0x0100_0001, ..good };
    let mut slots = client.slots(6, LENGTH).unwrap();
    let mut read = |token, remote| RdmaRead { memory: slots.pop().unwrap(), remote, token };
    let mut reads = vec![read(0, good), read(1, good), read(2, wrong), read(3, good), read(4, good)];
    pair.post_reads(&mut reads).unwrap();
    let results: Vec<_> = completions(&mut client.poller, 5)
        .into_iter()
        .map(|done| {
            let memory = done.memory.unwrap();
            assert_eq!(done.result.is_ok(), *memory == *served);
            (done.token, done.result)
        })
        .collect();
    assert_eq!(
        results,
        [
            (0, Ok(LENGTH)),
            (1, Ok(LENGTH)),
            (2, Err(WorkError::RemoteAccess)),
            (3, Err(WorkError::Flushed)),
            (4, Err(WorkError::Flushed)),
        ]
    );
    assert!(pair.is_broken());
    let mut late = vec![read(5, good)];
    assert!(matches!(pair.post_reads(&mut late), Err(PostError::Broken)));
    assert_eq!(late.len(), 1);
    assert!(read_with(&server, good).is_ok());
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_key_of_another_protection_domain_is_refused() {
    let Some(_turn) = turn() else { return };
    let (server, other) = two_sides();
    let (own, foreign) =
        (patterned(&server.domain, LENGTH).unwrap(), patterned(&other.domain, LENGTH).unwrap());
    assert_eq!(read_with(&server, own.remote()), Ok(own.to_vec()));
    assert_eq!(read_with(&server, foreign.remote()), Err(WorkError::RemoteAccess));
    assert_eq!(read_with(&other, foreign.remote()), Ok(foreign.to_vec()));
}

#[test]
#[ignore = "needs an RDMA device"]
fn nothing_past_the_region_is_read() {
    let Some(_turn) = turn() else { return };
    let (server, _) = two_sides();
    let served = patterned(&server.domain, 2 * LENGTH).unwrap().remote();
    let shifted = |by: i64| RemoteMemory { address: served.address.wrapping_add_signed(by), ..served };
    assert_eq!(read_with(&server, shifted(LENGTH as i64 + 1)), Err(WorkError::RemoteAccess));
    assert_eq!(read_with(&server, shifted(-1)), Err(WorkError::RemoteAccess));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_region_that_was_withdrawn_or_is_local_is_refused() {
    let Some(_turn) = turn() else { return };
    let (server, _) = two_sides();
    let served = patterned(&server.domain, LENGTH).unwrap();
    let remote = served.remote();
    assert!(read_with(&server, remote).is_ok());
    drop(served);
    assert_eq!(read_with(&server, remote), Err(WorkError::RemoteAccess));
    let local = server.slots(1, LENGTH).unwrap().remove(0);
    assert_eq!(read_with(&server, local.remote()), Err(WorkError::RemoteAccess));
}
