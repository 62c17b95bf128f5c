//! Writes metrics in Prometheus' text format (version 0.0.4).
//!
//! Written by hand because the programs keep their own counters, sharded by thread or read from
//! the kernel, and add them up only when a collector asks. The crate `prometheus-client` would
//! want a registered object for each of them, which takes more code than the format does.

use std::fmt::{Display, Write};

/// The `Content-Type` of a document.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of labels, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A document under construction. Every sample belongs to the family begun last.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    family: &'static str,
}

/// Appends to the text. Writing to a string cannot fail.
macro_rules! put {
    ($exposition:expr, $($arg:tt)*) => {
        let _ = write!($exposition.text, $($arg)*);
    };
}

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        put!(self, "# HELP {name} {}\n# TYPE {name} {kind}\n", Escaped { text: help, quote: false });
        self.family = name;
        self
    }

    /// Adds a sample.
    pub fn sample(&mut self, labels: Labels, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// Adds all samples of a histogram. `buckets` has the upper bound of each bucket, in the
    /// order of the bounds and `None` for the last, unbounded one, and the number of values in
    /// that bucket alone; `sum` is the sum of all values.
    pub fn histogram(
        &mut self,
        labels: Labels,
        buckets: impl IntoIterator<Item = (Option<f64>, u64)>,
        sum: f64,
    ) -> &mut Self {
        let mut cumulative = 0;
        for (bound, count) in buckets {
            cumulative += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.line("_bucket", labels, Some(&bound), cumulative);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, cumulative);
        self
    }

    /// The text of the document.
    pub fn finish(self) -> String {
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

/// Text with the format's escapes; with `quote` as the value of a label, in which `"` is escaped
/// too.
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
    fn help_and_label_values_are_escaped() {
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
        let mut document = Exposition::default();
        let buckets = [(Some(256e-9), 1), (Some(0.5), 2), (None, 3)];
        document.family("h_seconds", "histogram", "H.").histogram(&[("source", "http")], buckets, 1.5);
        assert_eq!(
            document.finish(),
            "# HELP h_seconds H.\n# TYPE h_seconds histogram\n\
             h_seconds_bucket{source=\"http\",le=\"0.000000256\"} 1\n\
             h_seconds_bucket{source=\"http\",le=\"0.5\"} 3\n\
             h_seconds_bucket{source=\"http\",le=\"+Inf\"} 6\n\
             h_seconds_sum{source=\"http\"} 1.5\nh_seconds_count{source=\"http\"} 6\n"
        );
    }
}
