//! SeaweedFS needles as they are named and stored, RDMA verbs to move them, and (in time) the engine that serves them beside a volume server.

pub mod checksum;
mod file_id;
#[cfg(feature = "verbs")]
pub mod verbs;

pub use file_id::{FileId, ParseFileIdError};
