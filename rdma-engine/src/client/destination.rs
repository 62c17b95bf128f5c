//! The memory that a read fills: borrowed, or owned by the read meanwhile.

use tokio::sync::oneshot;

/// Memory for the bytes of [`Client::read_owned`](super::Client::read_owned), which takes it and
/// gives it back.
///
/// A slice would not do: a device goes on writing after the future of the read was dropped, so the
/// memory must not end with a borrow. An owned destination stays with the device until the device
/// is done, and is dropped then.
///
/// # Safety
/// As long as the value lives, also when it is moved, `start..start + length` is mapped for
/// reading and writing at the same address and initialized (written before, or zeroed by the
/// system). Only the value's owner reads or writes it or has Rust references to it.
//
// `Any`, so that a caller that lends `dyn Destination` can take it back as its own type.
pub unsafe trait Destination: Send + std::any::Any {
    /// The first byte.
    fn start(&self) -> *mut u8;

    /// How many bytes.
    fn length(&self) -> usize;
}

// SAFETY: the value in the box upholds the contract.
unsafe impl Destination for Box<dyn Destination> {
    fn start(&self) -> *mut u8 {
        (**self).start()
    }

    fn length(&self) -> usize {
        (**self).length()
    }
}

/// The memory of one read.
pub(super) trait ReadMemory: Send {
    fn length(&self) -> usize;

    /// The bytes; none while the memory is lent.
    fn bytes(&mut self) -> &mut [u8];

    /// Where the memory lies, if it can be lent to a device.
    fn lendable(&self) -> Option<&dyn Destination> {
        None
    }

    /// Gives the memory to a device.
    fn lend(&mut self) -> Option<Box<dyn LentDestination>> {
        None
    }

    /// Takes the memory back, after a device has called [`LentDestination::give_back`]. Returns
    /// whether it is there.
    fn take_back(&mut self) -> bool {
        false
    }
}

/// Memory that a device owns. Dropping it drops the memory.
pub(super) trait LentDestination: Destination {
    /// Sends the memory back to its read; if the read was dropped, the memory is dropped.
    fn give_back(self: Box<Self>);
}

impl ReadMemory for &mut [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn bytes(&mut self) -> &mut [u8] {
        self
    }
}

/// A destination with the read that fills it.
pub(super) struct OwnedMemory<D> {
    memory: Option<D>,
    /// Where lent memory comes back.
    returned: Option<oneshot::Receiver<D>>,
}

impl<D: Destination> OwnedMemory<D> {
    pub(super) fn new(memory: D) -> Self {
        Self { memory: Some(memory), returned: None }
    }

    /// The memory; none if a device has kept it.
    pub(super) fn into_inner(self) -> Option<D> {
        self.memory
    }
}

impl<D: Destination> ReadMemory for OwnedMemory<D> {
    fn length(&self) -> usize {
        self.memory.as_ref().map_or(0, Destination::length)
    }

    fn bytes(&mut self) -> &mut [u8] {
        let Some(memory) = &mut self.memory else { return &mut [] };
        // SAFETY: mapped, initialized and its owner's alone (`Destination`); the borrow of the
        // owner is the borrow of the bytes.
        unsafe { std::slice::from_raw_parts_mut(memory.start(), memory.length()) }
    }

    fn lendable(&self) -> Option<&dyn Destination> {
        self.memory.as_ref().map(|memory| memory as &dyn Destination)
    }

    fn lend(&mut self) -> Option<Box<dyn LentDestination>> {
        let memory = self.memory.take()?;
        let (back, returned) = oneshot::channel();
        self.returned = Some(returned);
        Some(Box::new(LentMemory { memory, back }))
    }

    fn take_back(&mut self) -> bool {
        self.memory = self.returned.take().and_then(|mut returned| returned.try_recv().ok());
        self.memory.is_some()
    }
}

struct LentMemory<D> {
    memory: D,
    back: oneshot::Sender<D>,
}

// SAFETY: the memory inside upholds the contract.
unsafe impl<D: Destination> Destination for LentMemory<D> {
    fn start(&self) -> *mut u8 {
        self.memory.start()
    }

    fn length(&self) -> usize {
        self.memory.length()
    }
}

impl<D: Destination> LentDestination for LentMemory<D> {
    fn give_back(self: Box<Self>) {
        let Self { memory, back } = *self;
        // If the read was dropped, the memory is dropped here.
        let _ = back.send(memory);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;

    use super::*;

    struct Bytes(Box<[UnsafeCell<u8>; 4]>);

    // SAFETY: the box owns its bytes, which are zeroed and reached through pointers only.
    unsafe impl Destination for Bytes {
        fn start(&self) -> *mut u8 {
            self.0.as_ptr().cast::<u8>().cast_mut()
        }

        fn length(&self) -> usize {
            self.0.len()
        }
    }

    fn owned() -> OwnedMemory<Bytes> {
        OwnedMemory::new(Bytes(Box::new([const { UnsafeCell::new(0) }; 4])))
    }

    #[test]
    fn lent_memory_comes_back_only_if_the_device_gives_it_back() {
        let mut memory = owned();
        memory.lend().unwrap().give_back();
        assert_eq!((memory.length(), memory.bytes().len()), (0, 0), "still on its way");
        assert!(memory.take_back());
        assert_eq!(memory.length(), 4);
        drop(memory.lend());
        assert!(!memory.take_back());
        assert!(memory.into_inner().is_none());
    }

    #[test]
    fn memory_outlives_a_read_that_was_dropped() {
        let mut memory = owned();
        let lent = memory.lend().unwrap();
        drop(memory);
        assert_eq!(lent.length(), 4);
        lent.give_back();
    }
}
