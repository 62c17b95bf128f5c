//! SeaweedFS needles as they are named and stored, and (in time) the engine that serves them beside a volume server.

pub mod checksum;
mod file_id;
pub mod needle;
pub mod protocol;
mod refusal;
pub mod store;

pub use file_id::{FileId, ParseFileIdError};
pub use refusal::Refusal;
