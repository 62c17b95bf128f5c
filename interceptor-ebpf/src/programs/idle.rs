//! Nothing at all, where reads are seen: what the kernel takes for any program there, which is the least that ours can cost. For the
//! benchmark only.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

/// Does nothing.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn idle(_: BtfTracePointContext) -> i32 {
    0
}
