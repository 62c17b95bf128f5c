//! What `interceptor` and `rdma-engine` share as programs.
//!
//! [`logs`] and [`output`] write through a bounded queue with a thread of its own ([`lines`]): a
//! full disk, a closed or undrained pipe, or a terminal that is gone loses lines, and has no other
//! effect. [`panics`] are counted, and logged without flooding the log. [`prometheus`] writes
//! `/metrics`, [`process_metrics`] what it says of the process. [`configuration`] is what sets
//! options besides the command line, [`settings_file`] reads an operator's files, and [`nearest`]
//! knows what he may have meant. [`memory`] is the memory that this process may use, [`peer`] says
//! which process is at the other end of a socket, [`heap`] keeps the C library's heap small, and
//! [`descriptors`] raises its limit of open descriptors.
//! [`service`] talks to the service manager. [`size`], [`duration`] and [`address`] parse option
//! values, [`documents`] writes manual pages and completions, and [`version`] what `--version`
//! says.

pub mod address;
pub mod configuration;
pub mod descriptors;
pub mod documents;
pub mod duration;
pub mod heap;
pub mod lines;
pub mod logs;
pub mod memory;
pub mod nearest;
pub mod output;
pub mod panics;
pub mod peer;
pub mod process_metrics;
pub mod prometheus;
pub mod service;
pub mod settings_file;
pub mod size;
pub mod version;
