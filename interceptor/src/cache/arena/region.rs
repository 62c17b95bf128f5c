//! The arena's address space.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use daemon::memory;

use super::size_class::UNIT_SIZE;

/// What kind of pages the arena was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageBacking {
    /// Pages of 2 MiB from the pool of `vm.nr_hugepages`, reserved at once.
    Hugetlb,
    /// Ordinary memory that the kernel may back with pages of 2 MiB when it is touched.
    Transparent,
    /// Pages of 4 KiB.
    Plain,
}

impl PageBacking {
    /// The word for it in JSON and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            PageBacking::Hugetlb => "hugetlb",
            PageBacking::Transparent => "transparent",
            PageBacking::Plain => "plain",
        }
    }
}

impl fmt::Display for PageBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageBacking::Hugetlb => "huge pages (hugetlb)",
            PageBacking::Transparent => "transparent huge pages",
            PageBacking::Plain => "4 KiB pages",
        })
    }
}

/// A range of private memory, zeroed, at an address that never changes. It takes no memory before
/// it is touched, except as [`PageBacking::Hugetlb`].
#[derive(Debug)]
pub(super) struct ArenaRegion {
    start: NonNull<u8>,
    len: usize,
    backing: PageBacking,
}

// SAFETY: the region is plain memory that any thread may use, and gives out only its address.
unsafe impl Send for ArenaRegion {}
// SAFETY: as above.
unsafe impl Sync for ArenaRegion {}

impl ArenaRegion {
    /// Maps `len` bytes (a multiple of 2 MiB), in huge pages if the host has them.
    ///
    /// # Errors
    /// When the kernel has no address space of that size.
    pub(super) fn map(len: usize) -> io::Result<Self> {
        // The kernel refuses this unless the pool has all of the pages, and reserves them if it
        // has. It does not check a control group's limit before the pages are touched, so the
        // limit is checked here.
        if memory::huge_page_limit().is_none_or(|limit| limit >= len as u64)
            && let Ok(start) = mmap(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)
        {
            return Ok(Self { start, len, backing: PageBacking::Hugetlb });
        }
        let unit = UNIT_SIZE as usize;
        let start = mmap(len + unit, libc::MAP_NORESERVE)?;
        let ahead = start.as_ptr().align_offset(unit);
        // SAFETY: both ends lie within the mapping made above; its middle part of `len` bytes
        // stays.
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
        let backing =
            if advised && transparent_huge_pages() { PageBacking::Transparent } else { PageBacking::Plain };
        let region = Self { start, len, backing };
        // A core dump should show the daemon, not gigabytes of users' files.
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

    /// Returns the pages of `len` bytes from `offset` on to the host, whereupon the bytes are
    /// zeros, and says whether it did: pages of the huge page pool would go to the pool, which is
    /// no use to tmpfs. Both numbers are multiples of a page. The caller must be the only user of
    /// these bytes.
    pub(super) fn return_pages(&self, offset: usize, len: usize) -> bool {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the range is within the region");
        if self.backing == PageBacking::Hugetlb {
            return false;
        }
        // SAFETY: the range lies within our mapping, which stays; the caller is its only user.
        unsafe { libc::madvise(self.start.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED) == 0 }
    }

    /// What kind of pages back it.
    pub(super) fn backing(&self) -> PageBacking {
        self.backing
    }
}

impl Drop for ArenaRegion {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and no slot of the region is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

fn mmap(len: usize, flags: i32) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("the kernel mapped address 0"))
}

/// Whether the kernel backs memory with huge pages on `MADV_HUGEPAGE`.
fn transparent_huge_pages() -> bool {
    let switched_off = nix::sys::prctl::get_thp_disable().unwrap_or(false);
    !switched_off
        && std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|modes| !modes.contains("[never]"))
}
