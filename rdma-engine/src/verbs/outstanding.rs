//! What was posted to a queue and has not come back.
//!
//! Each queue of a queue pair works in the order of posting. Only some work requests are *signalled*, that is, ask for a completion; that one stands
//! for all before it. The queue's own room is counted the same way: it is free again when a completion says so, therefore at least
//! every quarter of the queue is signalled. And not fewer than every fourth work request, or whoever keeps the queue full would hear of room only after it has
//! run dry.

use std::collections::VecDeque;

use super::WorkError;

/// Work that came to its end.
#[derive(Debug)]
pub struct Completion<M> {
    /// Which queue pair: [`super::QueuePair::id`].
    pub queue_pair: u32,
    /// What it was.
    pub work: WorkKind,
    /// As given when it was posted.
    pub token: u64,
    /// What was moved in when it was posted; `None` for inline messages.
    pub memory: Option<M>,
    /// The bytes that were read, sent or received, or the reason why not.
    pub result: Result<usize, WorkError>,
}

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// An RDMA READ.
    Read,
    /// A message of ours.
    Send,
    /// A message of ours that was copied when it was posted. Only its failure is told.
    SendInline,
    /// A message of the peer.
    Receive,
}

/// What tells a work request from all others on a completion queue: the `wr_id` of verbs.
///
/// The serial is that of a queue pair on its completion queue. It stands here because the numbers of queue pairs are used again, and a completion of one that
/// was destroyed may still lie in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkId {
    /// 31 bits.
    pub(super) serial: u32,
    pub(super) receive: bool,
    pub(super) sequence: u32,
}

impl WorkId {
    pub(super) fn encode(self) -> u64 {
        u64::from(self.receive) << 63 | u64::from(self.serial & SERIALS) << 32 | u64::from(self.sequence)
    }

    pub(super) fn decode(wr_id: u64) -> Self {
        Self { serial: (wr_id >> 32) as u32 & SERIALS, receive: wr_id >> 63 == 1, sequence: wr_id as u32 }
    }
}

/// Mask of serials.
pub(super) const SERIALS: u32 = u32::MAX >> 1;

/// One work request that was posted.
pub(super) struct Posted<M> {
    pub(super) work: WorkKind,
    pub(super) token: u64,
    pub(super) memory: Option<M>,
    /// Bytes.
    pub(super) length: usize,
}

/// Work requests from one that is signalled to the next.
const LONGEST_RUN: usize = 4;

/// The work requests of one queue, in order.
pub(super) struct Outstanding<M> {
    /// Room of the queue.
    depth: usize,
    /// Sequence number of the next.
    next: u32,
    /// Unsignalled ones since the last that was signalled.
    unsignalled: usize,
    posted: VecDeque<Posted<M>>,
}

impl<M> Outstanding<M> {
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, next: 0, unsignalled: 0, posted: VecDeque::with_capacity(depth) }
    }

    /// Work requests that can be posted now.
    pub(super) fn free(&self) -> usize {
        self.depth - self.posted.len()
    }

    /// Sequence number of the `ahead`th work request after those that were posted.
    pub(super) fn sequence(&self, ahead: usize) -> u32 {
        self.next.wrapping_add(ahead as u32)
    }

    /// Whether the next work request must be signalled, whatever its poster wants.
    pub(super) fn signal_due(&self, ahead: usize) -> bool {
        (self.unsignalled + ahead + 1).is_multiple_of((self.depth / 4).clamp(1, LONGEST_RUN))
    }

    /// Takes what was posted.
    pub(super) fn push(&mut self, posted: Posted<M>, signalled: bool) {
        self.posted.push_back(posted);
        self.next = self.next.wrapping_add(1);
        self.unsignalled = if signalled { 0 } else { self.unsignalled + 1 };
    }

    /// The device says how the work request `sequence` ended: all before it ended well. `received` are the bytes of a message of the peer.
    pub(super) fn complete(
        &mut self,
        queue_pair: u32,
        sequence: u32,
        outcome: Result<usize, WorkError>,
        into: &mut Vec<Completion<M>>,
    ) {
        let first = self.next.wrapping_sub(self.posted.len() as u32);
        let before = sequence.wrapping_sub(first) as usize;
        if before >= self.posted.len() {
            // Not one of ours, or told twice: nothing is freed for it.
            return;
        }
        for (index, posted) in self.posted.drain(..=before).enumerate() {
            let result = match outcome {
                Err(error) if index == before => Err(error),
                Ok(received) if posted.work == WorkKind::Receive => Ok(received),
                _ => Ok(posted.length),
            };
            if posted.work == WorkKind::SendInline && result.is_ok() {
                continue;
            }
            let Posted { work, token, memory, .. } = posted;
            into.push(Completion { queue_pair, work, token, memory, result });
        }
    }

    /// Gives up all memory, once the device no longer uses it.
    pub(super) fn clear(&mut self) {
        self.posted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(token: u64) -> Posted<u64> {
        Posted { work: WorkKind::Read, token, memory: Some(token), length: 8 }
    }

    fn tokens(completions: &[Completion<u64>]) -> Vec<(u64, bool)> {
        completions.iter().map(|completion| (completion.token, completion.result.is_ok())).collect()
    }

    #[test]
    fn a_work_id_survives_the_device() {
        for id in [
            WorkId { serial: SERIALS, receive: true, sequence: u32::MAX },
            WorkId { serial: 1, receive: false, sequence: 7 },
        ] {
            assert_eq!(WorkId::decode(id.encode()), id);
        }
    }

    #[test]
    fn one_completion_stands_for_all_before_it() {
        let mut queue = Outstanding::new(8);
        queue.next = u32::MAX - 1;
        let mut done = Vec::new();
        for token in 0..5 {
            queue.push(read(token), token == 2);
        }
        assert_eq!(queue.free(), 3);
        queue.complete(1, 0, Ok(0), &mut done);
        assert_eq!(tokens(&done), [(0, true), (1, true), (2, true)]);
        assert_eq!(done[2].memory, Some(2));
        assert_eq!(done[2].result, Ok(8));
        // Told twice.
        queue.complete(1, 0, Ok(0), &mut done);
        assert_eq!((done.len(), queue.free()), (3, 6));
        queue.complete(1, 2, Err(WorkError::RemoteAccess), &mut done);
        assert_eq!(tokens(&done[3..]), [(3, true), (4, false)]);
        assert_eq!(queue.free(), 8);
    }

    #[test]
    fn inline_messages_tell_failures_only() {
        let inline = |token| Posted { work: WorkKind::SendInline, token, memory: None::<u64>, length: 3 };
        let mut queue = Outstanding::new(8);
        let mut done = Vec::new();
        queue.push(inline(1), false);
        queue.push(inline(2), true);
        queue.push(inline(3), true);
        queue.complete(1, 1, Ok(0), &mut done);
        assert!(done.is_empty());
        queue.complete(1, 2, Err(WorkError::Flushed), &mut done);
        assert_eq!(tokens(&done), [(3, false)]);
    }

    #[test]
    fn a_received_message_has_its_own_length() {
        let mut queue = Outstanding::new(1);
        let mut done = Vec::new();
        queue.push(Posted { work: WorkKind::Receive, token: 1, memory: Some(1), length: 64 }, true);
        queue.complete(1, 0, Ok(5), &mut done);
        assert_eq!(done[0].result, Ok(5));
    }

    #[test]
    fn every_fourth_and_a_quarter_of_the_queue_are_signalled() {
        for depth in [1, 2, 3, 4, 16, 100] {
            let mut queue = Outstanding::new(depth);
            let mut run = 0;
            for token in 0..depth {
                let signalled = queue.signal_due(0);
                run = if signalled { 0 } else { run + 1 };
                assert!(run < (depth / 4).clamp(1, LONGEST_RUN), "depth {depth}");
                queue.push(read(token as u64), signalled);
            }
        }
        // Within a batch that is not posted yet.
        let queue = Outstanding::<u64>::new(16);
        let due: Vec<usize> = (0..9).filter(|&ahead| queue.signal_due(ahead)).collect();
        assert_eq!(due, [3, 7]);
    }
}
