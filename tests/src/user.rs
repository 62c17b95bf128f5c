//! Another user of this host.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// An unprivileged user that owns no files.
pub const NOBODY: u32 = 65_534;

/// Does `work` on a thread that has the rights to files of [`NOBODY`], and of the group with the
/// same number.
///
/// # Panics
/// When `work` does.
pub fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setfsgid(Gid::from_raw(NOBODY));
            // Takes away the capabilities that concern files.
            setfsuid(Uid::from_raw(NOBODY));
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The value of an extended attribute, of a link itself.
///
/// # Errors
/// The kernel's error number.
pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    let strings = (CString::new(path.as_os_str().as_bytes()), CString::new(name));
    let (Ok(path), Ok(name)) = strings else { return Err(libc::EINVAL) };
    let mut value = vec![0; 65_536];
    // SAFETY: both strings end in NUL and the buffer is as long as told.
    let length =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let Ok(length) = usize::try_from(length) else { return Err(nix::errno::Errno::last_raw()) };
    value.truncate(length);
    Ok(value)
}
