//! Memory that a read owns while it fills it.

/// Memory for the bytes of [`Client::read_owned`](super::Client::read_owned), which takes it and gives it back.
///
/// A slice would not do: a device goes on writing after the future that asked for it was dropped, so what it writes into must not end with a
/// borrow. An owned destination stays with the device for as long as that takes, and is dropped then.
///
/// # Safety
/// As long as the value lives, also when it is moved, `start..start + length` is mapped for reading and writing at the same address, has been written to before (or zeroed by the system), and
/// nobody but the value's owner reads or writes it, nor has a Rust reference to it.
pub unsafe trait Destination: Send + std::any::Any {
    /// The first byte.
    fn start(&self) -> *mut u8;

    /// How many bytes.
    fn length(&self) -> usize;
}

// SAFETY: what is in the box promises it.
unsafe impl Destination for Box<dyn Destination> {
    fn start(&self) -> *mut u8 {
        (**self).start()
    }

    fn length(&self) -> usize {
        (**self).length()
    }
}

/// The bytes of a destination.
pub(super) fn bytes(destination: &mut dyn Destination) -> &mut [u8] {
    // SAFETY: mapped, initialised and its owner's alone (`Destination`); the borrow of the owner is the borrow of the bytes.
    unsafe { std::slice::from_raw_parts_mut(destination.start(), destination.length()) }
}
