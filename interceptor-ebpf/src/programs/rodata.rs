//! Read-only data, which the loader writes before it loads the programs.
//!
//! Every use is a volatile load of one field, so that the compiler does not fold the placeholder
//! value. The verifier knows the real value: an offset read from here is a constant to it.

use interceptor_ebpf::settings::{FieldOffsets, PidNamespace, ProgramSettings};

/// Offsets of the kernel's fields.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: FieldOffsets = FieldOffsets::NONE;

/// What the programs report.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: ProgramSettings = ProgramSettings::NONE;

/// Where processes have the numbers that the daemon knows.
#[unsafe(no_mangle)]
pub(crate) static PID_NAMESPACE: PidNamespace = PidNamespace::NONE;

/// Loads a field of one of them.
macro_rules! rodata {
    ($of:ident . $field:ident) => {
        $crate::rodata::load(&$of.$field)
    };
}

/// The value as the loader wrote it.
#[inline(always)]
pub(crate) fn load<T: Copy>(field: &'static T) -> T {
    // SAFETY: the reference is valid, and the data is not written while programs run.
    unsafe { core::ptr::from_ref(field).read_volatile() }
}

pub(crate) use rodata;
