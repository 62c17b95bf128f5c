//! What the loader has written into read-only data before the programs were loaded.
//!
//! The compiler must not take it for what it is in the sources, so every use is a volatile load of one field. The verifier knows the value: a field's
//! offset is a constant to it.

use interceptor_ebpf::settings::{Layout, Settings};

/// Where the kernel's fields are.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::NONE;

/// What to tell of.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings::NONE;

/// A field of one of them.
macro_rules! given {
    ($of:ident . $field:ident) => {
        $crate::given::load(&$of.$field)
    };
}

/// The value as it is when the program runs.
#[inline(always)]
pub(crate) fn load<T: Copy>(field: &'static T) -> T {
    // SAFETY: it is a reference to a value of its type, which nobody writes to while programs run.
    unsafe { core::ptr::from_ref(field).read_volatile() }
}

pub(crate) use given;
