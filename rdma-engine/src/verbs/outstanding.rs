//! The work requests that were posted to a queue and have not completed.
//!
//! Each queue of a queue pair works in the order of posting. Only some work requests are
//! *signaled*, that is, ask for a completion, which stands for all requests before it. Room in the
//! queue is freed by completions too, so at least one request in each quarter of the queue is
//! signaled. And at least every fourth request is, or a poster that keeps the queue full would
//! learn of free room only after the queue has run dry.

use std::collections::VecDeque;

use super::WorkError;

/// The end of one work request.
#[derive(Debug)]
pub struct Completion<M> {
    /// The queue pair, by its [`super::QueuePair::id`].
    pub queue_pair: u32,
    /// The kind of work.
    pub work: WorkKind,
    /// The token with which it was posted.
    pub token: u64,
    /// The memory with which it was posted; `None` for inline messages.
    pub memory: Option<M>,
    /// How many bytes were read, sent or received, or why it failed.
    pub result: Result<usize, WorkError>,
}

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// An RDMA READ.
    Read,
    /// A message of this side.
    Send,
    /// A message of this side that was copied when it was posted. Only a failure gives a
    /// completion.
    SendInline,
    /// A message of the peer.
    Receive,
}

/// Identifies a work request among all others of a completion queue: the `wr_id` of verbs.
///
/// The serial is that of a queue pair on its completion queue. The queue pair's own number would
/// not do: numbers are used again, and a completion of a destroyed queue pair may still lie in the
/// queue.
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

/// The bits of a serial.
pub(super) const SERIALS: u32 = u32::MAX >> 1;

/// One work request that was posted.
pub(super) struct PostedWork<M> {
    pub(super) work: WorkKind,
    pub(super) token: u64,
    pub(super) memory: Option<M>,
    /// Bytes.
    pub(super) length: usize,
}

/// The most work requests from one that is signaled to the next.
const SIGNAL_INTERVAL: usize = 4;

/// The work requests of one queue, in order.
pub(super) struct Outstanding<M> {
    /// How many work requests the queue holds.
    depth: usize,
    /// Sequence number of the next work request.
    next: u32,
    /// How many unsignaled ones were posted since the last signaled one.
    unsignaled: usize,
    posted: VecDeque<PostedWork<M>>,
}

impl<M> Outstanding<M> {
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, next: 0, unsignaled: 0, posted: VecDeque::with_capacity(depth) }
    }

    /// Work requests that can be posted now.
    pub(super) fn free(&self) -> usize {
        self.depth - self.posted.len()
    }

    /// Sequence number of the `ahead`th work request after those that were posted.
    pub(super) fn sequence(&self, ahead: usize) -> u32 {
        self.next.wrapping_add(ahead as u32)
    }

    /// Whether the `ahead`th work request after those that were posted must be signaled.
    pub(super) fn signal_due(&self, ahead: usize) -> bool {
        (self.unsignaled + ahead + 1).is_multiple_of((self.depth / 4).clamp(1, SIGNAL_INTERVAL))
    }

    /// Adds a work request that was posted.
    pub(super) fn push(&mut self, posted: PostedWork<M>, signaled: bool) {
        self.posted.push_back(posted);
        self.next = self.next.wrapping_add(1);
        self.unsignaled = if signaled { 0 } else { self.unsignaled + 1 };
    }

    /// The device has reported the outcome of the work request `sequence`: all requests before it
    /// have succeeded. A successful `outcome` has the length of the message that was received, if
    /// it was one.
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
            // Not of this queue, or reported twice: no memory is freed for it.
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
            let PostedWork { work, token, memory, .. } = posted;
            into.push(Completion { queue_pair, work, token, memory, result });
        }
    }

    /// Drops all memory. The device must not use it any more.
    pub(super) fn clear(&mut self) {
        self.posted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(token: u64) -> PostedWork<u64> {
        PostedWork { work: WorkKind::Read, token, memory: Some(token), length: 8 }
    }

    fn tokens(completions: &[Completion<u64>]) -> Vec<(u64, bool)> {
        completions.iter().map(|completion| (completion.token, completion.result.is_ok())).collect()
    }

    #[test]
    fn a_work_id_is_decoded_as_it_was_encoded() {
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
        // Reported twice.
        queue.complete(1, 0, Ok(0), &mut done);
        assert_eq!((done.len(), queue.free()), (3, 6));
        queue.complete(1, 2, Err(WorkError::RemoteAccess), &mut done);
        assert_eq!(tokens(&done[3..]), [(3, true), (4, false)]);
        assert_eq!(queue.free(), 8);
    }

    #[test]
    fn inline_messages_complete_only_with_an_error() {
        let inline = |token| PostedWork { work: WorkKind::SendInline, token, memory: None::<u64>, length: 3 };
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
        queue.push(PostedWork { work: WorkKind::Receive, token: 1, memory: Some(1), length: 64 }, true);
        queue.complete(1, 0, Ok(5), &mut done);
        assert_eq!(done[0].result, Ok(5));
    }

    #[test]
    fn every_fourth_request_and_each_quarter_of_the_queue_is_signaled() {
        for depth in [1, 2, 3, 4, 16, 100] {
            let mut queue = Outstanding::new(depth);
            let mut run = 0;
            for token in 0..depth {
                let signaled = queue.signal_due(0);
                run = if signaled { 0 } else { run + 1 };
                assert!(run < (depth / 4).clamp(1, SIGNAL_INTERVAL), "depth {depth}");
                queue.push(read(token as u64), signaled);
            }
        }
        // Within a batch that is not posted yet.
        let queue = Outstanding::<u64>::new(16);
        let due: Vec<usize> = (0..9).filter(|&ahead| queue.signal_due(ahead)).collect();
        assert_eq!(due, [3, 7]);
    }
}
