//! Memory that a fetch fills.

use rdma_engine::client::Destination;

/// Memory that a fetch fills: a buffer, or a block's place in the cache, which an RDMA device may write to by itself.
///
/// A device goes on writing after whoever waited for it has given up. So memory is not shown to it but given away, and comes back when the device is done. If it does
/// not come back, other memory takes its place, and what the device still writes is nobody's.
pub trait Fillable: Send {
    /// The bytes to fill.
    fn bytes(&mut self) -> &mut [u8];

    /// How many bytes.
    fn length(&self) -> usize;

    /// Gives the memory away; `None` if no device could know it.
    fn lend(&mut self) -> Option<Box<dyn Destination>> {
        None
    }

    /// Takes back what was given away.
    fn take_back(&mut self, memory: Box<dyn Destination>) {
        drop(memory);
    }
}

impl Fillable for Vec<u8> {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn length(&self) -> usize {
        self.len()
    }
}
