//! RDMA READs bring the right bytes, many at once, of any size.

use std::net::IpAddr;
use std::time::Duration;

use rdma_engine::verbs::{
    GidKind, LocalMemory, PortSelector, PostError, RdmaRead, RegisteredBuffer, Timeouts, devices,
};

use crate::peer::{OPTIONS, Side, pattern, patterned};
use crate::{Numbers, completions, connect, turn, two_sides};

const REGION: usize = 4 << 20;

#[test]
#[ignore = "needs an RDMA device"]
fn random_ranges_of_many_sizes_are_read_byte_for_byte() {
    let Some(_turn) = turn() else { return };
    let (server, mut client) = two_sides();
    let served = patterned(&server.domain, REGION).unwrap();
    // Two connections of one poller, so that completions of both come mixed.
    let pairs: Vec<_> = (0..2)
        .map(|_| {
            let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
            connect(ends.0, ends.1, Timeouts::default()).unwrap()
        })
        .collect();
    let mut numbers = Numbers(7);
    let mut sizes: Vec<usize> =
        vec![1, 2, 3, 63, 64, 65, 255, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20];
    sizes.extend((0..200).map(|_| {
        let power = numbers.below(18);
        1 + numbers.below(1 << power)
    }));

    let mut offsets = Vec::new();
    for batch in sizes.chunks(24) {
        let total = batch.iter().sum();
        let mut rest = client.slots(1, total).unwrap().remove(0);
        // What was there before must not pass for what was read.
        rest.fill(0xee);
        let mut reads = [Vec::new(), Vec::new()];
        for &size in batch {
            let (slot, remainder) = rest.split_at(size);
            rest = remainder;
            let offset = numbers.below(REGION - size + 1);
            let remote = served.remote().slice(offset as u64, size as u64).unwrap();
            reads[numbers.below(2)].push(RdmaRead { memory: slot, remote, token: offsets.len() as u64 });
            offsets.push(offset);
        }
        for (reads, (pair, _)) in reads.iter_mut().zip(&pairs) {
            pair.post_reads(reads).unwrap();
            assert!(reads.is_empty());
        }
        for completion in completions(&mut client.poller, batch.len()) {
            let slot = completion.memory.unwrap();
            assert_eq!(completion.result, Ok(slot.len()));
            let offset = offsets[completion.token as usize];
            let wrong = slot.iter().enumerate().find(|&(index, &byte)| byte != pattern(offset + index));
            assert_eq!(wrong, None, "{} bytes at {offset}", slot.len());
        }
    }
    assert_eq!(offsets.len(), sizes.len());
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_queue_that_is_full_gives_the_memory_back() {
    let Some(_turn) = turn() else { return };
    let (server, mut client) = two_sides();
    let served = patterned(&server.domain, 1 << 16).unwrap();
    let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
    let (pair, _other) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
    let depth = OPTIONS.send_depth as usize;
    let read = |(token, memory): (usize, RegisteredBuffer)| {
        let remote = served.remote().slice(0, memory.length() as u64).unwrap();
        RdmaRead { memory, remote, token: token as u64 }
    };
    let mut reads: Vec<_> = client.slots(depth + 1, 64).unwrap().into_iter().enumerate().map(read).collect();
    assert!(
        matches!(pair.post_reads(&mut reads), Err(PostError::Full { free, asked }) if (free, asked) == (depth, depth + 1))
    );
    let mut last = vec![reads.pop().unwrap()];
    pair.post_reads(&mut reads).unwrap();
    assert!(matches!(pair.post_reads(&mut last), Err(PostError::Full { free: 0, asked: 1 })));
    assert_eq!(last.len(), 1);
    assert_eq!(completions(&mut client.poller, depth).len(), depth);
    pair.post_reads(&mut last).unwrap();
    assert_eq!(completions(&mut client.poller, 1)[0].token, depth as u64);

    // More than was granted is not even posted, so the connection stays good.
    let mut reads = vec![read((0, client.slots(1, 128).unwrap().remove(0)))];
    reads[0].remote.length = 127;
    assert!(matches!(pair.post_reads(&mut reads), Err(PostError::Length { length: 128, limit: 127 })));
    assert!(!pair.is_broken());
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_device_is_found_with_its_addresses_and_each_of_them_connects() {
    let Some(_turn) = turn() else { return };
    let found = devices().unwrap();
    for device in &found {
        println!("{device}");
    }
    let usable = |kind| kind == GidKind::RoceV2;
    let ports = found.iter().flat_map(|device| &device.ports).filter(|port| port.active);
    let gids = ports
        .flat_map(|port| port.gids.clone())
        .filter(|entry| usable(entry.kind) && !entry.gid.is_link_local());
    let addresses: Vec<IpAddr> = gids.map(|entry| entry.gid.address()).collect();
    for &address in &addresses {
        let wanted = PortSelector { near: Some(address), ..PortSelector::default() };
        assert_eq!(wanted.select(&found).unwrap()[0].gid.unwrap().gid.address(), address);
        let server = Side::open(Some(address)).unwrap();
        let mut client = Side::open(Some(address)).unwrap();
        let served = patterned(&server.domain, 4096).unwrap();
        let ends = (client.prepare(OPTIONS).unwrap(), server.prepare(OPTIONS).unwrap());
        let (pair, _other) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
        let memory = client.slots(1, 4096).unwrap().remove(0);
        pair.post_reads(&mut vec![RdmaRead { memory, remote: served.remote(), token: 0 }]).unwrap();
        let done = completions(&mut client.poller, 1).remove(0);
        assert_eq!(done.result, Ok(4096), "{address}");
        assert_eq!(*done.memory.unwrap(), *served);
    }
    // Soft-RoCE in the guest has one of each kind.
    if std::env::var_os("VM_GUEST").is_some() {
        assert!(
            addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6),
            "{addresses:?}"
        );
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn waiting_ends_with_its_time() {
    let Some(_turn) = turn() else { return };
    let mut side = Side::open(None).unwrap();
    let mut none = Vec::new();
    let started = std::time::Instant::now();
    assert_eq!(side.poller.wait(&mut none, Duration::from_millis(30)).unwrap(), 0);
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert_eq!(side.poller.wait(&mut none, Duration::ZERO).unwrap(), 0);
    assert!(none.is_empty());
}
