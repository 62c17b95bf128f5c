//! How far a long step is: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A step of a known number of bytes.
pub(crate) struct Progress {
    label: &'static str,
    started: Instant,
    bar: ProgressBar,
}

impl Progress {
    /// Begins the step.
    pub(crate) fn bytes(label: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if std::io::stderr().is_terminal() {
            let style = "{msg:<24} {bar:40} {bytes:>11} of {total_bytes} {bytes_per_sec:>13}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_message(label);
        } else {
            eprintln!("{label} ({})", size(total));
        }
        Self { label, started: Instant::now(), bar }
    }

    /// `bytes` more are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// The step is done.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
        eprintln!("{}: done in {:.1} s", self.label, self.started.elapsed().as_secs_f64());
    }
}

/// A number of bytes for a reader: three digits and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{} {unit}", digits(value)) };
        }
        value /= 1024.0;
    }
    format!("{} TiB", digits(value))
}

/// A number with three digits that count.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let sizes = [0, 999, 1000, 1 << 20, 1 << 30, 413 << 20, 5 << 40].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "0.98 KiB", "1.00 MiB", "1.00 GiB", "413 MiB", "5.00 TiB"]);
        assert_eq!([0.0, 9.994, 9.996, 99.96, 1234.5].map(digits), ["0.00", "9.99", "10.0", "100", "1234"]);
    }
}
