//! Writes metrics in Prometheus' text format (version 0.0.4), which every collector reads.

use std::fmt::{Display, Write};

use interceptor_ebpf::histogram::{BUCKETS, upper_bound};

use super::shard::FlowTotal;

/// Labels of a sample, in the order they are written.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A document under construction. Every sample belongs to the family begun last.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
    family: &'static str,
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($exposition:expr, $($arg:tt)*) => {
        let _ = write!($exposition.text, $($arg)*);
    };
}

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`.
    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        put!(self, "# HELP {name} {}\n# TYPE {name} {kind}\n", Escaped { text: help, quote: false });
        self.family = name;
        self
    }

    /// One sample.
    pub(super) fn sample(&mut self, labels: Labels, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// All samples of one histogram, durations in seconds.
    pub(super) fn histogram(&mut self, labels: Labels, flow: &FlowTotal) -> &mut Self {
        let mut cumulative = 0;
        for bucket in 0..BUCKETS {
            cumulative += flow.buckets[bucket];
            match upper_bound(bucket) {
                Some(nanos) => self.line("_bucket", labels, Some(&seconds(nanos).to_string()), cumulative),
                None => self.line("_bucket", labels, Some("+Inf"), cumulative),
            }
        }
        self.line("_sum", labels, None, seconds(flow.nanos));
        self.line("_count", labels, None, cumulative);
        self
    }

    /// The whole document.
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: Labels, le: Option<&str>, value: impl Display) {
        put!(self, "{}{suffix}", self.family);
        let mut separator = '{';
        for (name, text) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
            put!(self, "{separator}{name}=\"{}\"", Escaped { text, quote: true });
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        put!(self, " {value}\n");
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Text in the format's escapes; `quote` inside a label's value, where `"` is special too.
struct Escaped<'a> {
    text: &'a str,
    quote: bool,
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.text.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.quote => f.write_str("\\\"")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples() {
        let mut document = Exposition::default();
        document
            .family("a_total", "counter", "Counts\\ a\nthing.")
            .sample(&[], 1)
            .sample(&[("path", "a\"b\\c\nd"), ("x", "")], 2.5);
        document.family("b", "gauge", "\"Quoted\".").sample(&[], f64::NAN);
        assert_eq!(
            document.finish(),
            "# HELP a_total Counts\\\\ a\\nthing.\n# TYPE a_total counter\na_total 1\n\
             a_total{path=\"a\\\"b\\\\c\\nd\",x=\"\"} 2.5\n\
             # HELP b \"Quoted\".\n# TYPE b gauge\nb NaN\n"
        );
    }

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let mut flow = FlowTotal { bytes: 0, nanos: 1_500_000_000, ..FlowTotal::default() };
        for (bucket, count) in flow.buckets.iter_mut().enumerate() {
            *count = (bucket % 3) as u64;
        }
        let mut document = Exposition::default();
        document.family("h_seconds", "histogram", "H.").histogram(&[("source", "http")], &flow);
        let text = document.finish();

        let mut bounds = Vec::new();
        let mut counts = Vec::new();
        for line in text.lines().filter(|line| line.starts_with("h_seconds_bucket")) {
            let (bound, count) = line
                .strip_prefix("h_seconds_bucket{source=\"http\",le=\"")
                .unwrap()
                .split_once("\"} ")
                .unwrap();
            bounds.push(bound.parse::<f64>().unwrap());
            counts.push(count.parse::<u64>().unwrap());
        }
        assert_eq!(bounds.len(), BUCKETS);
        assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!((bounds[0], bounds[BUCKETS - 1]), (256e-9, f64::INFINITY));
        assert!(text.ends_with(&format!(
            "h_seconds_sum{{source=\"http\"}} 1.5\nh_seconds_count{{source=\"http\"}} {}\n",
            flow.count()
        )));
        assert_eq!(counts[BUCKETS - 1], flow.count());
    }
}
