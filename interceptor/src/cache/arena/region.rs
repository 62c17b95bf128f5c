//! The arena's address space.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use daemon::memory;

use super::size_class::UNIT;

/// What kind of pages the arena was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Pages of 2 MiB from the pool of `vm.nr_hugepages`, set aside at once.
    Hugetlb,
    /// Ordinary memory that the kernel may make up of pages of 2 MiB as it is touched.
    Transparent,
    /// Pages of 4 KiB.
    Plain,
}

impl Backing {
    /// One word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Backing::Hugetlb => "hugetlb",
            Backing::Transparent => "transparent",
            Backing::Plain => "plain",
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backing::Hugetlb => "huge pages (hugetlb)",
            Backing::Transparent => "transparent huge pages",
            Backing::Plain => "4 KiB pages",
        })
    }
}

/// A range of private memory, zeroed, at an address that never changes. Takes no memory before it is touched, except
/// as [`Backing::Hugetlb`].
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: the region is plain memory that any thread may use; it hands out nothing but its address.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes (a multiple of 2 MiB), in huge pages if the host has them.
    pub(super) fn map(len: usize) -> io::Result<Self> {
        // The kernel refuses this unless the pool has all of the pages, and keeps them for us if it has. What a control
        // group does not allow it takes for granted until the pages are touched.
        if memory::huge_page_limit().is_none_or(|limit| limit >= len as u64)
            && let Ok(start) = mmap(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)
        {
            return Ok(Self { start, len, backing: Backing::Hugetlb });
        }
        let unit = UNIT as usize;
        let start = mmap(len + unit, libc::MAP_NORESERVE)?;
        let ahead = start.as_ptr().align_offset(unit);
        // SAFETY: both ends lie within the mapping made above, whose middle part of `len` bytes stays.
        let start = unsafe {
            if ahead > 0 {
                libc::munmap(start.as_ptr().cast(), ahead);
            }
            let middle = start.add(ahead);
            libc::munmap(middle.add(len).as_ptr().cast(), unit - ahead);
            middle
        };
        // SAFETY: the range is ours; the advice changes no content.
        let advised = unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) == 0 };
        let backing = if advised && transparent_huge_pages() { Backing::Transparent } else { Backing::Plain };
        let region = Self { start, len, backing };
        // A core dump should show the daemon, not gigabytes of somebody's files.
        // SAFETY: as above.
        unsafe { libc::madvise(region.start.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
        Ok(region)
    }

    /// The first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Gives the memory of `len` bytes from `offset` on back to the host, unless it comes from a pool that the host keeps
    /// for huge pages. The caller must be the only user of these bytes, which are zeros then. Both are multiples of a page.
    pub(super) fn give_back(&self, offset: usize, len: usize) -> bool {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the range is within the region");
        if self.backing == Backing::Hugetlb {
            return false;
        }
        // SAFETY: the range lies within our mapping, which stays; that nobody else reads or writes it is the caller's part.
        unsafe { libc::madvise(self.start.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED) == 0 }
    }

    /// What kind of pages it is made of.
    pub(super) fn backing(&self) -> Backing {
        self.backing
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and nothing that borrows from the region is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

fn mmap(len: usize, flags: i32) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("the kernel mapped address 0"))
}

/// Whether the kernel gives huge pages to who asks.
fn transparent_huge_pages() -> bool {
    let switched_off = nix::sys::prctl::get_thp_disable().unwrap_or(false);
    !switched_off
        && std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|modes| !modes.contains("[never]"))
}
