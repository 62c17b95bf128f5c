//! The slots in which reading threads keep their state, see [`ReaderSlot`].

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use interceptor_ebpf::pages::ReadCall;
use interceptor_ebpf::records::{ReaderKey, ReaderSlot, reader_slot_index};
use interceptor_ebpf::run::SequentialRun;

use crate::kernel::{Address, DirectLoad, ino_of, node_of};
use crate::maps::{READER_SLOTS, READERS};
use crate::readers;

/// The slot of the current thread for a file of a mount. `None` if a field of the inode cannot be
/// read.
///
/// Two threads with one slot index take the slot from each other. If they do so concurrently, a
/// read may be credited to the wrong one.
#[inline(always)]
pub(crate) fn reader_slot(watch_id: u64, inode: Address) -> Option<&'static mut ReaderSlot> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let ino = ino_of::<DirectLoad>(inode)?;
    // SAFETY: entries of arrays never move, and every field may have any value.
    let slot = unsafe { &mut *READER_SLOTS.get_ptr_mut(reader_slot_index(pid_tgid, ino))? };
    let same_reader = slot.pid_tgid == pid_tgid && slot.ino == ino && slot.watch_id == watch_id;
    if !same_reader || !has_inode(slot, inode) {
        let node = node_of(inode)?;
        credit_reader(slot);
        // The statistics must exist before another thread takes the slot and credits them: only
        // the thread itself can read its own cgroup and command name.
        readers::entry(ReaderKey { pid_tgid, watch_id });
        let (call, run) = (ReadCall::NONE, SequentialRun::NONE);
        let inode_address = inode as u64;
        *slot = ReaderSlot { pid_tgid, watch_id, inode_address, ino, node, call, run, reads: 0, bytes: 0 };
    }
    Some(slot)
}

/// Adds the reads that were counted in a slot to the statistics of its thread. If the statistics
/// were evicted, the reads are lost.
#[inline(always)]
fn credit_reader(slot: &ReaderSlot) {
    if slot.reads == 0 {
        return;
    }
    let key = ReaderKey { pid_tgid: slot.pid_tgid, watch_id: slot.watch_id };
    if let Some(reader) = READERS.get_ptr_mut(key) {
        // SAFETY: the entry stays valid memory even if it is evicted meanwhile, and every field
        // may have any value.
        unsafe {
            (*reader).reads += slot.reads;
            (*reader).bytes += slot.bytes;
        }
    }
}

/// Whether the slot is for this inode. The load is volatile: the verifier allows comparing kernel
/// addresses, but not the subtraction that the compiler would make of it.
#[inline(always)]
fn has_inode(slot: &ReaderSlot, inode: Address) -> bool {
    // SAFETY: the pointer is made from a reference to an integer.
    let address = unsafe { core::ptr::from_ref(&slot.inode_address).read_volatile() };
    address == inode as u64
}
