//! One gRPC call to one filer: its stub, its time limit, and what its failure means.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::liveness::Outage;
use super::pb::seaweed_filer_client::SeaweedFilerClient;

/// How long a call may take. Calls to filers that do not answer are repeated for this long,
/// counted from when a filer last answered.
pub const FILER_TIMEOUT: Duration = Duration::from_secs(10);

/// A stub of the filer's service.
pub(super) type Stub = SeaweedFilerClient<Channel>;

/// Why one call to one filer failed.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// An error came back, from the filer or from the transport.
    Status(Status),
    /// No response came within this time.
    Timeout(Duration),
    /// The filer is known not to answer.
    Down(Outage),
}

impl From<Outage> for CallFailure {
    fn from(outage: Outage) -> Self {
        CallFailure::Down(outage)
    }
}

impl CallFailure {
    /// Whether the filer itself answered with the error: another filer would answer the same.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            CallFailure::Timeout(_) | CallFailure::Down(_) => false,
            // Errors of the transport have a source. `Unavailable` and `Cancelled` also come from
            // a filer that stops. `Unknown` without a source is what Go makes of any error, but
            // also a stream that was cut off.
            CallFailure::Status(status) => {
                let stopping =
                    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded);
                let cut = status.code() == Code::Unknown && status.message().contains("missing grpc-status");
                !stopping && !cut && status.source().is_none()
            }
        }
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self {
            CallFailure::Timeout(limit) => return write!(f, "no answer within {:.1} s", limit.as_secs_f32()),
            CallFailure::Down(outage) => return f.write_str(&outage.reason),
            CallFailure::Status(status) => status,
        };
        // Each layer repeats the text of those below it.
        let mut text = status.message().to_owned();
        let mut source = status.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) && cause_text != "transport error" {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

/// Waits for a call, or for the next message of a stream, no longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, CallFailure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(CallFailure::Status),
        Err(_) => Err(CallFailure::Timeout(limit)),
    }
}
