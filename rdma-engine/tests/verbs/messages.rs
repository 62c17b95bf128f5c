//! SEND and RECV: whole, in order, with memory that comes back.

use rdma_engine::verbs::{LocalMemory, PostError, Timeouts, VerbsError, WorkError, WorkKind};

use crate::peer::OPTIONS;
use crate::{DEADLINE, Numbers, completions, connect, turn, two_sides};

/// Longest message.
const MESSAGE: usize = 4096;

#[test]
#[ignore = "needs an RDMA device"]
fn messages_arrive_whole_and_in_order() {
    let Some(_turn) = turn() else { return };
    let (mut receiver, mut sender) = two_sides();
    let prepared = receiver.prepare(OPTIONS).unwrap();
    // Before the handshake, so that the first message finds one.
    let mut next_receive = 0;
    for slot in receiver.slots(OPTIONS.receive_depth as usize, MESSAGE).unwrap() {
        prepared.post_receive(slot, next_receive).unwrap();
        next_receive += 1;
    }
    let (sending, receiving) =
        connect(sender.prepare(OPTIONS).unwrap(), prepared, Timeouts::default()).unwrap();
    let inline = sending.max_inline();
    assert!(inline >= OPTIONS.inline as usize);
    // A completion may stand for the three messages before it.
    let mut slots = sender.slots(4, MESSAGE).unwrap();
    let mut sent = Vec::new();
    let mut came_back = 0;

    // Many times the depth of both queues, one message at a time: every place in them is used
    // again and again.
    let mut numbers = Numbers(3);
    for number in 0..300_u64 {
        let length = if number % 3 == 0 { 1 + numbers.below(MESSAGE) } else { 1 + numbers.below(inline) };
        let message: Vec<u8> = (0..length).map(|_| numbers.below(256) as u8).collect();
        if length <= inline {
            sending.post_inline(&message, number).unwrap();
        } else {
            if slots.is_empty() {
                let mut ended = Vec::new();
                assert!(sender.poller.wait(&mut ended, DEADLINE).unwrap() > 0);
                for done in ended {
                    let (number, length) = sent[came_back];
                    assert_eq!((done.work, done.token, done.result), (WorkKind::Send, number, Ok(length)));
                    slots.push(done.memory.unwrap());
                    came_back += 1;
                }
            }
            let mut slot = slots.pop().unwrap();
            slot[..length].copy_from_slice(&message);
            sending.post_send(slot, length, number).unwrap();
            sent.push((number, length));
        }
        let done = completions(&mut receiver.poller, 1).remove(0);
        assert_eq!((done.queue_pair, done.work, done.token), (receiving.id(), WorkKind::Receive, number));
        assert_eq!(done.result, Ok(length));
        let slot = done.memory.unwrap();
        assert_eq!(slot[..length], message);
        receiving.post_receive(slot, next_receive).unwrap();
        next_receive += 1;
    }
    // Inline messages gave no completions, and take no room in the queue.
    let mut rest = Vec::new();
    sender.poller.queue().take(&mut rest).unwrap();
    assert!(rest.iter().all(|done| done.work == WorkKind::Send && done.result.is_ok()));
    assert!(came_back > 90);
    assert!(matches!(sending.post_inline(&vec![0; inline + 1], 0), Err(PostError::Length { .. })));
    assert!(matches!(sending.post_inline(&[], 0), Err(PostError::Length { length: 0, .. })));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_without_a_receive_is_a_typed_error() {
    let Some(_turn) = turn() else { return };
    let (receiver, mut sender) = two_sides();
    let ends = (sender.prepare(OPTIONS).unwrap(), receiver.prepare(OPTIONS).unwrap());
    let (sending, _receiving) = connect(ends.0, ends.1, Timeouts::default()).unwrap();
    sending.post_inline(b"nobody listens", 5).unwrap();
    let done = completions(&mut sender.poller, 1).remove(0);
    assert_eq!(
        (done.work, done.token, done.result),
        (WorkKind::SendInline, 5, Err(WorkError::ReceiverNotReady))
    );
    assert!(sending.is_broken());
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_message_that_does_not_fit_is_a_typed_error_at_both_ends() {
    let Some(_turn) = turn() else { return };
    let (mut receiver, mut sender) = two_sides();
    let prepared = receiver.prepare(OPTIONS).unwrap();
    prepared.post_receive(receiver.slots(1, 16).unwrap().remove(0), 0).unwrap();
    let (sending, _receiving) =
        connect(sender.prepare(OPTIONS).unwrap(), prepared, Timeouts::default()).unwrap();
    let slot = sender.slots(1, 64).unwrap().remove(0);
    sending.post_send(slot, 17, 1).unwrap();
    let sent = completions(&mut sender.poller, 1).remove(0);
    // The specification has the first, soft-RoCE answers the second.
    let error = sent.result.unwrap_err();
    assert!(matches!(error, WorkError::RemoteInvalidRequest | WorkError::RemoteOperation), "{error}");
    assert_eq!(sent.memory.unwrap().length(), 64);
    let received = completions(&mut receiver.poller, 1).remove(0);
    assert!(received.result.is_err() && received.memory.is_some(), "{received:?}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_completion_queue_is_never_promised_twice() {
    let Some(_turn) = turn() else { return };
    let (side, _) = two_sides();
    let each = (OPTIONS.send_depth + OPTIONS.receive_depth) as usize;
    let mut pairs: Vec<_> = (0..1024 / each).map(|_| side.prepare(OPTIONS).unwrap()).collect();
    let refused = side.prepare(OPTIONS).unwrap_err();
    assert!(matches!(refused, VerbsError::CompletionQueueFull { .. }), "{refused}");
    // Its room is free again only once the queue was seen empty.
    pairs.pop();
    assert!(side.prepare(OPTIONS).is_err());
    side.poller.queue().take(&mut Vec::new()).unwrap();
    side.prepare(OPTIONS).unwrap();
}
