//! Figures and words as `top`, `status` and `observe` print them for people: with a unit, and with
//! two or three digits.

use daemon::size::ByteSize;

use crate::telemetry::health::VolumeServerHealth;
use crate::telemetry::report::Severity;

/// Sources of bytes in the order in which they are asked.
pub(super) const SOURCES: [&str; 9] =
    ["page_cache", "resident", "cache", "disk", "verbs", "local", "tcp", "http", "lower"];

/// What stands for a figure that is not known.
pub(super) const UNKNOWN: &str = "-";

/// A share of 1 as percent: `99.8 %`. Only all of it is 100 %.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or(UNKNOWN.into(), |share| {
        let most = if share < 1.0 { 99.9 } else { 100.0 };
        let text = format!("{:.1}", (100.0 * share).min(most));
        format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
    })
}

/// A latency: `4.1 µs`, `12 ms`, `1.5 s`.
pub(super) fn latency(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return UNKNOWN.into() };
    let (value, unit) = match seconds {
        ..1e-6 => (seconds * 1e9, "ns"),
        1e-6..1e-3 => (seconds * 1e6, "µs"),
        1e-3..1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let decimals = usize::from(value < 9.95 && unit != "ns");
    format!("{value:.decimals$} {unit}")
}

/// A number of bytes in its largest unit.
pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// The same of a difference, which may be below zero.
pub(super) fn signed_size(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", ByteSize(bytes.unsigned_abs()))
}

/// Bytes per second.
pub(super) fn rate(bytes: f64) -> String {
    format!("{}/s", ByteSize(bytes as u64))
}

/// A period in its two largest units: `3 min 2 s`.
pub(super) fn period(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A source of bytes, as people call it.
pub(super) fn source_name(source: &str) -> String {
    match source {
        "lower" => "mount below".into(),
        other => other.replace('_', " "),
    }
}

/// The word for a severity, as colour alone must not carry it.
pub(super) fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Good => "OK",
        Severity::Degraded => "DEGRADED",
        Severity::Bad => "BAD",
    }
}

/// Whether a volume server works, and from which source its bytes come.
pub(super) fn server_state(server: &VolumeServerHealth) -> String {
    match server {
        VolumeServerHealth { keeps_readers_waiting: true, .. } => "READERS WAIT".to_owned(),
        VolumeServerHealth { is_silent: true, .. } => "SILENT".to_owned(),
        VolumeServerHealth { slow: Some(_), source, .. } => format!("SLOW, by {source}"),
        VolumeServerHealth { source, .. } => format!("by {source}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units_and_few_digits() {
        let latencies = [256e-9, 4.096e-6, 262e-6, 2.1e-3, 33.5e-3, 1.0, 12.0];
        assert_eq!(
            latencies.map(|seconds| latency(Some(seconds))),
            ["256 ns", "4.1 µs", "262 µs", "2.1 ms", "34 ms", "1.0 s", "12 s"]
        );
        assert_eq!([Some(0.998), Some(1.0), None].map(percent), ["99.8 %", "100 %", "-"]);
        assert_eq!([3 << 30, -(1 << 20)].map(signed_size), ["3 GiB", "-1 MiB"]);
        assert_eq!(
            [59.0, 182.0, 7200.0, 90_000.0].map(period),
            ["59 s", "3 min 2 s", "2 h 0 min", "1 d 1 h"]
        );
        assert_eq!(["page_cache", "lower", "http"].map(source_name), ["page cache", "mount below", "http"]);
    }
}
