//! The read calls of applications, which the programs follow from the system call to its end for
//! `interceptor trace`.

use crate::pages::PAGE;
use crate::records::TASK_COMM_LEN;

/// How many system calls read a file.
pub const READ_SYSCALLS: usize = 8;

/// The programs' read-only data about calls.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSettings {
    /// The numbers of the system calls that read a file, which differ by architecture.
    pub read_syscalls: [u32; READ_SYSCALLS],
}

impl CallSettings {
    /// The placeholder that the loader overwrites.
    pub const NONE: Self = Self { read_syscalls: [u32::MAX; READ_SYSCALLS] };
}

/// A call that has not returned. The key is its thread (`pid_tgid`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallState {
    /// When it began, on the monotonic clock, nanoseconds.
    pub begun_ns: u64,
    /// The watch of the mount that it reads; 0 as long as it has read of none.
    pub watch_id: u64,
    /// The FUSE node.
    pub node: u64,
    /// The first byte that it read, or that of its first page.
    pub offset: u64,
    /// The byte behind the last page that the call asked of the page cache; 0 if it asked for none.
    pub end: u64,
    /// Requests to the daemon that the kernel sent during the call, readahead included.
    pub requests: u32,
    /// 1 if a backing file is read (passthrough).
    pub passthrough: u32,
}

impl CallState {
    /// The first byte that a call read which returned `length`, rounded down to a page if that came
    /// from the page cache.
    ///
    /// The kernel reports pages in batches, and none of a batch whose last page it does not wait
    /// for. So the first batch may be missing; the last page, which each batch names, tells where
    /// it began.
    pub const fn first_byte(&self, length: u64) -> u64 {
        match self.end.checked_sub(length) {
            Some(begin) if self.end > 0 && begin < self.offset => begin - begin % PAGE,
            _ => self.offset,
        }
    }

    /// A call that begins.
    #[inline(always)]
    pub const fn begun(begun_ns: u64) -> Self {
        Self { begun_ns, watch_id: 0, node: 0, offset: 0, end: 0, requests: 0, passthrough: 0 }
    }

    /// The call reads this file of a watched mount. Of several files the first counts. The kernel
    /// may read ahead before it reads what the call is for, so the lowest offset counts.
    #[inline(always)]
    pub fn reads(&mut self, watch_id: u64, node: u64, offset: u64) {
        if self.watch_id == 0 {
            (self.watch_id, self.node, self.offset) = (watch_id, node, offset);
        } else if self.node == node && offset < self.offset {
            self.offset = offset;
        }
    }
}

/// A call that has returned.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallRecord {
    /// The call.
    pub call: CallState,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// The bytes that it read, or the negative error number.
    pub returned: i64,
    /// The process that called, in the PID namespace of the daemon; 0 if it is in another one.
    pub process: u32,
    /// Its thread, likewise.
    pub thread: u32,
    /// The name of the thread, with zeros behind it.
    pub command: [u8; TASK_COMM_LEN],
}

// No padding, whose bytes would be undefined.
const _: () = assert!(size_of::<CallState>() == 5 * 8 + 2 * 4);
const _: () = assert!(size_of::<CallRecord>() == size_of::<CallState>() + 2 * 8 + 2 * 4 + TASK_COMM_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_call_is_where_it_began_to_read() {
        let mut call = CallState::begun(5);
        call.reads(1, 7, 4096);
        call.reads(1, 7, 8192);
        call.reads(1, 8, 0);
        assert_eq!(call, CallState { begun_ns: 5, watch_id: 1, node: 7, offset: 4096, ..call });
        // What was before was read ahead.
        call.reads(1, 7, 0);
        assert_eq!(call.offset, 0);
    }

    #[test]
    fn a_batch_that_is_not_reported_is_found_by_the_length() {
        let call = |offset, end| CallState { offset, end, ..CallState::begun(0) };
        // 100 KiB at 200 KiB, of which the kernel reported what is behind 256 KiB.
        assert_eq!(call(256 << 10, 300 << 10).first_byte(100 << 10), 200 << 10);
        assert_eq!(call(200 << 10, 300 << 10).first_byte(100 << 10), 200 << 10);
        // At the end of a file there is less than was asked for.
        assert_eq!(call(4096, 8192).first_byte(100), 4096);
        assert_eq!((call(4096, 0).first_byte(100), call(0, 4096).first_byte(5000)), (4096, 0));
    }
}
