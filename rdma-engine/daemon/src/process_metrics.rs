//! `process_…`: what every program that Prometheus knows says of its own process.
//!
//! Names and units are those of Prometheus' [client libraries], so that dashboards for processes
//! work for these programs, too.
//!
//! [client libraries]: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics

use procfs::process::{LimitValue, Process};
use procfs::{boot_time_secs, page_size, ticks_per_second};

use crate::prometheus::Exposition;

/// Adds the metrics of this process. What `/proc` does not tell is left out.
pub fn add_to(out: &mut Exposition) {
    let Ok(process) = Process::myself() else { return };
    if let Ok(stat) = process.stat() {
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
        out.family("process_cpu_seconds_total", "counter", "CPU time of this process, user and system.")
            .sample(&[], seconds(stat.utime + stat.stime));
        out.family("process_resident_memory_bytes", "gauge", "Memory that this process has.")
            .sample(&[], stat.rss * page_size());
        out.family("process_virtual_memory_bytes", "gauge", "Addresses that this process has.")
            .sample(&[], stat.vsize);
        if let Ok(booted) = boot_time_secs() {
            out.family("process_start_time_seconds", "gauge", "When this process was started, in Unix time.")
                .sample(&[], booted as f64 + seconds(stat.starttime));
        }
    }
    if let Ok(open) = process.fd_count() {
        out.family("process_open_fds", "gauge", "Descriptors that this process has open.").sample(&[], open);
    }
    if let Ok(limits) = process.limits() {
        let most = match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => most as f64,
            LimitValue::Unlimited => f64::INFINITY,
        };
        out.family("process_max_fds", "gauge", "Descriptors that this process may have open.")
            .sample(&[], most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let mut out = Exposition::default();
        add_to(&mut out);
        let text = out.finish();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") < value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") < 3600.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-5.0..86_400.0).contains(&age), "{age}");
    }
}
