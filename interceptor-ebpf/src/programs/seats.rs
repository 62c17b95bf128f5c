//! Where threads that read keep their books, see [`Seat`].

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use interceptor_ebpf::records::{ReaderKey, Seat, seat_of};
use interceptor_ebpf::run::Run;
use interceptor_ebpf::span::Call;

use crate::kernel::{Address, Typed, node_of, number_of};
use crate::maps::{READERS, SEATS};
use crate::readers;

/// The seat of the running thread for a file of a mount. `None` if the kernel does not tell which file that is.
///
/// Two threads that share a seat take it from each other, and if they do so at the same moment a read may be credited to the wrong one.
#[inline(always)]
pub(crate) fn take(watch: u64, inode: Address) -> Option<&'static mut Seat> {
    let thread = bpf_get_current_pid_tgid();
    let number = number_of::<Typed>(inode)?;
    // SAFETY: entries of arrays stay where they are, and every field may have any value.
    let seat = unsafe { &mut *SEATS.get_ptr_mut(seat_of(thread, number))? };
    if seat.thread != thread || seat.number != number || seat.watch != watch || !is_at(seat, inode) {
        let node = node_of(inode)?;
        leave(seat);
        // Whoever takes the seat away later may not be the thread, of which only itself can say who it is.
        readers::of(ReaderKey { thread, watch });
        let (call, run) = (Call::NONE, Run::NONE);
        *seat = Seat { thread, watch, inode: inode as u64, number, node, call, run, reads: 0, bytes: 0 };
    }
    Some(seat)
}

/// Credits the reader with what was read from its seat.
#[inline(always)]
fn leave(seat: &Seat) {
    if seat.reads == 0 {
        return;
    }
    let reader = READERS.get_ptr_mut(ReaderKey { thread: seat.thread, watch: seat.watch });
    // If it is not remembered any more, this is forgotten as well.
    if let Some(reader) = reader {
        // SAFETY: if it is evicted meanwhile it stays valid memory; every field may have any value.
        unsafe {
            (*reader).reads += seat.reads;
            (*reader).bytes += seat.bytes;
        }
    }
}

/// Whether that is where the seat's file is. The verifier lets addresses be compared as long as the compiler makes no sum of it.
#[inline(always)]
fn is_at(seat: &Seat, inode: Address) -> bool {
    // SAFETY: it is a reference to a number.
    let kept = unsafe { core::ptr::from_ref(&seat.inode).read_volatile() };
    kept == inode as u64
}
