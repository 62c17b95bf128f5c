//! The figures of one repetition.

/// What a figure counts, and so how it is printed and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    MegabytesPerSecond,
    FilesPerSecond,
    Microseconds,
    CpuSecondsPerGigabyte,
    Megabytes,
}

impl Unit {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::FilesPerSecond => "files/s",
            Self::Microseconds => "us",
            Self::CpuSecondsPerGigabyte => "s CPU/GB",
            Self::Megabytes => "MB",
        }
    }

    pub(super) fn more_is_better(self) -> bool {
        matches!(self, Self::MegabytesPerSecond | Self::FilesPerSecond)
    }
}

/// One figure of one repetition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Which figure of the workload, empty for its only or main one.
    pub(super) figure: &'static str,
    pub(super) unit: Unit,
    pub(super) value: f64,
}

pub(super) fn throughput(bytes: f64, seconds: f64) -> Sample {
    Sample { figure: "", unit: Unit::MegabytesPerSecond, value: bytes / seconds / 1e6 }
}
