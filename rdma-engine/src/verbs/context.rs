//! Lists and opens devices.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use ibverbs_sys as ffi;

use super::VerbsError;
use super::device::{self, Device};
use super::library::{Functions, functions};

/// All RDMA devices of this host; none is not an error.
///
/// # Errors
/// [`VerbsError::NoLibrary`], or the failure of a query. A device that is removed meanwhile is
/// left out.
pub fn devices() -> Result<Vec<Device>, VerbsError> {
    let mut found = Vec::new();
    for name in names()? {
        match DeviceContext::open(&name) {
            Ok(context) => found.push(context.device().clone()),
            Err(VerbsError::NoPort(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn names() -> Result<Vec<String>, VerbsError> {
    let mut names = Vec::new();
    device::each(|_, name| {
        names.push(name.to_owned());
        None::<()>
    })?;
    Ok(names)
}

/// An open device. Every resource that is made on it keeps it open.
pub struct DeviceContext {
    raw: NonNull<ffi::ibv_context>,
    device: Device,
    pub(super) functions: &'static Functions,
}

// SAFETY: verbs may be called from any thread and from several at once (the library's manual,
// THREAD SAFETY).
unsafe impl Send for DeviceContext {}
// SAFETY: as above.
unsafe impl Sync for DeviceContext {}

impl DeviceContext {
    /// Opens the device of this name.
    ///
    /// # Errors
    /// [`VerbsError::NoLibrary`]; [`VerbsError::NoPort`] if there is no such device; the failure
    /// of a call.
    pub fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let functions = functions()?;
        let opened = device::each(|device, found| {
            // SAFETY: the device is of the list that `each` holds; an open device may outlive the
            // list.
            (found == name).then(|| NonNull::new(unsafe { (functions.ibv_open_device)(device) }))
        })?;
        let raw = opened.ok_or_else(|| VerbsError::NoPort(format!("there is no device {name}")))?;
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_open_device"))?;
        match device::describe(raw.as_ptr(), name) {
            Ok(device) => Ok(Arc::new(Self { raw, device, functions })),
            Err(error) => {
                // SAFETY: opened above, and not used by anything else.
                unsafe { (functions.ibv_close_device)(raw.as_ptr()) };
                Err(error)
            }
        }
    }

    /// The device as it described itself when it was opened.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn as_raw(&self) -> *mut ffi::ibv_context {
        self.raw.as_ptr()
    }
}

impl Drop for DeviceContext {
    fn drop(&mut self) {
        // SAFETY: every resource of the device holds an `Arc` of this, so none is left.
        unsafe { (self.functions.ibv_close_device)(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for DeviceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device.name).finish_non_exhaustive()
    }
}
