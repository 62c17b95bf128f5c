//! Locks and atomics of the cache: the usual ones, or those of a model checker.
//!
//! With the feature `shuttle` every lock and every atomic becomes a point at which the checker may
//! switch threads, so that `interleavings` explores the possible orders. `Arc` is the standard one
//! in both: the cache reads its number of owners only under a lock.

#[cfg(feature = "shuttle")]
pub(super) use checked::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, RwLock};
#[cfg(not(feature = "shuttle"))]
pub(super) use {
    parking_lot::{Mutex, RwLock},
    std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(feature = "shuttle")]
mod checked {
    use shuttle::sync::{self, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    pub(in crate::cache) use shuttle::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };

    /// The checker's mutex, without poisoning.
    #[derive(Debug, Default)]
    pub(in crate::cache) struct Mutex<T: ?Sized>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(in crate::cache) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(in crate::cache) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a checked test stops at its first panic")
        }

        pub(in crate::cache) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    /// The checker's lock, without poisoning.
    #[derive(Debug, Default)]
    pub(in crate::cache) struct RwLock<T: ?Sized>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(in crate::cache) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("a checked test stops at its first panic")
        }

        pub(in crate::cache) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("a checked test stops at its first panic")
        }
    }
}
