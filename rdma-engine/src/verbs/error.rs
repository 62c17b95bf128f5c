//! Errors of requests for resources ([`VerbsError`]), of posting ([`PostError`]) and of posted
//! work ([`WorkError`]).

use std::io;

use ibverbs_sys::ibv_wc_status;

/// Why a device, a resource or a connection is not available.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// The host has no usable libibverbs; the text is the run-time linker's.
    #[error("no libibverbs on this host ({0}); install rdma-core")]
    NoLibrary(String),
    /// libibverbs found no device.
    #[error("no RDMA device on this host")]
    NoDevice,
    /// No device, port or address is as it was asked for; the text says what there is.
    #[error("no RDMA port fits: {0}")]
    NoPort(String),
    /// A call of libibverbs failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The function.
        call: &'static str,
        /// The system's reason. Out of memory mostly means that the limit on locked memory
        /// (`ulimit -l`) is too low.
        source: io::Error,
    },
    /// The completion queue has no room for all the work that another queue pair could post.
    #[error("the completion queue has room for {free} more completions, the queue pair needs {needed}")]
    CompletionQueueFull {
        /// Completions that may still be promised.
        free: u32,
        /// What the queue pair asked for.
        needed: u32,
    },
    /// The endpoint of the peer is not one that this port can reach.
    #[error("cannot reach the peer's endpoint: {0}")]
    Endpoint(&'static str),
}

impl VerbsError {
    /// The error of a call that has set `errno`.
    pub(super) fn last(call: &'static str) -> Self {
        Self::Call { call, source: io::Error::last_os_error() }
    }

    /// The outcome of a call by its return value: 0, an error number, or -1 with `errno`.
    pub(super) fn check(call: &'static str, returned: i32) -> Result<(), Self> {
        match returned {
            0 => Ok(()),
            number if number > 0 => Err(Self::Call { call, source: io::Error::from_raw_os_error(number) }),
            _ => Err(Self::last(call)),
        }
    }
}

/// Why posted work failed. After any of these the queue pair is in the error state: all its other
/// work is [`Flushed`](Self::Flushed), and the connection must be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// The work was aborted, or other work of the queue pair failed.
    #[error("given up after the queue pair failed")]
    Flushed,
    /// The peer refused the key, the range or the kind of access (status 10): a wrong or withdrawn
    /// rkey, one of another protection domain, or a peer that has died.
    #[error("the peer refused access to its memory")]
    RemoteAccess,
    /// The peer answered nothing within the timeout and all retries (status 12): it is gone, or
    /// the link is down.
    #[error("the peer does not answer")]
    RetryExceeded,
    /// The peer had no receive posted, however often it was asked (status 13).
    #[error("the peer is not ready to receive")]
    ReceiverNotReady,
    /// The peer found the request invalid (status 9): longer than its receive, or an operation
    /// that it does not allow.
    #[error("the peer refused the request")]
    RemoteInvalidRequest,
    /// The peer failed to execute the request (status 11).
    #[error("the peer failed to do it")]
    RemoteOperation,
    /// The local memory is not registered for the work (status 4).
    #[error("the local memory is not registered for this")]
    LocalProtection,
    /// A message was longer than the memory posted for it (status 1).
    #[error("the message does not fit the local memory")]
    LocalLength,
    /// Any other status, by its number in `enum ibv_wc_status`.
    #[error("work completion status {0}")]
    Other(u32),
}

impl WorkError {
    pub(super) fn from_status(status: ibv_wc_status::Type) -> Self {
        match status {
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR => Self::RemoteAccess,
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR => Self::RetryExceeded,
            ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => Self::ReceiverNotReady,
            ibv_wc_status::IBV_WC_REM_INV_REQ_ERR => Self::RemoteInvalidRequest,
            ibv_wc_status::IBV_WC_REM_OP_ERR => Self::RemoteOperation,
            ibv_wc_status::IBV_WC_LOC_PROT_ERR => Self::LocalProtection,
            ibv_wc_status::IBV_WC_LOC_LEN_ERR => Self::LocalLength,
            other => Self::Other(other),
        }
    }
}

/// Why work could not be posted. Its memory comes back with the error ([`super::Unposted`]).
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The queue is full: completions must be taken first.
    #[error("the queue has room for {free} more, {asked} were posted")]
    Full {
        /// Work requests that can be posted now.
        free: usize,
        /// Work requests that were to be posted.
        asked: usize,
    },
    /// The queue pair has failed or was aborted.
    #[error("the queue pair has failed")]
    Broken,
    /// A message of no bytes, or of more than the port or the inline limit allows.
    #[error("a message of {length} bytes; allowed are 1 to {limit}")]
    Length {
        /// Bytes of the message.
        length: usize,
        /// Most that is allowed.
        limit: usize,
    },
    /// The device refused.
    #[error("the device refused the work: {0}")]
    Device(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_number_of_the_specification() {
        let known = [
            (1, WorkError::LocalLength),
            (4, WorkError::LocalProtection),
            (5, WorkError::Flushed),
            (9, WorkError::RemoteInvalidRequest),
            (10, WorkError::RemoteAccess),
            (11, WorkError::RemoteOperation),
            (12, WorkError::RetryExceeded),
            (13, WorkError::ReceiverNotReady),
            (21, WorkError::Other(21)),
        ];
        for (status, error) in known {
            assert_eq!(WorkError::from_status(status), error);
        }
    }

    #[test]
    fn calls_fail_by_number_or_by_errno() {
        assert!(VerbsError::check("ibv_modify_qp", 0).is_ok());
        let refused = VerbsError::check("ibv_modify_qp", 22).unwrap_err();
        assert!(refused.to_string().starts_with("ibv_modify_qp failed: Invalid argument"), "{refused}");
    }
}
