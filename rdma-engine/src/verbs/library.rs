//! libibverbs, loaded when it is first needed.
//!
//! The types come from the bindings of `ibverbs-sys`, the functions from `dlopen`. A program that
//! names none of the library's symbols is not linked to it: it starts on a host without
//! libibverbs, and reports that only when RDMA is asked for. The compiler checks the type of each
//! function that is found by name against the bindings.

use std::error::Error;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use ibverbs_sys as ffi;
use libloading::Library;

use super::VerbsError;

/// The library's file name, which rdma-core has kept since its first release.
const FILE_NAME: &str = "libibverbs.so.1";

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of libibverbs that are used here, by their C names.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        // Only for the compiler to compare: an unused constant refers to no symbol.
        const _: () = {
            $(let _: unsafe extern "C" fn($($argument),*) $(-> $result)? = ffi::$name;)*
        };

        impl Functions {
            fn find(library: &'static Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the symbol is a function of libibverbs, whose type the bindings
                    // declare as compared above; the library is never unloaded, so the pointer
                    // stays valid.
                    $($name: unsafe { *library.get(stringify!($name).as_bytes())? },)*
                })
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ffi::ibv_device;
    ibv_free_device_list: fn(*mut *mut ffi::ibv_device);
    ibv_get_device_name: fn(*mut ffi::ibv_device) -> *const c_char;
    ibv_open_device: fn(*mut ffi::ibv_device) -> *mut ffi::ibv_context;
    ibv_close_device: fn(*mut ffi::ibv_context) -> c_int;
    ibv_query_device: fn(*mut ffi::ibv_context, *mut ffi::ibv_device_attr) -> c_int;
    ibv_query_port: fn(*mut ffi::ibv_context, u8, *mut ffi::_compat_ibv_port_attr) -> c_int;
    _ibv_query_gid_table: fn(*mut ffi::ibv_context, *mut ffi::ibv_gid_entry, usize, u32, usize) -> isize;
    ibv_alloc_pd: fn(*mut ffi::ibv_context) -> *mut ffi::ibv_pd;
    ibv_dealloc_pd: fn(*mut ffi::ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut ffi::ibv_pd, *mut c_void, usize, c_int) -> *mut ffi::ibv_mr;
    ibv_dereg_mr: fn(*mut ffi::ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ffi::ibv_context) -> *mut ffi::ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ffi::ibv_comp_channel) -> c_int;
    ibv_create_cq: fn(*mut ffi::ibv_context, c_int, *mut c_void, *mut ffi::ibv_comp_channel, c_int) -> *mut ffi::ibv_cq;
    ibv_destroy_cq: fn(*mut ffi::ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut ffi::ibv_comp_channel, *mut *mut ffi::ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ffi::ibv_cq, c_uint);
    ibv_create_qp: fn(*mut ffi::ibv_pd, *mut ffi::ibv_qp_init_attr) -> *mut ffi::ibv_qp;
    ibv_modify_qp: fn(*mut ffi::ibv_qp, *mut ffi::ibv_qp_attr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut ffi::ibv_qp) -> c_int;
}

/// The library's functions; the first call loads it.
///
/// # Errors
/// [`VerbsError::NoLibrary`] when this host has no libibverbs, or one that is too old (rdma-core
/// before 33).
pub(super) fn functions() -> Result<&'static Functions, VerbsError> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    let loaded = FUNCTIONS.get_or_init(|| {
        // SAFETY: libibverbs has no initializer that depends on the state of this process.
        let library = unsafe { Library::new(FILE_NAME) }.map_err(reason)?;
        // Leaked: devices and threads may use it until the process ends.
        Functions::find(Box::leak(Box::new(library))).map_err(reason)
    });
    loaded.as_ref().map_err(|reason| VerbsError::NoLibrary(reason.clone()))
}

/// The run-time linker's reason, such as the file or symbol that it did not find.
fn reason(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |linker| linker.to_string())
}
