//! What `interceptor` and `rdma-engine` share as programs.
//!
//! [`logs`] and [`output`] write through a bounded queue and a thread of its own ([`lines`]): a full disk, a closed
//! pipe, a pipe that nobody drains or a terminal that has gone loses lines, and nothing else happens.
//! [`panics`] are counted, and logged without flooding the log.
//! [`prometheus`] writes `/metrics`.
//! [`settings_file`] reads what an operator wrote.
//! [`memory`] says how much memory this process may use; [`size`], [`duration`] and [`address`] parse what people type.

pub mod address;
pub mod duration;
pub mod lines;
pub mod logs;
pub mod memory;
pub mod output;
pub mod panics;
pub mod prometheus;
pub mod settings_file;
pub mod size;
