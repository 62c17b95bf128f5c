//! SeaweedFS needles as they are named and stored, and (in time) the engine that serves them beside a volume server.

pub mod checksum;
pub mod client;
mod file_id;
pub mod metrics;
pub mod needle;
pub mod protocol;
mod refusal;
pub mod server;
pub mod settings;
pub mod store;
pub mod token;
mod transport;

pub use file_id::{FileId, ParseFileIdError};
pub use refusal::Refusal;
