//! The metrics of a program at one moment, and their text in Prometheus' format (version 0.0.4).
//!
//! Written by hand because the programs keep their own counters, sharded by thread or read from
//! the kernel, and add them up only when a collector asks. The crate `prometheus-client` would
//! want a registered object for each of them, which takes more code than the format does.

use std::fmt::{Display, Write};

/// The `Content-Type` of a document.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of labels, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Appends to a string, which cannot fail.
macro_rules! put {
    ($text:expr, $($arg:tt)*) => {
        let _ = write!($text, $($arg)*);
    };
}

/// A document under construction. Every sample belongs to the family begun last.
#[derive(Debug, Default)]
pub struct Exposition(Vec<MetricFamily>);

/// The samples of one metric.
#[derive(Debug)]
pub struct MetricFamily {
    /// Its name, which ends with its unit.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it measures.
    pub help: String,
    /// One for each combination of labels.
    pub samples: Vec<MetricSample>,
}

/// A value of a metric.
#[derive(Debug)]
pub struct MetricSample {
    /// Names and values of its labels.
    pub labels: Vec<(String, String)>,
    /// What was measured.
    pub value: SampleValue,
}

/// What a sample says.
#[derive(Debug)]
pub enum SampleValue {
    /// A number, as it is written.
    Number(String),
    /// A distribution.
    Histogram {
        /// The upper bound of each bucket, `None` for the last, unbounded one, and the number of
        /// values in that bucket alone.
        buckets: Vec<(Option<f64>, u64)>,
        /// The sum of all values.
        sum: f64,
    },
}

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &'static str, kind: &'static str, help: &str) -> &mut Self {
        self.0.push(MetricFamily { name, kind, help: help.to_owned(), samples: Vec::new() });
        self
    }

    /// Adds a sample.
    pub fn sample(&mut self, labels: Labels, value: impl Display) -> &mut Self {
        self.push(labels, SampleValue::Number(value.to_string()))
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
        self.push(labels, SampleValue::Histogram { buckets: buckets.into_iter().collect(), sum })
    }

    /// All metrics.
    pub fn families(&self) -> &[MetricFamily] {
        &self.0
    }

    /// The text of the document.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for MetricFamily { name, kind, help, samples } in &self.0 {
            put!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n", Escaped { text: help, quote: false });
            for MetricSample { labels, value } in samples {
                let mut line = |suffix: &str, le: Option<&str>, value: &dyn Display| {
                    put_line(&mut text, (name, suffix), labels, le, value);
                };
                match value {
                    SampleValue::Number(number) => line("", None, number),
                    SampleValue::Histogram { buckets, sum } => {
                        let mut cumulative = 0;
                        for (bound, count) in buckets {
                            cumulative += count;
                            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
                            line("_bucket", Some(&bound), &cumulative);
                        }
                        line("_sum", None, sum);
                        line("_count", None, &cumulative);
                    }
                }
            }
        }
        text
    }

    fn push(&mut self, labels: Labels, value: SampleValue) -> &mut Self {
        let family = self.0.last_mut().expect("a family was begun");
        let labels = labels.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        family.samples.push(MetricSample { labels, value });
        self
    }
}

fn put_line(
    out: &mut String,
    (name, suffix): (&str, &str),
    labels: &[(String, String)],
    le: Option<&str>,
    value: &dyn Display,
) {
    put!(out, "{name}{suffix}");
    let labels = labels.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let mut separator = '{';
    for (name, text) in labels.chain(le.map(|bound| ("le", bound))) {
        put!(out, "{separator}{name}=\"{}\"", Escaped { text, quote: true });
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    put!(out, " {value}\n");
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
