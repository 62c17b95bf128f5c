//! The memory that a fetch writes to.
//!
//! A fetch is told where to write by its caller: into a buffer, or into the slot that the cache
//! has set aside for a block. An RDMA device may write into such a slot by itself.

use rdma_engine::client::Destination;

/// Memory that a fetch fills.
///
/// An RDMA device goes on writing after the fetch that waited for it has timed out or was dropped.
/// Such memory is therefore not borrowed but moved: [`detach`](Self::detach) hands ownership to
/// the transport, and [`reattach`](Self::reattach) returns it when the device is done. If it does
/// not come back in time, the target goes on with other memory: the transport keeps the detached
/// memory until the device is done, and no reader sees what was written there.
pub trait WriteTarget: Send {
    /// The bytes to fill.
    fn bytes(&mut self) -> &mut [u8];

    /// How many bytes there are.
    fn length(&self) -> usize;

    /// Moves the memory out, for a device to write to. `None` if no device has it registered.
    fn detach(&mut self) -> Option<Box<dyn Destination>> {
        None
    }

    /// Returns what [`detach`](Self::detach) has moved out.
    fn reattach(&mut self, memory: Box<dyn Destination>) {
        drop(memory);
    }
}

impl WriteTarget for Vec<u8> {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// A target's memory, owned by a thread that may go on with a read after its caller has given up.
pub enum DetachedBuffer {
    /// Memory of the cache, detached from the fetch.
    Cache(Box<dyn Destination>),
    /// A buffer to copy from afterwards.
    Own(Vec<u8>),
}

impl DetachedBuffer {
    /// Takes the memory of `target`, or a buffer of the same length if the target keeps its own.
    pub fn of(target: &mut dyn WriteTarget) -> Self {
        match target.detach() {
            Some(memory) => Self::Cache(memory),
            None => Self::Own(vec![0; target.length()]),
        }
    }

    /// The bytes to fill.
    pub fn bytes(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: for as long as the value lives, its range is mapped and initialized. Nothing
            // but its owner, which is borrowed exclusively, refers to it.
            Self::Cache(memory) => unsafe { std::slice::from_raw_parts_mut(memory.start(), memory.length()) },
            Self::Own(bytes) => bytes,
        }
    }

    /// Returns the memory to `target`, of which it was made, with what was written.
    pub fn reattach(self, target: &mut dyn WriteTarget) {
        match self {
            Self::Cache(memory) => target.reattach(memory),
            Self::Own(bytes) => target.bytes().copy_from_slice(&bytes),
        }
    }
}
