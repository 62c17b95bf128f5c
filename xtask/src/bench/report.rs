//! Results for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::prefetch::PrefetchRow;
use super::sample::{Sample, Unit};
use super::statistics::Summary;
use crate::progress::digits;

/// What is measured beside interceptor, as tables call it.
pub(super) const WEED_MOUNT: &str = "weed mount";
pub(super) const OTHER_BUILD: &str = "other build";

/// Everything that one run of the benchmark found.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) host: HostInfo,
    pub(super) setting: RunSettings,
    pub(super) rows: Vec<Row>,
    pub(super) prefetch: Vec<PrefetchRow>,
}

/// Where it ran.
#[derive(Serialize)]
pub(super) struct HostInfo {
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) interceptor: String,
    pub(super) weed: String,
    /// The build of interceptor that took the place of `weed mount`.
    pub(super) other_build: Option<String>,
}

/// What was run.
#[derive(Serialize)]
pub(super) struct RunSettings {
    pub(super) repetitions: usize,
    pub(super) large_file_bytes: u64,
    pub(super) small_files: usize,
    pub(super) random_reads: usize,
    pub(super) notes: Vec<&'static str>,
}

/// One figure, with every repetition in the order they were made in.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) more_is_better: bool,
    pub(super) ours: Vec<f64>,
    /// Of `weed mount`, or of the other build.
    pub(super) other: Vec<f64>,
    /// How many times better ours is, of the medians.
    pub(super) ratio_of_medians: Option<f64>,
    /// Median of the ratios of the repetitions that were made next to each other.
    pub(super) median_of_ratios: Option<f64>,
}

/// Makes the rows of one workload from the repetitions of both mounts.
pub(super) fn rows(workload: &str, ours: &[Vec<Sample>], other: &[Vec<Sample>]) -> Vec<Row> {
    let mut figures: BTreeMap<usize, (&'static str, Unit)> = BTreeMap::new();
    for samples in ours.iter().chain(other) {
        figures
            .extend(samples.iter().enumerate().map(|(index, sample)| (index, (sample.figure, sample.unit))));
    }
    let column = |repetitions: &[Vec<Sample>], figure| -> Vec<f64> {
        let of =
            |samples: &Vec<Sample>| samples.iter().find(|sample| sample.figure == figure).map(|s| s.value);
        repetitions.iter().filter_map(of).collect()
    };
    figures
        .into_values()
        .map(|(figure, unit)| {
            let (ours, other) = (column(ours, figure), column(other, figure));
            let better = |ours: f64, other: f64| {
                if unit.more_is_better() { ours / other } else { other / ours }
            };
            let ratios: Vec<f64> = ours.iter().zip(&other).map(|(o, w)| better(*o, *w)).collect();
            let medians = Summary::of(&ours).zip(Summary::of(&other));
            Row {
                name: format!("{workload} {figure}").trim_end().to_owned(),
                unit: unit.label(),
                more_is_better: unit.more_is_better(),
                ratio_of_medians: medians.map(|(o, w)| better(o.median, w.median)),
                median_of_ratios: Summary::of(&ratios).map(|summary| summary.median),
                ours,
                other,
            }
        })
        .collect()
}

impl Report {
    /// The table.
    pub(super) fn text(&self) -> String {
        let host = &self.host;
        let setting = &self.setting;
        let mut text = format!(
            "\nkernel {}, {} x {}\n{}, {}{}\n{} repetitions, large file {} bytes, {} small files, {} random reads\n\n",
            host.kernel,
            host.cpus,
            host.cpu,
            host.interceptor,
            host.weed,
            host.other_build.as_ref().map_or(String::new(), |build| format!(", other build {build}")),
            setting.repetitions,
            setting.large_file_bytes,
            setting.small_files,
            setting.random_reads
        );
        let other = if host.other_build.is_some() { OTHER_BUILD } else { WEED_MOUNT };
        let head = ["", "", "interceptor", other, "better", "paired"].map(str::to_owned);
        text.push_str(&table(2, head, self.rows.iter().map(Row::cells)));
        let head = PrefetchRow::HEAD.map(str::to_owned);
        text.push_str(&table(1, head, self.prefetch.iter().map(PrefetchRow::cells)));
        for note in &setting.notes {
            text.push_str(note);
            text.push('\n');
        }
        text
    }
}

/// Lines of equally wide columns, of which the first `words` are words and the others numbers.
pub(super) fn table<const N: usize>(
    words: usize,
    head: [String; N],
    lines: impl Iterator<Item = [String; N]>,
) -> String {
    let lines: Vec<[String; N]> = std::iter::once(head).chain(lines).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        let mut cells = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Words to the left, numbers to the right.
            cells.push_str(&if column < words {
                format!("{cell:<width$}  ")
            } else {
                format!("{cell:>width$}  ")
            });
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text.push('\n');
    text
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let side = |values: &[f64]| {
            Summary::of(values).map_or("-".to_owned(), |s| {
                format!("{} ({}-{})", digits(s.median), digits(s.min), digits(s.max))
            })
        };
        let times = |ratio: Option<f64>| match ratio {
            Some(ratio) if ratio.is_finite() => format!("{}x", digits(ratio)),
            _ => "-".to_owned(),
        };
        [
            self.name.clone(),
            self.unit.to_owned(),
            side(&self.ours),
            side(&self.other),
            times(self.ratio_of_medians),
            times(self.median_of_ratios),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rate: f64, p50: f64) -> Vec<Sample> {
        vec![
            Sample { figure: "", unit: Unit::FilesPerSecond, value: rate },
            Sample { figure: "p50", unit: Unit::Microseconds, value: p50 },
        ]
    }

    #[test]
    fn better_means_faster_for_rates_and_shorter_for_times() {
        let ours = [samples(300.0, 10.0), samples(500.0, 20.0), samples(400.0, 30.0)];
        let weed = [samples(100.0, 100.0), samples(100.0, 100.0), samples(200.0, 120.0)];
        let rows = rows("small", &ours, &weed);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["small", "small p50"]);
        assert_eq!((rows[0].ratio_of_medians, rows[0].median_of_ratios), (Some(4.0), Some(3.0)));
        assert_eq!((rows[1].ratio_of_medians, rows[1].median_of_ratios), (Some(5.0), Some(5.0)));
        assert_eq!(rows[0].cells()[2], "400 (300-500)");
    }

    #[test]
    fn one_side_alone_has_no_ratio() {
        let rows = rows("small", &[samples(1.0, 1.0)], &[]);
        assert_eq!(rows[0].ratio_of_medians, None);
        assert_eq!(rows[0].cells()[3..], ["-", "-", "-"]);
    }
}
