//! One fixture for all tests of a suite.
//!
//! Statics are never dropped, but a fixture has processes and mounts to end. [`Shared`] builds its
//! value for the first test that asks and drops it when the test program exits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

/// A lazily built value that is dropped at exit.
#[derive(Debug)]
pub struct Shared<T: Send + Sync + 'static> {
    value: Mutex<Option<Arc<T>>>,
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// An empty cell, for a `static`.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Shared { value: Mutex::new(None) }
    }

    /// The value; `make` builds it if no test has yet. A test that finds another building it
    /// waits.
    pub fn get(&'static self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut value = lock(&self.value);
        if let Some(value) = &*value {
            return Arc::clone(value);
        }
        let made = Arc::new(make());
        *value = Some(Arc::clone(&made));
        at_exit(Box::new(move || drop(lock(&self.value).take())));
        made
    }
}

type Task = Box<dyn FnOnce() + Send>;

static TASKS: Mutex<Vec<Task>> = Mutex::new(Vec::new());

fn at_exit(task: Task) {
    static REGISTER: Once = Once::new();
    extern "C" fn run() {
        for task in lock(&TASKS).drain(..).rev() {
            let _ = catch_unwind(AssertUnwindSafe(task));
        }
    }
    lock(&TASKS).push(task);
    REGISTER.call_once(|| {
        // SAFETY: `run` is an ordinary function, lives as long as the program and does not unwind.
        unsafe { libc::atexit(run) };
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
