//! Reliable connections: queue pairs of type RC.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ibverbs_sys::{
    self as ffi, ibv_access_flags, ibv_qp_attr_mask as mask, ibv_qp_state, ibv_qp_type, ibv_send_flags,
    ibv_wr_opcode,
};

use super::completion::{CompletionQueue, WorkQueues, lock};
use super::device::{Mtu, Port};
use super::outstanding::{Outstanding, PostedWork, WorkId, WorkKind};
use super::{Endpoint, LocalMemory, PortSelection, PostError, ProtectionDomain, RemoteMemory, VerbsError};

/// The size of a queue pair.
#[derive(Debug, Clone, Copy)]
pub struct QueuePairOptions {
    /// How many reads and sends can be posted at once.
    pub send_depth: u32,
    /// How many receives can be posted at once.
    pub receive_depth: u32,
    /// The longest message that is sent inline, in bytes; the device may allow more.
    pub inline: u32,
    /// Whether the peer may read what is registered in the domain for
    /// [`super::MemoryAccess::RemoteRead`].
    pub serve_reads: bool,
}

/// How long the device tries to reach the peer.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// How long it waits for an answer to a packet; rounded up to 4.096 µs times a power of two.
    /// Devices wait up to four times as long.
    pub answer: Duration,
    /// How often it sends the packet again, at most 6: 7, the maximum of verbs, is for ever on
    /// soft-RoCE.
    pub retries: u8,
}

impl Default for Timeouts {
    /// 67 ms and 6: a peer that is gone is detected after half a second to two seconds.
    fn default() -> Self {
        Self { answer: Duration::from_millis(67), retries: MAX_RETRIES }
    }
}

impl Timeouts {
    /// The answer time as verbs encodes it: the exponent, 1 to 31.
    fn exponent(self) -> u8 {
        let units = self.answer.as_nanos().div_ceil(4096);
        (1..31).find(|&exponent| 1 << exponent >= units).unwrap_or(31)
    }
}

/// See [`Timeouts::retries`].
const MAX_RETRIES: u8 = 6;

/// How often a send is repeated to a peer that has no receive posted (RNR, receiver not ready).
/// Both sides keep receives posted by counting credits, so this is only for the moment after the
/// handshake, when one end is ready before the other.
const MAX_RNR_RETRIES: u8 = 6;

/// How long the sender waits before each of these retries: 12 stands for 0.64 ms.
const RNR_TIMER: u8 = 12;

/// The most hops of a packet between routed networks.
const HOP_LIMIT: u8 = 64;

/// A queue pair that is not connected. Receives can be posted already, and should be, so that the
/// peer's first message finds one.
#[derive(Debug)]
pub struct PreparedQueuePair<M: LocalMemory> {
    pair: QueuePair<M>,
    selection: PortSelection,
    port: Port,
    endpoint: Endpoint,
}

impl<M: LocalMemory> PreparedQueuePair<M> {
    /// A new queue pair on a port, with its completions in `queue`.
    ///
    /// # Errors
    /// [`VerbsError::CompletionQueueFull`]; [`VerbsError::NoPort`] if the device of domain and
    /// queue has no such port; a [`VerbsError::Call`] when the device has no more queue pairs, or
    /// none so large.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue<M>>,
        selection: &PortSelection,
        options: QueuePairOptions,
    ) -> Result<Self, VerbsError> {
        let context = domain.context();
        let device = context.device();
        if !Arc::ptr_eq(context, queue.context()) || device.name != selection.device {
            return Err(VerbsError::NoPort(
                "domain, completion queue and port are of different devices".to_owned(),
            ));
        }
        let port = device.ports.iter().find(|port| port.number == selection.port).cloned();
        let port = port
            .ok_or_else(|| VerbsError::NoPort(format!("{} has no port {}", device.name, selection.port)))?;
        let serve_reads = options.serve_reads;
        let max_message = port.max_message as usize;
        let pair = QueuePair::create(domain, queue, options, max_message)?;

        let mut access = ibv_access_flags(0);
        if serve_reads {
            access = ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        }
        let mut attributes = ffi::ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_INIT,
            port_num: port.number,
            qp_access_flags: access.0,
            ..ffi::ibv_qp_attr::default()
        };
        pair.modify(
            &mut attributes,
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS,
        )?;
        let endpoint = Endpoint {
            // SAFETY: the queue pair is valid.
            queue_pair: unsafe { (*pair.as_raw()).qp_num },
            // Random, so that packets of an earlier connection of the same number are not
            // accepted.
            first_packet: (RandomState::new().build_hasher().finish() & 0xff_ffff) as u32,
            lid: port.lid,
            gid: selection.gid.map(|entry| entry.gid),
            mtu: port.mtu,
            served_reads: if serve_reads { device.max_served_reads } else { 0 },
        };
        Ok(Self { pair, selection: selection.clone(), port, endpoint })
    }

    /// This end, for the peer.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Posts a receive, as [`QueuePair::post_receive`].
    ///
    /// # Errors
    /// [`PostError::Full`], or the error of the device.
    pub fn post_receive(&self, memory: M, token: u64) -> Result<(), Unposted<M>> {
        self.pair.post_receive(memory, token)
    }

    /// Connects to the peer, which must do the same with this side's endpoint.
    ///
    /// # Errors
    /// [`VerbsError::Endpoint`] if the peer's endpoint cannot be reached from this port; the error
    /// of the device.
    pub fn handshake(self, peer: &Endpoint, timeouts: Timeouts) -> Result<QueuePair<M>, VerbsError> {
        peer.check()?;
        let device = self.pair.domain.context().device();
        let mut receiving = ffi::ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTR,
            path_mtu: path_mtu(self.port.mtu, peer.mtu),
            dest_qp_num: peer.queue_pair,
            rq_psn: peer.first_packet,
            max_dest_rd_atomic: self.endpoint.served_reads,
            min_rnr_timer: RNR_TIMER,
            ..ffi::ibv_qp_attr::default()
        };
        receiving.ah_attr.port_num = self.port.number;
        receiving.ah_attr.dlid = peer.lid;
        match (self.selection.gid, peer.gid) {
            (Some(own), Some(gid)) => {
                receiving.ah_attr.is_global = 1;
                receiving.ah_attr.grh.dgid = ffi::ibv_gid { raw: gid.0 };
                receiving.ah_attr.grh.sgid_index = own.index;
                receiving.ah_attr.grh.hop_limit = HOP_LIMIT;
            }
            (Some(_), None) => return Err(VerbsError::Endpoint("it has no GID, and this port needs one")),
            // InfiniBand within one subnet.
            (None, _) if peer.lid != 0 => {}
            (None, _) => return Err(VerbsError::Endpoint("it has no LID, and this port needs one")),
        }
        self.pair.modify(
            &mut receiving,
            mask::IBV_QP_STATE
                | mask::IBV_QP_AV
                | mask::IBV_QP_PATH_MTU
                | mask::IBV_QP_DEST_QPN
                | mask::IBV_QP_RQ_PSN
                | mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | mask::IBV_QP_MIN_RNR_TIMER,
        )?;
        let mut sending = ffi::ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTS,
            sq_psn: self.endpoint.first_packet,
            timeout: timeouts.exponent(),
            retry_cnt: timeouts.retries.min(MAX_RETRIES),
            rnr_retry: MAX_RNR_RETRIES,
            max_rd_atomic: device.max_reads.min(peer.served_reads),
            ..ffi::ibv_qp_attr::default()
        };
        self.pair.modify(
            &mut sending,
            mask::IBV_QP_STATE
                | mask::IBV_QP_SQ_PSN
                | mask::IBV_QP_TIMEOUT
                | mask::IBV_QP_RETRY_CNT
                | mask::IBV_QP_RNR_RETRY
                | mask::IBV_QP_MAX_QP_RD_ATOMIC,
        )?;
        Ok(self.pair)
    }
}

/// The largest packet that both ends take, as verbs encodes it.
fn path_mtu(own: Mtu, peer: Mtu) -> ffi::ibv_mtu {
    own.min(peer).code().into()
}

/// One RDMA READ: from the peer's memory into local memory.
#[derive(Debug)]
pub struct RdmaRead<M> {
    /// Where the bytes go; all of it is filled.
    pub memory: M,
    /// Where the bytes are; as many are read as `memory` has.
    pub remote: RemoteMemory,
    /// Comes back with the completion.
    pub token: u64,
}

/// Memory that could not be posted, with the reason.
#[derive(Debug)]
pub struct Unposted<M> {
    /// The reason.
    pub error: PostError,
    /// The memory that was to be posted.
    pub memory: M,
}

impl<M> fmt::Display for Unposted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M: fmt::Debug> std::error::Error for Unposted<M> {}

/// A reliable connection to one peer. Any thread may post. Dropping it ends the connection, takes
/// all work from the device, and drops the memory that was still posted; that work gives no
/// completions.
pub struct QueuePair<M: LocalMemory> {
    raw: NonNull<ffi::ibv_qp>,
    id: u32,
    queues: Arc<WorkQueues<M>>,
    /// Room that is promised in the completion queue.
    promised: u32,
    inline: usize,
    max_message: usize,
    queue: Arc<CompletionQueue<M>>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread and from several at once; the queues are behind
// locks, and `M` is `Send`.
unsafe impl<M: LocalMemory> Send for QueuePair<M> {}
// SAFETY: as above.
unsafe impl<M: LocalMemory> Sync for QueuePair<M> {}

impl<M: LocalMemory> QueuePair<M> {
    fn create(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue<M>>,
        options: QueuePairOptions,
        max_message: usize,
    ) -> Result<Self, VerbsError> {
        let functions = domain.context().functions;
        let promised = options.send_depth.saturating_add(options.receive_depth);
        let queues = Arc::new(WorkQueues {
            send: Mutex::new(Outstanding::new(options.send_depth as usize)),
            receive: Mutex::new(Outstanding::new(options.receive_depth as usize)),
            broken: AtomicBool::new(false),
        });
        let id = queue.enter(&queues, promised)?;
        let mut attributes = ffi::ibv_qp_init_attr {
            send_cq: queue.as_raw(),
            recv_cq: queue.as_raw(),
            cap: ffi::ibv_qp_cap {
                max_send_wr: options.send_depth,
                max_recv_wr: options.receive_depth,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: options.inline,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            ..ffi::ibv_qp_init_attr::default()
        };
        // SAFETY: domain and completion queue are valid and of one device, and outlive the queue
        // pair, which holds them.
        let raw = unsafe { (functions.ibv_create_qp)(domain.as_raw(), &mut attributes) };
        let Some(raw) = NonNull::new(raw) else {
            let error = VerbsError::last("ibv_create_qp");
            queue.leave(id, promised);
            return Err(error);
        };
        Ok(Self {
            raw,
            id,
            queues,
            promised,
            inline: attributes.cap.max_inline_data as usize,
            max_message,
            queue: Arc::clone(queue),
            domain: Arc::clone(domain),
        })
    }

    /// The id in its completions.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The longest message for [`QueuePair::post_inline`], in bytes.
    pub fn max_inline(&self) -> usize {
        self.inline
    }

    /// Posts RDMA READs with one call. Each gives a completion, which may come only with that of
    /// one of the next three.
    ///
    /// `reads` is empty afterwards; with an error it still has the reads that were not posted.
    ///
    /// # Errors
    /// [`PostError::Full`], [`PostError::Length`] and [`PostError::Broken`] before anything was
    /// posted. With [`PostError::Device`] the queue pair is broken, and what was posted is
    /// flushed.
    pub fn post_reads(&self, reads: &mut Vec<RdmaRead<M>>) -> Result<(), PostError> {
        let mut outstanding = lock(&self.queues.send);
        self.ready(&outstanding, reads.len())?;
        for read in reads.iter() {
            // The peer would refuse a read past the granted range, and that breaks the connection.
            let limit = self.max_message.min(usize::try_from(read.remote.length).unwrap_or(usize::MAX));
            check_length(read.memory.length(), limit)?;
        }
        let mut entries: Vec<ffi::ibv_sge> =
            reads.iter().map(|read| scatter_gather(&read.memory, read.memory.length())).collect();
        let last = reads.len().saturating_sub(1);
        let mut requests: Vec<ffi::ibv_send_wr> = Vec::with_capacity(reads.len());
        for (index, read) in reads.iter().enumerate() {
            let signaled = index == last || outstanding.signal_due(index);
            let mut request = ffi::ibv_send_wr {
                wr_id: self.work_id(&outstanding, index, false),
                sg_list: &raw mut entries[index],
                num_sge: 1,
                opcode: ibv_wr_opcode::IBV_WR_RDMA_READ,
                send_flags: if signaled { ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 },
                ..ffi::ibv_send_wr::default()
            };
            request.wr.rdma.remote_addr = read.remote.address;
            request.wr.rdma.rkey = read.remote.rkey;
            requests.push(request);
        }
        let posted = self.submit(&mut requests);
        let count = posted.as_ref().map_or_else(|&(count, _)| count, |()| reads.len());
        for (read, request) in reads.drain(..count).zip(&requests) {
            let length = read.memory.length();
            let signaled = request.send_flags & ibv_send_flags::IBV_SEND_SIGNALED.0 != 0;
            let RdmaRead { memory, token, .. } = read;
            outstanding
                .push(PostedWork { work: WorkKind::Read, token, memory: Some(memory), length }, signaled);
        }
        drop(outstanding);
        posted.map_err(|(_, error)| self.break_with(error))
    }

    /// Sends the first `length` bytes of `memory`. The completion may come only with that of one
    /// of the next three.
    ///
    /// # Errors
    /// As [`QueuePair::post_reads`].
    pub fn post_send(&self, memory: M, length: usize, token: u64) -> Result<(), Unposted<M>> {
        let mut outstanding = lock(&self.queues.send);
        let limit = self.max_message.min(memory.length());
        if let Err(error) = self.ready(&outstanding, 1).and_then(|()| check_length(length, limit)) {
            return Err(Unposted { error, memory });
        }
        let signaled = outstanding.signal_due(0);
        let mut entry = scatter_gather(&memory, length);
        let mut request = [ffi::ibv_send_wr {
            wr_id: self.work_id(&outstanding, 0, false),
            sg_list: &mut entry,
            num_sge: 1,
            opcode: ibv_wr_opcode::IBV_WR_SEND,
            send_flags: if signaled { ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 },
            ..ffi::ibv_send_wr::default()
        }];
        match self.submit(&mut request) {
            Ok(()) => {
                outstanding
                    .push(PostedWork { work: WorkKind::Send, token, memory: Some(memory), length }, signaled);
                Ok(())
            }
            Err((_, error)) => Err(Unposted { error: self.break_with(error), memory }),
        }
    }

    /// Sends a short message that is copied before the call returns. A completion comes only if it
    /// fails.
    ///
    /// # Errors
    /// As [`QueuePair::post_reads`]; the limit is [`QueuePair::max_inline`].
    pub fn post_inline(&self, message: &[u8], token: u64) -> Result<(), PostError> {
        let mut outstanding = lock(&self.queues.send);
        self.ready(&outstanding, 1)?;
        check_length(message.len(), self.inline)?;
        let signaled = outstanding.signal_due(0);
        let mut flags = ibv_send_flags::IBV_SEND_INLINE;
        if signaled {
            flags |= ibv_send_flags::IBV_SEND_SIGNALED;
        }
        // Inline messages need no key.
        let mut entry = ffi::ibv_sge { addr: message.as_ptr() as u64, length: message.len() as u32, lkey: 0 };
        let mut request = [ffi::ibv_send_wr {
            wr_id: self.work_id(&outstanding, 0, false),
            sg_list: &mut entry,
            num_sge: 1,
            opcode: ibv_wr_opcode::IBV_WR_SEND,
            send_flags: flags.0,
            ..ffi::ibv_send_wr::default()
        }];
        self.submit(&mut request).map_err(|(_, error)| self.break_with(error))?;
        outstanding.push(
            PostedWork { work: WorkKind::SendInline, token, memory: None, length: message.len() },
            signaled,
        );
        Ok(())
    }

    /// Posts memory for one message of the peer.
    ///
    /// # Errors
    /// As [`QueuePair::post_reads`].
    pub fn post_receive(&self, memory: M, token: u64) -> Result<(), Unposted<M>> {
        let mut outstanding = lock(&self.queues.receive);
        let length = memory.length();
        if let Err(error) = self.ready(&outstanding, 1).and_then(|()| check_length(length, self.max_message))
        {
            return Err(Unposted { error, memory });
        }
        let mut entry = scatter_gather(&memory, length);
        let mut request = ffi::ibv_recv_wr {
            wr_id: self.work_id(&outstanding, 0, true),
            sg_list: &mut entry,
            num_sge: 1,
            ..ffi::ibv_recv_wr::default()
        };
        let mut bad = ptr::null_mut();
        let raw = self.as_raw();
        // SAFETY: the queue pair is valid and its provider has the function. Request and entry
        // live during the call, which copies them. The memory is registered and used by nothing
        // else (`LocalMemory`) as long as `outstanding` holds it: until a completion, or until the
        // queue pair is destroyed.
        let returned = unsafe {
            let post = (*(*raw).context).ops.post_recv.expect("every provider has post_recv");
            post(raw, &mut request, &mut bad)
        };
        if returned != 0 {
            return Err(Unposted { error: self.break_with(device_error(returned)), memory });
        }
        outstanding.push(PostedWork { work: WorkKind::Receive, token, memory: Some(memory), length }, true);
        Ok(())
    }

    /// Aborts everything that is posted: all of it completes as [`super::WorkError::Flushed`], and
    /// nothing more can be posted.
    ///
    /// # Errors
    /// When the device has failed. Dropping the queue pair takes the memory back even then.
    pub fn abort(&self) -> Result<(), VerbsError> {
        self.queues.broken.store(true, Ordering::Relaxed);
        let mut attributes =
            ffi::ibv_qp_attr { qp_state: ibv_qp_state::IBV_QPS_ERR, ..ffi::ibv_qp_attr::default() };
        self.modify(&mut attributes, mask::IBV_QP_STATE)
    }

    /// Whether it has failed or was aborted.
    pub fn is_broken(&self) -> bool {
        self.queues.broken.load(Ordering::Relaxed)
    }

    fn ready(&self, outstanding: &Outstanding<M>, asked: usize) -> Result<(), PostError> {
        if self.is_broken() {
            return Err(PostError::Broken);
        }
        let free = outstanding.free();
        if asked > free { Err(PostError::Full { free, asked }) } else { Ok(()) }
    }

    fn work_id(&self, outstanding: &Outstanding<M>, ahead: usize, receive: bool) -> u64 {
        WorkId { serial: self.id, receive, sequence: outstanding.sequence(ahead) }.encode()
    }

    /// Posts the requests as one list. An error comes with the number of requests that were
    /// posted.
    fn submit(&self, requests: &mut [ffi::ibv_send_wr]) -> Result<(), (usize, PostError)> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let first = requests.as_mut_ptr();
        for index in 0..last {
            // SAFETY: both are within the slice.
            unsafe { (*first.add(index)).next = first.add(index + 1) };
        }
        let mut bad: *mut ffi::ibv_send_wr = ptr::null_mut();
        let raw = self.as_raw();
        // SAFETY: the queue pair is valid and its provider has the function. Requests and entries
        // live during the call, which copies them. The memory is registered and used by nothing
        // else (`LocalMemory`) as long as `outstanding` holds it: until a completion, or until the
        // queue pair is destroyed. The callers hold the lock of `outstanding`, so no completion is
        // looked up before the memory is in it.
        let returned = unsafe {
            let post = (*(*raw).context).ops.post_send.expect("every provider has post_send");
            post(raw, first, &mut bad)
        };
        if returned == 0 {
            return Ok(());
        }
        let taken = requests.iter().position(|request| ptr::eq(request, bad)).unwrap_or(0);
        Err((taken, device_error(returned)))
    }

    /// Aborts after the device has refused work. If only a part of a list was posted, the signaled
    /// request may be missing: only flushing gives completions for the others, and their memory
    /// back.
    fn break_with(&self, error: PostError) -> PostError {
        // If that fails too, dropping the queue pair takes the memory back.
        let _ = self.abort();
        error
    }

    fn modify(&self, attributes: &mut ffi::ibv_qp_attr, which: mask) -> Result<(), VerbsError> {
        // SAFETY: the queue pair is valid, and the attributes are borrowed for the call.
        let returned = unsafe {
            (self.domain.context().functions.ibv_modify_qp)(self.as_raw(), attributes, which.0 as i32)
        };
        VerbsError::check("ibv_modify_qp", returned)
    }

    fn as_raw(&self) -> *mut ffi::ibv_qp {
        self.raw.as_ptr()
    }
}

impl<M: LocalMemory> Drop for QueuePair<M> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. No thread posts, since posting borrows the queue
        // pair.
        let returned = unsafe { (self.domain.context().functions.ibv_destroy_qp)(self.as_raw()) };
        self.queue.leave(self.id, self.promised);
        if returned == 0 {
            // The device no longer knows the queue pair, so it uses none of this.
            lock(&self.queues.send).clear();
            lock(&self.queues.receive).clear();
        } else {
            // The device may still use the memory: then the memory is never freed.
            mem::forget(Arc::clone(&self.queues));
        }
    }
}

impl<M: LocalMemory> fmt::Debug for QueuePair<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("id", &self.id)
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

/// The scatter/gather entry of the first `length` bytes.
fn scatter_gather<M: LocalMemory>(memory: &M, length: usize) -> ffi::ibv_sge {
    ffi::ibv_sge { addr: memory.start() as u64, length: length as u32, lkey: memory.lkey() }
}

/// Checks the length of a message. Zero is refused, because devices take it for the maximum.
fn check_length(length: usize, limit: usize) -> Result<(), PostError> {
    let limit = limit.min(u32::MAX as usize);
    if length == 0 || length > limit { Err(PostError::Length { length, limit }) } else { Ok(()) }
}

fn device_error(returned: i32) -> PostError {
    let number = if returned > 0 { Some(returned) } else { None };
    PostError::Device(number.map_or_else(io::Error::last_os_error, io::Error::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_times_are_rounded_up_to_powers_of_two() {
        let exponent = |answer| Timeouts { answer, retries: MAX_RETRIES }.exponent();
        assert_eq!(exponent(Duration::from_millis(67)), 14);
        assert_eq!(exponent(Duration::from_millis(68)), 15);
        assert_eq!(exponent(Duration::ZERO), 1);
        assert_eq!(exponent(Duration::MAX), 31);
    }

    #[test]
    fn lengths_that_verbs_cannot_express_are_refused() {
        assert!(check_length(1, 10).is_ok() && check_length(10, 10).is_ok());
        assert!(check_length(0, 10).is_err() && check_length(11, 10).is_err());
        assert!(check_length(1 << 33, usize::MAX).is_err());
    }
}
